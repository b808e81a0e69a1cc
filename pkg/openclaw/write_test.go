package openclaw_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/openclaw"
)

func TestReplace(t *testing.T) {
	for _, mode := range []os.FileMode{0o600, 0o644, 0o660} {
		dir := write(t, map[string]string{"c": "old"})
		path := filepath.Join(dir, "c")
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := openclaw.Replace(path, []byte("old"), []byte("new")); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		st, serr := os.Stat(path)
		if err := errors.Join(err, serr); err != nil || string(b) != "new" || st.Mode().Perm() != mode {
			t.Errorf("%v: %q, %v, %v", mode, b, st, err)
		}
		onlyFile(t, dir)
	}
}

func onlyFile(t *testing.T, dir string) {
	t.Helper()
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func TestReplaceRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(path string) error
		want   string
	}{
		"changed":   {func(path string) error { return os.WriteFile(path, []byte("other"), 0o600) }, "changed meanwhile"},
		"gone":      {os.Remove, "no such file"},
		"a link":    {func(path string) error { return errors.Join(os.Rename(path, path+"x"), os.Symlink("cx", path)) }, "a symbolic link"},
		"two names": {func(path string) error { return os.Link(path, path+"x") }, "other names"},
		"a FIFO":    {func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) }, "not a file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(write(t, map[string]string{"c": "old"}), "c")
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadDir(filepath.Dir(path))
			if err := openclaw.Replace(path, []byte("old"), []byte("new")); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if after, _ := os.ReadDir(filepath.Dir(path)); len(after) != len(before) {
				t.Errorf("left: %v", after)
			}
		})
	}
}

// The group is kept, and another user's file is not touched.
func TestReplaceOwners(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := write(t, map[string]string{"c": "old"})
	path := filepath.Join(dir, "c")
	if err := os.Chown(path, 0, 4321); err != nil {
		t.Fatal(err)
	}
	if err := openclaw.Replace(path, []byte("old"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil || st.Uid != 0 || st.Gid != 4321 {
		t.Errorf("%d:%d, %v", st.Uid, st.Gid, err)
	}
	if err := os.Chown(path, 4321, 0); err != nil {
		t.Fatal(err)
	}
	if err := openclaw.Replace(path, []byte("new"), []byte("x")); err == nil || !strings.Contains(err.Error(), "belongs to uid 4321") {
		t.Errorf("another's: %v", err)
	}
	onlyFile(t, dir)
}
