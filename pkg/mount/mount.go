// Package mount shows a caller's directory in a sandbox, id-mapped so that
// the caller's files are the agent's and new files are the caller's.
//
// Possession proves reach: the caller sends an open descriptor of the
// directory, and from there on nothing is looked up by name. What the sandbox
// gets is a clone of that one mount, from that directory down, without the
// mounts nested in it: a directory that is a mount point in the source shows
// what its own file system has there, which the caller's rights govern as
// they do elsewhere. That is for the host's own mounts. A caller's namespace may
// have nested mounts to hide something from the caller or to make it read-only
// (systemd.exec(5), InaccessiblePaths=), so there a directory with any is refused.
// Ids other than the caller's uid and groups are not mapped: such files
// appear as the overflow user's or group's and cannot be written, not even by
// the owner of a file whose group the caller is not in.
//
// A clone is attached in the daemon's own mount namespace under the run
// directory, and the runtime binds it from there. It is always nosuid and
// nodev, and never receives or sends mounts.
package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/thread"

	"golang.org/x/sys/unix"
)

// Request is one directory to stage. All fields are required but ReadOnly and Groups.
type Request struct {
	// Dir is the caller's descriptor of the directory; O_PATH will do. It
	// stays the caller's.
	Dir *os.File

	// Namespaces are the mount namespaces the directory may be in, tried in
	// order: pidfds or /proc/PID/ns/mnt, the caller's first, then the host's.
	// Only a thread in the namespace of a mount may clone it. With none, the
	// daemon's own is used.
	Namespaces []*os.File

	// Host is the host's mount namespace, /proc/PID/ns/mnt. In any other of
	// Namespaces a directory with mounts beneath it is refused.
	Host *os.File

	// Target is where to attach: an absolute path that does not exist, in a
	// directory that only root can write.
	Target string

	// ReadOnly refuses writes. Required for a caller that is root and for a
	// directory that root owns.
	ReadOnly bool

	// CallerUID and CallerGID are the connected process's.
	CallerUID, CallerGID uint32

	// AgentUID and AgentGID are the agent's on the host.
	AgentUID, AgentGID uint32

	// Groups are the caller's supplementary groups.
	Groups []uint32

	// UserNS maps CallerUID to AgentUID, CallerGID to AgentGID, and Groups to
	// ids that the agent does not have (idmap.ForCaller). It can be closed
	// after Stage.
	UserNS *os.File
}

// Staged is an attached mount.
type Staged struct {
	Dev, Inode uint64 // of the source directory
	FSType     string // of its file system
}

// Stager stages directories, except protected ones. It is safe for concurrent use.
type Stager struct {
	protected []string
}

// New makes a Stager that refuses the given directories and sockets, whatever
// is in those directories, and whatever contains one, under any name. Paths
// need not exist yet: they are looked up again for every request.
func New(protected []string) *Stager {
	return &Stager{protected: protected}
}

// Stage clones r.Dir, restricts and id-maps the clone, attaches it at r.Target
// and reads it back. undo takes the mount away again and can be repeated.
// Errors carry an api.Code: invalid_argument and permission_denied for what
// this caller may not have, unsupported_host for a file system that cannot be
// id-mapped.
func (s *Stager) Stage(ctx context.Context, r Request) (st Staged, undo func(context.Context) error, err error) {
	if err := ctx.Err(); err != nil {
		return Staged{}, nil, err
	}
	tree, st, err := s.clone(r)
	if err != nil {
		return Staged{}, nil, err
	}
	defer unix.Close(tree)
	if err := restrict(tree, r, st.FSType); err != nil {
		return Staged{}, nil, err
	}
	if err := attach(tree, r.Target, func() error { return readBack(r, st) }); err != nil {
		return Staged{}, nil, err
	}
	return st, func(context.Context) error { return Remove(r.Target) }, nil
}

