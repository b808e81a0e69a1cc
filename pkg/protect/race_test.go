package protect_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/mount"
)

// TestRace has the owner move what leads to the names, and put links in its place,
// while they are protected and placeholders are removed: nothing is mounted, made or
// removed outside of the directory.
func TestRace(t *testing.T) {
	w := newWork(t)
	w.make(".github/", "aside/hooks/", "aside/config")
	outside := w.dir + ".outside"
	for _, name := range []string{"", "hooks", "workflows", "actions"} {
		if err := os.Mkdir(filepath.Join(outside, name), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(outside, name), callerID, callerID); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, w.at("link")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		swap := func(a, b string) {
			_ = unix.Renameat2(unix.AT_FDCWD, w.at(a), unix.AT_FDCWD, w.at(b), unix.RENAME_EXCHANGE)
		}
		for !stop.Load() {
			for _, name := range []string{".git", ".github"} {
				swap(name, "link")
				swap(name, "link")
			}
			swap(".git", "aside")
			_ = os.Rename(w.at(".github"), w.at("gone"))
			_ = os.Rename(w.at("gone"), w.at(".github"))
		}
	}()
	protected, refused := 0, 0
	for range 500 {
		tr := w.tree()
		w.staged = 0
		plan, err := tr.Plan(w.l, nil)
		if err == nil {
			plan, err = tr.Make(agent, plan)
		}
		if err == nil {
			_, _, err = tr.Apply(w.l, plan, w.empty())
		}
		switch {
		case err == nil:
			protected++
		case api.CodeOf(err) == api.CodeInvalid:
			refused++
		default:
			t.Errorf("%v", err)
		}
		now, err := mount.Leftovers(filepath.Dir(w.dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range now {
			if !strings.HasPrefix(p, filepath.Join(w.run, "mnt")+"/") {
				t.Fatalf("a mount at %s", p)
			}
		}
		made := w.made(tr, plan)
		dir := made.Open()
		if err := mount.Remove(tr.Staged); err != nil {
			t.Fatal(err)
		}
		if _, err := made.Remove(dir, nil, agent, caller, nil); err != nil {
			t.Errorf("remove: %v", err)
		}
		_ = dir.Close()
	}
	stop.Store(true)
	<-done
	t.Logf("%d protected, %d refused", protected, refused)
	if protected == 0 || refused == 0 {
		t.Error("no race")
	}
	for name, want := range map[string]int{"": 3, "hooks": 0, "workflows": 0, "actions": 0} {
		if in, err := os.ReadDir(filepath.Join(outside, name)); err != nil || len(in) != want {
			t.Errorf("outside in %q there is %v, %v", name, in, err)
		}
	}
	if left, err := mount.Leftovers(filepath.Dir(w.dir)); err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}
