package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/stream"
)

const (
	// stdinQueue is how many frames may wait for a command that does not read
	// its input: room for signals and resizes to pass, but bounded.
	stdinQueue = 4
	// outputChunk is the most bytes of one frame of output.
	outputChunk = 32 << 10
	// drainQuiet is how long, after the command's end, a pipe that something
	// else still holds open may be silent before the exit is reported.
	drainQuiet = 100 * time.Millisecond
	// linger is how long a client may take to hang up after the exit. Until
	// then its input is read and dropped: closing at once would have a client
	// that is still sending find the connection broken, and perhaps not read
	// what it was sent before.
	linger = 2 * time.Second
	// lastInput is how long the input that a client sent before it hung up may
	// take to reach the command. What is there is read at once; only a command
	// that does not take it uses up the time.
	lastInput = 20 * time.Millisecond
	// lastWord is how long a client may take to read why its session ended.
	lastWord = 100 * time.Millisecond
)

var errLost = errors.New("the client has gone")

// session is one upgraded connection.
type session struct {
	s      *Server
	sess   Session
	conn   *fdconn.Conn
	frames *stream.Conn
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newSession(s *Server, sess Session, conn *fdconn.Conn, r *bufio.Reader) *session {
	return &session{s: s, sess: sess, conn: conn, frames: stream.NewConn(conn, r)}
}

// run speaks frames until the command has ended or the client has gone. The
// session is closed in either case before run returns.
func (e *session) run(ctx context.Context) {
	ctx, e.cancel = context.WithCancelCause(ctx)
	defer e.cancel(nil)
	unwatch, err := e.s.hangups.watch(e.conn, func() {
		// readFrames does so itself when it has read what was sent.
		time.AfterFunc(lastInput, func() { e.cancel(errLost) })
	})
	if err != nil {
		e.end(e.s.errorFrame(ctx, e.frames.Writer, err))
		return
	}
	defer unwatch()
	// Whatever ends the session early closes it first, and only then the
	// connection, which sets blocked reads and writes free.
	aborted := make(chan struct{})
	stopEnd := context.AfterFunc(ctx, func() {
		defer close(aborted)
		e.abort(ctx)
	})
	stopStop := make(chan struct{})
	go func() {
		select {
		case <-e.s.stop:
			e.cancel(errStopping)
		case <-stopStop:
		}
	}()
	defer close(stopStop)

	if err := e.begin(); err != nil {
		e.cancel(err)
	} else {
		e.wait(ctx)
	}
	switch {
	case !stopEnd():
		<-aborted // it may still be telling the client why
	case ctx.Err() != nil:
		e.abort(ctx) // ended, but faster than AfterFunc started
	default:
		e.end(nil, func() { e.linger(ctx) })
	}
	e.wg.Wait()
}

// begin tells the client what it has, and starts the copying.
func (e *session) begin() error {
	files := e.sess.Files()
	defer closeFiles(files)
	if len(files) > 0 {
		if err := e.frames.SendFDs(files); err != nil {
			return err
		}
	}
	id, err := json.Marshal(map[string]string{"id": e.sess.ID()})
	if err != nil {
		return err
	}
	return e.frames.Write(stream.Started, id)
}

// wait copies until the command has ended, and sends its exit last.
func (e *session) wait(ctx context.Context) {
	e.wg.Go(func() { e.readFrames(ctx) })
	var pumps []*pump
	for _, o := range []struct {
		t stream.Type
		r io.Reader
	}{{stream.Stdout, e.sess.Stdout()}, {stream.Stderr, e.sess.Stderr()}} {
		if !isNil(o.r) {
			p := &pump{done: make(chan struct{})}
			pumps = append(pumps, p)
			e.wg.Go(func() { p.run(o.r, e.output(o.t)) })
		}
	}
	res, err := e.sess.Wait(ctx)
	if err != nil {
		if ctx.Err() == nil {
			_ = e.s.errorFrame(ctx, e.frames.Writer, err)
		}
		return
	}
	drain(ctx, pumps, math.MaxUint64)
	if ctx.Err() != nil {
		return // closed early: what Wait said is the consequence, not the reason
	}
	b, err := json.Marshal(res)
	if err != nil {
		_ = e.s.errorFrame(ctx, e.frames.Writer, err)
		return
	}
	_ = e.frames.Final(stream.Exit, b) // a client that is gone needs no exit
}

// abort ends the session for the reason that ctx has ended with.
func (e *session) abort(ctx context.Context) {
	cause := context.Cause(ctx)
	if errors.Is(cause, errLost) || errors.Is(cause, context.Canceled) || stream.Gone(cause) {
		e.end(nil)
		return
	}
	// The deadline holds for a write that is blocked now, too.
	_ = e.conn.SetWriteDeadline(time.Now().Add(lastWord))
	e.end(nil, func() { _ = e.s.errorFrame(ctx, e.frames.Writer, cause) })
}

// end closes the session, then does the rest, then closes the connection.
func (e *session) end(err error, rest ...func()) {
	if cerr := e.sess.Close(); cerr != nil || err != nil {
		e.s.log.Warn("session closed", slog.String("exec", e.sess.ID()), slog.Any("error", errors.Join(err, cerr)))
	}
	for _, fn := range rest {
		fn()
	}
	_ = e.conn.Close()
}

// linger waits for a client that has its exit to hang up.
func (e *session) linger(ctx context.Context) {
	if e.conn.CloseWrite() != nil {
		return
	}
	timer := time.NewTimer(linger)
	defer timer.Stop()
	select {
	case <-ctx.Done(): // it has, or the daemon stops
	case <-timer.C:
	}
}

// readFrames does what the client says until it says no more.
func (e *session) readFrames(ctx context.Context) {
	in := make(chan []byte, stdinQueue)
	done := sync.OnceFunc(func() { close(in) })
	defer done()
	stdin, fed := e.sess.Stdin(), make(chan struct{})
	e.wg.Go(func() { feed(stdin, in); close(fed) })
	for {
		f, err := e.frames.Next()
		if err == nil {
			err = e.frame(ctx, f, in, !isNil(stdin))
		}
		switch {
		case err == nil:
		case stream.Gone(err):
			done()
			select {
			case <-fed:
			case <-time.After(lastInput):
			case <-ctx.Done():
			}
			e.cancel(errLost)
			return
		case errors.Is(err, stream.ErrProtocol):
			e.cancel(api.Errorf(api.CodeInvalid, "%w", err))
			return
		default:
			e.cancel(err)
			return
		}
	}
}

func (e *session) frame(ctx context.Context, f stream.Frame, in chan<- []byte, hasStdin bool) error {
	switch f.Type { //nolint:exhaustive // the others come from the server only
	case stream.Stdin:
		if !hasStdin && len(f.Payload) > 0 {
			return fmt.Errorf("%w: input for a command whose input is not open here", stream.ErrProtocol)
		}
		select {
		case in <- append([]byte(nil), f.Payload...):
		case <-ctx.Done():
		}
	case stream.Resize:
		e.try("resize", e.sess.Resize(stream.DecodeResize(f.Payload)))
	case stream.Signal:
		sig, err := stream.DecodeSignal(f.Payload)
		if err != nil {
			return err
		}
		e.try("signal", e.sess.Signal(sig))
	default:
		return fmt.Errorf("%w: a client does not send %v frames", stream.ErrProtocol, f.Type)
	}
	return nil
}

// try notes that a resize or signal failed. The command has ended then, or has
// no terminal, and its exit says more.
func (e *session) try(what string, err error) {
	if err != nil {
		e.s.log.Debug("session request failed", slog.String("what", what), slog.String("exec", e.sess.ID()), slog.Any("error", err))
	}
}

// feed writes the client's input to the command. Once the command does not
// read it any more, the rest is dropped, as a shell's pipe would.
func feed(w io.WriteCloser, in <-chan []byte) {
	open := !isNil(w)
	for p := range in {
		if !open {
			continue
		}
		if len(p) == 0 {
			_ = w.Close()
			open = false
		} else if _, err := w.Write(p); err != nil {
			_ = w.Close()
			open = false
		}
	}
}

// output sends what a pump reads as frames of type t.
func (e *session) output(t stream.Type) func(p []byte) bool {
	return func(p []byte) bool {
		err := e.frames.Write(t, p)
		if errors.Is(err, stream.ErrClosed) {
			return false // the exit has been sent: this came after drainQuiet
		}
		if err != nil {
			e.cancel(errLost)
		}
		return err == nil
	}
}

// pump copies one output.
type pump struct {
	done    chan struct{}
	reading atomic.Bool
	bytes   atomic.Uint64
}

// run gives what it reads to emit, until emit wants no more.
func (p *pump) run(r io.Reader, emit func(p []byte) (more bool)) {
	defer close(p.done)
	buf := make([]byte, outputChunk)
	for {
		p.reading.Store(true)
		n, err := r.Read(buf)
		p.reading.Store(false)
		p.bytes.Add(uint64(n))
		if n > 0 && !emit(buf[:n]) || err != nil {
			return
		}
	}
}

// quiet says whether the pump waits for output, and how many bytes it has had.
func (p *pump) quiet() (bool, uint64) { return p.reading.Load(), p.bytes.Load() }

// drain waits for all that the command wrote to have been sent, however slowly
// the client reads. A process that the command left behind may keep a pipe
// open, so a silent pipe counts as its end after drainQuiet, and one that is
// not silent after most bytes.
func drain(ctx context.Context, pumps []*pump, most uint64) {
	begin := make([]uint64, len(pumps))
	for i, p := range pumps {
		begin[i] = p.bytes.Load()
	}
	for i, p := range pumps {
		last, since := uint64(0), time.Now()
		tick := time.NewTicker(drainQuiet / 10)
		for done := false; !done; {
			select {
			case <-p.done:
				done = true
			case <-ctx.Done():
				done = true
			case now := <-tick.C:
				waiting, n := p.quiet()
				if !waiting || n != last {
					last, since = n, now
				}
				done = now.Sub(since) >= drainQuiet || n-begin[i] >= most
			}
		}
		tick.Stop()
	}
}

// errorFrame sends why a stream ends, as its last frame.
func (s *Server) errorFrame(ctx context.Context, w *stream.Writer, err error) error {
	b, merr := json.Marshal(s.public(ctx, err))
	if merr != nil {
		return merr
	}
	if len(b) > stream.MaxPayload {
		b, merr = json.Marshal(&api.Error{Code: api.CodeOf(err), Message: "the error is too long to send", RequestID: RequestID(ctx)})
		if merr != nil {
			return merr
		}
	}
	return w.Final(stream.Error, b)
}

// isNil says whether an interface value is nil or holds a nil pointer, which a
// Session may return for a stream that it has not.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	rv := reflect.ValueOf(v)
	return rv.Kind() == reflect.Pointer && rv.IsNil()
}
