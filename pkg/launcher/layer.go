package launcher

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/layerdiff"
	"github.com/creel-sandbox/creel/pkg/layertar"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/recent"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
)

// Bounds on comparisons: each reads the disk, and holds descriptors and an
// answer in memory.
const (
	maxDiffs   = 4 // at one time; more wait
	maxChanges = 10_000
	diffTime   = 10 * time.Second
)

// Diff is what a sandbox changed in its root and what was changed in its
// writable mounts, at most limit paths.
func (l *Launcher) Diff(ctx context.Context, c peer.Cred, ref string, limit int) (*api.Diff, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	over := api.Errorf(api.CodeConflict, "sandbox %s has ended, and what it wrote to its root is gone", sb.id).
		WithHint("ask while it runs")
	if state := sb.state(); state != api.StateRunning && state != api.StatePaused {
		return nil, over
	}
	sb.mu.Lock()
	rec := sb.rec
	sb.mu.Unlock()
	if limit <= 0 {
		limit = maxChanges
	}
	out := &api.Diff{Rootfs: rec.Sandbox.Rootfs, Changes: []api.Change{}}
	select {
	case l.diffs <- struct{}{}:
		defer func() { <-l.diffs }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	err = l.diffRoot(ctx, &rec, out, limit)
	if err == nil {
		err = l.diffMounts(ctx, &rec, out, limit)
	}
	if err != nil && ended(sb.state()) {
		return nil, over
	}
	return out, err
}

// diffRoot compares a writable root with its image.
func (l *Launcher) diffRoot(ctx context.Context, rec *store.Record, out *api.Diff, limit int) error {
	if rec.RootfsKind == "" {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, diffTime, api.Errorf(api.CodeUnavailable, "the comparison took more than %v", diffTime).
		WithHint("the disk is slow or the sandbox is writing much; try again"))
	defer cancel()
	lower, err := l.Runtime.Lower(ctx, rec.Sandbox.ID)
	if err != nil {
		return err
	}
	changes, complete, err := layerdiff.List(ctx, layerdiff.Options{
		Upper: l.layers.Upper(rec.Sandbox.ID), Lower: lower, HostID: rec.Sandbox.HostUID, Limit: limit,
	})
	if err != nil {
		return err
	}
	out.Truncated = !complete
	for _, c := range changes {
		out.Changes = append(out.Changes, changeOf(c))
	}
	return nil
}

// diffMounts lists what is new since go in the mounts that the sandbox can
// write, and names the places of which nothing is listed. What can be mounted is
// a file system of the host's own kernel, so looking waits for nobody.
func (l *Launcher) diffMounts(ctx context.Context, rec *store.Record, out *api.Diff, limit int) error {
	out.NotCompared = []string{}
	for _, m := range l.specOf(rec).Tmpfs {
		out.NotCompared = append(out.NotCompared, m.Target)
	}
	var trees []string
	for _, m := range rec.Mounts {
		switch {
		case m.ReadOnly:
		case rec.Go.IsZero(): // an older daemon launched it
			out.NotCompared = append(out.NotCompared, m.Target)
		default:
			trees, out.ByTime = append(trees, m.Staged), append(out.ByTime, m.Target)
		}
	}
	slices.Sort(out.NotCompared)
	// Half a list of a large tree is better than none.
	ctx, cancel := context.WithTimeout(ctx, diffTime)
	defer cancel()
	left := limit - len(out.Changes)
	changes, complete, err := recent.List(ctx, recent.Options{Trees: trees, Since: rec.Go, Limit: max(left, 1)})
	if err != nil {
		return err
	}
	if len(changes) > left {
		changes, complete = changes[:left], false
	}
	out.Truncated = out.Truncated || !complete
	for _, c := range changes {
		target := out.ByTime[c.Tree]
		ch := changeOf(layerdiff.Change{Kind: c.Kind, Path: target + c.Path, Mode: c.Mode, Size: c.Size})
		ch.Mount = target
		out.Changes = append(out.Changes, ch)
	}
	return nil
}

func changeOf(c layerdiff.Change) api.Change {
	out := api.Change{Kind: c.Kind, Path: c.Path}
	if c.Kind == layerdiff.Deleted {
		return out
	}
	out.Mode, out.Size = c.Mode&0o777, c.Size
	switch c.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.Type = "file"
	case unix.S_IFDIR:
		out.Type = "dir"
	case unix.S_IFLNK:
		out.Type = "symlink"
	default:
		out.Type = "other"
	}
	return out
}

// commitTime is how long a sandbox may be held still for an image of it.
const commitTime = 10 * time.Minute

// WriteLayer writes what a sandbox's root has more than its image as an image
// layer, while the sandbox is held still, and says what the image is. Only who
// made the sandbox may: root's images are everybody's, and what is in a layer
// is its caller's.
func (l *Launcher) WriteLayer(ctx context.Context, c peer.Cred, ref string, w io.Writer, lim layertar.Options) (base string, err error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return "", err
	}
	r := sb.identity().Sandbox
	if c.UID != r.Caller.UID {
		return "", api.Errorf(api.CodeDenied, "sandbox %s is another user's, and an image of it would be yours", sb.id).
			WithHint("run creel commit as that user")
	}
	if r.Rootfs != "ephemeral" {
		return "", api.Errorf(api.CodeConflict, "the root of sandbox %s is read-only: it has nothing that its image has not", sb.id).
			WithHint("start it with --rootfs ephemeral, or --profile build")
	}
	sb.client(1) // not idle meanwhile
	defer sb.client(-1)
	ctx, cancel := context.WithTimeoutCause(ctx, commitTime, api.Errorf(api.CodeTooLarge, "reading the layer took more than %v", commitTime))
	defer cancel()
	thaw, err := sb.hush(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	if err := failpoint.Hit("commit.still"); err != nil {
		return "", err
	}
	lim.Upper, lim.HostID, lim.IDs = l.layers.Upper(sb.id), r.HostUID, spec.RangeSize
	// A file of holes has any size: what the layer may hold is all that an
	// image of it may.
	lim.Bytes = min(lim.Bytes, int64(r.Limits.Disk))
	_, err = layertar.Write(ctx, w, lim)
	if err == nil && sb.over() {
		err = errors.New("it has ended meanwhile") // and may have been let run for that
	}
	switch {
	case errors.Is(err, layertar.ErrTooLarge):
		err = api.Errorf(api.CodeTooLarge, "%w", err)
	case errors.Is(err, layertar.ErrRefused):
		err = api.Errorf(api.CodeInvalid, "%w", err)
	case err != nil && sb.over(), errors.Is(err, layertar.ErrChanged):
		err = api.Errorf(api.CodeConflict, "sandbox %s: %w", sb.id, err)
	}
	return r.ImageDigest, err
}

// hush keeps a sandbox's agent from running, and everybody from changing that,
// until thaw. Killed in between, the next daemon has it as its record says.
func (sb *sandbox) hush(ctx context.Context) (thaw func() error, err error) {
	for !sb.still.TryLock() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer func() {
		if err != nil {
			sb.still.Unlock()
		}
	}()
	switch state := sb.state(); {
	case state == api.StatePaused:
		return func() error { sb.still.Unlock(); return nil }, nil
	case state != api.StateRunning:
		return nil, api.Errorf(api.CodeConflict, "sandbox %s is %s, and what it wrote to its root is gone", sb.id, state).
			WithHint("commit it while it runs or is paused")
	}
	if err := sb.cg.Freeze(ctx); err != nil {
		return nil, err
	}
	return func() error {
		defer sb.still.Unlock()
		if sb.over() {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return sb.cg.Thaw(ctx)
	}, nil
}
