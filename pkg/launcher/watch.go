package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/verify"
	"github.com/creel-sandbox/creel/pkg/volume"
)

// tick is how often deadlines, idleness and output rates are looked at.
const tick = time.Second

// idleCPU is the share of one processor below which a sandbox does no work:
// a shell that waits uses less, anything that computes more.
const idleCPU = 0.01

// watch follows a running sandbox until it ends.
func (sb *sandbox) watch() {
	sb.l.background(func(ctx context.Context) {
		err := waitPidfd(sb.pidfd)
		if ctx.Err() != nil || err != nil {
			return // released: the daemon stops, or end waits for it
		}
		// PID 1 ended and nobody here asked it to.
		sb.end(api.ReasonDied, nil)
	})
	sb.l.background(func(ctx context.Context) {
		if err := waitPidfd(sb.keeper); ctx.Err() != nil || err != nil {
			return
		}
		// The shim ended: nobody would reap PID 1. containerd ends it then too,
		// but not if it was itself restarted meanwhile.
		sb.end(api.ReasonDied, nil)
	})
	sb.l.background(func(ctx context.Context) {
		<-sb.host.Done()
		if ctx.Err() == nil {
			// PID 1 ended, or broke the protocol: nothing it says is heard any
			// more, so nothing can run in there. No effect if an end is under way.
			sb.end(api.ReasonDied, nil)
		}
	})
	if err := sb.cg.WatchOOM(sb.l.ctx, func(exec string) { sb.oom(exec) }); err != nil {
		sb.l.log.Error("OOM kills will not be told at once", slog.String("sandbox", sb.id), slog.Any("error", err))
	}
	if len(sb.fixed.Request.Command) == 0 {
		return
	}
	sb.l.background(sb.watchMain)
	if d := sb.fixed.Request.Timeout; d > 0 && !sb.mainEnded {
		left := time.Until(sb.view().Started.Add(d.D()))
		sb.mu.Lock()
		sb.timeout = time.AfterFunc(left, func() { sb.end(api.ReasonTimeout, nil) })
		sb.mu.Unlock()
	}
}

// process is one of the host's, told from a later one of its pid.
type process struct {
	pid   int
	start uint64
}

// openKeeper takes hold of PID 1's parent.
func (sb *sandbox) openKeeper() (process, error) {
	pid, err := parent(sb.pid)
	if err != nil {
		return process{}, err
	}
	pidfd, err := openPidfd(pid)
	if err != nil {
		return process{}, err
	}
	sb.hold(func() { sb.keeper = pidfd })
	// After the pidfd, and the parent once more: so it is that process.
	start, err := verify.StartTime(pid)
	if err != nil {
		return process{}, err
	}
	if again, err := parent(sb.pid); err != nil || again != pid {
		return process{}, fmt.Errorf("the parent of PID 1 is %d and was %d: %w", again, pid, errors.Join(err, agentinit.ErrGone))
	}
	return process{pid, start}, nil
}

// parent is the pid of a process's parent: field 4 of /proc/PID/stat, after
// the name, which may contain anything (proc_pid_stat(5)).
func parent(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(f) < 2 {
		return 0, fmt.Errorf("/proc/%d/stat is %q", pid, text)
	}
	return strconv.Atoi(f[1])
}

// asked notes why the main command is about to end, so that its exit is not
// taken for its own decision.
func (sb *sandbox) asked(why api.Reason) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.askedFor = why
}

// Watch runs until ctx ends: deadlines, idleness, output, drift, and
// clean-ups that failed before.
func (l *Launcher) Watch() {
	l.watching.Store(true)
	for _, sb := range l.all() {
		sb.serve()
	}
	l.background(l.fillSpares)
	l.background(func(ctx context.Context) {
		t := time.NewTicker(tick)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-t.C:
				l.check(ctx, now)
				if l.broken.Load() {
					l.prune(ctx)
				}
				l.retain(now)
				l.keepReserve(ctx)
			}
		}
	})
}

func (l *Launcher) check(ctx context.Context, now time.Time) {
	for _, sb := range l.all() {
		state := sb.state()
		if (state == api.StateRunning || state == api.StatePaused) && sb.orphan() {
			sb.end(api.ReasonParent, nil)
			continue
		}
		if (state == api.StateRunning || state == api.StatePaused) && sb.mayRun() != nil {
			why := api.ReasonRevoked
			if l.Agents.State(sb.fixed.Sandbox.Caller.UID, sb.fixed.Sandbox.Agent, now) == agents.Expired {
				why = api.ReasonExpired
			}
			sb.end(why, nil)
			continue
		}
		switch state {
		case api.StateRunning:
			sb.parent.keepBusy(now)
			sb.checkLimits(ctx, now)
			sb.watchFiles()
			sb.checkEvidence(ctx, now)
			sb.expireApprovals(now)
			sb.sweepLingering()
		case api.StatePaused:
			sb.checkTTL(now)
		case api.StateStopped, api.StateRemoving, api.StateUnknown:
			sb.retry(now)
		case api.StateCreating, api.StateStopping: // somebody is at it
		}
	}
}

