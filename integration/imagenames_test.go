package integration_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestImageVerbs goes through what is done with images, as a caller that is
// not root, beside the box's.
func TestImageVerbs(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	nobody := &syscall.Credential{Uid: stranger, Gid: stranger}
	other := &syscall.Credential{Uid: stranger - 1, Gid: stranger - 1}
	creel := func(as *syscall.Credential, stdin string, code int, args ...string) string {
		t.Helper()
		out, errOut, got := l.CreelAs(as, stdin, args...)
		if got != code {
			t.Errorf("creel %q: exit %d, want %d: %s%s", args, got, code, out, errOut)
		}
		return out + errOut
	}
	box := imageOf(t, creel(nil, "", 0, "image", "inspect", "base"))
	if box.Owner != 0 || len(box.Layers) != 1 || box.Layers[0].Size == 0 || box.Packages != nil {
		t.Errorf("base is %+v", box)
	}
	tiny := bytesOf(t, lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/mine", Mode: 0o644}, []byte("mine\n"))
	}))

	creel(nobody, string(tiny), 0, "image", "import", "--ref", "mine:1", "-")
	creel(nobody, "", 0, "image", "tag", "mine:1", "mine:2")
	creel(nobody, "", 1, "image", "tag", "mine:1", "base")
	creel(nobody, "", 1, "image", "tag", "nothing", "mine:3")
	creel(other, "", 1, "image", "inspect", "mine:1")
	creel(other, "", 1, "image", "tag", "mine:1", "stolen")
	mine := imageOf(t, creel(nobody, "", 0, "image", "inspect", "mine:2"))
	if mine.Owner != stranger || mine.Digest == box.Digest {
		t.Errorf("mine is %+v", mine)
	}
	if out := creel(other, "", 1, "image", "save", mine.Digest); !strings.Contains(out, "is not here") {
		t.Errorf("another's digest: %s", out)
	}
	creel(other, "", 125, "run", "--image", mine.Digest, "--", "/bin/true")
	if out := creel(nobody, "", 0, "image", "ls"); !strings.Contains(out, "mine:2") || !strings.Contains(out, "box") || !strings.Contains(out, "you") {
		t.Errorf("ls: %s", out)
	}

	saved, _, _ := l.CreelAs(nobody, "", "image", "save", "mine:1")
	creel(other, saved, 0, "image", "import", "-") // it says what it is called
	if again := imageOf(t, creel(other, "", 0, "image", "inspect", "mine:1")); again.Digest != mine.Digest || again.Owner != stranger-1 {
		t.Errorf("saved and imported it is %+v, was %+v", again, mine)
	}
	creel(nobody, "", 0, "image", "rm", "mine:1", "mine:2")
	creel(other, "", 0, "run", "--rm", "--image", mine.Digest, "--", "/bin/cat", "/etc/mine")
}

func imageOf(t *testing.T, text string) (img api.Image) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &img); err != nil {
		t.Errorf("%v in %s", err, text)
	}
	return img
}

// TestImageForms imports the same files from everything that may hold them,
// and runs a command in each.
func TestImageForms(t *testing.T) {
	l := lab.New(t, lab.Options{})
	tiny := bytesOf(t, lab.Tiny(t))
	layout := t.TempDir()
	var config, layer []byte
	var index struct{ Manifests []struct{ Digest string } }
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(tiny)); ; {
		h, err := r.Next()
		if err == io.EOF { //nolint:errorlint // as tar returns it
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = b
		p := filepath.Join(layout, h.Name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }
	var manifest struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	decode := func(b []byte, v any) {
		if err := json.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	decode(files["index.json"], &index)
	decode(files[blob(index.Manifests[0].Digest)], &manifest)
	config, layer = files[blob(manifest.Config.Digest)], files[blob(manifest.Layers[0].Digest)]

	// As docker wrote it before version 25, and since.
	old := tarFiles(t, "abc/VERSION", "1.0", "abc/json", "{}", "abc/layer.tar", string(layer), "cfg.json", string(config),
		"manifest.json", `[{"Config":"cfg.json","RepoTags":["old:1"],"Layers":["abc/layer.tar"]}]`, "repositories", `{"old":{"1":"abc"}}`)
	recent := tarFiles(t, blob(manifest.Config.Digest), string(config), blob(manifest.Layers[0].Digest), string(layer),
		blob(index.Manifests[0].Digest), string(files[blob(index.Manifests[0].Digest)]), "index.json", string(files["index.json"]),
		"manifest.json", `[{"Config":"`+blob(manifest.Config.Digest)+`","RepoTags":["recent:1"],"Layers":["`+blob(manifest.Layers[0].Digest)+`"]}]`, "oci-layout", "{}")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(old); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "old.tar.gz")
	if err := os.WriteFile(file, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, stdin string
		args        []string
		ref         string
	}{
		{"layout", "", []string{layout}, "tiny:latest"},
		{"docker archive", string(old), []string{"-"}, "old:1"},
		{"docker archive, packed, from a file", "", []string{file}, "old:1"},
		{"docker archive with a layout, named", string(recent), []string{"--ref", "named", "-"}, "named:latest"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errOut, code := l.CreelAs(nil, tt.stdin, append([]string{"image", "import"}, tt.args...)...)
			if code != 0 || !strings.HasPrefix(out, tt.ref+" sha256:") {
				t.Fatalf("exit %d: %s%s", code, out, errOut)
			}
			if out, errOut, code := l.Creel("run", "--rm", "--image", tt.ref, "--", "/bin/echo", "ran"); code != 0 || out != "ran\n" {
				t.Errorf("exit %d: %s%s", code, out, errOut)
			}
			if _, errOut, code := l.Creel("image", "rm", tt.ref); code != 0 {
				t.Errorf("remove: %s", errOut)
			}
		})
	}
}

