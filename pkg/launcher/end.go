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
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/store"
)

// Times within which parts of an end happen on any host that works.
const (
	killTimeout  = 10 * time.Second
	drainTimeout = 2 * time.Second
)

// end ends the sandbox, once: the first reason stands. It returns at once;
// done is closed when the sandbox has ended.
func (sb *sandbox) end(why api.Reason, code *int) {
	sb.mu.Lock()
	if sb.ending {
		sb.mu.Unlock()
		return
	}
	sb.ending = true
	sb.mu.Unlock()
	sb.l.background(func(context.Context) {
		ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
		defer cancel()
		sb.finish(ctx, why, code)
	})
}

// finish takes a sandbox from running to stopped, and then cleans up.
func (sb *sandbox) finish(ctx context.Context, why api.Reason, code *int) {
	if why == api.ReasonOOM {
		sb.tellOOM(mainID)
	}
	log := sb.l.log.With(slog.String("sandbox", sb.id))
	err := sb.moveOn(api.StateStopping, func(r *store.Record) {
		// All of it now: the next daemon could not find out how it ended.
		r.Sandbox.Reason, r.Sandbox.ExitCode = why, exitCode(why, code)
		switch {
		case sb.signaled != 0:
			r.MainSignal = sb.signaled
		case code == nil && len(r.Request.Command) > 0:
			r.MainSignal = int(unix.SIGKILL) // with all the others
		}
	})
	if err != nil {
		log.ErrorContext(ctx, "state not recorded", slog.Any("error", err))
	}
	if err := failpoint.Hit("end.stopping"); err != nil {
		log.ErrorContext(ctx, "failpoint", slog.Any("error", err))
	}
	childless := make(chan struct{})
	go func() { sb.endChildren(); close(childless) }()
	sb.countLast()
	if err := sb.killAll(ctx); err != nil {
		log.ErrorContext(ctx, "not all processes ended", slog.Any("error", err))
	}
	sb.drainLog(ctx)
	<-childless
	now := time.Now().UTC()
	var hits map[string]int64
	var once sync.Once
	err = sb.moveOn(api.StateStopped, func(r *store.Record) {
		r.Sandbox.Ended, r.Sandbox.Execs, r.Sandbox.PID = now, 0, 0
		once.Do(func() {
			hits = sb.hitsLocked()
			sb.hits = map[string]int64{} // they are in the record now
		})
		r.Sandbox.LimitsHit = hits
	})
	if err != nil {
		log.ErrorContext(ctx, "state not recorded", slog.Any("error", err))
	}
	fields := []string{"reason", string(why)}
	if c := exitCode(why, code); c != nil {
		fields = append(fields, "exit_code", fmt.Sprint(*c))
	}
	for _, k := range slices.Sorted(maps.Keys(hits)) {
		fields = append(fields, "limits_hit."+k, fmt.Sprint(hits[k]))
	}
	sb.l.publish("sandbox.stopped", sb.identity(), fields...)
	sb.markDone()
	sb.release()
	sb.cleanUp()
}

// exitCode is the main command's own, or what stands for what ended it.
func exitCode(why api.Reason, code *int) *int {
	if why == api.ReasonTimeout {
		c := exitTimeout
		return &c
	}
	if code != nil {
		return code
	}
	c := exitSignaled + int(unix.SIGKILL)
	if why == api.ReasonStopped {
		c = 0 // a sandbox without a main command ended because somebody said so
	}
	return &c
}

// killAll ends every process. The end of PID 1 is the end of its pid
// namespace, in the kernel, with nothing to race against (pid_namespaces(7));
// the cgroup is killed as well in case PID 1 is stuck.
func (sb *sandbox) killAll(ctx context.Context) error {
	if sb.cg != nil {
		_ = sb.cg.Thaw(ctx) // a v1 frozen process does not die
	}
	var errs []error // one way failing does not spare the other
	if sb.pidfd != nil {
		errs = append(errs, signalPidfd(sb.pidfd, unix.SIGKILL))
	}
	if sb.cg != nil {
		errs = append(errs, sb.cg.Kill(ctx))
	}
	if sb.pidfd != nil {
		if deadline, ok := ctx.Deadline(); ok {
			_ = sb.pidfd.SetReadDeadline(deadline)
		}
		errs = append(errs, waitPidfd(sb.pidfd))
	}
	return errors.Join(errs...)
}

