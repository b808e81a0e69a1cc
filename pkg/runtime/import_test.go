package runtime_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/image"
	"github.com/creel-sandbox/creel/pkg/runtime"
	"github.com/creel-sandbox/creel/pkg/sametime"

	"github.com/google/go-cmp/cmp"
)

func importBusybox(tb testing.TB, e *env) {
	tb.Helper()
	_, err := e.Client().Import(tb.Context(), 0, bytes.NewReader(archive(tb, "busybox", busyboxLayer(tb))), "", image.DefaultLimits)
	if err != nil {
		tb.Fatal(err)
	}
}

// stored lists the blobs and snapshot directories that containerd holds.
func stored(t *testing.T, e *env) []string {
	t.Helper()
	var out []string
	for _, d := range []string{"io.containerd.content.v1.content/blobs/sha256", "io.containerd.content.v1.content/ingest", "io.containerd.snapshotter.v1.overlayfs/snapshots"} {
		err := filepath.WalkDir(filepath.Join(e.cfg.Root, "containerd", d), func(p string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && filepath.Base(filepath.Dir(p)) == filepath.Base(d) {
				out = append(out, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestImport(t *testing.T) {
	e := start(t)
	c := e.Client()
	img, err := c.Import(t.Context(), 0, bytes.NewReader(archive(t, "other", busyboxLayer(t), layer(t, dirs("work")...))), "tools:1", image.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if img.Ref != "tools:1" || !strings.HasPrefix(img.Digest, "sha256:") || img.Size < 1000 {
		t.Errorf("imported %+v", img)
	}
	list, err := c.Images(t.Context(), 0)
	if err != nil || len(list) != 1 || !cmp.Equal(list[0], img) {
		t.Errorf("images %+v (%v), want the one imported", list, err)
	}
	for _, ref := range []string{"tools:1", "docker.io/library/tools:1", img.Digest} {
		if d, err := c.Resolve(t.Context(), 0, ref); err != nil || d != img.Digest {
			t.Errorf("Resolve(%q) = %q, %v", ref, d, err)
		}
	}
	_, err = c.Resolve(t.Context(), 0, "nothere")
	if api.CodeOf(err) != api.CodeNotFound || !strings.Contains(err.Error(), "creel image import") {
		t.Errorf("missing image: %v", err)
	}
	if err := c.RemoveImage(t.Context(), 0, img.Digest); err != nil {
		t.Fatal(err)
	}
	if left := stored(t, e); len(left) > 0 {
		t.Errorf("left of a removed image: %q", left)
	}
	if err := c.RemoveImage(t.Context(), 0, "tools:1"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("second removal: %v", err)
	}
}

// TestOwners: what a user imports under a name is that user's alone, stands in
// nobody else's way, and never where the box's is meant.
func TestOwners(t *testing.T) {
	e := start(t)
	c := e.Client()
	put := func(uid uint32, extra string) string {
		t.Helper()
		img, err := c.Import(t.Context(), uid, bytes.NewReader(archive(t, "x", busyboxLayer(t), layer(t, dirs(extra)...))), "tools", image.DefaultLimits)
		if err != nil || img.Ref != "tools:latest" {
			t.Fatalf("import as %d: %+v, %v", uid, img, err)
		}
		return img.Digest
	}
	is := func(uid uint32, ref, want string) {
		t.Helper()
		got, err := c.Resolve(t.Context(), uid, ref)
		if want == "" && api.CodeOf(err) != api.CodeNotFound || want != "" && got != want {
			t.Errorf("%q is %q to %d (%v), want %q", ref, got, uid, err, want)
		}
	}
	one := put(1001, "one")
	is(0, "tools", "")
	is(1002, "tools", "")
	is(1002, one, "")
	box := put(0, "box")
	is(1001, "tools", box)
	is(1001, one, one)
	is(1002, "tools", box)
	is(1001, box, box)
	for uid, want := range map[uint32]int{0: 2, 1001: 2, 1002: 1} {
		if list, err := c.Images(t.Context(), uid); err != nil || len(list) != want {
			t.Errorf("%d sees %+v, %v; want %d images", uid, list, err, want)
		}
	}
	if err := c.RemoveImage(t.Context(), 1002, "tools"); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("remove the box's: %v", err)
	}
	if err := c.RemoveImage(t.Context(), 1002, one); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("remove another's: %v", err)
	}
	// The box's name is nobody else's to give, in whatever form.
	for _, ref := range []string{"tools", "tools:latest", "docker.io/library/tools"} {
		if _, err := c.Import(t.Context(), 1001, bytes.NewReader(archive(t, "x", busyboxLayer(t))), ref, image.DefaultLimits); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("import as %s: %v", ref, err)
		}
		if _, err := c.Tag(t.Context(), 1001, one, ref); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("tag as %s: %v", ref, err)
		}
	}
	if _, err := c.Import(t.Context(), 1002, bytes.NewReader(archive(t, "tools", busyboxLayer(t))), "", image.DefaultLimits); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("import of an archive that calls itself so: %v", err)
	}
	if err := c.RemoveImage(t.Context(), 1001, "tools"); err != nil {
		t.Errorf("remove one's own: %v", err)
	}
	is(1001, "tools", box)
	if _, err := c.Import(t.Context(), 0, bytes.NewReader(archive(t, "x", busyboxLayer(t))), box, image.DefaultLimits); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("import under the name of a digest: %v", err)
	}
}

func TestImportRefusedLeavesNothing(t *testing.T) {
	e := start(t)
	c := e.Client()
	link := func(name, to string) []byte {
		return layer(t, file{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}})
	}
	good := busyboxLayer(t)
	tests := []struct {
		name   string
		layers [][]byte
		want   string
	}{
		{"device", [][]byte{good, layer(t, file{Header: tar.Header{Name: "dev/sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}})}, "device node"},
		{"dev link", [][]byte{link("dev", "/tmp")}, "/dev is not a real directory"},
		{"etc link in a later layer", [][]byte{good, layer(t, file{Header: tar.Header{Name: ".wh.etc", Typeflag: tar.TypeReg}}), link("etc", "proc")}, "/etc is not a real directory"},
		{"climbing name", [][]byte{layer(t, file{Header: tar.Header{Name: "a/../../b", Typeflag: tar.TypeReg}})}, "climbs"},
		{"bad layer", [][]byte{bytes.Repeat([]byte("x"), 2048)}, "layer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.Import(t.Context(), 0, bytes.NewReader(archive(t, "bad", tt.layers...)), "bad", image.DefaultLimits)
			if api.CodeOf(err) != api.CodeInvalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v (%s), want invalid_argument with %q", err, api.CodeOf(err), tt.want)
			}
			if left := stored(t, e); len(left) > 0 {
				t.Errorf("left of a refused image: %q", left)
			}
		})
	}
	cut := archive(t, "cut", good)
	if _, err := c.Import(t.Context(), 0, bytes.NewReader(cut[:len(cut)/2]), "cut", image.DefaultLimits); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("half an archive: %v", err)
	}
	if left := stored(t, e); len(left) > 0 {
		t.Errorf("left of half an archive: %q", left)
	}
}

func TestNormalizeRef(t *testing.T) {
	tests := []struct {
		in, want string
		code     api.Code
	}{
		{in: "base", want: "docker.io/library/base:latest"},
		{in: "team/base:1.2", want: "docker.io/team/base:1.2"},
		{in: "localhost:5000/x", want: "localhost:5000/x:latest"},
		{in: "sha256:" + strings.Repeat("a", 64), want: "sha256:" + strings.Repeat("a", 64)},
		{in: "", code: api.CodeInvalid},
		{in: "Base", code: api.CodeInvalid},
		{in: "../x", code: api.CodeInvalid},
	}
	for _, tt := range tests {
		got, err := runtime.NormalizeRef(tt.in)
		if got != tt.want || (tt.code != "" && api.CodeOf(err) != tt.code) || (tt.code == "" && err != nil) {
			t.Errorf("NormalizeRef(%q) = %q, %v", tt.in, got, err)
		}
	}
}

// TestTagAndSave: one more name is the caller's own and holds the image, and
// what is saved is the image that was imported.
func TestTagAndSave(t *testing.T) {
	e := start(t)
	c := e.Client()
	box, err := c.Import(t.Context(), 0, bytes.NewReader(archive(t, "tools", busyboxLayer(t), layer(t, dirs("work")...))), "", image.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	mine, err := c.Tag(t.Context(), 1001, "tools", "mine:1")
	if err != nil || mine.Ref != "mine:1" || mine.Digest != box.Digest || mine.Owner != 1001 || mine.Size != box.Size {
		t.Fatalf("tag: %+v, %v", mine, err)
	}
	if _, err := c.Tag(t.Context(), 1002, "mine:1", "stolen"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("tag another's: %v", err)
	}
	if err := c.Save(t.Context(), 1002, "mine:1", &bytes.Buffer{}); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("save another's: %v", err)
	}
	if _, err := c.Tag(t.Context(), 1001, "tools", box.Digest); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("tag as a digest: %v", err)
	}
	if err := c.RemoveImage(t.Context(), 0, "tools"); err != nil {
		t.Fatal(err)
	}
	one, err := c.Image(t.Context(), 1001, "mine:1")
	if err != nil || len(one.Layers) != 2 || one.Digest != box.Digest || one.Packages != nil {
		t.Errorf("after the first name went: %+v, %v", one, err)
	}
	var out bytes.Buffer
	if err := c.Save(t.Context(), 1001, box.Digest, &out); err != nil {
		t.Fatal(err)
	}
	// Another's name for it does not hold it for this caller.
	if _, err := c.Resolve(t.Context(), 1002, box.Digest); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("another's digest: %v", err)
	}
	if err := c.RemoveImage(t.Context(), 1001, "mine:1"); err != nil {
		t.Fatal(err)
	}
	if left := stored(t, e); len(left) > 0 {
		t.Errorf("left of a removed image: %q", left)
	}
	again, err := c.Import(t.Context(), 1001, &out, "", image.DefaultLimits)
	if err != nil || again.Digest != box.Digest || again.Ref != "mine:1" {
		t.Errorf("saved and imported: %+v, %v; want %s as mine:1", again, err, box.Digest)
	}
}

