package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/mount"
)

// TestShows: what a staged mount shows is found by the file system, whatever
// the directory is called and on whichever mount it was opened.
func TestShows(t *testing.T) {
	w := newWorld(t)
	at := func(name string) string { return filepath.Join(w.work, name) }
	for _, d := range []string{"a/b/c", "ab", "e/f"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"a", "a/b"} {
		if err := os.Chown(at(d), callerUID, callerGID); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"e/f", "e"} { // whom the id map of other mounts does not know
		if err := errors.Join(os.Chown(at(d), callerUID+1, callerUID+1), os.Chmod(at(d), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(path string, flags uintptr) string {
		t.Helper()
		alias := t.TempDir()
		if err := unix.Mount(path, alias, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(alias, unix.MNT_DETACH) })
		if flags != 0 {
			if err := unix.Mount("", alias, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		return alias
	}
	open := func(path string) *os.File {
		t.Helper()
		dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dir.Close() })
		return dir
	}
	n := 0
	stage := func(path string, readOnly bool) string {
		t.Helper()
		n++
		target := filepath.Join(w.run, "mnt", string(rune('a'+n)))
		_, undo, err := w.stager.Stage(t.Context(), mount.Request{
			Dir: open(path), Target: target, ReadOnly: readOnly, CallerUID: callerUID, CallerGID: callerGID,
			AgentUID: agentUID, AgentGID: agentGID, Groups: groups, UserNS: w.userns,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = undo(t.Context()) })
		return target
	}
	noexec := bind(at("a"), unix.MS_NOEXEC)
	a, b, ro, e, ne := stage(at("a"), false), stage(at("a/b"), false), stage(at("a"), true), stage(at("e"), true), stage(noexec, false)
	alias := bind(at("a/b"), 0)
	for _, tt := range []struct {
		name, staged string
		dir          string
		is, readOnly bool
	}{
		{"itself", a, at("a"), true, false},
		{"in it", a, at("a/b/c"), true, false},
		{"in it by another name", a, alias, true, false},
		{"above it", b, at("a"), false, false},
		{"beside it, with a name that begins the same", a, at("ab"), false, false},
		{"read-only", ro, at("a/b"), true, true},
		{"in somebody's alone", e, at("e/f"), true, true},
		{"elsewhere", a, at("e"), false, false},
		{"another file system", a, "/proc", false, false},
		{"where nothing is executed", ne, at("a/b"), false, false},
		{"where nothing is executed, from such a mount", ne, filepath.Join(noexec, "b"), true, false},
		{"not staged any more", filepath.Join(w.run, "mnt", "none"), at("a"), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			is, readOnly, err := mount.Shows(tt.staged, open(tt.dir))
			if is != tt.is || readOnly != tt.readOnly || err != nil {
				t.Errorf("%v, read-only %v, %v; want %v, %v", is, readOnly, err, tt.is, tt.readOnly)
			}
		})
	}
}
