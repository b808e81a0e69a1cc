package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pieceMax is the most that one record holds.
const pieceMax = 1 << 20

// retry is how long a capture waits when the disk is full. The output stays in
// the pipe meanwhile, which stops the command and loses nothing.
const retry = time.Second

// Capture moves what comes out of f, the read end of a pipe or a terminal's
// master, to the log until its end, and returns nil then. When ctx ends first
// it returns ctx's cause; what is in the pipe stays there for the next
// capture. The caller keeps f, whose open file description is made
// non-blocking.
func (l *Log) Capture(ctx context.Context, stream byte, f *os.File) error {
	if stream != Stdout && stream != Stderr {
		return fmt.Errorf("stream %d cannot be captured", stream)
	}
	in, err := pollable(f)
	if err != nil {
		return fmt.Errorf("capture %s: %w", fileNames[stream], err)
	}
	defer in.Close()
	stop := context.AfterFunc(ctx, func() { _ = in.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	move := l.spliceOnce
	if st, err := in.Stat(); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		move = l.copyOnce()
	}
	for {
		err := move(in, stream)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errHeld):
			if err := l.untilFree(ctx); err != nil {
				return err
			}
		case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
			if wait(ctx, retry) != nil {
				return context.Cause(ctx)
			}
		case err != nil:
			return fmt.Errorf("capture %s: %w", fileNames[stream], err)
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pollable is f again as a file that Go's poller waits for, so that a quiet
// command costs no thread.
func pollable(f *os.File) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	ctlErr := conn.Control(func(old uintptr) {
		fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(ctlErr, err); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// spliceOnce moves what the pipe has, or waits until it has something.
func (l *Log) spliceOnce(in *os.File, stream byte) error {
	conn, err := in.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = conn.Read(func(fd uintptr) bool {
		_, opErr = l.splice(int(fd), "", stream, pieceMax, nil)
		return !errors.Is(opErr, unix.EAGAIN)
	})
	return errors.Join(opErr, err)
}

// splice moves at most most bytes of a pipe. What it moved is given to also,
// if not nil: the file, and where in it.
func (l *Log) splice(fd int, source string, stream byte, most int, also func(f *os.File, off, n int64) error) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.roomLocked(source); err != nil {
		return 0, err
	}
	out := l.files[stream]
	for {
		off := l.sizes[stream]
		at := off
		n, err := unix.Splice(fd, nil, int(out.Fd()), &off, most, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		err = l.indexLocked(source, stream, n)
		if also != nil {
			err = also(out, at, n) // what has no record yet gets one before more is taken
		}
		return n, err
	}
}

// indexLocked records n bytes that are in the file. If it cannot, the capture
// tries again before it takes more: the next piece would overwrite them.
func (l *Log) indexLocked(source string, stream byte, n int64) error {
	now := time.Now()
	l.rate.add(now, n)
	l.pending[stream] = record{now.UnixNano(), uint32(n), stream, source}
	return l.flushLocked()
}

func (l *Log) flushLocked() error {
	for i, r := range l.pending {
		if r.length == 0 {
			continue
		}
		if err := l.addLocked(r); err != nil {
			return err
		}
		l.pending[i] = record{}
	}
	return nil
}

// roomLocked begins a new generation when the current one is full; errHeld
// when a reader is not ready for that.
func (l *Log) roomLocked(source string) error {
	if l.closed {
		return os.ErrClosed
	}
	if err := l.flushLocked(); err != nil {
		return err
	}
	full := l.fullLocked()
	switch {
	case l.gen == 0: // the first byte of a tagged log
		if err := errors.Join(l.mkdir(), l.begin()); err != nil {
			return err
		}
	case full && !l.heldLocked():
		if err := l.begin(); err != nil {
			return err
		}
	case full && !l.ending:
		return errHeld
	}
	if l.form == tagged {
		return l.ownLocked(source)
	}
	return nil
}

// copyOnce is for what splice cannot read from.
func (l *Log) copyOnce() func(*os.File, byte) error {
	buf := make([]byte, 32<<10)
	var left []byte // read and not yet written
	return func(in *os.File, stream byte) error {
		if len(left) == 0 {
			n, err := in.Read(buf)
			if errors.Is(err, unix.EIO) { // how a terminal without a process ends
				err = io.EOF
			}
			if n == 0 {
				return err
			}
			left = buf[:n]
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if err := l.roomLocked(""); err != nil {
			return err
		}
		n, err := l.files[stream].WriteAt(left, l.sizes[stream])
		if n == 0 {
			return err
		}
		left = left[n:]
		return l.indexLocked("", stream, int64(n))
	}
}
