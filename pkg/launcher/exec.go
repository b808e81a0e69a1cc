package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/logs"
)

// Exit codes of run and exec, as shells and timeout(1) have them.
const (
	exitTimeout  = 124
	exitSignaled = 128 // plus the signal
)

// session is one command in a sandbox with a client; it implements
// server.Session. An exec's client that goes away takes the whole process
// tree with it.
type session struct {
	sb       *sandbox
	id       string
	internal bool // a file operation, not somebody's command
	ready    bool // under the sandbox's mu: others may use it
	began    time.Time
	io       *stdio
	fds      bool
	logged   bool // its output is kept
	taps     []*logs.Tap
	pumps    pumps // of fds that are logged: from taps to the client's pipes
	cg       *cgroup.Exec
	pidfd    *os.File    // of the command's first process
	attended func() bool // ends the watch of a file operation's client; nil else

	output    atomic.Int64  // bytes that passed the daemon, when they are not logged
	closed    chan struct{} // closed with the session
	closing   sync.Once
	untapping sync.Once
	keeping   sync.Mutex // of commits of the record, with key
	key       uint64     // the record's in the store, 0 before the first
	wrote     progress   // what the store has of it

	once  sync.Once
	kill  sync.Once
	timer *time.Timer
	// Of a command whose tree ends when its client asks it to.
	killTree bool
	ending   sync.Once
	asked    atomic.Bool

	mu     sync.Mutex
	reason api.Reason // why we ended it; empty if we did not
	// dropped means that its sandbox ended under it.
	dropped bool
	done    chan struct{}
	result  api.ExecResult
	record  api.Exec // what is kept of it; not of a file operation
}

// command is what startCommand needs.
type command struct {
	id       string
	argv     []string
	env      map[string]string
	workdir  string
	tty      bool
	internal bool
	io       *stdio
	keep     []*os.File // ends that PID 1 keeps for the next daemon
}

// startCommand runs a command in a cgroup of its own: PID 1 forks it stopped,
// the daemon finds it by the kernel's word (it is in PID 1's leaf), moves it,
// and has it released. stamp is CLOCK_MONOTONIC just before its execve.
func (sb *sandbox) startCommand(ctx context.Context, c command) (cg *cgroup.Exec, pidfd *os.File, nspid int, stamp int64, err error) {
	cg, err = sb.cg.NewExec(c.id)
	if err != nil {
		return nil, nil, 0, 0, err
	}
	sent := false
	defer func() {
		if err == nil {
			return
		}
		if pidfd != nil {
			_ = pidfd.Close()
			pidfd = nil
		}
		// The request may be gone; what it started must not stay.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		sent = sent && sb.host.Cancel(end, c.id) != nil // it was released
		err = errors.Join(err, cg.Kill(end), cg.Remove())
		var failed *agentinit.ExecError
		if sent && !errors.As(err, &failed) { // that one is a result, acknowledged with it
			_, _ = sb.host.Wait(end, c.id)
			_ = sb.host.Ack(end, c.id)
		}
	}()
	env := make([]string, 0, len(c.env))
	for _, k := range slices.Sorted(maps.Keys(c.env)) {
		env = append(env, k+"="+c.env[k])
	}
	join, err := cg.Entrances()
	if err != nil {
		return cg, nil, 0, 0, err
	}
	defer closeFiles(join)
	sent = true // also when its answer is not waited for
	nspid, err = sb.host.Start(ctx, agentinit.Process{
		ID: c.id, Argv: c.argv, Env: env, Cwd: c.workdir, Umask: 0o022, TTY: c.tty, Internal: c.internal,
		KeepFDs: len(c.keep), JoinFDs: len(join),
	}, slices.Concat(c.io.child, c.keep, join))
	if err != nil {
		return cg, nil, 0, 0, err
	}
	pidfd, err = sb.place(cg, nspid, len(join) > 0)
	if err != nil {
		return cg, pidfd, 0, 0, err
	}
	if err := failpoint.Hit("exec.placed"); err != nil {
		return cg, pidfd, 0, 0, err
	}
	stamp, err = sb.host.Release(ctx, c.id)
	return cg, pidfd, nspid, stamp, err
}

func closeFiles(fs []*os.File) {
	for _, f := range fs {
		_ = f.Close()
	}
}

// joinTries is how often the daemon looks for a child that moves itself, a
// moment after its fork, before it does it in its place.
const joinTries = 20

// joinRounds is how often the daemon does that until it gives up.
const joinRounds = 50

