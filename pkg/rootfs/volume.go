package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// pendingPrefix marks the directory of a volume that is being made or removed.
const pendingPrefix = "pending-"

// Volumes keeps file systems that outlive sandboxes: ext4 with a journal in
// sparse files, below one directory. It is safe for concurrent use.
//
//	<root>/<id>/image          the file system
//	<root>/<id>/fs             where it is mounted while it is used
//	<root>/pending-<id>/       one that is being made, or removed
//
// Whether a volume exists is for a record elsewhere to say: a pending one with
// a record is kept, one without is removed. One that is not pending is never
// removed, so a lost record loses nothing.
//
// An image has one loop device and one mount at a time, of which sandboxes get
// clones: two would be two file systems writing the same blocks.
type Volumes struct {
	root, mkfs string

	mu sync.Mutex // an image is mounted and unmounted by one at a time
}

// NewVolumes makes Volumes for a directory that only root can enter, and makes
// that directory. mkfs is as for [New].
func NewVolumes(root, mkfs string) (*Volumes, error) {
	if !filepath.IsAbs(root) || mkfs != "" && !filepath.IsAbs(mkfs) {
		return nil, fmt.Errorf("volumes: %q and %q must be absolute paths", root, mkfs)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	root, err := filepath.EvalSymlinks(root) // as the kernel names a loop device's file
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return &Volumes{root: root, mkfs: mkfs}, nil
}

// Make makes a pending volume of size bytes, rounded down to whole MiB, whose
// root directory belongs to uid and the group of that number. It returns how
// many files and directories the volume may have.
func (v *Volumes) Make(ctx context.Context, id string, size api.Size, uid uint32) (inodes int64, err error) {
	if err := checkID(id); err != nil {
		return 0, err
	}
	size = size >> 20 << 20
	if size < api.MinVolume || size > api.MaxVolume {
		return 0, api.Errorf(api.CodeInvalid, "a volume of %s is not from %s to %s", size, api.MinVolume, api.MaxVolume)
	}
	dir := v.pending(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, fmt.Errorf("volume: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dismantle(dir))
		}
	}()
	image := filepath.Join(dir, nameImage)
	inodes = defaultInodes(size)
	// The file is all zeros already, so nothing of it need be written.
	err = format(ctx, v.mkfs, image, size, inodes, "-O", "^resize_inode",
		"-E", fmt.Sprintf("lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=%d:%d", uid, uid))
	if err != nil {
		return 0, fmt.Errorf("volume: %w", err)
	}
	if err := os.Mkdir(filepath.Join(dir, nameMount), 0o700); err != nil {
		return 0, fmt.Errorf("volume: %w", err)
	}
	for _, p := range []string{image, dir, v.root} {
		if err := syncFile(p); err != nil {
			return 0, fmt.Errorf("volume: %w", err)
		}
	}
	return inodes, nil
}

// Keep makes a pending volume one that stays. It succeeds when it is one.
func (v *Volumes) Keep(id string) error { return v.rename(id, v.pending(id), v.dir(id)) }

// Retire makes a volume pending. Nothing uses it, or begins to.
func (v *Volumes) Retire(id string) error { return v.rename(id, v.dir(id), v.pending(id)) }

func (v *Volumes) rename(id, from, to string) error {
	if err := checkID(id); err != nil {
		return err
	}
	err := os.Rename(from, to)
	if errors.Is(err, os.ErrNotExist) {
		if _, terr := os.Lstat(to); terr == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("volume: %w", err)
	}
	return syncFile(v.root)
}

// Discard removes a pending volume with what is in it.
func (v *Volumes) Discard(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return dismantle(v.pending(id))
}

// Open mounts a volume, unless it is mounted, and returns its root directory
// and its loop device. The caller closes the directory.
func (v *Volumes) Open(id string) (root *os.File, device string, err error) {
	if err := checkID(id); err != nil {
		return nil, "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	at := filepath.Join(v.dir(id), nameMount)
	mounted, err := isMount(at)
	if err != nil {
		return nil, "", fmt.Errorf("volume: %w", err)
	}
	if !mounted {
		if err := v.mount(id, at); err != nil {
			return nil, "", err
		}
	}
	if err := private(at); err != nil { // again: the last daemon may have been killed before it was
		return nil, "", err
	}
	root, err = os.OpenFile(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, "", fmt.Errorf("volume: %w", err)
	}
	defer func() {
		if err != nil {
			_ = root.Close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, "", fmt.Errorf("volume: %w", err)
	}
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return nil, "", fmt.Errorf("volume's loop device: %w", err)
	}
	return root, "/dev/" + filepath.Base(link), nil
}

func (v *Volumes) mount(id, at string) (err error) {
	image := filepath.Join(v.dir(id), nameImage)
	devs, err := loopsOf(image)
	if err != nil {
		return err
	}
	// The mount keeps the device from here on, and its end frees it.
	defer func() { closeAll(devs) }()
	if len(devs) == 0 {
		dev, err := attachLoop(image, id)
		if err != nil {
			return err
		}
		devs = append(devs, dev)
	}
	// discard: what is deleted in the volume is given back to the host.
	// noinit_itable: as for a layer.
	if err := unix.Mount(devs[0].Name(), at, "ext4", mountFlags, "noinit_itable,discard,errors=remount-ro"); err != nil {
		return fmt.Errorf("mount the volume's image: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unmount(at))
		}
	}()
	return dropLostFound(at)
}

// lostFoundInode is the inode of the lost+found that mkfs.ext4 makes
// (EXT4_GOOD_OLD_FIRST_INO).
const lostFoundInode = 11

// dropLostFound removes mkfs's own directory, so that a new volume is empty.
func dropLostFound(at string) error {
	path := filepath.Join(at, "lost+found")
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Ino != lostFoundInode || st.Uid != 0 {
		return nil //nolint:nilerr // it is gone, or the agent's own
	}
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("volume: %w", err)
	}
	return nil
}

// Release unmounts a volume unless it is used. used is asked while nobody else
// can open the volume. Clones that are still there keep it alive.
func (v *Volumes) Release(id string, used func() bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if used() {
		return nil
	}
	if err := unmount(filepath.Join(v.dir(id), nameMount)); err != nil {
		return err
	}
	// The kernel frees the device by itself, but a moment later.
	return detachLoops(filepath.Join(v.dir(id), nameImage))
}

// Used is how many bytes of the host's disk a volume takes.
func (v *Volumes) Used(id string) (api.Size, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(v.dir(id), nameImage), &st); err != nil {
		return 0, fmt.Errorf("volume: %w", err)
	}
	return api.Size(st.Blocks) * 512, nil
}

// List is the ids of the volumes there are, and of those pending.
func (v *Volumes) List() (kept, pending []string, err error) {
	entries, err := os.ReadDir(v.root)
	if err != nil {
		return nil, nil, fmt.Errorf("volumes: %w", err)
	}
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), pendingPrefix); ok && checkID(id) == nil {
			pending = append(pending, id)
		} else if checkID(e.Name()) == nil {
			kept = append(kept, e.Name())
		}
	}
	return kept, pending, nil
}

func (v *Volumes) dir(id string) string     { return filepath.Join(v.root, id) }
func (v *Volumes) pending(id string) string { return filepath.Join(v.root, pendingPrefix+id) }

// isMount says whether path is where something is mounted.
func isMount(path string) (bool, error) {
	var stx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &stx); err != nil {
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if stx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, errors.New("the kernel does not tell mount points")
	}
	return stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
