// Package inside is creel-init: PID 1 of a sandbox.
//
// It runs with the agent's uid and no privilege. It starts nothing by itself:
// the daemon takes one end of a socket pair out of it with pidfd_getfd(2) and
// says what to do. It keeps its word small on purpose: no listener, no path,
// no file of its own, one thread that works.
//
// What it must withstand is the agent, which has the same uid: it is not
// dumpable (so /proc/1/mem, fd, environ and maps are closed), drops every
// signal it does not forward, and holds nothing an agent's process inherits.
//
// The package avoids fmt, os, reflect and the like, because every sandbox
// pays for its memory.
package inside

import (
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// The numbers of descriptors that the daemon and the proof know.
const (
	InitFD   = 100 // PID 1's end of the channel
	DaemonFD = 101 // the daemon's, which PID 1 never uses
	epollFD  = 102
	outFD    = 103 // where a stream is written
	sigRFD   = 104 // the pipe of signals
	sigWFD   = 105

	daemonEnd = 106 // where DaemonFD is until pairUp
	rulesetFD = 107 // of which each command's Landlock domain is made
)

// FileOpName is argv[0] of a process that does one file operation.
const FileOpName = "creel-file"

// procState is a child and what has to be said of it.
type procState struct {
	id     string
	pid    int
	state  wire.State
	ctl    int // -1 when closed
	stamp  int64
	status uint32
	stage  wire.Stage
	errno  uint32
	keep   []int32
	io     *byteIO // nil unless creel-init moves the bytes
}

// system is what a daemon's request does to the kernel; tests replace it.
type system interface {
	fork(p *plan) (int, syscall.Errno)
	setup(s *wire.Setup) syscall.Errno
	probe(p wire.Probing) []wire.Probe
	kill(pid int, sig syscall.Signal) syscall.Errno
	watch(fd int, events uint32, add bool) syscall.Errno
	unwatch(fd int)
	keyring() string
}

type server struct {
	sys   system
	ch    channel
	nonce [wire.NonceLen]byte
	key   string
	hello bool
	setup bool
	gone  bool // Go was said
	procs map[string]*procState
	byPid map[int]*procState
	byFD  map[int]*procState
	start wire.Start // its lists' memory is used again
	buf   []byte     // of the message being made
	sigs  int        // read end of the signal pipe
}

func newServer(sys system, ch channel) *server {
	return &server{
		sys: sys, ch: ch, sigs: -1,
		procs: map[string]*procState{}, byPid: map[int]*procState{}, byFD: map[int]*procState{},
		buf: make([]byte, 0, 4<<10),
	}
}

// Main is the whole program. It does not return.
func Main(args []string) {
	_, _ = sys3(syscall.SYS_PRCTL, prSetDumpable, 0, 0)
	if len(args) > 0 && args[0] == FileOpName {
		exit(fileOp(args[1:]))
	}
	pid, _ := sys3(syscall.SYS_GETPID, 0, 0, 0)
	if pid != 1 {
		const msg = "creel-init: only runs as PID 1 of a sandbox\n"
		_, _ = write(2, []byte(msg))
		exit(2)
	}
	stream := len(args) > 1 && args[1] == "--stream"
	if e := run(stream); e != 0 {
		exit(70)
	}
	exit(0)
}

func run(stream bool) syscall.Errno {
	// One processor keeps the runtime at a handful of threads: on a machine of
	// many it would start one for each, and a thread that cannot be started,
	// with the sandbox at its limit, ends a Go program.
	runtime.GOMAXPROCS(1)
	if e := prepare(stream); e != 0 {
		return e
	}
	// The runtime opens a poll set of its own with its first timer, which
	// would be the first one after a garbage collection: PID 1's descriptors
	// are compared with the proof's for as long as it lives.
	time.Sleep(time.Nanosecond)
	sigs, e := takeSignals()
	if e != 0 {
		return e
	}
	ep, e := sys3(syscall.SYS_EPOLL_CREATE1, sockCloexec, 0, 0)
	if e != 0 {
		return e
	}
	if e := moveTo(ep, epollFD); e != 0 {
		return e
	}
	var ch channel
	if stream {
		ch = newStreamChannel(InitFD, outFD)
	} else {
		ch = newPacketChannel(InitFD)
	}
	s := newServer(kernel{}, ch)
	s.sigs = sigs
	if e := s.sys.watch(sigs, syscall.EPOLLIN, true); e != 0 {
		return e
	}
	if e := s.sys.watch(InitFD, syscall.EPOLLIN, true); e != 0 {
		return e
	}
	if stream {
		if e := s.sys.watch(outFD, 0, true); e != 0 && e != syscall.EPERM {
			return e
		}
	} else if e := pairUp(); e != 0 {
		return e
	}
	return s.loop()
}

// prepare puts every descriptor in its place. Nothing that the runtime left
// open stays.
func prepare(stream bool) syscall.Errno {
	if stream {
		if e := dup3(0, InitFD, syscall.O_CLOEXEC); e != 0 {
			return e
		}
		if e := dup3(1, outFD, syscall.O_CLOEXEC); e != 0 {
			return e
		}
		setNonblock(InitFD)
		setNonblock(outFD)
	}
	null, e := open("/dev/null", syscall.O_RDWR)
	if e != 0 {
		return e
	}
	for fd := 0; fd <= 2; fd++ {
		if null != fd {
			if e := dup3(null, fd, 0); e != 0 {
				return e
			}
		}
	}
	if null != ctlFD {
		if e := dup3(null, ctlFD, syscall.O_CLOEXEC); e != 0 {
			return e
		}
	}
	last := uintptr(InitFD - 1)
	if !stream {
		last = ^uintptr(0) >> 32
	}
	if _, e := sys3(sysCloseRange, ctlFD+1, last, 0); e != 0 {
		return e
	}
	if stream {
		_, _ = sys3(sysCloseRange, outFD+1, ^uintptr(0)>>32, 0)
		closeFD(DaemonFD)
		closeFD(epollFD)
		return 0
	}
	a, b, e := socketpair(sockSeqpacket | sockNonblock)
	if e != 0 {
		return e
	}
	size := int32(2 * wire.MaxMessage) // the kernel lowers it to what it allows
	for _, fd := range [...]int{a, b} {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), syscall.SOL_SOCKET, soSndbuf, uintptr(unsafe.Pointer(&size)), 4, 0)
	}
	if e := moveTo(a, InitFD); e != 0 {
		return e
	}
	return moveTo(b, daemonEnd)
}

