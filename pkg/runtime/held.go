package runtime

import (
	"context"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Held is an image with whose it is and what it takes.
type Held struct {
	api.Image

	// UID brought it; what 0 brought is everybody's.
	UID uint32

	// Parts are the bytes of each snapshot and blob. Images share some.
	Parts map[string]int64

	name string // containerd's
}

// Named says whether the image has a name that ref means.
func (h Held) Named(ref string) bool {
	name, err := NormalizeRef(ref)
	return err == nil && (h.name == kept(h.UID, name) || h.Digest == name)
}

// Held lists the images of every user.
func (c *Client) Held(ctx context.Context) ([]Held, error) {
	all, err := c.imgs.List(ctx)
	if err != nil {
		return nil, wrap(err, "list images")
	}
	m := measure{c: c, sizes: map[string]int64{}, parents: map[string]string{}}
	var out []Held
	for _, i := range all {
		if i.Labels[labelChain] == "" {
			continue
		}
		h := Held{Image: describe(i), UID: ownerOf(i.Name), name: i.Name}
		if h.Parts, err = m.parts(ctx, i); err != nil {
			return nil, wrap(err, "image "+h.Ref)
		}
		out = append(out, h)
	}
	return out, nil
}

// RemoveHeld forgets one image under one name. It succeeds when it is gone, and
// leaves another image that has got the name meanwhile.
func (c *Client) RemoveHeld(ctx context.Context, h Held) error {
	target := ocispec.Descriptor{Digest: digest.Digest(h.Digest)}
	return wrap(gone(c.imgs.Delete(ctx, h.name, images.SynchronousDelete(), images.DeleteTarget(&target))), "remove image "+h.Ref)
}

// measure asks containerd for each size once.
type measure struct {
	c       *Client
	sizes   map[string]int64
	parents map[string]string // of snapshots
}

// parts are the snapshots and blobs of an image. One that is not there, or
// goes meanwhile, takes nothing.
func (m measure) parts(ctx context.Context, i images.Image) (map[string]int64, error) {
	out := map[string]int64{}
	for id := i.Labels[labelChain]; id != ""; id = m.parents[id] {
		if _, twice := out[id]; twice {
			break
		}
		if _, known := m.sizes[id]; !known {
			if err := m.snapshot(ctx, id); err != nil {
				return nil, err
			}
		}
		out[id] = m.sizes[id]
	}
	cs := m.c.cd.ContentStore()
	manifest, err := cs.Info(ctx, i.Target.Digest)
	if gone(err) != nil {
		return nil, err
	}
	blobs := []string{i.Target.Digest.String()}
	for k, v := range manifest.Labels {
		if strings.HasPrefix(k, "containerd.io/gc.ref.content.") {
			blobs = append(blobs, v)
		}
	}
	for _, b := range blobs {
		// A blob and the snapshot made of it can have one digest.
		key := "blob " + b
		if _, known := m.sizes[key]; !known {
			info, err := cs.Info(ctx, digest.Digest(b))
			if gone(err) != nil {
				return nil, err
			}
			m.sizes[key] = info.Size
		}
		out[key] = m.sizes[key]
	}
	return out, nil
}

func (m measure) snapshot(ctx context.Context, id string) error {
	info, err := m.c.snaps.Stat(ctx, id)
	if gone(err) != nil {
		return err
	}
	use, err := m.c.snaps.Usage(ctx, id)
	if gone(err) != nil {
		return err
	}
	m.sizes[id], m.parents[id] = use.Size, info.Parent
	return nil
}
