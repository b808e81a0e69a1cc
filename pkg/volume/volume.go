// Package volume keeps the life of volumes: made, found, used, removed, and
// made whole again after a crash. The file systems themselves are pkg/rootfs's.
//
// A volume's record decides whether it exists. What is being made or removed
// is pending on disk; the next start keeps it if it has a record and removes
// it if not ([Keeper.Settle]).
//
// Who uses a volume is not written here but in the records of sandboxes, from
// their intent on. So there is one lock to know: [Keeper.Use] holds it while a
// sandbox becomes a user, and [Keeper.Remove] while it looks whether there is
// one. It is taken before any lock that [Options].Users takes.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/rootfs"
	"github.com/creel-sandbox/creel/pkg/store"
)

// Options are a Keeper's parts. All are required but the bounds.
type Options struct {
	Store *store.Store
	Files *rootfs.Volumes
	Bus   *events.Bus
	Log   *slog.Logger
	// Owner is the uid in a sandbox to whom a volume's root directory belongs.
	Owner uint32
	// NewID gives a new volume's id; never the same twice.
	NewID func() string
	// Operator says whether a caller sees and does all.
	Operator func(peer.Cred) bool
	// Users are the sandboxes that use a volume, or may still have it mounted.
	Users func(id string) []User

	// The bounds on each caller's volumes; zero is no bound.
	PerUser      int
	BytesPerUser api.Size
}

// User is a sandbox that uses a volume.
type User struct {
	api.VolumeUse
	// Gone is closed when nothing of the sandbox is left but its record. It is
	// nil unless the sandbox has ended.
	Gone <-chan struct{}
}

// Keeper has the volumes of one daemon. It is safe for concurrent use.
type Keeper struct {
	Options
	mu sync.Mutex // volumes are added, removed, and taken into use one at a time
}

// New makes a Keeper. Call Settle before anything else.
func New(o Options) *Keeper { return &Keeper{Options: o} }

// Create makes a volume. Until its record is written it is pending, and a
// daemon that finds it removes it.
func (k *Keeper) Create(ctx context.Context, c peer.Cred, req api.VolumeRequest) (*api.Volume, error) {
	if err := admission.Volume(&req); err != nil {
		return nil, err
	}
	return k.create(ctx, c, req)
}

func (k *Keeper) create(ctx context.Context, c peer.Cred, req api.VolumeRequest) (*api.Volume, error) {
	v := store.Volume{ID: k.NewID(), Volume: api.Volume{
		Name: req.Name, Agent: req.Agent, Size: req.Size,
		Caller: api.Caller{UID: c.UID, GID: c.GID}, Created: time.Now().UTC(),
	}}
	if err := k.room(v.Volume); err != nil {
		return nil, err // before the work
	}
	var err error
	if v.Volume.Inodes, err = k.Files.Make(ctx, v.ID, req.Size, k.Owner); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("volume.made"); err != nil {
		return nil, errors.Join(err, k.Files.Discard(v.ID))
	}
	if err := k.add(v); err != nil {
		return nil, errors.Join(err, k.Files.Discard(v.ID))
	}
	k.publish("volume.created", v)
	out := k.view(v)
	return &out, nil
}

// add makes a pending volume one that exists.
func (k *Keeper) add(v store.Volume) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.room(v.Volume); err != nil {
		return err
	}
	if err := k.Store.AddVolume(v); err != nil {
		return err
	}
	err := failpoint.Hit("volume.recorded")
	if err == nil {
		err = k.Files.Keep(v.ID)
	}
	if err != nil {
		return errors.Join(err, k.Store.DeleteVolume(v.Volume.Caller.UID, v.Volume.Name))
	}
	return nil
}

// room is nil if one more volume of its caller fits into the totals. What is
// written later is not asked about: volumes take what they hold.
func (k *Keeper) room(want api.Volume) error {
	all, err := k.Store.Volumes()
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
	switch {
	case k.PerUser > 0 && n > k.PerUser:
		return full("volumes_per_user", k.PerUser)
	case k.BytesPerUser > 0 && sum > k.BytesPerUser:
		return full("volume_bytes_per_user", k.BytesPerUser)
	}
	return nil
}

