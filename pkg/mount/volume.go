package mount

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Volume is the root directory of a file system of the daemon's own, to be
// staged for one sandbox. All fields are required but ReadOnly.
type Volume struct {
	// Dir is the root directory; O_PATH will do. It stays the caller's.
	Dir *os.File
	// Target is as for [Request].
	Target   string
	ReadOnly bool
	// First is the sandbox's first host id. UserNS maps the ids 0 to 65535 of
	// the file system to those from First on; it can be closed afterwards.
	First  uint32
	UserNS *os.File
}

// StageVolume clones v.Dir's mount, restricts and id-maps the clone, attaches
// it at v.Target and reads it back. undo is [Remove] of the target.
func StageVolume(ctx context.Context, v Volume) (undo func(context.Context) error, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	tree, err := unix.OpenTree(int(v.Dir.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone the volume's mount: %w", err)
	}
	defer unix.Close(tree)
	if err := restrict(tree, Request{UserNS: v.UserNS, ReadOnly: v.ReadOnly}, "ext4"); err != nil {
		return nil, err
	}
	if err := attach(tree, v.Target, func() error { return readVolumeBack(v) }); err != nil {
		return nil, err
	}
	return func(context.Context) error { return Remove(v.Target) }, nil
}

func readVolumeBack(v Volume) error {
	st, m, err := attached(v.Target)
	if err != nil {
		return err
	}
	var src unix.Stat_t
	if err := unix.Fstat(int(v.Dir.Fd()), &src); err != nil {
		return fmt.Errorf("read the staged volume back: %w", err)
	}
	err = restricted(st, m, fileID{src.Dev, src.Ino}, v.ReadOnly)
	if err == nil && (st.Uid != src.Uid+v.First || st.Gid != src.Gid+v.First) {
		err = fmt.Errorf("it belongs to %d:%d, and to %d:%d in the volume", st.Uid, st.Gid, src.Uid, src.Gid)
	}
	if err != nil {
		return fmt.Errorf("the staged volume at %s is not what was asked for: %w", v.Target, err)
	}
	return nil
}

// Related says whether one of two staged directories is the other, is in it or
// holds it. That is asked of their file system, with no regard to names and to
// what is mounted where. One that is not staged any more is related to none.
func Related(a, b string) (bool, error) {
	da, ida, err := openStaged(a)
	if da == nil || err != nil {
		return false, err
	}
	defer da.Close()
	db, idb, err := openStaged(b)
	if db == nil || err != nil {
		return false, err
	}
	defer db.Close()
	if ida == idb {
		return true, nil
	}
	in, err := isIn(da, ida, db, idb)
	if in || err != nil {
		return in, err
	}
	return isIn(db, idb, da, ida)
}

// isIn is liesIn, with an error for people.
func isIn(in *os.File, inID fileID, top *os.File, topID fileID) (bool, error) {
	is, err := liesIn(in, inID, top, topID)
	return is, untold(err)
}

// liesIn says whether a directory is in a staged one. It looks on a mount
// that shows the whole file system if there is one: staged mounts are
// id-mapped, and on those even root may not look into a directory that is its
// owner's alone and whose owner the map leaves out.
func liesIn(in *os.File, inID fileID, top *os.File, topID fileID) (bool, error) {
	on, err := wholeMount(topID.dev)
	if err == nil && on == nil {
		on, err = reopen(top)
	}
	if err != nil {
		return false, err
	}
	defer on.Close()
	return within(int(in.Fd()), inID, int(on.Fd()), topID)
}

func reopen(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a staged directory: %w", err)
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// wholeMount is the top of a mount that shows all of a file system as it is,
// nil if the thread's namespace has none.
func wholeMount(dev uint64) (*os.File, error) {
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	var found []entry
	device := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	err = scan(proc, "thread-self", func(e entry) {
		if e.device == device && e.root == "/" && !e.has("idmapped") {
			found = append(found, e)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, e := range found {
		f, err := os.OpenFile(e.point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue // something is mounted over it
		}
		if id, err := mountID(int(f.Fd())); err == nil && id == e.id {
			return f, nil
		}
		_ = f.Close()
	}
	return nil, nil
}

// untold makes an answer of the kernel's refusal to look.
func untold(err error) error {
	if !errors.Is(err, unix.EACCES) {
		return err
	}
	return api.Errorf(api.CodeConflict, "it cannot be told whether another agent can write the directory: its file system is not mounted whole where creeld could look").
		WithHint("mount it read-only, or let others search it (chmod o+x)")
}

func openStaged(path string) (*os.File, fileID, error) {
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fileID{}, nil
	}
	if err != nil {
		return nil, fileID{}, fmt.Errorf("staged directory: %w", err)
	}
	at, err := identify(int(f.Fd()))
	if err != nil {
		_ = f.Close()
		return nil, fileID{}, err
	}
	return f, at.fileID, nil
}