// clone checks the directory and makes a detached copy of its mount.
func (s *Stager) clone(r Request) (tree int, st Staged, err error) {
	spaces := r.Namespaces
	if len(spaces) == 0 {
		spaces = []*os.File{nil}
	}
	// The caller's namespace may have another /proc, or what looks like one.
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, Staged{}, err
	}
	defer proc.Close()
	p, err := s.lookUp(proc)
	if err != nil {
		return -1, Staged{}, err
	}
	defer p.close()
	for _, ns := range spaces {
		err = thread.Do(func() (err error) {
			if err := enter(ns); err != nil {
				return err
			}
			tree, st, err = cloneHere(r, p, proc, ns != nil)
			return err
		})
		if !errors.Is(err, errNotHere) {
			return tree, st, err
		}
	}
	return -1, Staged{}, api.Errorf(api.CodeInvalid, "the directory is not in the caller's mount namespace").
		WithHint("open it in the process that sends it")
}

var errNotHere = errors.New("the mount is in another namespace")

func enter(ns *os.File) error {
	if ns == nil {
		return nil
	}
	// A thread that shares its root with others cannot change it.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
	if errors.Is(err, unix.ESRCH) {
		return errNotHere // the process behind a pidfd has ended
	}
	if err != nil {
		return fmt.Errorf("join the caller's mount namespace: %w", err)
	}
	return nil
}

// cloneHere runs in the namespace. It looks nothing up by a path of the
// namespace, which may be laid out to mislead it.
func cloneHere(r Request, p protected, proc *os.File, foreign bool) (int, Staged, error) {
	fd := int(r.Dir.Fd())
	m, err := mountOf(proc, fd)
	if err != nil {
		return -1, Staged{}, err
	}
	// The kind comes from the mount table and is judged first, because even
	// stat(2) of a FUSE file system waits for a process of the caller's.
	if !mappable[m.fsType] {
		return -1, Staged{}, unmappable(m.fsType)
	}
	id, err := checkDir(fd, r)
	if err != nil {
		return -1, Staged{}, err
	}
	if path, ok := p.devices[m.device]; ok {
		return -1, Staged{}, refused("its file system is that of " + path)
	}
	if err := guard(fd, id, p.objects); err != nil {
		return -1, Staged{}, err
	}
	if foreign {
		if err := covered(proc, fd, r.Host); err != nil {
			return -1, Staged{}, err
		}
	}
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.EINVAL) {
		return -1, Staged{}, api.Errorf(api.CodeDenied, "the directory has locked mounts in it, which would be uncovered: %w", err).
			WithHint("share a directory without them")
	}
	if err != nil {
		return -1, Staged{}, fmt.Errorf("clone the directory's mount: %w", err)
	}
	return tree, Staged{Dev: id.dev, Inode: id.ino, FSType: m.fsType}, nil
}

// Identify is a directory's device and inode, as Staged has them. It does not
// ask a file system that is somebody's process.
func Identify(dir *os.File) (dev, inode uint64, err error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var st unix.Statx_t
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.Statx(int(fd), "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
	})
	if err := errors.Join(err, serr); err != nil {
		return 0, 0, fmt.Errorf("stat the directory: %w", err)
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, nil
}

// checkDir holds the directory against the caller's rights.
func checkDir(fd int, r Request) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileID{}, fmt.Errorf("stat the directory: %w", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fileID{}, api.Errorf(api.CodeInvalid, "the descriptor is not a directory").
			WithHint("share the directory that the file is in")
	case st.Nlink == 0:
		return fileID{}, api.Errorf(api.CodeInvalid, "the directory was removed")
	case st.Uid == 0 && !r.ReadOnly:
		return fileID{}, api.Errorf(api.CodeDenied, "the directory belongs to root").
			WithHint("mount it read-only, or use one that belongs to the caller")
	case r.CallerUID == 0 && !r.ReadOnly:
		return fileID{}, api.Errorf(api.CodeDenied, "root's files cannot be an agent's to write").
			WithHint("mount it read-only, or run creel as the user the files belong to")
	}
	return fileID{dev: st.Dev, ino: st.Ino}, nil
}

// restrict sets the clone's attributes while nothing can reach it yet. Flags
// that the source has are kept: a read-only mount stays one.
func restrict(tree int, r Request, fsType string) error {
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_IDMAP,
		Propagation: unix.MS_PRIVATE,
		Userns_fd:   uint64(r.UserNS.Fd()),
	}
	if r.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	switch {
	case errors.Is(err, unix.EINVAL):
		return unmappable(fsType)
	case errors.Is(err, unix.EPERM):
		return api.Errorf(api.CodeUnsupportedHost, "the directory's mount is id-mapped already: %w", err).
			WithHint("share a directory outside it")
	case err != nil:
		return fmt.Errorf("id-map the mount: %w", err)
	}
	return nil
}

