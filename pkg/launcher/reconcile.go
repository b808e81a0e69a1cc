package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/verify"
)

// Reconcile makes the records and the kernel agree after a restart, however
// the last daemon ended: what runs is taken over and proven again, what was
// half made or half removed is undone, and what carries an id that no record
// knows is removed. It returns when that is done; what could not be is in
// the records, and is tried again.
func (l *Launcher) Reconcile(ctx context.Context) error {
	if err := l.dropSpares(); err != nil {
		return err
	}
	// Their clients were the last daemon's, and went away with it.
	if err := l.Store.LoseExecs(time.Now()); err != nil {
		return err
	}
	var recs []store.Record
	if err := l.Store.Sandboxes(func(r store.Record) error {
		recs = append(recs, r)
		return nil
	}); err != nil {
		return err
	}
	l.mu.Lock()
	for _, r := range recs {
		l.keys.restore(&r, time.Now())
		l.sandboxes[r.Sandbox.ID] = l.newSandbox(r, nil)
	}
	for _, sb := range l.sandboxes {
		sb.parent = l.sandboxes[sb.fixed.Sandbox.Parent]
	}
	l.mu.Unlock()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(l.launches))
	for _, sb := range l.all() {
		sb.hold(sb.countLocked)
		g.Go(func() error { l.reconcile(gctx, sb); return nil })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(l.removeStrangers(ctx), l.volumes.Settle(ctx), l.Runtime.PruneMounts())
}

// prune tidies up after launches that failed in the runtime, in a moment in
// which no other is under way.
func (l *Launcher) prune(ctx context.Context) {
	held := 0
	defer func() {
		for range held {
			<-l.launches
		}
	}()
	for range cap(l.launches) {
		select {
		case l.launches <- struct{}{}:
			held++
		default:
			return // the next tick tries again
		}
	}
	if err := l.Runtime.PruneMounts(); err != nil {
		l.log.ErrorContext(ctx, "mounts of a failed launch are left; will be tried again", slog.Any("error", err))
		return
	}
	l.broken.Store(false)
}

// reconcile settles one record.
func (l *Launcher) reconcile(ctx context.Context, sb *sandbox) {
	log := l.log.With(slog.String("sandbox", sb.id))
	state := sb.rec.Sandbox.State
	switch state {
	case api.StateRunning, api.StatePaused:
		err := sb.takeOver(ctx)
		if err == nil {
			log.InfoContext(ctx, "sandbox taken over")
			l.publish("sandbox.adopted", sb.identity())
			return
		}
		if ctx.Err() != nil {
			return // stopped while starting: it is the next daemon's to take over
		}
		log.WarnContext(ctx, "sandbox cannot be taken over and is ended", slog.Any("error", err))
		sb.ending = true
		sb.finish(ctx, api.ReasonDied, nil)
	case api.StateStopping:
		// finish makes the move again, with what the last daemon found out.
		sb.rec.Sandbox.State, sb.ending = api.StateRunning, true
		if err := sb.salvage(ctx); err != nil {
			log.DebugContext(ctx, "no last output of a sandbox that was ending", slog.Any("error", err))
		}
		sb.finish(ctx, sb.rec.Sandbox.Reason, sb.rec.Sandbox.ExitCode)
	case api.StateStopped:
		sb.markDone()
		if sb.rec.Clean {
			sb.markGone()
			if sb.rec.Request.Remove {
				l.background(sb.removeWhenRead)
			}
			return
		}
		sb.cleanUp()
	case api.StateRemoving:
		sb.markDone()
		sb.cleanUp() // and drops
	case api.StateCreating, api.StateUnknown:
		fallthrough
	default: // half made
		sb.markDone()
		err := l.undoAll(ctx, sb.id)
		if err == nil {
			err = l.forget(sb)
		}
		if err != nil {
			log.ErrorContext(ctx, "half-made sandbox could not be undone; will be tried again", slog.Any("error", err))
			l.unknown(sb, err)
		}
	}
}

// reopen takes the handles on PID 1 and its cgroup, if it is still that
// process.
func (sb *sandbox) reopen() error {
	r := &sb.rec
	if r.BootID != bootID() {
		return errors.New("the host was restarted")
	}
	pidfd, err := openPidfd(r.InitPID)
	if err != nil {
		return err
	}
	// The start time is read after the pidfd holds the process, so that it
	// is this process's.
	start, err := verify.StartTime(r.InitPID)
	if err != nil || start != r.InitStart {
		_ = pidfd.Close()
		return fmt.Errorf("pid %d is not PID 1 of the sandbox any more: %w", r.InitPID, errors.Join(err))
	}
	cg, err := sb.l.Cgroups.Reopen(sb.id, r.InitPID, cgroupLimits(r.Sandbox.Limits))
	if err != nil {
		_ = pidfd.Close()
		return err
	}
	sb.hold(func() { sb.pid, sb.pidfd, sb.cg = r.InitPID, pidfd, cg })
	return nil
}

