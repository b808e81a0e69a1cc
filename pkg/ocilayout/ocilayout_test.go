package ocilayout_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/ocilayout"

	"github.com/google/go-cmp/cmp"
)

var (
	blobA = "blobs/sha256/" + strings.Repeat("a", 64)
	blobB = "blobs/sha256/" + strings.Repeat("b", 64)
)

// layout makes a directory of the files.
func layout(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func small() map[string]string {
	return map[string]string{
		"oci-layout": "{}", "index.json": `{"manifests":[]}`, blobB: "b", blobA: "aa",
		"blobs/sha256/tmp-123": "half", "README": "not of the layout",
	}
}

func TestArchive(t *testing.T) {
	dir := layout(t, small())
	var out bytes.Buffer
	if err := ocilayout.Archive(t.Context(), dir, &out); err != nil {
		t.Fatal(err)
	}
	again := out.String()
	var got [][2]string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r)
		got = append(got, [2]string{h.Name, string(b)})
	}
	want := [][2]string{{"oci-layout", "{}"}, {"index.json", `{"manifests":[]}`}, {blobA, "aa"}, {blobB, "b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
	if err := ocilayout.Archive(t.Context(), dir, &out); err != nil || out.String() != again {
		t.Errorf("a second time it differs (%v)", err)
	}
}

// TestArchiveRefuses: a directory that somebody else prepared gives away no
// other file of the user's, and holds nothing up.
func TestArchiveRefuses(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	replace := func(name string, fn func(path string) error) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			p := filepath.Join(dir, name)
			if err := errors.Join(os.RemoveAll(p), fn(p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, dir string)
		want string
	}{
		{"no blobs", replace("blobs", func(string) error { return nil }), "no OCI image layout"},
		{"no index", replace("index.json", func(string) error { return nil }), "index.json"},
		{"a blob is a link out", replace(blobA, func(p string) error { return os.Symlink(secret, p) }), blobA},
		{"the index is a link out", replace("index.json", func(p string) error { return os.Symlink(secret, p) }), "index.json"},
		{"blobs is a link out", replace("blobs", func(p string) error { return os.Symlink("/tmp", p) }), "blobs"},
		{"a pipe", replace(blobA, func(p string) error { return unix.Mkfifo(p, 0o600) }), "not a regular file"},
		{"a directory", replace(blobA, func(p string) error { return os.Mkdir(p, 0o700) }), "not a regular file"},
		{"a large index", replace("index.json", func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 5<<20))
		}), "too large"},
		{"large in all", replace(blobA, func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 17<<30))
		}), "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := layout(t, small())
			tt.do(t, dir)
			var out bytes.Buffer
			err := ocilayout.Archive(t.Context(), dir, &out)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if strings.Contains(out.String(), "secret") {
				t.Error("what the link points to is in the archive")
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := ocilayout.Archive(ctx, layout(t, small()), io.Discard); !errors.Is(err, stop) {
		t.Errorf("after a cancel: %v", err)
	}
}
