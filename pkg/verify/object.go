package verify

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// named says whether the expectation is about one object rather than a kind
// of mount.
func (w Mount) named() bool { return w.Device != 0 || w.File != FileID{} }

// object is which one, in the form of mounted.
func (w Mount) object() string {
	if w.Device != 0 {
		return device(w.Device)
	}
	return w.File.String()
}

func device(rdev uint64) string {
	return fmt.Sprintf("character device %d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// mounted says what the mount with an id shows at the target, and whether
// that is the object wanted. The mount table does not tell: it has a name and
// a file system, and /dev of the host may be a devtmpfs, a tmpfs or a
// directory, with anything under the name "null".
//
// The agent may have laid out what lies around the target. So the way there
// has no links, stays below the sandbox's root and must end in the mount that
// the table had.
func (p *proc) mounted(id uint64, want Mount) (string, bool) {
	root, err := p.open("root", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err.Error(), false
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), want.Target, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "cannot be looked up: " + err.Error(), false
	}
	defer unix.Close(fd)
	var x unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x); err != nil {
		return "statx: " + err.Error(), false
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "stat: " + err.Error(), false
	}
	switch {
	case x.Mask&unix.STATX_MNT_ID == 0 || x.Mnt_id != id:
		return fmt.Sprintf("the path leads to mount %d, not %d", x.Mnt_id, id), false
	case want.Device == 0:
		got := FileID{st.Dev, st.Ino}
		return got.String(), got == want.File
	case st.Mode&unix.S_IFMT == unix.S_IFCHR:
		return device(st.Rdev), st.Rdev == want.Device
	}
	return fmt.Sprintf("not a character device: mode %o", st.Mode), false
}
