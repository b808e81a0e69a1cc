package launcher

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/reserve"
	"github.com/creel-sandbox/creel/pkg/retention"
)

// kept is what is on disk of one sandbox.
type kept struct {
	sb      *sandbox
	rec     api.Sandbox
	ended   bool // and nothing but its record and its log is left
	layer   bool
	layers  int64 // bytes
	logs    int64
	records int64
}

// keptOf measures the sandboxes that a caller may see, oldest end first.
func (l *Launcher) keptOf(c peer.Cred) ([]kept, error) {
	var out []kept
	var ids []string
	for _, sb := range l.all() {
		if l.mayUse(c, sb) {
			out = append(out, kept{sb: sb})
			ids = append(ids, sb.id)
		}
	}
	records, err := l.Store.Kept(ids)
	if err != nil {
		return nil, err
	}
	for i := range out {
		k := &out[i]
		k.records = records[k.sb.id].Bytes
		if err := k.measure(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b kept) int { return a.rec.Ended.Compare(b.rec.Ended) })
	return out, nil
}

func (k *kept) measure() (err error) {
	sb := k.sb
	sb.mu.Lock()
	k.rec, k.layer = sb.rec.Sandbox, sb.rec.RootfsKind != "" && !sb.rec.Clean
	k.ended = k.rec.State == api.StateStopped && sb.rec.Clean
	sb.mu.Unlock()
	if k.layer {
		if k.layers, err = sb.l.layers.Usage(sb.id); err != nil {
			return err
		}
	}
	k.logs, err = logs.Usage(sb.l.logDir(sb.id))
	return err
}

// retainEvery is how often what is kept is held against its bounds when no
// sandbox has ended meanwhile: time alone makes things too old.
const retainEvery = time.Minute

// retainer is when that was done last. The zero value is due.
type retainer struct {
	more    atomic.Bool // a sandbox has ended since
	running atomic.Bool
	last    time.Time // of the watch alone
}

// retain removes, when it is time, what is kept beyond the bounds.
func (l *Launcher) retain(now time.Time) {
	r := &l.excess
	if !r.more.Load() && now.Sub(r.last) < retainEvery || !r.running.CompareAndSwap(false, true) {
		return
	}
	r.more.Store(false)
	r.last = now
	l.background(func(ctx context.Context) {
		defer r.running.Store(false)
		if err := l.removeExcess(ctx, now); err != nil {
			l.log.ErrorContext(ctx, "what is kept is not within its bounds; will be tried again", slog.Any("error", err))
		}
	})
}

// removeExcess removes ended sandboxes until all bounds hold.
func (l *Launcher) removeExcess(ctx context.Context, now time.Time) error {
	byID := map[string]*sandbox{}
	var all []retention.Ended
	for _, sb := range l.all() {
		e, err := sb.leftover()
		if err != nil {
			return err
		}
		if e != nil {
			all, byID[e.ID] = append(all, *e), sb
		}
	}
	var errs []error
	for _, id := range retention.Excess(now, l.Retention, all) {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the daemon stops; it is the next one's to do
		}
		l.log.InfoContext(ctx, "ended sandbox is kept no longer", slog.String("sandbox", id))
		errs = append(errs, byID[id].remove(ctx, false))
	}
	return errors.Join(errs...)
}

// leftover is what is kept of a sandbox that has ended, nil of any other. It
// is measured once.
func (sb *sandbox) leftover() (*retention.Ended, error) {
	sb.mu.Lock()
	left, over := sb.left, sb.rec.Sandbox.State == api.StateStopped && sb.rec.Clean
	e := retention.Ended{ID: sb.id, UID: sb.rec.Sandbox.Caller.UID, At: sb.rec.Sandbox.Ended}
	sb.mu.Unlock()
	if !over || left != nil {
		return left, nil
	}
	bytes, err := logs.Usage(sb.l.logDir(sb.id))
	if err != nil {
		return nil, err
	}
	records, err := sb.l.Store.Kept([]string{sb.id})
	if err != nil {
		return nil, err
	}
	e.LogBytes, e.Evidence = bytes, records[sb.id].Evidence
	sb.hold(func() { sb.left = &e })
	return &e, nil
}

