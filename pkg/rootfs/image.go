package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// maxTemplates bounds what callers with many different limits can make us keep.
const maxTemplates = 16

// makeImage makes an empty ext4 image of o.Limit bytes at path.
func (m *Maker) makeImage(ctx context.Context, path string, o Options) error {
	src, err := m.template(ctx, o)
	if err != nil {
		return fmt.Errorf("writable layer's image: %w", err)
	}
	defer src.Close()
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("writable layer's image: %w", err)
	}
	if err := errors.Join(copySparse(dst, src), dst.Close()); err != nil {
		return fmt.Errorf("writable layer's image: %w", err)
	}
	return nil
}

// template opens the formatted image of a size, and makes it the first time.
func (m *Maker) template(ctx context.Context, o Options) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := filepath.Join(m.root, nameTemplates, fmt.Sprintf("%d-%d.ext4", o.Limit, o.Inodes))
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if err := m.dropTemplates(); err != nil {
		return nil, err
	}
	tmp := name + ".new" // what a crash left of one is overwritten
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// No journal: what a crash leaves is thrown away.
	err = format(ctx, m.mkfs, tmp, o.Limit, o.Inodes, "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard")
	if err != nil {
		_ = os.Remove(tmp)
		return nil, err
	}
	if err := os.Rename(tmp, name); err != nil {
		return nil, err
	}
	return os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
}

// dropTemplates makes room for one more. Templates cost some 10 ms each.
func (m *Maker) dropTemplates() error {
	dir := filepath.Join(m.root, nameTemplates)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < maxTemplates {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// format makes the file at path an ext4 file system of size bytes. flags are
// more of mkfs.ext4's.
func format(ctx context.Context, mkfs, path string, size api.Size, inodes int64, flags ...string) error {
	mkfs, err := findMkfs(mkfs)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(size)), f.Close()); err != nil {
		return err
	}
	// No blocks kept for root.
	args := append([]string{"-q", "-F", "-b", "4096", "-m", "0", "-N", strconv.FormatInt(inodes, 10)}, flags...)
	cmd := exec.CommandContext(ctx, mkfs, append(args, path)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", mkfs, err, bytes.TrimSpace(out))
	}
	return nil
}

// defaultInodes is one for every 16 KiB, within bounds.
func defaultInodes(size api.Size) int64 { return min(max(int64(size)>>14, 1024), 1<<20) }

func findMkfs(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	for _, p := range []string{"/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", api.Errorf(api.CodeUnsupportedHost, "mkfs.ext4 is not installed").
		WithHint("install e2fsprogs; only a writable root of at most a quarter of limits.memory works without")
}

// copySparse copies only what src holds: by sharing its blocks where the file
// system can (FICLONE), else range by range.
func copySparse(dst, src *os.File) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if err == nil {
		return nil
	}
	if !slices.Contains([]error{unix.EOPNOTSUPP, unix.EINVAL, unix.EXDEV, unix.ENOTTY, unix.ENOSYS}, err) {
		return fmt.Errorf("clone a template: %w", err)
	}
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(fi.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return fmt.Errorf("copy a template: %w", err)
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("copy a template: %w", err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, data), io.NewSectionReader(src, data, hole-data)); err != nil {
			return fmt.Errorf("copy a template: %w", err)
		}
		at = hole
	}
}
