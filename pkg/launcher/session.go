package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/pty"
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
	if s.logged {
		return append(fs, s.pumps.client...)
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
	case s.logged:
		return s.taps[0]
	case s.io.master != nil:
		return counted{ttyOutput{s.io.master}, &s.output}
	}
	return counted{s.io.stdout, &s.output}
}

// Stderr is the command's errors, nil with a terminal.
func (s *session) Stderr() io.Reader {
	if s.fds || s.io.stderr == nil {
		return nil
	}
	if s.logged {
		return s.taps[1]
	}
	return counted{s.io.stderr, &s.output}
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
	if s.killTree && slices.Contains(endings, sig) {
		return s.signalTree(sig)
	}
	return signalPidfd(s.pidfd, sig)
}

// Wait returns the result, in descriptor mode when all that was written until
// then is in the client's pipes. It does not wait for descendants that hold
// the streams open.
func (s *session) Wait(ctx context.Context) (api.ExecResult, error) {
	select {
	case <-s.done:
	case <-ctx.Done():
		return api.ExecResult{}, context.Cause(ctx)
	}
	return s.result, s.settle(ctx)
}

// Close ends what the client has left behind.
func (s *session) Close() error {
	if s.attended != nil {
		s.attended()
	}
	select {
	case <-s.done:
	default:
		if !s.drop() {
			s.end(api.ReasonLost)
		}
	}
	s.untap()
	if !s.fds {
		s.io.close()
	} else if s.io.size != nil {
		_ = s.io.size.Close()
	}
	s.closing.Do(func() {
		close(s.closed)
		if s.counts() && !s.internal {
			s.sb.l.background(func(context.Context) { s.keep() }) // with all that it wrote
		}
	})
	return nil
}

// drop ends the command if its sandbox is ending, and says so. What it wrote
// may then be unread, so it does not count as a success even if it was one.
func (s *session) drop() bool {
	s.sb.mu.Lock()
	ending := s.sb.ending
	s.sb.mu.Unlock()
	if !ending {
		return false
	}
	s.mu.Lock()
	s.dropped = true
	s.mu.Unlock()
	s.end(api.ReasonKilled)
	return true
}

// sandboxEnded is the result of a command that ended with its sandbox.
func sandboxEnded() api.ExecResult {
	return api.ExecResult{ExitCode: exitSignaled + int(unix.SIGKILL), Signal: int(unix.SIGKILL), Reason: api.ReasonKilled, Error: "the sandbox ended"}
}

// pumps are what stands between a logged command and a client that has
// descriptors.
type pumps struct {
	out    []*os.File // write ends of the client's pipes
	client []*os.File // read ends
	over   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	kept   int // ends that PID 1 still holds: the errors', then the output's
}

// prepare makes the daemon's ends ready, and taps them when the output is
// kept. It returns what PID 1 is to hold, so that a daemon that is killed
// leaves what is not yet in the log to the next.
func (s *session) prepare() (keep []*os.File, err error) {
	switch {
	case !s.fds:
		err = s.io.pollable()
	case !s.logged:
		return nil, s.io.keepSize()
	default: // the client's stdin stays as it is
		s.io.stdout, err = nonblocking(s.io.stdout)
		if err == nil {
			s.io.stderr, err = nonblocking(s.io.stderr)
		}
	}
	if err != nil || !s.logged {
		return nil, err
	}
	outputs := []*os.File{s.io.stdout, s.io.stderr}
	if s.io.master != nil {
		outputs = []*os.File{s.io.master}
	} else {
		keep = []*os.File{s.io.stderr, s.io.stdout}
		s.pumps.kept = len(keep)
	}
	for i, f := range outputs {
		t, err := s.sb.execLog.Tap(s.id, []byte{logs.Stdout, logs.Stderr}[i], f)
		if err != nil {
			return nil, err
		}
		s.taps = append(s.taps, t)
		if !s.fds {
			continue
		}
		r, w, err := clientPipe(f.Name())
		if err != nil {
			return nil, err
		}
		s.pumps.client, s.pumps.out = append(s.pumps.client, r), append(s.pumps.out, w)
	}
	return keep, nil
}

// clientPipe is a pipe whose write end waits in Go's poller.
func clientPipe(name string) (r, w *os.File, err error) {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe for %s: %w", name, err)
	}
	r, w = os.NewFile(uintptr(fd[0]), name), os.NewFile(uintptr(fd[1]), name)
	if w, err = nonblocking(w); err != nil {
		_ = r.Close()
	}
	return r, w, err
}

