package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/mount"
)

// TestOpenGranted: what a path of the operator's means is nobody else's to say.
func TestOpenGranted(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	top, err := os.MkdirTemp("/srv", "creel-test-") //nolint:usetesting // anybody can change what is in /tmp
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	at := func(name string) string { return filepath.Join(top, name) }
	for _, err := range []error{
		os.Chmod(top, 0o755),
		os.MkdirAll(at("mine/x"), 0o755),
		os.MkdirAll(at("theirs/x"), 0o755),
		os.Chown(at("theirs"), 1000, 1000),
		os.MkdirAll(at("all/x"), 0o755),
		os.Chmod(at("all"), 0o777|os.ModeSticky),
		os.Symlink("mine", at("link")),
		os.WriteFile(at("mine/file"), nil, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"mine", "mine/x", "theirs", "all"} { // the last may be anybody's
		f, err := mount.OpenGranted(at(name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got, want unix.Stat_t
		if err := errors.Join(unix.Fstat(int(f.Fd()), &got), unix.Stat(at(name), &want), f.Close()); err != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			t.Errorf("%s: another directory, %v", name, err)
		}
	}
	for _, name := range []string{"theirs/x", "all/x"} {
		if _, err := mount.OpenGranted(at(name)); api.CodeOf(err) != api.CodeDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]error{"link": unix.ENOTDIR, "link/x": unix.ENOTDIR, "mine/file": unix.ENOTDIR, "mine/none": unix.ENOENT} {
		if _, err := mount.OpenGranted(at(name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}
