package launcher

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/server"
)

// mainID is the main command's id among the execs.
const mainID = "main"

// The descriptors PID 1 keeps of the main command, so that a daemon that was
// killed leaves the pipes open and its successor reads on where it stopped.
const (
	keptOut   = 0 // stdout, or the terminal's master
	keptErr   = 1
	keptStdin = 2
)

// startMain starts the main command. Its output goes to the log by splice,
// whether or not anybody is attached.
func (sb *sandbox) startMain(ctx context.Context, a *admission.Admitted) (stamp int64, err error) {
	r := a.Request
	agent := sb.hostUser()
	var streams *stdio
	if r.TTY {
		streams, err = newTTY(sb.pid, agent, 80, 24)
	} else {
		streams, err = newPipes(agent, r.Stdin)
	}
	if err != nil {
		return 0, err
	}
	defer func() {
		streams.closeChild()
		if err != nil {
			streams.close()
		}
	}()
	if err := streams.pollable(); err != nil {
		return 0, err
	}
	keep := []*os.File{streams.stdout, streams.stderr}
	if r.TTY {
		keep = []*os.File{streams.master}
	} else if r.Stdin {
		keep = append(keep, streams.stdin)
	}
	_, pidfd, nspid, stamp, err := sb.startCommand(ctx, command{
		id: mainID, argv: r.Command, env: sb.env(nil, r.TTY), workdir: r.Workdir, tty: r.TTY, io: streams, keep: keep,
	})
	if failed, ok := errors.AsType[*agentinit.ExecError](err); ok {
		refusal := api.Errorf(api.CodeInvalid, "%s: %w", r.Command[0], err)
		refusal.ExitCode = failed.ExitCode()
		return 0, refusal
	}
	if err != nil {
		return 0, err
	}
	_ = pidfd.Close() // the main command is signalled by way of its record
	sb.rec.MainNSPID = nspid
	sb.adoptMain(streams)
	return stamp, nil
}

// adoptMain takes the daemon's ends of the main command's streams.
func (sb *sandbox) adoptMain(s *stdio) {
	sb.master, sb.stdin = s.master, s.stdin
	if s.master != nil {
		sb.capture(logs.Stdout, s.master, false)
		return
	}
	sb.capture(logs.Stdout, s.stdout, true)
	sb.capture(logs.Stderr, s.stderr, true)
}

// capture moves output to the log until its end, or until the daemon stops:
// what is in the pipe then stays there for the next daemon.
func (sb *sandbox) capture(stream byte, f *os.File, done bool) {
	sb.output.Go(func() {
		err := sb.log.Capture(sb.l.ctx, stream, f)
		if err != nil && sb.l.ctx.Err() == nil && !errors.Is(err, os.ErrClosed) { // closed: its sandbox is undone
			sb.l.log.Error("output is not captured any more", slog.String("sandbox", sb.id), slog.Any("error", err))
		}
		if done {
			_ = f.Close()
		}
	})
}

// watchMain follows the main command to its end, which is the sandbox's.
func (sb *sandbox) watchMain(ctx context.Context) {
	status, err := sb.host.Wait(ctx, mainID)
	if err != nil {
		return // the sandbox ended first, and watch saw it; or the daemon stops
	}
	code := status.ExitCode()
	sb.mu.Lock()
	if status.Signaled() {
		sb.signaled = int(status.Signal())
	}
	reason := sb.askedFor
	sb.mu.Unlock()
	if reason == "" {
		reason = api.ReasonExited
	}
	if cg, err := sb.cg.Exec(mainID); err == nil && cg.OOMKills() > 0 && status.Signaled() {
		reason = api.ReasonOOM
	}
	sb.end(reason, &code)
}