// mappable are the file systems whose mounts can be id-mapped and which answer
// without a process of a user's. Kernels differ (tmpfs: 6.3); mount_setattr(2)
// has the last word.
var mappable = map[string]bool{
	"bcachefs": true, "btrfs": true, "ext2": true, "ext3": true, "ext4": true,
	"f2fs": true, "tmpfs": true, "xfs": true, "zfs": true,
}

func unmappable(fsType string) error {
	return api.Errorf(api.CodeUnsupportedHost, "file system %q cannot be id-mapped on this host", fsType).
		WithHint("use a directory on ext4, xfs or btrfs (or, from Linux 6.3, tmpfs)")
}

// attach puts the tree at target, and takes it away again if check fails.
func attach(tree int, target string, check func() error) (err error) {
	if !filepath.IsAbs(target) {
		return fmt.Errorf("staging path %q is not absolute", target)
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("staging directory: %w", err)
	}
	defer func() {
		if err != nil { // not before it is ours: it may be another's
			err = errors.Join(err, Remove(target))
		}
	}()
	dir, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("staging directory: %w", err)
	}
	defer unix.Close(dir)
	if err := unix.MoveMount(tree, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the mount at %s: %w", target, err)
	}
	return check()
}

// readBack proves that what is at the target now is what was asked for.
func readBack(r Request, want Staged) error {
	st, m, err := attached(r.Target)
	if err != nil {
		return err
	}
	var src unix.Stat_t
	if err := unix.Fstat(int(r.Dir.Fd()), &src); err != nil {
		return fmt.Errorf("read the staged mount back: %w", err)
	}
	switch err = restricted(st, m, fileID{want.Dev, want.Inode}, r.ReadOnly); {
	case err != nil:
	case st.Uid == overflowID && src.Uid == r.CallerUID:
		// The file system has a map of its own, below the mount's.
		return api.Errorf(api.CodeUnsupportedHost, "the directory's file system was mounted in a user namespace and cannot be id-mapped").
			WithHint("use a directory of a file system of the host")
	case st.Uid != appears(src.Uid, r.CallerUID, r.AgentUID):
		err = fmt.Errorf("it belongs to user %d", st.Uid)
	case st.Gid == r.AgentGID && src.Gid != r.CallerGID, st.Gid != appears(src.Gid, r.CallerGID, r.AgentGID) && !slices.Contains(r.Groups, src.Gid):
		err = fmt.Errorf("it belongs to group %d", st.Gid)
	}
	if err != nil {
		return fmt.Errorf("the staged mount at %s is not what was asked for: %w", r.Target, err)
	}
	return nil
}

// attached is what is at target now, and the mount that it is on.
func attached(target string) (st unix.Stat_t, m entry, err error) {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, m, fmt.Errorf("read the staged mount back: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return st, m, fmt.Errorf("read the staged mount back: %w", err)
	}
	proc, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return st, m, err
	}
	defer proc.Close()
	if m, err = mountOf(proc, fd); err != nil {
		return st, m, fmt.Errorf("read the staged mount back: %w", err)
	}
	return st, m, nil
}

// restricted holds a staged mount against what every one must be.
func restricted(st unix.Stat_t, m entry, want fileID, readOnly bool) error {
	switch {
	case st.Dev != want.dev || st.Ino != want.ino:
		return errors.New("it is another directory")
	case !m.has("nosuid") || !m.has("nodev") || readOnly && !m.has("ro") || !m.has("idmapped"):
		return fmt.Errorf("its flags are %q", m.options)
	case len(m.propagation) > 0:
		return fmt.Errorf("it propagates mounts (%q)", m.propagation)
	}
	return nil
}

// appears is how a source's id should show through the map.
func appears(id, caller, agent uint32) uint32 {
	if id == caller {
		return agent
	}
	return overflowID
}

// overflowID is how an id without a mapping appears. /proc/sys/kernel/overflowuid
// could change it; then nothing is staged.
const overflowID = 65534
