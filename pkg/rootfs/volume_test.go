package rootfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/rootfs"

	"golang.org/x/sys/unix"
)

func newVolumes(tb testing.TB) (*rootfs.Volumes, string) {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root, needLoop)
	root := filepath.Join(tb.TempDir(), "volumes")
	v, err := rootfs.NewVolumes(root, "")
	if err != nil {
		tb.Fatal(err)
	}
	return v, root
}

func unused() bool { return false }

// write makes a file in a volume, of which it takes hold for that long.
func write(t *testing.T, v *rootfs.Volumes, id, name, text string) {
	t.Helper()
	dir, _, err := v.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Error(err)
	}
}

// TestVolumes: data outlives mounts and loop devices; only a pending volume
// can be removed.
func TestVolumes(t *testing.T) {
	v, root := newVolumes(t)
	inodes, err := v.Make(t.Context(), "abc", 16<<20+5, 1000)
	if err != nil || inodes != 1024 {
		t.Fatalf("Make = %d, %v", inodes, err)
	}
	if kept, pending, err := v.List(); err != nil || len(kept) != 0 || len(pending) != 1 {
		t.Errorf("List = %q, %q, %v", kept, pending, err)
	}
	if _, _, err := v.Open("abc"); err == nil {
		t.Error("a pending volume could be opened")
	}
	for range 2 {
		if err := v.Keep("abc"); err != nil {
			t.Error(err)
		}
	}
	dir, device, err := v.Open("abc")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(dir.Fd()), &st), unix.Fstatfs(int(dir.Fd()), &fs)); err != nil {
		t.Fatal(err)
	}
	if st.Uid != 1000 || st.Gid != 1000 || st.Mode&0o7777 != 0o755 || fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
		t.Errorf("root is of %d:%d, mode %o, flags %#x", st.Uid, st.Gid, st.Mode, fs.Flags)
	}
	if line := mounts(t, root); len(line) != 1 || !strings.Contains(line[0], device) || strings.Contains(line[0], "shared:") {
		t.Errorf("mount table: %q, device %s", line, device)
	}
	dir.Close()
	if names, err := os.ReadDir(filepath.Join(root, "abc", "fs")); err != nil || len(names) > 0 {
		t.Errorf("a new volume holds %v, %v", names, err)
	}
	write(t, v, "abc", "f", "kept")
	if err := v.Release("abc", func() bool { return true }); err != nil || len(mounts(t, root)) != 1 {
		t.Errorf("released while used: %v", err)
	}
	for range 2 {
		if err := v.Release("abc", unused); err != nil {
			t.Error(err)
		}
	}
	if l := loops(t, root); len(l) > 0 {
		t.Errorf("loop devices after Release: %q", l)
	}
	nothingLeft(t, root, "none")
	write(t, v, "abc", "g", "more") // mounts it again
	if b, err := os.ReadFile(filepath.Join(root, "abc", "fs", "f")); err != nil || string(b) != "kept" {
		t.Errorf("f = %q, %v", b, err)
	}
	if err := v.Discard("abc"); err != nil {
		t.Error(err)
	}
	if kept, _, err := v.List(); err != nil || len(kept) != 1 {
		t.Errorf("a volume that is not pending was removed: %q, %v", kept, err)
	}
	if err := v.Retire("abc"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := v.Discard("abc"); err != nil { // mounted still
			t.Error(err)
		}
	}
	nothingLeft(t, root, "pending-abc")
}

// TestVolumeOneDevice: an image never has two loop devices, which would be two
// file systems on the same blocks: not with many openers, and not when the
// mount is gone and a clone of it is not.
func TestVolumeOneDevice(t *testing.T) {
	v, root := newVolumes(t)
	if _, err := v.Make(t.Context(), "abc", 16<<20, 1000); err != nil {
		t.Fatal(err)
	}
	if err := v.Keep("abc"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, _, err := v.Open("abc")
			if err != nil {
				t.Error(err)
				return
			}
			dir.Close()
		})
	}
	wg.Wait()
	if l := loops(t, root); len(l) != 1 {
		t.Errorf("loop devices: %q", l)
	}
	dir, first, err := v.Open("abc")
	if err != nil {
		t.Fatal(err)
	}
	clone, err := unix.OpenTree(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	dir.Close()
	if err != nil {
		t.Fatal(err)
	}
	write(t, v, "abc", "f", "one")
	if err := v.Release("abc", unused); err != nil {
		t.Fatal(err)
	}
	dir, second, err := v.Open("abc")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstatat(clone, "f", &a, 0), unix.Fstatat(int(dir.Fd()), "f", &b, 0)); err != nil || first != second || a.Dev != b.Dev || a.Ino != b.Ino {
		t.Errorf("devices %s and %s, files %d:%d and %d:%d, %v", first, second, a.Dev, a.Ino, b.Dev, b.Ino, err)
	}
	if l := loops(t, root); len(l) != 1 {
		t.Errorf("loop devices: %q", l)
	}
	unix.Close(clone)
	dir.Close()
	if err := errors.Join(v.Release("abc", unused), v.Retire("abc"), v.Discard("abc")); err != nil {
		t.Error(err)
	}
	nothingLeft(t, root, "pending-abc")
}

func TestVolumeRefused(t *testing.T) {
	v, root := newVolumes(t)
	for _, size := range []api.Size{0, -1, api.MinVolume - 1, api.MaxVolume + 1<<20} {
		if _, err := v.Make(t.Context(), "abc", size, 1000); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("Make of %d bytes = %v", size, err)
		}
	}
	for _, id := range []string{"", "..", "a/b", "A", "pending-a"} {
		_, merr := v.Make(t.Context(), id, 16<<20, 1000)
		_, _, oerr := v.Open(id)
		for what, err := range map[string]error{"Make": merr, "Open": oerr, "Keep": v.Keep(id), "Retire": v.Retire(id), "Discard": v.Discard(id), "Release": v.Release(id, unused)} {
			if err == nil {
				t.Errorf("%s(%q) was accepted", what, id)
			}
		}
	}
	broken, err := rootfs.NewVolumes(root, "/bin/false")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Make(t.Context(), "abc", 16<<20, 1000); err == nil {
		t.Error("a failed mkfs was not noticed")
	}
	nothingLeft(t, root, "pending-abc")
}
