package clienttest

import (
	"context"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"
)

// Diff is a hostile name among others.
func (d *Daemon) Diff(ctx context.Context, c server.Caller, ref string, limit int) (*api.Diff, error) {
	if _, err := d.Get(ctx, c, ref); err != nil {
		return nil, err
	}
	out := &api.Diff{Rootfs: "ephemeral", NotCompared: []string{"/tmp", "/work"}, Changes: []api.Change{
		{Kind: "C", Path: "/etc", Type: "dir", Mode: 0o755},
		{Kind: "A", Path: "/etc/\x1b[2J\n", Type: "file", Mode: 0o644, Size: 5},
		{Kind: "D", Path: "/etc/motd"},
	}}
	if limit < len(out.Changes) {
		out.Changes, out.Truncated = out.Changes[:limit], true
	}
	return out, nil
}

// DiskUsage is of one sandbox and the images.
func (d *Daemon) DiskUsage(context.Context, server.Caller) (*api.DiskUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &api.DiskUsage{
		Rows: []api.DiskUse{
			{What: "images", UID: 1000, Count: len(d.images), Bytes: int64(len(d.images)) << 20},
			{What: "records", UID: 1000, Count: 2, Bytes: 4096, ReclaimableCount: 1, ReclaimableBytes: 2048},
		},
		Disk: api.Disk{Total: 10 << 30, Free: 5 << 30, Reserve: 1 << 30},
	}, nil
}

// Prune finds a sandbox whose name is hostile and, with images, one that
// cannot be removed.
func (d *Daemon) Prune(_ context.Context, _ server.Caller, req api.PruneRequest) (*api.PruneResult, error) {
	out := &api.PruneResult{DryRun: req.DryRun, Bytes: 2048, Items: []api.Pruned{
		{What: "sandbox", ID: "aaaaaaaaaaaaaaaaaaaa", Name: "old\x1b[2J", UID: 1000, Bytes: 2048},
	}}
	if req.Images {
		out.Items = append(out.Items, api.Pruned{What: "image", ID: "sha256:fedc", Name: "stuck", UID: 1000, Bytes: 1 << 20, Problem: "containerd does not answer"})
	}
	return out, nil
}
