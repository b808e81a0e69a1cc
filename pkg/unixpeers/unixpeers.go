// Package unixpeers keeps Unix sockets from leading out of sandboxes, and
// into them.
//
// A socket with a pathname in a directory that a sandbox shares with the host
// connects processes across network namespaces: the kernel looks at the
// directory's permissions and at nothing else (unix(7)). A [Guard] puts two
// programs on the kernel's own decision (BPF LSM, Linux 5.7, see
// Documentation/bpf/prog_lsm.rst): on security_unix_stream_connect for
// SOCK_STREAM and SOCK_SEQPACKET, and on security_unix_may_send for SOCK_DGRAM.
// They compare the network namespaces of the two sockets, which a socket keeps
// from socket(2) to its end. If the two differ and one of them is a sandbox's,
// the call fails with EACCES. Sockets of one namespace, and those of the host
// among themselves, are not touched.
//
// A sandbox is known by its network namespace's cookie (SO_NETNS_COOKIE),
// which the kernel never gives out twice between two boots: an entry that is
// left behind can harm nobody.
//
// # What holds when the daemon does not
//
// Programs and list are pinned in a file system of their own (bpffs), so they
// stay when the daemon is killed. The next Open goes on with the list and puts
// its own programs in place before it takes the old ones away.
package unixpeers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
)

// Control is the name of the control in the evidence.
const Control = "unix_peers"

// maxEntries bounds the list. An entry takes memory only when it is there.
const maxEntries = 1 << 16

// idLen is the room for a sandbox's id.
const idLen = 32

// ErrUnavailable means that this kernel cannot keep Unix sockets apart: no BPF
// LSM among the active ones, or no BTF.
var ErrUnavailable = errors.New("the BPF LSM cannot be used")

// Guard is the list of sandboxes and the programs that look at it. It is safe
// for concurrent use.
type Guard struct {
	dir   string
	list  *ebpf.Map
	hooks []hook
}

// hook is one program at its place.
type hook struct {
	name string
	link link.Link
	tag  string // of the program that was loaded
}

// Open puts the programs in place, going on with the list that an earlier
// daemon left in dir, a directory that only root can enter, on which it mounts
// a bpffs. It then tries, with sockets of its own, whether the kernel asks the
// programs. It takes some tens of milliseconds. Where the kernel cannot, the
// error is ErrUnavailable. It needs CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN.
func Open(dir string) (_ *Guard, err error) {
	if failpoint.On("host.bpflsm") {
		return nil, fmt.Errorf("%w: hidden by a test", ErrUnavailable)
	}
	made, err := mountPins(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	g := &Guard{dir: dir}
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, g.Close())
		if made {
			err = errors.Join(err, Remove(dir))
		}
	}()
	if g.list, err = openList(filepath.Join(dir, "sandboxes")); err != nil {
		return nil, err
	}
	if err := g.attach(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := g.try(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return g, nil
}

// mountPins mounts a bpffs on dir unless there is one. Who may look into it
// may change the list, so nobody may.
func mountPins(dir string) (made bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return false, nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return false, fmt.Errorf("mount a bpffs on %s: %w", dir, err)
	}
	return true, nil
}

// Remove takes the programs of dir away from the kernel and forgets the list:
// for taking a daemon off a machine, not for its restart. Nothing there is
// success.
func Remove(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// openList is the pinned list, or a new one.
func openList(path string) (*ebpf.Map, error) {
	spec := &ebpf.MapSpec{
		Name: "creel_peers", Type: ebpf.Hash, KeySize: 8, ValueSize: idLen, MaxEntries: maxEntries,
		Flags: unix.BPF_F_NO_PREALLOC,
	}
	list, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if err := spec.Compatible(list); err != nil {
			return nil, errors.Join(fmt.Errorf("list of an earlier creeld at %s: %w", path, err), list.Close())
		}
		return list, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list of an earlier creeld at %s: %w", path, err)
	}
	if list, err = ebpf.NewMap(spec); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := list.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin the list: %w", err), list.Close())
	}
	return list, nil
}

// attach puts every program in place. The one of an earlier daemon goes only
// when its successor is there.
func (g *Guard) attach() error {
	specs, err := programs(g.list)
	if err != nil {
		return err
	}
	for _, spec := range specs {
		h, err := load(spec)
		if err != nil {
			return fmt.Errorf("%s: %w", spec.AttachTo, err)
		}
		g.hooks = append(g.hooks, h)
		pin := filepath.Join(g.dir, h.name)
		next := pin + "_next" // a bpffs has no names with a dot
		if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := h.link.Pin(next); err != nil {
			return fmt.Errorf("pin %s: %w", h.name, err)
		}
		if err := os.Rename(next, pin); err != nil {
			return fmt.Errorf("pin %s: %w", h.name, err)
		}
	}
	return nil
}

