package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Store keeps blobs by the SHA-256 digest of their bytes.
type Store interface {
	// Put keeps size bytes of r and returns their digest ("sha256:…"). Less
	// than size bytes is io.ErrUnexpectedEOF.
	Put(ctx context.Context, r io.Reader, size int64) (string, error)
	// Open reads a blob that was put.
	Open(ctx context.Context, digest string) (io.ReadCloser, error)
}

// blob is a file of the archive that is in the store.
type blob struct {
	digest string
	size   int64
}

// archive is what was seen of an archive.
type archive struct {
	lim   Limits
	store Store
	blobs map[string]blob   // by name in the archive
	known map[string]int64  // size by digest
	links map[string]string // symbolic links (docker archives repeat layers so)
	small map[string][]byte // index.json and the like
}

// ReadArchive reads an OCI archive or one that "docker save" made, plain or
// compressed, puts its blobs into store and returns the image of the given
// architecture (as Go names it). On an error the store may hold blobs; the
// caller discards them.
func ReadArchive(ctx context.Context, r io.Reader, arch string, lim Limits, store Store) (*Image, error) {
	limited := &capped{r: bufio.NewReaderSize(until(ctx, r), 64<<10), left: lim.Archive, what: "the archive"}
	plain, err := decompress(limited)
	if err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	defer plain.Close()
	a := &archive{
		lim: lim, store: store,
		blobs: map[string]blob{}, known: map[string]int64{},
		links: map[string]string{}, small: map[string][]byte{},
	}
	body := &capped{r: plain, left: lim.Archive, what: "the archive"}
	if err := a.read(ctx, tar.NewReader(body)); err != nil {
		return nil, err
	}
	switch {
	case a.small["index.json"] != nil:
		return a.oci(ctx, arch)
	case a.small["manifest.json"] != nil:
		return a.docker(ctx, arch)
	}
	return nil, refuse("neither index.json (OCI) nor manifest.json (docker save) is in the archive")
}

func (a *archive) read(ctx context.Context, t *tar.Reader) error {
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return tarError("archive", err)
		}
		if n >= a.lim.Entries {
			return refuse("the archive has more than %d files", a.lim.Entries)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.entry(ctx, t, h); err != nil {
			return err
		}
	}
}

func (a *archive) entry(ctx context.Context, t *tar.Reader, h *tar.Header) error {
	name, err := entryName(h.Name, a.lim.Path)
	if err != nil {
		return err
	}
	if a.seen(name) {
		return refuse("%q is twice in the archive", name)
	}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeXGlobalHeader:
		return nil
	case tar.TypeSymlink:
		// As in "../<layer>/layer.tar"; it can only name another entry.
		target := path.Join(path.Dir(name), h.Linkname) //nolint:gosec // a key of our map: nothing is extracted
		if path.IsAbs(h.Linkname) || target == ".." || strings.HasPrefix(target, "../") {
			return refuse("%q is a link out of the archive", name)
		}
		a.links[name] = target
		return nil
	case tar.TypeReg:
	default:
		return refuse("%q in the archive is neither file nor directory", name)
	}
	switch name {
	case "index.json", "manifest.json", "oci-layout", "repositories":
		if h.Size > a.lim.JSON {
			return refuse("%s has %d bytes; at most %d", name, h.Size, a.lim.JSON)
		}
		b, err := io.ReadAll(t)
		if err != nil {
			return tarError(name, err)
		}
		a.small[name] = append([]byte{}, b...)
		return nil
	}
	digest, err := a.store.Put(ctx, t, h.Size)
	if err != nil {
		return tarError(name, err)
	}
	if want, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest != "sha256:"+want {
		return refuse("%s has digest %s", name, digest)
	}
	a.blobs[name] = blob{digest, h.Size}
	a.known[digest] = h.Size
	return nil
}

func (a *archive) seen(name string) bool {
	_, b := a.blobs[name]
	_, l := a.links[name]
	_, s := a.small[name]
	return b || l || s
}

// find gives the blob of a name, through at most one link.
func (a *archive) find(name string) (blob, error) {
	name = path.Clean(name)
	if to, ok := a.links[name]; ok {
		name = to
	}
	b, ok := a.blobs[name]
	if !ok {
		return blob{}, refuse("%q is named but not in the archive", name)
	}
	return b, nil
}

// json reads a blob that must be small.
func (a *archive) json(ctx context.Context, digest string) ([]byte, error) {
	size, ok := a.known[digest]
	if !ok {
		return nil, refuse("blob %s is named but not in the archive", digest)
	}
	if size > a.lim.JSON {
		return nil, refuse("blob %s has %d bytes; at most %d for metadata", digest, size, a.lim.JSON)
	}
	r, err := a.store.Open(ctx, digest)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, a.lim.JSON+1))
}

// entryName checks and cleans the name of a tar entry: relative, without
// "..", "." for the root.
func entryName(name string, limit int) (string, error) {
	if len(name) > limit {
		return "", refuse("a path of %d bytes; at most %d", len(name), limit)
	}
	if name == "" || strings.ContainsRune(name, 0) {
		return "", refuse("bad path %q", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refuse("path %q climbs", name)
		}
		if len(part) > 255 {
			return "", refuse("a name of %d bytes; at most 255", len(part))
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

// tarError tells bytes that are no tar from failures of others.
func tarError(what string, err error) error {
	switch {
	case errors.Is(err, ErrRefused):
		return err
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errCorrupt):
		return refuse("%s: %v", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// capped ends a stream that is longer than allowed with an error.
type capped struct {
	r    io.Reader
	left int64
	what string
}

func (c *capped) Read(p []byte) (int, error) {
	if c.left < 0 {
		return 0, refuse("%s is too large", c.what)
	}
	// One byte more than allowed, to tell the end from too much.
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return n - 1, refuse("%s is too large", c.what)
	}
	return n, err
}
