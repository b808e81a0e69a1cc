package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// HostDoors are the paths of sockets and trees by which whoever reaches them
// is root on this host, or the user they belong to: container engines, system
// and user services, and the kernel's own trees.
func HostDoors() []string {
	return []string{
		"/dev", "/proc", "/sys",
		"/run/docker.sock", "/run/docker", "/var/lib/docker",
		"/run/containerd", "/var/lib/containerd",
		"/run/podman", "/run/crio", "/run/buildkit",
		"/run/lxd", "/var/lib/lxd", "/var/snap/lxd/common",
		"/run/incus", "/var/lib/incus",
		"/run/libvirt", "/run/snapd.socket",
		"/run/dbus", "/run/systemd", "/run/user",
	}
}

// maxDepth bounds how far up a directory is followed. Paths longer than
// PATH_MAX are in practice made only to exhaust something.
const maxDepth = 2048

type fileID struct{ dev, ino uint64 }

// object is a protected directory, or the directory that a protected socket
// is in.
type object struct {
	path   string // as configured
	real   string // without symlinks
	dir    *os.File
	id     fileID
	inside bool     // what is in dir is protected too
	above  []fileID // dir and all that contain it, by path
}

// protected is what a directory must have nothing to do with.
type protected struct {
	objects []object
	devices map[string]string // see privateDevices
}

// lookUp finds it, in the daemon's namespace and in the mount table of the
// host's first process: mounts made after the daemon's namespace are only there.
func (s *Stager) lookUp(proc *os.File) (protected, error) {
	objs, err := openAll(s.protected)
	if err != nil {
		return protected{}, err
	}
	p := protected{objects: objs}
	host, err := table(proc, "1")
	if err != nil {
		p.close()
		return protected{}, err
	}
	p.devices = privateDevices(host, objs)
	return p, nil
}

func (p protected) close() { closeAll(p.objects) }

// openAll opens what exists of the paths.
func openAll(paths []string) (objs []object, err error) {
	defer func() {
		if err != nil {
			closeAll(objs)
		}
	}()
	for _, p := range paths {
		fi, err := os.Stat(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return objs, fmt.Errorf("protected path: %w", err)
		}
		o := object{path: p, inside: true}
		if o.real, err = filepath.EvalSymlinks(p); err != nil {
			return objs, fmt.Errorf("protected path: %w", err)
		}
		if !fi.IsDir() {
			o.real, o.inside = filepath.Dir(o.real), false
		}
		if o.dir, err = os.OpenFile(o.real, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return objs, fmt.Errorf("protected path: %w", err)
		}
		objs = append(objs, o)
		if o.above, err = lineage(int(o.dir.Fd())); err != nil {
			return objs, fmt.Errorf("protected path %s: %w", p, err)
		}
		o.id = o.above[0]
		objs[len(objs)-1] = o
	}
	return objs, nil
}

func closeAll(objs []object) {
	for _, o := range objs {
		_ = o.dir.Close()
	}
}

// privateDevices are the file systems that the host has mounted in protected
// directories and nowhere else, such as a user's /run/user/UID, with the
// protected path. They are protected whole, wherever else a caller's namespace
// shows them.
func privateDevices(host []entry, objs []object) map[string]string {
	devices := map[string]string{}
	for _, e := range host {
		path := ""
		for _, o := range objs {
			if o.inside && (e.point == o.real || strings.HasPrefix(e.point, o.real+"/")) {
				path = o.path
			}
		}
		if old, seen := devices[e.device]; !seen || old != "" {
			devices[e.device] = path
		}
	}
	for device, path := range devices {
		if path == "" {
			delete(devices, device)
		}
	}
	return devices
}

// guard refuses the directory fd if it is, contains or is in a protected
// object. Both relations are looked at twice: as the mount tables say, and as
// the file system says beneath any mount, for a directory that is known by
// another name there.
func guard(fd int, id fileID, objs []object) error {
	up, err := lineage(fd)
	if err != nil {
		return err
	}
	if len(up) == 1 {
		return refused("it is the root directory")
	}
	dir, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the directory: %w", err)
	}
	defer unix.Close(dir)
	for _, o := range objs {
		below, err := within(int(o.dir.Fd()), o.id, dir, id)
		if err != nil {
			return err
		}
		if below || slices.Contains(o.above, id) {
			return refused("it is or contains " + o.path)
		}
		if !o.inside {
			continue
		}
		if below, err = within(dir, id, int(o.dir.Fd()), o.id); err != nil {
			return err
		}
		if below || slices.Contains(up, o.id) {
			return refused("it is in " + o.path)
		}
	}
	return nil
}

func refused(why string) error {
	return api.Errorf(api.CodeDenied, "the directory cannot be shared: %s", why).
		WithHint("share a directory of the caller's own work")
}

// lineage is the directory fd and every directory above it by "..", in the
// thread's mount namespace.
func lineage(fd int) ([]fileID, error) {
	return climb(fd, func(fileID) bool { return false })
}

// climb goes up from fd until stop says so, the root, or a place that its
// mount does not show.
func climb(fd int, stop func(fileID) bool) (up []fileID, err error) {
	cur, err := unix.Openat(fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the directory: %w", err)
	}
	defer func() { unix.Close(cur) }()
	var last place
	for range maxDepth {
		at, err := identify(cur)
		if err != nil {
			return nil, err
		}
		// Only the root is its own parent. The mount tells it from a
		// directory that is bind-mounted in itself.
		if at == last {
			return up, nil
		}
		last = at
		id := at.fileID
		up = append(up, id)
		if stop(id) {
			return up, nil
		}
		parent, err := unix.Openat(cur, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return up, nil
		}
		if err != nil {
			return nil, fmt.Errorf("look above the directory: %w", err)
		}
		unix.Close(cur)
		cur = parent
	}
	return nil, api.Errorf(api.CodeInvalid, "the directory is more than %d levels deep", maxDepth)
}

// place is a directory on one of the mounts that show it.
type place struct {
	fileID
	mount uint64
}

func identify(fd int) (place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return place{}, fmt.Errorf("stat a directory: %w", err)
	}
	mnt, err := mountID(fd)
	if err != nil {
		return place{}, err
	}
	return place{fileID{dev: st.Dev, ino: st.Ino}, mnt}, nil
}

// within says whether the directory in is beneath the directory top in their
// file system itself, with no regard to what is mounted where: in is opened
// by its handle on top's mount and followed up from there. On that mount every
// directory between the two is visible. It is false for two file systems, and
// for one without handles (overlayfs), where the mount tables have to do.
func within(in int, inID fileID, top int, topID fileID) (bool, error) {
	h, _, err := unix.NameToHandleAt(in, "", unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("handle of a directory: %w", err)
	}
	fd, err := unix.OpenByHandleAt(top, h, unix.O_PATH|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, nil // not a handle of top's file system
	case err != nil:
		return false, fmt.Errorf("open a directory by its handle: %w", err)
	}
	defer unix.Close(fd)
	// A handle of another file system may happen to name something here.
	if at, err := identify(fd); err != nil || at.fileID != inID {
		return false, err
	}
	up, err := climb(fd, func(id fileID) bool { return id == topID })
	if err != nil {
		return false, err
	}
	return up[len(up)-1] == topID, nil
}
