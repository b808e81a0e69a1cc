// Package netns makes the network namespaces of sandboxes: each holds the
// loopback interface and nothing else, so there is no wire to leave by.
//
// A namespace is made by the daemon in the initial user namespace, not by the
// runtime in the sandbox's: even root inside then has no capability over it
// and cannot add a link, an address or a route. It is pinned nowhere. It lives
// as long as the daemon's descriptor or a process in it, so a crash leaks none.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/thread"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace, held by a descriptor.
type NS struct {
	file   *os.File
	inode  uint64
	cookie uint64
	local  bool
}

// Create makes a network namespace with lo, up, and nothing else. It takes
// less than a millisecond. The caller closes it when the sandbox runs in it
// or has failed to.
func Create() (*NS, error) { return create(false) }

// CreateLocal makes one in which every address is its own: a connection to any
// begins and ends in it, as one to 127.0.0.1 does. So there is no wire here
// either, and whoever looks a socket up for the connection decides who answers
// (pkg/steer).
func CreateLocal() (*NS, error) { return create(true) }

func create(local bool) (*NS, error) {
	var f *os.File
	var cookie uint64
	err := thread.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if cookie, err = cookieHere(); err != nil {
			return err
		}
		if err := loUp(); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
		if err := lowPorts(); err != nil {
			return fmt.Errorf("low ports: %w", err)
		}
		if local {
			if err := routeAll(); err != nil {
				return fmt.Errorf("local routes: %w", err)
			}
		}
		if err := weaken(); err != nil {
			return err
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	return hold(f, cookie, local)
}

// Open holds the network namespace of a process, for a daemon that was
// restarted while the sandbox ran. It refuses one other than inode, which the
// store remembers: the pid may be another process by now. local says that
// CreateLocal made it.
func Open(pid int, inode uint64, local bool) (*NS, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	var cookie uint64
	err = thread.Do(func() (err error) {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		cookie, err = cookieHere()
		return err
	})
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	ns, err := hold(f, cookie, local)
	if err != nil {
		return nil, err
	}
	if ns.inode != inode {
		_ = ns.Close()
		return nil, fmt.Errorf("network namespace of pid %d is %d, not the sandbox's %d", pid, ns.inode, inode)
	}
	return ns, nil
}

func hold(f *os.File, cookie uint64, local bool) (*NS, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("stat network namespace: %w", err)
	}
	return &NS{file: f, inode: st.Ino, cookie: cookie, local: local}, nil
}

// cookieHere is the cookie of the calling thread's namespace.
func cookieHere() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("SO_NETNS_COOKIE: %w", err)
	}
	return cookie, nil
}

// Inode names the namespace as /proc/PID/ns/net does. The number is unique
// while the namespace exists.
func (n *NS) Inode() uint64 { return n.inode }

// Cookie is the kernel's own number for the namespace (SO_NETNS_COOKIE, Linux
// 5.14). No other namespace gets it between two boots.
func (n *NS) Cookie() uint64 { return n.cookie }

// File is the descriptor. It stays the namespace's.
func (n *NS) File() *os.File { return n.file }

// Path is a path to the namespace for an OCI spec. It can be opened by root in
// this pid namespace until Close.
func (n *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// dialTimeout bounds Dial, for each family: a server that does not accept.
const dialTimeout = 5 * time.Second

// Dial connects to a port of the namespace's own loopback, by IPv4 or, where
// nobody listens, by IPv6.
func (n *NS) Dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	var c *net.TCPConn
	err := thread.Do(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		var errs []error
		for _, a := range []string{"127.0.0.1", "::1"} {
			// Of an address by its number the socket is made right here, on
			// this thread.
			d := net.Dialer{Timeout: dialTimeout}
			got, err := d.DialContext(ctx, "tcp", net.JoinHostPort(a, strconv.Itoa(int(port))))
			if err == nil {
				c = got.(*net.TCPConn) //nolint:forcetypeassert // of "tcp" it is one
				return nil
			}
			errs = append(errs, err)
			if !errors.Is(err, unix.ECONNREFUSED) {
				break
			}
		}
		return errs[0]
	})
	return c, err
}

// Close lets go of the namespace. The kernel destroys it when no process is
// in it. Closing again does nothing.
func (n *NS) Close() error {
	if err := n.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// loUp sets lo up in the namespace of the calling thread.
func loUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	// lo is the first interface of every namespace, hence number 1.
	return h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}})
}

// firstPort is the lowest that an agent may serve on. Below it is the one that
// package steer listens on.
const firstPort = 2

// lowPorts lets whoever is in the calling thread's namespace serve on the ports
// below 1024 as well (Documentation/networking/ip-sysctl.rst,
// ip_unprivileged_port_start): there is nobody else that they could mean.
func lowPorts() error {
	// Of the files below net, proc shows each thread those of its own namespace.
	f, err := os.OpenFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(firstPort))
	return errors.Join(err, f.Close())
}

