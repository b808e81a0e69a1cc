package netns_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/thread"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func create(tb testing.TB) *netns.NS {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root)
	ns, err := netns.Create()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { ns.Close() })
	return ns
}

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

func notOK(cs []api.Control) []string {
	var out []string
	for _, c := range cs {
		if !c.OK {
			out = append(out, fmt.Sprintf("%s: want %q, got %q", c.Name, c.Expected, c.Observed))
		}
	}
	return out
}

func TestCreate(t *testing.T) {
	ns := create(t)
	cs := netns.Check(ns)
	if bad := notOK(cs); len(bad) > 0 || len(cs) != 3 {
		t.Errorf("a new namespace has %d controls, not proven: %q", len(cs), bad)
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if own.Sys().(*syscall.Stat_t).Ino == ns.Inode() {
		t.Error("the namespace is the daemon's own")
	}
	in(t, ns, func() error {
		for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("loopback does not work: %w", err)
			}
			l.Close()
		}
		for _, addr := range []string{"192.0.2.1", "10.0.0.1"} {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 53, Addr: [4]byte(net.ParseIP(addr).To4())})
			unix.Close(fd)
			if err != unix.ENETUNREACH {
				return fmt.Errorf("connect to %s = %v, want ENETUNREACH", addr, err) //nolint:errorlint // it may be nil
			}
		}
		return nil
	})
}

// TestCheckSees adds one thing at a time that must not be there.
func TestCheckSees(t *testing.T) {
	tests := []struct {
		name, control string
		add           func(*netlink.Handle) error
	}{
		{"a link", "network.links", func(h *netlink.Handle) error {
			return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire"}, PeerName: "far"})
		}},
		{"lo down", "network.links", func(h *netlink.Handle) error {
			return h.LinkSetDown(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}})
		}},
		{"a route", "network.routes", func(h *netlink.Handle) error {
			_, dst, _ := net.ParseCIDR("192.0.2.0/24")
			return h.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: dst})
		}},
		{"an IPv6 default route", "network.routes", func(h *netlink.Handle) error {
			_, dst, _ := net.ParseCIDR("::/0")
			return h.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: dst})
		}},
		{"a route in another table", "network.routes", func(h *netlink.Handle) error {
			_, dst, _ := net.ParseCIDR("198.51.100.0/24")
			return h.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: dst, Table: 77})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ns := create(t)
			in(t, ns, func() error {
				h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
				if err != nil {
					return err
				}
				defer h.Close()
				return tt.add(h)
			})
			bad := notOK(netns.Check(ns))
			if len(bad) != 1 || !strings.HasPrefix(bad[0], tt.control+":") {
				t.Errorf("not proven: %q, want exactly %s", bad, tt.control)
			}
		})
	}
}

// TestCheckOwner refuses a namespace that a user namespace has power over.
func TestCheckOwner(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	cmd := exec.Command("/proc/self/exe", "-test.run=TestHelperSleep$")
	cmd.Env = append(os.Environ(), "CREEL_TEST_HELPER=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	fi, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if ns, err := netns.Open(cmd.Process.Pid, 1, false); err == nil {
		ns.Close()
		t.Error("Open accepted a namespace with another inode")
	}
	ns, err := netns.Open(cmd.Process.Pid, fi.Sys().(*syscall.Stat_t).Ino, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	bad := strings.Join(notOK(netns.Check(ns)), "; ")
	for _, want := range []string{"network.owner", "network.links"} { // lo is down there
		if !strings.Contains(bad, want) {
			t.Errorf("not proven: %q, want %s among it", bad, want)
		}
	}
}

// TestHelperSleep is the process of TestCheckOwner.
func TestHelperSleep(t *testing.T) {
	if os.Getenv("CREEL_TEST_HELPER") == "" {
		t.Skip("only run by TestCheckOwner")
	}
	os.Stdin.Read(make([]byte, 1))
}

func TestPath(t *testing.T) {
	ns := create(t)
	f, err := os.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	fi, err := f.Stat()
	f.Close()
	if err != nil || fi.Sys().(*syscall.Stat_t).Ino != ns.Inode() {
		t.Errorf("%s is not the namespace: %v, %v", ns.Path(), fi, err)
	}
}

// TestCloseDrops proves that nothing keeps a closed namespace: no thread is in
// it, no descriptor and no mount holds it.
func TestCloseDrops(t *testing.T) {
	ns := create(t)
	ino := fmt.Sprintf("net:[%d]", ns.Inode())
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	deadline := time.Now().Add(5 * time.Second) // the thread that made it may still be in exit(2)
	for _, glob := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
		for {
			var holders []string
			names, err := filepath.Glob(glob)
			if err != nil || len(names) == 0 {
				t.Fatalf("%s lists nothing: %v", glob, err)
			}
			for _, n := range names {
				if l, err := os.Readlink(n); err == nil && l == ino {
					holders = append(holders, n)
				}
			}
			if len(holders) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s is held by %q", ino, holders)
			}
			runtime.Gosched()
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), ino) {
		t.Error("the namespace is pinned by a mount")
	}
	if bad := notOK(netns.Check(ns)); len(bad) == 0 {
		t.Error("a closed namespace was proven")
	}
}

func BenchmarkCreate(b *testing.B) {
	kerneltest.Require(b, kerneltest.Root)
	for b.Loop() {
		ns, err := netns.Create()
		if err != nil {
			b.Fatal(err)
		}
		ns.Close()
	}
}

func BenchmarkCheck(b *testing.B) {
	ns := create(b)
	for b.Loop() {
		if bad := notOK(netns.Check(ns)); len(bad) > 0 {
			b.Fatal(bad)
		}
	}
}
