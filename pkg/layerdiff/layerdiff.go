// Package layerdiff lists what the writable layer of an overlay changes in
// the layers below it.
//
// The writable layer is the agent's, while it may be writing to it: names,
// links, depth and number are hostile. So only directories are opened, each
// from the descriptor of the one above it, never through a link and never
// beyond the layer's file system; of everything else only the attributes are
// read. What an agent can make without end is bounded, and the list then says
// that it is not complete.
package layerdiff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The kinds of change.
const (
	Added   = "A"
	Changed = "C"
	Deleted = "D"
)

// Change is one path that is not as in the layers below.
type Change struct {
	Kind string
	Path string // absolute in the sandbox; any bytes but NUL
	Mode uint32 // type and permissions as stat(2) has them; 0 when deleted
	Size int64
}

// Options are what to compare. Upper and HostID are required.
type Options struct {
	// Upper is the writable layer's directory.
	Upper string

	// Lower are the directories of the layers below, the topmost first.
	Lower []string

	// HostID is what the upper layer's ids have more than those below.
	HostID uint32

	// Limit is how many changes are listed; 10,000 when zero.
	Limit int
}

// The bounds on what an agent can make.
const (
	maxPathBytes = 1 << 20 // of all paths together
	maxDepth     = 256
	maxOpen      = 1024 // directories at one time
	visits       = 10   // entries looked at for each change that may be listed
)

// List gives the changes, those of one directory by name and before what is
// in it. A directory that is in the layers below as well is listed as changed
// when its attributes or anything in it are. complete is false when a bound
// was reached.
func List(ctx context.Context, o Options) (changes []Change, complete bool, err error) {
	if o.Limit <= 0 {
		o.Limit = 10_000
	}
	w := &walk{ctx: ctx, hostID: o.HostID, limit: o.Limit, visits: visits * o.Limit, complete: true}
	top := &dir{upper: -1}
	defer w.close(top)
	if top.upper, err = w.open(unix.AT_FDCWD, o.Upper, 0); err != nil {
		return nil, false, fmt.Errorf("writable layer: %w", err)
	}
	for _, l := range o.Lower {
		fd, err := w.open(unix.AT_FDCWD, l, 0)
		if err != nil {
			return nil, false, fmt.Errorf("layer below: %w", err)
		}
		top.lower = append(top.lower, fd)
	}
	if err := w.dir(top, "", 0); err != nil {
		return nil, false, err
	}
	return w.changes, w.complete, nil
}

type walk struct {
	ctx       context.Context
	hostID    uint32
	limit     int
	visits    int // left
	pathBytes int
	fds       int
	complete  bool
	changes   []Change
}

// dir is a directory in the upper layer, and in those below that have it too.
type dir struct {
	upper int
	lower []int // topmost first
	// opaque means that nothing of lower is seen any more.
	opaque bool
}

// within is how a directory is opened: by one name, which is no link, on the
// same file system.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// open opens a directory for reading its names.
func (w *walk) open(at int, name string, resolve uint64) (int, error) {
	if w.fds >= maxOpen {
		return -1, unix.EMFILE
	}
	fd, err := unix.Openat2(at, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: resolve,
	})
	if err == nil {
		w.fds++
	}
	return fd, err
}

func (w *walk) close(d *dir) {
	for _, fd := range append([]int{d.upper}, d.lower...) {
		if fd >= 0 {
			_ = unix.Close(fd)
			w.fds--
		}
	}
}

// names are those in a directory, sorted, as far as the bounds allow.
func (w *walk) names(fd int) ([]string, error) {
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again), "directory")
	defer f.Close()
	if _, err := f.Seek(0, 0); err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(w.visits + 1)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ENOENT) { // removed while it was open
		return nil, err
	}
	if len(names) > w.visits {
		names, w.complete = names[:w.visits], false
	}
	w.visits -= len(names)
	slices.Sort(names)
	return names, nil
}

// add lists a change, or notes that there is no room for it.
func (w *walk) add(c Change) {
	if len(w.changes) >= w.limit || w.pathBytes+len(c.Path) > maxPathBytes {
		w.complete = false
		return
	}
	w.pathBytes += len(c.Path)
	w.changes = append(w.changes, c)
}