// routeAll has lo deliver what goes to any address, in the namespace of the
// calling thread: "ip route add local default dev lo" for both families.
func routeAll() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, all := range []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}} {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: all, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST}); err != nil {
			return fmt.Errorf("%s: %w", all, err)
		}
	}
	return nil
}

// weaken adds what must not be there when a test asks for it, in the namespace
// of the calling thread. In a normal build it is nothing.
func weaken() error {
	if !failpoint.Enabled {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if failpoint.On("layer.net.link") {
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "far"})
	}
	if failpoint.On("layer.net.route") {
		anywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		return h.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: anywhere})
	}
	return nil
}

// Check reads the namespace back through a socket opened in it.
func Check(n *NS) []api.Control {
	v := view{local: n.local}
	err := thread.Do(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		return v.look()
	})
	if err == nil {
		v.owner, err = ownerOf(n.file)
	}
	if err != nil {
		// What could not be read is not proven.
		return []api.Control{{Name: "network.links", Expected: "readable", Observed: err.Error()}}
	}
	return v.controls()
}

// view is what a namespace contains, in words.
type view struct {
	local         bool // what it should be
	links, routes []string
	owner         string
}

func (v view) controls() []api.Control {
	control := func(name, want, got string) api.Control {
		return api.Control{Name: name, Expected: want, Observed: got, OK: want == got}
	}
	routes, want := strings.Join(v.routes, ", "), "none"
	if routes == "" {
		routes = "none"
	}
	if v.local {
		want = localV4 + ", " + localV6
	}
	return []api.Control{
		control("network.links", "lo (loopback, up)", strings.Join(v.links, ", ")),
		control("network.routes", want, routes),
		control("network.owner", "initial user namespace", v.owner),
	}
}

// look lists links, and routes that lead elsewhere than to loopback addresses.
func (v *view) look() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := retry(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		v.links = append(v.links, describe(l))
	}
	// Table 0 with a table filter is every table, not only main.
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		switch {
		case loopbackOnly(r):
		case localDefault(r, 32):
			v.routes = append(v.routes, localV4)
		case localDefault(r, 128):
			v.routes = append(v.routes, localV6)
		default:
			v.routes = append(v.routes, r.String())
		}
	}
	slices.Sort(v.routes)
	return nil
}

func describe(l netlink.Link) string {
	a := l.Attrs()
	kind, state := l.Type(), "down"
	if a.Flags&net.FlagLoopback != 0 {
		kind = "loopback"
	}
	if a.Flags&net.FlagUp != 0 {
		state = "up"
	}
	return fmt.Sprintf("%s (%s, %s)", a.Name, kind, state)
}

// The two routes of CreateLocal, in words.
const (
	localV4 = "every IPv4 address is local"
	localV6 = "every IPv6 address is local"
)

// localDefault says whether r is one of those, by the bits of its family.
func localDefault(r netlink.Route, family int) bool {
	if !byLo(r) || r.Type != unix.RTN_LOCAL || r.Table != unix.RT_TABLE_LOCAL || r.Dst == nil {
		return false
	}
	ones, bits := r.Dst.Mask.Size()
	return ones == 0 && bits == family && r.Dst.IP.IsUnspecified()
}

// byLo says whether r is by interface 1 and by nothing else.
func byLo(r netlink.Route) bool {
	return r.LinkIndex == 1 && r.Gw == nil && r.Via == nil && len(r.MultiPath) == 0 && r.Encap == nil
}

// loopbackOnly says whether r is one of the routes that the kernel itself
// adds for lo: to 127/8 and ::1, on interface 1.
func loopbackOnly(r netlink.Route) bool {
	if !byLo(r) || r.Dst == nil {
		return false
	}
	ones, bits := r.Dst.Mask.Size()
	if bits == 32 {
		return ones >= 8 && r.Dst.IP.IsLoopback()
	}
	return ones == 128 && r.Dst.IP.IsLoopback()
}

// retry repeats a dump that the kernel says it interrupted, which may be
// incomplete.
func retry[T any](list func() ([]T, error)) ([]T, error) {
	for range 5 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}

// ownerOf tells which user namespace has power over the namespace f.
func ownerOf(f *os.File) (string, error) {
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return "", fmt.Errorf("owner: %w", err)
	}
	defer unix.Close(fd)
	var owner, ours unix.Stat_t
	if err := unix.Fstat(fd, &owner); err != nil {
		return "", fmt.Errorf("owner: %w", err)
	}
	if err := unix.Stat("/proc/self/ns/user", &ours); err != nil {
		return "", fmt.Errorf("owner: %w", err)
	}
	if owner.Ino == ours.Ino && owner.Dev == ours.Dev {
		return "initial user namespace", nil
	}
	return fmt.Sprintf("user namespace %d", owner.Ino), nil
}
