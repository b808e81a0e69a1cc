// Package rootfs makes file systems with a limit in bytes and files that the
// file system itself enforces: whoever writes more gets ENOSPC at once, and
// nothing has to watch. They are the writable layer of a sandbox's root
// ([Maker]), which goes with the sandbox, and volumes ([Volumes]), which stay.
//
// A layer is a file system of its own: a tmpfs when the limit is at most a
// quarter of the memory limit, which its pages count against; otherwise an
// ext4 image in a sparse file on a loop device, whose file never gets larger
// than the limit. An image's own tables, about 2%, come out of the limit. Why
// not project quotas: docs/adr/0009-disk-limits-by-images.md.
//
// Everything of a layer is under <root>/<sandbox id>, and the loop device is
// marked with the id, so that what a crash left can be found without a record:
//
//	<root>/templates/<size>-<inodes>.ext4   empty images, formatted once
//	<root>/<id>/image                       ext4 only
//	<root>/<id>/fs                          where the layer is mounted
//	<root>/<id>/fs/upper, fs/work           for overlayfs
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

// The kinds of layer.
const (
	KindTmpfs = "tmpfs"
	KindExt4  = "ext4"
)

// MinLimit is the smallest limit: an ext4 image below it has no room for
// anything but itself.
const MinLimit api.Size = 4 << 20

const (
	nameImage     = "image"
	nameMount     = "fs"
	nameUpper     = "upper"
	nameWork      = "work"
	nameTemplates = "templates"
)

// Options say what a layer may hold. Limit, Memory and HostUID are required.
type Options struct {
	// Limit is in bytes; rounded down to whole MiB.
	Limit api.Size

	// Memory is the sandbox's memory limit.
	Memory api.Size

	// Inodes is the number of files and directories; one for every 16 KiB of
	// Limit when zero, within 1,024 and 1,048,576.
	Inodes int64

	// HostUID is the first id of the sandbox's range, which owns the root
	// directory: overlayfs id-maps lower layers, but not the upper one.
	HostUID uint32

	// Home is a directory of the sandbox's that HomeUID, a host uid, owns
	// whatever the image says, so that there is a place to write. May be empty.
	Home    string
	HomeUID uint32
}

// Layer is a writable layer, mounted.
type Layer struct {
	Kind        string
	Upper, Work string // for overlayfs' upperdir= and workdir=
}

// Maker makes layers under one directory. It is safe for concurrent use.
type Maker struct {
	root string
	mkfs string

	mu sync.Mutex // templates are made one at a time
}

// New makes a Maker for a directory that only root can enter, and makes that
// directory. mkfs is the absolute path of mkfs.ext4; when empty, the usual
// places are tried at the first use.
func New(root, mkfs string) (*Maker, error) {
	if !filepath.IsAbs(root) || mkfs != "" && !filepath.IsAbs(mkfs) {
		return nil, fmt.Errorf("writable layers: %q and %q must be absolute paths", root, mkfs)
	}
	if err := os.MkdirAll(filepath.Join(root, nameTemplates), 0o700); err != nil {
		return nil, fmt.Errorf("writable layers: %w", err)
	}
	root, err := filepath.EvalSymlinks(root) // as the kernel names a loop device's file
	if err != nil {
		return nil, fmt.Errorf("writable layers: %w", err)
	}
	return &Maker{root: root, mkfs: mkfs}, nil
}

// OnDisk says whether a layer of these options takes disk, and not memory.
func (o Options) OnDisk() bool { return o.Limit > o.Memory/4 }

// Prepare makes the layer of a sandbox that has none. undo takes it away again
// and can be repeated.
func (m *Maker) Prepare(ctx context.Context, id string, o Options) (_ Layer, undo func(context.Context) error, err error) {
	if err := checkID(id); err != nil {
		return Layer{}, nil, err
	}
	o.Limit = o.Limit >> 20 << 20
	if o.Limit < MinLimit {
		return Layer{}, nil, api.Errorf(api.CodeInvalid, "a writable root of %s is too small", o.Limit).
			WithHint("give limits.disk at least " + MinLimit.String())
	}
	if o.Inodes == 0 {
		o.Inodes = defaultInodes(o.Limit)
	}
	if err := os.Mkdir(m.dir(id), 0o700); err != nil {
		return Layer{}, nil, fmt.Errorf("writable layer: %w", err)
	}
	undo = func(context.Context) error { return m.Remove(id) }
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Remove(id))
		}
	}()
	l := Layer{Kind: KindTmpfs}
	if o.OnDisk() {
		l.Kind = KindExt4
	}
	at := filepath.Join(m.dir(id), nameMount)
	if err := os.Mkdir(at, 0o700); err != nil {
		return Layer{}, nil, fmt.Errorf("writable layer: %w", err)
	}
	if l.Kind == KindTmpfs {
		err = mountTmpfs(id, at, o)
	} else {
		err = m.mountImage(ctx, id, at, o)
	}
	if err != nil {
		return Layer{}, nil, err
	}
	if err := l.makeDirs(at, o); err != nil {
		return Layer{}, nil, fmt.Errorf("writable layer: %w", err)
	}
	return l, undo, nil
}

