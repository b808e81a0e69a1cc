// Package agentinit is the daemon's end of the channel to creel-init, PID 1
// of a sandbox.
//
//	h, err := agentinit.Take(ctx, pidfd)
//	hello, err := h.Hello(ctx)
//	err = h.Setup(ctx, agentinit.Setup{Filter: filter})
//	results, err := h.Probe(ctx, agentinit.ProbeOptions{ReadonlyRoot: true})
//	err = h.Go(ctx)
//	nspid, err := h.Start(ctx, process, fds) // a child waits
//	...                                      // put it into its cgroup
//	stamp, err := h.Release(ctx, process.ID)
//	status, err := h.Wait(ctx, process.ID)
//	err = h.Ack(ctx, process.ID)
//
// After a restart of the daemon: Take, Hello, Resume.
//
// Beware: until Go the answers come from code that only the daemon put there.
// After it they come from a process that a hostile agent may have taken over:
// they are never evidence, and the pid of Start must be matched with what the
// kernel says (MatchNSPid among the sandbox's own cgroup). This end reads
// every message as hostile: bounds are checked, what was not asked for is
// counted and dropped, and a sender of too much of it is not listened to.
package agentinit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

const (
	// maxBad is how many messages that were not asked for are dropped before
	// the sender counts as hostile.
	maxBad = 1024
	// maxStale is how many messages of an earlier conversation may come
	// before the answer to Hello.
	maxStale = 16 << 10
)

// Host is a channel to one creel-init. Its methods may be called concurrently.
type Host struct {
	conn   Conn
	closed chan struct{} // when the reader has ended

	mu      sync.Mutex
	err     error // why it ended
	synced  bool  // Hello was answered
	nonce   [wire.NonceLen]byte
	bad     int
	stale   int
	lastReq uint32
	calls   map[uint32]*call
	procs   map[string]*proc
}

// call is a request that waits for its answer.
type call struct {
	done chan struct{} // closed with the last answer
	typ  wire.Type
	body []byte
	more [][]byte // earlier answers, of a request that has several
	code wire.Code
	no   syscall.Errno
}

// proc is what the daemon was told of a process.
type proc struct {
	started chan struct{} // closed when it runs or has ended
	exited  chan struct{}
	info    wire.Proc
	io      *byteIO
}

// NewHost begins to read c, which the Host closes. Take is for the daemon;
// this is for other transports.
func NewHost(c Conn) *Host {
	h := &Host{
		conn: c, closed: make(chan struct{}),
		calls: map[uint32]*call{}, procs: map[string]*proc{},
	}
	go h.read()
	return h
}

// Close ends the daemon's side only: creel-init and its processes go on, and
// the channel can be taken again.
func (h *Host) Close() error {
	err := h.conn.Close()
	<-h.closed
	return err
}

// Done is closed when the channel has ended.
func (h *Host) Done() <-chan struct{} { return h.closed }

// Err is why the channel has ended: it wraps ErrGone or ErrHostile. Nil while
// it has not.
func (h *Host) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Dropped is how many messages from creel-init were not asked for.
func (h *Host) Dropped() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bad
}

func (h *Host) read() {
	defer close(h.closed)
	var err error
	for err == nil {
		err = h.conn.Recv(h.dispatch)
	}
	if !errors.Is(err, ErrHostile) {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrClosed) {
			err = ErrGone
		} else {
			err = fmt.Errorf("%w: %w", ErrGone, err)
		}
	}
	h.mu.Lock()
	h.err = err
	h.mu.Unlock()
	_ = h.conn.Close()
}

// dispatch hands one message to whom it is for.
func (h *Host) dispatch(msg []byte) error {
	hd, r, ok := wire.Open(msg)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.synced && !h.isHelloLocked(hd, r, ok) {
		if h.stale++; h.stale > maxStale {
			return fmt.Errorf("%d messages before the answer to hello: %w", h.stale, ErrHostile)
		}
		return nil
	}
	if ok && hd.Req != 0 {
		ok = h.answerLocked(hd, r)
	} else if ok {
		ok = h.eventLocked(hd, r)
	}
	if !ok {
		if h.bad++; h.bad > maxBad {
			return fmt.Errorf("%d messages that were not asked for: %w", h.bad, ErrHostile)
		}
	}
	return nil
}

// isHelloLocked finds the answer that has this conversation's nonce;
// everything before it was for a daemon that is no more.
func (h *Host) isHelloLocked(hd wire.Header, r wire.R, ok bool) bool {
	if !ok {
		return false
	}
	if hd.Type == wire.TError {
		// Another version, or out of memory: only an answer to this number.
		return h.calls[hd.Req] != nil
	}
	// Before Hello there is no nonce, and none can be guessed.
	if hd.Type != wire.THelloReply || h.nonce == [wire.NonceLen]byte{} || string(r.Bytes(wire.NonceLen)) != string(h.nonce[:]) {
		return false
	}
	h.synced = true
	return true
}

