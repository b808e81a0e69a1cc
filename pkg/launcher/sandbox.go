package launcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/retention"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
)

// sandbox is one sandbox in memory: its record and, while it runs, the
// handles on its kernel objects.
type sandbox struct {
	l  *Launcher
	id string
	// fixed is the part of the record that never changes: who and what.
	fixed store.Record
	// parent is the sandbox it is a child of, nil if it is of none, or if that
	// one was forgotten before this daemon started.
	parent *sandbox

	// These are set, with hold, before the sandbox is running and do not
	// change then. While it is being made others may only look at them with
	// mu held.
	pid    int      // PID 1's, on the host
	pidfd  *os.File // nonblocking, of PID 1
	keeper *os.File // pidfd of its parent, the runtime's shim
	host   *agentinit.Host
	cg     *cgroup.Sandbox
	log    *logs.Log
	// execLog is of all other commands; nil when nothing is kept.
	execLog *logs.Log
	master  *os.File // the main command's terminal, nil without one
	stdin   *os.File // the main command's input, nil without one
	// mainEnded means that it ended while no daemon ran: no timeout any more.
	mainEnded bool

	// destinations are those that were told of, see Decided.
	destinations map[string]bool
	// unasked are the rules that nobody can be asked for, see ask.
	unasked map[string]bool
	// issued says that its identity was told of.
	issued bool

	// still is held by who needs the agent not to change anything; pausing,
	// resuming and new execs hold it together.
	still sync.RWMutex

	done chan struct{} // closed when the sandbox has ended and that is on disk
	gone chan struct{} // closed when nothing is left of it but its record

	listener *net.UnixListener // of its own socket, nil without one; mu guards it
	unserve  func()            // ends what answers there; mu guards it

	detached chan struct{} // gets one when an attachment ends; room for one

	doneOnce, goneOnce sync.Once
	// waking is held while it is decided whether the sandbox sleeps: a command
	// that has been let in is never caught by a pause for idleness.
	waking sync.Mutex
	freed  sync.Once // the id range goes back to the pool once only

	mu      sync.Mutex
	rec     store.Record
	dropped bool // the record is deleted and must not come back
	execs   map[string]*session
	unkept  map[string]*session // ended, and not yet on disk as such
	// lingering are the cgroups of execs that ended and left processes behind.
	lingering []*cgroup.Exec
	clients   int       // attached and listening
	attached  int       // attachments, also after the end
	read      bool      // an attachment has ended
	busy      time.Time // when something was last seen to happen
	ending    bool
	idle      bool // paused because it was idle: the next exec resumes it
	cpu       time.Duration
	proven    time.Time      // when evidence was last taken
	signaled  int            // what ended the main command, as far as it is known
	askedFor  api.Reason     // why the main command is about to end
	output    sync.WaitGroup // captures of the main command's output
	tapped    sync.WaitGroup // sessions whose output goes to execLog
	timeout   *time.Timer    // of the main command
	hits      map[string]int64
	files     fullFiles
	oomTold   map[string]bool  // commands of which sandbox.oom was published
	again     backoff          // of a clean-up that failed
	left      *retention.Ended // what is kept, once it does not change any more
}

// hold sets handles of the sandbox.
func (sb *sandbox) hold(set func()) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	set()
}

// amend changes the record in memory; the next commit takes it along.
func (sb *sandbox) amend(change func(*store.Record)) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	change(&sb.rec)
}

// putLocked commits a record, unless the sandbox has been forgotten: a late
// writer must not bring it back.
func (sb *sandbox) putLocked(r store.Record) error {
	if sb.dropped {
		return api.Errorf(api.CodeNotFound, "sandbox %s has been removed", sb.id)
	}
	if err := sb.l.Store.PutSandbox(r); err != nil {
		return fmt.Errorf("sandbox %s: %w", sb.id, err)
	}
	sb.rec = r
	sb.countLocked()
	return nil
}

// freeIDs gives the id range back. Nothing of the sandbox may be left, and
// that must be on disk: a range is never in two records that count.
func (sb *sandbox) freeIDs() {
	sb.freed.Do(func() { sb.l.IDs.Release(sb.fixed.Sandbox.HostUID) })
}

