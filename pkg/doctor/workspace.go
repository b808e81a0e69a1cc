package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Workspace says whether in.User can have the directory in.Workspace mounted
// in a sandbox, and how. Without in.UserNS id mapping is not tried.
func Workspace(ctx context.Context, in Inputs) []api.Check {
	const name = "workspace"
	dir, userName := in.Workspace, in.User
	if !filepath.IsAbs(dir) {
		return []api.Check{bad(Missing, name, dir+" is not an absolute path", "it cannot be mounted", "give the whole path")}
	}
	if userName == "" {
		return []api.Check{bad(Missing, name, "no user was named", "whose directory it is cannot be judged", "creel doctor --caller USER --workspace "+dir)}
	}
	a, err := lookup(userName)
	if err != nil {
		return []api.Check{bad(Missing, name, err.Error(), "whose directory it is cannot be judged", "name a user of /etc/passwd")}
	}
	f, err := openAs(a, dir)
	if err != nil {
		return []api.Check{cannotOpen(a, dir, err)}
	}
	defer f.Close()
	w, err := look(f, a)
	if err != nil {
		return []api.Check{bad(Missing, name, reason(err), "it cannot be mounted", "")}
	}
	if p := touches(w.real, in.Protected); p != "" {
		return []api.Check{bad(Missing, name, fmt.Sprintf("%s has to do with %s", dir, p), "it is never mounted: whoever has it may be root",
			"mount the directory with the work, and no more")}
	}
	out := []api.Check{ok(name, "%s: %s can reach it; %s", dir, a.name, w.fsType), w.owner()}
	if c, found := w.writable(); found {
		out = append(out, c)
	}
	out = append(out, w.idMapped(ctx, f, in.UserNS))
	return append(out, w.nested()...)
}

// openAs opens a directory as the user would, without the links of /proc.
func openAs(a account, dir string) (*os.File, error) {
	fd := -1
	err := a.do(func() (err error) {
		fd, err = unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

func cannotOpen(a account, dir string, err error) api.Check {
	const name, cost = "workspace", "it cannot be mounted"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad(Missing, name, dir+" does not exist", cost, "make it: creel makes nothing on the host")
	case errors.Is(err, unix.ENOTDIR):
		return bad(Missing, name, dir+" is not a directory, or a part of the path is none", cost, "mount the directory that has the file")
	case errors.Is(err, fs.ErrPermission):
		return bad(Missing, name, fmt.Sprintf("%s: %s cannot reach it", dir, a.name), cost+": creel shows an agent only what its caller can open",
			"give "+a.name+" search permission (x) on every directory above it")
	case errors.Is(err, errUnknown):
		return bad(Weaker, name, reason(err), "not known", askRoot)
	}
	return bad(Missing, name, dir+": "+reason(err), cost, "")
}

// workspace is what was seen of a directory.
type workspace struct {
	a        account
	st       unix.Stat_t
	fsType   string
	readOnly bool
	canWrite bool
	real     string
	mounts   []string // beneath it
}

func look(f *os.File, a account) (workspace, error) {
	w := workspace{a: a}
	if err := unix.Fstat(int(f.Fd()), &w.st); err != nil {
		return w, err
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return w, err
	}
	w.fsType, w.readOnly = fsName(sfs.Type), sfs.Flags&unix.ST_RDONLY != 0
	err := a.do(func() error {
		return unix.Faccessat(int(f.Fd()), "", unix.W_OK|unix.X_OK, unix.AT_EACCESS|unix.AT_EMPTY_PATH)
	})
	w.canWrite = err == nil
	if w.real, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
		return w, err
	}
	// The host's own table: mounts made after the daemon started are only there.
	table := read("/proc/1/mountinfo")
	if table == "" {
		table = read("/proc/self/mountinfo")
	}
	w.mounts = mountsBeneath(table, w.real)
	return w, nil
}

// touches is the first of the paths that dir is, is in, or contains.
func touches(dir string, paths []string) string {
	in := func(a, b string) bool { return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") }
	for _, p := range paths {
		if resolved, err := filepath.EvalSymlinks(p); err == nil {
			p = resolved
		}
		if in(dir, p) || in(p, dir) {
			return p
		}
	}
	return ""
}

// mountsBeneath lists the mount points of a mountinfo table below dir.
func mountsBeneath(table, dir string) []string {
	var out []string
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		point := unescape.Replace(f[4])
		if strings.HasPrefix(point, strings.TrimSuffix(dir, "/")+"/") && point != dir {
			out = append(out, point)
		}
	}
	return out
}

func (w workspace) owner() api.Check {
	const name = "workspace.owner"
	switch {
	case w.st.Uid == 0:
		return bad(Weaker, name, "root", "it can only be mounted read-only", "chown it to "+w.a.name+", or mount it with :ro")
	case w.st.Uid != w.a.uid:
		return bad(Weaker, name, fmt.Sprintf("uid %d, not %s", w.st.Uid, w.a.name),
			"only the caller's own files are the agent's; those of others belong to nobody inside", "chown it to "+w.a.name)
	}
	return ok(name, "%s: its files are the agent's, and new files are %s's", w.a.name, w.a.name)
}

func (w workspace) writable() (api.Check, bool) {
	const name = "workspace.writable"
	switch {
	case w.readOnly:
		return bad(Weaker, name, "its file system is mounted read-only", "the agent cannot write there", "mount -o remount,rw"), true
	case !w.canWrite:
		return bad(Weaker, name, w.a.name+" cannot write there", "nor can the agent", "mount it with :ro, or chmod u+w"), true
	}
	return api.Check{}, false
}

// idMapped clones the directory's mount, detached, and puts an id map on it.
// The clone ends with its descriptor.
func (w workspace) idMapped(ctx context.Context, f *os.File, userns func(context.Context, uint32, uint32) (*os.File, error)) api.Check {
	const name = "workspace.id map"
	const cost = "it cannot be mounted"
	if userns == nil || os.Geteuid() != 0 {
		return bad(Weaker, name, "not tried: needs root", "not known", askRoot)
	}
	ns, err := userns(ctx, w.a.uid, w.a.gid)
	if err != nil {
		return bad(Missing, name, err.Error(), cost, "see kernel.user namespaces")
	}
	defer ns.Close()
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return bad(Missing, name, "open_tree: "+err.Error(), cost, "a mount that was made after creeld started is not seen by it: restart creeld")
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
	switch {
	case errors.Is(err, unix.EINVAL):
		return bad(Missing, name, w.fsType+" cannot be id-mapped by this kernel", cost, "put the directory on ext4, xfs, btrfs or tmpfs (Linux 6.3)")
	case err != nil:
		return bad(Missing, name, "mount_setattr: "+err.Error(), cost, "an id-mapped mount cannot be mapped again: give the original directory")
	}
	return ok(name, "%s can be id-mapped", w.fsType)
}

func (w workspace) nested() []api.Check {
	if len(w.mounts) == 0 {
		return []api.Check{ok("workspace.nested", "nothing is mounted beneath it")}
	}
	var out []api.Check
	for i, m := range w.mounts {
		if i == 10 {
			out = append(out, bad(Weaker, "workspace.nested", fmt.Sprintf("and %d more", len(w.mounts)-i), "", ""))
			break
		}
		out = append(out, bad(Weaker, "workspace.nested", m+" is a mount of its own", "the agent sees the empty directory under it",
			"mount it too: -v "+m+":..."))
	}
	return out
}
