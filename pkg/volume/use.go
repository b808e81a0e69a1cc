package volume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/store"
)

// Use finds the volumes that a request of a caller's names, for begin to put
// on record of a sandbox that Users tells of from then on. None of them is
// removed between.
func (k *Keeper) Use(uid uint32, r api.SpawnRequest, begin func([]store.VolumeUse) error) error {
	if !slices.ContainsFunc(Mounts(r), func(m api.Mount) bool { return m.Volume != "" }) {
		return begin(nil)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	uses, err := k.resolve(uid, r)
	if err != nil {
		return err
	}
	return begin(uses)
}

func (k *Keeper) resolve(uid uint32, r api.SpawnRequest) ([]store.VolumeUse, error) {
	var out []store.VolumeUse
	for _, m := range Mounts(r) {
		if m.Volume == "" {
			continue
		}
		v, err := k.Store.Volume(uid, m.Volume)
		if api.CodeOf(err) == api.CodeNotFound && m.Volume == HomeName(r.Agent) {
			return nil, api.Errorf(api.CodeUnavailable, "agent %s's home was removed a moment ago", r.Agent).WithHint("try again")
		}
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

// Open gives the root directory of a volume in use, mounted, and its loop
// device. The caller closes the directory.
func (k *Keeper) Open(u store.VolumeUse) (root *os.File, device string, err error) {
	root, device, err = k.Files.Open(u.ID)
	if err != nil {
		return nil, "", err
	}
	if err := failpoint.Hit("volume.opened"); err != nil {
		return nil, "", errors.Join(err, root.Close())
	}
	return root, device, nil
}

// Touch records that a sandbox of a caller's begins or ceases to use a volume.
func (k *Keeper) Touch(uid uint32, u store.VolumeUse) {
	now := time.Now().UTC()
	err := k.Store.ModifyVolume(uid, u.Name, u.ID, func(v *store.Volume) { v.Volume.LastUsed = now })
	if err != nil {
		k.Log.Error("last use of a volume not recorded", slog.String("volume", u.ID), slog.Any("error", err))
	}
}

// Release unmounts those of a sandbox's volumes that nobody else uses. What
// the sandbox's own mounts held is gone by now.
func (k *Keeper) Release(sandbox string, uid uint32, uses []store.VolumeUse) error {
	var errs []error
	for _, u := range uses {
		k.Touch(uid, u)
		errs = append(errs, k.Files.Release(u.ID, func() bool {
			return slices.ContainsFunc(k.Users(u.ID), func(o User) bool { return o.Sandbox != sandbox })
		}))
	}
	return errors.Join(errs...)
}

// Settle makes the volumes on disk agree with the records, after a restart and
// when the sandboxes have been settled. A volume that no record knows is left
// alone: it is somebody's work.
func (k *Keeper) Settle(ctx context.Context) error {
	all, err := k.Store.Volumes()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, v := range all {
		known[v.ID] = true
	}
	kept, pending, err := k.Files.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range pending {
		if known[id] {
			errs = append(errs, k.Files.Keep(id))
			kept = append(kept, id)
			continue
		}
		k.Log.WarnContext(ctx, "removing a volume that was half made or half removed", slog.String("volume", id))
		errs = append(errs, k.Files.Discard(id))
	}
	for _, id := range kept {
		if !known[id] {
			k.Log.WarnContext(ctx, "a volume has no record; it is left alone", slog.String("volume", id))
		}
		errs = append(errs, k.Files.Release(id, func() bool { return len(k.Users(id)) > 0 }))
	}
	if err := errors.Join(errs...); err != nil {
		k.Log.ErrorContext(ctx, "volumes are not settled; the next start tries again", slog.Any("error", err))
	}
	return nil
}

// Strays are the ids of volumes that no record knows.
func (k *Keeper) Strays() ([]string, error) {
	k.mu.Lock() // none is being added or removed
	defer k.mu.Unlock()
	kept, _, err := k.Files.List()
	if err != nil {
		return nil, err
	}
	all, err := k.Store.Volumes()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(kept, func(id string) bool {
		return slices.ContainsFunc(all, func(v store.Volume) bool { return v.ID == id })
	}), nil
}
