package steer

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// The addresses that the sockets are bound to, and where the sandbox's resolver
// is to be found. They are of the ranges for benchmarks (RFC 2544, RFC 5180),
// that nobody has, and not of loopback: so a server of the agent's can have any
// port there, and a connection to a socket by its own address is steered as all
// others are. It is a destination that no policy can list.
var (
	ListenAddr4 = netip.MustParseAddr("198.18.0.1")
	ListenAddr6 = netip.MustParseAddr("2001:2::1")
)

// The ports they are bound to: one that no agent serves, and the one that a
// resolver answers from.
const (
	tcpPort = 1
	udpPort = 53
)

// backlog is how many connections may wait to be accepted, for one family.
const backlog = 256

// Sockets are those that a namespace's connections go to.
type Sockets struct {
	// TCP4 and TCP6 listen. They are plain TCP, not MPTCP, and share their port
	// with nobody.
	TCP4, TCP6 *os.File
	// UDP4 and UDP6 get datagrams with their destination (IP_PKTINFO), and can
	// answer from it.
	UDP4, UDP6 *os.File
}

func (s *Sockets) files() [sockets]*os.File { return [...]*os.File{s.TCP4, s.TCP6, s.UDP4, s.UDP6} }

// Close closes those that there are.
func (s *Sockets) Close() error {
	var err error
	for _, f := range s.files() {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// Listen makes the sockets, in a namespace of netns.CreateLocal's. They do not
// block. An agent that came to serve on port 53 of all addresses while nobody held
// these has no network any more: they cannot be made.
func Listen(ns *netns.NS) (_ *Sockets, err error) {
	s := &Sockets{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sockets of a network namespace: %w", err), s.Close())
		}
	}()
	return s, thread.Do(func() error {
		if err := unix.Setns(int(ns.File().Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		for _, want := range []struct {
			to        **os.File
			name      string
			addr      netip.Addr
			kind, own int
		}{
			{&s.TCP4, "tcp4", ListenAddr4, unix.SOCK_STREAM, unix.IPPROTO_TCP},
			{&s.TCP6, "tcp6", ListenAddr6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
			{&s.UDP4, "udp4", ListenAddr4, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
			{&s.UDP6, "udp6", ListenAddr6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
		} {
			f, err := open(want.name, want.addr, want.kind, want.own)
			if err != nil {
				return fmt.Errorf("%s: %w", want.name, err)
			}
			*want.to = f
		}
		return nil
	})
}

// open makes one socket, in the calling thread's namespace.
func open(name string, addr netip.Addr, kind, protocol int) (_ *os.File, err error) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := options(fd, family, kind); err != nil {
		return nil, err
	}
	port := tcpPort
	if kind == unix.SOCK_DGRAM {
		port = udpPort
	}
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: port, Addr: ListenAddr4.As4()}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: port, Addr: addr.As16()}
	}
	if err := unix.Bind(fd, at); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, backlog); err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	return f, nil
}

func options(fd, family, kind int) error {
	var set [][2]int
	if family == unix.AF_INET6 {
		// FREEBIND: to answer from an address that is local by a route alone.
		set = append(set, [2]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}, [2]int{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND})
		if kind == unix.SOCK_DGRAM {
			set = append(set, [2]int{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO})
		}
	} else if kind == unix.SOCK_DGRAM {
		set = append(set, [2]int{unix.IPPROTO_IP, unix.IP_PKTINFO})
	}
	for _, o := range set {
		if err := unix.SetsockoptInt(fd, o[0], o[1], 1); err != nil {
			return fmt.Errorf("option %d.%d: %w", o[0], o[1], err)
		}
	}
	return nil
}