// signalMain sends a signal to the main command's first process.
func (sb *sandbox) signalMain(sig syscall.Signal) error {
	cg, err := sb.cg.Exec(mainID)
	if err != nil {
		return api.Errorf(api.CodeConflict, "sandbox %s has no main command", sb.id).WithHint("creel stop ends it")
	}
	pid, err := sb.mainPid(cg)
	if err != nil || pid == 0 {
		return err
	}
	pidfd, err := openPidfd(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pidfd.Close()
	return signalPidfd(pidfd, sig)
}

// mainPid is the host pid of the main command's first process: PID 1's child
// of the in-sandbox pid that the start returned.
func (sb *sandbox) mainPid(cg interface{ Pids() ([]int, error) }) (int, error) {
	pids, err := cg.Pids()
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	sb.mu.Lock()
	ns := sb.rec.MainNSPID
	sb.mu.Unlock()
	return agentinit.MatchNSPid(pids, ns)
}

// attachment is a client of the main command; it implements server.Session.
type attachment struct {
	sb     *sandbox
	stdin  io.WriteCloser
	out    *io.PipeReader
	err    *io.PipeReader
	cancel context.CancelCauseFunc
	once   sync.Once
}

var _ server.Session = (*attachment)(nil)

// errDetached is the cause of an attach that its client ended.
var errDetached = errors.New("the client went away")

func (sb *sandbox) attach(ctx context.Context, o server.AttachOptions) (*attachment, error) {
	if len(sb.fixed.Request.Command) == 0 {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s has no main command to attach to", sb.id).WithHint("creel exec runs one")
	}
	if o.Stdin && sb.stdin == nil && sb.master == nil {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s was started without standard input", sb.id).WithHint("creel run -i")
	}
	// Also of one that runs: it may be about to be paused for being idle.
	if state := sb.state(); state == api.StateRunning || state == api.StatePaused {
		if err := sb.active(ctx); err != nil && sb.state() == api.StatePaused {
			return nil, err // one that has ended meanwhile still has its output
		}
	}
	if o.Cols != 0 && o.Rows != 0 && sb.master != nil {
		if err := resize(sb.master, o.Cols, o.Rows); err != nil {
			return nil, err
		}
	}
	actx, cancel := context.WithCancelCause(sb.l.ctx)
	a := &attachment{sb: sb, cancel: cancel}
	var outW, errW *io.PipeWriter
	a.out, outW = io.Pipe()
	a.err, errW = io.Pipe()
	if o.Stdin {
		a.stdin = sb.mainInput()
	}
	// A client that is slow, or stops reading, stops the command: what it
	// copies out must not have holes.
	opts := logs.ReadOptions{Follow: true, Hold: true}
	if !o.Replay {
		opts.Since = time.Now()
	}
	sb.client(1)
	sb.attaching(1)
	sb.l.background(func(context.Context) {
		log, err := sb.mainLog()
		if err == nil {
			err = log.Read(actx, opts, func(p logs.Piece) error {
				w := outW
				if p.Stream != logs.Stdout && !sb.fixed.Request.TTY {
					w = errW // also what is said of output from before that is not kept
				}
				_, err := w.Write(p.Data)
				return err
			})
		}
		_ = outW.CloseWithError(err) // nil is the end
		_ = errW.CloseWithError(err)
	})
	return a, nil
}

// mainInput is where an attached client's input goes. Its end reaches the
// command only when PID 1 lets go of the copy it keeps.
func (sb *sandbox) mainInput() io.WriteCloser {
	if sb.master != nil {
		return ttyInput{sb.master}
	}
	return pipeInput{sb}
}

type pipeInput struct{ sb *sandbox }

func (p pipeInput) Write(b []byte) (int, error) { return p.sb.stdin.Write(b) }

func (p pipeInput) Close() error {
	ctx, cancel := context.WithTimeout(p.sb.l.ctx, channelTimeout)
	defer cancel()
	return errors.Join(p.sb.stdin.Close(), p.sb.host.LetGo(ctx, mainID))
}

// ID is "main".
func (a *attachment) ID() string { return mainID }

// Files is empty: the main command's output also goes to the log.
func (a *attachment) Files() []*os.File { return nil }

// Stdin is nil when it was not asked for.
func (a *attachment) Stdin() io.WriteCloser { return a.stdin }

// Stdout is the output, from the start with Replay.
func (a *attachment) Stdout() io.Reader { return a.out }

// Stderr is the errors, nil with a terminal.
func (a *attachment) Stderr() io.Reader {
	if a.sb.fixed.Request.TTY {
		return nil
	}
	return a.err
}

// Resize sets the terminal's size.
func (a *attachment) Resize(cols, rows uint16) error { return resize(a.sb.master, cols, rows) }

// Signal sends a signal to the main command; SIGKILL ends the sandbox.
func (a *attachment) Signal(sig syscall.Signal) error { return a.sb.kill(sig) }

// Wait returns how the main command ended.
func (a *attachment) Wait(ctx context.Context) (api.ExecResult, error) {
	select {
	case <-a.sb.done:
		return a.sb.mainResult(), nil
	case <-ctx.Done():
		return api.ExecResult{}, context.Cause(ctx)
	}
}

// Close detaches; the command goes on.
func (a *attachment) Close() error {
	a.once.Do(func() {
		a.cancel(errDetached)
		_ = a.out.CloseWithError(errDetached)
		_ = a.err.CloseWithError(errDetached)
		a.sb.client(-1)
		a.sb.attaching(-1)
	})
	return nil
}

// attaching counts attachments, for whoever waits for the last to end.
func (sb *sandbox) attaching(n int) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.attached += n
	if n < 0 {
		sb.read = true
		select {
		case sb.detached <- struct{}{}:
		default:
		}
	}
}

