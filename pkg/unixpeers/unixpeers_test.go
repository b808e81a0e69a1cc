package unixpeers_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/thread"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
)

func TestMain(m *testing.M) { kerneltest.InMountNamespace(m) }

var kinds = map[string]int{"stream": unix.SOCK_STREAM, "seqpacket": unix.SOCK_SEQPACKET, "dgram": unix.SOCK_DGRAM}

// side is where sockets are made: a network namespace of its own, or the test's.
type side struct {
	ns     int // -1 is the test's
	cookie uint64
}

var outside = side{ns: -1}

func newSide(t *testing.T) side {
	t.Helper()
	var s side
	err := thread.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		s.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s.ns) })
	fd := s.socket(t, unix.SOCK_STREAM)
	if s.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s side) socket(t *testing.T, kind int) (fd int) {
	t.Helper()
	err := thread.Do(func() (err error) {
		if s.ns >= 0 {
			if err := unix.Setns(s.ns, unix.CLONE_NEWNET); err != nil {
				return err
			}
		}
		fd, err = unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// listen makes a socket at a new path.
func (s side) listen(t *testing.T, kind int) *unix.SockaddrUnix {
	t.Helper()
	dir, err := os.MkdirTemp("", "peers") //nolint:usetesting // a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &unix.SockaddrUnix{Name: filepath.Join(dir, "s")}
	fd := s.socket(t, kind)
	if err := unix.Bind(fd, a); err != nil {
		t.Fatal(err)
	}
	if kind != unix.SOCK_DGRAM {
		if err := unix.Listen(fd, 1024); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// reach is what comes of connecting, and for datagrams of sending as well.
func (s side) reach(t *testing.T, kind int, a unix.Sockaddr) error {
	t.Helper()
	fd := s.socket(t, kind)
	err := unix.Connect(fd, a)
	if kind != unix.SOCK_DGRAM {
		return err
	}
	if serr := unix.Sendto(s.socket(t, kind), []byte("x"), unix.MSG_DONTWAIT, a); !errors.Is(serr, err) || !errors.Is(err, serr) {
		t.Errorf("connect: %v, but sendto: %v", err, serr)
	}
	return err
}

func pins(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() {
		if err := unixpeers.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func open(t *testing.T, dir string) *unixpeers.Guard {
	t.Helper()
	g, err := unixpeers.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// TestEdges has every kind of socket tried in every direction.
func TestEdges(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.BPFLSM)
	g := open(t, pins(t))
	a, b, free := newSide(t), newSide(t), newSide(t)
	for id, s := range map[string]side{"a": a, "b": b} {
		if err := g.Add(s.cookie, id); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name     string
		from, to side
		want     error
	}{
		{"out", a, outside, unix.EACCES},
		{"in", outside, a, unix.EACCES},
		{"to another sandbox", a, b, unix.EACCES},
		{"to a namespace that is no sandbox's", a, free, unix.EACCES},
		{"within", a, a, nil},
		{"of the host", outside, outside, nil},
		{"between others' namespaces", free, outside, nil},
	} {
		for name, kind := range kinds {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				if err := tt.from.reach(t, kind, tt.to.listen(t, kind)); !errors.Is(err, tt.want) {
					t.Errorf("%v, want %v", err, tt.want)
				}
			})
		}
	}
}

// TestOpenConnections: of what was connected before, streams go on and
// datagrams do not.
func TestOpenConnections(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.BPFLSM)
	g := open(t, pins(t))
	s := newSide(t)
	for name, want := range map[string]error{"stream": nil, "seqpacket": nil, "dgram": unix.EACCES} {
		fd := s.socket(t, kinds[name])
		if err := unix.Connect(fd, outside.listen(t, kinds[name])); err != nil {
			t.Fatal(err)
		}
		if err := g.Add(s.cookie, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if err := g.Delete("x"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPairs: the ends of a pair stay connected wherever one is handed to.
func TestPairs(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.BPFLSM)
	g := open(t, pins(t))
	s := newSide(t)
	if err := g.Add(s.cookie, "x"); err != nil {
		t.Fatal(err)
	}
	for name, kind := range kinds {
		var fds [2]int
		err := thread.Do(func() (err error) {
			if err := unix.Setns(s.ns, unix.CLONE_NEWNET); err != nil {
				return err
			}
			fds, err = unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fds[0], []byte("x")); err != nil { // on a thread of the test's namespace
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(fds[0])
		unix.Close(fds[1])
	}
}

// TestOutlivesTheDaemon: without a Guard the kernel goes on refusing, and a
// new one leaves no moment in which it does not.
func TestOutlivesTheDaemon(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.BPFLSM)
	dir := pins(t)
	g := open(t, dir)
	s := newSide(t)
	a := outside.listen(t, unix.SOCK_STREAM)
	if err := g.Add(s.cookie, "x"); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.reach(t, unix.SOCK_STREAM, a); !errors.Is(err, unix.EACCES) {
		t.Fatalf("after Close: %v", err)
	}
	stop, tries := make(chan struct{}), make(chan string)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				tries <- fmt.Sprintf("%d tries", n)
				return
			default:
			}
			fd := s.socket(t, unix.SOCK_STREAM)
			err := unix.Connect(fd, a)
			if n++; !errors.Is(err, unix.EACCES) {
				tries <- fmt.Sprintf("try %d while another Guard opened: %v", n, err)
				return
			}
		}
	}()
	for range 3 {
		g = open(t, dir)
		if c := g.Check(s.cookie, "x"); !c.OK {
			t.Errorf("%+v", c)
		}
	}
	close(stop)
	if got := <-tries; !strings.HasSuffix(got, " tries") || got == "0 tries" {
		t.Error(got)
	}
	if err := errors.Join(g.Delete("x"), g.Delete("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.reach(t, unix.SOCK_STREAM, a); err != nil {
		t.Errorf("after Delete: %v", err)
	}
	if c := g.Check(s.cookie, "x"); c.OK {
		t.Errorf("%+v", c)
	}
}

// TestCheck: what is read back is this sandbox, on this list, of these programs.
func TestCheck(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.BPFLSM)
	dir := pins(t)
	g := open(t, dir)
	s := newSide(t)
	if err := errors.Join(g.Add(s.cookie, "x"), g.Add(s.cookie, "x")); err != nil {
		t.Fatal(err)
	}
	if c := g.Check(s.cookie, "x"); !c.OK || c.Name != unixpeers.Control {
		t.Errorf("%+v", c)
	}
	for name, c := range map[string]bool{
		"another sandbox":   g.Check(s.cookie, "y").OK,
		"another namespace": g.Check(s.cookie+1, "x").OK,
	} {
		if c {
			t.Errorf("%s is proven", name)
		}
	}
	if ids, err := g.List(); err != nil || !slices.Equal(ids, []string{"x"}) {
		t.Errorf("List = %v, %v", ids, err)
	}
	for _, id := range []string{"", strings.Repeat("x", 33)} {
		if err := g.Add(s.cookie, id); err == nil {
			t.Errorf("Add(%q)", id)
		}
	}
	if err := g.Add(0, "x"); err == nil {
		t.Error("Add of no namespace")
	}
	if err := unixpeers.Remove(dir); err != nil {
		t.Fatal(err)
	}
}

// TestRemove takes it all away.
func TestRemove(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.BPFLSM)
	dir := pins(t)
	g := open(t, dir)
	s := newSide(t)
	if err := errors.Join(g.Add(s.cookie, "x"), g.Close(), unixpeers.Remove(dir), unixpeers.Remove(dir)); err != nil {
		t.Fatal(err)
	}
	// The kernel lets go of a link in its own time (bpf_link_put_deferred).
	a := outside.listen(t, unix.SOCK_STREAM)
	for s.reach(t, unix.SOCK_STREAM, a) != nil {
		runtime.Gosched() // the test's own timeout ends it
	}
}

// TestUnavailable: where the kernel cannot, that is an error of its class, and
// nothing is left mounted.
func TestUnavailable(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.NoBPFLSM)
	dir := filepath.Join(t.TempDir(), "bpf")
	g, err := unixpeers.Open(dir)
	if !errors.Is(err, unixpeers.ErrUnavailable) {
		t.Fatalf("Open = %v, %v", g, err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

func BenchmarkAdd(b *testing.B) {
	kerneltest.Require(b, kerneltest.Root, kerneltest.BPFLSM)
	dir := filepath.Join(b.TempDir(), "bpf")
	g, err := unixpeers.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer unixpeers.Remove(dir)
	defer g.Close()
	for cookie := uint64(1); b.Loop(); cookie = cookie%50_000 + 1 {
		if err := g.Add(cookie, "x"); err != nil {
			b.Fatal(err)
		}
	}
}
