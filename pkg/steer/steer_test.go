package steer_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/thread"
)

const id = "k7m2q4x9t1w8r5y3z6ab"

// pins is a directory on a bpffs of the test's own.
func pins(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

func namespace(tb testing.TB) (*netns.NS, *steer.Sockets) {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root)
	ns, err := netns.CreateLocal()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ns.Close() })
	return ns, listen(tb, ns)
}

func listen(tb testing.TB, ns *netns.NS) *steer.Sockets {
	tb.Helper()
	s, err := steer.Listen(ns)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	return s
}

func steered(t *testing.T) (*netns.NS, *steer.Sockets, string) {
	t.Helper()
	ns, s := namespace(t)
	dir := pins(t)
	if err := steer.Steer(t.Context(), ns, dir, id, s); err != nil {
		t.Fatal(err)
	}
	return ns, s, dir
}

// in runs fn with what it makes in the namespace.
func in(t *testing.T, ns *netns.NS, fn func() error) {
	t.Helper()
	err := thread.Do(func() error {
		if err := unix.Setns(int(ns.File().Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dial connects from inside, on the thread that is there.
func dial(to string) (int, error) {
	ap := netip.MustParseAddrPort(to)
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(ap.Port())}
	if ap.Addr().Is6() {
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = ap.Addr().As4()
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// served is the true destination of the next connection to a listener.
func served(t *testing.T, f *os.File) string {
	t.Helper()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	c, err := l.Accept()
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// nobody has come to a listener.
func nobody(t *testing.T, s *steer.Sockets) {
	t.Helper()
	for _, f := range []*os.File{s.TCP4, s.TCP6} {
		if fd, _, err := unix.Accept4(int(f.Fd()), unix.SOCK_CLOEXEC); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("a connection came: %d, %v", fd, err)
		}
	}
}

func bad(cs []api.Control) []string {
	var out []string
	for _, c := range cs {
		if !c.OK {
			out = append(out, c.Name+": "+c.Observed)
		}
	}
	return out
}

func TestSteer(t *testing.T) {
	ns, s, dir := steered(t)
	if cs := steer.Check(ns, dir, id, s); len(cs) != 3 || len(bad(cs)) > 0 {
		t.Errorf("not proven: %q", bad(cs))
	}
	if b := netns.Check(ns); slices.ContainsFunc(b, func(c api.Control) bool { return !c.OK }) {
		t.Errorf("the namespace: %+v", b)
	}
	for _, f := range []*os.File{s.TCP4, s.TCP6, s.UDP4, s.UDP6} {
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s blocks: %v", f.Name(), err)
		}
	}
	for _, to := range []string{
		"203.0.113.7:443", "8.8.8.8:53", "10.0.0.1:22", "169.254.169.254:80", "198.18.0.1:1", "126.255.255.255:1", "128.0.0.1:65535", "0.0.0.1:80",
		"[2001:db8::1]:443", "[fd00::1]:53", "[64:ff9b::808:808]:80", "[2001:2::1]:1", "[::2]:80", "[1::1]:80",
	} {
		in(t, ns, func() error {
			fd, err := dial(to)
			if err != nil {
				return fmt.Errorf("%s: %w", to, err)
			}
			defer unix.Close(fd)
			f := s.TCP4
			if strings.HasPrefix(to, "[") {
				f = s.TCP6
			}
			if got := served(t, f); got != to {
				t.Errorf("a connection to %s came to %s", to, got)
			}
			return nil
		})
	}
	nobody(t, s)
}

// TestLoopbackIsTheAgents: what a sandbox serves on its own loopback it is
// asked for, the ports of the sockets among it, and what it does not serve is
// refused.
func TestLoopbackIsTheAgents(t *testing.T) {
	ns, s, _ := steered(t)
	in(t, ns, func() error {
		for _, at := range []string{"127.0.0.1:80", "127.0.0.2:1", "127.0.0.53:53", "127.255.255.254:443", "[::1]:443", "[::1]:1"} {
			l, err := net.Listen("tcp", at)
			if err != nil {
				return err
			}
			fd, err := dial(at)
			if err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
			c, err := l.Accept()
			if err != nil {
				return err
			}
			_, _, _ = c.Close(), unix.Close(fd), l.Close()
			if fd, err := dial(at); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s without a server: %d, %v", at, fd, err)
			}
		}
		// IPv4 written as IPv6 is IPv4.
		l, err := net.Listen("tcp4", "127.0.0.1:8080")
		if err != nil {
			return err
		}
		defer l.Close()
		fd, err := dial("[::ffff:127.0.0.1]:8080")
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	in(t, ns, func() error {
		fd, err := dial("[::ffff:203.0.113.7]:8080")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if got := served(t, s.TCP4); got != "203.0.113.7:8080" {
			t.Errorf("it came to %s", got)
		}
		return nil
	})
	nobody(t, s)
}

// TestWorkloadPort: so is the port of the sandbox's identity.
func TestWorkloadPort(t *testing.T) {
	ns, s, _ := steered(t)
	in(t, ns, func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", steer.WorkloadPort))
		if err != nil {
			return err
		}
		defer l.Close()
		fd, err := dial("127.0.0.1:3129")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if got := served(t, s.TCP4); got != "127.0.0.1:3129" {
			t.Errorf("came to %s", got)
		}
		return nil
	})
	in(t, ns, func() error {
		for _, to := range []string{"127.0.0.1:3130", "[::1]:3129", "127.0.0.2:3129"} {
			if fd, err := dial(to); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %d, %v", to, fd, err)
			}
		}
		return nil
	})
}

// TestProxyPort: the proxy's port of 127.0.0.1 is the TCP socket, whoever listens
// there, and no other port, address or protocol of loopback is.
func TestProxyPort(t *testing.T) {
	ns, s, _ := steered(t)
	at := fmt.Sprintf("127.0.0.1:%d", steer.ProxyPort)
	in(t, ns, func() error {
		l, err := net.Listen("tcp4", fmt.Sprintf(":%d", steer.ProxyPort))
		if err != nil {
			return err
		}
		defer l.Close()
		for _, to := range []string{at, "[::ffff:127.0.0.1]:3128"} {
			fd, err := dial(to)
			if err != nil {
				return fmt.Errorf("%s: %w", to, err)
			}
			defer unix.Close(fd)
			if got := served(t, s.TCP4); got != at {
				t.Errorf("%s came to %s", to, got)
			}
		}
		fd, err := dial("127.0.0.2:3128")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if got := c.LocalAddr().String(); got != "127.0.0.2:3128" {
			t.Errorf("a server got %s", got)
		}
		return c.Close()
	})
	in(t, ns, func() error {
		for _, to := range []string{"127.0.0.1:3127", "[::1]:3128", "127.1.0.1:3128"} {
			if fd, err := dial(to); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %d, %v", to, fd, err)
			}
		}
		u, err := net.ListenPacket("udp4", at)
		if err != nil {
			return err
		}
		defer u.Close()
		c, err := net.Dial("udp4", at)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_ = u.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, _, err = u.ReadFrom(make([]byte, 8))
		return err
	})
	nobody(t, s)
}

// TestAgentDoesNotWin: a server of the agent's gets nothing that goes
// elsewhere, on whatever address and with whatever option.
func TestAgentDoesNotWin(t *testing.T) {
	ns, s, _ := steered(t)
	in(t, ns, func() error {
		for _, at := range []string{"0.0.0.0:443", "203.0.113.8:444", "[::]:8443", "[2001:db8::2]:8444"} {
			ap := netip.MustParseAddrPort(at)
			lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
				})
			}}
			l, err := lc.Listen(t.Context(), "tcp", at)
			if err != nil {
				return err
			}
			defer l.Close()
			to, f := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.8"), ap.Port()), s.TCP4
			if ap.Addr().Is6() {
				to, f = netip.AddrPortFrom(netip.MustParseAddr("2001:db8::2"), ap.Port()), s.TCP6
			}
			fd, err := dial(to.String())
			if err != nil {
				return err
			}
			if got := served(t, f); got != to.String() {
				t.Errorf("with a server on %s, a connection to %s came to %s", at, to, got)
			}
			_ = unix.Close(fd)
		}
		// Nor can it have the sockets' own places.
		for _, at := range []string{"198.18.0.1:1", "0.0.0.0:1"} {
			if l, err := net.Listen("tcp4", at); err == nil {
				l.Close()
				t.Errorf("the agent may listen on %s", at)
			}
		}
		return nil
	})
	nobody(t, s)
}

