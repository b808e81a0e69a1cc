package inside

import (
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// ctlFD is where a forked child has its control socket. Descriptor 3 is kept
// taken in PID 1, so that no descriptor to be moved is already there.
const ctlFD = 3

// plan is everything a forked child needs, made before the fork: after it the
// child may neither allocate nor grow its stack, because the Go runtime's
// other threads do not exist there. All memory is in the arena, which does
// not move, and which the next Start uses again.
type plan struct {
	in, out, err int
	ctl          int
	join         [wire.MaxJoin]int // cgroup files to enter by
	joins        int
	tty          bool
	isolate      bool // into a Landlock domain of its own
	umask        uintptr
	winsize      [4]uint16 // rows, columns, pixels
	cwd          *byte
	argv, env    *uintptr
	paths        *uintptr // NUL-terminated list of files to try, in order
	oomPath      *byte
	oomScore     *byte
	oomLen       uintptr
}

// record is what a child says on its control socket: a stamp when about to
// execve, or where and why it stopped.
type record struct {
	stage uint32
	errno uint32
	stamp int64
}

const recordLen = 16

var (
	allSignals = ^uint64(0)
	noSignals  uint64
	defAction  sigaction
	oneself    = [1]byte{'0'} // to a cgroup's "tasks" file
)

// fork makes a child that runs p. The child is not executed anew: it is a
// copy of PID 1, hence not dumpable and as fast as a fork, and it makes only
// raw system calls until its execve.
func fork(p *plan) (int, syscall.Errno) { return forkAs(roleCommand, p) }

// role is what a forked child is for.
type role uint8

const (
	roleCommand role = iota
	roleFirst        // of the pair in domain.go
	roleSecond
)

//go:norace
func forkAs(r role, p *plan) (int, syscall.Errno) {
	var old uint64
	// Without this a signal would run a handler in the child.
	setMask(sigSetmask, &allSignals, &old)
	pid, _, e := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if e == 0 && pid == 0 { // none of these returns
		switch r {
		case roleCommand:
			child(p)
		case roleFirst:
			firstOfPair()
		case roleSecond:
			secondOfPair()
		}
	}
	setMask(sigSetmask, &old, nil)
	return int(pid), e
}

// child places the descriptors, waits for the release and becomes the command.
//
//go:nosplit
//go:norace
func child(p *plan) {
	// A task that moves itself needs none of the locks for which a move by
	// somebody else waits an RCU grace period, ten milliseconds. Where it is,
	// the daemon looks before the release; a failure here is seen there.
	for i := 0; i < p.joins; i++ {
		_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, uintptr(p.join[i]), uintptr(unsafe.Pointer(&oneself)), 1)
	}
	// Descriptors first: while it waits a child holds its own stdio and its
	// control socket, and nothing of PID 1's or of another exec's.
	dup(p.in, 0, 0)
	dup(p.out, 1, 0)
	dup(p.err, 2, 0)
	dup(p.ctl, ctlFD, syscall.O_CLOEXEC)
	// Before anything that makes this process readable for its uid.
	if p.isolate {
		if _, _, e := syscall.RawSyscall(sysLandlockRestrictSelf, rulesetFD, 0, 0); e != 0 {
			fail(wire.StageIsolate, e)
		}
	}
	if _, _, e := syscall.RawSyscall(sysCloseRange, ctlFD+1, ^uintptr(0)>>32, 0); e != 0 {
		fail(wire.StageSession, e)
	}
	var b byte
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, ctlFD, uintptr(unsafe.Pointer(&b)), 1)
	if e != 0 || n != 1 {
		childExit(127) // cancelled
	}

	if _, _, e := syscall.RawSyscall(syscall.SYS_SETSID, 0, 0, 0); e != 0 {
		fail(wire.StageSession, e)
	}
	if p.tty {
		if _, _, e := syscall.RawSyscall(syscall.SYS_IOCTL, 0, tiocsctty, 0); e != 0 {
			fail(wire.StageTTY, e)
		}
		if p.winsize[0] != 0 && p.winsize[1] != 0 {
			if _, _, e := syscall.RawSyscall(syscall.SYS_IOCTL, 0, tiocswinsz, uintptr(unsafe.Pointer(&p.winsize))); e != 0 {
				fail(wire.StageTTY, e)
			}
		}
	}
	raiseOOM(p)
	_, _, _ = syscall.RawSyscall(syscall.SYS_UMASK, p.umask, 0, 0)
	for s := syscall.Signal(1); s <= numSignals; s++ {
		_ = setSigaction(s, &defAction) // SIGKILL and SIGSTOP refuse, and have it
	}
	if _, _, e := syscall.RawSyscall(syscall.SYS_CHDIR, uintptr(unsafe.Pointer(p.cwd)), 0, 0); e != 0 {
		fail(wire.StageCwd, e)
	}
	execute(p)
}

// raiseOOM makes the child the OOM killer's choice before PID 1. The files
// of a process that is not dumpable belong to root, so it must be dumpable
// for the moment of the open. Its Landlock domain keeps other commands away
// then. Where there is none, what can be reached of it is its stdio, the
// command it is about to run, and a copy of what PID 1 knows, which is other
// commands of the same agent and uid.
//
//go:nosplit
//go:norace
func raiseOOM(p *plan) {
	if p.oomPath == nil {
		return
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 1, 0)
	fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, atFDCWD, uintptr(unsafe.Pointer(p.oomPath)), syscall.O_WRONLY|syscall.O_CLOEXEC, 0, 0, 0)
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0)
	if e != 0 {
		fail(wire.StageOOM, e)
	}
	if _, _, e := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(p.oomScore)), p.oomLen); e != 0 {
		fail(wire.StageOOM, e)
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
}

// execute tries the files in order, as execvp(3) does.
//
//go:nosplit
//go:norace
func execute(p *plan) {
	say(wire.StageNone, 0)
	setMask(sigSetmask, &noSignals, nil)
	last := syscall.ENOENT
	for path := p.paths; *path != 0; path = (*uintptr)(unsafe.Add(unsafe.Pointer(path), unsafe.Sizeof(*path))) {
		_, _, e := syscall.RawSyscall(syscall.SYS_EXECVE, *path, uintptr(unsafe.Pointer(p.argv)), uintptr(unsafe.Pointer(p.env)))
		switch e {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			last = e // a later directory may have one that can be run
		default:
			fail(wire.StageExec, e)
		}
	}
	fail(wire.StageExec, last)
}

//go:nosplit
//go:norace
func dup(from, to int, flags uintptr) {
	if _, _, e := syscall.RawSyscall(syscall.SYS_DUP3, uintptr(from), uintptr(to), flags); e != 0 {
		childExit(127)
	}
}

//go:nosplit
//go:norace
func fail(stage wire.Stage, e syscall.Errno) {
	say(stage, e)
	childExit(127)
}

// say writes a record with the time of now.
//
//go:nosplit
//go:norace
func say(stage wire.Stage, e syscall.Errno) {
	var ts syscall.Timespec
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0)
	r := record{stage: uint32(stage), errno: uint32(e), stamp: ts.Sec*1e9 + ts.Nsec}
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, ctlFD, uintptr(unsafe.Pointer(&r)), recordLen)
}

//go:nosplit
//go:norace
func childExit(code uintptr) {
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, code, 0, 0)
	}
}