func (l *Launcher) newSandbox(rec store.Record, parent *sandbox) *sandbox {
	sb := &sandbox{
		l: l, id: rec.Sandbox.ID, fixed: rec, rec: rec, parent: parent,
		done: make(chan struct{}), gone: make(chan struct{}), detached: make(chan struct{}, 1),
		execs: map[string]*session{}, unkept: map[string]*session{}, busy: time.Now(),
		hits:    map[string]int64{},
		files:   fullFiles{},
		oomTold: map[string]bool{}, idle: rec.IdlePaused,
	}
	if rec.Clean {
		sb.freed.Do(func() {}) // its range may be another's by now
	}
	return sb
}

// identity is the record as it was at the start; only what never changes may
// be read from it.
func (sb *sandbox) identity() *store.Record { return &sb.fixed }

// hostUser is the host's uid and gid of the sandbox's processes.
func (sb *sandbox) hostUser() uint32 {
	return sb.fixed.Sandbox.HostUID + spec.UID(sb.fixed.Sandbox.User)
}

// markDone says that the sandbox has ended, markGone that nothing is left of
// it but its record.
func (sb *sandbox) markDone() { sb.doneOnce.Do(func() { close(sb.done) }) }
func (sb *sandbox) markGone() { sb.goneOnce.Do(func() { close(sb.gone) }) }

// isGone says whether nothing is left of it but its record.
func (sb *sandbox) isGone() bool {
	select {
	case <-sb.gone:
		return true
	default:
		return false
	}
}

// launched is nil if the sandbox has come as far as running: before that its
// handles are the launch's own.
func (sb *sandbox) launched() error {
	if sb.state() == api.StateCreating {
		return api.Errorf(api.CodeConflict, "sandbox %s is being created", sb.id).WithHint("wait until its spawn has answered")
	}
	return nil
}

func (sb *sandbox) state() api.State {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec.Sandbox.State
}

// view is what callers see.
func (sb *sandbox) view() api.Sandbox {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	v := sb.rec.Sandbox
	v.Execs = 0
	for _, s := range sb.execs {
		if !s.internal {
			v.Execs++
		}
	}
	v.LimitsHit = sb.hitsLocked()
	return v
}

func (sb *sandbox) hitsLocked() map[string]int64 {
	out := map[string]int64{}
	maps.Copy(out, sb.rec.Sandbox.LimitsHit)
	for k, n := range sb.hits {
		out[k] += n
	}
	if n := sb.files.count(); n > 0 {
		out["files"] += n
	}
	if sb.cg != nil && !ended(sb.rec.Sandbox.State) {
		for k, n := range sb.cg.Hits() {
			out[k] = max(out[k], n)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// move changes the state in memory and on disk, in one commit.
func (sb *sandbox) move(to api.State, change func(*store.Record)) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if err := checkMove(sb.rec.Sandbox.State, to); err != nil {
		return err
	}
	if err := failpoint.Hit("commit." + string(to)); err != nil {
		return err
	}
	next := sb.rec
	next.Sandbox.State = to
	if change != nil {
		change(&next)
	}
	return sb.putLocked(next)
}

// moveOn is move for what happens whether or not the disk takes it: the
// sandbox is ending. What could not be committed goes with the next commit,
// of the clean-up, which is tried until it succeeds.
func (sb *sandbox) moveOn(to api.State, change func(*store.Record)) error {
	err := sb.move(to, change)
	if err == nil {
		return nil
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if cerr := checkMove(sb.rec.Sandbox.State, to); cerr != nil {
		return err
	}
	sb.rec.Sandbox.State = to
	change(&sb.rec)
	sb.countLocked()
	return err
}

// active is nil if the sandbox takes commands; one that was paused for being
// idle is woken.
func (sb *sandbox) active(ctx context.Context) error {
	if err := sb.mayRun(); err != nil {
		return err // it is about to be ended
	}
	if !sb.still.TryRLock() {
		return sb.committing()
	}
	defer sb.still.RUnlock()
	sb.waking.Lock() // not while it is being paused for being idle
	defer sb.waking.Unlock()
	sb.mu.Lock()
	state, idle, why := sb.rec.Sandbox.State, sb.idle, sb.rec.Sandbox.Reason
	sb.busy = time.Now()
	sb.mu.Unlock()
	switch {
	case state == api.StateRunning:
		return nil
	case state == api.StatePaused && idle:
		return sb.resume(ctx)
	case state == api.StatePaused && why == api.ReasonDisk:
		return api.Errorf(api.CodeConflict, "sandbox %s is paused because the disk is nearly full", sb.id).
			WithHint("it goes on when there is room: creel system df, creel system prune")
	case state == api.StatePaused:
		return api.Errorf(api.CodeConflict, "sandbox %s is paused", sb.id).WithHint("creel resume " + sb.fixed.Sandbox.Name)
	}
	return api.Errorf(api.CodeConflict, "sandbox %s is %s", sb.id, state).WithHint("creel inspect tells why it ended")
}

// committing is why nothing else can be done now.
func (sb *sandbox) committing() error {
	return api.Errorf(api.CodeConflict, "an image of sandbox %s is being made, or something else that needs it still", sb.id).
		WithHint("try again in a moment")
}

// client counts a caller that is listening; the sandbox is not idle meanwhile.
func (sb *sandbox) client(n int) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.clients += n
	sb.busy = time.Now()
}

// dir is the sandbox's own directory, lost at reboot.
func (l *Launcher) dir(id string) string { return filepath.Join(l.RunDir, "sandboxes", id) }

func (l *Launcher) logDir(id string) string { return filepath.Join(l.StateDir, "logs", id) }

// noLogs is the value of Logs in requests with which no output is kept.
const noLogs = "none"

// openPidfd gives a descriptor of a process that the poller can wait for.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd %d", pid)), nil
}

// waitPidfd returns when the process has ended, or the file is closed.
func waitPidfd(pidfd *os.File) error {
	c, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return c.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return err == nil && n == 1
	})
}