// place sees to it that the stopped child is in its cgroup. Which process it
// is, the kernel says: PID 1's word only picks among those in the exec's
// cgroup or in PID 1's own leaf.
func (sb *sandbox) place(cg *cgroup.Exec, nspid int, joins bool) (*os.File, error) {
	if !joins {
		return sb.moveChild(cg, nspid)
	}
	for i := 1; ; i++ {
		pidfd, err := sb.joined(cg, nspid)
		if pidfd != nil || err != nil {
			return pidfd, err
		}
		if i%joinTries == 0 {
			pidfd, err = sb.moveChild(cg, nspid)
			// On a busy host it may have left PID 1's leaf just before.
			if !errors.Is(err, agentinit.ErrNoMatch) || i == joinRounds*joinTries {
				return pidfd, err
			}
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// joined is the child if it has moved itself, in every hierarchy.
func (sb *sandbox) joined(cg *cgroup.Exec, nspid int) (*os.File, error) {
	pids, err := cg.Pids()
	if err != nil || len(pids) == 0 {
		return nil, err
	}
	pid, err := agentinit.MatchNSPid(pids, nspid)
	if errors.Is(err, agentinit.ErrNoMatch) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pidfd, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	// Asked again with the descriptor in hand: it is of a process of the
	// exec, and not of a later one with its pid.
	if in, err := cg.Has(pid); err != nil || !in {
		_ = pidfd.Close()
		return nil, err
	}
	return pidfd, nil
}

// moveChild moves the child from PID 1's leaf.
func (sb *sandbox) moveChild(cg *cgroup.Exec, nspid int) (*os.File, error) {
	pending, err := sb.cg.Pending()
	if err != nil {
		return nil, err
	}
	pid, err := agentinit.MatchNSPid(pending, nspid)
	if err != nil {
		return nil, err
	}
	pidfd, err := openPidfd(pid)
	if err != nil {
		return nil, err
	}
	if err := cg.Add(pid); err != nil {
		return pidfd, err
	}
	// The pid could have become another's between the list and the move only
	// if the child had ended, and then its pidfd says so.
	return pidfd, control(pidfd, func(fd int) error { return unix.PidfdSendSignal(fd, 0, nil, 0) })
}

// Exec runs a command for a client.
func (sb *sandbox) exec(ctx context.Context, req api.ExecRequest) (*session, error) {
	if err := admission.Exec(req); err != nil {
		return nil, err
	}
	workdir := req.Workdir
	if workdir == "" {
		workdir = sb.fixed.Sandbox.Workdir
	}
	return sb.open(ctx, command{
		argv: req.Command, env: sb.env(req.Env, req.TTY), workdir: workdir, tty: req.TTY,
	}, req)
}

// open starts c with streams for a client.
func (sb *sandbox) open(ctx context.Context, c command, req api.ExecRequest) (_ *session, err error) {
	if err := sb.active(ctx); err != nil {
		return nil, err
	}
	s := &session{sb: sb, id: newExecID(), internal: c.internal, began: time.Now(), fds: req.IO == "fds", killTree: req.KillTree, done: make(chan struct{}), closed: make(chan struct{})}
	s.logged = !c.internal && req.Logs != noLogs && sb.execLog != nil && (!s.fds || !c.tty)
	s.record = newRecord(s, req)
	c.id = s.id
	agent := sb.hostUser()
	if c.tty {
		s.io, err = newTTY(sb.pid, agent, req.Cols, req.Rows)
	} else {
		s.io, err = newPipes(agent, req.Stdin)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.io.close()
		}
	}()
	if err := sb.enter(s); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.untap()
			sb.leave(s)
		}
	}()
	if c.keep, err = s.prepare(); err != nil {
		return nil, err
	}
	c.io = s.io
	var failed *agentinit.ExecError
	within, cancel := context.WithTimeout(ctx, channelTimeout)
	defer cancel()
	s.cg, s.pidfd, _, _, err = sb.startCommand(within, c)
	s.io.closeChild()
	if err == nil || errors.As(err, &failed) {
		s.pump()
	}
	switch {
	case errors.As(err, &failed):
		// The command did not start: that is a result, not an error of ours.
		s.finish(api.ExecResult{ExitCode: failed.ExitCode(), Reason: api.ReasonExited, Error: failed.Error()})
		return s, nil
	case err != nil:
		return nil, sb.notStarted(ctx, err)
	}
	if req.Timeout > 0 {
		s.timer = time.AfterFunc(req.Timeout.D(), func() { s.end(api.ReasonTimeout) })
	}
	if s.internal {
		// The agent may stop the operation (SIGSTOP), which then says nothing
		// for ever: whoever waits for its bytes is set free when the client
		// goes away.
		s.attended = context.AfterFunc(ctx, func() { s.end(api.ReasonLost) })
	}
	sb.ready(s)
	if !s.internal {
		sb.l.publish("exec.started", sb.identity(), "exec", s.id)
		sb.l.background(func(context.Context) { s.keep() }) // a commit to disk, which the client need not wait for
	}
	sb.l.background(s.wait)
	return s, nil
}

