// Package stream is the framed protocol that an exec or attach speaks after
// "Upgrade: creel-stream", and that logs are sent in.
//
// A frame is a header of 8 bytes, {type, 0, 0, 0, length as 32-bit big-endian},
// and at most 64 KiB of payload. Both ends read frames with Conn.Next until an
// Exit or Error frame, which is the last, and may write from several
// goroutines. docs/api.md describes each type.
package stream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Protocol is the name in the Upgrade header, ContentType that of a body of
// frames.
const (
	Protocol    = "creel-stream"
	ContentType = "application/vnd.creel.stream"
)

// Bounds of a frame, in bytes.
const (
	HeaderSize = 8
	MaxPayload = 64 << 10
)

// Type is the kind of a frame.
type Type byte

// The types: c is the client, s the server.
const (
	Stdin   Type = 0 // c->s: bytes; an empty one is the end of input
	Stdout  Type = 1 // s->c: bytes
	Stderr  Type = 2 // s->c: bytes
	Resize  Type = 3 // c->s: columns and rows, 16-bit big-endian each
	Signal  Type = 4 // c->s: the signal's number, one byte
	Exit    Type = 5 // s->c, last: JSON api.ExecResult
	Error   Type = 6 // s->c, last: JSON api.Error
	Started Type = 7 // s->c, before any output: JSON {"id": the exec's id}
	FDs     Type = 8 // s->c, before Started: the number of descriptors that come with this frame, one byte
	Source  Type = 9 // s->c, in logs of all commands: whose the output is that follows: an exec's id, "main", or nothing for creel's own words

	maxType = Source
)

var typeNames = [...]string{"stdin", "stdout", "stderr", "resize", "signal", "exit", "error", "started", "fds", "source"}

// String is the type's name.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", byte(t))
}

// fixedSize is the payload of types that have one size only.
var fixedSize = map[Type]int{Resize: 4, Signal: 1, FDs: 1}

// ErrProtocol means the peer does not speak the protocol. The connection is of
// no further use.
var ErrProtocol = errors.New("stream protocol error")

// ErrClosed means that the last frame has been written.
var ErrClosed = errors.New("stream has ended")

// Frame is one frame.
type Frame struct {
	Type    Type
	Payload []byte
}

// AppendFrame appends the encoding of a frame to b. The error wraps
// ErrProtocol: an unknown type, or a payload of a wrong size.
func AppendFrame(b []byte, t Type, payload []byte) ([]byte, error) {
	if err := check(t, len(payload)); err != nil {
		return b, err
	}
	b = append(b, byte(t), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...), nil
}

// ParseHeader reads a header: the type and the length of the payload. The
// error wraps ErrProtocol.
func ParseHeader(h [HeaderSize]byte) (Type, int, error) {
	t, n := Type(h[0]), binary.BigEndian.Uint32(h[4:])
	if h[1]|h[2]|h[3] != 0 {
		return 0, 0, fmt.Errorf("%w: bytes 1 to 3 of the header %x are not zero", ErrProtocol, h)
	}
	if n > MaxPayload {
		return 0, 0, fmt.Errorf("%w: payload of %d bytes, at most %d are allowed", ErrProtocol, n, MaxPayload)
	}
	return t, int(n), check(t, int(n))
}

func check(t Type, n int) error {
	if t > maxType {
		return fmt.Errorf("%w: unknown frame type %d", ErrProtocol, byte(t))
	}
	if want, ok := fixedSize[t]; ok && n != want {
		return fmt.Errorf("%w: %s payload of %d bytes, want %d", ErrProtocol, t, n, want)
	}
	if n > MaxPayload {
		return fmt.Errorf("%w: payload of %d bytes, at most %d are allowed", ErrProtocol, n, MaxPayload)
	}
	return nil
}

// Reader reads frames.
type Reader struct {
	r   io.Reader
	buf []byte
}

// NewReader reads frames from r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next reads one frame. Its payload is valid until the next call. The error is
// io.EOF between frames, io.ErrUnexpectedEOF within one, wraps ErrProtocol, or
// is the reader's.
func (r *Reader) Next() (Frame, error) {
	var h [HeaderSize]byte
	if r.buf == nil {
		r.buf = make([]byte, HeaderSize, 4<<10)
	}
	if _, err := io.ReadFull(r.r, r.buf[:HeaderSize]); err != nil {
		return Frame{}, err
	}
	copy(h[:], r.buf)
	t, n, err := ParseHeader(h)
	if err != nil {
		return Frame{}, err
	}
	if cap(r.buf) < n {
		r.buf = make([]byte, n)
	}
	payload := r.buf[:n]
	r.buf = r.buf[:cap(r.buf)]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return Frame{t, payload}, nil
}

// Writer writes frames, each with one Write to the underlying writer. It is
// safe for concurrent use.
type Writer struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error // sticky: after a partial frame nothing can follow
}

// NewWriter writes frames to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write writes one frame.
func (w *Writer) Write(t Type, payload []byte) error { return w.write(t, payload, nil, false) }

// Final writes one frame, after which every write fails with ErrClosed.
func (w *Writer) Final(t Type, payload []byte) error { return w.write(t, payload, nil, true) }

func (w *Writer) write(t Type, payload []byte, before func() error, last bool) error {
	if err := check(t, len(payload)); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if before != nil {
		if err := before(); err != nil {
			return err
		}
	}
	w.buf, _ = AppendFrame(w.buf[:0], t, payload) // checked above
	if _, err := w.w.Write(w.buf); err != nil {
		w.err = err
		return err
	}
	if last {
		w.err = ErrClosed
	}
	return nil
}

// Stream is an io.Writer that sends what is written to it as frames of type t,
// split where it is larger than a frame. An empty write sends nothing.
func (w *Writer) Stream(t Type) io.Writer {
	return writerFunc(func(p []byte) (int, error) { return w.split(t, p) })
}

func (w *Writer) split(t Type, p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, MaxPayload)
		if err := w.Write(t, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