// tarFiles is an archive of names and texts in turn.
func tarFiles(t *testing.T, nameText ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := 0; i < len(nameText); i += 2 {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: nameText[i], Mode: 0o644}, []byte(nameText[i+1]))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestImageMoved: a sandbox stays with the digest that its image's name had,
// and says so when the name has gone over to another, or to none; also after
// a kill of the daemon.
func TestImageMoved(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "old"})
	pinned := l.Spawn(api.SpawnRequest{Name: "pinned", Image: sb.ImageDigest})
	moved := func(want bool) {
		t.Helper()
		list, err := l.List(t.Context(), client.ListOptions{All: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list {
			if s.ImageMoved != (want && s.ID == sb.ID) || s.ImageDigest != sb.ImageDigest {
				t.Errorf("%s: moved %v, digest %s", s.Name, s.ImageMoved, s.ImageDigest)
			}
		}
		if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.ImageMoved != want {
			t.Errorf("inspect: %+v, %v", got, err)
		}
		if out, _, _ := l.Creel("ps"); strings.Contains(out, "base:latest (moved)") || strings.Contains(out, "base (moved)") != want {
			t.Errorf("ps, want moved %v: %s", want, out)
		}
	}
	moved(false)
	l.Import("base", lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/new", Mode: 0o644}, []byte("new\n"))
	}))
	moved(true)
	l.Kill()
	l.Start()
	moved(true)
	if out, _ := l.Sh(sb.ID, "ls /etc/new 2>&1"); !strings.Contains(out, "No such file") {
		t.Errorf("the sandbox has another image's file: %s", out)
	}
	if err := l.RemoveImage(t.Context(), "base"); err != nil {
		t.Fatal(err)
	}
	moved(true)
	if _, err := l.TagImage(t.Context(), pinned.ImageDigest, "base"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("an image that nothing names any more is tagged: %v", err)
	}
}

// TestSaveHolds: an image that is being saved stays whole when it is removed
// meanwhile, a save that is cut off is no shorter archive, and what is held is
// bounded and let go of.
func TestSaveHolds(t *testing.T) {
	l := lab.New(t, lab.Options{})
	noise := make([]byte, 16<<20) // more than lies in a socket
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	l.Import("large", lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "mnt/noise", Mode: 0o644}, noise)
	}))
	before, err := l.Image(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	var saves []io.ReadCloser
	for i := range 5 {
		r, err := l.SaveImage(t.Context(), "large")
		if i == 4 {
			if api.CodeOf(err) != api.CodeExhausted {
				t.Errorf("a fifth save at one time: %v", err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		saves = append(saves, r)
	}
	if err := l.RemoveImage(t.Context(), "large"); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	rest.WriteString("o") // of "oci-layout", read before
	if _, err := rest.ReadFrom(saves[0]); err != nil {
		t.Fatal(err)
	}
	again, err := l.ImportImage(t.Context(), "again", &rest)
	if err != nil || again.Digest != before.Digest {
		t.Errorf("saved while it was removed, it is %+v, %v; want %s", again, err, before.Digest)
	}
	// An import that has sent its layer and not its end, too.
	half := dialRaw(t, l).send(fmt.Sprintf("POST /v1/images?ref=half HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-tar\r\nContent-Length: %d\r\n\r\n", 1<<20))
	half.send(string(tarFiles(t, "blob", strings.Repeat("half", 1000), "blob2", strings.Repeat("x", 200_000))[:150_000]))
	l.Eventually("the layer is stored", 20*time.Second, func() error {
		if n := len(storedBlobs(t, l)); n != 7 { // base's, large's, this one
			return fmt.Errorf("%d blobs", n)
		}
		return nil
	})
	l.Kill()
	if n, err := io.Copy(io.Discard, saves[1]); err == nil {
		t.Errorf("a save that the daemon did not end is an archive of %d bytes", n)
	}
	l.Start()
	if err := l.RemoveImage(t.Context(), "again"); err != nil {
		t.Fatal(err)
	}
	if left := storedBlobs(t, l); len(left) != 3 { // base's
		t.Errorf("left in the store: %q", left)
	}
}

func storedBlobs(t *testing.T, l *lab.Lab) []string {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(l.Dir, "state/containerd/containerd/io.containerd.content.v1.content/blobs/sha256/*"))
	if err != nil {
		t.Error(err)
	}
	return blobs
}
