// Package layertar writes what is in the writable layer of an overlay as the
// tar of an OCI image's layer (image-spec, layer.md).
//
//	dropped, err := layertar.Write(ctx, w, layertar.Options{Upper: dir, HostID: first, Bytes: n, Files: m})
//
// The layer is an agent's, perhaps a root's inside, and hostile: names, links,
// depth, sizes and number. Only directories and regular files are opened, each
// by one name from the descriptor of the directory above, never through a link
// and never beyond the layer's file system. Nothing may change it meanwhile:
// what does is an error, and no more than that.
//
// Ids are those inside. Set-user-ID and set-group-ID bits, devices, sockets
// and extended attributes are left out. What an image cannot say, or would say
// something else with, is refused: a file called as image layers call the
// removal of another, and a directory that overlayfs moved without copying.
package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller can test for.
var (
	// ErrTooLarge means that the layer has more than Options allows.
	ErrTooLarge = errors.New("the layer is too large")
	// ErrRefused means that something in the layer cannot be in an image.
	ErrRefused = errors.New("the layer cannot be an image's")
	// ErrChanged means that the layer was written to meanwhile.
	ErrChanged = errors.New("the layer changed while it was read")
)

// Options say what to write. All are required.
type Options struct {
	// Upper is the writable layer's directory.
	Upper string
	// HostID is the first of the IDs host ids that are 0 to IDs-1 inside.
	HostID, IDs uint32
	// Bytes and Files bound what all files together hold, holes included, and
	// how many entries there are.
	Bytes int64
	Files int
	// Names bounds the bytes of names that are remembered at one time: those
	// of the directories that are being read, and the paths of files with more
	// than one.
	Names int64
}

// Dropped counts what was left out.
type Dropped struct {
	SetIDs  int // files and directories that lost a set-ID bit
	Special int // devices and sockets
}

const (
	maxDepth = 256
	maxPath  = 4096

	removal = ".wh."         // before the name of what is gone (layer.md)
	hides   = ".wh..wh..opq" // the directory hides the one below
	modes   = 0o1777         // that an image may have
)

// Write writes the layer to w.
func Write(ctx context.Context, w io.Writer, o Options) (Dropped, error) {
	l := &layer{ctx: ctx, o: o, tw: tar.NewWriter(w), now: time.Now(), linked: map[inode]string{}}
	fd, err := open(unix.AT_FDCWD, o.Upper, unix.O_DIRECTORY, 0)
	if err != nil {
		return l.dropped, fmt.Errorf("writable layer: %w", err)
	}
	defer fd.Close()
	if err := l.dir(fd, "", 0); err != nil {
		return l.dropped, err
	}
	return l.dropped, l.tw.Close()
}

type inode struct{ dev, ino uint64 }

type layer struct {
	ctx     context.Context
	o       Options
	tw      *tar.Writer
	now     time.Time
	bytes   int64
	files   int
	names   int64            // bytes of names remembered
	linked  map[inode]string // the first name of a file with more than one
	dropped Dropped
}

// within is how something is opened: by one name, which is no link, on the
// same file system.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func open(at int, name string, flags, resolve uint64) (*os.File, error) {
	fd, err := unix.Openat2(at, name, &unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: resolve,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// dir writes what is in a directory.
func (l *layer) dir(d *os.File, at string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: %q is more than %d directories deep", ErrTooLarge, at, maxDepth)
	}
	before := l.names
	names, err := l.list(d, at)
	if err != nil {
		return err
	}
	held := l.names - before
	defer func() { l.names -= held }()
	for _, name := range names {
		if err := l.entry(int(d.Fd()), name, path.Join(at, name), depth); err != nil {
			return err
		}
	}
	return nil
}

// list is the names in a directory, sorted.
func (l *layer) list(d *os.File, at string) (names []string, err error) {
	const batch = 1024
	for {
		some, err := d.Readdirnames(batch)
		for _, n := range some {
			if err := l.remember(n); err != nil {
				return nil, err
			}
		}
		if names = append(names, some...); len(names) > l.o.Files-l.files {
			return nil, fmt.Errorf("%w: more than %d files", ErrTooLarge, l.o.Files)
		}
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, changed(at, err)
		}
	}
}

// remember counts a name that is kept.
func (l *layer) remember(name string) error {
	const header = 16 // of a string
	if l.names += int64(len(name)) + header; l.names > l.o.Names {
		return fmt.Errorf("%w: names of more than %d bytes in one directory and those above it, or of files with several", ErrTooLarge, l.o.Names)
	}
	return nil
}

