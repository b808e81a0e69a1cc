package peer_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/peer"

	"golang.org/x/sys/unix"
)

// accept returns the daemon's end of a connection from this process.
func accept(t *testing.T) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return s
}

func TestRead(t *testing.T) {
	c := accept(t)
	cred, err := peer.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	defer cred.PIDFD.Close()
	if cred.UID != uint32(os.Geteuid()) || cred.GID != uint32(os.Getegid()) || cred.PID != int32(os.Getpid()) {
		t.Errorf("cred %+v is not this process", cred)
	}
	own, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range own {
		if !cred.InGroup(uint32(g)) {
			t.Errorf("group %d of this process is not in %v", g, cred.Groups)
		}
	}
	if len(cred.Groups) != len(own) || !slices.IsSorted(cred.Groups) {
		t.Errorf("groups %v, want %v sorted", cred.Groups, own)
	}
	if cred.InGroup(4294967294) {
		t.Error("in a group that nobody is in")
	}
	if ids, err := peer.IDs(c); err != nil || ids.UID != cred.UID || ids.GID != cred.GID || !slices.Equal(ids.Groups, cred.Groups) || ids.PIDFD != nil {
		t.Errorf("IDs = %+v, %v, want those of %+v", ids, err, cred)
	}
}

// TestPIDFDIsThePeer: the pidfd is of the process that connected.
func TestPIDFDIsThePeer(t *testing.T) {
	cred, err := peer.Read(accept(t))
	if err != nil {
		t.Fatal(err)
	}
	if cred.Method != peer.MethodPeerPIDFD && cred.Method != peer.MethodPIDFDOpen {
		t.Fatalf("method %q for a living peer", cred.Method)
	}
	defer cred.PIDFD.Close()
	own, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(own, &a), unix.Fstat(int(cred.PIDFD.Fd()), &b)); err != nil {
		t.Fatal(err)
	}
	// On pidfs (Linux 6.9) a process has one inode.
	if a.Ino != b.Ino {
		t.Errorf("inode %d, want %d", b.Ino, a.Ino)
	}
	if err := unix.PidfdSendSignal(int(cred.PIDFD.Fd()), 0, nil, 0); err != nil {
		t.Errorf("signal 0 by the pidfd: %v", err)
	}
}

func TestConnContextClosesThePIDFD(t *testing.T) {
	c := fdconn.Server(accept(t))
	ctx := peer.ConnContext(t.Context(), c)
	cred, err := peer.From(ctx)
	if err != nil || cred.PIDFD == nil {
		t.Fatalf("From = %+v, %v", cred, err)
	}
	done := make(chan struct{})
	c.OnClose(func() { close(done) }) // after the one that closes the pidfd
	c.Close()
	<-done
	if _, err := cred.PIDFD.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the pidfd is open after its connection: %v", err)
	}

	// A connection that cannot tell when it is closed gets none.
	cred, err = peer.From(peer.ConnContext(t.Context(), accept(t)))
	if err != nil || cred.PIDFD != nil || cred.Method != peer.MethodNone {
		t.Errorf("From = %+v, %v", cred, err)
	}
}

func TestNoCredentials(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, _ := net.Pipe()
	for name, conn := range map[string]net.Conn{"tcp": c, "pipe": p} {
		if _, err := peer.Read(conn); !errors.Is(err, peer.ErrNone) {
			t.Errorf("%s: Read = %v, want ErrNone", name, err)
		}
		if _, err := peer.IDs(conn); !errors.Is(err, peer.ErrNone) {
			t.Errorf("%s: UID = %v, want ErrNone", name, err)
		}
		if _, err := peer.From(peer.ConnContext(t.Context(), conn)); !errors.Is(err, peer.ErrNone) {
			t.Errorf("%s: From = %v, want ErrNone", name, err)
		}
	}
}
