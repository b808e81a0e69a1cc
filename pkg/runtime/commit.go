package runtime

import (
	"context"
	"errors"
	"io"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/image"
)

// NameFree is nil if uid may give an image the name ref, and the error of
// Import otherwise.
func (c *Client) NameFree(ctx context.Context, uid uint32, ref string) error {
	_, err := c.nameFor(ctx, uid, ref)
	return err
}

// Extend makes an image, called ref, of one that uid may use and one more
// layer, a plain tar of size bytes. From the layer on it goes the way of an
// import, with all checks.
func (c *Client) Extend(ctx context.Context, uid uint32, base string, layer io.Reader, size int64, ref string, lim image.Limits) (_ api.Image, err error) {
	img, unpin, err := c.pinned(ctx, uid, base)
	if err != nil {
		return api.Image{}, err
	}
	defer func() { err = errors.Join(err, unpin()) }()
	k, err := c.manifest(ctx, img)
	if err != nil {
		return api.Image{}, err
	}
	if err := failpoint.Hit("commit.extend"); err != nil {
		return api.Image{}, err
	}
	return c.bring(ctx, uid, ref, lim, func(ctx context.Context, store image.Store) (*image.Image, error) {
		return image.Extend(ctx, k, store, layer, size, lim)
	})
}
