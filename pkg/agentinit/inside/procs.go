package inside

import (
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// ready is called when one of a process's descriptors has something.
func (s *server) ready(p *procState, fd int) {
	if fd == p.ctl {
		s.readCtl(p)
		return
	}
	if p.io != nil {
		p.io.ready(s, p, fd)
		s.interest()
	}
}

// readCtl reads a child's records until there are no more for now. The end of
// the socket without a failure means that execve closed it: it runs.
func (s *server) readCtl(p *procState) {
	for p.ctl >= 0 {
		var rec record
		n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(p.ctl), uintptr(unsafe.Pointer(&rec)), recordLen, msgDontwait, 0, 0)
		switch {
		case e == syscall.EAGAIN:
			return
		case e == syscall.EINTR:
		case e == 0 && n == recordLen && rec.stage == 0:
			p.stamp = rec.stamp
		case e == 0 && n == recordLen:
			p.stage, p.errno = wire.Stage(min(rec.stage, uint32(wire.StageLast))), rec.errno
		default: // the end, or a child that an agent got hold of talks nonsense
			s.closeCtl(p)
			s.running(p)
		}
	}
}

// forget takes a descriptor out of the poll set before it is closed: a child
// that an agent stopped right after the fork still has a copy, with which the
// kernel would go on reporting it.
func (s *server) forget(fd int) {
	s.sys.unwatch(fd)
	delete(s.byFD, fd)
}

func (s *server) closeCtl(p *procState) {
	if p.ctl < 0 {
		return
	}
	s.forget(p.ctl)
	closeFD(p.ctl)
	p.ctl = -1
}

// running says that a process reached its execve and has not failed.
func (s *server) running(p *procState) {
	if p.state != wire.StateReleased || p.stamp <= 0 || p.stage != wire.StageNone {
		return
	}
	p.state = wire.StateRunning
	s.event(wire.TRunning, p)
}

func (s *server) event(t wire.Type, p *procState) {
	if s.procs[p.id] != p {
		return // cancelled
	}
	w := wire.Begin(s.buf, t, 0)
	m := p.wire()
	m.Append(&w)
	s.send(w)
	s.interest()
}

// reap collects every child that has ended, those that are not ours (orphans
// of the agent's) included. It is bounded, so that a zombie maker cannot keep
// PID 1 from its channel; what is left is found after the next event, for
// which it writes itself one.
func (s *server) reap() {
	for range 256 {
		var status int32
		pid, _, e := syscall.RawSyscall6(syscall.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&status)), syscall.WNOHANG, 0, 0, 0)
		if e == syscall.EINTR {
			continue
		}
		if e != 0 || pid == 0 {
			return
		}
		p := s.byPid[int(pid)]
		if p == nil {
			continue
		}
		delete(s.byPid, int(pid))
		s.readCtl(p)
		s.closeCtl(p)
		s.running(p)
		p.status, p.state = uint32(status), wire.StateFinished
		s.event(wire.TExited, p)
	}
	_, _ = write(int(signalPipe), []byte{byte(syscall.SIGCHLD)})
}

// kernel is the real system.
type kernel struct{}

func (kernel) fork(p *plan) (int, syscall.Errno) { return fork(p) }

func (kernel) kill(pid int, sig syscall.Signal) syscall.Errno {
	_, e := sys3(syscall.SYS_KILL, uintptr(pid), uintptr(sig), 0)
	return e
}

func (kernel) watch(fd int, events uint32, add bool) syscall.Errno {
	op := syscall.EPOLL_CTL_MOD
	if add {
		op = syscall.EPOLL_CTL_ADD
	}
	return epollCtl(epollFD, op, fd, events)
}

func (kernel) unwatch(fd int) { _ = epollCtl(epollFD, syscall.EPOLL_CTL_DEL, fd, 0) }

// keyring is the description of the session keyring, "type;uid;gid;perm;name"
// (KEYCTL_DESCRIBE in keyctl(2)), or "" when there is none.
func (kernel) keyring() string {
	const keyctlDescribe, sessionKeyring = 6, ^uintptr(2) // KEY_SPEC_SESSION_KEYRING is -3
	var buf [wire.MaxKeyring]byte
	n, _, e := syscall.RawSyscall6(sysKeyctl, keyctlDescribe, sessionKeyring, uintptr(unsafe.Pointer(&buf)), uintptr(len(buf)), 0, 0)
	if e != 0 || n == 0 || n > uintptr(len(buf)) {
		return ""
	}
	return string(buf[:n-1])
}

// sockFprog is the kernel's struct sock_fprog.
type sockFprog struct {
	n      uint16
	filter *byte
}

// setup lowers the limits, makes the ruleset and then installs the filter on
// every thread.
func (kernel) setup(s *wire.Setup) syscall.Errno {
	for _, l := range s.Rlimits {
		lim := syscall.Rlimit{Cur: l.Soft, Max: l.Hard}
		var old syscall.Rlimit
		if e := prlimit(l.Resource, nil, &old); e != 0 {
			return e
		}
		if l.Soft > l.Hard || l.Hard > old.Max {
			return syscall.EINVAL // only downward
		}
		if e := prlimit(l.Resource, &lim, nil); e != 0 {
			return e
		}
	}
	if s.Isolate {
		if e := makeRuleset(); e != 0 {
			return e
		}
	}
	if len(s.Filter) == 0 {
		return 0
	}
	prog := sockFprog{n: uint16(len(s.Filter) / 8), filter: &s.Filter[0]}
	r, e := sys3(sysSeccomp, seccompSetFilter, seccompTsync, uintptr(unsafe.Pointer(&prog)))
	if e == 0 && r != 0 {
		return syscall.EAGAIN // the thread of that number could not be set
	}
	return e
}

func prlimit(res uint32, lim, old *syscall.Rlimit) syscall.Errno {
	_, _, e := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, 0, uintptr(res), uintptr(unsafe.Pointer(lim)), uintptr(unsafe.Pointer(old)), 0, 0)
	return e
}
