package volume

import (
	"context"
	"slices"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/spec"
)

// HomeName is what the persistent home of an agent is called. It has a dot, so
// no request makes a volume of that name and none mounts it: an agent's home is
// seen by nobody but that agent's sandboxes, and only as their home.
func HomeName(agent string) string { return agent + ".home" }

// Mounts are a request's, and after them its persistent home's.
func Mounts(r api.SpawnRequest) []api.Mount {
	if r.Home != "persistent" {
		return r.Mounts
	}
	home := api.Mount{Volume: HomeName(r.Agent), Target: spec.Home}
	return append(slices.Clip(r.Mounts), home)
}

// Home makes the persistent home of an agent of a caller's, unless there is
// one. It stays whatever becomes of the launch that asked for it, and keeps the
// size that it was made with. It is empty: what an image has in that place is
// not copied, since a home is of all images that the agent runs from.
func (k *Keeper) Home(ctx context.Context, c peer.Cred, agent string, size api.Size) error {
	name := HomeName(agent)
	_, err := k.Store.Volume(c.UID, name)
	if api.CodeOf(err) != api.CodeNotFound {
		return err // most often nil
	}
	_, err = k.create(ctx, c, api.VolumeRequest{Name: name, Agent: agent, Size: size})
	if err == nil {
		return nil
	}
	if _, there := k.Store.Volume(c.UID, name); there == nil {
		return nil // another launch was first, and may have taken the last place
	}
	return err
}