// attachWait is how long the output of a sandbox that has ended waits for a
// client that said it would attach. It is long for a client that is there, and
// short for a record that nobody wants.
const attachWait = 10 * time.Second

// untilRead returns when nobody is attached any more: to an ended sandbox
// that is to be removed, whose client must get its output and exit code first.
// A client that has gone, killed perhaps, holds up nothing.
func (sb *sandbox) untilRead(ctx context.Context) error {
	t := time.NewTimer(attachWait)
	defer t.Stop()
	late := false
	for {
		sb.mu.Lock()
		over := sb.attached == 0 && (sb.read || late)
		sb.mu.Unlock()
		if over {
			return nil
		}
		select {
		case <-sb.detached:
		case <-t.C:
			late = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mainResult is the main command's end, as an exec's.
func (sb *sandbox) mainResult() api.ExecResult {
	v := sb.view()
	r := api.ExecResult{ID: mainID, Reason: v.Reason, LimitsHit: v.LimitsHit, Took: api.Duration(v.Ended.Sub(v.Started))}
	if v.ExitCode != nil {
		r.ExitCode = *v.ExitCode
	}
	sb.mu.Lock()
	r.Signal = sb.rec.MainSignal
	sb.mu.Unlock()
	return r
}

// openLogs opens the logs of a sandbox that is about to run, or is taken over.
// The main command's and that of all others each have half of what may be
// kept, so that a flood of one does not push out the other, and a client of
// the main command that does not read holds up no other command.
func (sb *sandbox) openLogs() error {
	dir := sb.l.logDir(sb.id)
	if sb.fixed.Request.Logs == noLogs {
		dir, err := sb.l.memoryDir(sb.id)
		if err != nil {
			return err
		}
		log, err := logs.Open(dir, logs.Options{Max: logs.MemoryMax})
		sb.hold(func() { sb.log = log })
		return err
	}
	log, err := logs.Open(dir, logs.Options{Max: sb.l.LogBytes / 2})
	if err != nil {
		return err
	}
	execs, err := logs.Open(filepath.Join(dir, "execs"), logs.Options{Max: sb.l.LogBytes / 2, Tagged: true})
	sb.hold(func() { sb.log, sb.execLog = log, execs })
	return err
}

// memoryMax is what the output of all sandboxes whose output is not kept may
// take of memory; they stop writing beyond.
const memoryMax = 256 << 20

// memoryDir is where the output of such a sandbox is on its way to its client.
func (l *Launcher) memoryDir(id string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.memory == nil {
		f, dir, err := logs.Memory(memoryMax)
		if err != nil {
			return "", err
		}
		l.memory, l.memoryAt = f, dir
	}
	return filepath.Join(l.memoryAt, id), nil
}

// forgetOutput removes what is in memory of the output of a sandbox that has
// ended, once its client has it.
func (sb *sandbox) forgetOutput(ctx context.Context) {
	_ = sb.untilRead(ctx) // the daemon stops: it goes with it
	if err := sb.dropOutput(); err != nil {
		sb.l.log.ErrorContext(ctx, "output not removed from memory", slog.String("sandbox", sb.id), slog.Any("error", err))
	}
}

func (sb *sandbox) dropOutput() error {
	dir, err := sb.l.memoryDir(sb.id)
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// mainLog is the main command's log, also after the sandbox ended.
func (sb *sandbox) mainLog() (*logs.Log, error) {
	sb.mu.Lock()
	log := sb.log
	sb.mu.Unlock()
	if log != nil {
		return log, nil
	}
	return keptLog(sb.l.logDir(sb.id), logs.Options{Max: sb.l.LogBytes / 2})
}

// keptLog is a log to which nothing comes any more.
func keptLog(dir string, o logs.Options) (*logs.Log, error) {
	l, err := logs.Open(dir, o)
	if err != nil {
		return nil, err
	}
	return l, l.Close()
}

// logsOf are the logs that have what is wanted: "" and "main" of the main
// command, "all" of all, else of one exec.
func (sb *sandbox) logsOf(exec string) (_ []*logs.Log, source string, err error) {
	if sb.fixed.Request.Logs == noLogs {
		return nil, "", api.Errorf(api.CodeConflict, "the output of sandbox %s is not kept", sb.id).WithHint("it was launched with logs none; creel attach shows what the main command writes from now on")
	}
	var out []*logs.Log
	if exec == "" || exec == mainID || exec == server.AllExecs {
		log, err := sb.mainLog()
		if err != nil || exec != server.AllExecs {
			return []*logs.Log{log}, "", err
		}
		out = append(out, log)
	} else if len(exec) != execIDLen || strings.Trim(exec, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return nil, "", api.Errorf(api.CodeInvalid, "%q is not the id of an exec", exec).WithHint("creel exec ls lists them; main is the main command")
	} else {
		source = exec // the log may have output of one that is no longer listed
	}
	sb.mu.Lock()
	log := sb.execLog
	sb.mu.Unlock()
	if log == nil {
		log, err = keptLog(filepath.Join(sb.l.logDir(sb.id), "execs"), logs.Options{Max: sb.l.LogBytes / 2, Tagged: true})
	}
	return append(out, log), source, err
}

// firstBytes is the arguments up to most bytes, of which each has one more
// than its text, and whether something was left out. Text is cut between
// characters.
func firstBytes(args []string, most int) (_ []string, cut bool) {
	out := []string{}
	for _, arg := range args {
		if len(arg)+1 <= most {
			out, most = append(out, arg), most-len(arg)-1
			continue
		}
		end := 0
		for i := range arg { // the starts of its characters
			if i >= most {
				break
			}
			end = i
		}
		if end > 0 {
			out = append(out, arg[:end])
		}
		return out, true
	}
	return out, false
}

// untilUntapped waits, not for ever, until no output of a command comes any
// more.
func (sb *sandbox) untilUntapped() {
	over := make(chan struct{})
	go func() { sb.tapped.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(drainTimeout):
	}
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

// counted counts the output that passes the daemon.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(max(n, 0)))
	return n, err
}
