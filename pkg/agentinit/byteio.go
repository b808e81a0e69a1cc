package agentinit

import (
	"context"
	"fmt"
	"io"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// window is how many bytes of a stream may be under way, in both directions.
const window = 256 << 10

// The streams of Output.
const (
	Stdout = wire.Stdout
	Stderr = wire.Stderr
)

// byteIO is the daemon's end of a process's streams whose bytes creel-init
// moves. Host's mutex guards it.
type byteIO struct {
	out    [3]outStream // Stdin unused
	credit uint32       // of input
	more   chan struct{}
}

type outStream struct {
	buf    []byte
	credit uint32 // what creel-init may still send
	eof    bool
	more   chan struct{} // has an element when there is news
}

func newByteIO() *byteIO {
	b := &byteIO{credit: window, more: make(chan struct{}, 1)}
	for i := range b.out {
		b.out[i] = outStream{credit: window, more: make(chan struct{}, 1)}
	}
	return b
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// output takes bytes; false when there was no credit for them.
func (b *byteIO) output(d wire.Data) bool {
	s := &b.out[d.Stream]
	if d.Stream == wire.Stdin || s.eof || uint32(len(d.Data)) > s.credit {
		return false
	}
	s.credit -= uint32(len(d.Data))
	s.buf = append(s.buf, d.Data...)
	s.eof = d.EOF
	poke(s.more)
	return true
}

func (b *byteIO) inputCredit(n uint32) bool {
	if n > window || b.credit+n > window {
		return false
	}
	b.credit += n
	poke(b.more)
	return true
}

// Output gives the next bytes of a process started with Bytes, from Stdout or
// Stderr (with TTY all come from Stdout), and io.EOF at their end. One
// goroutine may read each stream. What is not read stays in the pipe, up to a
// window of 256 KiB here.
func (h *Host) Output(ctx context.Context, id string, stream int) ([]byte, error) {
	p, err := h.lookup(id)
	if err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	if p.io == nil || stream < Stdout || stream > Stderr {
		return nil, fmt.Errorf("output of %s, stream %d: %w", id, stream, ErrOrder)
	}
	s := &p.io.out[stream]
	for {
		h.mu.Lock()
		data, eof := s.buf, s.eof
		s.buf = nil
		if !eof {
			s.credit += uint32(len(data))
		}
		h.mu.Unlock()
		if len(data) > 0 {
			if !eof {
				err = h.post(ctx, wire.TCredit, func(w *wire.W) {
					c := wire.Credit{ID: id, Stream: uint8(stream), N: uint32(len(data))}
					c.Append(w)
				})
			}
			return data, err
		}
		if eof {
			return nil, io.EOF
		}
		select {
		case <-s.more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-h.closed:
			return nil, fmt.Errorf("output of %s: %w", id, h.Err())
		}
	}
}

// Input sends data to the standard input of a process started with Bytes;
// with eof nothing follows it. It waits while the process does not read.
func (h *Host) Input(ctx context.Context, id string, data []byte, eof bool) error {
	p, err := h.lookup(id)
	if err != nil {
		return fmt.Errorf("input: %w", err)
	}
	if p.io == nil {
		return fmt.Errorf("input of %s: %w", id, ErrOrder)
	}
	for {
		h.mu.Lock()
		n := min(len(data), int(p.io.credit), wire.MaxData)
		p.io.credit -= uint32(n)
		h.mu.Unlock()
		last := n == len(data)
		if n > 0 || last {
			d := wire.Data{ID: id, EOF: eof && last, Data: data[:n]}
			if err := h.post(ctx, wire.TInput, d.Append); err != nil {
				return fmt.Errorf("input of %s: %w", id, err)
			}
		}
		if data = data[n:]; last {
			return nil
		}
		if n > 0 {
			continue
		}
		select {
		case <-p.io.more:
		case <-p.exited:
			return fmt.Errorf("input of %s: %w", id, io.ErrClosedPipe)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.closed:
			return fmt.Errorf("input of %s: %w", id, h.Err())
		}
	}
}

// Resize sets the size of the terminal of a process started with Bytes and
// TTY. With descriptors the daemon has the terminal itself.
func (h *Host) Resize(ctx context.Context, id string, cols, rows uint16) error {
	return h.post(ctx, wire.TResize, func(w *wire.W) {
		w.Str(id)
		w.U16(cols)
		w.U16(rows)
	})
}

// Signal sends a signal to a process by way of creel-init, for runtimes whose
// processes the daemon has no pidfd of.
func (h *Host) Signal(ctx context.Context, id string, sig int) error {
	_, err := h.roundTrip(ctx, wire.TSignal, wire.TOK, nil, func(w *wire.W) {
		w.Str(id)
		w.U8(uint8(sig))
	})
	if err != nil {
		return fmt.Errorf("signal %s: %w", id, err)
	}
	return nil
}

// post sends what is not answered when it is right. Its refusal counts as a
// message that was not asked for.
func (h *Host) post(ctx context.Context, t wire.Type, body func(*wire.W)) error {
	if err := h.Err(); err != nil {
		return err
	}
	w := wire.Begin(nil, t, 0)
	body(&w)
	return h.conn.Send(ctx, w.B, nil)
}
