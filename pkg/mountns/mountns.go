// Package mountns keeps creeld, its containerd and the shims in one private
// mount namespace.
//
// creeld calls [Enter] first thing. The first time, that makes the namespace
// and pins it; later, also after a kill -9, it joins the pinned one, so that
// what creeld mounts is always seen by shims that outlived it. The program is
// executed again inside, because a Go process has many threads and a mount
// namespace belongs to each of them.
//
// # Propagation
//
// Mounts in the namespace are recursive slaves of the host's (mount(2),
// MS_SLAVE): what the host mounts later, such as a disk with somebody's
// project, arrives; what is mounted or unmounted here never reaches the host.
// With MS_PRIVATE the first would be lost too; with MS_SHARED an unmount here
// would take the host's mount away. So everything is made a slave before
// anything is unmounted. The run directory is private: nothing of the host's
// arrives beneath it.
//
// # Pinning
//
// The kernel refuses to bind a mount namespace's file inside that namespace
// or a younger one, since the cycle would keep both alive for ever
// (mnt_ns_loop in fs/namespace.c). The pin is therefore made by a thread that
// has stayed in the host's namespace, on a mount point that is private, so
// that the bind is not propagated to where it may not be.
package mountns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// hostEnv carries the descriptor of the host's namespace through the exec.
	hostEnv = "CREEL_HOST_MNTNS_FD"

	// pinDir and pinFile are below the run directory.
	pinDir  = "mnt"
	pinFile = "ns"

	// hybrid is where cgroup2 is on hosts whose controllers are on v1.
	hybrid = "/sys/fs/cgroup/unified"
)

// host is the host's mount namespace; nil until Enter has returned.
var host struct {
	mu sync.Mutex
	f  *os.File
}

// Enter makes sure that the process runs in the private mount namespace
// pinned at runDir/mnt/ns, which it makes if there is none. runDir is made if
// missing. When the process has to move, Enter executes /proc/self/exe with
// the same arguments, environment and working directory and does not return;
// the new image's call then returns nil. It needs CAP_SYS_ADMIN.
func Enter(runDir string) error {
	if v, ok := os.LookupEnv(hostEnv); ok {
		return arrive(v)
	}
	runDir, err := prepare(runDir)
	if err != nil {
		return fmt.Errorf("private mount namespace: %w", err)
	}
	return fmt.Errorf("private mount namespace: %w", move(runDir))
}

// Stay is Enter for a daemon whose shims are started by a containerd that is
// not its own: they see only what is mounted in containerd's namespace, so the
// process stays where it was started, which must be that one ([Same] says).
// What is mounted below runDir is then in the host's mount table, but arrives
// in no other namespace.
func Stay(runDir string) error {
	if err := stay(runDir); err != nil {
		return fmt.Errorf("mount namespace of the host: %w", err)
	}
	return nil
}

func stay(runDir string) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	runDir, err := filepath.EvalSymlinks(runDir)
	if err != nil {
		return err
	}
	mounted, err := isMountPoint(runDir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(runDir, runDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", runDir, err)
		}
	}
	if err := unix.Mount("", runDir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s private: %w", runDir, err)
	}
	self, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	host.mu.Lock()
	defer host.mu.Unlock()
	host.f = self
	return nil
}

// Same says whether a process, by its pid, is in the mount namespace of this
// one. The pid must be known to be the process that is meant.
func Same(pid int) (bool, error) {
	own, err := selfInode()
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", pid), &st); err != nil {
		return false, fmt.Errorf("mount namespace of process %d: %w", pid, err)
	}
	return st.Ino == own, nil
}

// Host is the host's mount namespace, for setns(2) and comparison. It is the
// package's: do not close it. It is nil before Enter or Stay has returned.
func Host() *os.File {
	host.mu.Lock()
	defer host.mu.Unlock()
	return host.f
}

// HostInode is the inode number of the host's mount namespace, the number in
// the text of /proc/PID/ns/mnt. Before Enter it is that of the process.
func HostInode() (uint64, error) {
	if f := Host(); f != nil {
		return inode(int(f.Fd()))
	}
	return selfInode()
}

// Unpin removes the pin of runDir, so that the namespace ends with its last
// process, and what Enter mounted on runDir, so that it can be removed.
// Nothing pinned is success. It works from the host's namespace and, after
// Enter, from the private one, where everything mounted below runDir goes: it
// is for taking a daemon off a machine, not for its restart.
func Unpin(runDir string) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime destroys the thread
		if f := Host(); f != nil {
			if err := join(f); err != nil {
				errc <- err
				return
			}
		}
		errc <- unpin(runDir)
	}()
	err := <-errc
	if err == nil && Host() != nil {
		err = detach(runDir)
	}
	if err != nil {
		return fmt.Errorf("unpin mount namespace: %w", err)
	}
	return nil
}

