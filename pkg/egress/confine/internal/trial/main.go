// Command trial confines itself as creel-egress does, and says what it can do
// that it must not, and what it cannot that it must: nothing, if all is well. It
// is for the test of package confine, whose own program may be built with cgo.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/confine"
)

func main() { _, _ = os.Stdout.WriteString(confined()) }

// confined says, in a process that was confined, what can be done that must not
// be, and what cannot be done that must.
func confined() (said string) {
	ctx := context.Background()
	kept, err := os.Open("/proc/self/exe")
	if err != nil {
		return err.Error()
	}
	running := make(chan struct{}) // a thread from before
	go func() { close(running); time.Sleep(time.Hour) }()
	<-running
	if err := confine.Process(); err != nil {
		return err.Error()
	}
	must := func(what string, want error, got error) {
		if !errors.Is(got, want) {
			said += fmt.Sprintf("%s: %v\n", what, got)
		}
	}
	refused := unix.EPERM
	sys := func(nr uintptr, args ...uintptr) error {
		var a [6]uintptr
		copy(a[:], args)
		_, _, errno := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if errno == 0 {
			return nil
		}
		return errno
	}
	for name, nr := range map[string]uintptr{
		"execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "ptrace": unix.SYS_PTRACE, "kill": unix.SYS_KILL, "unshare": unix.SYS_UNSHARE, "setns": unix.SYS_SETNS,
		"mount": unix.SYS_MOUNT, "bpf": unix.SYS_BPF, "io_uring": unix.SYS_IO_URING_SETUP, "openat2": unix.SYS_OPENAT2, "linkat": unix.SYS_LINKAT, "unlinkat": unix.SYS_UNLINKAT,
		"socketpair": unix.SYS_SOCKETPAIR, "listen": unix.SYS_LISTEN, "pidfd_getfd": unix.SYS_PIDFD_GETFD, "process_vm_readv": unix.SYS_PROCESS_VM_READV, "setuid": unix.SYS_SETUID,
		"prctl": unix.SYS_PRCTL, "add_key": unix.SYS_ADD_KEY, "userfaultfd": unix.SYS_USERFAULTFD, "clone3": unix.SYS_CLONE3, "prlimit64": unix.SYS_PRLIMIT64, "name_to_handle_at": unix.SYS_NAME_TO_HANDLE_AT,
	} {
		must(name, refused, sys(nr))
	}
	must("a process", refused, sys(unix.SYS_CLONE, uintptr(unix.SIGCHLD)))
	for _, path := range []string{"/", "/etc/passwd", "/proc/self/exe", "/proc/self/mem", "/dev/null"} {
		_, err := os.Open(path)
		must("open "+path, refused, err)
		_, err = os.Stat(path)
		must("stat "+path, refused, err)
	}
	_, err = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
	must("executable memory", refused, err)
	_, err = unix.Mmap(int(kept.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	must("a program's memory", refused, err)
	for _, s := range [][3]int{
		{unix.AF_UNIX, unix.SOCK_STREAM, 0},
		{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
		{unix.AF_PACKET, unix.SOCK_RAW, 0},
		{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
		{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE},
		{unix.AF_VSOCK, unix.SOCK_STREAM, 0},
		{unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
	} {
		_, err := unix.Socket(s[0], s[1], s[2])
		must(fmt.Sprint("socket ", s), refused, err)
	}
	_, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	must("listen", os.ErrPermission, err) // of bind, by Landlock, or of listen

	// And what it is there for.
	_, err = net.InterfaceAddrs()
	must("addresses", nil, err)
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", "127.0.0.1:9")
	must("udp", nil, err)
	if err == nil {
		must("close", nil, c.Close())
	}
	_, err = (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", "127.0.0.1:1")
	must("tcp", unix.ECONNREFUSED, err)
	done := make(chan struct{})
	go func() { // on a thread of its own, and one that was there
		defer close(done)
		_, err := os.Open("/etc/passwd")
		must("open on another thread", refused, err)
	}()
	<-done
	return said
}
