package steer

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/netns"
)

// Check reads back what steers the namespace: that there is one program, that it
// is this build's, that it looks into the map of the sandbox, and that the map
// has the sockets of s.
func Check(ns *netns.NS, dir, id string, s *Sockets) []api.Control {
	var out []api.Control
	for _, c := range []struct {
		name, want string
		look       func() (string, error)
	}{
		{"network.steered", fmt.Sprintf("one program, by a link to network namespace %d", ns.Inode()), func() (string, error) { return linked(ns, dir, id) }},
		{"network.program", "this build's", func() (string, error) { return loaded(dir, id) }},
		{"network.sockets", cookies(s), func() (string, error) { return held(dir, id) }},
	} {
		got, err := c.look()
		if err != nil {
			got = err.Error() // what could not be read is not proven
		}
		out = append(out, api.Control{Name: c.name, Expected: c.want, Observed: got, OK: err == nil && got == c.want})
	}
	return out
}

// linked says what is attached to the namespace.
func linked(ns *netns.NS, dir, id string) (string, error) {
	l, info, err := pinned(dir, id)
	if err != nil {
		return "", err
	}
	defer l.Close()
	in := info.NetNs()
	if in == nil || uint32(in.AttachType) != uint32(ebpf.AttachSkLookup) {
		return "a link of another kind", nil
	}
	all, err := link.QueryPrograms(link.QueryOptions{Target: int(ns.File().Fd()), Attach: ebpf.AttachSkLookup})
	if err != nil {
		return "", fmt.Errorf("what is attached: %w", err)
	}
	if len(all.Programs) != 1 || all.Programs[0].ID != info.Program {
		return fmt.Sprintf("%d programs", len(all.Programs)), nil
	}
	return fmt.Sprintf("one program, by a link to network namespace %d", in.NetnsInode), nil
}

func pinned(dir, id string) (link.Link, *link.Info, error) {
	l, err := link.LoadPinnedLink(filepath.Join(dir, id, pinLink), nil)
	if err != nil {
		return nil, nil, fmt.Errorf("link: %w", err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("link: %w", err), l.Close())
	}
	return l, info, nil
}

// loaded compares the link's program with what this build loads.
func loaded(dir, id string) (string, error) {
	l, info, err := pinned(dir, id)
	if err != nil {
		return "", err
	}
	defer l.Close()
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return "", fmt.Errorf("program: %w", err)
	}
	defer prog.Close()
	got, err := prog.Info()
	if err != nil {
		return "", fmt.Errorf("program: %w", err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, id, pinMap), nil)
	if err != nil {
		return "", fmt.Errorf("map: %w", err)
	}
	defer m.Close()
	own, err := m.Info()
	if err != nil {
		return "", fmt.Errorf("map: %w", err)
	}
	ownID, known := own.ID()
	// The kernel's tag is of the instructions without the map they name. It is
	// the kernel that is asked for ours: how it counts is its own (SHA-1 until
	// Linux 6.17).
	ours, err := ebpf.NewProgram(program(id, m))
	if err != nil {
		return "", fmt.Errorf("program to compare with: %w", err)
	}
	defer ours.Close()
	want, err := ours.Info()
	if err != nil {
		return "", fmt.Errorf("program to compare with: %w", err)
	}
	if got.Tag != want.Tag {
		return "another, with the tag " + got.Tag, nil
	}
	if maps, ok := got.MapIDs(); !known || !ok || !slices.Equal(maps, []ebpf.MapID{ownID}) {
		return "one with another map", nil
	}
	return "this build's", nil
}

// held are the cookies of the sockets in the map.
func held(dir, id string) (string, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, id, pinMap), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return "", fmt.Errorf("map: %w", err)
	}
	defer m.Close()
	var out []string
	for i := range uint32(sockets) {
		var cookie uint64
		err := m.Lookup(i, &cookie)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			out = append(out, "none")
		case err != nil:
			return "", fmt.Errorf("map: %w", err)
		default:
			out = append(out, fmt.Sprint(cookie))
		}
	}
	return strings.Join(out, ", "), nil
}

// cookies are those of s (SO_COOKIE), which the kernel gives no other socket.
func cookies(s *Sockets) string {
	var out []string
	for _, f := range s.files() {
		c := "no socket"
		if f != nil {
			if n, err := unix.GetsockoptUint64(int(f.Fd()), unix.SOL_SOCKET, unix.SO_COOKIE); err == nil {
				c = fmt.Sprint(n)
			}
		}
		out = append(out, c)
	}
	return strings.Join(out, ", ")
}