func (l *Launcher) all() []*sandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*sandbox, 0, len(l.sandboxes))
	for _, sb := range l.sandboxes {
		all = append(all, sb)
	}
	return all
}

func (sb *sandbox) checkTTL(now time.Time) bool {
	ttl := sb.fixed.Sandbox.Limits.TTL.D()
	if ttl > 0 && now.Sub(sb.view().Started) >= ttl {
		sb.end(api.ReasonTTL, nil)
		return true
	}
	return false
}

func (sb *sandbox) checkLimits(ctx context.Context, now time.Time) {
	if sb.checkTTL(now) {
		return
	}
	lim := sb.fixed.Sandbox.Limits
	if sb.log != nil && lim.OutputRate > 0 && sb.log.Rate() > float64(lim.OutputRate) {
		sb.end(api.ReasonOutput, nil)
		return
	}
	if lim.Idle == 0 || !sb.isIdle(now, lim.Idle.D()) {
		return
	}
	if lim.OnIdle == "stop" {
		sb.end(api.ReasonIdle, nil)
		return
	}
	if err := sb.pauseIdle(ctx, lim.Idle.D()); err != nil {
		sb.l.log.WarnContext(ctx, "idle sandbox not paused", slog.String("sandbox", sb.id), slog.Any("error", err))
	}
}

// isIdle says whether there was no exec, no client and no work for a while.
func (sb *sandbox) isIdle(now time.Time, after time.Duration) bool {
	cpu, err := sb.cg.CPUUsage()
	sb.mu.Lock()
	defer sb.mu.Unlock()
	worked := cpu - sb.cpu
	sb.cpu = cpu
	commands := 0
	for id := range sb.execs {
		if id != mainID {
			commands++
		}
	}
	if err != nil || commands > 0 || sb.clients > 0 || worked.Seconds() > idleCPU*tick.Seconds() {
		sb.busy = now
	}
	return now.Sub(sb.busy) >= after
}

// checkEvidence proves the isolation again when it is time.
func (sb *sandbox) checkEvidence(ctx context.Context, now time.Time) {
	sb.mu.Lock()
	due := sb.l.EvidenceEvery > 0 && now.Sub(sb.proven) >= sb.l.EvidenceEvery
	if due {
		sb.proven = now
	}
	sb.mu.Unlock()
	if due {
		sb.l.background(func(context.Context) {
			// One that fails has told already, unless the sandbox or the daemon ends.
			if err := sb.proveAgain(ctx, "timer"); err != nil {
				sb.l.log.DebugContext(ctx, "proof not taken or not kept", slog.String("sandbox", sb.id), slog.Any("error", err))
			}
		})
	}
}

// retry cleans up, when it is time, what an earlier try could not.
func (sb *sandbox) retry(now time.Time) {
	sb.mu.Lock()
	due := len(sb.rec.Undo) > 0 && sb.again.due(now)
	state := sb.rec.Sandbox.State
	sb.mu.Unlock()
	if !due {
		return
	}
	// Not in the watch's own goroutine: what is stuck must not keep the
	// deadlines of others waiting.
	sb.l.background(func(context.Context) {
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		err := sb.l.undoAll(ctx, sb.id)
		switch {
		case err != nil:
		case state == api.StateUnknown:
			err = sb.l.forget(sb)
		default:
			sb.cleaned() // notes its own
		}
		if err != nil {
			sb.l.note(sb, err)
		}
		sb.mu.Lock()
		sb.again.end(time.Now())
		sb.mu.Unlock()
	})
}

// The pauses between two tries of a clean-up.
const (
	minRetry = time.Second
	maxRetry = time.Minute
)

// backoff says when to try again. The zero value is due at once.
type backoff struct {
	running bool
	pause   time.Duration
	next    time.Time
}

// due begins a try if none is under way and it is time.
func (b *backoff) due(now time.Time) bool {
	if b.running || now.Before(b.next) {
		return false
	}
	b.running = true
	return true
}

// end ends a try; the next comes after twice the pause of the last.
func (b *backoff) end(now time.Time) {
	b.running = false
	b.pause = min(max(2*b.pause, minRetry), maxRetry)
	b.next = now.Add(b.pause)
}

// oom ends the exec in which the OOM killer struck, as a whole: half a build
// is worse than none. Its neighbours go on.
func (sb *sandbox) oom(execID string) {
	sb.tellOOM(execID)
	if execID == mainID {
		sb.end(api.ReasonOOM, nil)
		return
	}
	sb.mu.Lock()
	s := sb.execs[execID]
	ready := s != nil && s.ready
	sb.mu.Unlock()
	if ready {
		s.end(api.ReasonOOM)
	}
}

// tellOOM publishes, once, that a command met the OOM killer: whoever sees it
// first, the watch or the command's end, which may remove its cgroup before
// the watch has looked.
func (sb *sandbox) tellOOM(execID string) {
	sb.mu.Lock()
	told := sb.oomTold[execID]
	sb.oomTold[execID] = true
	sb.mu.Unlock()
	if !told {
		sb.l.publish("sandbox.oom", sb.identity(), "exec", execID)
	}
}