// notStarted gives what kept a command from starting its class: the sandbox
// ended meanwhile, or the agent holds up what should start it, by signals to
// PID 1's children. What is left is ours.
func (sb *sandbox) notStarted(ctx context.Context, err error) error {
	sb.mu.Lock()
	ending := sb.ending
	sb.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return err
	case ending, errors.Is(err, agentinit.ErrGone):
		return api.Errorf(api.CodeConflict, "sandbox %s ended before the command started", sb.id).WithHint("creel inspect tells why it ended")
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.CodeUnavailable, "the sandbox did not start the command within %s", channelTimeout).
			WithHint("its processes may be stopping one another; creel rm -f ends it")
	case errors.Is(err, agentinit.ErrNoMatch), errors.Is(err, unix.ESRCH):
		return api.Errorf(api.CodeUnavailable, "the command's process was killed before it started").WithHint("try again")
	}
	return err
}

// enter counts the exec in, so that the limit holds under concurrency.
func (sb *sandbox) enter(s *session) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if len(sb.execs) >= sb.l.MaxExecs {
		return api.Errorf(api.CodeExhausted, "%d commands are running in this sandbox, the most it may have", len(sb.execs))
	}
	if sb.ending {
		return api.Errorf(api.CodeConflict, "sandbox %s is ending", sb.id)
	}
	sb.execs[s.id] = s
	if s.logged {
		sb.tapped.Add(1)
	}
	return nil
}

// ready shows the started command to the rest of the sandbox: from here on
// its end closes the session too.
func (sb *sandbox) ready(s *session) {
	sb.mu.Lock()
	s.ready = true
	late := sb.ending
	sb.mu.Unlock()
	if late {
		_ = s.Close()
	}
}

func (sb *sandbox) leave(s *session) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	delete(sb.execs, s.id)
	if !s.record.Ended.IsZero() && !s.internal {
		sb.unkept[s.id] = s
	}
	sb.busy = time.Now()
}

// wait follows the command to its end.
func (s *session) wait(ctx context.Context) {
	status, err := s.sb.host.Wait(ctx, s.id)
	if err != nil {
		// The sandbox has ended, or the daemon is stopping: the command's end
		// is known from its pidfd only.
		s.finish(sandboxEnded())
		return
	}
	s.finish(resultOf(status.WaitStatus))
}

func resultOf(ws unix.WaitStatus) api.ExecResult {
	if ws.Signaled() {
		return api.ExecResult{ExitCode: exitSignaled + int(ws.Signal()), Signal: int(ws.Signal()), Reason: api.ReasonExited}
	}
	return api.ExecResult{ExitCode: ws.ExitStatus(), Reason: api.ReasonExited}
}

// finish settles the result. The reason is ours: what we did to the command,
// and what the kernel's counters say; never what the sandbox says.
func (s *session) finish(r api.ExecResult) {
	s.once.Do(func() {
		if s.timer != nil {
			s.timer.Stop()
		}
		if s.asked.Load() {
			s.end("") // what it started ends with it
		}
		if s.cg != nil {
			r.LimitsHit = s.limitsHit()
		}
		s.mu.Lock()
		if s.dropped {
			hit := r.LimitsHit
			r = sandboxEnded()
			r.LimitsHit = hit
		}
		r.ID, r.Took = s.id, api.Duration(time.Since(s.began))
		if s.cg != nil {
			// A shell whose child the kernel has killed can still say so and
			// leave before its own turn comes.
			if r.ExitCode == exitSignaled+int(unix.SIGKILL) && s.cg.OOMKills() > 0 {
				r.Reason = api.ReasonOOM
			}
		}
		if s.reason != "" {
			r.Reason = s.reason
		}
		if r.Reason == api.ReasonTimeout {
			r.ExitCode, r.Signal = exitTimeout, int(unix.SIGKILL)
		}
		s.result = r
		s.settleLocked(r)
		s.mu.Unlock()
		s.sb.leave(s)
		s.sb.count(r)
		if r.Reason == api.ReasonOOM {
			s.sb.tellOOM(s.id)
		}
		close(s.done)
		// Keeping it is a commit to disk, which the client need not wait for.
		// PID 1 has the result until it is acknowledged, after that.
		s.sb.l.background(func(context.Context) { s.sb.ended(s, r) })
	})
}

