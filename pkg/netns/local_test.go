package netns_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func createLocal(tb testing.TB) *netns.NS {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root)
	ns, err := netns.CreateLocal()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ns.Close() })
	return ns
}

// TestLocal: every address is the namespace's own, and it is proven to be so.
func TestLocal(t *testing.T) {
	ns := createLocal(t)
	cs := netns.Check(ns)
	if bad := notOK(cs); len(bad) > 0 || len(cs) != 3 {
		t.Errorf("%d controls, not proven: %q", len(cs), bad)
	}
	in(t, ns, func() error {
		for listen, addrs := range map[string][]string{
			"0.0.0.0:0": {"203.0.113.7", "8.8.8.8", "10.0.0.1", "169.254.169.254", "127.0.0.1", "198.18.0.1", "240.0.0.1"},
			"[::]:0":    {"2001:db8::1", "::1", "fd00::1", "64:ff9b::808:808", "fe80::1"},
		} {
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return err
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).Port
			for _, addr := range addrs {
				to := net.JoinHostPort(addr, fmt.Sprint(port))
				if addr == "fe80::1" {
					to = net.JoinHostPort("fe80::1%lo", fmt.Sprint(port))
				}
				c, err := net.DialTimeout("tcp", to, 5*time.Second)
				if err != nil {
					return err
				}
				s, err := l.Accept()
				if err != nil {
					return err
				}
				if got := s.LocalAddr().(*net.TCPAddr).IP; !got.Equal(net.ParseIP(addr)) {
					return fmt.Errorf("a connection to %s came to %s", addr, got)
				}
				c.Close()
				s.Close()
			}
		}
		return nil
	})
}

// TestLocalCheckSees takes the routes away, one at a time, and adds others.
func TestLocalCheckSees(t *testing.T) {
	route := func(cidr string, table, kind int) *netlink.Route {
		_, dst, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return &netlink.Route{LinkIndex: 1, Dst: dst, Table: table, Type: kind, Scope: unix.RT_SCOPE_HOST}
	}
	for name, change := range map[string]func(*netlink.Handle) error{
		"no IPv4": func(h *netlink.Handle) error {
			return h.RouteDel(route("0.0.0.0/0", unix.RT_TABLE_LOCAL, unix.RTN_LOCAL))
		},
		"no IPv6": func(h *netlink.Handle) error { return h.RouteDel(route("::/0", unix.RT_TABLE_LOCAL, unix.RTN_LOCAL)) },
		"a hole": func(h *netlink.Handle) error {
			return h.RouteAdd(&netlink.Route{Dst: route("8.8.8.0/24", 0, 0).Dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_BLACKHOLE})
		},
		"another default": func(h *netlink.Handle) error {
			return h.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: route("0.0.0.0/0", 0, 0).Dst, Table: unix.RT_TABLE_MAIN})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := createLocal(t)
			in(t, ns, func() error {
				h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				defer h.Close()
				return change(h)
			})
			if bad := notOK(netns.Check(ns)); len(bad) != 1 || !strings.HasPrefix(bad[0], "network.routes") {
				t.Errorf("not seen: %q", bad)
			}
		})
	}
	t.Run("of the other kind", func(t *testing.T) {
		ns := createLocal(t)
		cmd := exec.Command("/proc/self/exe", "-test.run=TestHelperSleep$")
		cmd.Env = append(os.Environ(), "CREEL_TEST_HELPER=1")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		in(t, ns, cmd.Start)
		defer func() { stdin.Close(); cmd.Wait() }()
		other, err := netns.Open(cmd.Process.Pid, ns.Inode(), false)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if bad := notOK(netns.Check(other)); len(bad) != 1 {
			t.Errorf("not seen: %q", bad)
		}
	})
}