// TestServeBesideConnections: a connection to a port elsewhere does not keep
// the agent from serving that port, once SO_REUSEADDR is set on it.
func TestServeBesideConnections(t *testing.T) {
	ns, s, _ := steered(t)
	in(t, ns, func() error {
		fd, err := dial("203.0.113.7:8080")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		c, _, err := unix.Accept4(int(s.TCP4.Fd()), unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(c)
		for reuse := range 2 {
			if err := unix.SetsockoptInt(c, unix.SOL_SOCKET, unix.SO_REUSEADDR, reuse); err != nil {
				return err
			}
			l, err := net.Listen("tcp4", "0.0.0.0:8080")
			if err == nil {
				l.Close()
			}
			if (err == nil) != (reuse == 1) {
				t.Errorf("SO_REUSEADDR %d: %v", reuse, err)
			}
		}
		return nil
	})
}

// TestDatagrams: DNS comes with its destination and is answered from there; no
// other datagram goes anywhere.
func TestDatagrams(t *testing.T) {
	ns, s, _ := steered(t)
	for _, tt := range []struct {
		to string
		f  *os.File
	}{{"198.18.0.1:53", s.UDP4}, {"8.8.8.8:53", s.UDP4}, {"[2001:2::1]:53", s.UDP6}, {"[2001:4860:4860::8888]:53", s.UDP6}} {
		in(t, ns, func() error {
			c, err := net.Dial("udp", tt.to) // connected: an answer from elsewhere is not heard
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err := c.Write([]byte("question")); err != nil {
				return err
			}
			asked := answer(t, tt.f)
			if want := netip.MustParseAddrPort(tt.to).Addr(); asked != want {
				t.Errorf("a datagram to %s came to %s", want, asked)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 32)
			if n, err := c.Read(b); err != nil || string(b[:n]) != "answer" {
				t.Errorf("%s: %q, %v", tt.to, b[:n], err)
			}
			return nil
		})
	}
	in(t, ns, func() error {
		for _, to := range []string{"8.8.8.8:443", "203.0.113.7:123", "198.18.0.1:5353", "[2001:db8::1]:443"} {
			c, err := net.Dial("udp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			_, _ = c.Write([]byte("x"))
			_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("a datagram to %s: %v", to, err)
			}
		}
		l, err := net.ListenPacket("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer c.Close()
		_, _ = c.Write([]byte("own"))
		_ = l.SetReadDeadline(time.Now().Add(2 * time.Second))
		b := make([]byte, 8)
		if n, _, err := l.ReadFrom(b); err != nil || string(b[:n]) != "own" {
			t.Errorf("the agent's own resolver: %q, %v", b[:n], err)
		}
		return nil
	})
}

// answer takes one datagram and answers it from where it was sent to.
func answer(t *testing.T, f *os.File) netip.Addr {
	t.Helper()
	fd := int(f.Fd())
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, 5000); n != 1 || err != nil {
		t.Fatalf("no datagram came to %s: %v", f.Name(), err)
	}
	b, oob := make([]byte, 64), make([]byte, 128)
	_, oobn, _, from, err := unix.Recvmsg(fd, b, oob, 0)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v", len(msgs), err)
	}
	data := msgs[0].Data
	var asked netip.Addr
	var with []byte
	if msgs[0].Header.Level == unix.IPPROTO_IP {
		asked = netip.AddrFrom4([4]byte(data[8:12])) // ipi_addr
		with = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: asked.As4()})
	} else {
		asked = netip.AddrFrom16([16]byte(data[:16]))
		with = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: asked.As16()})
	}
	if err := unix.Sendmsg(fd, []byte("answer"), with, from, 0); err != nil {
		t.Fatalf("answer from %s: %v", asked, err)
	}
	return asked
}

