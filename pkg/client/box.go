package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Images lists the images that the caller may use, by reference.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	out, _, err := c.ImagesPage(ctx, Page{})
	return out, err
}

// ImagesPage is Images, a page at a time. next is empty after the last.
func (c *Client) ImagesPage(ctx context.Context, p Page) (out []api.Image, next string, err error) {
	q := url.Values{}
	p.set(q)
	err = c.call(ctx, request{method: http.MethodGet, path: route("images"), query: q, next: &next}, &out)
	return out, next, err
}

// Image returns one image by reference or digest, with its layers and packages.
func (c *Client) Image(ctx context.Context, ref string) (*api.Image, error) {
	var out api.Image
	if err := c.call(ctx, request{method: http.MethodGet, path: imageRoute(ref)}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// ImportImage sends an OCI or Docker archive. ref names the image; when it is
// empty the archive's own name is used.
func (c *Client) ImportImage(ctx context.Context, ref string, archive io.Reader) (*api.Image, error) {
	r := request{method: http.MethodPost, path: route("images"), body: io.NopCloser(archive), size: -1}
	if ref != "" {
		r.query = url.Values{"ref": {ref}}
	}
	var out api.Image
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Commit makes an image of what a sandbox's writable root has more than its
// image, and gives it a name, which is the caller's own. The sandbox is held
// still meanwhile, and goes on.
func (c *Client) Commit(ctx context.Context, sandbox, ref string) (*api.Image, error) {
	var out api.Image
	if err := c.call(ctx, request{method: http.MethodPost, path: route("sandboxes", sandbox, "commit"), in: api.CommitRequest{Image: ref}}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// TagImage gives an image one more name, which is the caller's own. A name of
// the box's is a conflict.
func (c *Client) TagImage(ctx context.Context, source, ref string) (*api.Image, error) {
	var out api.Image
	if err := c.call(ctx, request{method: http.MethodPut, path: imageRoute(ref), in: api.TagRequest{Source: source}}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// SaveImage opens an image as an OCI archive. An archive that is not complete
// ends in an error. The caller closes it.
func (c *Client) SaveImage(ctx context.Context, ref string) (io.ReadCloser, error) {
	return c.do(ctx, request{method: http.MethodGet, path: route(append([]string{"archives"}, strings.Split(ref, "/")...)...)})
}

// RemoveImage forgets an image. Sandboxes that run from it keep it until they end.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: imageRoute(ref)}, nil)
}

// imageRoute keeps a reference's slashes: its route matches the rest of the path.
func imageRoute(ref string) string {
	return route(append([]string{"images"}, strings.Split(ref, "/")...)...)
}

// DiskUsage returns what is kept on disk of the caller's; for root everybody's.
func (c *Client) DiskUsage(ctx context.Context) (*api.DiskUsage, error) {
	var out api.DiskUsage
	if err := c.call(ctx, request{method: http.MethodGet, path: route("system", "df")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Prune removes what is kept and not in use. What could not be removed is in
// the result, with its problem, and no error.
func (c *Client) Prune(ctx context.Context, req api.PruneRequest) (*api.PruneResult, error) {
	var out api.PruneResult
	if err := c.call(ctx, request{method: http.MethodPost, path: route("system", "prune"), in: req}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Profiles lists the isolation profiles.
func (c *Client) Profiles(ctx context.Context) ([]api.Profile, error) {
	var out []api.Profile
	err := c.call(ctx, request{method: http.MethodGet, path: route("profiles")}, &out)
	return out, err
}

// Profile returns one profile, resolved.
func (c *Client) Profile(ctx context.Context, name string) (*api.Profile, error) {
	var out api.Profile
	if err := c.call(ctx, request{method: http.MethodGet, path: route("profiles", name)}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// CheckProfile has the daemon check a profile's TOML against its schema and
// this host. What is wrong comes back as one *api.Error with every problem.
func (c *Client) CheckProfile(ctx context.Context, toml []byte) error {
	r := request{method: http.MethodPost, path: route("profiles", "check"), body: strings.NewReader(string(toml)), size: int64(len(toml))}
	return c.call(ctx, r, nil)
}

// PublicKey returns the key that the box signs evidence and the audit log with.
func (c *Client) PublicKey(ctx context.Context) (*api.PublicKey, error) {
	var out api.PublicKey
	if err := c.call(ctx, request{method: http.MethodGet, path: route("key")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// TrustBundle returns what sandboxes' SVIDs are verified with.
func (c *Client) TrustBundle(ctx context.Context) (*api.TrustBundle, error) {
	var out api.TrustBundle
	if err := c.call(ctx, request{method: http.MethodGet, path: route("trust-bundle")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Doctor returns what the daemon sees of its host. user (a name or uid) and
// dir, where not empty, ask about that user and that directory as well.
func (c *Client) Doctor(ctx context.Context, user, dir string) (*api.Doctor, error) {
	q := url.Values{}
	if user != "" {
		q.Set("user", user)
	}
	if dir != "" {
		q.Set("dir", dir)
	}
	var out api.Doctor
	if err := c.call(ctx, request{method: http.MethodGet, path: route("doctor"), query: q}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Version names the daemon and what it drives.
func (c *Client) Version(ctx context.Context) (*api.Version, error) {
	var out api.Version
	if err := c.call(ctx, request{method: http.MethodGet, path: route("version")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
