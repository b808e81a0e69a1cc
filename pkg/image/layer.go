package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"io"
	"path"
	"strings"
)

// Names that stand for removals in a layer (image-spec, layer.md).
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	meta     = ".wh..wh." // reserved; of aufs
)

type kind uint8

const (
	kindDir kind = iota + 1
	kindFile
	kindLink
)

// node is a file of the merged tree.
type node struct {
	kind  kind
	id    uint32 // of a directory: what its children's keys are made of
	layer int    // that made it
	fresh int    // of a directory: the last layer that put something in it
}

// Tree is what the layers seen so far merge to. Names are kept as keyed
// hashes: an image of two million files takes some 100 MB, not a gigabyte.
type Tree struct {
	lim   Limits
	seed  maphash.Seed
	nodes map[uint64]node
	last  uint32
	layer int
	files int
	bytes int64
	left  int64 // bytes of tar that the layers may still unpack to
	setID int
}

// NewTree is a tree of one empty directory.
func NewTree(lim Limits) *Tree {
	t := &Tree{lim: lim, seed: maphash.MakeSeed(), nodes: map[uint64]node{}}
	// Twice the bytes: each file has a header and is rounded up. For all
	// layers together: what follows a layer's last entry is in no file, and
	// reading it keeps others waiting.
	t.left = 2*lim.Bytes + 1024*int64(lim.Files)
	t.nodes[t.key(0, "")] = node{kind: kindDir, id: t.newID()}
	return t
}

// Bytes is the size of all files of all layers.
func (t *Tree) Bytes() int64 { return t.bytes }

// SetID is the number of set-user-ID and set-group-ID files and of files with
// capabilities. They are let in, since every distribution ships some, and are
// inert: a sandbox's root is nosuid and its processes cannot gain privileges.
func (t *Tree) SetID() int { return t.setID }

// Add puts the next layer, plain or compressed, on top. l.DiffID must be the
// digest of what it unpacks to: that makes it the same bytes for whoever
// unpacks it later and checks the same.
func (t *Tree) Add(ctx context.Context, r io.Reader, l Layer) error {
	t.layer++
	packed := &counter{r: r}
	plain, err := decompress(packed)
	if err != nil {
		return tarError("layer "+l.Digest, err)
	}
	defer plain.Close()
	h := sha256.New()
	body := &capped{r: &ratio{r: plain, packed: packed, lim: t.lim}, left: t.left, what: "what the layers unpack to"}
	defer func() { t.left = body.left }()
	all := io.TeeReader(until(ctx, body), h)
	if err := t.walk(ctx, tar.NewReader(all)); err != nil {
		return tarError("layer "+l.Digest, err)
	}
	if _, err := io.Copy(io.Discard, all); err != nil { // what follows the last entry
		return tarError("layer "+l.Digest, err)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != l.DiffID {
		return refuse("layer %s unpacks to %s; its image says %s", l.Digest, got, l.DiffID)
	}
	return nil
}

// Check refuses the image when one of the paths, or a directory on the way to
// it, is there and is not a real directory. A runtime mounts on these.
func (t *Tree) Check(paths ...string) error {
	for _, p := range paths {
		dir := t.root()
		rest := strings.Trim(path.Clean(p), "/")
		for i, part := range strings.Split(rest, "/") {
			n, ok := t.nodes[t.key(dir.id, part)]
			if !ok {
				break
			}
			if n.kind != kindDir {
				at := strings.Join(strings.Split(rest, "/")[:i+1], "/")
				return refuse("/%s is not a real directory; build the image without that link or file", at)
			}
			dir = n
		}
	}
	return nil
}

func (t *Tree) walk(ctx context.Context, r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if t.files++; t.files > t.lim.Files {
			return refuse("more than %d files", t.lim.Files)
		}
		if t.files%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if h.Size < 0 || h.Size > t.lim.Bytes-t.bytes {
			return refuse("more than %d bytes unpacked", t.lim.Bytes)
		}
		t.bytes += h.Size
		if err := t.entry(h); err != nil {
			return err
		}
	}
}

func (t *Tree) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := entryName(h.Name, t.lim.Path)
	if err != nil {
		return err
	}
	if err := checkAttributes(h, name); err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return refuse("the root is not a directory")
		}
		return nil
	}
	dir, err := t.parent(name)
	if err != nil {
		return err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, whiteout) {
		return t.remove(name, dir, base)
	}
	n, err := t.nodeOf(h, name)
	if err != nil {
		return err
	}
	key := t.key(dir.id, base)
	if old, ok := t.nodes[key]; ok && old.kind == kindDir && n.kind == kindDir {
		n.id, n.fresh = old.id, old.fresh // merged, not replaced
	} else if n.kind == kindDir {
		n.id = t.newID()
	}
	n.layer = t.layer
	t.nodes[key] = n
	return nil
}

