package inside

import (
	"syscall"
	"unsafe"
)

// Constants that package syscall lacks.
const (
	prSetDumpable    = 4
	seccompSetFilter = 1
	seccompTsync     = 1
	sockSeqpacket    = 5
	sockCloexec      = 0x80000
	sockNonblock     = 0x800
	msgCmsgCloexec   = 0x40000000
	msgNosignal      = 0x4000
	msgDontwait      = 0x40
	soSndbuf         = 7
	tiocsctty        = 0x540E
	tiocswinsz       = 0x5414
	tiocgptn         = 0x80045430
	tiocsptlck       = 0x40045431
	sigBlock         = 0
	sigSetmask       = 2
	numSignals       = 64
	clockMonotonic   = 1
)

func sys3(nr, a, b, c uintptr) (int, syscall.Errno) {
	r, _, e := syscall.RawSyscall(nr, a, b, c)
	return int(r), e
}

func closeFD(fd int) {
	if fd >= 0 {
		_, _ = sys3(syscall.SYS_CLOSE, uintptr(fd), 0, 0)
	}
}

func dup3(from, to, flags int) syscall.Errno {
	_, e := sys3(syscall.SYS_DUP3, uintptr(from), uintptr(to), uintptr(flags))
	return e
}

// socketpair makes a pair of close-on-exec Unix sockets.
func socketpair(typ int) (a, b int, e syscall.Errno) {
	var fds [2]int32
	_, _, e = syscall.RawSyscall6(syscall.SYS_SOCKETPAIR, syscall.AF_UNIX, uintptr(typ|sockCloexec), 0, uintptr(unsafe.Pointer(&fds)), 0, 0)
	return int(fds[0]), int(fds[1]), e
}

func pipe() (r, w int, e syscall.Errno) {
	var fds [2]int32
	_, e = sys3(syscall.SYS_PIPE2, uintptr(unsafe.Pointer(&fds)), syscall.O_CLOEXEC, 0)
	return int(fds[0]), int(fds[1]), e
}

func setNonblock(fd int) {
	fl, e := sys3(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
	if e == 0 {
		_, _ = sys3(syscall.SYS_FCNTL, uintptr(fd), syscall.F_SETFL, uintptr(fl|syscall.O_NONBLOCK))
	}
}

func read(fd int, b []byte) (int, syscall.Errno) {
	if len(b) == 0 {
		return 0, 0
	}
	n, e := sys3(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if e != 0 {
		n = 0
	}
	return n, e
}

func write(fd int, b []byte) (int, syscall.Errno) {
	if len(b) == 0 {
		return 0, 0
	}
	n, e := sys3(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if e != 0 {
		n = 0
	}
	return n, e
}

// open opens a path that is a constant or ends in NUL.
func open(path string, flags int) (int, syscall.Errno) {
	p := append([]byte(path), 0)
	fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, atFDCWD, uintptr(unsafe.Pointer(&p[0])), uintptr(flags|syscall.O_CLOEXEC), 0, 0, 0)
	return int(fd), e
}

// atFDCWD is AT_FDCWD (-100) as an argument.
const atFDCWD = ^uintptr(99)

type epollEvent = syscall.EpollEvent

func epollCtl(ep, op, fd int, events uint32) syscall.Errno {
	ev := epollEvent{Events: events, Fd: int32(fd)}
	_, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(ep), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return e
}

func exit(code int) {
	for {
		_, _ = sys3(syscall.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}

// Args are the program's arguments, without package os. They come from
// /proc, which every sandbox has; none when it cannot be read.
func Args() []string {
	fd, e := open("/proc/self/cmdline", syscall.O_RDONLY)
	if e != 0 {
		return nil
	}
	defer closeFD(fd)
	var args []string
	var rest []byte
	var buf [1024]byte
	for {
		n, e := read(fd, buf[:])
		if e == syscall.EINTR {
			continue
		}
		if e != 0 || n == 0 {
			return args
		}
		for _, c := range buf[:n] {
			if c != 0 {
				rest = append(rest, c)
				continue
			}
			args = append(args, string(rest))
			rest = rest[:0]
		}
	}
}