// TestNobodyServes: without the sockets, the map or the link nothing is
// answered, and nothing of it goes on to somebody else.
func TestNobodyServes(t *testing.T) {
	refused := func(t *testing.T, ns *netns.NS) {
		t.Helper()
		in(t, ns, func() error {
			for _, to := range []string{"203.0.113.7:443", "[2001:db8::1]:443"} {
				if fd, err := dial(to); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s: %d, %v", to, fd, err)
				}
			}
			return nil
		})
	}
	t.Run("sockets closed", func(t *testing.T) {
		ns, s, dir := steered(t)
		s.Close()
		refused(t, ns)
		in(t, ns, func() error { // the agent's server does not take their place
			l, err := net.Listen("tcp", "0.0.0.0:443")
			if err != nil {
				return err
			}
			defer l.Close()
			if fd, err := dial("203.0.113.7:443"); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("it is asked: %d, %v", fd, err)
			}
			return nil
		})
		if b := bad(steer.Check(ns, dir, id, s)); len(b) != 1 || b[0] != "network.sockets: none, none, none, none" {
			t.Errorf("not seen: %q", b)
		}
		again := listen(t, ns)
		if err := steer.Renew(dir, id, again); err != nil {
			t.Fatal(err)
		}
		in(t, ns, func() error {
			fd, err := dial("203.0.113.7:443")
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if got := served(t, again.TCP4); got != "203.0.113.7:443" {
				t.Errorf("after the renewal: %s", got)
			}
			return nil
		})
		if b := bad(steer.Check(ns, dir, id, again)); len(b) > 0 {
			t.Errorf("after the renewal: %q", b)
		}
	})
	t.Run("deleted", func(t *testing.T) {
		ns, s, dir := steered(t)
		for range 2 {
			if err := steer.Delete(dir, id); err != nil {
				t.Fatal(err)
			}
		}
		// The kernel ends a link a moment after its last pin is gone.
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			all, err := link.QueryPrograms(link.QueryOptions{Target: int(ns.File().Fd()), Attach: ebpf.AttachSkLookup})
			if err != nil || time.Now().After(end) {
				t.Fatalf("attached: %+v, %v", all, err)
			}
			if len(all.Programs) == 0 {
				break
			}
		}
		refused(t, ns)
		if ids, err := steer.List(dir); err != nil || len(ids) > 0 {
			t.Errorf("left: %q, %v", ids, err)
		}
		if b := bad(steer.Check(ns, dir, id, s)); len(b) != 3 {
			t.Errorf("not seen: %q", b)
		}
	})
}

