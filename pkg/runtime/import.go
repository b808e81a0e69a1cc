package runtime

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	gort "runtime"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/image"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// MountPoints are where every sandbox has something mounted: an image may
// lack them, but not make them, or their parents, anything but directories
// (CVE-2026-41579: an image whose /dev is a link).
var MountPoints = []string{"/dev", "/proc", "/sys", "/etc", "/tmp", "/run", "/var/tmp", "/home/agent"}

const (
	// importLease is how long a crashed import's content can stay.
	importLease = 6 * time.Hour
	// importTime is how long one import may take, upload and all. Its content
	// must still be held when it ends.
	importTime = 5 * time.Hour
	// scanTime is how long the look at its layers may take, for which the
	// imports of others wait: 48 GB of tar in so many seconds is a slow disk.
	scanTime = 15 * time.Minute
)

// Import reads an OCI or docker archive, checks it (package image), unpacks
// it and gives it the name ref, or the archive's own when ref is empty. It is
// uid's alone, or everybody's when that is 0. An image of that name and owner
// before is replaced; a name of the box's is refused to others, with code
// api.CodeConflict. When the image is refused, with code api.CodeInvalid,
// nothing of it stays.
func (c *Client) Import(ctx context.Context, uid uint32, r io.Reader, ref string, lim image.Limits) (api.Image, error) {
	return c.bring(ctx, uid, ref, lim, func(ctx context.Context, store image.Store) (*image.Image, error) {
		return image.ReadArchive(ctx, r, gort.GOARCH, lim, store)
	})
}

