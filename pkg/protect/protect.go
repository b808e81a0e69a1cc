// Package protect makes names in a mounted directory read-only to the sandbox that
// has it: what programs on the host run later without being told to, such as git's
// hooks (profiles/protect.toml).
//
// For each name every directory on the way is mounted on itself, and the last part
// too, read-only. A mount point can be neither removed nor renamed by who sees it,
// so the name stays what it is, while all around it can be written. What does not
// exist must not be made, so a placeholder is put there on the host, owned by the
// caller, for as long as a sandbox needs it: [Tree.Plan] says which, to be put on
// record before [Tree.Make] makes them, and [Made.Remove] takes them away again.
// Then [Tree.Apply] mounts.
//
// Beware: only who sees the mounts is held. Whoever can write the directory from
// elsewhere, as its owner on the host, can put another file in the place of a
// protected one, which is then not protected. The proof finds that.
package protect

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Tree is a staged mount whose names are to be protected. Nothing may be attached
// in it yet.
type Tree struct {
	Field  string   // of the request, as "mounts[0]"
	Staged string   // where it is attached
	Target string   // where the sandbox has it
	Others []string // the targets of all the sandbox's mounts
}

// Mount is one that Apply made.
type Mount struct {
	Target   string `json:"target"` // in the sandbox
	Dev      uint64 `json:"dev"`    // of what it shows, with Inode
	Inode    uint64 `json:"inode"`
	ReadOnly bool   `json:"readonly,omitempty"` // else a directory on the way
	Empty    bool   `json:"empty,omitempty"`    // the empty file, in place of a socket
}

// ID names an object of a file system.
type ID struct{ Dev, Inode uint64 }

// skips says whether the sandbox has another mount there, or around it: then the
// name is not the tree's.
func (t Tree) skips(n Name) bool {
	full := path.Join(t.Target, n.String())
	return slices.ContainsFunc(t.Others, func(o string) bool {
		return strings.HasPrefix(o, t.Target+"/") && (full == o || strings.HasPrefix(full, o+"/"))
	})
}

func (t Tree) open() (int, error) {
	root, err := unix.Open(t.Staged, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("staged mount: %w", err)
	}
	return root, nil
}

// Apply mounts the names of the list, all of which are there now: ps are the
// placeholders of all trees of the sandbox, and empty is an empty file of root's.
// ids are those of the mounts, which others may be attached in.
func (t Tree) Apply(l List, ps []Placeholder, empty string) (ms []Mount, ids []uint64, err error) {
	root, err := t.open()
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(root)
	a := applying{Tree: t, empty: empty, ends: map[ID]bool{}, made: map[uint64]bool{}}
	for _, p := range ps {
		a.ends[p.id()] = true
	}
	for _, n := range l {
		if t.skips(n) {
			continue
		}
		if err := a.name(root, n); err != nil {
			return nil, nil, err
		}
	}
	for id := range a.made {
		ids = append(ids, id)
	}
	return a.mounts, ids, nil
}

// applying is one Apply.
type applying struct {
	Tree
	empty  string
	ends   map[ID]bool     // directories that are placeholders
	made   map[uint64]bool // mounts by their ids, and whether each is read-only
	mounts []Mount
}

// name goes from the root to the name and mounts what is not mounted yet.
func (a *applying) name(root int, n Name) error {
	dir := root
	on, err := mountID(root)
	if err != nil {
		return err
	}
	for i := range n.parts {
		at := strings.Join(n.parts[:i+1], "/")
		fd, st, err := lookUp(dir, n.parts[i], 0)
		if err != nil {
			return a.refuse(at, err)
		}
		defer unix.Close(fd)
		is, err := mountID(fd)
		if err != nil {
			return err
		}
		id := ID{st.Dev, st.Ino}
		end := i == len(n.parts)-1 || st.Mode&unix.S_IFMT != unix.S_IFDIR || a.ends[id]
		if is != on {
			readOnly, ours := a.made[is]
			if !ours || end != readOnly {
				return a.refuse(at, errMoved)
			}
			if end {
				return nil
			}
			dir, on = fd, is
			continue
		}
		m := Mount{Target: path.Join(a.Target, at), Dev: st.Dev, Inode: st.Ino, ReadOnly: end}
		tree, err := a.attach(fd, &m, st)
		if err != nil {
			return a.refuse(at, err)
		}
		defer unix.Close(tree)
		if end {
			return nil
		}
		dir = tree
		if on, err = mountID(tree); err != nil {
			return err
		}
	}
	return nil
}

