package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// account is a user with all groups.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	gids   []uint32
	groups []string
}

// lookup finds a user by name or uid. Without cgo only /etc/passwd and
// /etc/group are asked.
func lookup(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		var byID error
		if u, byID = user.LookupId(name); byID != nil {
			return account{}, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return account{}, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return account{}, err
	}
	a := account{name: u.Username, uid: uint32(uid), gid: uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return account{}, err
	}
	for _, s := range ids {
		g, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return account{}, err
		}
		a.gids = append(a.gids, uint32(g))
		if grp, err := user.LookupGroupId(s); err == nil {
			a.groups = append(a.groups, grp.Name)
		}
	}
	return a, nil
}

// do runs fn with the user's file system credentials: what fn opens is what
// the user could open, access control lists and all. setfsuid(2) to another
// than 0 takes the capabilities that override permissions, too.
func (a account) do(fn func() error) error {
	if os.Geteuid() != 0 {
		if uint32(os.Geteuid()) == a.uid {
			return fn()
		}
		return fmt.Errorf("%w: needs root", errUnknown)
	}
	return thread.Do(func() error {
		// Of this thread only, which the libraries' setgroups is not.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(a.gids)), uintptr(unsafe.Pointer(unsafe.SliceData(a.gids))), 0); errno != 0 {
			return fmt.Errorf("setgroups: %w", errno)
		}
		// These two answer the id before; a second call tells whether the first did it.
		for _, set := range []struct{ nr, id uintptr }{{unix.SYS_SETFSGID, uintptr(a.gid)}, {unix.SYS_SETFSUID, uintptr(a.uid)}} {
			_, _, _ = unix.RawSyscall(set.nr, set.id, 0, 0)
			if now, _, _ := unix.RawSyscall(set.nr, ^uintptr(0), 0, 0); now != set.id {
				return errors.New("the thread does not take the user's identity")
			}
		}
		return fn()
	})
}

// door is a group whose members are root, or near it.
type door struct{ status, why, fix string }

var doors = map[string]door{
	"root":       {Danger, "files of group root are writable", "remove from the group"},
	"docker":     {Danger, "the Docker socket is root: docker run -v /:/host", "remove from the group, or use rootless Docker"},
	"podman":     {Danger, "a root podman socket is root", "remove from the group"},
	"containerd": {Danger, "the containerd socket is root", "remove from the group"},
	"lxd":        {Danger, "the LXD socket is root: a privileged container with the host's disk", "remove from the group"},
	"incus":      {Weaker, "restricted Incus projects, root if misconfigured", "check the project's restrictions"},
	"incus-admin": {
		Danger, "the Incus socket is root: a privileged container with the host's disk", "remove from the group",
	},
	"disk":     {Danger, "block devices can be read and written past every permission", "remove from the group"},
	"kmem":     {Danger, "the host's memory can be read", "remove from the group"},
	"shadow":   {Danger, "password hashes can be read", "remove from the group"},
	"libvirt":  {Danger, "a system virtual machine may have the host's disk", "remove from the group, or use qemu:///session"},
	"libvirtd": {Danger, "a system virtual machine may have the host's disk", "remove from the group, or use qemu:///session"},
	"sudo":     {Weaker, "may become root with sudo; without a password if sudoers says so", "use a user of its own for the gateway"},
	"wheel":    {Weaker, "may become root with sudo or su; without a password if sudoers says so", "use a user of its own for the gateway"},
	"admin":    {Weaker, "may become root with sudo on some systems", "use a user of its own for the gateway"},
	"kvm":      {OK, "", ""},
}

// sockets are those by which whoever may write to them is root.
var sockets = []string{
	"/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
	"/run/crio/crio.sock", "/run/lxd/unix.socket", "/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket",
	"/var/lib/incus/unix.socket", "/run/incus/unix.socket", "/run/buildkit/buildkitd.sock", "/run/libvirt/libvirt-sock",
	"/run/k3s/containerd/containerd.sock", "/run/snapd.socket.root",
}

const notRoot = "what creel keeps this user's agents from, the user itself can do"

// Caller says whether a user, a name or a uid, is root already by another door
// than creel, and whether it may use creel's socket (members of group, when
// that is given).
func Caller(name, group string) []api.Check {
	a, err := lookup(name)
	if err != nil {
		return []api.Check{bad(Missing, "caller", err.Error(), "nothing is known of this user",
			"give a user of /etc/passwd; users of directory services are not seen here")}
	}
	if a.uid == 0 {
		return []api.Check{bad(Danger, "caller", a.name+" is root", notRoot, "use a user of its own for the gateway")}
	}
	out := []api.Check{ok("caller", "%s: uid %d, groups %s", a.name, a.uid, strings.Join(a.groups, ", "))}
	if group != "" && !slices.Contains(a.groups, group) {
		out = append(out, bad(Missing, "caller.group", "not a member of group "+group, "cannot use creel's socket",
			"usermod -aG "+group+" "+a.name+", then a new session"))
	}
	return append(out, append(groupDoors(a), socketDoors(a, sockets)...)...)
}

func groupDoors(a account) []api.Check {
	var out []api.Check
	for _, g := range a.groups {
		d, known := doors[g]
		if known && d.status != OK {
			out = append(out, bad(d.status, "caller.group "+g, d.why, notRoot, d.fix))
		}
	}
	if out == nil {
		return []api.Check{ok("caller.groups", "none of them is a way to root")}
	}
	return out
}

func socketDoors(a account, paths []string) []api.Check {
	var out []api.Check
	seen := map[[2]uint64]bool{}
	err := a.do(func() error {
		for _, p := range paths {
			err := unix.Faccessat(unix.AT_FDCWD, p, unix.W_OK, unix.AT_EACCESS)
			var st unix.Stat_t
			if err != nil || unix.Stat(p, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
				continue
			}
			id := [2]uint64{st.Dev, st.Ino}
			if !seen[id] {
				seen[id] = true
				out = append(out, bad(Danger, "caller.socket "+p, a.name+" may write to it", notRoot,
					"change the socket's group or mode, or leave the group that opens it"))
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return []api.Check{bad(Weaker, "caller.sockets", err.Error(), "it is not known which sockets the user may write to",
			askRoot)}
	case out == nil:
		return []api.Check{ok("caller.sockets", "no container engine's socket is writable")}
	}
	return out
}

// reason is an error's kernel part, without the path that the user gave.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err.Error()
	}
	return err.Error()
}
