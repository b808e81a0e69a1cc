package bypass_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// TestMain runs the tests in a network namespace of their own, which is the box's:
// whatever starts a process there, it has no way out but to that internet.
func TestMain(m *testing.M) {
	const inside = "CREEL_BYPASS_BOX"
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// own is this process's.
func own(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// namespace makes an empty one.
func namespace(t *testing.T) *os.File {
	t.Helper()
	var f *os.File
	if err := thread.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// wire joins the box and the internet.
func (w *world) wire() {
	w.t.Helper()
	addr := func(link, a string) error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		p, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		p.Flags = unix.IFA_F_NODAD
		return errors.Join(netlink.AddrAdd(l, p), netlink.LinkSetUp(l))
	}
	err := in(w.internet, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far"}, PeerName: "near", PeerNamespace: netlink.NsFd(w.box.Fd())}); err != nil {
			return err
		}
		errs := []error{addr("lo", "127.0.0.1/8"), addr("far", "10.77.0.1/24"), addr("far", "fd77::1/64")}
		for _, a := range []string{
			resolver, goodAddr, evilAddr, metadata, lanAddr, "100.64.0.5", "198.18.7.7", "192.0.2.5", "172.16.9.9", "10.9.9.9", "240.0.0.5", "168.63.129.16", "192.88.99.5",
		} {
			errs = append(errs, addr("lo", a+"/32"))
		}
		for _, a := range []string{good6, "2a00:1234::66", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fc00::5", "2001:db8::5", "3fff::5", "fec0::5"} {
			errs = append(errs, addr("lo", a+"/128"))
		}
		return errors.Join(errs...)
	})
	if err == nil {
		err = in(w.box, func() error {
			errs := []error{addr("lo", "127.0.0.1/8"), addr("lo", boxPub+"/32"), addr("near", boxAddr+"/24"), addr("near", "fd77::2/64")}
			l, err := netlink.LinkByName("near")
			if err != nil {
				return err
			}
			for _, gw := range []string{"10.77.0.1", "fd77::1"} {
				all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
				if strings.Contains(gw, ":") {
					all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
				}
				errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Gw: net.ParseIP(gw)}))
			}
			return errors.Join(errs...)
		})
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { // the box's namespace stays
		lo, err1 := netlink.LinkByName("lo")
		near, err2 := netlink.LinkByName("near")
		if err := errors.Join(err1, err2); err != nil {
			w.t.Error(err)
			return
		}
		errs := []error{netlink.LinkDel(near)}
		for _, a := range []string{"127.0.0.1/8", boxPub + "/32"} {
			p, err := netlink.ParseAddr(a)
			if err == nil {
				err = netlink.AddrDel(lo, p)
			}
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err != nil {
			w.t.Error(err)
		}
	})
}

// daemon is one that begins. Its processes are in the box's namespace, as they are in
// the host's otherwise.
func (w *world) daemon() {
	w.t.Helper()
	k, err := egressproc.New(egressproc.Options{
		Program: filepath.Join(kerneltest.BinDir(), "creel-egress"), Dir: filepath.Join(w.dir, "egress"), TrustDir: filepath.Join(w.dir, "trust"), IDs: ids{}, Log: slog.New(slog.DiscardHandler),
		Host: func() (link.Host, error) {
			return link.Host{Resolve: outside.ParseConfig("nameserver "+resolver, "192.168.50.1 lan-by-file.example"), Roots: w.rootsPEM}, nil
		},
		Sign: func(uint32, link.Question) link.Reply {
			return link.Reply{Refused: true, Error: "not in this world"}
		},
		Channel: func(context.Context, uint32, link.Question) (*net.TCPConn, error) {
			return nil, errors.New("not in this world")
		},
		Record: func(_ uint32, r link.Record) { w.mu.Lock(); defer w.mu.Unlock(); w.records = append(w.records, r) },
	})
	if err == nil {
		err = k.Adopt(w.t.Context())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.keeper = k
}

// restart has another daemon take the place of this one.
func (w *world) restart() error {
	w.keeper.Close()
	w.daemon()
	if w.keeper.Resume(w.t.Context(), "bypass", w.policy) == nil {
		return nil
	}
	// Its process has ended as well: there are no sockets any more.
	s, err := steer.Listen(w.ns)
	if err == nil {
		err = steer.Renew(w.pins, "bypass", s)
	}
	if err != nil {
		return err
	}
	return w.keeper.Add(w.t.Context(), egressproc.Sandbox{Caller: 54321, ID: "bypass", Sockets: s, Policy: w.policy})
}

// end ends the process of the network.
func (w *world) end() {
	for _, pid := range w.pids() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// pids are those of the process of the network.
func (w *world) pids() (out []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		st, err := os.ReadFile(filepath.Join(d, "status"))
		var pid int
		if err == nil && strings.Contains(string(st), fmt.Sprintf("\nUid:\t%d\t", uint32(hostUID))) {
			_, _ = fmt.Sscan(filepath.Base(d), &pid)
			out = append(out, pid)
		}
	}
	return out
}
