package runtime

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestOrphan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "io.containerd.snapshotter.v1.overlayfs", "snapshots", "7")
	for _, d := range []string{"fs", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	text := "failed to rename: rename " + filepath.Dir(dir) + "/new-3681912012 " + dir + ": file exists"
	if got := orphan(errors.New(text)); got != dir {
		t.Fatalf("orphan(%q) = %q", text, got)
	}
	for _, other := range []string{"", "rename /a /etc: file exists", "rename /a " + dir + "/../8: file exists", "rename /a " + dir + ": permission denied"} {
		if got := orphan(errors.New(other)); got != "" {
			t.Errorf("orphan(%q) = %q", other, got)
		}
	}
	// What somebody uses is not removed.
	file := filepath.Join(dir, "fs", "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeOrphan(dir); err == nil {
		t.Error("a snapshot with a file was removed")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is success
		if err := removeOrphan(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