// pump starts the copies to a client that has descriptors.
func (s *session) pump() {
	if len(s.pumps.out) == 0 {
		return
	}
	s.pumps.over = make(chan struct{})
	for i, out := range s.pumps.out {
		s.pumps.wg.Go(func() {
			err := s.taps[i].Pump(out)
			if errors.Is(err, unix.EPIPE) {
				s.letGo(i)
			}
			s.untold(s.taps[i].Close())
		})
	}
	go func() {
		s.pumps.wg.Wait()
		close(s.pumps.over)
	}()
}

// letGo has PID 1 close its copy of an output that the client reads no more:
// the command is to find a broken pipe.
func (s *session) letGo(output int) {
	s.pumps.mu.Lock()
	defer s.pumps.mu.Unlock()
	want := 1 - output // what is held then: the last goes first
	ctx, cancel := context.WithTimeout(s.sb.l.ctx, channelTimeout)
	defer cancel()
	for ; s.pumps.kept > want; s.pumps.kept-- {
		if s.sb.host.LetGo(ctx, s.id) != nil {
			return // it has ended
		}
	}
}

// settle waits, after the command's end, until the client's pipes have what it
// wrote.
func (s *session) settle(ctx context.Context) error {
	if s.pumps.over == nil {
		for _, t := range s.taps {
			if err := t.Drained(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	for _, t := range s.taps {
		t.Settle()
	}
	select {
	case <-s.pumps.over:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// untap moves to the log what the client has not read, and lets go of it.
func (s *session) untap() {
	if !s.logged {
		return
	}
	s.untapping.Do(func() {
		defer s.sb.tapped.Done()
		for _, t := range s.taps {
			t.Settle()
		}
		for _, out := range s.pumps.out {
			_ = out.SetWriteDeadline(time.Unix(1, 0))
		}
		if s.pumps.over != nil {
			<-s.pumps.over
		} else {
			closeFiles(s.pumps.out)
			closeFiles(s.pumps.client)
		}
		var lost int64
		for _, t := range s.taps {
			s.untold(t.Close())
			lost += t.Lost()
		}
		if lost > 0 {
			s.sb.l.log.Warn("output not kept: the log could not be written", slog.String("sandbox", s.sb.id), slog.String("exec", s.id), slog.Int64("bytes", lost))
		}
	})
}

func (s *session) untold(err error) {
	if err != nil && !errors.Is(err, os.ErrClosed) {
		s.sb.l.log.Error("last output not read", slog.String("sandbox", s.sb.id), slog.String("exec", s.id), slog.Any("error", err))
	}
}

// keptCommand is how many bytes of an exec's command are kept.
const keptCommand = 4 << 10

// newRecord is what is kept of an exec from its start.
func newRecord(s *session, req api.ExecRequest) api.Exec {
	e := api.Exec{ID: s.id, TTY: req.TTY, IO: "framed", Labels: maps.Clone(req.Labels), Started: s.began}
	if s.fds {
		e.IO = "fds"
	}
	if !s.logged {
		e.Logs = noLogs
	}
	e.Command, e.Cut = firstBytes(req.Command, keptCommand)
	return e
}

// counts says whether the output passes the daemon.
func (s *session) counts() bool { return !s.fds || s.logged }

// view is the exec as it is now.
func (s *session) view() api.Exec {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.record
	if s.counts() {
		n := s.output.Load()
		for _, t := range s.taps {
			n += t.Bytes()
		}
		e.OutputBytes = &n
	}
	return e
}

// settleLocked puts the result into the record.
func (s *session) settleLocked(r api.ExecResult) {
	e := &s.record
	e.Ended, e.Signal, e.Reason, e.LimitsHit, e.Error = time.Now(), r.Signal, r.Reason, r.LimitsHit, r.Error
	e.ExitCode = &r.ExitCode
}

// keep commits the exec as it is now. From its end until that is on disk the
// sandbox holds on to it, so that a list never shows it running again.
func (s *session) keep() {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	last := s.settled() // before the view, which then has everything
	e := s.view()
	n, err, now := s.key, error(nil), progressOf(e)
	if n == 0 || now != s.wrote {
		n, err = s.sb.l.Store.PutExec(s.sb.id, n, e)
	}
	switch {
	case err == nil:
		s.key, s.wrote = n, now
	case api.CodeOf(err) != api.CodeNotFound: // else its sandbox was removed meanwhile
		s.sb.l.log.Warn("exec not kept", slog.String("sandbox", s.sb.id), slog.String("exec", s.id), slog.Any("error", err))
	}
	if last {
		s.sb.mu.Lock()
		delete(s.sb.unkept, s.id)
		s.sb.mu.Unlock()
	}
}

// progress is all that changes of a record.
type progress struct {
	ended  bool
	output int64
}

func progressOf(e api.Exec) progress {
	p := progress{ended: !e.Ended.IsZero()}
	if e.OutputBytes != nil {
		p.output = *e.OutputBytes
	}
	return p
}

// settled says that nothing of the record changes any more: the command has
// ended, and what it wrote has been counted.
func (s *session) settled() bool {
	select {
	case <-s.done:
	default:
		return false
	}
	if !s.counts() {
		return true
	}
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// stdio is both sides of one command's streams. The daemon makes every
// descriptor in it: none of a caller's ever enters a sandbox, because a
// directory or a socket as standard input would be a way out (CVE-2024-21626
// is the class).
type stdio struct {
	child   []*os.File // for PID 1: stdin, stdout, stderr; or the terminal
	stdin   *os.File   // write end, nil when there is no input
	stdout  *os.File   // read end, nil with a terminal
	stderr  *os.File
	master  *os.File // the terminal's master, nil without one
	size    *os.File // the same, kept to resize it when master is handed over
	closing sync.Once
}

// newPipes makes three pipes owned by the agent, so that a program may open
// /dev/stdout again. Without input, stdin is a pipe that is already at its end.
func newPipes(hostUID uint32, input bool) (_ *stdio, err error) {
	s := &stdio{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var child [3]*os.File
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		var fd [2]int
		if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
			return nil, fmt.Errorf("pipe for %s: %w", name, err)
		}
		r, w := os.NewFile(uintptr(fd[0]), name), os.NewFile(uintptr(fd[1]), name)
		ours, theirs := r, w
		if i == 0 {
			ours, theirs = w, r
		}
		child[i] = theirs
		s.child = append(s.child, theirs)
		switch {
		case i == 0 && !input:
			err = ours.Close()
		case i == 0:
			s.stdin = ours
		case i == 1:
			s.stdout = ours
		default:
			s.stderr = ours
		}
		if err == nil {
			err = unix.Fchown(int(child[i].Fd()), int(hostUID), int(hostUID))
		}
		if err != nil {
			return nil, fmt.Errorf("pipe for %s: %w", name, err)
		}
	}
	return s, nil
}

// newTTY makes a terminal in the sandbox's own devpts, so that ttyname(3)
// works inside and nothing is shared with another terminal.
func newTTY(pid1 int, hostUID uint32, cols, rows uint16) (*stdio, error) {
	master, slave, err := pty.Open(pid1, hostUID, hostUID)
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	s := &stdio{child: []*os.File{slave}, master: master}
	if cols != 0 && rows != 0 {
		if err := resize(master, cols, rows); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func resize(master *os.File, cols, rows uint16) error {
	if master == nil {
		return errors.New("the command has no terminal")
	}
	return control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
}

// control runs fn on f's descriptor without making it blocking, as Fd does.
func control(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := c.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// closeChild closes what PID 1 has now.
func (s *stdio) closeChild() {
	for _, f := range s.child {
		_ = f.Close()
	}
	s.child = nil
}

// close closes everything, once: the client's end of a command and that of
// its sandbox may come at the same time.
func (s *stdio) close() {
	s.closing.Do(func() {
		s.closeChild()
		for _, f := range []*os.File{s.stdin, s.stdout, s.stderr, s.master, s.size} {
			if f != nil {
				_ = f.Close()
			}
		}
	})
}

// nonblocking gives f again as a file that Go's poller waits for, so that a
// reader of it costs no thread. It closes f.
func nonblocking(f *os.File) (*os.File, error) {
	if f == nil {
		return nil, nil
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("dup %s: %w", f.Name(), err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set %s nonblocking: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// keepSize keeps the terminal within reach when its master goes to a client.
func (s *stdio) keepSize() error {
	if s.master == nil {
		return nil
	}
	return control(s.master, func(master int) error {
		fd, err := unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("dup the terminal: %w", err)
		}
		s.size = os.NewFile(uintptr(fd), "terminal")
		return nil
	})
}

// pollable makes the daemon's ends wait in Go's poller.
func (s *stdio) pollable() (err error) {
	for _, f := range []**os.File{&s.stdin, &s.stdout, &s.stderr, &s.master} {
		if *f, err = nonblocking(*f); err != nil {
			return err
		}
	}
	return nil
}
