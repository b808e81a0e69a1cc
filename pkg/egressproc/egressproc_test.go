package egressproc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/svid"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// caller is whose sandboxes the tests' are, and hostUID as whom their processes
// run.
const (
	caller  = 54321
	hostUID = 0x7FF0_0000
)

// ids gives one range.
type ids struct {
	mu   sync.Mutex
	free []uint32
}

func (i *ids) Take() (uint32, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.free) == 0 {
		return 0, errors.New("no ids")
	}
	id := i.free[0]
	i.free = i.free[1:]
	return id, nil
}

func (i *ids) Release(id uint32) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.free = append(i.free, id)
}

func (i *ids) left() []uint32 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.free)
}

// box is what a daemon has of the egress, and one sandbox's namespace.
type box struct {
	t    *testing.T
	dir  string
	pins string
	ids  *ids
	k    *egressproc.Keeper
	ns   *netns.NS

	mu      sync.Mutex
	records []link.Record
}

func newBox(t *testing.T) *box {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, kerneltest.Landlock, kerneltest.Bin)
	b := &box{t: t, dir: filepath.Join(t.TempDir(), "egress"), ids: &ids{free: []uint32{hostUID}}}
	b.pins = t.TempDir()
	if err := unix.Mount("bpf", b.pins, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(b.pins, 0); err != nil {
			t.Error(err)
		}
	})
	b.start()
	t.Cleanup(func() {
		b.k.Close()
		for _, pid := range b.pids() {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	b.ns = b.namespace()
	return b
}

// t0 is a test's log.
type t0 struct{ t *testing.T }

func (l t0) Write(p []byte) (int, error) { l.t.Log(string(p)); return len(p), nil }

// start is a daemon that begins.
func (b *box) start() {
	b.t.Helper()
	k, err := egressproc.New(egressproc.Options{
		Program: filepath.Join(kerneltest.BinDir(), "creel-egress"), Dir: b.dir, TrustDir: b.dir + "-trust", IDs: b.ids, Log: slog.New(slog.NewTextHandler(t0{b.t}, nil)),
		Host: func() (link.Host, error) {
			return link.Host{Resolve: outside.ParseConfig("nameserver 127.0.0.1", "")}, nil
		},
		Sign:    b.sign,
		Channel: b.channel,
		Record:  func(_ uint32, r link.Record) { b.mu.Lock(); defer b.mu.Unlock(); b.records = append(b.records, r) },
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := k.Adopt(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.k = k
}

// sign is what a daemon does: it knows whose process asks, and of which sandbox.
func (b *box) sign(whose uint32, r link.Question) link.Reply {
	if whose != caller {
		return link.Reply{Refused: true, Error: "not yours"}
	}
	a, err := svid.Open(b.dir+"-svid", "box.example.com", "", time.Now)
	if err != nil {
		return link.Reply{Error: err.Error()}
	}
	defer a.Close()
	s, err := a.Sign("spiffe://box.example.com/"+r.ID, r.Key)
	if err != nil {
		return link.Reply{Error: err.Error()}
	}
	return link.Reply{SPIFFEID: s.ID, Certificate: s.Certificate, Bundle: s.Bundle}
}

// channel connects to whatever "db" has, at the port that is asked for.
func (b *box) channel(ctx context.Context, whose uint32, q link.Question) (*net.TCPConn, error) {
	if whose != caller || q.Agent != "db" || q.ID == "" {
		return nil, errors.New("not for you")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", q.Port))
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (b *box) namespace() *netns.NS {
	b.t.Helper()
	ns, err := netns.CreateLocal()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { ns.Close() })
	return ns
}

// pids are the processes that run.
func (b *box) pids() []int {
	b.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		b.t.Fatal(err)
	}
	var out []int
	for _, d := range dirs {
		st, err := os.ReadFile(filepath.Join(d, "status"))
		var pid int
		if err == nil && strings.Contains(string(st), fmt.Sprintf("\nUid:\t%d\t", uint32(hostUID))) && !strings.Contains(string(st), "State:\tZ") {
			_, _ = fmt.Sscan(filepath.Base(d), &pid)
			out = append(out, pid)
		}
	}
	return out
}

func policy(range6 netip.Prefix, rules ...string) link.Policy {
	return link.Policy{
		Parties: []link.Party{{By: "the test's policy", Rules: rules}}, Range6: range6,
		Limits: link.Limits{Connections: 8, Names: 10},
	}
}

// toBox is a rule for a service on the box's loopback.
func toBox(port uint16) string { return fmt.Sprintf("tcp %s:%d", egress.BoxName, port) }

// add has a namespace served.
func (b *box) add(ns *netns.NS, id string, pol link.Policy) {
	b.t.Helper()
	s, err := steer.Listen(ns)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := steer.Steer(b.t.Context(), ns, b.pins, id, s); err != nil {
		b.t.Fatal(err)
	}
	if err := b.k.Add(b.t.Context(), egressproc.Sandbox{Caller: caller, ID: id, Sockets: s, Policy: pol}); err != nil {
		b.t.Fatal(err)
	}
}

// dial connects from a namespace.
func dial(ns *netns.NS, network, to string) (c net.Conn, err error) {
	err = thread.Do(func() error {
		if err := unix.Setns(int(ns.File().Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		a, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		kind := map[string]int{"tcp": unix.SOCK_STREAM, "udp": unix.SOCK_DGRAM}[network]
		family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(a.Port()), Addr: [4]byte(a.Addr().AsSlice()[:4])})
		if a.Addr().Is6() {
			family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
		}
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "inside")
		defer f.Close()
		if err := unix.Connect(fd, sa); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// hear is all that a target says.
func hear(ns *netns.NS, to string) (string, error) {
	c, err := dial(ns, "tcp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	got, err := io.ReadAll(c)
	return string(got), err
}

// look resolves a name, as a program in a sandbox does.
func look(t *testing.T, ns *netns.NS, network, name string) ([]netip.Addr, error) {
	t.Helper()
	r := net.Resolver{PreferGo: true, Dial: func(_ context.Context, how, _ string) (net.Conn, error) {
		if network == "tcp" {
			how = "tcp"
		}
		return dial(ns, how[:3], "198.18.0.1:53")
	}}
	return r.LookupNetIP(t.Context(), "ip", name)
}

// service is a server on the box's loopback that greets.
func service(t *testing.T, text string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, text)
			c.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// await asks until it is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// mortal fails the test unless the kernel ends the process as any other.
func (b *box) mortal() {
	b.t.Helper()
	for _, pid := range b.pids() {
		adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil || strings.HasPrefix(string(adj), "-") {
			b.t.Errorf("its OOM score is adjusted by %s, %v", adj, err)
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) != "creel-egress\n" {
			b.t.Errorf("it is called %q, %v", comm, err)
		}
	}
}

// checked fails the test unless the kernel has what there is to be.
func (b *box) checked(ns *netns.NS, id string) {
	b.t.Helper()
	if !b.k.With(id, func(s *steer.Sockets, process api.Control) {
		for _, c := range append(steer.Check(ns, b.pins, id, s), process) {
			if !c.OK {
				b.t.Errorf("%s: want %s, is %s", c.Name, c.Expected, c.Observed)
			}
		}
	}) {
		b.t.Errorf("%s is not served", id)
	}
}

// TestLife: a sandbox reaches what its policy names and nothing else, by way of
// a process that has nothing; also after that was killed, and after the daemon
// was started again.
func TestLife(t *testing.T) {
	b := newBox(t)
	port, other := service(t, "hello"), service(t, "not for you")
	range6 := synthetic.NewRange6()
	pol := policy(range6,
		toBox(port), "*.example.com",
	)
	b.add(b.ns, "alife", pol)
	b.checked(b.ns, "alife")
	b.mortal()
	at := map[bool]string{}
	for _, how := range []string{"udp", "tcp"} {
		found, err := look(t, b.ns, how, string(egress.BoxName))
		if err != nil || len(found) != 2 {
			t.Fatalf("by %s: %v, %v", how, found, err)
		}
		for _, a := range found {
			at[a.Is4()] = netip.AddrPortFrom(a, port).String()
			if a.Is6() && !range6.Contains(a) || a.Is4() && !synthetic.Range4.Contains(a) {
				t.Errorf("by %s: %s", how, a)
			}
			if got, err := hear(b.ns, netip.AddrPortFrom(a, other).String()); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("another port: %q, %v", got, err)
			}
		}
	}
	reach := func(when string) {
		t.Helper()
		for _, to := range at {
			if got, err := hear(b.ns, to); err != nil || got != "hello" {
				t.Errorf("%s: %s: %q, %v", when, to, got, err)
			}
		}
	}
	reach("at first")
	for _, name := range []string{"example.org", "example.com", "a.b.example.com", "host.creel.internal.example.com.evil.example"} {
		if found, err := look(t, b.ns, "udp", name); err == nil {
			t.Errorf("%s: %v", name, found)
		}
	}
	for _, to := range []string{fmt.Sprintf("10.0.0.1:%d", port), "169.254.169.254:80", fmt.Sprintf("[::ffff:127.0.0.1]:%d", port), fmt.Sprintf("198.18.0.1:%d", port), fmt.Sprintf("198.18.200.1:%d", port)} {
		if got, err := hear(b.ns, to); err == nil {
			t.Errorf("%s: %q", to, got)
		}
	}
	// A name of the agent's choice keeps its address, whatever happens.
	dyn, err := look(t, b.ns, "udp", "chosen.example.com")
	if err != nil || len(dyn) != 2 {
		t.Fatal(dyn, err)
	}
	await(t, "the daemon knows the name", func() bool { return slices.Contains(b.k.Names("alife"), "chosen.example.com") })

	before := b.pids()
	if len(before) != 1 {
		t.Fatalf("processes %v", before)
	}
	if err := unix.Kill(before[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reach("after its process was killed")
	b.checked(b.ns, "alife")
	if now := b.pids(); len(now) != 1 || now[0] == before[0] {
		t.Errorf("processes %v, and before %v", now, before)
	}
	if again, err := look(t, b.ns, "udp", "chosen.example.com"); err != nil || !slices.Equal(again, dyn) {
		t.Errorf("the name is now at %v, and was at %v: %v", again, dyn, err)
	}

	before = b.pids()
	b.k.Close()
	reach("without a daemon")
	if in, err := egressproc.InUse(b.dir); err != nil || !slices.Equal(in, []uint32{hostUID}) {
		t.Errorf("in use: %v, %v", in, err)
	}
	b.start()
	if held := b.k.Held(); len(held) != 1 || held["alife"] != caller {
		t.Fatalf("held: %v", held)
	}
	if err := b.k.Resume(t.Context(), "alife", pol); err != nil {
		t.Fatal(err)
	}
	b.checked(b.ns, "alife")
	reach("with the next daemon")
	if now := b.pids(); !slices.Equal(now, before) {
		t.Errorf("processes %v, and before %v", now, before)
	}
	if names := b.k.Names("alife"); !slices.Equal(names, []egress.Name{egress.BoxName, "chosen.example.com"}) {
		t.Errorf("names: %v", names)
	}

	if err := b.k.Change(t.Context(), "alife", []link.Party{{By: "another", Rules: []string{"*.example.com"}}}); err != nil {
		t.Fatal(err)
	}
	if got, err := hear(b.ns, at[true]); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("after the policy was changed: %q, %v", got, err)
	}
	began := time.Now()
	if err := errors.Join(b.k.Remove(t.Context(), "alife"), b.k.Remove(t.Context(), "alife"), b.k.Remove(t.Context(), "another")); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("to remove it took %v: its sockets block", took)
	}
	if got, err := hear(b.ns, at[true]); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after it was removed: %q, %v", got, err)
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	var allowed, refused, named int
	for _, r := range b.records {
		switch {
		case r.ID != "alife":
			t.Errorf("a record of %q", r.ID)
		case r.Kind == link.KindConnection && r.Allowed && r.In == int64(len("hello")):
			allowed++
		case r.Kind == link.KindConnection && !r.Allowed && r.By != "":
			refused++
		case r.Kind == link.KindName && !r.Allowed:
			named++
		}
	}
	if allowed < 4 || refused < 4 || named < 4 {
		t.Errorf("%d connections, %d refused, %d names refused: %+v", allowed, refused, named, b.records)
	}
}

// TestProcessesAreTheCallers: one process has all sandboxes of a caller, each
// with a policy of its own.
func TestProcessesAreTheCallers(t *testing.T) {
	b := newBox(t)
	one, two := service(t, "one"), service(t, "two")
	second := b.namespace()
	b.add(b.ns, "first", policy(synthetic.NewRange6(), toBox(one)))
	b.add(second, "second", policy(synthetic.NewRange6(), toBox(two)))
	if n := len(b.pids()); n != 1 {
		t.Errorf("%d processes", n)
	}
	for _, tt := range []struct {
		ns   *netns.NS
		port uint16
		want string
	}{{b.ns, one, "one"}, {b.ns, two, ""}, {second, one, ""}, {second, two, "two"}} {
		found, err := look(t, tt.ns, "udp", string(egress.BoxName))
		if err != nil {
			t.Fatal(err)
		}
		got, err := hear(tt.ns, netip.AddrPortFrom(found[0], tt.port).String())
		if got != tt.want || tt.want == "" && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("port %d: %q, %v", tt.port, got, err)
		}
	}
}

// TestAddRefused: what cannot be served is an error, and nothing of it is left.
func TestAddRefused(t *testing.T) {
	b := newBox(t)
	for name, pol := range map[string]link.Policy{
		"no range":      policy(netip.Prefix{}),
		"no limits":     {Parties: []link.Party{{By: "x"}}, Range6: synthetic.NewRange6()},
		"no valid rule": policy(synthetic.NewRange6(), "-"),
	} {
		s, err := steer.Listen(b.ns)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.k.Add(t.Context(), egressproc.Sandbox{Caller: caller, ID: "refused", Sockets: s, Policy: pol}); err == nil {
			t.Errorf("%s is taken", name)
		}
		if s.TCP4.Close() == nil {
			t.Errorf("%s: its sockets are open", name)
		}
	}
	b.add(b.ns, "good", policy(synthetic.NewRange6()))
	s, err := steer.Listen(b.namespace())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.k.Add(t.Context(), egressproc.Sandbox{Caller: caller, ID: "good", Sockets: s, Policy: policy(synthetic.NewRange6())}); err == nil {
		t.Error("an id twice is taken")
	}
	b.ids.mu.Lock()
	b.ids.free = nil
	b.ids.mu.Unlock()
	if s, err = steer.Listen(b.namespace()); err != nil {
		t.Fatal(err)
	}
	if err := b.k.Add(t.Context(), egressproc.Sandbox{Caller: caller + 1, ID: "more", Sockets: s, Policy: policy(synthetic.NewRange6())}); err == nil {
		t.Error("a process without ids is started")
	}
}

// TestStrangers: what is left of a process that never answered is ended by the
// next daemon, and its ids are free.
func TestStrangers(t *testing.T) {
	b := newBox(t)
	b.add(b.ns, "one", policy(synthetic.NewRange6()))
	b.k.Close()
	path := filepath.Join(b.dir, fmt.Sprintf("%d-%d.sock", caller, uint32(hostUID)))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // as if it had not come to listen
		t.Fatal(err)
	}
	b.start()
	if held := b.k.Held(); len(held) != 0 {
		t.Errorf("held: %v", held)
	}
	await(t, "the process has ended", func() bool { return len(b.pids()) == 0 })
	if left := b.ids.left(); !slices.Equal(left, []uint32{hostUID}) {
		t.Errorf("free ids: %v", left)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket: %v", err)
	}
}
