package openclaw

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Replace puts after in the place of a file that still holds before, at once:
// whoever reads it sees the one or the other. It keeps mode and group, and
// refuses a symbolic link and a file that is not the calling user's.
func Replace(path string, before, after []byte) (err error) {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	name := filepath.Base(path)
	st, err := writable(dir, name)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	now, err := dir.ReadFile(name)
	if err != nil {
		return err
	}
	if !bytes.Equal(now, before) {
		return fmt.Errorf("%s: it was changed meanwhile; nothing is written", path)
	}
	tmp := "." + name + ".creel-" + rand.Text()
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = dir.Remove(tmp)
		}
	}()
	err = fill(f, after, st)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(filepath.Dir(path), tmp), err)
	}
	if err := dir.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

// writable gives mode and owner of a file that may be replaced.
func writable(dir *os.Root, name string) (*syscall.Stat_t, error) {
	info, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return nil, errors.New("a symbolic link; name the file itself")
	case !info.Mode().IsRegular() || !ok:
		return nil, errors.New("not a file")
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("it belongs to uid %d, not to you", st.Uid)
	case st.Nlink > 1:
		return nil, errors.New("it has other names (hard links), which would keep the old text")
	}
	return st, nil
}

func fill(f *os.File, text []byte, like *syscall.Stat_t) error {
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Chown(-1, int(like.Gid)); err != nil {
		return err
	}
	if err := f.Chmod(fs.FileMode(like.Mode & 0o777)); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