// keep finds PID 1's parent again. Another one than before means that the
// shim was killed, and PID 1 is nobody's.
func (sb *sandbox) keep() error {
	keeper, err := sb.openKeeper()
	if err != nil {
		return err
	}
	if r := &sb.rec; keeper.pid != r.KeeperPID || keeper.start != r.KeeperStart {
		return fmt.Errorf("the parent of PID 1 is %d and was %d: its shim has ended", keeper.pid, r.KeeperPID)
	}
	return nil
}

// takeOver makes a running sandbox this daemon's: the channel is taken again
// from PID 1, the log goes on where it stopped, and execs whose clients went
// away with the last daemon are ended.
func (sb *sandbox) takeOver(ctx context.Context) error {
	if err := sb.reopen(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, takeOverTimeout)
	defer cancel()
	if err := sb.refreeze(ctx); err != nil {
		return err
	}
	if err := sb.keep(); err != nil {
		return errors.Join(err, sb.salvage(ctx)) // its last output, before it ends
	}
	live, finished, err := sb.takeChannel(ctx)
	if err != nil {
		return err
	}
	if err := sb.endLost(ctx, live, finished); err != nil {
		return err
	}
	if err := sb.socketsAgain(ctx); err != nil {
		return err
	}
	if err := sb.proveAgain(ctx, "reconcile"); err != nil {
		return err
	}
	sb.watch()
	return nil
}

// takeOverTimeout bounds all of one sandbox's taking over.
const takeOverTimeout = 2 * channelTimeout

// refreeze makes the freezer agree with the record: a daemon can be killed
// between the two.
func (sb *sandbox) refreeze(ctx context.Context) error {
	if sb.rec.Sandbox.State == api.StatePaused {
		return sb.cg.Freeze(ctx)
	}
	return sb.cg.Thaw(ctx)
}