// nodeOf says what an entry becomes.
func (t *Tree) nodeOf(h *tar.Header, name string) (node, error) {
	switch h.Typeflag {
	case tar.TypeDir:
		return node{kind: kindDir}, nil
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeFifo:
		if h.Mode&0o6000 != 0 || h.PAXRecords["SCHILY.xattr.security.capability"] != "" {
			t.setID++
		}
		return node{kind: kindFile}, nil
	case tar.TypeSymlink:
		return node{kind: kindLink}, checkLink(name, h.Linkname, t.lim.Path)
	case tar.TypeLink:
		return t.hardLink(name, h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		return node{}, refuse("/%s is a device node; build the image without it (its /dev may be empty)", name)
	}
	return node{}, refuse("/%s has unknown type %q", name, h.Typeflag)
}

func (t *Tree) hardLink(name, to string) (node, error) {
	target, err := entryName(to, t.lim.Path)
	if err != nil {
		return node{}, err
	}
	dir, err := t.walkTo(path.Dir(target))
	if err != nil {
		return node{}, err
	}
	n, ok := t.nodes[t.key(dir.id, path.Base(target))]
	if !ok || n.kind == kindDir {
		return node{}, refuse("/%s is a hard link to /%s, which is no file of the image", name, target)
	}
	return node{kind: n.kind}, nil
}

// remove applies a whiteout.
func (t *Tree) remove(name string, dir node, base string) error {
	if base == opaque {
		if dir.fresh == t.layer {
			// The unpacker would keep what this layer has put there;
			// nobody makes such a layer.
			return refuse("/%s comes after entries of its directory", name)
		}
		// A new id: the children of the old one are out of reach.
		return t.renew(path.Dir(name))
	}
	victim := strings.TrimPrefix(base, whiteout)
	if victim == "" || victim == "." || victim == ".." || strings.HasPrefix(base, meta) {
		return refuse("bad whiteout /%s", name)
	}
	delete(t.nodes, t.key(dir.id, victim))
	return nil
}

// parent finds the directory an entry goes into, making what is missing of
// the way, and refuses a way that is not made of real directories.
func (t *Tree) parent(name string) (node, error) {
	dir := t.root()
	key := t.key(0, "")
	parts := strings.Split(name, "/")
	for i, part := range parts[:len(parts)-1] {
		next := t.key(dir.id, part)
		n, ok := t.nodes[next]
		switch {
		case !ok:
			n = node{kind: kindDir, id: t.newID(), layer: t.layer}
		case n.kind != kindDir:
			return node{}, refuse("/%s lies below /%s, which is not a directory", name, strings.Join(parts[:i+1], "/"))
		}
		t.nodes[next] = n
		dir, key = n, next
	}
	if base := parts[len(parts)-1]; base != opaque {
		d := dir
		d.fresh = t.layer
		t.nodes[key] = d
	}
	return dir, nil
}

// walkTo finds a directory without making it.
func (t *Tree) walkTo(dir string) (node, error) {
	n := t.root()
	if dir == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(dir, "/") {
		next, ok := t.nodes[t.key(n.id, part)]
		if !ok || next.kind != kindDir {
			return node{}, refuse("a hard link goes by way of /%s, which has no directory %q", dir, part)
		}
		n = next
	}
	return n, nil
}

// renew empties a directory.
func (t *Tree) renew(dir string) error {
	key := t.key(0, "")
	n := t.nodes[key]
	if dir != "." {
		for part := range strings.SplitSeq(dir, "/") {
			key = t.key(n.id, part)
			n = t.nodes[key]
		}
	}
	n.id = t.newID()
	t.nodes[key] = n
	return nil
}

func (t *Tree) root() node { return t.nodes[t.key(0, "")] }

func (t *Tree) newID() uint32 { t.last++; return t.last }

// key is where a name of a directory is kept. The hash is keyed: an image
// cannot choose names that collide.
func (t *Tree) key(dir uint32, name string) uint64 {
	return maphash.Comparable(t.seed, struct {
		dir  uint32
		name string
	}{dir, name})
}

// checkLink refuses a relative link that climbs above the root. An absolute
// one is the agent's affair: it is resolved inside.
func checkLink(name, to string, limit int) error {
	if to == "" || len(to) > limit || strings.ContainsRune(to, 0) {
		return refuse("/%s is a link to a bad path", name)
	}
	if path.IsAbs(to) {
		return nil
	}
	if joined := path.Join(path.Dir(name), to); joined == ".." || strings.HasPrefix(joined, "../") {
		return refuse("/%s is a link to %q, above the root", name, to)
	}
	return nil
}

// checkAttributes refuses extended attributes that steer the kernel: overlayfs
// reads trusted.overlay.* and user.overlay.* of its layers.
func checkAttributes(h *tar.Header, name string) error {
	for k := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			if strings.HasPrefix(k, "LIBARCHIVE.xattr.") {
				return refuse("/%s has an attribute in libarchive's form", name)
			}
			continue
		}
		switch {
		case attr == "security.capability", attr == "security.selinux",
			attr == "system.posix_acl_access", attr == "system.posix_acl_default",
			strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay."):
		default:
			return refuse("/%s has the attribute %q", name, attr)
		}
	}
	return nil
}

// counter counts what was read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// ratio refuses a stream that unpacks to far more than was packed.
type ratio struct {
	r      io.Reader
	packed *counter
	lim    Limits
	n      int64
}

func (b *ratio) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.n += int64(n); b.n > b.lim.RatioFrom && b.n/b.lim.Ratio > b.packed.n {
		return 0, refuse("a layer unpacks to more than %d times its size", b.lim.Ratio)
	}
	return n, err
}

// readFunc is an io.Reader.
type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// until reads r until ctx ends.
func until(ctx context.Context, r io.Reader) io.Reader {
	return readFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(p)
	})
}
