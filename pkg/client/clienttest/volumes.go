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

// SetSecret remembers one.
func (d *Daemon) SetSecret(_ context.Context, _ server.Caller, name string, req api.SecretRequest) (*api.Secret, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := api.Secret{Name: name, Rule: req.Rule, Place: req.Place, Env: req.Env, Agents: req.Agents, Set: time.Unix(0, 0)}
	d.secrets[name] = s
	return &s, nil
}

// Secrets lists them.
func (d *Daemon) Secrets(context.Context, server.Caller) ([]api.Secret, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []api.Secret
	for _, name := range slices.Sorted(maps.Keys(d.secrets)) {
		list = append(list, d.secrets[name])
	}
	return list, nil
}

// RemoveSecret forgets one.
func (d *Daemon) RemoveSecret(_ context.Context, _ server.Caller, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.secrets[name]; !ok {
		return api.Errorf(api.CodeNotFound, "no secret %q", name)
	}
	delete(d.secrets, name)
	return nil
}