const mountFlags = unix.MS_NOSUID | unix.MS_NODEV

func mountTmpfs(id, at string, o Options) error {
	data := fmt.Sprintf("size=%d,nr_inodes=%d,mode=0700", o.Limit, o.Inodes)
	if err := unix.Mount("creel-"+id, at, "tmpfs", mountFlags, data); err != nil {
		return fmt.Errorf("mount the writable layer's tmpfs: %w", err)
	}
	return private(at)
}

func (m *Maker) mountImage(ctx context.Context, id, at string, o Options) error {
	image := filepath.Join(m.dir(id), nameImage)
	if err := m.makeImage(ctx, image, o); err != nil {
		return err
	}
	dev, err := attachLoop(image, id)
	if err != nil {
		return err
	}
	// The mount keeps the device from here on, and its end frees it.
	defer dev.Close()
	// noinit_itable: the kernel would write the tables of the whole image in
	// the background, and the sparse file would not stay sparse.
	if err := unix.Mount(dev.Name(), at, "ext4", mountFlags, "noinit_itable,errors=remount-ro"); err != nil {
		return fmt.Errorf("mount the writable layer's image: %w", err)
	}
	return private(at)
}

func private(at string) error {
	if err := unix.Mount("", at, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the writable layer private: %w", err)
	}
	return nil
}

// makeDirs makes the directories that overlayfs wants, in a file system that
// nobody else can reach yet.
func (l *Layer) makeDirs(at string, o Options) error {
	fs, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer fs.Close()
	type entry struct {
		name string
		mode os.FileMode
		uid  int
	}
	dirs := []entry{{nameWork, 0o711, 0}, {nameUpper, 0o755, int(o.HostUID)}}
	for name := range strings.SplitSeq(strings.Trim(o.Home, "/"), "/") {
		if name != "" {
			dirs = append(dirs, entry{filepath.Join(dirs[len(dirs)-1].name, name), 0o755, int(o.HostUID)})
		}
	}
	if o.Home != "" {
		dirs[len(dirs)-1].uid = int(o.HomeUID)
	}
	for _, d := range dirs {
		if err := fs.Mkdir(d.name, d.mode); err != nil {
			return err
		}
		if err := fs.Chmod(d.name, d.mode); err != nil { // the umask
			return err
		}
		if err := fs.Chown(d.name, d.uid, d.uid); err != nil {
			return err
		}
	}
	l.Upper, l.Work = filepath.Join(at, nameUpper), filepath.Join(at, nameWork)
	return nil
}

// Remove takes away the layer of a sandbox: its mount, its loop device and its
// files, whatever of them there is.
func (m *Maker) Remove(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return dismantle(m.dir(id))
}

// dismantle takes away a directory with an image, the image's loop device and
// its mount.
func dismantle(dir string) error {
	at := filepath.Join(dir, nameMount)
	if err := unmount(at); err != nil {
		return err
	}
	if err := detachLoops(filepath.Join(dir, nameImage)); err != nil {
		return err
	}
	// One by one: removing a tree would, should an unmount not have been one,
	// follow the agent's files.
	for _, p := range []string{filepath.Join(dir, nameImage), at, dir} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", filepath.Base(p), err)
		}
	}
	return nil
}

// unmount takes away whatever is mounted at a place.
func unmount(at string) error {
	for {
		err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not a mount point (any more)
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
}

// List is the ids of the sandboxes that have anything of a layer.
func (m *Maker) List() ([]string, error) {
	entries, err := os.ReadDir(m.root)
	if err != nil {
		return nil, fmt.Errorf("writable layers: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if checkID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Upper is the directory with what a sandbox has written, while its layer is
// mounted.
func (m *Maker) Upper(id string) string { return filepath.Join(m.dir(id), nameMount, nameUpper) }

// Usage is how many bytes of disk the layer of a sandbox takes: none when it
// has no layer, or one in memory.
func (m *Maker) Usage(id string) (int64, error) {
	if err := checkID(id); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(m.dir(id), nameImage), &st)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("writable layer: %w", err)
	}
	return st.Blocks * 512, nil
}

func (m *Maker) dir(id string) string { return filepath.Join(m.root, id) }

// checkID keeps an id from being a path. Ids are made by the daemon; this is
// for the day one is not.
func checkID(id string) error {
	if id == "" || id == nameTemplates || len(id) > 64 {
		return fmt.Errorf("%q is not a sandbox id", id)
	}
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return fmt.Errorf("%q is not a sandbox id", id)
		}
	}
	return nil
}