// drainLog waits until the pipes are at their end, so that the last output is
// in the log before anybody is told that the sandbox has ended.
func (sb *sandbox) drainLog(ctx context.Context) {
	if sb.log == nil {
		return
	}
	sb.log.Drain()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	captured := make(chan struct{})
	go func() { sb.output.Wait(); close(captured) }()
	select {
	case <-captured:
	case <-ctx.Done():
		sb.l.log.WarnContext(ctx, "output may be incomplete", slog.String("sandbox", sb.id))
	}
}

// cleanUp takes back every effect of an ended sandbox. What fails stays in
// the record, and is tried again by retry and by the next daemon.
func (sb *sandbox) cleanUp() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*killTimeout)
	defer cancel()
	if err := sb.l.undoAll(ctx, sb.id); err != nil {
		sb.l.log.ErrorContext(ctx, "clean-up is not complete; will be tried again", slog.String("sandbox", sb.id), slog.Any("error", err))
		sb.l.note(sb, err)
		return
	}
	sb.cleaned()
}

// cleaned records that nothing is left, forgets the sandbox if it was to be
// removed, and then gives its id range back.
func (sb *sandbox) cleaned() {
	sb.mu.Lock()
	next := sb.rec
	next.Clean, next.Undo, next.Sandbox.Problem = true, nil, ""
	later := next.Request.Remove && next.Request.Attach && next.Sandbox.State != api.StateRemoving
	forget := next.Sandbox.State == api.StateRemoving || next.Request.Remove && !later
	var err error
	if !forget {
		err = sb.putLocked(next)
	}
	if err == nil {
		sb.rec = next
		sb.markGone() // from here on it is remove that drops
	}
	sb.mu.Unlock()
	if forget {
		err = sb.l.drop(sb)
	}
	if err != nil {
		sb.l.log.Error("state not recorded; will be tried again", slog.String("sandbox", sb.id), slog.Any("error", err))
		sb.l.note(sb, err)
		return
	}
	sb.freeIDs()
	sb.l.excess.more.Store(true)
	if later {
		sb.l.background(sb.removeWhenRead)
	}
}

// removeWhenRead removes an ended sandbox that was to be removed, and whose
// client said that it would attach. When the daemon stops first, the next one
// does it.
func (sb *sandbox) removeWhenRead(ctx context.Context) {
	if sb.untilRead(ctx) != nil {
		return
	}
	if err := sb.remove(ctx, false); err != nil {
		sb.l.log.ErrorContext(ctx, "sandbox not removed; will be tried again", slog.String("sandbox", sb.id), slog.Any("error", err))
		sb.l.note(sb, err)
	}
}

// note keeps what could not be undone, for people and for the next try.
func (l *Launcher) note(sb *sandbox, err error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.dropped {
		return
	}
	sb.rec.Undo = []string{err.Error()}
	sb.rec.Sandbox.Problem = err.Error()
	if perr := sb.putLocked(sb.rec); perr != nil {
		l.log.Error("state not recorded", slog.String("sandbox", sb.id), slog.Any("error", perr))
	}
}

// unknown marks a launch whose undo failed.
func (l *Launcher) unknown(sb *sandbox, err error) {
	sb.amend(func(r *store.Record) { r.Sandbox.State = api.StateUnknown })
	sb.hold(sb.countLocked)
	l.note(sb, err)
}

// forget removes every trace of a sandbox that never ran.
func (l *Launcher) forget(sb *sandbox) error {
	if err := failpoint.Hit("undo.record"); err != nil {
		return err
	}
	if err := l.drop(sb); err != nil {
		return err
	}
	sb.markGone()
	sb.freeIDs()
	return nil
}

// drop removes the record and the logs: the last that is left. Once it has
// succeeded, it does nothing.
func (l *Launcher) drop(sb *sandbox) error {
	if sb.fixed.Request.Logs == noLogs {
		if err := sb.dropOutput(); err != nil {
			return err
		}
	}
	sb.mu.Lock()
	if sb.dropped {
		sb.mu.Unlock()
		return nil
	}
	err := os.RemoveAll(l.logDir(sb.id))
	if err == nil {
		err = l.Store.DeleteSandbox(sb.id)
	}
	sb.dropped = err == nil
	if sb.dropped {
		l.tally.Drop(sb.id)
	}
	sb.mu.Unlock()
	if err != nil {
		return err
	}
	l.mu.Lock()
	delete(l.sandboxes, sb.id)
	l.mu.Unlock()
	l.publish("sandbox.removed", sb.identity())
	return nil
}

// removed says whether the sandbox is forgotten, or about to be.
func (sb *sandbox) removed() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.dropped || sb.rec.Sandbox.State == api.StateRemoving
}