// List is the caller's volumes, by name; for root everybody's.
func (k *Keeper) List(c peer.Cred) ([]api.Volume, error) {
	all, err := k.Store.Volumes()
	if err != nil {
		return nil, err
	}
	out := []api.Volume{}
	for _, v := range all {
		if k.mayUse(c, v) {
			out = append(out, k.view(v))
		}
	}
	return out, nil
}

// Get is one of them.
func (k *Keeper) Get(c peer.Cred, name string) (*api.Volume, error) {
	v, err := k.find(c, name)
	if err != nil {
		return nil, err
	}
	out := k.view(v)
	return &out, nil
}

// settleTime is how long a removal waits for the clean-up of sandboxes that
// have ended.
const settleTime = 10 * time.Second

// Remove removes a volume that no sandbox uses. The error's code is
// api.CodeConflict if one does.
func (k *Keeper) Remove(ctx context.Context, c peer.Cred, name string) error {
	if err := k.awaitCleanUps(ctx, c, name); err != nil {
		return err
	}
	v, err := k.retire(c, name)
	if err != nil {
		return err
	}
	k.publish("volume.removed", v)
	if err := failpoint.Hit("volume.retired"); err != nil {
		return err
	}
	if err := k.Files.Discard(v.ID); err != nil {
		// It does not exist any more; the next start of creeld tries again.
		k.Log.ErrorContext(ctx, "files of a removed volume are left", slog.String("volume", v.ID), slog.Any("error", err))
	}
	return nil
}

// awaitCleanUps waits for the clean-up of sandboxes that have ended and had a
// volume: it goes on after the answer to who removed them.
func (k *Keeper) awaitCleanUps(ctx context.Context, c peer.Cred, name string) error {
	v, err := k.find(c, name)
	if err != nil {
		return err
	}
	timeout := time.NewTimer(settleTime)
	defer timeout.Stop()
	for _, u := range k.Users(v.ID) {
		if u.Gone == nil {
			continue
		}
		select {
		case <-u.Gone:
		case <-timeout.C:
			return nil // it counts as used, then
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// retire ends a volume's existence: the record goes, and what is left is
// pending. No sandbox can begin to use it meanwhile.
func (k *Keeper) retire(c peer.Cred, name string) (store.Volume, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, err := k.find(c, name)
	if err != nil {
		return v, err
	}
	if uses := k.Users(v.ID); len(uses) > 0 {
		var by []string
		for _, u := range uses {
			by = append(by, fmt.Sprintf("%s (%s)", u.Name, u.Sandbox))
		}
		return v, api.Errorf(api.CodeConflict, "volume %q is used by %s", v.Volume.Name, strings.Join(by, ", ")).
			WithHint("stop these sandboxes first")
	}
	if err := k.Files.Retire(v.ID); err != nil {
		return v, err
	}
	err = failpoint.Hit("volume.retiring")
	if err == nil {
		err = k.Store.DeleteVolume(v.Volume.Caller.UID, v.Volume.Name)
	}
	if err != nil {
		return v, errors.Join(err, k.Files.Keep(v.ID))
	}
	return v, nil
}

// mayUse says whether a caller may know of a volume.
func (k *Keeper) mayUse(c peer.Cred, v store.Volume) bool {
	return c.UID == v.Volume.Caller.UID || k.Operator(c)
}

// find is the volume that a caller calls name. An operator finds those of
// others, after its own.
func (k *Keeper) find(c peer.Cred, name string) (store.Volume, error) {
	own, err := k.Store.Volume(c.UID, name)
	if err == nil || !k.Operator(c) || api.CodeOf(err) != api.CodeNotFound {
		return own, err
	}
	all, lerr := k.Store.Volumes()
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

func (k *Keeper) view(v store.Volume) api.Volume {
	out := v.Volume
	used, err := k.Files.Used(v.ID)
	if err != nil {
		out.Problem = "its image cannot be read; the reason is in creeld's log"
		k.Log.Error("volume", slog.String("volume", v.ID), slog.Any("error", err))
	}
	out.Used = used
	for _, u := range k.Users(v.ID) {
		out.UsedBy = append(out.UsedBy, u.VolumeUse)
	}
	return out
}

func (k *Keeper) publish(kind string, v store.Volume) {
	k.Bus.Publish(api.Event{Time: time.Now(), Type: kind, Name: v.Volume.Name, Fields: map[string]string{
		events.CallerField: fmt.Sprint(v.Volume.Caller.UID), "agent": v.Volume.Agent, "size": v.Volume.Size.String(),
	}})
}
