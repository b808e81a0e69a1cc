package inside

import (
	"syscall"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// handle does one request. A request that is wrong in any way is answered
// with an error and changes nothing. It owns fds.
func (s *server) handle(msg []byte, fds []int) {
	used := false
	defer func() {
		if !used {
			for _, fd := range fds {
				closeFD(fd)
			}
		}
	}()
	h, r, ok := wire.Open(msg)
	if !ok {
		s.refuse(h.Req, wire.CodeMalformed, 0)
		return
	}
	if h.Type != wire.THello && !s.hello {
		s.refuse(h.Req, wire.CodeState, 0)
		return
	}
	switch h.Type {
	case wire.THello:
		s.doHello(h, r)
	case wire.TSetup:
		s.doSetup(h, r)
	case wire.TProbe:
		s.doProbe(h, r)
	case wire.TGo:
		s.doGo(h, r)
	case wire.TStart:
		used = s.doStart(h, r, fds)
	case wire.TRelease, wire.TCancel, wire.TAck, wire.TLetGo:
		id := r.ID()
		if !r.Done() {
			s.refuse(h.Req, wire.CodeMalformed, 0)
			return
		}
		s.doID(h, id)
	case wire.TResume:
		s.doResume(h, r)
	case wire.TInput, wire.TCredit, wire.TResize, wire.TSignal:
		s.doBytes(h, r)
	default:
		s.refuse(h.Req, wire.CodeMalformed, 0)
	}
}

func (s *server) send(w wire.W) {
	s.buf = w.B[:0]
	s.ch.send(w.B)
}

func (s *server) refuse(req uint32, c wire.Code, e syscall.Errno) {
	w := wire.Begin(s.buf, wire.TError, req)
	w.U8(uint8(c))
	w.U32(uint32(e))
	s.send(w)
}

func (s *server) ok(req uint32) { s.send(wire.Begin(s.buf, wire.TOK, req)) }

// doHello begins a conversation: what was queued for an earlier daemon is
// dropped, since Resume tells everything.
func (s *server) doHello(h wire.Header, r wire.R) {
	nonce := r.Bytes(wire.NonceLen)
	if !r.Done() || len(nonce) != wire.NonceLen {
		s.refuse(h.Req, wire.CodeMalformed, 0)
		return
	}
	copy(s.nonce[:], nonce)
	if !s.hello {
		s.key = s.sys.keyring() // the filter, later, refuses keyctl(2)
	}
	s.hello = true
	s.ch.drop()
	w := wire.Begin(s.buf, wire.THelloReply, h.Req)
	w.Bytes(s.nonce[:])
	pid, _ := sys3(syscall.SYS_GETPID, 0, 0, 0)
	w.U32(uint32(pid))
	w.Bool(s.setup)
	w.Bool(s.gone)
	w.Str(s.key)
	s.send(w)
}

func (s *server) doSetup(h wire.Header, r wire.R) {
	setup := wire.ReadSetup(&r)
	switch {
	case !r.Done():
		s.refuse(h.Req, wire.CodeMalformed, 0)
	case s.setup || s.gone:
		s.refuse(h.Req, wire.CodeState, 0)
	default:
		if e := s.sys.setup(&setup); e != 0 {
			s.refuse(h.Req, wire.CodeOS, e)
			return
		}
		s.setup = true
		s.ok(h.Req)
	}
}

func (s *server) doProbe(h wire.Header, r wire.R) {
	probing := wire.ReadProbing(&r)
	if !r.Done() {
		s.refuse(h.Req, wire.CodeMalformed, 0)
		return
	}
	if s.gone {
		// With agent code about, the answer would be worth nothing.
		s.refuse(h.Req, wire.CodeState, 0)
		return
	}
	rows := s.sys.probe(probing)
	w := wire.Begin(s.buf, wire.TProbeReply, h.Req)
	w.U16(uint16(len(rows)))
	for i := range rows {
		rows[i].Append(&w)
	}
	s.send(w)
}

func (s *server) doGo(h wire.Header, r wire.R) {
	if !r.Done() {
		s.refuse(h.Req, wire.CodeMalformed, 0)
		return
	}
	if !s.setup || s.gone {
		s.refuse(h.Req, wire.CodeState, 0)
		return
	}
	s.gone = true
	s.ok(h.Req)
}

// doStart forks a process that waits for its release. It is true when fds
// belong to the process or are closed.
func (s *server) doStart(h wire.Header, r wire.R, fds []int) bool {
	st := &s.start
	st.Read(&r)
	switch {
	case !r.Done():
		s.refuse(h.Req, wire.CodeMalformed, 0)
	case !s.gone:
		s.refuse(h.Req, wire.CodeState, 0)
	case s.procs[st.ID] != nil:
		s.refuse(h.Req, wire.CodeExists, 0)
	case len(s.procs) >= wire.MaxProcs:
		s.refuse(h.Req, wire.CodeFull, 0)
	case st.ArgsLen() > wire.MaxArgs:
		s.refuse(h.Req, wire.CodeTooLarge, 0)
	case len(fds) != st.FDs():
		s.refuse(h.Req, wire.CodeFDs, 0)
	default:
		p, e := s.spawn(st, fds)
		if e != 0 {
			s.refuse(h.Req, wire.CodeOS, e)
			return false
		}
		w := wire.Begin(s.buf, wire.TStarted, h.Req)
		w.U32(uint32(p.pid))
		s.send(w)
		return true
	}
	return false
}

// spawn forks. On success the descriptors that are the process's stdio are
// closed here and the others are kept.
func (s *server) spawn(st *wire.Start, fds []int) (_ *procState, err syscall.Errno) {
	pl, e := newPlan(st)
	if e != 0 {
		return nil, e
	}
	ours, theirs, e := socketpair(syscall.SOCK_STREAM)
	if e != 0 {
		return nil, e
	}
	defer closeFD(theirs)
	pl.ctl = theirs
	p := &procState{id: st.ID, state: wire.StateWaiting, ctl: ours}
	nstd := st.FDs() - int(st.Keep) - int(st.Join)
	std, keep, join := fds[:nstd], fds[nstd:nstd+int(st.Keep)], fds[nstd+int(st.Keep):]
	pl.joins = copy(pl.join[:], join)
	if st.IO == wire.IOBytes {
		if p.io, std, e = newByteIO(st); e != 0 {
			closeFD(ours)
			return nil, e
		}
	}
	pl.in, pl.out, pl.err = std[0], std[len(std)/2], std[len(std)-1]
	pid, e := s.sys.fork(pl)
	if st.IO == wire.IOBytes {
		for _, fd := range std {
			closeFD(fd)
		}
	}
	if e == 0 {
		e = s.sys.watch(ours, syscall.EPOLLIN, true)
	}
	if e != 0 {
		closeFD(ours) // the child, if there is one, reads the end and exits
		p.io.close()
		return nil, e
	}
	p.pid = pid
	started++
	for _, fd := range fds[:nstd] {
		closeFD(fd)
	}
	for _, fd := range join {
		closeFD(fd)
	}
	for _, fd := range keep {
		p.keep = append(p.keep, int32(fd))
	}
	s.procs[p.id], s.byPid[pid], s.byFD[ours] = p, p, p
	return p, 0
}

// doID does the requests that are about one process and nothing else.
func (s *server) doID(h wire.Header, id string) {
	p := s.procs[id]
	switch {
	case p == nil:
		s.refuse(h.Req, wire.CodeUnknown, 0)
	case h.Type == wire.TRelease && p.state == wire.StateWaiting:
		p.state = wire.StateReleased
		// One that has ended, and is about to be reaped, is told by TExited.
		if _, e := write(p.ctl, []byte{1}); e != 0 && e != syscall.EPIPE && p.ctl >= 0 {
			s.refuse(h.Req, wire.CodeOS, e)
			return
		}
		if p.io != nil {
			p.io.watch(s, p)
		}
		s.ok(h.Req)
	case h.Type == wire.TCancel && p.state == wire.StateWaiting:
		s.closeCtl(p)
		_ = s.sys.kill(p.pid, syscall.SIGKILL)
		delete(s.procs, id) // byPid keeps it until it is reaped
		s.release(p)
		s.ok(h.Req)
	case h.Type == wire.TAck && p.state == wire.StateFinished:
		delete(s.procs, id)
		s.release(p)
		s.ok(h.Req)
	case h.Type == wire.TLetGo && len(p.keep) > 0:
		last := len(p.keep) - 1
		closeFD(int(p.keep[last]))
		p.keep = p.keep[:last]
		s.ok(h.Req)
	default:
		s.refuse(h.Req, wire.CodeState, 0)
	}
}

// release closes what is held for a process.
func (s *server) release(p *procState) {
	s.closeCtl(p)
	for _, fd := range p.keep {
		closeFD(int(fd))
	}
	p.keep = nil
	if p.io != nil {
		p.io.unwatch(s)
		p.io.close()
		p.io = nil
	}
}

const resumeBatch = 256

// doResume lists every process, in several messages when there are many; the
// last one has no "more".
func (s *server) doResume(h wire.Header, r wire.R) {
	if !r.Done() {
		s.refuse(h.Req, wire.CodeMalformed, 0)
		return
	}
	left := len(s.procs)
	batch := make([]*procState, 0, min(left, resumeBatch))
	flush := func(more bool) {
		w := wire.Begin(s.buf, wire.TResumeReply, h.Req)
		w.Bool(more)
		w.U16(uint16(len(batch)))
		for _, p := range batch {
			m := p.wire()
			m.Append(&w)
		}
		s.send(w)
		batch = batch[:0]
	}
	for _, p := range s.procs {
		if len(batch) == resumeBatch {
			flush(true)
		}
		batch = append(batch, p)
	}
	flush(false)
}

func (p *procState) wire() wire.Proc {
	return wire.Proc{
		ID: p.id, State: p.state, NSPid: int32(p.pid), Stamp: p.stamp,
		Status: p.status, Stage: p.stage, Errno: p.errno, Keep: p.keep,
	}
}
