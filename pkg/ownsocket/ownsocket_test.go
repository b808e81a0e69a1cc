package ownsocket_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/ownsocket"
)

// TestListen: the socket is of the given network namespace, root's, and for
// its group alone; another takes its place, as after a restart of creeld.
func TestListen(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	ns, err := netns.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const gid = 0x7a00_03e8
	// Longer than a socket's path may be.
	dir := filepath.Join(t.TempDir(), "long-enough-that-the-whole-path-does-not-fit-into-the-address-of-a-socket-which-has-108-bytes", "socket")
	if err := errors.Join(os.Mkdir(filepath.Dir(dir), 0o755), ownsocket.MakeDir(dir, gid)); err != nil {
		t.Fatal(err)
	}
	if err := ownsocket.MakeDir(dir, gid); !os.IsExist(err) {
		t.Errorf("one that is there is taken: %v", err)
	}
	path := filepath.Join(dir, ownsocket.Name)
	for range 2 {
		l, err := ownsocket.Listen(ns.File(), dir, gid)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := l.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			cookie, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
			if err != nil || cookie != ns.Cookie() {
				t.Errorf("it is in namespace %d, want %d, %v", cookie, ns.Cookie(), err)
			}
		})
		for p, mode := range map[string]uint32{dir: unix.S_IFDIR | 0o750, path: unix.S_IFSOCK | 0o660} {
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil || st.Mode != mode || st.Uid != 0 || st.Gid != gid {
				t.Errorf("%s: mode %o of %d:%d, %v", filepath.Base(p), st.Mode, st.Uid, st.Gid, err)
			}
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: short(t, path), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	// A link in the directory's place is not followed.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := ownsocket.Listen(ns.File(), link, gid); err == nil {
		t.Error("it listens behind a link")
	}
}

// short is a path of at most 108 bytes to the same.
func short(t *testing.T, path string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "own") //nolint:usetesting // that one is too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	link := filepath.Join(dir, "d")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(link, filepath.Base(path))
}
