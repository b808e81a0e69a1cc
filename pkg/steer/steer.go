// Package steer gives the connections that begin in a sandbox's network
// namespace to sockets that another process serves.
//
// In a namespace where every address is local (netns.CreateLocal), one BPF
// program is asked for the socket of each new connection and each datagram
// (sk_lookup, Linux 5.9; Documentation/bpf/prog_sk_lookup.rst). It chooses:
//
//	TCP to 127.0.0.1:3128       the TCP socket, which is a proxy there
//	TCP to 127.0.0.1:3129       the TCP socket, which serves the identity there
//	to 127.0.0.0/8 and ::1      the sandbox's own servers, as on any host
//	TCP to any other address    the TCP socket of the family
//	UDP to port 53 elsewhere    the UDP socket of the family
//	all else                    nobody: it is refused
//
// Listen makes the four sockets, Steer puts program, map and link in place and
// pins them by the sandbox's id, and Check reads them back. Where a socket is
// not there, or the link is not, nothing is answered: there is no wire to leave
// by.
//
// Who accepts a connection sets SO_REUSEADDR on it: else it keeps the agent from
// listening on all addresses at a port that it has a connection to.
//
// An accepted connection's local address is the true destination, and the
// socket that it came by says whose it is; nothing that is sent does. A sandbox
// can also connect to the sockets by the address that they are bound to, which
// then is the destination: it is one that no policy lists (ListenAddr4).
package steer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/undo"
)

// The names of the pins in a sandbox's directory.
const (
	pinMap  = "sockets"
	pinLink = "link"
)

// Mount has dir be a bpffs that only root can enter, unless it is.
func Mount(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("steer: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("steer: %s: %w", dir, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("steer: mount a bpffs on %s: %w", dir, err)
	}
	return nil
}

// Steer has the namespace's connections go to s. dir is on a bpffs that only
// root can enter, and exists; what it makes there is called id and outlives the
// daemon. It takes about a millisecond, and leaves nothing if it fails. It needs
// CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN.
func Steer(ctx context.Context, ns *netns.NS, dir, id string, s *Sockets) (err error) {
	var u undo.Stack
	defer u.OnError(ctx, &err)
	at := filepath.Join(dir, id)
	if err := os.Mkdir(at, 0o700); err != nil {
		return fmt.Errorf("steer %s: %w", id, err)
	}
	u.Add("remove pins", func(context.Context) error { return Delete(dir, id) })
	if err := steer(ns, at, id, s); err != nil {
		return fmt.Errorf("steer %s: %w", id, err)
	}
	return nil
}

func steer(ns *netns.NS, at, id string, s *Sockets) error {
	m, err := ebpf.NewMap(mapSpec(id))
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	defer m.Close()
	if err := m.Pin(filepath.Join(at, pinMap)); err != nil {
		return fmt.Errorf("pin the map: %w", err)
	}
	if err := put(m, s); err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(program(id, m))
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	defer prog.Close()
	// Closing it does not end it once it is pinned.
	l, err := link.AttachNetNs(int(ns.File().Fd()), prog)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer l.Close()
	if err := l.Pin(filepath.Join(at, pinLink)); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	return nil
}

// put has the map hold the sockets.
func put(m *ebpf.Map, s *Sockets) error {
	for i, f := range s.files() {
		if f == nil {
			return fmt.Errorf("socket %d of %d is not there", i, sockets)
		}
		if err := m.Put(uint32(i), uint64(f.Fd())); err != nil {
			return fmt.Errorf("socket %d: %w", i, err)
		}
	}
	return nil
}

// Renew has other sockets take the place of those of Steer, one after another:
// between two of them a connection goes to an old or a new one.
func Renew(dir, id string, s *Sockets) error {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, id, pinMap), nil)
	if err != nil {
		return fmt.Errorf("steer %s: %w", id, err)
	}
	defer m.Close()
	if err := put(m, s); err != nil {
		return fmt.Errorf("steer %s: %w", id, err)
	}
	return nil
}

// Delete takes away what Steer made, also if it was killed in the middle.
// Nothing there is success. The kernel ends the link a moment later.
func Delete(dir, id string) error {
	at := filepath.Join(dir, id)
	for _, pin := range []string{filepath.Join(at, pinLink), filepath.Join(at, pinMap), at} {
		if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("steer %s: %w", id, err)
		}
	}
	return nil
}

// List is the ids that there is something of in dir, sorted.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("steered namespaces: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() { // the kernel has files of its own in a bpffs
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}
