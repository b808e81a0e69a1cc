package mount_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/mount"

	"golang.org/x/sys/unix"
)

// dirs makes the caller's directories.
func (w world) dirs(tb testing.TB, names ...string) {
	tb.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(w.work, name), 0o755); err != nil {
			tb.Fatal(err)
		}
		for p := filepath.Join(w.work, name); p != w.work; p = filepath.Dir(p) {
			own(tb, p)
		}
	}
}

// stage stages directories of the caller's, SOURCE:TARGET[:ro], in this order.
func (w world) stage(tb testing.TB, mounts ...string) (ps []mount.Place) {
	tb.Helper()
	for i, m := range mounts {
		f := strings.Split(m, ":")
		r := w.request(openDir(tb, filepath.Join(w.work, f[0])))
		r.Target, r.ReadOnly = filepath.Join(w.run, "mnt", fmt.Sprint(i)), len(f) > 2
		if _, _, err := w.stager.Stage(tb.Context(), r); err != nil {
			tb.Fatalf("%s: %v", m, err)
		}
		ps = append(ps, mount.Place{Staged: r.Target, Target: f[1]})
	}
	return ps
}

func (w world) cleanUp(tb testing.TB) {
	tb.Helper()
	dir := filepath.Join(w.run, "mnt")
	if err := mount.Cleanup(dir); err != nil {
		tb.Fatalf("clean up: %v", err)
	}
	if left, err := mount.Leftovers(w.run); err != nil || len(left) > 0 {
		tb.Fatalf("left after the clean-up: %q, %v", left, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
}

// TestNest: every staged tree is what the sandbox sees at its target, in
// whatever order they were asked for, and each part is as restricted as it was.
func TestNest(t *testing.T) {
	w := newWorld(t)
	w.dirs(t, "w/git", "w/a/b/c", "git/hooks", "deep/x", "deep2", "lib/out", "out", "w2")
	ps := w.stage(t, "git:/w/git:ro", "deep2:/w/a/b/x", "w:/w", "out:/lib/out", "lib:/lib:ro", "deep:/w/a/b", "w2:/w2")
	if err := mount.Nest(ps); err != nil {
		t.Fatal(err)
	}
	at := func(i int, rel string) string { return filepath.Join(ps[i].Staged, rel) }
	for _, tt := range []struct {
		path, source string
		readOnly     bool
	}{
		{at(2, ""), "w", false},
		{at(2, "git"), "git", true},
		{at(2, "a/b"), "deep", false},
		{at(2, "a/b/x"), "deep2", false},
		{at(5, "x"), "deep2", false},
		{at(4, ""), "lib", true},
		{at(4, "out"), "out", false},
		{at(0, ""), "git", true},
		{at(1, ""), "deep2", false},
		{at(6, ""), "w2", false},
	} {
		src := stat(t, filepath.Join(w.work, tt.source))
		if st := stat(t, tt.path); st.Ino != src.Ino || st.Dev != src.Dev || st.Uid != agentUID {
			t.Errorf("%s is not %s, or not the agent's: %+v", tt.path, tt.source, st)
		}
		err := as(agentUID, agentGID, func() error { return os.WriteFile(filepath.Join(tt.path, "new"), nil, 0o644) })
		if tt.readOnly && !errors.Is(err, unix.EROFS) || !tt.readOnly && err != nil {
			t.Errorf("writing in %s: %v; want it read-only: %t", tt.path, err, tt.readOnly)
		}
		var vfs unix.Statfs_t
		if err := unix.Statfs(tt.path, &vfs); err != nil || vfs.Flags&unix.ST_NOSUID == 0 || vfs.Flags&unix.ST_NODEV == 0 {
			t.Errorf("flags of %s are %x, %v", tt.path, vfs.Flags, err)
		}
	}
	// Seven, and git, a/b and x in w, x in deep, out in lib.
	if left, err := mount.Leftovers(w.run); err != nil || len(left) != 12 {
		t.Errorf("mounts are %q, %v", left, err)
	}
	w.cleanUp(t)
}

// TestNestHolds is what an agent can do about a mount in another, in a
// namespace that has both. docs/threat-model.md says it.
func TestNestHolds(t *testing.T) {
	w := newWorld(t)
	w.dirs(t, "w/git", "w/a/git", "git")
	ps := w.stage(t, "w:/w", "git:/w/git:ro", "git:/w/a/git:ro")
	if err := mount.Nest(ps); err != nil {
		t.Fatal(err)
	}
	at := func(rel string) string { return filepath.Join(ps[0].Staged, rel) }
	err := as(agentUID, agentGID, func() error {
		for name, err := range map[string]error{
			"remove":             unix.Rmdir(at("git")),
			"move":               unix.Rename(at("git"), at("other")),
			"exchange":           unix.Renameat2(unix.AT_FDCWD, at("git"), unix.AT_FDCWD, at("a"), unix.RENAME_EXCHANGE),
			"remove, deeper":     unix.Rmdir(at("a/git")),
			"move, deeper":       unix.Rename(at("a/git"), at("a/other")),
			"move out of itself": unix.Rename(at("a/git"), at("git/other")),
		} {
			if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EXDEV) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// What lies between is the agent's to move: the name is then free.
		return errors.Join(os.Rename(at("a"), at("moved")), os.MkdirAll(at("a/git/hooks"), 0o755))
	})
	if err != nil {
		t.Error(err)
	}
	if err := as(agentUID, agentGID, func() error { return os.WriteFile(at("moved/git/x"), nil, 0o644) }); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing in the directory itself: %v", err)
	}
	w.cleanUp(t)
}

// TestNestRefused: the mount point must be there, and is never made.
func TestNestRefused(t *testing.T) {
	w := newWorld(t)
	w.dirs(t, "w/dir/in", "w/closed/in", "inner")
	outside := t.TempDir()
	for _, err := range []error{
		os.WriteFile(filepath.Join(w.work, "w", "file"), nil, 0o644),
		os.Symlink("dir", filepath.Join(w.work, "w", "link")),
		os.Symlink(outside, filepath.Join(w.work, "w", "out")),
		os.Symlink("/proc/self/cwd", filepath.Join(w.work, "w", "magic")),
		unix.Mkfifo(filepath.Join(w.work, "w", "fifo"), 0o644),
		os.Chown(filepath.Join(w.work, "w", "closed"), 5555, 5555),
		os.Chmod(filepath.Join(w.work, "w", "closed"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for target, why := range map[string]string{
		"/w/none": "does not exist", "/w/dir/none": "does not exist", "/w/none/none": "does not exist",
		"/w/file": "not a directory", "/w/file/x": "not a directory", "/w/fifo": "not a directory",
		"/w/link": "symbolic link", "/w/link/in": "symbolic link", "/w/out": "symbolic link", "/w/magic": "symbolic link",
		"/w/closed/in": "may not look it up", "/w/" + strings.Repeat("x", 300): "too long",
	} {
		t.Run(strings.TrimRight(target, "x"), func(t *testing.T) {
			ps := w.stage(t, "inner:"+target, "w:/w")
			defer w.cleanUp(t)
			err := mount.Nest(ps)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeInvalid || len(e.Problems) != 1 || e.Problems[0].Field != "mounts[0].target" ||
				!strings.Contains(e.Problems[0].Want, why) || e.Hint == "" {
				t.Errorf("Nest = %v; want %q", err, why)
			}
			if left, err := mount.Leftovers(w.run); err != nil || len(left) != 2 {
				t.Errorf("mounts are %q, %v", left, err)
			}
			if _, err := os.Lstat(filepath.Join(w.work, target)); strings.HasSuffix(target, "none") && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it was made: %v", err)
			}
		})
	}
	t.Run("another's place", func(t *testing.T) {
		ps := w.stage(t, "inner:/w/dir", "w:/w", "inner:/w/dir")
		defer w.cleanUp(t)
		if err := mount.Nest(ps); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("Nest = %v", err)
		}
	})
}

// TestNestCleanup: what was attached goes with the tree that it is in, even if
// it is nowhere to be seen.
func TestNestCleanup(t *testing.T) {
	w := newWorld(t)
	w.dirs(t, "w/a/b", "inner", "moved")
	ps := w.stage(t, "w:/w", "inner:/w/a/b")
	if err := mount.Nest(ps); err != nil {
		t.Fatal(err)
	}
	at := func(rel string) string { return filepath.Join(w.work, rel) }
	if err := os.Rename(at("w/a"), at("moved/a")); err != nil { // out of the tree
		t.Fatal(err)
	}
	w.cleanUp(t)
	// As long as anything is mounted there, no namespace that has it can remove it.
	if err := os.Remove(at("moved/a/b")); err != nil {
		t.Error(err)
	}
}

// TestNestRace swaps the mount point while mounts are attached to it.
func TestNestRace(t *testing.T) {
	w := newWorld(t)
	w.dirs(t, "w/a/b", "inner", "aside/b", "outside")
	outside := t.TempDir()
	at := func(rel string) string { return filepath.Join(w.work, rel) }
	if err := errors.Join(os.Symlink(at("outside"), at("link")), os.Symlink(outside, at("link2"))); err != nil {
		t.Fatal(err)
	}
	bind(t, w.run, at("outside/b")) // where the link leads: nothing to unmount by
	before, err := mount.Leftovers("/")
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		swap := func(x, y string) {
			_ = unix.Renameat2(unix.AT_FDCWD, at(x), unix.AT_FDCWD, at(y), unix.RENAME_EXCHANGE)
		}
		for !stop.Load() {
			swap("w/a", "link")
			swap("w/a", "link")
			swap("w/a", "link")
			swap("w/a", "link")
			swap("w/a", "aside") // out of the tree, and another in its place
			_ = unix.Rmdir(at("aside/b"))
			_ = unix.Mkdir(at("aside/b"), 0o755)
			_ = os.Rename(at("w/a"), at("gone"))
			_ = os.Rename(at("gone"), at("w/a"))
			swap("w/a/b", "link2")
			swap("w/a/b", "link2")
		}
	}()
	defer func() { stop.Store(true); <-done }()
	attached, refused := 0, 0
	for range 500 {
		ps := w.stage(t, "w:/w", "inner:/w/a/b")
		switch err := mount.Nest(ps); {
		case err == nil:
			attached++
		case api.CodeOf(err) == api.CodeInvalid:
			refused++
		default:
			t.Errorf("Nest = %v", err)
		}
		now, err := mount.Leftovers("/")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range now[min(len(before), len(now)):] {
			if !strings.HasPrefix(p, filepath.Join(w.run, "mnt")+"/") {
				t.Fatalf("a mount at %s", p)
			}
		}
		w.cleanUp(t)
		if !isMounted(t, at("outside/b")) {
			t.Fatal("the clean-up followed a link and unmounted what is there")
		}
	}
	t.Logf("%d attached, %d refused", attached, refused)
	if attached == 0 || refused == 0 {
		t.Errorf("%d attached, %d refused: no race", attached, refused)
	}
	if after, err := mount.Leftovers("/"); err != nil || len(after) != len(before) {
		t.Errorf("%d mounts before, %d after, %v", len(before), len(after), err)
	}
}
