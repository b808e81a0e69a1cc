package mount

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// OpenGranted opens a directory that the operator has named by an absolute
// path, O_PATH. No part of the path may be a link, and every directory above
// the last must be root's and writable by nobody else: whoever could change
// one would choose what the operator's word means.
func OpenGranted(path string) (*os.File, error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	defer func() { unix.Close(dir) }()
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		var st unix.Stat_t
		if err := unix.Fstat(dir, &st); err != nil {
			return nil, fmt.Errorf("stat a directory above %s: %w", path, err)
		}
		if st.Uid != 0 || st.Mode&0o022 != 0 {
			return nil, api.Errorf(api.CodeDenied, "the directory above %s in %s is not root's alone to change", name, path)
		}
		next, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		unix.Close(dir)
		dir = next
	}
	fd, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Holds says whether a staged directory is dir or lies in it, in their file
// system itself. One that is not staged any more does not.
func Holds(dir *os.File, staged string) (bool, error) {
	f, id, err := openStaged(staged)
	if f == nil || err != nil {
		return false, err
	}
	defer f.Close()
	at, err := identify(int(dir.Fd()))
	if err != nil {
		return false, err
	}
	switch {
	case at.fileID == id:
		return true, nil
	case at.dev != id.dev:
		return false, nil
	}
	top, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // handles want more than O_PATH
	if err != nil {
		return false, fmt.Errorf("open a directory: %w", err)
	}
	defer unix.Close(top)
	return within(int(f.Fd()), id, top, at.fileID)
}
