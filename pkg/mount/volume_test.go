package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/mount"

	"golang.org/x/sys/unix"
)

// TestStageVolume: all ids of a volume are the sandbox's, wherever its range
// is, and what cannot be read back as asked for is taken away.
func TestStageVolume(t *testing.T) {
	w := newWorld(t)
	if err := os.Chown(w.work, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	dir, err := os.OpenFile(w.work, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for i, first := range []uint32{0x78000000, 0x78010000} {
		ids := []idmap.Map{{ID: 0, Host: first, Count: 65536}}
		users, err := idmap.UserNS(t.Context(), ids, ids)
		if err != nil {
			t.Fatal(err)
		}
		defer users.Close()
		target := filepath.Join(w.run, "mnt", "v")
		undo, err := mount.StageVolume(t.Context(), mount.Volume{Dir: dir, Target: target, First: first, UserNS: users, ReadOnly: i > 0})
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		var fs unix.Statfs_t
		if err := errors.Join(unix.Stat(target, &st), unix.Statfs(target, &fs)); err != nil {
			t.Fatal(err)
		}
		if st.Uid != first+1000 || st.Gid != first+1000 || fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 || fs.Flags&unix.ST_RDONLY != 0 != (i > 0) {
			t.Errorf("it is of %d:%d, flags %#x", st.Uid, st.Gid, fs.Flags)
		}
		for range 2 {
			if err := undo(t.Context()); err != nil {
				t.Error(err)
			}
		}
		// With the map of another range.
		if _, err := mount.StageVolume(t.Context(), mount.Volume{Dir: dir, Target: target, First: first + 65536, UserNS: users}); err == nil {
			t.Error("a volume of another range was staged")
		}
		if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
	}
}

// TestRelated: one directory in another is found by their file system, under
// whatever names they were shared.
func TestRelated(t *testing.T) {
	w := newWorld(t)
	for _, d := range []string{"a/b/c", "d", "e/f"} {
		if err := os.MkdirAll(filepath.Join(w.work, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Somebody's alone, whom the id map of the other mounts does not know.
	for _, d := range []string{"e/f", "e"} {
		private := filepath.Join(w.work, d)
		if err := errors.Join(os.Chown(private, callerUID+1, callerUID+1), os.Chmod(private, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	// The same directory under a name with nothing in common.
	alias := filepath.Join(t.TempDir(), "alias")
	if err := os.Mkdir(alias, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(filepath.Join(w.work, "a", "b"), alias, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(alias, unix.MNT_DETACH)
	n := 0
	stage := func(path string) string {
		t.Helper()
		dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		n++
		target := filepath.Join(w.run, "mnt", string(rune('a'+n)))
		_, undo, err := w.stager.Stage(t.Context(), mount.Request{
			Dir: dir, Target: target, ReadOnly: true, CallerUID: callerUID, CallerGID: callerGID,
			AgentUID: agentUID, AgentGID: agentGID, Groups: groups, UserNS: w.userns,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = undo(t.Context()) })
		return target
	}
	work, a, b, c, d := stage(w.work), stage(filepath.Join(w.work, "a")), stage(alias), stage(filepath.Join(w.work, "a", "b", "c")), stage(filepath.Join(w.work, "d"))
	e, f := stage(filepath.Join(w.work, "e")), stage(filepath.Join(w.work, "e", "f"))
	for _, tt := range []struct {
		x, y string
		want bool
	}{
		{a, a, true},
		{a, b, true},
		{b, c, true},
		{a, c, true},
		{work, d, true},
		{work, c, true},
		{work, f, true},
		{a, d, false},
		{e, d, false},
		{f, d, false},
		{b, d, false},
		{c, d, false},
		{a, filepath.Join(w.run, "gone"), false},
	} {
		for _, pair := range [][2]string{{tt.x, tt.y}, {tt.y, tt.x}} {
			if got, err := mount.Related(pair[0], pair[1]); err != nil || got != tt.want {
				t.Errorf("Related(%s, %s) = %v, %v; want %v", filepath.Base(pair[0]), filepath.Base(pair[1]), got, err, tt.want)
			}
		}
	}
}
