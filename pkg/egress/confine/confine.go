// Package confine takes from a creel-egress what it does not need, before it
// reads anything of an agent's: all files, all system calls but some, and what
// might give it more.
//
// Its process runs as a user of its own, without capabilities; that is for who
// starts it to see to, and is looked at here.
package confine

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/seccomp"
)

// Limits of the process.
const (
	// Files is how many descriptors it may have: two for each connection, four
	// for each sandbox.
	Files = 16384
	// memory bounds what it writes to, in bytes. One that needs more ends, and
	// is started again.
	memory = 1 << 30
)

//go:embed seccomp/egress.json
var profile embed.FS

// Profile is the system calls that it may make.
func Profile() (*seccomp.Profile, error) {
	return seccomp.Load(profile, "egress")
}

// Process confines the calling process, in all of its threads. After an error it
// is to end.
func Process() error {
	if err := limits(); err != nil {
		return fmt.Errorf("confine: limits: %w", err)
	}
	if os.Geteuid() == 0 || os.Getuid() == 0 {
		return errors.New("confine: creel-egress does not run as root; creeld starts it as a user of its own")
	}
	if err := noPrivilege(); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	if err := noFiles(); err != nil {
		return fmt.Errorf("confine: Landlock: %w", err)
	}
	if err := filter(); err != nil {
		return fmt.Errorf("confine: seccomp: %w", err)
	}
	return tried()
}

func limits() error {
	for _, l := range []struct {
		what int
		most uint64
	}{{unix.RLIMIT_NOFILE, Files}, {unix.RLIMIT_DATA, memory}, {unix.RLIMIT_CORE, 0}, {unix.RLIMIT_FSIZE, 8 << 20}, {unix.RLIMIT_MEMLOCK, 0}, {unix.RLIMIT_MSGQUEUE, 0}} {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.what, &now); err != nil {
			return err
		}
		most := min(l.most, now.Max)
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return err
		}
	}
	// It was executed by a descriptor, whose number would be its name.
	if err := os.WriteFile("/proc/self/comm", []byte("creel-egress"), 0); err != nil {
		return err
	}
	return mortal()
}

// mortal has the kernel end the process as readily as any other when memory is
// out: creeld's own score, which is inherited, is far below (proc_pid_oom_score_adj(5)).
func mortal() error {
	const file = "/proc/self/oom_score_adj"
	b, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(b), "-") {
		return err
	}
	return os.WriteFile(file, []byte("0"), 0)
}

// noPrivilege has no program that is executed give the process more, and nobody
// of its user look into it.
func noPrivilege() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	for _, d := range data {
		if d.Effective|d.Permitted|d.Inheritable != 0 {
			return errors.New("creel-egress has capabilities")
		}
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable: %w", err)
	}
	return nil
}

// Rights of Landlock by the ABI that has them (include/uapi/linux/landlock.h).
const (
	filesABI1 = 1<<13 - 1 // all of files and directories
	filesABI2 = 1 << 13   // renames from one directory to another
	filesABI3 = 1 << 14   // truncate
	filesABI5 = 1 << 15   // ioctl of devices
	netABI4   = 1 << 0    // bind TCP sockets
	scopeABI6 = 1<<2 - 1  // abstract Unix sockets and signals of others
)

// ABI is the host's version of Landlock, or why there is none.
func ABI() (int, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, fmt.Errorf("%w; boot with landlock in lsm=", errno)
	}
	return int(abi), nil
}

// noFiles enters a Landlock domain in which no file can be opened, whatever its
// rights.
func noFiles() error {
	abi, err := ABI()
	if err != nil {
		return err
	}
	attr := struct{ files, net, scoped uint64 }{files: filesABI1}
	for _, r := range []struct {
		from int
		to   *uint64
		bits uint64
	}{{2, &attr.files, filesABI2}, {3, &attr.files, filesABI3}, {4, &attr.net, netABI4}, {5, &attr.files, filesABI5}, {6, &attr.scoped, scopeABI6}} {
		if abi >= r.from {
			*r.to |= r.bits
		}
	}
	// What an older kernel does not know is zero, which it takes.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd))
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// filter installs the filter of system calls in all threads.
func filter() error {
	p, err := Profile()
	if err != nil {
		return err
	}
	f, err := p.Compile(runtime.GOARCH)
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return errno
	}
	return nil
}

// tried has what must fail now fail.
func tried() error {
	if _, err := os.Open("/"); err == nil {
		return errors.New("confine: a directory can still be opened")
	}
	if fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
		return errors.Join(errors.New("confine: a Unix socket can still be made"), unix.Close(fd))
	}
	if err := unix.Exec("/proc/self/exe", []string{"creel-egress"}, nil); !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("confine: a program can still be executed: %w", err)
	}
	return nil
}