// DiskUse is what the caller's sandboxes take.
func (l *Launcher) DiskUse(c peer.Cred) ([]api.DiskUse, error) {
	all, err := l.keptOf(c)
	if err != nil {
		return nil, err
	}
	type key struct {
		what string
		uid  uint32
	}
	rows := map[key]*api.DiskUse{}
	add := func(what string, k kept, bytes int64) {
		at := key{what, k.rec.Caller.UID}
		if rows[at] == nil {
			rows[at] = &api.DiskUse{What: what, UID: at.uid}
		}
		r := rows[at]
		r.Count++
		r.Bytes += bytes
		if k.ended {
			r.ReclaimableCount++
			r.ReclaimableBytes += bytes
		}
	}
	for _, k := range all {
		if k.layer {
			add("layers", k, k.layers)
		}
		if k.logs > 0 {
			add("logs", k, k.logs)
		}
		add("records", k, k.records)
	}
	out := make([]api.DiskUse, 0, len(rows))
	for _, r := range rows {
		out = append(out, *r)
	}
	return out, nil
}

// ImagesInUse are the digests of images that sandboxes run from. An ended
// sandbox needs none: it does not come back.
func (l *Launcher) ImagesInUse() map[string]bool {
	out := map[string]bool{}
	for _, sb := range l.all() {
		sb.mu.Lock()
		if !sb.rec.Clean {
			out[sb.rec.Sandbox.ImageDigest] = true
		}
		sb.mu.Unlock()
	}
	return out
}

// IfUnused calls remove if no sandbox runs from the image, and says whether it
// did. None begins to meanwhile.
func (l *Launcher) IfUnused(digest string, remove func() error) (unused bool, err error) {
	l.imageMu.Lock()
	defer l.imageMu.Unlock()
	if l.ImagesInUse()[digest] {
		return false, nil
	}
	return true, remove()
}

