package clienttest

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"
)

// CreateVolume remembers one.
func (d *Daemon) CreateVolume(_ context.Context, _ server.Caller, req api.VolumeRequest) (*api.Volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := api.Volume{Name: req.Name, Agent: req.Agent, Size: req.Size, Created: time.Unix(0, 0)}
	d.volumes[req.Name] = v
	return &v, nil
}

// Volumes lists them.
func (d *Daemon) Volumes(context.Context, server.Caller) ([]api.Volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []api.Volume
	for _, name := range slices.Sorted(maps.Keys(d.volumes)) {
		list = append(list, d.volumes[name])
	}
	return list, nil
}

// Volume returns one.
func (d *Daemon) Volume(_ context.Context, _ server.Caller, name string) (*api.Volume, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.volumes[name]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "no volume %q", name)
	}
	return &v, nil
}

// RemoveVolume forgets one.
func (d *Daemon) RemoveVolume(ctx context.Context, c server.Caller, name string) error {
	if _, err := d.Volume(ctx, c, name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.volumes, name)
	return nil
}