// TestCheckSees another program, another map, other sockets and another
// namespace.
func TestCheckSees(t *testing.T) {
	t.Run("other sockets", func(t *testing.T) {
		ns, s, dir := steered(t)
		other, err := netns.CreateLocal()
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := steer.Renew(dir, id, listen(t, other)); err != nil {
			t.Fatal(err)
		}
		if b := bad(steer.Check(ns, dir, id, s)); len(b) != 1 || !strings.HasPrefix(b[0], "network.sockets: ") {
			t.Errorf("not seen: %q", b)
		}
	})
	t.Run("another namespace", func(t *testing.T) {
		_, s, dir := steered(t)
		other, _ := namespace(t)
		if b := bad(steer.Check(other, dir, id, s)); len(b) != 1 || b[0] != "network.steered: 0 programs" {
			t.Errorf("not seen: %q", b)
		}
	})
	pass := func() *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Apache-2.0",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	t.Run("one more program", func(t *testing.T) {
		ns, s, dir := steered(t)
		l, err := link.AttachNetNs(int(ns.File().Fd()), pass())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if b := bad(steer.Check(ns, dir, id, s)); len(b) != 1 || b[0] != "network.steered: 2 programs" {
			t.Errorf("not seen: %q", b)
		}
	})
	t.Run("another program", func(t *testing.T) {
		ns, s, dir := steered(t)
		l, err := link.LoadPinnedLink(filepath.Join(dir, id, "link"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := l.Update(pass()); err != nil {
			t.Fatal(err)
		}
		if b := bad(steer.Check(ns, dir, id, s)); len(b) != 1 || !strings.HasPrefix(b[0], "network.program: another, with the tag ") {
			t.Errorf("not seen: %q", b)
		}
	})
	t.Run("another map", func(t *testing.T) {
		ns, s, dir := steered(t)
		if err := os.Remove(filepath.Join(dir, id, "sockets")); err != nil {
			t.Fatal(err)
		}
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 4})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(filepath.Join(dir, id, "sockets")); err != nil {
			t.Fatal(err)
		}
		if err := steer.Renew(dir, id, s); err != nil {
			t.Fatal(err)
		}
		if b := bad(steer.Check(ns, dir, id, s)); !slices.Equal(b, []string{"network.program: one with another map"}) {
			t.Errorf("not seen: %q", b)
		}
	})
}

