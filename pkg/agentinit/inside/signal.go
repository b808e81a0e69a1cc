package inside

import (
	"syscall"
	"unsafe"
)

// signalPipe is where the handler in assembly writes each signal's number.
var signalPipe int32 = -1

func signalHandlerPC() uintptr
func signalRestorerPC() uintptr

// sigaction is the kernel's struct sigaction of both architectures.
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

const (
	saRestorer = 0x04000000
	saOnstack  = 0x08000000
	saRestart  = 0x10000000
)

// forwarded are the signals that PID 1 passes to the main process. A runtime
// sends them ("kill" of the container), and so can the agent, which has the
// same uid; then they only reach its own main process.
var forwarded = [...]syscall.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1,
	syscall.SIGUSR2, syscall.SIGTERM, syscall.SIGWINCH,
}

// takeSignals replaces the Go runtime's handlers. Signals that are forwarded,
// and SIGCHLD, are written to a pipe; all others get their default, which for
// PID 1 means that the kernel drops them when they come from inside. (With
// the runtime's own handlers an agent's kill(1, SIGTERM) or kill(1, SIGSEGV)
// would end PID 1.) os/signal would do for the first half but costs 200 KB of
// binary and 0.4 MB of memory per sandbox, and two threads' hops per exit.
// It gives the pipe's read end.
func takeSignals() (int, syscall.Errno) {
	r, w, e := pipe()
	if e != 0 {
		return -1, e
	}
	setNonblock(r)
	setNonblock(w)
	if e := moveTo(r, sigRFD); e != 0 {
		return -1, e
	}
	if e := moveTo(w, sigWFD); e != 0 {
		return -1, e
	}
	signalPipe = sigWFD
	def := sigaction{}
	ours := sigaction{handler: signalHandlerPC(), flags: saOnstack | saRestart, restorer: signalRestorerPC()}
	if ours.restorer != 0 {
		ours.flags |= saRestorer
	}
	for s := syscall.Signal(1); s <= numSignals; s++ {
		if s == syscall.SIGKILL || s == syscall.SIGSTOP {
			continue
		}
		act := &def
		if s == syscall.SIGCHLD || isForwarded(s) {
			act = &ours
		}
		if e := setSigaction(s, act); e != 0 {
			return -1, e
		}
	}
	return sigRFD, 0
}

func isForwarded(s syscall.Signal) bool {
	for _, f := range forwarded {
		if s == f {
			return true
		}
	}
	return false
}

//go:nosplit
func setSigaction(s syscall.Signal, act *sigaction) syscall.Errno {
	_, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(act)), 0, 8, 0, 0)
	return e
}

//go:nosplit
func setMask(how uintptr, set, old *uint64) {
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, how, uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
}