// bring is every way in: read puts the blobs of an image into the store and
// says what it is; then its layers are looked at and unpacked.
func (c *Client) bring(ctx context.Context, uid uint32, ref string, lim image.Limits, read func(context.Context, image.Store) (*image.Image, error)) (_ api.Image, err error) {
	if ref != "" {
		if ref, err = c.nameFor(ctx, uid, ref); err != nil {
			return api.Image{}, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, importTime, tooLong("the import", importTime))
	defer cancel()
	// The lease keeps the collector from what is half done, and its removal
	// sends the collector for what was not kept.
	lm := c.cd.LeasesService()
	lease, err := lm.Create(ctx, leases.WithID("import-"+rand.Text()), leases.WithExpiration(importLease))
	if err != nil {
		return api.Image{}, wrap(err, "lease for import")
	}
	ctx = leases.WithLease(ctx, lease.ID)
	defer func() {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if derr := gone(lm.Delete(dctx, lease, leases.SynchronousDelete)); derr != nil {
			err = errors.Join(err, wrap(derr, "end of import"))
		}
	}()
	store := &contentStore{cs: c.cd.ContentStore(), prefix: lease.ID}
	img, err := read(ctx, store)
	if err != nil {
		return api.Image{}, refused(err)
	}
	if ref == "" {
		if ref, err = c.nameFor(ctx, uid, img.Name); err != nil {
			return api.Image{}, err
		}
	}
	tree, err := c.scan(ctx, store, img, lim)
	if err != nil {
		return api.Image{}, refused(err)
	}
	ch, err := c.unpack(ctx, store, img)
	if err != nil {
		return api.Image{}, err
	}
	if err := c.checkRoot(ctx, ch); err != nil {
		return api.Image{}, refused(err)
	}
	return c.record(ctx, kept(uid, ref), img, ch, tree.Bytes())
}

// nameOf normalises what an archive calls its image.
func nameOf(name string) (string, error) {
	if name == "" {
		return "", &api.Error{Code: api.CodeInvalid, Message: "image reference", Problems: []api.Problem{
			{Field: "ref", Want: "a name for the image; the archive has none"},
		}}
	}
	ref, err := NormalizeRef(name)
	if err == nil && strings.HasPrefix(ref, "sha256:") {
		return "", &api.Error{Code: api.CodeInvalid, Message: "image reference", Problems: []api.Problem{
			{Field: "ref", Value: name, Want: "a name; a digest is what an image has by itself"},
		}}
	}
	return ref, err
}

// tooLong is why an import ended before it was done.
func tooLong(what string, most time.Duration) error {
	return api.Errorf(api.CodeTooLarge, "%s took more than %s", what, most)
}

// refused gives the image's own faults the class of a wrong request.
func refused(err error) error {
	if errors.Is(err, image.ErrRefused) {
		return api.Errorf(api.CodeInvalid, "%w", err)
	}
	return wrap(err, "import")
}

// scan looks at every layer before anything is unpacked. One image at a time:
// what is remembered of two million files is a hundred megabytes.
func (c *Client) scan(ctx context.Context, store *contentStore, img *image.Image, lim image.Limits) (*image.Tree, error) {
	select {
	case c.scans <- struct{}{}:
		defer func() { <-c.scans }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, scanTime, tooLong("reading the image's layers", scanTime))
	defer cancel()
	tree := image.NewTree(lim)
	for _, l := range img.Layers {
		r, err := store.Open(ctx, l.Digest)
		if err != nil {
			return nil, err
		}
		err = tree.Add(ctx, r, l)
		r.Close()
		if err != nil {
			return nil, err
		}
	}
	return tree, tree.Check(MountPoints...)
}

// unpack has containerd make the snapshots. It checks each layer's diff id,
// so that it unpacks the bytes that were scanned.
func (c *Client) unpack(ctx context.Context, store *contentStore, img *image.Image) (chain, error) {
	desc := ocispec.Descriptor{MediaType: img.ManifestType, Digest: digest.Digest(img.ManifestDigest), Size: int64(len(img.Manifest))}
	labels := map[string]string{"containerd.io/gc.ref.content.config": img.Config}
	var diffs []digest.Digest
	for i, l := range img.Layers {
		labels["containerd.io/gc.ref.content.l."+strconv.Itoa(i)] = l.Digest
		diffs = append(diffs, digest.Digest(l.DiffID))
	}
	if err := store.manifest(ctx, desc, img.Manifest, labels); err != nil {
		return chain{}, wrap(err, "manifest")
	}
	i := containerd.NewImageWithPlatform(c.cd, images.Image{Name: img.ManifestDigest, Target: desc}, platforms.All)
	if err := i.Unpack(ctx, snapshotter); err != nil {
		return chain{}, wrap(err, "unpack image")
	}
	return chain{id: identity.ChainID(diffs).String(), digest: desc.Digest}, nil
}

// record makes the image known by its name.
func (c *Client) record(ctx context.Context, ref string, img *image.Image, ch chain, size int64) (api.Image, error) {
	in := images.Image{
		Name:   ref,
		Target: ocispec.Descriptor{MediaType: img.ManifestType, Digest: ch.digest, Size: int64(len(img.Manifest))},
		Labels: map[string]string{labelChain: ch.id, labelSize: strconv.FormatInt(size, 10)},
	}
	return c.put(ctx, in)
}

// checkRoot looks at the unpacked image itself, as the runtime will see it:
// what was foreseen from the layers is not taken for granted.
func (c *Client) checkRoot(ctx context.Context, ch chain) (err error) {
	key := "check-" + rand.Text()
	mounts, err := c.snaps.View(ctx, key, ch.id)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.opts.State, "check-")
	if err != nil {
		return errors.Join(err, c.snaps.Remove(ctx, key))
	}
	defer func() {
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, mount.UnmountAll(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), os.Remove(dir), gone(c.snaps.Remove(dctx, key)))
	}()
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mount the unpacked image: %w", err)
	}
	if err := failpoint.Hit("import.mounted"); err != nil {
		return err
	}
	return realDirs(dir, MountPoints)
}

// realDirs refuses a root in which one of the paths is there by way of, or
// is itself, anything but a directory.
func realDirs(root string, paths []string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, p := range paths {
		f, err := unix.Openat2(fd, "."+p, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV,
		})
		switch {
		case err == nil:
			unix.Close(f)
		case errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EXDEV):
			return fmt.Errorf("%w: %s of the unpacked image is not a real directory", image.ErrRefused, p)
		default:
			return fmt.Errorf("open %s of the unpacked image: %w", p, err)
		}
	}
	return nil
}

