package runtime

import (
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

// withUpper turns the mount of a view into an overlay whose writable layer is
// in dir. containerd id-maps the lower layers by the same two options.
func withUpper(view []mount.Mount, dir string, hostUID uint32) ([]mount.Mount, error) {
	m := view[0]
	opts := []string{"index=off"}
	lower := ""
	switch m.Type {
	case "overlay":
		for _, o := range m.Options {
			switch {
			case strings.HasPrefix(o, "lowerdir="):
				lower = strings.TrimPrefix(o, "lowerdir=")
			case strings.HasPrefix(o, "uidmap="), strings.HasPrefix(o, "gidmap="), o == "userxattr":
				opts = append(opts, o)
			}
		}
	case "bind": // an image of one layer
		lower = m.Source
		for _, o := range m.Options {
			if strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap=") {
				opts = append(opts, o)
			}
		}
	}
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