// entry writes one name of a directory, and what is in it.
func (l *layer) entry(dir int, name, at string, depth int) error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	if l.files++; l.files > l.o.Files {
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, l.o.Files)
	}
	if len(at) > maxPath {
		return fmt.Errorf("%w: a path of %d bytes, and at most %d", ErrTooLarge, len(at), maxPath)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return changed(at, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFCHR && st.Rdev == 0 {
		// How overlayfs says that a name is gone. Nobody inside makes devices.
		return l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(at), removal+name), ModTime: time.Unix(0, 0)})
	}
	if strings.HasPrefix(name, removal) {
		return fmt.Errorf("%w: %q has a name that says in an image that a file is gone; remove or rename it", ErrRefused, "/"+at)
	}
	h, err := l.header(&st, at)
	if err != nil {
		return err
	}
	switch kind {
	case unix.S_IFDIR:
		return l.directory(dir, name, h, depth)
	case unix.S_IFREG:
		return l.regular(dir, name, h, &st)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlink(dir, name); err != nil {
			return changed(at, err)
		}
		return l.tw.WriteHeader(h)
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return l.tw.WriteHeader(h)
	}
	l.dropped.Special++
	return nil
}

// header is what is said of an entry whatever it is.
func (l *layer) header(st *unix.Stat_t, at string) (*tar.Header, error) {
	uid, gid := st.Uid-l.o.HostID, st.Gid-l.o.HostID // wraps around below the first
	if uid >= l.o.IDs || gid >= l.o.IDs {
		return nil, fmt.Errorf("%w: %q is of %d:%d, who is nobody's in the sandbox", ErrRefused, "/"+at, st.Uid, st.Gid)
	}
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		l.dropped.SetIDs++
	}
	t := time.Unix(st.Mtim.Sec, 0)
	if st.Mtim.Sec < 0 {
		t = time.Unix(0, 0)
	} else if t.After(l.now) {
		t = l.now.Truncate(time.Second)
	}
	return &tar.Header{Name: at, Mode: int64(st.Mode & modes), Uid: int(uid), Gid: int(gid), ModTime: t}, nil
}

func (l *layer) directory(parent int, name string, h *tar.Header, depth int) error {
	at := h.Name
	d, err := open(parent, name, unix.O_DIRECTORY, within)
	if err != nil {
		return changed(at, err)
	}
	defer d.Close()
	if err := whole(d, at); err != nil {
		return err
	}
	h.Typeflag, h.Name = tar.TypeDir, at+"/"
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	if attr(d, "opaque") == "y" {
		err := l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: at + "/" + hides, ModTime: time.Unix(0, 0)})
		if err != nil {
			return err
		}
	}
	return l.dir(d, at, depth+1)
}

func (l *layer) regular(parent int, name string, h *tar.Header, st *unix.Stat_t) error {
	at := h.Name
	id := inode{st.Dev, st.Ino}
	if first, ok := l.linked[id]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return l.tw.WriteHeader(h)
	}
	f, err := open(parent, name, 0, within)
	if err != nil {
		return changed(at, err)
	}
	defer f.Close()
	var is unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &is); err != nil {
		return err
	}
	if (inode{is.Dev, is.Ino}) != id || is.Mode != st.Mode || is.Size != st.Size {
		return changed(at, unix.ESTALE)
	}
	if err := whole(f, at); err != nil {
		return err
	}
	// Before a byte is read: a hole has any size.
	if is.Size > l.o.Bytes-l.bytes {
		return fmt.Errorf("%w: more than %d bytes with %q, which has %d", ErrTooLarge, l.o.Bytes, "/"+at, is.Size)
	}
	l.bytes += is.Size
	if is.Nlink > 1 {
		if err := l.remember(at); err != nil {
			return err
		}
		l.linked[id] = at
	}
	h.Typeflag, h.Size = tar.TypeReg, is.Size
	if err := l.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(l.tw, until(l.ctx, io.LimitReader(f, is.Size)))
	if err == nil && n != is.Size {
		err = changed(at, io.ErrUnexpectedEOF)
	}
	return err
}

// whole refuses what overlayfs keeps without its content: a directory that
// was renamed (redirect) and a file of which only the attributes are here
// (metacopy). Only a kernel told to does so (overlayfs.rst).
func whole(f *os.File, at string) error {
	for _, a := range []string{"redirect", "metacopy"} {
		if _, err := unix.Fgetxattr(int(f.Fd()), "trusted.overlay."+a, nil); err == nil {
			return fmt.Errorf("%w: %q is not whole in it (overlay %s); load the overlay module with redirect_dir=off metacopy=off", ErrRefused, "/"+at, a)
		}
	}
	return nil
}

// attr is an attribute of overlayfs's, empty when there is none. Nobody inside
// can set one (xattr(7), trusted).
func attr(f *os.File, name string) string {
	var b [8]byte
	n, err := unix.Fgetxattr(int(f.Fd()), "trusted.overlay."+name, b[:])
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func readlink(dir int, name string) (string, error) {
	b := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(dir, name, b)
	if err == nil && n > maxPath {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

// changed is an error about what was there a moment ago.
func changed(at string, err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ESTALE, unix.EXDEV, unix.EINVAL, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %q", ErrChanged, "/"+at)
		}
	}
	return fmt.Errorf("writable layer: %w", err)
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