func load(spec *ebpf.ProgramSpec) (hook, error) {
	p, err := ebpf.NewProgram(spec)
	if errors.Is(err, unix.EPERM) {
		return hook{}, fmt.Errorf("load program: %w", unix.EPERM) // the library guesses why, and wrongly
	}
	if err != nil {
		return hook{}, err
	}
	defer p.Close() // the link holds it
	info, err := p.Info()
	if err != nil {
		return hook{}, err
	}
	l, err := link.AttachLSM(link.LSMOptions{Program: p})
	if err != nil {
		return hook{}, err
	}
	return hook{name: spec.AttachTo, link: l, tag: info.Tag}, nil
}

// Close lets go of the programs and the list, which stay in force.
func (g *Guard) Close() error {
	var errs []error
	for _, h := range g.hooks {
		errs = append(errs, h.link.Close())
	}
	if g.list != nil {
		errs = append(errs, g.list.Close())
	}
	return errors.Join(errs...)
}

// Add puts the sandbox id, of at most 32 bytes, on the list by the cookie of
// its network namespace. It takes microseconds. Again is no error.
func (g *Guard) Add(cookie uint64, id string) error {
	if cookie == 0 || id == "" || len(id) > idLen {
		return fmt.Errorf("%s: sandbox %q with network namespace cookie %d", Control, id, cookie)
	}
	if err := g.list.Put(cookie, value(id)); err != nil {
		return fmt.Errorf("%s: put sandbox %s on the list: %w", Control, id, err)
	}
	return nil
}

// Delete takes the sandbox off the list. It is for a sandbox without
// processes. Not being there is success.
func (g *Guard) Delete(id string) error {
	all, err := g.entries()
	if err != nil {
		return err
	}
	for cookie, have := range all {
		if have != id {
			continue
		}
		if err := g.list.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("%s: take sandbox %s off the list: %w", Control, id, err)
		}
	}
	return nil
}

// List is the ids on the list.
func (g *Guard) List() ([]string, error) {
	all, err := g.entries()
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(all))
	for _, id := range all {
		ids = append(ids, id)
	}
	return ids, nil
}

// entries reads the list in batches (BPF_MAP_LOOKUP_BATCH, Linux 5.6): one
// entry at a time, a walk starts again where another deletes beside it.
func (g *Guard) entries() (map[uint64]string, error) {
	const batch = 4096
	keys, values := make([]uint64, batch), make([][idLen]byte, batch)
	all := map[uint64]string{}
	var at ebpf.MapBatchCursor
	for {
		n, err := g.list.BatchLookup(&at, keys, values, nil)
		for i := range n {
			all[keys[i]] = text(values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("%s: read the list: %w", Control, err)
		}
	}
}

// Check reads back from the kernel that the programs are in place, that they
// look at this list, and that the sandbox is on it.
func (g *Guard) Check(cookie uint64, id string) api.Control {
	c := api.Control{Name: Control, Expected: "EACCES for connections over its edge: programs attached, and sandbox on their list"}
	err := g.check(cookie, id)
	if c.OK = err == nil; c.OK {
		c.Observed = c.Expected
		return c
	}
	c.Observed = err.Error()
	return c
}

func (g *Guard) check(cookie uint64, id string) error {
	info, err := g.list.Info()
	if err != nil {
		return fmt.Errorf("the list: %w", err)
	}
	list, _ := info.ID()
	for _, h := range g.hooks {
		if err := h.check(list); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	if len(g.hooks) != len(places) {
		return fmt.Errorf("%d programs instead of %d", len(g.hooks), len(places))
	}
	var have [idLen]byte
	if err := g.list.Lookup(cookie, &have); err != nil {
		return fmt.Errorf("not on the list: %w", err)
	}
	if text(have) != id {
		return fmt.Errorf("the list has %q in its place", text(have))
	}
	return nil
}

// check holds what is attached against what was loaded.
func (h hook) check(list ebpf.MapID) error {
	at, err := h.link.Info()
	if err != nil {
		return fmt.Errorf("read the link: %w", err)
	}
	p, err := ebpf.NewProgramFromID(at.Program)
	if err != nil {
		return fmt.Errorf("the link's program: %w", err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return err
	}
	maps, _ := info.MapIDs()
	if info.Tag != h.tag || len(maps) != 1 || maps[0] != list {
		return fmt.Errorf("program %s with maps %v is attached, not %s with %d", info.Tag, maps, h.tag, list)
	}
	return nil
}

func value(id string) (v [idLen]byte) {
	copy(v[:], id)
	return v
}

func text(v [idLen]byte) string { return strings.TrimRight(string(v[:]), "\x00") }
