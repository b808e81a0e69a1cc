package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/image"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Tag gives an image that uid may use one more name, which is uid's alone, or
// everybody's when that is 0. What had this name of this owner before has it
// no more.
func (c *Client) Tag(ctx context.Context, uid uint32, source, ref string) (_ api.Image, err error) {
	name, err := c.nameFor(ctx, uid, ref)
	if err != nil {
		return api.Image{}, err
	}
	src, unpin, err := c.pinned(ctx, uid, source)
	if err != nil {
		return api.Image{}, err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	in := images.Image{Name: kept(uid, name), Target: src.Target, Labels: map[string]string{
		labelChain: src.Labels[labelChain], labelSize: src.Labels[labelSize],
	}}
	return c.put(ctx, in)
}

// nameFor is the full form of a name that uid is about to give. What the box
// calls by that name is what everybody means by it, so that nobody else may
// give it; were it given before the box had it, the box's goes first.
func (c *Client) nameFor(ctx context.Context, uid uint32, ref string) (string, error) {
	name, err := nameOf(ref)
	if err != nil || uid == 0 {
		return name, err
	}
	switch _, err := c.imgs.Get(ctx, name); {
	case err == nil:
		return "", api.Errorf(api.CodeConflict, "the box has an image %q, which stands for every caller", ref).
			WithHint("give yours another name")
	case !errdefs.IsNotFound(err):
		return "", wrap(err, "image "+ref)
	}
	return name, nil
}

// put makes an image known by its name.
func (c *Client) put(ctx context.Context, in images.Image) (api.Image, error) {
	out, err := c.imgs.Create(ctx, in)
	if errdefs.IsAlreadyExists(err) {
		out, err = c.imgs.Update(ctx, in)
	}
	if err != nil {
		return api.Image{}, wrap(err, "image "+familiar(in.Name))
	}
	return describe(out), nil
}

// pinned finds an image that uid may use and holds all that belongs to it,
// against a removal meanwhile, until unpin.
func (c *Client) pinned(ctx context.Context, uid uint32, ref string) (_ images.Image, unpin func() error, err error) {
	img, err := c.find(ctx, uid, ref)
	if err != nil {
		return images.Image{}, nil, err
	}
	lm := c.cd.LeasesService()
	lease, err := lm.Create(ctx, leases.WithID("pin-"+rand.Text()), leases.WithExpiration(importLease))
	if err != nil {
		return images.Image{}, nil, wrap(err, "hold image "+ref)
	}
	unpin = func() error {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return wrap(gone(lm.Delete(dctx, lease)), "let go of image "+ref)
	}
	err = lm.AddResource(ctx, lease, leases.Resource{ID: img.Target.Digest.String(), Type: "content"})
	if err == nil {
		// It may have gone before it was held, and not after.
		_, err = c.cd.ContentStore().Info(ctx, img.Target.Digest)
	}
	if errdefs.IsNotFound(err) {
		err = missing(ref)
	}
	if err != nil {
		return images.Image{}, nil, errors.Join(wrap(err, "hold image "+ref), unpin())
	}
	return img, unpin, nil
}

// Save writes an image that uid may use to w, as an OCI archive. Nothing has
// been written when the image is not there.
func (c *Client) Save(ctx context.Context, uid uint32, ref string, w io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, importTime, tooLong("saving the image", importTime))
	defer cancel()
	img, unpin, err := c.pinned(ctx, uid, ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	k, err := c.manifest(ctx, img)
	if err != nil {
		return err
	}
	k.Name = given(img.Name)
	store := &contentStore{cs: c.cd.ContentStore()}
	return wrap(image.WriteArchive(ctx, w, k, store), "save image "+ref)
}

// manifest reads an image's manifest.
func (c *Client) manifest(ctx context.Context, img images.Image) (*image.Kept, error) {
	if img.Target.Size > image.DefaultLimits.JSON {
		return nil, api.Errorf(api.CodeTooLarge, "the manifest of image %s has %d bytes", familiar(img.Name), img.Target.Size)
	}
	raw, err := content.ReadBlob(ctx, c.cd.ContentStore(), img.Target)
	if err != nil {
		return nil, wrap(err, "manifest of image "+familiar(img.Name))
	}
	k, err := image.ReadManifest(raw, img.Target.MediaType, image.DefaultLimits)
	if err != nil {
		return nil, wrap(err, "manifest of image "+familiar(img.Name))
	}
	return k, nil
}

// Image describes the image of a reference or digest, with its layers and the
// packages that it says it has.
func (c *Client) Image(ctx context.Context, uid uint32, ref string) (api.Image, error) {
	img, err := c.find(ctx, uid, ref)
	if err != nil {
		return api.Image{}, err
	}
	k, err := c.manifest(ctx, img)
	if err != nil {
		return api.Image{}, err
	}
	out := describe(img)
	out.Packages = k.Packages
	for _, l := range k.Layers {
		out.Layers = append(out.Layers, api.ImageLayer{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType})
	}
	return out, nil
}

func describe(i images.Image) api.Image {
	size, _ := strconv.ParseInt(i.Labels[labelSize], 10, 64)
	return api.Image{Ref: familiar(i.Name), Digest: i.Target.Digest.String(), Size: size, Created: i.CreatedAt, Owner: ownerOf(i.Name)}
}