// limitsHit is what limits refused an exec that has just ended: the counts of
// its cgroup, and those that no cgroup keeps.
func (s *session) limitsHit() map[string]int64 {
	hits := s.cg.Hits()
	if n := s.sb.fullPlaces(); n > 0 {
		hits["disk"] = n
	}
	s.sb.mu.Lock()
	defer s.sb.mu.Unlock()
	if n := s.sb.files.take(s.id); n > 0 {
		hits["files"] = n
	}
	if len(hits) == 0 {
		return nil
	}
	return hits
}

// countLast does the same for the main command, which has no session of its
// own, and for what commands left running: at the sandbox's end, while its
// file systems are still there.
func (sb *sandbox) countLast() {
	if sb.pid == 0 {
		return
	}
	full := int64(0)
	if len(sb.fixed.Request.Command) > 0 {
		full = sb.fullPlaces()
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if full > 0 {
		sb.hits["disk"] += full
	}
	if n := sb.files.takeAll(); n > 0 {
		sb.hits["files"] += n
	}
}

// fullFiles are the processes found with as many descriptors as they may have,
// by exec. The kernel keeps no count of EMFILE, so what is counted is each
// process that is found so and was not a second before; one that met its limit
// in between and closed again is missed.
type fullFiles map[string]*struct {
	now map[int]bool
	n   int64
}

// note takes down which processes of an exec are at their limit.
func (f fullFiles) note(exec string, now map[int]bool) {
	e := f[exec]
	if e == nil {
		if len(now) == 0 {
			return
		}
		e = &struct {
			now map[int]bool
			n   int64
		}{}
		f[exec] = e
	}
	for pid := range now {
		if !e.now[pid] {
			e.n++
		}
	}
	e.now = now
}

// take is an exec's count, once.
func (f fullFiles) take(exec string) (n int64) {
	if e := f[exec]; e != nil {
		n, e.n = e.n, 0
	}
	return n
}

func (f fullFiles) takeAll() (n int64) {
	for id := range f {
		n += f.take(id)
		delete(f, id)
	}
	return n
}

func (f fullFiles) count() (n int64) {
	for _, e := range f {
		n += e.n
	}
	return n
}

// watchFiles looks for processes at their limit of descriptors.
func (sb *sandbox) watchFiles() {
	limit := sb.fixed.Sandbox.Limits.Files
	if limit <= 0 {
		return
	}
	found := map[string]map[int]bool{}
	for _, id := range sb.cg.Execs() {
		found[id] = map[int]bool{}
		cg, err := sb.cg.Exec(id)
		if err != nil {
			continue // it has just ended
		}
		pids, _ := cg.Pids()
		for _, pid := range pids {
			if descriptors(pid, limit) >= limit {
				found[id][pid] = true
			}
		}
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	for id, now := range found {
		sb.files.note(id, now)
	}
	for id := range sb.files {
		if found[id] == nil && sb.execs[id] == nil {
			if n := sb.files.take(id); n > 0 {
				sb.hits["files"] += n
			}
			delete(sb.files, id)
		}
	}
}

// descriptors is how many a process has, counted up to most. Since Linux 6.2
// it is the size of /proc/PID/fd (fs/proc/fd.c, proc_fd_getattr).
func descriptors(pid int, most int64) int64 {
	path := fmt.Sprintf("/proc/%d/fd", pid)
	if st, err := os.Stat(path); err != nil || st.Size() > 0 {
		if err != nil {
			return 0
		}
		return st.Size()
	}
	dir, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(int(most))
	return int64(len(names))
}

// fullPlaces counts the writable file systems of the sandbox that refuse one
// more byte or one more file.
func (sb *sandbox) fullPlaces() (n int64) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", sb.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0 // it has just ended
	}
	defer unix.Close(root)
	ro := sb.fixed.Sandbox.Rootfs == "readonly"
	places := []string{}
	if !ro {
		places = append(places, "/")
	}
	for _, t := range spec.TmpfsOf(sb.fixed.Sandbox.Limits, ro, sb.fixed.Request.Home == "persistent") {
		places = append(places, t.Target)
	}
	for _, m := range volume.Mounts(sb.fixed.Request) {
		if m.Volume != "" && !m.ReadOnly {
			places = append(places, m.Target)
		}
	}
	for _, p := range places {
		if full(root, p) {
			n++
		}
	}
	return n
}

// full asks one file system. Nothing is opened for reading and no link is
// followed: the agent cannot lead it elsewhere.
func full(root int, path string) bool {
	rel := strings.TrimPrefix(path, "/")
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(root, rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false
	}
	return isFull(st)
}

// nearly is what a volume, or an overlay on such a file system, may call
// available when it has refused to give more: ext4 keeps some blocks back for its own trees, 0.5% of
// a small one (measured: 60 blocks of 12,092, 166 of 100,786).
const nearly = 1 << 20

func isFull(st unix.Statfs_t) bool {
	left := uint64(0)
	if st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.EXT4_SUPER_MAGIC {
		left = min(nearly/uint64(max(st.Bsize, 1)), st.Blocks/100)
	}
	return st.Blocks > 0 && (st.Bavail <= left || st.Files > 0 && st.Ffree == 0)
}
