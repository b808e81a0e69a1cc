package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tapMax is the most that a Tap takes at one time, as much as a pipe usually
// holds.
const tapMax = 64 << 10

// restMax bounds what is taken of a pipe that something else still writes to:
// more is not in it at one moment (pipe(7), pipe-max-size).
const restMax = 1 << 20

var tapBuffers = sync.Pool{New: func() any { return new([tapMax]byte) }}

// Tap is one output of a command on its way to a client. Each byte is in the
// log before the client gets it.
//
// The client comes first: when the log cannot be written, on a full disk for
// example, the client still gets everything, and the log says how much it has
// not got.
type Tap struct {
	l      *Log
	source string
	stream byte
	in     *os.File
	pipe   bool

	mu     sync.Mutex // of reading
	over   bool
	bytes  atomic.Int64
	lost   atomic.Int64
	taking atomic.Bool
}

// Tap taps in, the read end of a pipe or a terminal's master, which must be in
// Go's poller and is closed by Close. l is tagged; source, of at most MaxSource
// bytes, says whose the output is.
func (l *Log) Tap(source string, stream byte, in *os.File) (*Tap, error) {
	st, err := in.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("tap %s: %w", in.Name(), err)
	case source == "" || len(source) > MaxSource || l.form != tagged || stream == Lost || stream > Stderr:
		return nil, fmt.Errorf("tap %s: %q and stream %d: %w", in.Name(), source, stream, os.ErrInvalid)
	}
	return &Tap{l: l, source: source, stream: stream, in: in, pipe: st.Mode()&os.ModeNamedPipe != 0}, nil
}

// Bytes is how many came out of it.
func (t *Tap) Bytes() int64 { return t.bytes.Load() }

// Lost is how many of them the log has not got.
func (t *Tap) Lost() int64 { return t.lost.Load() }

// Read is what the command wrote, as it comes.
func (t *Tap) Read(p []byte) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return 0, os.ErrClosed
	}
	conn, err := t.in.SyscallConn()
	if err != nil {
		return 0, err
	}
	perr := conn.Read(func(fd uintptr) bool {
		n, err = t.take(int(fd), p)
		return !errors.Is(err, unix.EAGAIN)
	})
	if perr != nil {
		return 0, perr
	}
	return n, err
}

// Pump copies to out until the output's end, or until Settle or Close, and
// closes out. It answers out's error: EPIPE when its reader wants no more.
func (t *Tap) Pump(out *os.File) error {
	defer out.Close()
	for {
		switch err := t.wait(); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return t.rest(out)
		case err != nil:
			return err
		}
		err := t.copyOnce(out)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && !t.closed():
			return t.rest(out)
		case err != nil:
			return err
		}
	}
}

// copyOnce has a buffer only while there is something to put into it.
func (t *Tap) copyOnce(out *os.File) error {
	buf := tapBuffers.Get().(*[tapMax]byte)
	defer tapBuffers.Put(buf)
	n, err := t.Read(buf[:])
	if n == 0 {
		return err
	}
	_, err = out.Write(buf[:n])
	return err
}

// wait returns when there is something to read, the end included.
func (t *Tap) wait() error {
	conn, err := t.in.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// Settle has a Pump copy what the command has written until now, and end: the
// command has ended, and what it left behind may hold the output open for ever.
func (t *Tap) Settle() { _ = t.in.SetReadDeadline(time.Unix(1, 0)) }

// Drained returns when what the command had written is with the reader, who
// reads meanwhile: a wait for the log is not to look like silence.
func (t *Tap) Drained(ctx context.Context) error {
	conn, err := t.in.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // closed: nothing comes any more
	}
	for begin := t.Bytes(); t.Bytes()-begin < restMax; {
		left, busy := 0, t.taking.Load()
		if err := conn.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil || left == 0 && !busy {
			return nil //nolint:nilerr // as above
		}
		if wait(ctx, time.Millisecond) != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// Close moves what is in the pipe now to the log, for which nobody reads any
// more, and closes the tap.
func (t *Tap) Close() error {
	t.Settle() // sets a Read free
	err := t.rest(nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil
	}
	t.over = true
	return errors.Join(err, t.in.Close())
}

func (t *Tap) closed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.over
}

// rest takes what is there and waits for no more; out may be nil.
func (t *Tap) rest(out *os.File) error {
	buf := tapBuffers.Get().(*[tapMax]byte)
	defer tapBuffers.Put(buf)
	for total := 0; total < restMax; {
		n, err := t.takeNow(buf[:])
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		total += n
		if out != nil {
			if _, err := out.Write(buf[:n]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Tap) takeNow(p []byte) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return 0, os.ErrClosed
	}
	conn, err := t.in.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := conn.Control(func(fd uintptr) { n, err = t.take(int(fd), p) })
	return n, errors.Join(err, cerr)
}

// take moves what is there to the log and to p.
func (t *Tap) take(fd int, p []byte) (int, error) {
	t.taking.Store(true)
	defer t.taking.Store(false)
	if !t.pipe {
		return t.read(fd, p)
	}
	n, err := t.l.splice(fd, t.source, t.stream, min(len(p), tapMax), func(f *os.File, off, n int64) error {
		if _, err := f.ReadAt(p[:n], off); err != nil {
			return fmt.Errorf("read back what %s wrote: %w", t.source, err)
		}
		return nil
	})
	if n == 0 && err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, io.EOF) {
		return t.read(fd, p)
	}
	t.bytes.Add(n)
	return int(n), err
}

// read is for what splice cannot read from, and for a log that splice cannot
// write to.
func (t *Tap) read(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EIO) && !t.pipe, err == nil && n == 0: // EIO is how a terminal without a process ends
			return 0, io.EOF
		case err != nil:
			return 0, err
		}
		t.bytes.Add(int64(n))
		t.lost.Add(int64(n - t.l.write(t.source, t.stream, p[:n])))
		return n, nil
	}
}

// write puts what has been read into the log; how much of it is there.
func (l *Log) write(source string, stream byte, p []byte) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	if l.roomLocked(source) == nil {
		n, _ = l.files[stream].WriteAt(p, l.sizes[stream])
	}
	if n > 0 {
		_ = l.indexLocked(source, stream, int64(n)) // it is tried again before more is written
	}
	if n < len(p) {
		l.missing[source] += int64(len(p) - n)
	}
	return n
}

// ownLocked has the header say whose the next bytes are.
func (l *Log) ownLocked(source string) error {
	for who, n := range l.missing {
		for n > 0 {
			piece := min(n, 1<<30)
			if err := l.addLocked(record{time.Now().UnixNano(), uint32(piece), Lost, who}); err != nil {
				return err
			}
			n -= piece
			l.missing[who] = n
		}
		delete(l.missing, who)
	}
	if l.owner == source {
		return nil
	}
	b := make([]byte, MaxSource)
	copy(b, source)
	if _, err := l.files[0].WriteAt(b, l.form.size-MaxSource); err != nil {
		return fmt.Errorf("log index: %w", err)
	}
	l.owner = source
	return nil
}

// Salvage moves what a pipe, of a command whose daemon was killed, has now to
// the log. It waits for nothing, and takes no more than a pipe can hold.
func (l *Log) Salvage(source string, stream byte, in *os.File) error {
	t, err := l.Tap(source, stream, in)
	if err != nil {
		return err
	}
	return t.rest(nil)
}
