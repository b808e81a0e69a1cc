package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
)

// checkIDMapped refuses mounts that would show the image with the host's own
// ids: an old containerd ignores the labels that ask for the mapping.
func checkIDMapped(mounts []mount.Mount, hostUID uint32) error {
	want := fmt.Sprintf("0:%d:%d", hostUID, RangeSize)
	if len(mounts) != 1 {
		return fmt.Errorf("%d root mounts, want 1", len(mounts))
	}
	m := mounts[0]
	var uid, gid bool
	for _, o := range m.Options {
		uid = uid || o == "uidmap="+want
		gid = gid || o == "gidmap="+want
	}
	if !uid || !gid {
		return fmt.Errorf("%s mount without id map %s: %w", m.Type, want, ErrNoIDMap)
	}
	return nil
}

// Lower are the directories of the image that a sandbox runs from, the
// topmost first, as the daemon sees them when containerd is in its mount
// namespace.
func (c *Client) Lower(ctx context.Context, id string) ([]string, error) {
	mounts, err := c.snaps.Mounts(ctx, id)
	if err != nil {
		return nil, wrap(err, "snapshot "+id)
	}
	if len(mounts) != 1 {
		return nil, fmt.Errorf("snapshot %s: %d root mounts, want 1", id, len(mounts))
	}
	lower := lowerOf(mounts[0])
	if lower == "" {
		return nil, fmt.Errorf("snapshot %s: root mount of type %q has no lower layer", id, mounts[0].Type)
	}
	return strings.Split(lower, ":"), nil
}

// lowerOf is overlayfs's lowerdir= of a mount: an image of one layer is a bind.
func lowerOf(m mount.Mount) string {
	if m.Type == "bind" {
		return m.Source
	}
	for _, o := range m.Options {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok && m.Type == "overlay" {
			return dirs
		}
	}
	return ""
}

// withUpper turns the mount of a view into an overlay whose writable layer is
// in dir. containerd id-maps the lower layers by the same two options.
func withUpper(view []mount.Mount, dir string, hostUID uint32) ([]mount.Mount, error) {
	m := view[0]
	opts := []string{"index=off"}
	for _, o := range m.Options {
		if strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") || o == "userxattr" && m.Type == "overlay" {
			opts = append(opts, o)
		}
	}
	lower := lowerOf(m)
	if lower == "" {
		return nil, fmt.Errorf("root mount of type %q has no lower layer", m.Type)
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if strings.ContainsAny(dir, ",:\\") {
		return nil, fmt.Errorf("writable layer %q: overlayfs cannot take this path", dir)
	}
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("writable layer: %w", err)
		}
	}
	// The root directory of the sandbox is the upper directory's: root's inside.
	if err := os.Lchown(upper, int(hostUID), int(hostUID)); err != nil {
		return nil, fmt.Errorf("writable layer: %w", err)
	}
	opts = append(opts, "lowerdir="+lower, "upperdir="+upper, "workdir="+work)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: opts}}, nil
}