// stop asks the main command to end, and ends the sandbox after grace.
func (sb *sandbox) stop(ctx context.Context, grace time.Duration) error {
	sb.mu.Lock()
	state, ending := sb.rec.Sandbox.State, sb.ending
	sb.mu.Unlock()
	if ended(state) {
		return nil
	}
	if !ending {
		if state == api.StatePaused {
			if err := sb.resume(ctx); err != nil {
				return err
			}
		}
		if len(sb.fixed.Request.Command) > 0 && grace > 0 {
			sb.asked(api.ReasonStopped)
			if err := sb.signalMain(unix.SIGTERM); err != nil {
				return err
			}
			t := time.NewTimer(grace)
			defer t.Stop()
			select {
			case <-sb.done:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-t.C:
			}
		}
		sb.end(api.ReasonStopped, nil)
	}
	select {
	case <-sb.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// kill sends a signal to the main command; SIGKILL ends the sandbox.
func (sb *sandbox) kill(sig unix.Signal) error {
	if ended(sb.state()) {
		return api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	if sig == unix.SIGKILL {
		sb.end(api.ReasonKilled, nil)
		return nil
	}
	return sb.signalMain(sig)
}

// pause freezes the agent's processes. why is ReasonIdle or ReasonDisk, or
// empty if somebody asked for it.
func (sb *sandbox) pause(ctx context.Context, why api.Reason) error {
	if !sb.still.TryRLock() {
		return sb.committing()
	}
	defer sb.still.RUnlock()
	if err := checkMove(sb.state(), api.StatePaused); err != nil {
		return err
	}
	if err := sb.cg.Freeze(ctx); err != nil {
		return err
	}
	idle := why == api.ReasonIdle
	if err := sb.move(api.StatePaused, func(r *store.Record) {
		r.IdlePaused = idle
		if why == api.ReasonDisk {
			r.Sandbox.Reason = why
		}
	}); err != nil {
		_ = sb.cg.Thaw(context.WithoutCancel(ctx))
		return err
	}
	sb.mu.Lock()
	sb.idle = idle
	sb.mu.Unlock()
	fields := []string{"idle", fmt.Sprint(idle)}
	if why == api.ReasonDisk {
		fields = append(fields, "reason", string(why))
	}
	sb.l.publish("sandbox.paused", sb.identity(), fields...)
	return nil
}

// pauseIdle pauses a sandbox unless somebody has come for it since it was
// found idle.
func (sb *sandbox) pauseIdle(ctx context.Context, after time.Duration) error {
	if err := failpoint.Hit("idle.due"); err != nil {
		return err
	}
	sb.waking.Lock()
	defer sb.waking.Unlock()
	sb.mu.Lock()
	came := time.Since(sb.busy) < after || sb.clients > 0
	sb.mu.Unlock()
	if came {
		return nil
	}
	if err := failpoint.Hit("idle.pausing"); err != nil {
		return err
	}
	return sb.pause(ctx, api.ReasonIdle)
}

func (sb *sandbox) resume(ctx context.Context) error {
	if err := sb.mayRun(); err != nil {
		return err
	}
	if !sb.still.TryRLock() {
		return sb.committing()
	}
	defer sb.still.RUnlock()
	if err := checkMove(sb.state(), api.StateRunning); err != nil {
		return err
	}
	if err := sb.cg.Thaw(ctx); err != nil {
		return err
	}
	sb.mu.Lock()
	sb.idle, sb.busy = false, time.Now()
	sb.mu.Unlock()
	if err := sb.move(api.StateRunning, func(r *store.Record) { r.IdlePaused, r.Sandbox.Reason = false, "" }); err != nil {
		return err
	}
	sb.l.publish("sandbox.resumed", sb.identity())
	return nil
}

// remove forgets an ended sandbox. What is left of it in the kernel goes on
// being cleaned up after the answer; its name is free at once.
func (sb *sandbox) remove(ctx context.Context, force bool) error {
	switch state := sb.state(); {
	case state == api.StateRemoving:
		return nil
	case !ended(state) && !force:
		return api.Errorf(api.CodeConflict, "sandbox %s is %s", sb.id, state).WithHint("creel stop it first, or creel rm -f")
	case !ended(state):
		sb.end(api.ReasonKilled, nil)
		select {
		case <-sb.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := sb.move(api.StateRemoving, func(r *store.Record) { r.Sandbox.Name = sb.id }); err != nil {
		if sb.removed() {
			return nil // somebody else was faster
		}
		return err
	}
	select {
	case <-sb.gone: // nothing is left but the record and the logs
		return sb.l.drop(sb)
	default: // the clean-up sees the state, and drops
		return nil
	}
}