// signalPidfd sends sig; a process that has ended already is no error.
func signalPidfd(pidfd *os.File, sig unix.Signal) error {
	err := control(pidfd, func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// release lets go of the handles without touching the sandbox.
func (sb *sandbox) release() {
	sb.closeSocket()
	sb.mu.Lock()
	sessions := make([]*session, 0, len(sb.execs))
	for _, s := range sb.execs {
		if s.ready {
			sessions = append(sessions, s)
		}
	}
	if sb.timeout != nil {
		sb.timeout.Stop()
	}
	host, pidfd, keeper, log, execLog := sb.host, sb.pidfd, sb.keeper, sb.log, sb.execLog
	sb.mu.Unlock()
	for _, s := range sessions {
		_ = s.Close()
	}
	if host != nil {
		_ = host.Close()
	}
	if pidfd != nil {
		_ = pidfd.Close()
	}
	if keeper != nil {
		_ = keeper.Close()
	}
	if log != nil {
		_ = log.Close()
	}
	if execLog != nil {
		go func() { // not of the workers: it is also done when they begin nothing more
			sb.untilUntapped()
			_ = execLog.Close()
		}()
	}
	if r := sb.fixed.Request; r.Logs == noLogs && !r.Remove && sb.state() == api.StateStopped { // else it goes with the record
		sb.l.background(sb.forgetOutput)
	}
}

// moves is the life of a sandbox. A move that is not here is refused.
//
//	creating ─> running <─> paused
//	    │          │           │
//	    │          └─> stopping <┘
//	    │                 │
//	    │              stopped ─> removing ─> (gone)
//	    └─> unknown <──── any whose undo or clean-up failed; reconcile retries
var moves = map[api.State][]api.State{
	api.StateCreating: {api.StateRunning, api.StateUnknown},
	api.StateRunning:  {api.StatePaused, api.StateStopping},
	api.StatePaused:   {api.StateRunning, api.StateStopping},
	api.StateStopping: {api.StateStopped},
	api.StateStopped:  {api.StateRemoving},
	api.StateRemoving: {},
	api.StateUnknown:  {api.StateRemoving},
}

// checkMove is nil if a sandbox may go from one state to the other.
func checkMove(from, to api.State) error {
	if slices.Contains(moves[from], to) {
		return nil
	}
	return api.Errorf(api.CodeConflict, "the sandbox is %s and cannot become %s", from, to)
}

// ended says whether nothing of the sandbox runs any more.
func ended(s api.State) bool {
	return s == api.StateStopped || s == api.StateRemoving || s == api.StateUnknown
}
