package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process is a containerd, our child or an earlier daemon's.
type process struct {
	pid     int
	pidfd   int
	current bool      // runs the binary that Bin has now
	child   *exec.Cmd // to be reaped; nil if adopted
}

// openProcess takes hold of the process of a /proc directory; nil if it is
// not root's and so none of ours.
func openProcess(dir string) (*process, error) {
	pid, err := strconv.Atoi(filepath.Base(dir))
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Uid != 0 {
		unix.Close(fd)
		return nil, err
	}
	return &process{pid: pid, pidfd: fd}, nil
}

// ended waits at most d for the end of the process.
func (p *process) ended(d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	deadline := time.Now().Add(d)
	for {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return false
		}
		p.reap()
		return true
	}
}

// wait is ended with a context, in slices of a second.
func (p *process) wait(ctx context.Context, d time.Duration) (bool, error) {
	deadline := time.Now().Add(d)
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		left := time.Until(deadline)
		if p.ended(min(max(left, 0), 250*time.Millisecond)) {
			return true, nil
		}
		if left <= 0 {
			return false, nil
		}
	}
}

// stop ends the process: SIGTERM, and SIGKILL when that takes too long.
func (p *process) stop(ctx context.Context) error {
	if p.ended(0) {
		return nil
	}
	for _, s := range []struct {
		sig  unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, stopTimeout}, {unix.SIGKILL, stopTimeout}} {
		if err := unix.PidfdSendSignal(p.pidfd, s.sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal containerd %d: %w", p.pid, err)
		}
		if ended, err := p.wait(context.WithoutCancel(ctx), s.wait); err != nil || ended {
			return err
		}
	}
	return fmt.Errorf("containerd %d does not end", p.pid)
}

func (p *process) reap() {
	if p.child != nil {
		_ = p.child.Wait() // its exit status says nothing the log does not
		p.child = nil
	}
}

func (p *process) close() {
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
}

// replaceFile writes a file anew, so that no reader sees half of it.
func replaceFile(path, content string) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(content); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// openLog opens the log for appending; a large one is set aside first.
func openLog(path string) (*os.File, error) {
	if fi, err := os.Lstat(path); err == nil && fi.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
}

// lastLine is the end of a file, for an error message.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return string(b[:min(len(b), 500)])
}

// sameFile reports whether two paths lead to one file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