// detach takes all that is mounted on path away.
func detach(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not a mount point
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

func unpin(runDir string) error {
	runDir, err := filepath.EvalSymlinks(runDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir := filepath.Join(runDir, pinDir)
	for _, p := range []string{filepath.Join(dir, pinFile), dir} {
		if err := detach(p); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(dir, pinFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// arrive is Enter after the exec: v is the number of the inherited descriptor.
func arrive(v string) error {
	if err := os.Unsetenv(hostEnv); err != nil {
		return err
	}
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 3 {
		return fmt.Errorf("private mount namespace: %s=%q is not a descriptor; unset it", hostEnv, v)
	}
	if err := isMountNS(fd); err != nil {
		return fmt.Errorf("private mount namespace: %s=%q: %w; unset it", hostEnv, v, err)
	}
	outer, err := inode(fd)
	if err != nil {
		return err
	}
	own, err := selfInode()
	if err != nil {
		return err
	}
	if own == outer {
		return fmt.Errorf("private mount namespace: still in the host's after exec; unset %s", hostEnv)
	}
	unix.CloseOnExec(fd)
	// exec of /proc/self/exe named the process "exe".
	_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	host.mu.Lock()
	host.f = os.NewFile(uintptr(fd), "host mount namespace")
	host.mu.Unlock()
	return nil
}

// prepare makes runDir and the private mount point that holds the pin. It
// returns runDir without symbolic links, as the mount table names it.
func prepare(runDir string) (string, error) {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return "", err
	}
	runDir, err := filepath.EvalSymlinks(runDir)
	if err != nil {
		return "", err
	}
	if runDir, err = filepath.Abs(runDir); err != nil {
		return "", err
	}
	dir := filepath.Join(runDir, pinDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	mounted, err := isMountPoint(dir)
	if err != nil {
		return "", err
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return "", fmt.Errorf("bind %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make %s private: %w", dir, err)
	}
	return runDir, nil
}

// move executes the program again inside the namespace. It returns only to
// report an error.
func move(runDir string) error {
	self, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	defer self.Close()
	pin := filepath.Join(runDir, pinDir, pinFile)
	pinned, err := openPin(pin)
	if err != nil {
		return err
	}
	if pinned != nil {
		defer pinned.Close()
		return inThread(func() error {
			if err := join(pinned); err != nil {
				return err
			}
			return reexec(self)
		})
	}
	return create(self, runDir, pin)
}

// create makes the namespace on one thread and pins it from another, which
// stays in the host's.
func create(self *os.File, runDir, pin string) error {
	made := make(chan int) // the thread id whose namespace is ready
	bound := make(chan error)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime destroys the thread
		if err := build(runDir); err != nil {
			failed <- err
			return
		}
		made <- unix.Gettid()
		if err := <-bound; err != nil {
			failed <- err
			return
		}
		failed <- reexec(self)
	}()
	select {
	case err := <-failed:
		return err
	case tid := <-made:
		bound <- bindPin(tid, pin)
		return <-failed
	}
}

// build moves the calling thread into a new mount namespace and arranges it.
func build(runDir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	// First of all: an unmount in a shared namespace would be the host's too.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts slaves: %w", err)
	}
	// The pin's mount point is the host's affair.
	if err := detach(filepath.Join(runDir, pinDir)); err != nil {
		return err
	}
	if err := unix.Mount(runDir, runDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", runDir, err)
	}
	if err := unix.Mount("", runDir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s private: %w", runDir, err)
	}
	return dropHybrid()
}

// dropHybrid hides the cgroup2 mount of a host whose controllers are on
// cgroup v1: crun refuses such a host ("cgroups in hybrid mode not
// supported"). Only this namespace loses it.
func dropHybrid() error {
	if mounted, err := isMountPoint(hybrid); err != nil || !mounted {
		return err
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return nil // cgroup2 is the host's main hierarchy: not ours to judge
	}
	if err := unix.Unmount(hybrid, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", hybrid, err)
	}
	return nil
}

// bindPin keeps the namespace of thread tid at path.
func bindPin(tid int, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	src := fmt.Sprintf("/proc/self/task/%d/ns/mnt", tid)
	if err := unix.Mount(src, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin at %s: %w", path, err)
	}
	return nil
}

// openPin opens the pinned namespace; nil if there is none.
func openPin(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if isMountNS(int(f.Fd())) != nil {
		f.Close() // the empty file of an interrupted pinning
		return nil, nil
	}
	return f, nil
}

// join moves the calling thread, which must be locked, into ns and keeps its
// working directory by name (setns resets it to the namespace's root).
func join(ns *os.File) error {
	wd, err := os.Getwd()
	if err != nil {
		wd = "/"
	}
	// setns(2): a thread that shares its root and directory with others
	// cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("join %s: %w", ns.Name(), err)
	}
	if err := unix.Chdir(wd); err != nil {
		return fmt.Errorf("working directory %s in the mount namespace: %w", wd, err)
	}
	return nil
}

// reexec replaces the process by itself, in the calling thread's namespace.
func reexec(host *os.File) error {
	fd, err := unix.FcntlInt(host.Fd(), unix.F_DUPFD, 3) // survives the exec
	if err != nil {
		return err
	}
	env := append(os.Environ(), hostEnv+"="+strconv.Itoa(fd))
	err = unix.Exec("/proc/self/exe", os.Args, env)
	unix.Close(fd)
	return fmt.Errorf("exec /proc/self/exe: %w", err)
}

// inThread runs fn on a thread of its own, which ends with it.
func inThread(fn func() error) error {
	errc := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime destroys the thread
		errc <- fn()
	}()
	return <-errc
}

// isMountNS says why fd is not a mount namespace.
func isMountNS(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err
	}
	if st.Type != unix.NSFS_MAGIC {
		return errors.New("not a namespace")
	}
	typ, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("namespace type: %w", err)
	}
	if typ != unix.CLONE_NEWNS {
		return errors.New("not a mount namespace")
	}
	return nil
}

func inode(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat mount namespace: %w", err)
	}
	return st.Ino, nil
}

func selfInode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/mnt", &st); err != nil {
		return 0, fmt.Errorf("stat own mount namespace: %w", err)
	}
	return st.Ino, nil
}

// isMountPoint reports whether something is mounted exactly at path, which
// must be without symbolic links.
func isMountPoint(path string) (bool, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		// proc(5): the fifth field is the mount point, octal-escaped.
		if f := strings.Fields(line); len(f) > 4 && unescape(f[4]) == path {
			return true, nil
		}
	}
	return false, nil
}

// unescape undoes the kernel's \ooo form of blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