// TestAnothersImageTakesTheSame: how long it takes to be told that there is no
// such image does not tell whether it is another caller's. Half of what one
// question to containerd takes is too much of a difference; the other caller has
// many names for it, so that an answer that is longer for them shows.
func TestAnothersImageTakesTheSame(t *testing.T) {
	e := start(t)
	c := e.Client()
	theirs, err := c.Import(t.Context(), 1001, bytes.NewReader(archive(t, "x", busyboxLayer(t))), "theirs:1", image.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Import(t.Context(), 0, bytes.NewReader(archive(t, "x", busyboxLayer(t), layer(t, dirs("box")...))), "box:1", image.DefaultLimits); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		if _, err := c.Tag(t.Context(), 1001, "theirs:1", fmt.Sprint("theirs:tag", i)); err != nil {
			t.Fatal(err)
		}
	}
	one := sametime.Median(300, func() {
		if _, err := c.Resolve(t.Context(), 1002, "box:1"); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("a question to containerd takes %v", one)
	ask := func(ref string) func() {
		return func() {
			if _, err := c.Image(t.Context(), 1002, ref); api.CodeOf(err) != api.CodeNotFound {
				t.Fatalf("%s: %v", ref, err)
			}
		}
	}
	sametime.Check(t, 300, one/2,
		sametime.Question{Name: "another's digest", Ask: ask(theirs.Digest)},
		sametime.Question{Name: "a digest of none", Ask: ask("sha256:" + strings.Repeat("0", 64))})
	sametime.Check(t, 300, one/2,
		sametime.Question{Name: "another's name", Ask: ask("theirs:1")},
		sametime.Question{Name: "a name of none", Ask: ask("nobody:1")})
}
