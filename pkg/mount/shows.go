package mount

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Shows says whether a staged mount shows a caller's directory, as what is
// staged or in it, and whether all of it can only be read there. That is asked
// of their file system, with no regard to names and to what is mounted where,
// and of no file system that is somebody's process. It does not if the staged
// mount lets nothing be executed and the directory's own mount does, if it is
// not staged any more, or if creeld may not look.
func Shows(staged string, dir *os.File) (is, readOnly bool, err error) {
	top, topID, err := openStaged(staged)
	if top == nil || err != nil {
		return false, false, err
	}
	defer top.Close()
	var id fileID
	if id.dev, id.ino, err = Identify(dir); err != nil || id.dev != topID.dev {
		return false, false, err
	}
	if id != topID {
		is, err := liesIn(dir, id, top, topID)
		if errors.Is(err, unix.EACCES) {
			return false, false, nil
		}
		if !is || err != nil {
			return false, false, err
		}
	}
	var on, from unix.Statfs_t // of one file system, which is one that is staged
	if err := errors.Join(unix.Fstatfs(int(top.Fd()), &on), unix.Fstatfs(int(dir.Fd()), &from)); err != nil {
		return false, false, err
	}
	if on.Flags&unix.ST_NOEXEC != 0 && from.Flags&unix.ST_NOEXEC == 0 {
		return false, false, nil
	}
	return true, on.Flags&unix.ST_RDONLY != 0, nil
}
