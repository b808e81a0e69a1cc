package mount_test

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/mount"

	"golang.org/x/sys/unix"
)

// TestBeneath: what the file system says, and what the given namespace's mount
// table says, puts a directory beneath another; a mount that only another
// namespace has does not.
func TestBeneath(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := t.TempDir()
	for _, d := range []string{"top/a/b", "other/secret", "top/disk", "top/fake"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open := func(p string) *os.File {
		t.Helper()
		f, err := os.Open(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	top := open("top")
	type namespace struct {
		ns                   *os.File
		fake, disk, bindAway *os.File
	}
	// in makes a mount namespace in which things are mounted below top that
	// nobody else sees.
	in := func() (n namespace) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // never unlocked: the thread ends with its namespace
			must := func(err error) {
				if err != nil {
					t.Error(err)
				}
			}
			must(unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS))
			must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			must(unix.Mount(filepath.Join(dir, "other"), filepath.Join(dir, "top/fake"), "", unix.MS_BIND, ""))
			must(unix.Mount("tmpfs", filepath.Join(dir, "top/disk"), "tmpfs", 0, ""))
			must(unix.Mount(filepath.Join(dir, "top/a"), filepath.Join(dir, "other/secret"), "", unix.MS_BIND, ""))
			var err error
			n.ns, err = os.Open("/proc/thread-self/ns/mnt")
			must(err)
			n.fake, n.disk, n.bindAway = open("top/fake"), open("top/disk"), open("other/secret")
		}()
		<-done
		return n
	}
	n := in()
	t.Cleanup(func() { n.ns.Close() })
	for _, tt := range []struct {
		name string
		dir  *os.File
		host *os.File
		want bool
	}{
		{"itself", top, nil, true},
		{"below", open("top/a/b"), nil, true},
		{"beside", open("other"), nil, false},
		{"above", open("."), nil, false},
		{"below, mounted elsewhere by a caller", n.bindAway, nil, true},
		{"a caller mounted it there", n.fake, nil, false},
		{"a caller mounted a file system there", n.disk, nil, false},
		{"the host mounted it there", n.fake, n.ns, true},
		{"the host mounted a file system there", n.disk, n.ns, true},
	} {
		got, err := mount.Beneath(tt.dir, top, tt.host)
		if err != nil || got != tt.want {
			t.Errorf("%s: %t, %v, want %t", tt.name, got, err, tt.want)
		}
	}
}