// count adds what an exec hit to what the sandbox has.
func (sb *sandbox) count(r api.ExecResult) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for k, n := range r.LimitsHit {
		if k != "pids" && k != "memory" { // those are counted by the sandbox's cgroup
			sb.hits[k] += n
		}
	}
}

// ended records an exec's end.
func (sb *sandbox) ended(s *session, r api.ExecResult) {
	if s.pidfd != nil {
		_ = s.pidfd.Close()
	}
	if s.cg != nil {
		s.mu.Lock()
		killed := s.reason != ""
		s.mu.Unlock()
		if killed {
			s.kill.Do(func() {}) // returns when the whole tree has ended
		}
		sb.sweep(s.cg)
	}
	defer func() {
		if s.logged { // what is not in the log yet stays in PID 1's hands as well
			select {
			case <-s.closed:
			case <-sb.l.ctx.Done():
			}
		}
		ctx, cancel := context.WithTimeout(sb.l.ctx, channelTimeout)
		defer cancel()
		_ = sb.host.Ack(ctx, s.id) // a sandbox that has ended has forgotten it
	}()
	if s.internal {
		return
	}
	s.keep()
	fields := []string{"exec", s.id, "exit_code", fmt.Sprint(r.ExitCode), "reason", string(r.Reason)}
	for _, k := range slices.Sorted(maps.Keys(r.LimitsHit)) {
		fields = append(fields, "limits_hit."+k, fmt.Sprint(r.LimitsHit[k]))
	}
	sb.l.publish("exec.ended", sb.identity(), fields...)
}

// sweep removes the cgroups of ended execs, except where one left processes
// running, as "nohup server &" does; those are looked at again later.
func (sb *sandbox) sweep(cgs ...*cgroup.Exec) {
	var left []*cgroup.Exec
	for _, cg := range cgs {
		pids, err := cg.Pids()
		if err == nil && len(pids) == 0 {
			err = cg.Remove()
		}
		if err != nil || len(pids) > 0 {
			left = append(left, cg)
		}
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.lingering = append(sb.lingering, left...)
}

// sweepLingering removes what has become empty since.
func (sb *sandbox) sweepLingering() {
	sb.mu.Lock()
	cgs := sb.lingering
	sb.lingering = nil
	sb.mu.Unlock()
	if len(cgs) > 0 {
		sb.l.background(func(context.Context) { sb.sweep(cgs...) })
	}
}

// endings are the signals that ask a command to end, for api.ExecRequest.KillTree.
var endings = []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM}

// treeGrace is how long the processes of a command have after one of endings.
const treeGrace = 3 * time.Second

// signalTree gives each process of the command a signal; finish, or the time,
// kills those that are left.
func (s *session) signalTree(sig syscall.Signal) error {
	s.ending.Do(func() {
		s.asked.Store(true)
		time.AfterFunc(treeGrace, func() { s.end(api.ReasonKilled) }) // nothing, once it has ended
	})
	pids, err := s.cg.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := s.signalOne(pid, sig); err != nil {
			return err
		}
	}
	return nil
}

// signalOne gives a process a signal if it still is one of the command's.
func (s *session) signalOne(pid int, sig syscall.Signal) error {
	pidfd, err := openPidfd(pid)
	if err != nil {
		return nil //nolint:nilerr // it has ended
	}
	defer pidfd.Close()
	if in, err := s.cg.Has(pid); err != nil || !in {
		return err
	}
	err = signalPidfd(pidfd, sig)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// end kills the exec's whole tree, daemonised and re-parented processes
// included, and nothing else.
func (s *session) end(why api.Reason) {
	s.kill.Do(func() {
		s.mu.Lock()
		s.reason = why
		s.mu.Unlock()
		if s.cg == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.cg.Kill(ctx); err != nil {
			s.sb.l.log.Error("exec not killed", slog.String("sandbox", s.sb.id), slog.String("exec", s.id), slog.Any("error", err))
		}
	})
}
