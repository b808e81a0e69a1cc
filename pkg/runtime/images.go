package runtime

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Labels on images, written by Import alone: an image without them was not
// checked by us and is not used.
const (
	labelChain = LabelPrefix + "chain" // name of the unpacked image's top snapshot
	labelSize  = LabelPrefix + "size"  // unpacked bytes
)

// chain is an unpacked image.
type chain struct {
	id     string // its top snapshot
	digest digest.Digest
}

// NormalizeRef is the full form of a reference: "base" becomes
// "docker.io/library/base:latest". A digest stays as it is.
func NormalizeRef(ref string) (string, error) {
	if d, err := digest.Parse(ref); err == nil {
		return d.String(), nil
	}
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", &api.Error{Code: api.CodeInvalid, Message: "image reference", Problems: []api.Problem{
			{Field: "image", Value: ref, Want: "a name such as base, team/tools:1.2 or sha256:… (" + err.Error() + ")"},
		}}
	}
	return reference.TagNameOnly(n).String(), nil
}

// given is the name that its owner gave to a kept image.
func given(kept string) string {
	if _, own, ok := strings.Cut(kept, "/"); ok && strings.HasPrefix(kept, "uid-") {
		return own
	}
	return kept
}

// ownerOf is whose a kept image is; 0 is the box.
func ownerOf(kept string) uint32 {
	owner, _, _ := strings.Cut(kept, "/")
	uid, err := strconv.ParseUint(strings.TrimPrefix(owner, "uid-"), 10, 32)
	if err != nil || !strings.HasPrefix(owner, "uid-") {
		return 0
	}
	return uint32(uid)
}

// familiar is the short form of a kept name, for people.
func familiar(kept string) string {
	ref := given(kept)
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(n)
}

// kept is the name under which containerd keeps a user's image. The box's,
// imported by root, have their own name and are everybody's; any other user's
// are behind that user's uid, so that nobody can put an image in the way of
// another's name. A normalised reference never begins so: its first part is a
// host with a dot, or "localhost".
func kept(uid uint32, name string) string {
	if uid == 0 {
		return name
	}
	return fmt.Sprintf("uid-%d/%s", uid, name)
}

// usable says whether uid may use the image that is kept under a name.
func usable(uid uint32, kept string) bool {
	owner, _, _ := strings.Cut(kept, "/")
	return uid == 0 || !strings.HasPrefix(owner, "uid-") || owner == fmt.Sprintf("uid-%d", uid)
}

// missing is the error for an image that is not there.
func missing(ref string) error {
	return api.Errorf(api.CodeNotFound, "image %q is not here", ref).
		WithHint("get it with \"creel image pull REF\" or \"creel image import FILE\", or make one with \"creel image build\"; \"creel image ls\" lists what is here")
}

// Resolve gives the digest of the manifest that a reference is to a user: the
// box's image of that name, or else its own.
func (c *Client) Resolve(ctx context.Context, uid uint32, ref string) (string, error) {
	ch, err := c.resolve(ctx, uid, ref)
	return ch.digest.String(), err
}

// Names are the names of the box's for the image that a reference is to a
// user: the one that was asked for, or all of its digest. There are none if it
// is the user's own. What the box has by its digest is the box's, whatever name
// the user has given it.
func (c *Client) Names(ctx context.Context, uid uint32, ref string) ([]string, error) {
	img, err := c.find(ctx, uid, ref)
	if err != nil {
		return nil, err
	}
	if ownerOf(img.Name) == 0 && !strings.HasPrefix(ref, "sha256:") {
		return []string{familiar(img.Name)}, nil
	}
	same, err := c.imgs.List(ctx, "target.digest=="+img.Target.Digest.String())
	if err != nil {
		return nil, wrap(err, "image "+ref)
	}
	var names []string
	for _, i := range same {
		if ownerOf(i.Name) == 0 {
			names = append(names, familiar(i.Name))
		}
	}
	return names, nil
}

// find gives the image that a reference or digest is to a user.
func (c *Client) find(ctx context.Context, uid uint32, ref string) (images.Image, error) {
	name, err := NormalizeRef(ref)
	if err != nil {
		return images.Image{}, err
	}
	img, err := c.lookup(ctx, uid, name)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return images.Image{}, missing(ref)
		}
		return images.Image{}, wrap(err, "image "+ref)
	}
	if img.Labels[labelChain] == "" {
		return images.Image{}, api.Errorf(api.CodeConflict, "image %q was not imported by creel", ref).
			WithHint("import it with \"creel image import FILE\", which checks it")
	}
	return img, nil
}

// resolve finds the unpacked image of a reference or digest.
func (c *Client) resolve(ctx context.Context, uid uint32, ref string) (chain, error) {
	img, err := c.find(ctx, uid, ref)
	if err != nil {
		return chain{}, err
	}
	ch := chain{id: img.Labels[labelChain], digest: img.Target.Digest}
	c.chains.Store(ch.digest.String(), ch)
	return ch, nil
}

// chainOf is resolve, without asking for a digest that has been resolved.
func (c *Client) chainOf(ctx context.Context, image string) (chain, error) {
	if ch, ok := c.chains.Load(image); ok {
		return ch.(chain), nil
	}
	return c.resolve(ctx, 0, image)
}

// lookup finds an image that uid may use. By name the box's comes first: no
// caller's image stands where an operator's is meant.
func (c *Client) lookup(ctx context.Context, uid uint32, name string) (images.Image, error) {
	if !strings.HasPrefix(name, "sha256:") {
		img, err := c.imgs.Get(ctx, name)
		if errdefs.IsNotFound(err) && uid != 0 {
			return c.imgs.Get(ctx, kept(uid, name))
		}
		return img, err
	}
	// Were containerd asked for this digest alone, its answer would be longer,
	// and take longer, where another caller has it than where nobody has.
	found, err := c.imgs.List(ctx)
	if err != nil {
		return images.Image{}, err
	}
	for _, img := range found {
		if img.Target.Digest.String() == name && usable(uid, img.Name) {
			return img, nil
		}
	}
	return images.Image{}, fmt.Errorf("digest %s: %w", name, errdefs.ErrNotFound)
}
