package inside

import (
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

const (
	ioChunk   = 16 << 10
	maxWindow = 1 << 20
	endOfText = 4 // VEOF, ^D: how a terminal says that input has ended
)

// ioStream is one of a process's streams whose bytes creel-init moves.
type ioStream struct {
	fd      int // -1 when closed
	watched bool
	credit  uint32 // out: bytes the daemon still takes; in: bytes it may still send
	pending []byte // in: received, not yet written
	eof     bool   // in: nothing follows pending
}

// byteIO moves a process's bytes in messages, for runtimes through which no
// descriptor can be passed. Each stream has a window, so that neither a
// flood nor a slow reader makes PID 1 keep more than that.
type byteIO struct {
	tty    bool
	window uint32
	st     [3]ioStream // wire.Stdin, Stdout, Stderr
}

var chunk [ioChunk]byte

// newByteIO makes pipes or a terminal and gives the process's ends.
func newByteIO(s *wire.Start) (*byteIO, []int, syscall.Errno) {
	b := &byteIO{tty: s.TTY, window: min(s.Window, maxWindow)}
	for i := range b.st {
		b.st[i] = ioStream{fd: -1, credit: b.window}
	}
	if s.TTY {
		master, slave, e := openPty(s.Cols, s.Rows)
		if e != 0 {
			return nil, nil, e
		}
		dup, e := sys3(syscall.SYS_FCNTL, uintptr(master), syscall.F_DUPFD_CLOEXEC, ctlFD+1)
		if e != 0 {
			closeFD(master)
			closeFD(slave)
			return nil, nil, e
		}
		setNonblock(master)
		b.st[wire.Stdin].fd, b.st[wire.Stdout].fd = dup, master
		return b, []int{slave}, 0
	}
	var std []int
	for i := range b.st {
		r, w, e := pipe()
		if e != 0 {
			b.close()
			for _, fd := range std {
				closeFD(fd)
			}
			return nil, nil, e
		}
		ours, theirs := r, w
		if i == wire.Stdin {
			ours, theirs = w, r
		}
		setNonblock(ours)
		b.st[i].fd = ours
		std = append(std, theirs)
	}
	return b, std, 0
}

func openPty(cols, rows uint16) (master, slave int, e syscall.Errno) {
	master, e = open("/dev/ptmx", syscall.O_RDWR|syscall.O_NOCTTY)
	if e != 0 {
		return -1, -1, e
	}
	var n, zero int32
	_, e = sys3(syscall.SYS_IOCTL, uintptr(master), tiocsptlck, uintptr(unsafe.Pointer(&zero)))
	if e == 0 {
		_, e = sys3(syscall.SYS_IOCTL, uintptr(master), tiocgptn, uintptr(unsafe.Pointer(&n)))
	}
	if e == 0 {
		slave, e = open("/dev/pts/"+itoa(int(n)), syscall.O_RDWR|syscall.O_NOCTTY)
	}
	if e != 0 {
		closeFD(master)
		return -1, -1, e
	}
	resize(master, cols, rows)
	return master, slave, 0
}

func resize(fd int, cols, rows uint16) {
	if cols != 0 && rows != 0 {
		size := [4]uint16{rows, cols}
		_, _ = sys3(syscall.SYS_IOCTL, uintptr(fd), tiocswinsz, uintptr(unsafe.Pointer(&size)))
	}
}

func itoa(n int) string {
	if n == 0 {
		return "0"
	}
	var b [20]byte
	i := len(b)
	for ; n > 0; n /= 10 {
		i--
		b[i] = byte('0' + n%10)
	}
	return string(b[i:])
}

func (b *byteIO) close() {
	if b == nil {
		return
	}
	for i := range b.st {
		closeFD(b.st[i].fd)
		b.st[i].fd = -1
	}
}

func (b *byteIO) unwatch(s *server) {
	for i := range b.st {
		if st := &b.st[i]; st.watched {
			s.forget(st.fd)
			st.watched = false
		}
	}
}

// watch asks for what can be done now: a stream without credit, or while too
// many answers wait for the daemon, is left to fill up.
func (b *byteIO) watch(s *server, p *procState) {
	for i := range b.st {
		st := &b.st[i]
		want := st.fd >= 0
		events := uint32(syscall.EPOLLIN)
		if i == wire.Stdin {
			want = want && len(st.pending) > 0
			events = syscall.EPOLLOUT
		} else {
			want = want && st.credit > 0 && s.ch.queued() < maxQueued
		}
		switch {
		case want && !st.watched:
			if s.sys.watch(st.fd, events, true) == 0 {
				s.byFD[st.fd], st.watched = p, true
			}
		case !want && st.watched:
			s.forget(st.fd)
			st.watched = false
		}
	}
}

// pump takes up again what waited for the daemon.
func (s *server) pump() {
	for _, p := range s.procs {
		if p.io != nil && p.state >= wire.StateReleased {
			p.io.watch(s, p)
		}
	}
}

func (b *byteIO) ready(s *server, p *procState, fd int) {
	for i := range b.st {
		if b.st[i].fd != fd {
			continue
		}
		if i == wire.Stdin {
			b.feed(s, p)
		} else {
			b.drain(s, p, uint8(i))
		}
	}
	b.watch(s, p)
}

// drain reads one chunk of output and sends it.
func (b *byteIO) drain(s *server, p *procState, stream uint8) {
	st := &b.st[stream]
	n, e := read(st.fd, chunk[:min(ioChunk, int(st.credit))])
	if e == syscall.EAGAIN || e == syscall.EINTR {
		return
	}
	d := wire.Data{ID: p.id, Stream: stream, Data: chunk[:n]}
	if e != 0 || n == 0 { // a terminal ends with EIO
		d.EOF = true
		b.end(s, stream)
	}
	st.credit -= uint32(n)
	w := wire.Begin(s.buf, wire.TOutput, 0)
	d.Append(&w)
	s.send(w)
}

func (b *byteIO) end(s *server, stream uint8) {
	st := &b.st[stream]
	if st.watched {
		s.forget(st.fd)
		st.watched = false
	}
	closeFD(st.fd)
	st.fd = -1
}

// feed writes pending input. What a process that does not read any more was
// to get is thrown away, with credit, so that the sender comes to its end.
func (b *byteIO) feed(s *server, p *procState) {
	st := &b.st[wire.Stdin]
	total := 0
	for len(st.pending) > 0 {
		n := len(st.pending)
		if st.fd >= 0 {
			var e syscall.Errno
			n, e = write(st.fd, st.pending)
			if e == syscall.EINTR {
				continue
			}
			if e == syscall.EAGAIN {
				break
			}
			if e != 0 {
				b.end(s, wire.Stdin)
				continue
			}
		}
		st.pending = st.pending[n:]
		total += n
	}
	if len(st.pending) == 0 {
		st.pending = nil
		if st.eof && st.fd >= 0 && !b.tty {
			b.end(s, wire.Stdin)
		}
	}
	total = min(total, int(b.window-st.credit)) // endOfText was not the daemon's
	if total > 0 {
		st.credit += uint32(total)
		w := wire.Begin(s.buf, wire.TInputCredit, 0)
		c := wire.Credit{ID: p.id, N: uint32(total)}
		c.Append(&w)
		s.send(w)
	}
}

// doBytes does the requests that only processes of IOBytes have, and Signal.
// They are not answered when they are right: they are too many.
func (s *server) doBytes(h wire.Header, r wire.R) {
	var d wire.Data
	var c wire.Credit
	var id string
	var cols, rows uint16
	var sig uint8
	switch h.Type {
	case wire.TInput:
		d = wire.ReadData(&r)
		id = d.ID
	case wire.TCredit:
		c = wire.ReadCredit(&r)
		id = c.ID
	case wire.TResize:
		id, cols, rows = r.ID(), r.U16(), r.U16()
	default:
		id, sig = r.ID(), r.U8()
	}
	p := s.procs[id]
	switch {
	case !r.Done() || sig > numSignals || d.Stream != wire.Stdin:
		s.refuse(h.Req, wire.CodeMalformed, 0)
	case p == nil:
		s.refuse(h.Req, wire.CodeUnknown, 0)
	case h.Type == wire.TSignal:
		if p.state != wire.StateRunning {
			s.refuse(h.Req, wire.CodeState, 0)
			return
		}
		if e := s.sys.kill(p.pid, syscall.Signal(sig)); e != 0 {
			s.refuse(h.Req, wire.CodeOS, e)
			return
		}
		s.ok(h.Req)
	case p.io == nil:
		s.refuse(h.Req, wire.CodeState, 0)
	default:
		s.moveBytes(h, p, d, c, cols, rows)
	}
}

func (s *server) moveBytes(h wire.Header, p *procState, d wire.Data, c wire.Credit, cols, rows uint16) {
	b := p.io
	switch h.Type {
	case wire.TInput:
		st := &b.st[wire.Stdin]
		if len(d.Data) > int(st.credit) || st.eof {
			s.refuse(h.Req, wire.CodeFull, 0)
			return
		}
		st.credit -= uint32(len(d.Data))
		st.pending = append(st.pending, d.Data...)
		if st.eof = d.EOF; d.EOF && b.tty {
			st.pending = append(st.pending, endOfText)
		}
		b.feed(s, p)
	case wire.TCredit:
		st := &b.st[c.Stream]
		if c.Stream == wire.Stdin || c.N > maxWindow || st.credit+c.N > b.window {
			s.refuse(h.Req, wire.CodeFull, 0)
			return
		}
		st.credit += c.N
	case wire.TResize:
		if b.tty && b.st[wire.Stdout].fd >= 0 {
			resize(b.st[wire.Stdout].fd, cols, rows)
		}
	}
	if p.state >= wire.StateReleased {
		b.watch(s, p)
	}
}
