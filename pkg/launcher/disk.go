package launcher

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// kept is what is on disk of one sandbox.
type kept struct {
	sb       *sandbox
	rec      api.Sandbox
	ended    bool // and nothing but its record and its log is left
	layer    bool
	layers   int64 // bytes
	logs     int64
	records  int64
	evidence int // pieces
}

// keptOf measures the sandboxes that a caller may see, oldest end first.
func (l *Launcher) keptOf(c peer.Cred) ([]kept, error) {
	var out []kept
	var ids []string
	for _, sb := range l.all() {
		if mayUse(c, sb.identity()) {
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
		k.records, k.evidence = records[k.sb.id].Bytes, records[k.sb.id].Evidence
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
		if !mayUse(c, sb.identity()) || sb.state() != api.StateStopped {
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