// TestUndo: what cannot be done leaves nothing.
func TestUndo(t *testing.T) {
	ns, s := namespace(t)
	dir := pins(t)
	closedNS, err := netns.CreateLocal()
	if err != nil {
		t.Fatal(err)
	}
	closedNS.Close()
	someClosed := listen(t, func() *netns.NS {
		n, err := netns.CreateLocal()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return n
	}())
	someClosed.UDP6.Close()
	for name, try := range map[string]func() error{
		"a socket is closed":      func() error { return steer.Steer(t.Context(), ns, dir, id, someClosed) },
		"a socket is not there":   func() error { return steer.Steer(t.Context(), ns, dir, id, &steer.Sockets{TCP4: s.TCP4}) },
		"the namespace is closed": func() error { return steer.Steer(t.Context(), closedNS, dir, id, s) },
		"the caller has hung up":  func() error { return steer.Steer(canceled(t), closedNS, dir, id, s) },
	} {
		if err := try(); err == nil {
			t.Errorf("%s: steered", name)
		}
		if ids, err := steer.List(dir); err != nil || len(ids) > 0 {
			t.Errorf("%s: left %q, %v", name, ids, err)
		}
		if all, err := link.QueryPrograms(link.QueryOptions{Target: int(ns.File().Fd()), Attach: ebpf.AttachSkLookup}); err != nil || len(all.Programs) > 0 {
			t.Errorf("%s: %+v is attached, %v", name, all, err)
		}
	}
	plain := t.TempDir() // nothing can be pinned there
	if err := steer.Steer(t.Context(), ns, plain, id, s); err == nil {
		t.Error("steered without pins")
	}
	if ids, err := steer.List(plain); err != nil || len(ids) > 0 {
		t.Errorf("left %q, %v", ids, err)
	}
	// One that is there already is not touched.
	if err := steer.Steer(t.Context(), ns, dir, id, s); err != nil {
		t.Fatal(err)
	}
	if err := steer.Steer(t.Context(), ns, dir, id, s); !errors.Is(err, os.ErrExist) {
		t.Errorf("steered twice: %v", err)
	}
	if b := bad(steer.Check(ns, dir, id, s)); len(b) > 0 {
		t.Errorf("after a second try: %q", b)
	}
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// TestListenUndo: in a namespace where not every address is local there are no
// sockets.
func TestListenUndo(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	ns, err := netns.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	before := descriptors(t)
	if s, err := steer.Listen(ns); err == nil {
		s.Close()
		t.Error("there are sockets")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, and %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// TestRootInside: with every capability of a user namespace of its own, a
// process in the namespace can change nothing of it.
func TestRootInside(t *testing.T) {
	if os.Getenv("CREEL_TEST_HELPER") != "" {
		inside()
		return
	}
	ns, s, dir := steered(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=TestRootInside$")
	cmd.Env = append(os.Environ(), "CREEL_TEST_HELPER=1", "CREEL_TEST_PINS="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100_000, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100_000, Size: 1}},
		Credential:  &syscall.Credential{NoSetGroups: true},
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	in(t, ns, cmd.Start)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if got, want := strings.TrimSuffix(out.String(), "PASS\n"), "attach: EPERM\nlink: EACCES\nroute: EPERM\na listener's port: EACCES\nthe resolver's: EADDRINUSE\n"; got != want {
		t.Errorf("inside:\n%swant:\n%s", got, want)
	}
	if b := bad(steer.Check(ns, dir, id, s)); len(b) > 0 {
		t.Errorf("afterwards: %q", b)
	}
}

// inside is what the process there tries.
func inside() {
	say := func(what string, err error) {
		name := "succeeded"
		if e, ok := errors.AsType[syscall.Errno](err); ok {
			name = unix.ErrnoName(e)
		} else if err != nil {
			name = err.Error()
		}
		fmt.Printf("%s: %s\n", what, name)
	}
	// BPF_PROG_LOAD of a program of two instructions is refused before it is
	// looked at.
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err == nil {
		p.Close()
	}
	say("attach", err)
	_, err = link.LoadPinnedLink(filepath.Join(os.Getenv("CREEL_TEST_PINS"), id, "link"), nil)
	say("link", err)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err == nil {
		// Delete interface 1's default route: a bare RTM_DELROUTE is enough to be
		// asked for the right to.
		err = request(fd)
		_ = unix.Close(fd)
	}
	say("route", err)
	l, err := net.Listen("tcp", "127.0.0.1:1")
	if err == nil {
		l.Close()
	}
	say("a listener's port", err)
	u, err := net.ListenPacket("udp", steer.ListenAddr4.String()+":53")
	if err == nil {
		u.Close()
	}
	say("the resolver's", err)
}

// request sends RTM_DELROUTE and gives the kernel's answer.
func request(fd int) error {
	msg := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
	msg[0] = byte(len(msg))
	msg[4], msg[6] = unix.RTM_DELROUTE, unix.NLM_F_REQUEST|unix.NLM_F_ACK
	msg[unix.SizeofNlMsghdr] = unix.AF_INET
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return errors.New("short")
	}
	code := int32(b[16]) | int32(b[17])<<8 | int32(b[18])<<16 | int32(b[19])<<24
	if code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

func BenchmarkSteer(b *testing.B) {
	dir := pins(b)
	for b.Loop() {
		ns, err := netns.CreateLocal()
		if err != nil {
			b.Fatal(err)
		}
		s, err := steer.Listen(ns)
		if err != nil {
			b.Fatal(err)
		}
		if err := steer.Steer(b.Context(), ns, dir, id, s); err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(steer.Delete(dir, id), s.Close(), ns.Close()); err != nil {
			b.Fatal(err)
		}
	}
}