// dir lists the changes in one directory.
func (w *walk) dir(d *dir, path string, depth int) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	names, err := w.names(d.upper)
	if err != nil {
		return fmt.Errorf("writable layer: %w", err)
	}
	if d.opaque {
		if names, err = w.withHidden(d, names); err != nil {
			return err
		}
	}
	for _, name := range names {
		if !w.complete && len(w.changes) >= w.limit {
			return nil
		}
		if err := w.entry(d, name, path+"/"+name, depth); err != nil {
			return err
		}
	}
	return nil
}

// withHidden adds the names that are below only: what is hidden is deleted.
func (w *walk) withHidden(d *dir, names []string) ([]string, error) {
	for _, fd := range d.lower {
		more, err := w.names(fd)
		if err != nil {
			return nil, fmt.Errorf("layer below: %w", err)
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// entry lists the change that one name in the upper layer is.
func (w *walk) entry(d *dir, name, path string, depth int) error {
	was, lower, err := w.below(d, name)
	child := &dir{upper: -1, lower: lower, opaque: d.opaque}
	defer w.close(child)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(d.upper, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT) && d.opaque, err == nil && whiteout(&st):
		if was != nil {
			w.add(Change{Kind: Deleted, Path: path})
		}
		return nil
	case errors.Is(err, unix.ENOENT):
		return nil // gone meanwhile
	case err != nil:
		return fmt.Errorf("writable layer: %w", err)
	}
	c := Change{Kind: Added, Path: path, Mode: st.Mode, Size: st.Size}
	if was != nil {
		c.Kind = Changed
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		w.add(c)
		return nil
	}
	c.Size = 0 // of a directory it says nothing
	before := len(w.changes)
	w.add(c)
	if child.upper, err = w.open(d.upper, name, within); err != nil {
		if errors.Is(err, unix.EMFILE) {
			w.complete = false
			return nil
		}
		return notGone(err)
	}
	child.opaque = child.opaque || opaque(child.upper)
	if depth >= maxDepth {
		w.complete = false
		return nil
	}
	if err := w.dir(child, path, depth+1); err != nil {
		return err
	}
	// Copied up because something was done in it and undone: no change.
	if len(w.changes) == before+1 && c.Kind == Changed && w.complete && w.same(was, &st) {
		w.changes = w.changes[:before]
		w.pathBytes -= len(path)
	}
	return nil
}

// same says whether a directory has the attributes it has below.
func (w *walk) same(was, is *unix.Stat_t) bool {
	return was.Mode == is.Mode && was.Uid+w.hostID == is.Uid && was.Gid+w.hostID == is.Gid
}

// below finds what the layers below show under a name, nil for nothing, and,
// of a directory, the directories that it is made of.
func (w *walk) below(d *dir, name string) (was *unix.Stat_t, dirs []int, err error) {
	for _, fd := range d.lower {
		var st unix.Stat_t
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return was, dirs, fmt.Errorf("layer below: %w", err)
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if whiteout(&st) || was != nil && !isDir {
			return was, dirs, nil
		}
		if was == nil {
			was = &st
		}
		if !isDir {
			return was, dirs, nil
		}
		child, err := w.open(fd, name, within)
		if errors.Is(err, unix.EMFILE) {
			w.complete = false
			return was, dirs, nil
		}
		if err != nil {
			return was, dirs, fmt.Errorf("layer below: %w", err)
		}
		dirs = append(dirs, child)
		if opaque(child) {
			return was, dirs, nil
		}
	}
	return was, dirs, nil
}

// whiteout says whether an entry is how overlayfs says that a name is gone.
// Nobody in a sandbox can make a device.
func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// opaque says whether a directory hides those of its name below. Nobody in a
// sandbox can set an attribute of this kind (xattr(7), trusted).
func opaque(fd int) bool {
	var b [2]byte
	n, err := unix.Fgetxattr(fd, "trusted.overlay.opaque", b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// notGone is err, unless it says that what was there a moment ago is gone or
// something else by now. EXDEV is what openat2(2) says of a directory that was
// moved out of the one it was looked up in: overlayfs moves what it removes
// and replaces with a whiteout into its working directory. Nobody in a sandbox
// can mount anything here.
func notGone(err error) error {
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.ESTALE} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	return fmt.Errorf("writable layer: %w", err)
}
