// Package recent lists what of a directory tree was made or changed since a
// moment.
//
// There is nothing to compare with, so the kernel's times have to do. The
// change time (ctime) is what counts: nobody sets it, but by setting the host's
// clock. Where the file system keeps a birth time, it tells what is new from
// what is changed. What is not there any more has no time: the directory that
// it was in has changed, and is listed.
//
// The tree is an agent's and other people's, who may be writing to it: names,
// links, depth and number are hostile. So only directories are opened, each
// from the descriptor of the one above it, never through a link and never
// beyond the tree's mount; of everything else only the attributes are read.
// Work is bounded, and the list then says that it is not complete.
package recent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kinds of change.
const (
	Added   = "A"
	Changed = "C"
)

// Change is one file or directory. Of a directory that was moved here only the
// directory itself is one.
type Change struct {
	Kind string
	Tree int    // which of Options.Trees
	Path string // "" is the tree itself, else it begins with "/"; any bytes but NUL
	Mode uint32 // type and permissions as stat(2) has them
	Size int64  // 0 of a directory
}

// Options say where to look. Trees and Since are required.
type Options struct {
	// Trees are directories that only root can replace.
	Trees []string

	// Since is by the kernel's clock, CLOCK_REALTIME_COARSE: see [Now].
	Since time.Time

	// Limit is how many changes are listed; 10,000 when zero.
	Limit int
}

// Bounds, of all trees together.
const (
	maxPathBytes = 1 << 20
	maxDepth     = 256
	maxEntries   = 1_000_000 // looked at
	batch        = 512       // names read at one time
)

// Now is the clock by which file systems stamp what happens from here on: no
// later stamp is earlier, unless the clock is set.
func Now() time.Time {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts) // cannot fail for this clock
	return time.Unix(ts.Unix())
}

// List walks the trees. complete is false when something was left out because
// of a bound, or because ctx ended. A directory that root cannot read through this mount, since it is
// of an id that the mount does not map, is left out as well: nobody who has
// only the mount can change what is in it.
func List(ctx context.Context, o Options) (changes []Change, complete bool, err error) {
	if o.Limit <= 0 {
		o.Limit = 10_000
	}
	w := &walk{ctx: ctx, since: o.Since, limit: o.Limit, entries: maxEntries, complete: true}
	for i, path := range o.Trees {
		if err := w.top(i, path); err != nil {
			return nil, false, err
		}
	}
	slices.SortStableFunc(w.changes, func(a, b Change) int {
		if a.Tree != b.Tree {
			return a.Tree - b.Tree
		}
		return strings.Compare(a.Path, b.Path)
	})
	return w.changes, w.complete, nil
}

type walk struct {
	ctx       context.Context
	since     time.Time
	tree      int
	limit     int
	entries   int // left
	pathBytes int
	complete  bool
	full      bool // one was left out
	changes   []Change
}

// within keeps every step inside the mount.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

func open(at int, name string, resolve uint64) (*os.File, error) {
	fd, err := unix.Openat2(at, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: resolve,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "directory"), nil
}

func (w *walk) top(i int, path string) error {
	w.tree = i
	f, err := open(unix.AT_FDCWD, path, 0)
	if err != nil {
		return fmt.Errorf("mounted directory: %w", err)
	}
	defer f.Close()
	if _, err := w.entry(int(f.Fd()), "", unix.AT_EMPTY_PATH, ""); err != nil {
		return err
	}
	return w.dir(f, "", 0)
}

// dir looks at what is in a directory.
func (w *walk) dir(f *os.File, path string, depth int) error {
	if depth >= maxDepth {
		w.complete = false
		return nil
	}
	for {
		names, err := f.Readdirnames(batch)
		for _, name := range names {
			w.entries--
			if w.entries < 0 || w.ctx.Err() != nil {
				w.complete = false
				return nil
			}
			if err := w.child(f, name, path+"/"+name, depth); err != nil {
				return err
			}
			if w.over() {
				return nil
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // removed while it was open
			return nil
		}
		if err != nil {
			return fmt.Errorf("mounted directory: %w", err)
		}
	}
}

func (w *walk) child(f *os.File, name, path string, depth int) error {
	isDir, err := w.entry(int(f.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, path)
	if !isDir || err != nil {
		return err
	}
	sub, err := open(int(f.Fd()), name, within)
	if err != nil {
		return passing(err)
	}
	defer sub.Close()
	return w.dir(sub, path, depth+1)
}

// entry lists one file or directory if it is recent.
func (w *walk) entry(at int, name string, flags int, path string) (isDir bool, err error) {
	var st unix.Statx_t
	const want = unix.STATX_TYPE | unix.STATX_MODE | unix.STATX_SIZE | unix.STATX_CTIME | unix.STATX_BTIME
	if err := unix.Statx(at, name, flags|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, want, &st); err != nil {
		return false, passing(err)
	}
	if st.Mask&unix.STATX_CTIME == 0 {
		return false, errors.New("mounted directory: its file system tells no change times")
	}
	isDir = st.Mode&unix.S_IFMT == unix.S_IFDIR
	if path != "" && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return false, nil // another tree, attached here
	}
	if w.before(st.Ctime) {
		return isDir, nil
	}
	c := Change{Kind: Changed, Tree: w.tree, Path: path, Mode: uint32(st.Mode), Size: int64(st.Size)}
	if st.Mask&unix.STATX_BTIME != 0 && !w.before(st.Btime) && !w.doubtful(st.Btime) {
		c.Kind = Added
	}
	if isDir {
		c.Size = 0
	}
	if len(w.changes) >= w.limit || w.pathBytes+len(path) > maxPathBytes {
		w.complete, w.full = false, true
		return isDir, nil
	}
	w.pathBytes += len(path)
	w.changes = append(w.changes, c)
	return isDir, nil
}

// over says that looking on is in vain.
func (w *walk) over() bool { return w.full || w.entries < 0 || w.ctx.Err() != nil }

// doubtful says that a stamp may be from before the moment as well as after:
// some file systems, and mkfs, stamp whole seconds.
func (w *walk) doubtful(t unix.StatxTimestamp) bool { return t.Nsec == 0 && t.Sec == w.since.Unix() }

// before says whether a stamp is from before the moment, beyond doubt.
func (w *walk) before(t unix.StatxTimestamp) bool {
	return !w.doubtful(t) && time.Unix(t.Sec, int64(t.Nsec)).Before(w.since)
}

// passing is nil for what others do to a tree while it is walked, and for what
// is closed to us in it.
func passing(err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.EACCES, unix.EPERM, unix.ESTALE} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return fmt.Errorf("mounted directory: %w", err)
}