func (h *Host) answerLocked(hd wire.Header, r wire.R) bool {
	c := h.calls[hd.Req]
	if c == nil {
		return false
	}
	body := make([]byte, r.Len())
	copy(body, rest(&r))
	switch hd.Type {
	case wire.TError:
		b := wire.Body(body)
		c.code, c.no = wire.Code(b.U8()), syscall.Errno(b.U32())
		if !b.Done() || c.code == 0 || c.no > 4095 {
			c.code, c.no = wire.CodeMalformed, 0
		}
	case c.typ:
		if hd.Type == wire.TResumeReply {
			if len(c.more)*resumeMin > MaxProcs {
				return false
			}
			h.adoptLocked(body)
			if len(body) > 0 && body[0] == 1 {
				c.more = append(c.more, body)
				return true
			}
		}
		c.body = body
	default:
		return false
	}
	delete(h.calls, hd.Req)
	close(c.done)
	return true
}

// resumeMin is how many processes each but the last of Resume's answers has
// at least, which bounds their number.
const resumeMin = 64

// adoptLocked makes the processes that Resume lists ours. It is done here, by
// the reader, because the next message may be the end of one of them. What
// is wrong in the list is Resume's to say.
func (h *Host) adoptLocked(list []byte) {
	r := wire.Body(list)
	r.Bool()
	for n := int(r.U16()); n > 0; n-- {
		m := wire.ReadProc(&r)
		if !r.OK() || (h.procs[m.ID] == nil && len(h.procs) >= MaxProcs) {
			return
		}
		p := h.procs[m.ID]
		if p == nil {
			p = newProc(false)
			p.info.NSPid = m.NSPid
			h.procs[m.ID] = p
		}
		switch m.State {
		case wire.StateRunning:
			p.update(wire.TRunning, m)
		case wire.StateFinished:
			p.update(wire.TExited, m)
		case wire.StateWaiting, wire.StateReleased: // nothing happened to it yet
		}
	}
}

func rest(r *wire.R) []byte {
	c := *r
	return c.Rest()
}

func (h *Host) eventLocked(hd wire.Header, r wire.R) bool {
	switch hd.Type {
	case wire.TRunning, wire.TExited:
		m := wire.ReadProc(&r)
		p := h.procs[m.ID]
		return r.Done() && p != nil && p.update(hd.Type, m)
	case wire.TOutput:
		d := wire.ReadData(&r)
		p := h.procs[d.ID]
		return r.Done() && p != nil && p.io != nil && p.io.output(d)
	case wire.TInputCredit:
		c := wire.ReadCredit(&r)
		p := h.procs[c.ID]
		return r.Done() && p != nil && p.io != nil && p.io.inputCredit(c.N)
	}
	return false
}

// update takes news of a process; false when they make no sense.
func (p *proc) update(t wire.Type, m wire.Proc) bool {
	if isClosed(p.exited) {
		return false
	}
	nspid := p.info.NSPid
	if t == wire.TRunning {
		if m.State != wire.StateRunning || isClosed(p.started) {
			return false
		}
		p.info = m
		close(p.started)
	} else {
		if m.State != wire.StateFinished {
			return false
		}
		p.info = m
		if !isClosed(p.started) {
			close(p.started)
		}
		close(p.exited)
	}
	if nspid != 0 {
		p.info.NSPid = nspid // said once, when it was forked
	}
	return true
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// begin registers a request and sends it.
func (h *Host) begin(ctx context.Context, t, answer wire.Type, fds []int, body func(*wire.W)) (*call, error) {
	c := &call{done: make(chan struct{}), typ: answer}
	h.mu.Lock()
	if h.err != nil {
		defer h.mu.Unlock()
		return nil, h.err
	}
	if h.lastReq++; h.lastReq == 0 {
		h.lastReq = 1 // 0 is an event's
	}
	req := h.lastReq
	h.calls[req] = c
	h.mu.Unlock()

	w := wire.Begin(nil, t, req)
	if body != nil {
		body(&w)
	}
	var err error
	if len(w.B) > wire.MaxMessage {
		err = ErrTooLarge
	} else {
		err = h.conn.Send(ctx, w.B, fds)
	}
	if err != nil {
		h.mu.Lock()
		delete(h.calls, req)
		h.mu.Unlock()
		return nil, err
	}
	return c, nil
}

// roundTrip sends a request and waits for its answer. One that is not waited
// for stays among the calls until it has come: it was asked for, and must not
// count as a message that was not.
func (h *Host) roundTrip(ctx context.Context, t, answer wire.Type, fds []int, body func(*wire.W)) (*call, error) {
	c, err := h.begin(ctx, t, answer, fds, body)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.done:
		return c, c.err()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-h.closed:
		return nil, h.Err()
	}
}

func (c *call) err() error {
	switch c.code {
	case 0:
		return nil
	case wire.CodeState:
		return ErrOrder
	case wire.CodeUnknown:
		return ErrUnknown
	case wire.CodeExists:
		return ErrExists
	case wire.CodeFull:
		return ErrFull
	case wire.CodeTooLarge:
		return ErrTooLarge
	case wire.CodeOS:
		return c.no
	}
	return fmt.Errorf("creel-init refused the request (code %d); is it of this daemon's version?", c.code)
}

func newNonce() (n [wire.NonceLen]byte) {
	_, _ = rand.Read(n[:]) // never fails (crypto/rand)
	return n
}