// pairUp gives the daemon's end its number, by which the daemon takes it:
// from here on PID 1 listens.
func pairUp() syscall.Errno { return moveTo(daemonEnd, DaemonFD) }

func moveTo(from, to int) syscall.Errno {
	if from == to {
		return 0
	}
	if e := dup3(from, to, syscall.O_CLOEXEC); e != 0 {
		return e
	}
	closeFD(from)
	return 0
}

// loop serves until the channel ends, which happens only to a stream: the
// packet channel's other end is held by PID 1 itself.
func (s *server) loop() syscall.Errno {
	var events [32]epollEvent
	for {
		n, _, e := syscall.Syscall6(syscall.SYS_EPOLL_PWAIT, epollFD, uintptr(unsafe.Pointer(&events)), uintptr(len(events)), ^uintptr(0), 0, 0)
		if e != 0 && e != syscall.EINTR {
			return e
		}
		if e != 0 {
			n = 0
		}
		for _, ev := range events[:n] {
			switch fd := int(ev.Fd); fd {
			case s.sigs:
			default:
				// Before outFD, which without a stream may be a process's.
				if p := s.byFD[fd]; p != nil {
					s.ready(p, fd)
				} else if (fd == InitFD || fd == outFD) && !s.serve(ev.Events) {
					return 0
				}
			}
		}
		s.signals()
		s.reap()
		collect()
	}
}

// allocated is about how many bytes went to the heap since the last collection.
var allocated int

// collect keeps the heap below the 4 MB at which the runtime would begin to
// look for garbage: every sandbox pays for that memory.
func collect() {
	const limit, perExec = 512 << 10, 1 << 10
	if allocated += started * perExec; allocated > limit {
		runtime.GC()
		allocated = 0
	}
	started = 0
}

// started is how many processes were started since collect.
var started int

// serve reads requests while answers can be queued, and writes what is queued.
func (s *server) serve(events uint32) bool {
	if events&syscall.EPOLLOUT != 0 {
		s.ch.flush()
	}
	for range 64 {
		if s.ch.queued() >= maxQueued {
			break
		}
		msg, fds, ok := s.ch.recv()
		if !ok {
			return false
		}
		if msg == nil {
			break
		}
		s.handle(msg, fds)
	}
	s.pump()
	s.interest()
	return true
}

// interest tells the kernel what the channel waits for.
func (s *server) interest() {
	in, out := uint32(syscall.EPOLLIN), uint32(0)
	if s.ch.queued() >= maxQueued {
		in = 0
	}
	if s.ch.queued() > 0 {
		out = syscall.EPOLLOUT
	}
	s.ch.setInterest(s.sys, in, out)
}

// signals forwards what came to the main process.
func (s *server) signals() {
	if s.sigs < 0 {
		return
	}
	var buf [64]byte
	var seen uint64
	for range 16 { // an agent's storm must not keep PID 1 here
		n, e := read(s.sigs, buf[:])
		if e != 0 || n == 0 {
			break
		}
		for _, b := range buf[:n] {
			seen |= 1 << (b & 63)
		}
	}
	for _, sig := range forwarded {
		if seen&(1<<uint(sig)) == 0 {
			continue
		}
		if p := s.procs["main"]; p != nil && p.state == wire.StateRunning {
			_ = s.sys.kill(p.pid, sig)
		}
	}
}