// attach mounts what is at a point on itself, or the empty file on a socket.
func (a *applying) attach(point int, m *Mount, st unix.Stat_t) (tree int, err error) {
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if m.ReadOnly {
		attr.Attr_set = unix.MOUNT_ATTR_RDONLY
	}
	from, name, how := point, "", unix.AT_EMPTY_PATH
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		if st.Nlink > 1 {
			return -1, errLinked
		}
	case unix.S_IFSOCK:
		from, name, how = unix.AT_FDCWD, a.empty, unix.AT_SYMLINK_NOFOLLOW
		var e unix.Stat_t
		if err := unix.Lstat(a.empty, &e); err != nil {
			return -1, fmt.Errorf("the empty file: %v", err) //nolint:errorlint // not the name's
		}
		m.Dev, m.Inode, m.Empty = e.Dev, e.Ino, true
		attr.Attr_set |= unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	default:
		return -1, errKind
	}
	if tree, err = unix.OpenTree(from, name, uint(how)|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
		return -1, fmt.Errorf("clone it: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(tree)
		}
	}()
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return -1, fmt.Errorf("make it read-only: %w", err)
	}
	if err := unix.MoveMount(tree, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("attach it: %w", err)
	}
	id, err := mountID(tree)
	if err != nil {
		return -1, err
	}
	a.made[id] = m.ReadOnly
	a.mounts = append(a.mounts, *m)
	return tree, nil
}

// lookUp opens one name in a directory, which is no link.
func lookUp(dir int, name string, resolve uint64) (fd int, st unix.Stat_t, err error) {
	fd, err = unix.Openat2(dir, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: resolve | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, st, err
	}
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = unix.ELOOP
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// mountID is the id of the mount that fd is on.
func mountID(fd int) (uint64, error) {
	var stx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &stx); err != nil {
		return 0, fmt.Errorf("mount of a name: %w", err)
	}
	if stx.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("mount of a name: the kernel does not tell")
	}
	return stx.Mnt_id, nil
}

// What keeps a name from being protected.
var (
	errMoved  = errors.New("it was moved meanwhile, or something is mounted there")
	errLinked = errors.New("the file has another name, by which it could be written")
	errKind   = errors.New("it is neither a directory nor a file")
)

// refuse tells the caller what is in the way at a path of the tree. Errors that are
// nothing of the caller's it passes on.
func (t Tree) refuse(at string, err error) error {
	why, todo := "", "mount it read-only, or leave out protect"
	for e, w := range map[error][2]string{
		unix.ELOOP:   {"it is a symbolic link, which the agent could replace", "replace the link by what it leads to"},
		errLinked:    {errLinked.Error(), "replace the file by a copy of it (cp -p F G && mv G F)"},
		errKind:      {errKind.Error(), "remove it"},
		errMoved:     {errMoved.Error(), "try again when nothing changes the directory"},
		unix.EXDEV:   {errMoved.Error(), "try again when nothing changes the directory"},
		unix.ENOENT:  {"it was removed meanwhile", "try again when nothing changes the directory"},
		unix.ENOTDIR: {"it is in what is no directory", "remove that"},
		unix.EACCES:  {"permission denied", "make the directory one that the caller can write and search"},
		unix.EPERM:   {"it cannot be changed", "make the directory one that the caller can write and search"},
		unix.EROFS:   {"the file system is read-only", ""},
		unix.ENOSPC:  {"no space is left", "free some"},
		unix.EDQUOT:  {"the caller's quota is used up", "free some"},
	} {
		if errors.Is(err, e) {
			why = w[0]
			if w[1] != "" {
				todo = w[1] + ", or leave out protect"
			}
		}
	}
	if why == "" {
		return fmt.Errorf("protect %s in %s: %w", at, t.Target, err)
	}
	e := api.Errorf(api.CodeInvalid, "the request has 1 problem(s)").WithHint(todo)
	e.Problems = []api.Problem{{Field: t.Field + ".protect", Value: "true", Want: fmt.Sprintf("left out, because %s in it cannot be protected: %s", at, why)}}
	return e
}
