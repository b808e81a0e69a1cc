package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/rootfs"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
)

// CreateVolume makes a volume. The record decides whether it exists: until it
// is written the volume is pending, and a daemon that finds it removes it.
func (l *Launcher) CreateVolume(ctx context.Context, c peer.Cred, req api.VolumeRequest) (_ *api.Volume, err error) {
	if err := admission.Volume(&req, rootfs.MinVolume, rootfs.MaxVolume); err != nil {
		return nil, err
	}
	v := store.Volume{ID: newID(), Volume: api.Volume{
		Name: req.Name, Agent: req.Agent, Size: req.Size,
		Caller: api.Caller{UID: c.UID, GID: c.GID}, Created: time.Now().UTC(),
	}}
	// Formatting is work for the host as a launch is.
	select {
	case l.launches <- struct{}{}:
		defer func() { <-l.launches }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := l.roomForVolume(v.Volume); err != nil {
		return nil, err // before the work
	}
	if v.Volume.Inodes, err = l.volumes.Make(ctx, v.ID, req.Size, spec.AgentUID); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("volume.made"); err != nil {
		return nil, errors.Join(err, l.volumes.Discard(v.ID))
	}
	if err := l.addVolume(v); err != nil {
		return nil, errors.Join(err, l.volumes.Discard(v.ID))
	}
	l.publishVolume("volume.created", v)
	out := l.viewVolume(v)
	return &out, nil
}

// addVolume makes a pending volume one that exists.
func (l *Launcher) addVolume(v store.Volume) error {
	l.volMu.Lock()
	defer l.volMu.Unlock()
	if err := l.roomForVolume(v.Volume); err != nil {
		return err
	}
	if err := l.Store.AddVolume(v); err != nil {
		return err
	}
	err := failpoint.Hit("volume.recorded")
	if err == nil {
		err = l.volumes.Keep(v.ID)
	}
	if err != nil {
		return errors.Join(err, l.Store.DeleteVolume(v.Volume.Caller.UID, v.Volume.Name))
	}
	return nil
}

// roomForVolume is nil if one more volume of its caller fits into the totals.
// What is written later is not asked about: volumes take what they hold.
func (l *Launcher) roomForVolume(want api.Volume) error {
	all, err := l.Store.Volumes()
	if err != nil {
		return err
	}
	n, sum := 1, want.Size
	for _, v := range all {
		if v.Volume.Caller.UID == want.Caller.UID {
			n++
			sum += v.Volume.Size
		}
	}
	full := func(key string, most any) error {
		return api.Errorf(api.CodeExhausted, "limits.max.%s is %v, and your volumes with this one would have more", key, most).
			WithHint("remove a volume, ask for a smaller one, or have the operator raise it")
	}
	switch t := l.Totals; {
	case t.VolumesPerUser > 0 && n > t.VolumesPerUser:
		return full("volumes_per_user", t.VolumesPerUser)
	case t.VolumeBytesPerUser > 0 && sum > t.VolumeBytesPerUser:
		return full("volume_bytes_per_user", t.VolumeBytesPerUser)
	}
	return nil
}

// Volumes are the caller's, by name.
func (l *Launcher) Volumes(_ context.Context, c peer.Cred) ([]api.Volume, error) {
	all, err := l.Store.Volumes()
	if err != nil {
		return nil, err
	}
	out := []api.Volume{}
	for _, v := range all {
		if mayUseVolume(c, v) {
			out = append(out, l.viewVolume(v))
		}
	}
	return out, nil
}

// Volume is one of them.
func (l *Launcher) Volume(_ context.Context, c peer.Cred, name string) (*api.Volume, error) {
	v, err := l.findVolume(c, name)
	if err != nil {
		return nil, err
	}
	out := l.viewVolume(v)
	return &out, nil
}

// RemoveVolume removes a volume that no sandbox uses.
func (l *Launcher) RemoveVolume(ctx context.Context, c peer.Cred, name string) error {
	if err := l.awaitCleanUps(ctx, c, name); err != nil {
		return err
	}
	v, err := l.retireVolume(c, name)
	if err != nil {
		return err
	}
	l.publishVolume("volume.removed", v)
	if err := failpoint.Hit("volume.retired"); err != nil {
		return err
	}
	if err := l.volumes.Discard(v.ID); err != nil {
		// It does not exist any more; the next start of creeld tries again.
		l.log.ErrorContext(ctx, "files of a removed volume are left", slog.String("volume", v.ID), slog.Any("error", err))
	}
	return nil
}

// awaitCleanUps waits for the clean-up of sandboxes that have ended and had a
// volume: it goes on after the answer to who removed them.
func (l *Launcher) awaitCleanUps(ctx context.Context, c peer.Cred, name string) error {
	v, err := l.findVolume(c, name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	var ending []*sandbox
	for _, u := range l.usesLocked(v.ID, "") {
		if sb := l.sandboxes[u.Sandbox]; ended(sb.state()) {
			ending = append(ending, sb)
		}
	}
	l.mu.Unlock()
	timeout := time.NewTimer(killTimeout)
	defer timeout.Stop()
	for _, sb := range ending {
		select {
		case <-sb.gone:
		case <-timeout.C:
			return nil // it counts as used, then
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// retireVolume ends a volume's existence: the record goes, and what is left is
// pending. No launch can begin to use it meanwhile.
func (l *Launcher) retireVolume(c peer.Cred, name string) (store.Volume, error) {
	l.volMu.Lock()
	defer l.volMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	v, err := l.findVolume(c, name)
	if err != nil {
		return v, err
	}
	if uses := l.usesLocked(v.ID, ""); len(uses) > 0 {
		var by []string
		for _, u := range uses {
			by = append(by, fmt.Sprintf("%s (%s)", u.Name, u.Sandbox))
		}
		return v, api.Errorf(api.CodeConflict, "volume %q is used by %s", v.Volume.Name, strings.Join(by, ", ")).
			WithHint("stop these sandboxes first")
	}
	if err := l.volumes.Retire(v.ID); err != nil {
		return v, err
	}
	err = failpoint.Hit("volume.retiring")
	if err == nil {
		err = l.Store.DeleteVolume(v.Volume.Caller.UID, v.Volume.Name)
	}
	if err != nil {
		return v, errors.Join(err, l.volumes.Keep(v.ID))
	}
	return v, nil
}

// mayUseVolume says whether a caller may know of a volume.
func mayUseVolume(c peer.Cred, v store.Volume) bool {
	return c.UID == 0 || c.UID == v.Volume.Caller.UID
}

// findVolume is the volume that a caller calls name. Root finds those of
// others, after its own.
func (l *Launcher) findVolume(c peer.Cred, name string) (store.Volume, error) {
	own, err := l.Store.Volume(c.UID, name)
	if err == nil || c.UID != 0 || api.CodeOf(err) != api.CodeNotFound {
		return own, err
	}
	all, lerr := l.Store.Volumes()
	if lerr != nil {
		return own, lerr
	}
	all = slices.DeleteFunc(all, func(v store.Volume) bool { return v.Volume.Name != name })
	switch len(all) {
	case 0:
		return own, err
	case 1:
		return all[0], nil
	}
	return own, api.Errorf(api.CodeConflict, "%d callers have a volume %q", len(all), name).WithHint("ask as the user whose it is")
}

func (l *Launcher) viewVolume(v store.Volume) api.Volume {
	out := v.Volume
	used, err := l.volumes.Used(v.ID)
	if err != nil {
		out.Problem = "its image cannot be read; the reason is in creeld's log"
		l.log.Error("volume", slog.String("volume", v.ID), slog.Any("error", err))
	}
	out.Used = used
	l.mu.Lock()
	defer l.mu.Unlock()
	out.UsedBy = l.usesLocked(v.ID, "")
	return out
}

// usesLocked are the sandboxes, but one, that use a volume or may still have
// it mounted, by name.
func (l *Launcher) usesLocked(volume, but string) []api.VolumeUse {
	var out []api.VolumeUse
	for id, sb := range l.sandboxes {
		if id == but || sb.isGone() {
			continue
		}
		r := sb.identity()
		i := slices.IndexFunc(r.Volumes, func(u store.VolumeUse) bool { return u.ID == volume })
		if i < 0 {
			continue
		}
		out = append(out, api.VolumeUse{Sandbox: id, Name: r.Sandbox.Name, Agent: r.Sandbox.Agent, ReadOnly: r.Volumes[i].ReadOnly})
	}
	slices.SortFunc(out, func(a, b api.VolumeUse) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// resolveVolumes finds the volumes that a request names. The caller holds
// l.mu until the record with them is written, so that none is removed between.
func (l *Launcher) resolveVolumes(uid uint32, r api.SpawnRequest) ([]store.VolumeUse, error) {
	var out []store.VolumeUse
	for _, m := range r.Mounts {
		if m.Volume == "" {
			continue
		}
		v, err := l.Store.Volume(uid, m.Volume)
		if api.CodeOf(err) == api.CodeNotFound {
			return nil, api.Errorf(api.CodeNotFound, "no volume %q", m.Volume).
				WithHint("creel volume create " + m.Volume + "; for the directory of that name write ./" + m.Volume)
		}
		if err != nil {
			return nil, err
		}
		if !m.ReadOnly && v.Volume.Agent != r.Agent {
			return nil, api.Errorf(api.CodeDenied, "volume %q is agent %s's, and this is a sandbox of agent %s", m.Volume, v.Volume.Agent, r.Agent).
				WithHint("mount it read-only, or name the agent")
		}
		i := slices.IndexFunc(out, func(u store.VolumeUse) bool { return u.ID == v.ID })
		if i < 0 {
			out = append(out, store.VolumeUse{ID: v.ID, Name: m.Volume, ReadOnly: m.ReadOnly})
		} else {
			out[i].ReadOnly = out[i].ReadOnly && m.ReadOnly
		}
	}
	return out, nil
}

// stageVolume shows a volume below the sandbox's directory. Of the image only
// the kernel's own ext4 ever reads or writes a byte: the sandbox gets a clone
// of the mount, and neither the file nor its loop device.
func (s *launch) stageVolume(ctx context.Context, m api.Mount, staged string) (store.Mount, error) {
	uses := s.sb.fixed.Volumes
	use := uses[slices.IndexFunc(uses, func(u store.VolumeUse) bool { return u.Name == m.Volume })] // as resolveVolumes found it
	dir, device, err := s.l.volumes.Open(use.ID)
	if err != nil {
		return store.Mount{}, err
	}
	defer dir.Close()
	if err := failpoint.Hit("volume.opened"); err != nil {
		return store.Mount{}, err
	}
	first := s.sb.fixed.Sandbox.HostUID
	ids := []idmap.Map{{ID: 0, Host: first, Count: spec.RangeSize}}
	users, err := idmap.UserNS(ctx, ids, ids)
	if err != nil {
		return store.Mount{}, err
	}
	defer users.Close()
	_, err = mount.StageVolume(ctx, mount.Volume{Dir: dir, Target: staged, ReadOnly: m.ReadOnly, First: first, UserNS: users})
	if err != nil {
		return store.Mount{}, err
	}
	s.l.touchVolume(s.caller.UID, use)
	return store.Mount{Staged: staged, Target: m.Target, ReadOnly: m.ReadOnly, Volume: use.ID, Device: device}, nil
}

func (l *Launcher) touchVolume(uid uint32, u store.VolumeUse) {
	now := time.Now().UTC()
	err := l.Store.ModifyVolume(uid, u.Name, u.ID, func(v *store.Volume) { v.Volume.LastUsed = now })
	if err != nil {
		l.log.Error("last use of a volume not recorded", slog.String("volume", u.ID), slog.Any("error", err))
	}
}

// releaseVolumes unmounts the volumes that only this sandbox used. What its
// own mounts held is gone by now.
func (l *Launcher) releaseVolumes(_ context.Context, id string) error {
	l.mu.Lock()
	sb := l.sandboxes[id]
	l.mu.Unlock()
	if sb == nil {
		return nil // what no record knows used none that a record knows: see settleVolumes
	}
	var errs []error
	for _, u := range sb.identity().Volumes {
		l.touchVolume(sb.identity().Sandbox.Caller.UID, u)
		errs = append(errs, l.volumes.Release(u.ID, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.usesLocked(u.ID, id)) > 0
		}))
	}
	return errors.Join(errs...)
}

// settleVolumes makes the volumes on disk agree with the records, after a
// restart and when the sandboxes have been settled. A volume that no record
// knows is left alone: it is somebody's work.
func (l *Launcher) settleVolumes(ctx context.Context) error {
	all, err := l.Store.Volumes()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, v := range all {
		known[v.ID] = true
	}
	kept, pending, err := l.volumes.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range pending {
		if known[id] {
			errs = append(errs, l.volumes.Keep(id))
			kept = append(kept, id)
			continue
		}
		l.log.WarnContext(ctx, "removing a volume that was half made or half removed", slog.String("volume", id))
		errs = append(errs, l.volumes.Discard(id))
	}
	for _, id := range kept {
		if !known[id] {
			l.log.WarnContext(ctx, "a volume has no record; it is left alone", slog.String("volume", id))
		}
		errs = append(errs, l.volumes.Release(id, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.usesLocked(id, "")) > 0
		}))
	}
	if err := errors.Join(errs...); err != nil {
		l.log.ErrorContext(ctx, "volumes are not settled; the next start tries again", slog.Any("error", err))
	}
	return nil
}

// StrayVolumes are the ids of volumes that no record knows.
func (l *Launcher) StrayVolumes() ([]string, error) {
	l.volMu.Lock() // none is being added or removed
	defer l.volMu.Unlock()
	kept, _, err := l.volumes.List()
	if err != nil {
		return nil, err
	}
	all, err := l.Store.Volumes()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(kept, func(id string) bool {
		return slices.ContainsFunc(all, func(v store.Volume) bool { return v.ID == id })
	}), nil
}

func (l *Launcher) publishVolume(kind string, v store.Volume) {
	l.Bus.Publish(api.Event{Time: time.Now(), Type: kind, Name: v.Volume.Name, Fields: map[string]string{
		callerField: fmt.Sprint(v.Volume.Caller.UID), "agent": v.Volume.Agent, "size": v.Volume.Size.String(),
	}})
}