// takeChannel takes the channel and the main command's streams, and goes on
// with the log.
func (sb *sandbox) takeChannel(ctx context.Context) ([]agentinit.Live, []agentinit.Finished, error) {
	ctx, cancel := context.WithTimeout(ctx, channelTimeout)
	defer cancel()
	host, err := takeHost(ctx, sb.pidfd)
	if err != nil {
		return nil, nil, err
	}
	sb.hold(func() { sb.host = host })
	if _, err := host.Hello(ctx); err != nil {
		return nil, nil, err
	}
	live, finished, err := host.Resume(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := sb.openLogs(); err != nil {
		return nil, nil, err
	}
	return live, finished, sb.takeStreams(live, finished)
}

// salvage takes hold of a sandbox that was ending when the last daemon was
// killed, so that what is left in its pipes reaches the log.
func (sb *sandbox) salvage(ctx context.Context) error {
	if sb.pidfd == nil {
		if err := sb.reopen(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	_, _, err := sb.takeChannel(ctx)
	return err
}

// takeStreams takes the main command's streams from PID 1 again.
func (sb *sandbox) takeStreams(live []agentinit.Live, finished []agentinit.Finished) (err error) {
	if len(sb.fixed.Request.Command) == 0 {
		return nil
	}
	var kept []int
	for _, p := range live {
		if p.ID == mainID {
			kept = p.KeepFDs
		}
	}
	for _, p := range finished {
		if p.ID == mainID {
			kept, sb.mainEnded = p.KeepFDs, true
		}
	}
	var files []*os.File
	defer func() {
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
		}
	}()
	for _, n := range kept {
		f, err := sb.takeKept(n)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if sb.fixed.Request.TTY {
		if len(files) != 1 {
			return fmt.Errorf("PID 1 keeps %d descriptors of the terminal, want 1", len(files))
		}
		sb.adoptMain(&stdio{master: files[0]})
		return nil
	}
	if len(files) < keptStdin || len(files) > keptStdin+1 {
		return fmt.Errorf("PID 1 keeps %d descriptors of the main command, want %d or %d", len(files), keptStdin, keptStdin+1)
	}
	s := &stdio{stdout: files[keptOut], stderr: files[keptErr]}
	if len(files) > keptStdin {
		s.stdin = files[keptStdin]
	}
	sb.adoptMain(s)
	return nil
}

// takeKept takes one descriptor from PID 1. Which one is PID 1's word, so it
// is looked at before it is used: a pipe or a terminal, nothing else.
func (sb *sandbox) takeKept(n int) (*os.File, error) {
	var fd int
	err := control(sb.pidfd, func(pidfd int) (err error) {
		fd, err = unix.PidfdGetfd(pidfd, n, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of PID 1: %w", n, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFIFO && kind != unix.S_IFCHR {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("descriptor %d of PID 1 is neither a pipe nor a terminal", n)
	}
	return os.NewFile(uintptr(fd), "kept"), nil // nonblocking since it was made
}

// endLost ends the commands of the last daemon's clients, which went away with
// it, and forgets the results nobody waits for. What commands that had ended
// before left running, as "nohup server &" does, stays: PID 1 has forgotten
// those commands, because the last daemon had acknowledged their end.
func (sb *sandbox) endLost(ctx context.Context, live []agentinit.Live, finished []agentinit.Finished) error {
	lost, kept := map[string]bool{}, map[string][]int{}
	for _, p := range live {
		if p.ID == mainID {
			continue
		}
		lost[p.ID], kept[p.ID] = true, p.KeepFDs
		if !p.Released {
			// It waits in PID 1's leaf; it has executed nothing.
			if err := sb.host.Cancel(ctx, p.ID); err != nil && !errors.Is(err, agentinit.ErrUnknown) {
				return err
			}
		}
	}
	for _, p := range finished {
		lost[p.ID], kept[p.ID] = p.ID != mainID, p.KeepFDs
	}
	told, err := sb.told()
	if err != nil {
		return err
	}
	for _, id := range sb.cg.Execs() {
		cg, err := sb.cg.Exec(id)
		if err != nil {
			return err
		}
		pids, err := cg.Pids()
		switch {
		case id == mainID:
			continue
		case err == nil && len(pids) > 0 && !lost[id]:
			sb.sweep(cg) // when they have ended
			continue
		case err != nil:
			return err
		}
		if err := errors.Join(cg.Kill(ctx), cg.Remove()); err != nil {
			return fmt.Errorf("exec %s: %w", id, err)
		}
	}
	for id, is := range lost {
		if !is {
			continue
		}
		sb.salvageOutput(id, kept[id])
		if !told[id] {
			sb.l.publish("exec.ended", sb.identity(), "exec", id, "reason", string(api.ReasonLost))
		}
		// A canceled one is forgotten already; of the others PID 1 tells the
		// end in a moment.
		if _, err := sb.host.Wait(ctx, id); !errors.Is(err, agentinit.ErrUnknown) {
			_ = sb.host.Ack(ctx, id)
		}
	}
	return nil
}

// told are the execs whose end is on record: only their output was still on its
// way when the last daemon was killed.
func (sb *sandbox) told() (map[string]bool, error) {
	execs, err := sb.l.Store.Execs(sb.id)
	out := map[string]bool{}
	for _, e := range execs {
		out[e.ID] = e.Reason != "" && e.Reason != api.ReasonLost
	}
	return out, err
}

// salvageOutput moves to the log what the pipes of a command that has ended
// still have. Nothing of that keeps its sandbox from being taken over.
func (sb *sandbox) salvageOutput(id string, kept []int) {
	if sb.execLog == nil || len(kept) > 2 {
		return
	}
	for i, n := range kept { // of two the errors', of one that is left too
		f, err := sb.takeKept(n)
		if err == nil {
			err = errors.Join(unix.SetNonblock(int(f.Fd()), true), sb.execLog.Salvage(id, []byte{logs.Stderr, logs.Stdout}[i], f), f.Close())
		}
		if err != nil {
			sb.l.log.Warn("last output of a command not kept", slog.String("sandbox", sb.id), slog.String("exec", id), slog.Any("error", err))
		}
	}
}

// removeStrangers removes what carries an id that no record knows: left by a
// crash between an effect and its record, or by a lost state file. Nobody
// knows the id range of such a sandbox, so while it may have processes no
// range can be given to another: that is an error, and creeld does not start.
func (l *Launcher) removeStrangers(ctx context.Context) error {
	ids, err := l.Leftovers(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		l.log.WarnContext(ctx, "removing what no record knows", slog.String("sandbox", id))
		err := errors.Join(l.undoAll(ctx, id), os.RemoveAll(l.logDir(id)))
		if err == nil {
			continue
		}
		l.log.ErrorContext(ctx, "leftover not removed", slog.String("sandbox", id), slog.Any("error", err))
		running, lerr := l.Cgroups.List()
		if lerr != nil || slices.Contains(running, id) {
			return fmt.Errorf("sandbox %s has no record and its processes cannot be ended; end them and start creeld again: %w", id, errors.Join(err, lerr))
		}
	}
	return nil
}

// Leftovers are the ids that something in the kernel or on disk carries and
// no record knows.
func (l *Launcher) Leftovers(ctx context.Context) ([]string, error) {
	ids, err := l.Runtime.IDs(ctx)
	if err != nil {
		return nil, err
	}
	more, err := l.Cgroups.List()
	if err != nil {
		return nil, err
	}
	layers, err := l.layers.List()
	if err != nil {
		return nil, err
	}
	ids = slices.Concat(ids, more, layers)
	if l.Peers != nil {
		guarded, err := l.Peers.List()
		if err != nil {
			return nil, err
		}
		ids = append(ids, guarded...)
	}
	reaching, err := l.egressIDs()
	if err != nil {
		return nil, err
	}
	ids = append(ids, reaching...)
	for _, dir := range []string{filepath.Join(l.RunDir, "sandboxes"), filepath.Join(l.StateDir, "logs")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(ids, func(id string) bool { return l.sandboxes[id] != nil }), nil
}

// InUse is the id ranges of records, for the pool, before a Launcher exists.
func InUse(s *store.Store) ([]uint32, error) {
	var in []uint32
	err := s.Sandboxes(func(r store.Record) error {
		if !r.Clean {
			in = append(in, r.Sandbox.HostUID)
		}
		return nil
	})
	return in, err
}
