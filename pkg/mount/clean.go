package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove unmounts whatever is at target and removes the empty directory. It
// succeeds when there is nothing.
//
// The directory is removed with rmdir(2), never with what it contains: if an
// unmount failed, that would be the caller's files.
func Remove(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not a mount point (any more)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := unix.Rmdir(target); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", target, err)
	}
	return nil
}

// Leftovers are the mount points at and under dir in the daemon's namespace,
// in the order of mounting.
func Leftovers(dir string) ([]string, error) {
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	es, err := table(proc, "thread-self")
	if err != nil {
		return nil, err
	}
	dir = filepath.Clean(dir)
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved // as the table has it
	}
	var out []string
	for _, e := range es {
		if e.point == dir || strings.HasPrefix(e.point, strings.TrimSuffix(dir, "/")+"/") {
			out = append(out, e.point)
		}
	}
	return out, nil
}

// Cleanup takes away all staged mounts under dir, a directory of targets, and
// then dir. It succeeds when dir is gone.
//
// What is attached in a staged tree goes with that. It is not unmounted by its
// path, which leads through directories that are a caller's to move and to make
// links of.
func Cleanup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(append(errs, Remove(dir))...)
}
