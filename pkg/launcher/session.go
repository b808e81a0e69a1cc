package launcher

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// ID is the exec's.
func (s *session) ID() string { return s.id }

// Files are the client's ends in descriptor mode.
func (s *session) Files() []*os.File {
	if !s.fds {
		return nil
	}
	if s.io.master != nil {
		return []*os.File{s.io.master}
	}
	var fs []*os.File
	if s.io.stdin != nil {
		fs = append(fs, s.io.stdin)
	}
	return append(fs, s.io.stdout, s.io.stderr)
}

// Stdin is the command's input, nil when it has none.
func (s *session) Stdin() io.WriteCloser {
	switch {
	case s.fds:
		return nil
	case s.io.master != nil:
		return ttyInput{s.io.master}
	case s.io.stdin != nil:
		return s.io.stdin
	}
	return nil
}

// Stdout is the command's output.
func (s *session) Stdout() io.Reader {
	switch {
	case s.fds:
		return nil
	case s.io.master != nil:
		return ttyOutput{s.io.master}
	}
	return s.io.stdout
}

// Stderr is the command's errors, nil with a terminal.
func (s *session) Stderr() io.Reader {
	if s.fds || s.io.stderr == nil {
		return nil
	}
	return s.io.stderr
}

// Resize sets the terminal's size.
func (s *session) Resize(cols, rows uint16) error {
	if s.fds {
		return resize(s.io.size, cols, rows)
	}
	return resize(s.io.master, cols, rows)
}

// Signal sends a signal to the command's first process, or kills its tree.
func (s *session) Signal(sig syscall.Signal) error {
	if sig == unix.SIGKILL {
		s.end(api.ReasonKilled)
		return nil
	}
	select {
	case <-s.done:
		return nil
	default:
	}
	return signalPidfd(s.pidfd, sig)
}

// Wait returns the result. It does not wait for descendants that hold the
// streams open.
func (s *session) Wait(ctx context.Context) (api.ExecResult, error) {
	select {
	case <-s.done:
		return s.result, nil
	case <-ctx.Done():
		return api.ExecResult{}, context.Cause(ctx)
	}
}

// Close ends what the client has left behind.
func (s *session) Close() error {
	if s.attended != nil {
		s.attended()
	}
	select {
	case <-s.done:
	default:
		s.end(api.ReasonLost)
	}
	if !s.fds {
		s.io.close()
	} else if s.io.size != nil {
		_ = s.io.size.Close()
	}
	return nil
}

// ttyInput writes to a terminal; its end is Ctrl-D, not a closed descriptor.
type ttyInput struct{ master *os.File }

func (t ttyInput) Write(p []byte) (int, error) { return t.master.Write(p) }

func (t ttyInput) Close() error {
	_, err := t.master.Write([]byte{4})
	return err
}

// ttyOutput reads a terminal, whose end is EIO when the last process has
// closed the slave (tty(4), pty(7)).
type ttyOutput struct{ master *os.File }

func (t ttyOutput) Read(p []byte) (int, error) {
	n, err := t.master.Read(p)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}