// Images lists the images that uid may use; all of them for root.
func (c *Client) Images(ctx context.Context, uid uint32) ([]api.Image, error) {
	all, err := c.imgs.List(ctx)
	if err != nil {
		return nil, wrap(err, "list images")
	}
	var out []api.Image
	for _, i := range all {
		if i.Labels[labelChain] != "" && usable(uid, i.Name) {
			out = append(out, describe(i))
		}
	}
	return out, nil
}

// RemoveImage forgets a reference of uid's own, or every one that is its own
// to a digest; root's own are all. Sandboxes that run from the image keep what
// they need of it.
func (c *Client) RemoveImage(ctx context.Context, uid uint32, ref string) error {
	name, err := NormalizeRef(ref)
	if err != nil {
		return err
	}
	found, err := c.imgs.List(ctx)
	if err != nil {
		return wrap(err, "list images")
	}
	removed, usableOnly := false, false
	for _, i := range found {
		match := i.Name == kept(uid, name) || i.Target.Digest.String() == name
		switch {
		case !match && i.Name != name, !usable(uid, i.Name):
			continue
		case uid != 0 && !strings.HasPrefix(i.Name, kept(uid, "")):
			usableOnly = true
			continue
		}
		if err := gone(c.imgs.Delete(ctx, i.Name, images.SynchronousDelete())); err != nil {
			return wrap(err, "remove image "+ref)
		}
		removed = true
	}
	switch {
	case removed:
		return nil
	case usableOnly:
		return api.Errorf(api.CodeDenied, "only root may remove image %s: every caller may use it", ref)
	}
	return missing(ref)
}

// contentStore is containerd's content store as package image sees it.
type contentStore struct {
	cs     content.Store
	prefix string
	n      int
}

var _ image.Store = (*contentStore)(nil)

// outlast is a context that ends some time after ctx, for cleaning up.
func outlast(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(10*time.Second, cancel) })
	return longer, func() { stop(); cancel() }
}

// Put keeps size bytes of r.
func (s *contentStore) Put(ctx context.Context, r io.Reader, size int64) (_ string, err error) {
	s.n++
	ref := s.prefix + "-" + strconv.Itoa(s.n)
	wctx, cancel := outlast(ctx)
	defer cancel()
	w, err := content.OpenWriter(wctx, s.cs, content.WithRef(ref))
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			// Close does not wait for containerd, which writes a last file of
			// the upload then: what Abort removes would be half there again.
			// A commit of a wrong size is refused after the upload is closed.
			_ = w.Commit(wctx, math.MaxInt64, "")
			err = errors.Join(err, gone(s.cs.Abort(wctx, ref)))
		}
		w.Close()
	}()
	h := digest.Canonical.Digester()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(w, h.Hash())}, io.LimitReader(r, size), make([]byte, 1<<20))
	if err != nil {
		return "", err
	}
	if n != size {
		return "", io.ErrUnexpectedEOF
	}
	if err := w.Commit(ctx, size, h.Digest()); err != nil && !errdefs.IsAlreadyExists(err) {
		return "", err
	}
	return h.Digest().String(), nil
}

// Open reads a blob.
func (s *contentStore) Open(ctx context.Context, d string) (io.ReadCloser, error) {
	ra, err := s.cs.ReaderAt(ctx, ocispec.Descriptor{Digest: digest.Digest(d)})
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}

// manifest keeps the manifest, with what it refers to for the collector.
func (s *contentStore) manifest(ctx context.Context, d ocispec.Descriptor, raw []byte, labels map[string]string) error {
	if _, err := s.Put(ctx, bytes.NewReader(raw), d.Size); err != nil {
		return err
	}
	_, err := s.cs.Update(ctx, content.Info{Digest: d.Digest, Labels: labels}, "labels")
	return err
}