// PruneEnded removes what is kept of sandboxes that ended before a moment:
// the caller's own, for root everybody's.
func (l *Launcher) PruneEnded(ctx context.Context, c peer.Cred, before time.Time, dryRun bool) ([]api.Pruned, error) {
	l.settle(ctx, c)
	all, err := l.keptOf(c)
	if err != nil {
		return nil, err
	}
	out := []api.Pruned{}
	for _, k := range all {
		if !k.ended || !k.rec.Ended.Before(before) {
			continue
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		p := api.Pruned{What: "sandbox", ID: k.rec.ID, Name: k.rec.Name, UID: k.rec.Caller.UID, Time: k.rec.Ended, Bytes: k.logs + k.records}
		if !dryRun {
			if err := k.sb.remove(ctx, false); err != nil {
				p.Problem = problemOf(err)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// settleTime is how long a prune waits for clean-ups that are under way.
const settleTime = 2 * time.Second

// settle waits for sandboxes that have just ended, so that "creel wait" and
// then a prune removes them.
func (l *Launcher) settle(ctx context.Context, c peer.Cred) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for _, sb := range l.all() {
		if !l.mayUse(c, sb) || sb.state() != api.StateStopped {
			continue
		}
		select {
		case <-sb.gone:
		case <-ctx.Done():
			return
		}
	}
}

// problemOf is what a caller may read of an error.
func problemOf(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Error()
	}
	return "creeld could not remove it; its log says why"
}

// Disk is the file system of the state directory.
func (l *Launcher) Disk() (api.Disk, error) {
	s, err := l.reserve.Space()
	return api.Disk{Total: s.Total, Free: s.Free, Reserve: l.reserve.Bytes()}, err
}

// RoomOnDisk is nil if something that takes disk may begin, or go on.
func (l *Launcher) RoomOnDisk() error {
	d, err := l.Disk()
	if err != nil {
		return err
	}
	if d.Free < d.Reserve {
		return api.Errorf(api.CodeExhausted, "the disk is nearly full: less than disk.reserve (%v) is free", api.Size(d.Reserve)).
			WithHint("creel system df shows what is yours, creel system prune removes what has ended; or have the operator make room")
	}
	return nil
}

// keepReserve pauses the sandboxes that go on writing while less than the
// reserve is free, and lets them go on when there is room again.
func (l *Launcher) keepReserve(ctx context.Context) {
	state, changed, err := l.reserve.Check()
	if err != nil {
		l.log.ErrorContext(ctx, "it is not known how much of the disk is free", slog.Any("error", err))
		return
	}
	if changed {
		l.tellRoom(ctx, state)
	}
	switch state {
	case reserve.Short:
		l.pauseWriters(ctx)
	case reserve.Room:
		l.resumeWriters(ctx)
	case reserve.Scarce: // nobody is stopped, and nobody let go on
	}
}

func (l *Launcher) tellRoom(ctx context.Context, s reserve.State) {
	kind := "disk.room"
	if s == reserve.Short {
		kind = "disk.short"
		l.log.WarnContext(ctx, "the disk is nearly full: sandboxes that write are paused", slog.String("reserve", api.Size(l.reserve.Bytes()).String()))
	} else {
		l.log.InfoContext(ctx, "the disk has room again")
	}
	l.Bus.Publish(api.Event{Time: time.Now(), Type: kind}) // nobody's, so root's to see
}

func (l *Launcher) pauseWriters(ctx context.Context) {
	running, sizes := map[string]*sandbox{}, map[string]int64{}
	for _, sb := range l.all() {
		if !sb.mayBePaused() {
			continue
		}
		n, err := sb.onDisk()
		if err != nil {
			l.log.ErrorContext(ctx, "it is not known what a sandbox has on disk", slog.String("sandbox", sb.id), slog.Any("error", err))
			continue
		}
		running[sb.id], sizes[sb.id] = sb, n
	}
	for _, id := range l.reserve.Look(sizes) {
		if err := running[id].pause(ctx, api.ReasonDisk); err != nil && !ended(running[id].state()) {
			l.log.WarnContext(ctx, "sandbox that fills the disk is not paused", slog.String("sandbox", id), slog.Any("error", err))
		}
	}
}

// mayBePaused says whether a sandbox runs and was not asked to end: that must
// not be held up.
func (sb *sandbox) mayBePaused() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec.Sandbox.State == api.StateRunning && !sb.ending && sb.askedFor == ""
}

// onDisk is what a sandbox has written in creel's own directories: what it
// writes to a mounted directory is its caller's disk, whichever that is. What
// several sandboxes can write together, a volume, is of each.
func (sb *sandbox) onDisk() (int64, error) {
	layer, err := sb.l.layers.Usage(sb.id)
	if err != nil {
		return 0, err
	}
	log, err := logs.Usage(sb.l.logDir(sb.id))
	sum := layer + log
	for _, u := range sb.fixed.Volumes {
		if u.ReadOnly || err != nil {
			continue
		}
		var n api.Size
		n, err = sb.l.volumes.Files.Used(u.ID)
		sum += int64(n)
	}
	return sum, err
}

func (l *Launcher) resumeWriters(ctx context.Context) {
	for _, sb := range l.all() {
		sb.mu.Lock()
		paused := sb.rec.Sandbox.State == api.StatePaused && sb.rec.Sandbox.Reason == api.ReasonDisk
		sb.mu.Unlock()
		if !paused {
			continue
		}
		if err := sb.resume(ctx); err != nil && !ended(sb.state()) {
			l.log.WarnContext(ctx, "sandbox does not go on although the disk has room", slog.String("sandbox", sb.id), slog.Any("error", err))
		}
	}
}
