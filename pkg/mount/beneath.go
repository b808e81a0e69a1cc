package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/thread"
)

// Beneath says whether a caller's directory is top or lies below it. That is
// asked of their file system first, with no regard to what is mounted where.
// Else the mount table has to say it, and only that of the host's mount
// namespace (nil is the thread's), which is root's to lay out: in one of its
// own a caller can mount anything below anything. It asks no file system that
// is somebody's process.
func Beneath(dir, top, host *os.File) (bool, error) {
	var topID, dirID fileID
	var err error
	if topID.dev, topID.ino, err = Identify(top); err != nil {
		return false, err
	}
	if dirID.dev, dirID.ino, err = Identify(dir); err != nil {
		return false, err
	}
	if topID == dirID {
		return true, nil
	}
	in, err := within(int(dir.Fd()), dirID, int(top.Fd()), topID)
	if in || err != nil {
		return in, err
	}
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, err
	}
	defer proc.Close()
	err = thread.Do(func() error {
		if err := enter(host); err != nil {
			return err
		}
		m, err := mountOf(proc, int(dir.Fd()))
		if err != nil || !mappable[m.fsType] {
			return err
		}
		up, err := climb(int(dir.Fd()), func(id fileID) bool { return id == topID })
		in = err == nil && up[len(up)-1] == topID
		return err
	})
	if errors.Is(err, errNotHere) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("where the directory is: %w", err)
	}
	return in, nil
}

// Owner is the uid that a directory belongs to, as its mount shows it. It does
// not ask a file system that is somebody's process.
func Owner(dir *os.File) (uint32, error) {
	var st unix.Statx_t
	err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_UID, &st)
	if err != nil {
		return 0, fmt.Errorf("stat the directory: %w", err)
	}
	return st.Uid, nil
}
