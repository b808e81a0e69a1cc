package client

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// startFDs starts the copies between the caller's streams and the pipe ends.
func (p *Process) startFDs(out *copiers, stdio Stdio) {
	if p.tty {
		master := p.files[0]
		if stdio.In != nil && p.stdin {
			go func() { _, _ = io.Copy(master, stdio.In) }() // ends with its input, or with the terminal
		}
		out.start(stdio.Out, master)
		return
	}
	outputs := p.files
	if p.stdin {
		in := p.files[0]
		outputs = p.files[1:]
		go func() {
			if stdio.In != nil {
				_, _ = io.Copy(in, stdio.In) // a command that stops reading is no error of ours
			}
			_ = in.Close()
		}()
	}
	out.start(stdio.Out, outputs[0])
	out.start(stdio.Err, outputs[1])
}

// copiers are the copies of a command's output.
type copiers struct {
	wg    sync.WaitGroup
	files []*os.File
	mu    sync.Mutex
	errs  []error
}

func (c *copiers) start(w io.Writer, r *os.File) {
	c.files = append(c.files, r)
	c.wg.Go(func() {
		err := copyOutput(w, r)
		if err != nil {
			// Nobody reads any more: without this the command would block
			// on a full pipe for ever instead of seeing a broken one.
			_ = r.Close()
			c.mu.Lock()
			c.errs = append(c.errs, err)
			c.mu.Unlock()
		}
	})
}

// finish has the copies end with what is in the pipes now. A process that the
// command left in the background may hold the other end open for ever, so end
// of file cannot be waited for.
func (c *copiers) finish() error {
	for _, f := range c.files {
		_ = f.SetReadDeadline(time.Unix(1, 0)) // wakes a waiting read; the copy then drains
	}
	c.wg.Wait()
	return errors.Join(c.errs...)
}

// buffers are as large as what a pipe holds, so that one read empties it.
var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyOutput copies until end of file, or until the deadline that finish sets
// and then what is still in the pipe.
func copyOutput(w io.Writer, r *os.File) error {
	b := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(b)
	buf := b[:]
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := writeAll(w, buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return drain(w, r, buf)
		case errors.Is(err, io.EOF), errors.Is(err, unix.EIO): // EIO is a terminal's end of file
			return nil
		default:
			return err
		}
	}
}

// maxDrain bounds what is copied after the command's end: a flood from a
// process left behind must not hold the caller. A pipe of a usual user holds
// at most a mebibyte (pipe(7), pipe-max-size).
const maxDrain = 1 << 20

func drain(w io.Writer, r *os.File, buf []byte) error {
	if err := r.SetReadDeadline(time.Time{}); err != nil {
		return nil //nolint:nilerr // closed meanwhile: nothing left to drain
	}
	raw, err := r.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	for total := 0; total < maxDrain; {
		n, rerr := 0, error(nil)
		// Returning true means that the runtime does not wait for more.
		if err := raw.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return true
		}); err != nil {
			return nil //nolint:nilerr // as above
		}
		if errors.Is(rerr, unix.EINTR) {
			continue
		}
		if n <= 0 {
			return nil
		}
		total += n
		if err := writeAll(w, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}
