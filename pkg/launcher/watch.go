package launcher

import (
	"context"
	"errors"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
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
	if err := sb.cg.WatchOOM(sb.l.ctx, func(exec string) { sb.oom(exec) }); err != nil {
		sb.l.log.Error("OOM kills will not be told at once", "sandbox", sb.id, "error", err)
	}
	if len(sb.fixed.Request.Command) == 0 {
		return
	}
	sb.l.background(sb.watchMain)
	if d := sb.fixed.Request.Timeout; d > 0 {
		left := time.Until(sb.view().Started.Add(d.D()))
		sb.mu.Lock()
		sb.timeout = time.AfterFunc(left, func() { sb.end(api.ReasonTimeout, nil) })
		sb.mu.Unlock()
	}
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
	l.background(l.fillSpares)
	l.background(func(ctx context.Context) {
		t := time.NewTicker(tick)
		defer t.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case now := <-t.C:
				l.check(ctx, now, n)
			}
		}
	})
}

// retryEvery is how many ticks lie between two tries of a failed clean-up.
const retryEvery = 30

func (l *Launcher) check(ctx context.Context, now time.Time, n int) {
	for _, sb := range l.all() {
		switch sb.state() {
		case api.StateRunning:
			sb.checkLimits(ctx, now)
			sb.checkEvidence(ctx, now)
		case api.StatePaused:
			sb.checkTTL(now)
		case api.StateStopped, api.StateRemoving, api.StateUnknown:
			if n%retryEvery == 0 || failpoint.On("watch.fastretry") {
				sb.retry()
			}
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
	if err := sb.pause(ctx, true); err != nil {
		sb.l.log.WarnContext(ctx, "idle sandbox not paused", "sandbox", sb.id, "error", err)
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
		sb.l.background(func(context.Context) { _, _ = sb.proveAgain(ctx, "timer") })
	}
}

// retry cleans up what an earlier try could not.
func (sb *sandbox) retry() {
	sb.mu.Lock()
	pending := len(sb.rec.Undo) > 0
	state := sb.rec.Sandbox.State
	sb.mu.Unlock()
	if !pending {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	if err := sb.l.undoAll(ctx, sb.id); err != nil {
		sb.l.note(sb, err)
		return
	}
	if state == api.StateUnknown {
		if err := sb.l.forget(sb); err != nil {
			sb.l.note(sb, errors.Join(err))
		}
		return
	}
	sb.cleaned()
}

// oom ends the exec in which the OOM killer struck, as a whole: half a build
// is worse than none. Its neighbours go on.
func (sb *sandbox) oom(execID string) {
	sb.l.publish("sandbox.oom", sb.identity(), "exec", execID)
	if execID == mainID {
		sb.end(api.ReasonOOM, nil)
		return
	}
	sb.mu.Lock()
	s := sb.execs[execID]
	sb.mu.Unlock()
	if s != nil {
		s.end(api.ReasonOOM)
	}
}
