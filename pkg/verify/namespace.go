package verify

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// namespaces are those a sandbox has of its own, user first: it owns others.
var namespaces = []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"}

// Requests of ioctl_ns(2), _IO(0xb7, n).
const (
	nsGetUserNS   = 0xb701
	nsGetParent   = 0xb702
	nsGetOwnerUID = 0xb704
)

// Namespaces are the namespaces of a process's first thread, as
// Expect.HostNS wants them. The host's pid 1 is not always readable (it may
// have capabilities that the daemon lacks), so the daemon records its own at
// the start; later, goroutines may have moved the first thread elsewhere.
func Namespaces(pid int) (map[string]uint64, error) {
	p, err := openProc(pid)
	if err != nil {
		return nil, err
	}
	defer p.close()
	out := map[string]uint64{}
	for _, name := range namespaces {
		st, err := p.stat("ns/" + name)
		if err != nil {
			return nil, err
		}
		out[name] = st.Ino
	}
	return out, nil
}

func readNamespaces(r *report, p *proc, e Expect) {
	var user uint64
	for _, name := range namespaces {
		f, ino, err := openNamespace(p, name)
		r.within(err, func() { checkNamespace(r, e, name, ino) })
		if name == "user" {
			user = ino
			parent, err := related(f, nsGetParent)
			r.within(err, func() {
				r.check("namespace.user.parent", nsName("user", e.HostNS["user"]), nsName("user", parent))
			})
			owner, err := ownerUID(f)
			r.within(err, func() {
				r.check("namespace.user.owner", fmt.Sprintf("uid %d", e.UserNSOwner), fmt.Sprintf("uid %d", owner))
			})
		} else {
			// The network namespace is the daemon's, so that not even root
			// inside has a capability over it; the rest is the sandbox's.
			want := user
			if name == "net" {
				want = e.HostNS["user"]
			}
			owner, err := related(f, nsGetUserNS)
			r.within(err, func() {
				r.check("namespace."+name+".owner", nsName("user", want), nsName("user", owner))
			})
		}
		if f != nil {
			_ = f.Close()
		}
	}
}

func openNamespace(p *proc, name string) (*os.File, uint64, error) {
	f, err := p.open("ns/"+name, unix.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	ino, err := inode(int(f.Fd()))
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("stat namespace %s: %w", name, err)
	}
	return f, ino, nil
}

func checkNamespace(r *report, e Expect, name string, ino uint64) {
	host, known := e.HostNS[name]
	expected := "not the host's " + nsName(name, host)
	ok := known && host != 0 && ino != host
	if !known {
		expected = "not the host's, which is not known"
	}
	if own, fixed := e.OwnNS[name]; fixed {
		expected = nsName(name, own)
		ok = ok && ino == own
	}
	r.add("namespace."+name, expected, nsName(name, ino), ok)
}

func nsName(kind string, ino uint64) string {
	return kind + ":[" + strconv.FormatUint(ino, 10) + "]"
}

// related is the inode of the namespace that an ioctl of f gives.
func related(f *os.File, request uintptr) (uint64, error) {
	if f == nil {
		return 0, errNone
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, 0)
	if errno != 0 {
		return 0, fmt.Errorf("ioctl %#x of namespace %s: %w", request, strings.TrimPrefix(f.Name(), "ns/"), errno)
	}
	defer unix.Close(int(fd))
	return inode(int(fd))
}

func ownerUID(f *os.File) (uint32, error) {
	if f == nil {
		return 0, errNone
	}
	var uid uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), nsGetOwnerUID, uintptr(unsafe.Pointer(&uid))); errno != 0 {
		return 0, fmt.Errorf("owner of the user namespace: %w", errno)
	}
	return uid, nil
}

func inode(fd int) (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Ino, err
}

func readIDMaps(r *report, p *proc, e Expect) {
	ids := e.IDs
	if ids == 0 {
		ids = 65536
	}
	want := fmt.Sprintf("0 %d %d", e.HostUID, ids)
	for _, kind := range []string{"uid", "gid"} {
		text, err := p.read(kind + "_map")
		r.within(err, func() { r.check("idmap."+kind, want, parseIDMap(text)) })
	}
	if e.Setgroups != "" {
		text, err := p.read("setgroups")
		r.within(err, func() { r.check("idmap.setgroups", e.Setgroups, strings.TrimSuffix(text, "\n")) })
	}
}

// parseIDMap is a map on one line: extents with single spaces, "; " between.
func parseIDMap(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	if len(lines) == 0 {
		return "none"
	}
	return strings.Join(lines, "; ")
}
