package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/image"

	"github.com/google/go-cmp/cmp"
)

// memory is a store of blobs.
type memory struct {
	blobs map[string][]byte
	bytes int64
}

func (m *memory) Put(_ context.Context, r io.Reader, size int64) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err != nil {
		return "", err
	}
	if int64(len(b)) != size {
		return "", io.ErrUnexpectedEOF
	}
	m.bytes += size
	if m.blobs == nil {
		m.blobs = map[string][]byte{}
	}
	m.blobs[digest(b)] = b
	return digest(b), nil
}

func (m *memory) Open(_ context.Context, d string) (io.ReadCloser, error) {
	b, ok := m.blobs[d]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// entry is a file of an archive.
type entry struct {
	name string
	body []byte
	link string
}

func pack(tb testing.TB, entries ...entry) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.body))}
		if e.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		}
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(e.body); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

type obj = map[string]any

func enc(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

const (
	tManifest = "application/vnd.oci.image.manifest.v1+json"
	tIndex    = "application/vnd.oci.image.index.v1+json"
	tConfig   = "application/vnd.oci.image.config.v1+json"
	tLayer    = "application/vnd.oci.image.layer.v1.tar"
)

func blobEntry(b []byte) entry {
	return entry{name: "blobs/sha256/" + strings.TrimPrefix(digest(b), "sha256:"), body: b}
}

func desc(typ string, b []byte, more obj) obj {
	d := obj{"mediaType": typ, "digest": digest(b), "size": len(b)}
	maps.Copy(d, more)
	return d
}

// parts are what an OCI archive of one image is made of; tests change them.
type parts struct {
	layer, config, manifest []byte
	arch, name              string
}

func newParts(tb testing.TB) *parts {
	tb.Helper()
	p := &parts{layer: tarOf(tb, dir("bin"), reg("bin/sh")), arch: "amd64", name: "tools:1"}
	p.config = enc(tb, obj{"architecture": p.arch, "os": "linux", "config": obj{"User": "0", "Entrypoint": []string{"/x"}}, "rootfs": obj{"type": "layers", "diff_ids": []string{digest(p.layer)}}})
	p.manifest = enc(tb, obj{"schemaVersion": 2, "config": desc(tConfig, p.config, nil), "layers": []any{desc(tLayer, p.layer, nil)}})
	return p
}

func (p *parts) index(tb testing.TB) entry {
	tb.Helper()
	return entry{name: "index.json", body: enc(tb, obj{"manifests": []any{desc(tManifest, p.manifest, obj{"annotations": obj{"io.containerd.image.name": p.name}})}})}
}

func TestReadArchiveOCI(t *testing.T) {
	p := newParts(t)
	want := &image.Image{
		Name: "tools:1", Manifest: p.manifest, ManifestType: tManifest, ManifestDigest: digest(p.manifest),
		Config: digest(p.config), ConfigType: tConfig, ConfigSize: int64(len(p.config)),
		Layers: []image.Layer{{Digest: digest(p.layer), DiffID: digest(p.layer), Size: int64(len(p.layer)), MediaType: tLayer}},
	}
	nested := enc(t, obj{"manifests": []any{
		desc(tManifest, p.manifest, obj{"platform": obj{"os": "linux", "architecture": "amd64"}}),
		desc(tManifest, []byte("absent"), obj{"platform": obj{"os": "linux", "architecture": "s390x"}}),
	}})
	outer := enc(t, obj{"manifests": []any{desc(tIndex, nested, obj{"annotations": obj{"io.containerd.image.name": p.name}})}})
	blobs := []entry{blobEntry(p.layer), blobEntry(p.config), blobEntry(p.manifest)}
	for name, a := range map[string][]byte{
		"plain":       pack(t, append(blobs, p.index(t))...),
		"index first": pack(t, append([]entry{p.index(t)}, blobs...)...),
		"nested":      pack(t, append(blobs, blobEntry(nested), entry{name: "index.json", body: outer})...),
		"gzip":        gz(t, pack(t, append(blobs, p.index(t))...)),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := image.ReadArchive(t.Context(), bytes.NewReader(a), "amd64", image.DefaultLimits, &memory{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("image (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadArchiveDocker(t *testing.T) {
	p := newParts(t)
	a := pack(t,
		entry{name: "abc/layer.tar", body: p.layer},
		entry{name: "def/layer.tar", link: "../abc/layer.tar"},
		entry{name: "cfg.json", body: enc(t, obj{"architecture": "amd64", "os": "linux", "rootfs": obj{"diff_ids": []string{digest(p.layer), digest(p.layer)}}})},
		entry{name: "manifest.json", body: enc(t, []any{obj{"Config": "cfg.json", "RepoTags": []string{"d:1"}, "Layers": []string{"abc/layer.tar", "def/layer.tar"}}})},
	)
	store := &memory{}
	got, err := image.ReadArchive(t.Context(), bytes.NewReader(a), "amd64", image.DefaultLimits, store)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "d:1" || len(got.Layers) != 2 || got.Layers[1].Digest != digest(p.layer) || digest(got.Manifest) != got.ManifestDigest {
		t.Errorf("image %+v", got)
	}
}

func TestReadArchiveRefuses(t *testing.T) {
	p := newParts(t)
	blobs := []entry{blobEntry(p.layer), blobEntry(p.config), blobEntry(p.manifest)}
	with := func(manifest obj) []byte {
		m := enc(t, manifest)
		q := *p
		q.manifest = m
		return pack(t, append(blobs, blobEntry(m), q.index(t))...)
	}
	other := enc(t, obj{"schemaVersion": 2, "config": desc(tConfig, p.config, nil), "layers": []any{desc(tLayer, p.layer, nil)}, "annotations": obj{"a": "b"}})
	// An index that names itself cannot be made with real digests; a deep
	// chain can.
	deep := []entry{}
	inner := p.index(t).body
	for range 6 {
		deep = append(deep, blobEntry(inner))
		inner = enc(t, obj{"manifests": []any{desc(tIndex, inner, nil)}})
	}
	small := image.DefaultLimits
	small.Archive, small.Entries = 8192, 3
	tests := []struct {
		name string
		in   []byte
		lim  image.Limits
		want string
	}{
		{name: "empty", in: nil, want: "neither"},
		{name: "junk", in: bytes.Repeat([]byte("x"), 1024), want: "invalid tar header"},
		{name: "no index", in: pack(t, blobs...), want: "neither"},
		{name: "climbing name", in: pack(t, entry{name: "../x", body: []byte("y")}), want: "climbs"},
		{name: "twice", in: pack(t, blobs[0], blobs[0]), want: "twice"},
		{name: "lying digest", in: pack(t, entry{name: "blobs/sha256/" + strings.Repeat("a", 64), body: []byte("y")}), want: "has digest"},
		{name: "link out", in: pack(t, entry{name: "l", link: "../../etc/shadow"}), want: "out of the archive"},
		{name: "device", in: tarOf(t, tar.Header{Name: "x", Typeflag: tar.TypeChar}), want: "neither file nor directory"},
		{name: "missing blob", in: pack(t, blobs[0], blobs[1], p.index(t)), want: "not in the archive"},
		{name: "wrong architecture", in: pack(t, append(blobs, p.index(t))...), want: "linux/arm64"},
		{name: "two images", in: pack(t, append(blobs, blobEntry(other), entry{name: "index.json", body: enc(t, obj{"manifests": []any{desc(tManifest, p.manifest, nil), desc(tManifest, other, nil)}})})...), want: "2 images"},
		{name: "no layers", in: with(obj{"config": desc(tConfig, p.config, nil)}), want: "0 layers"},
		{name: "artifact", in: with(obj{"config": desc("application/x", p.config, nil), "layers": []any{desc(tLayer, p.layer, nil)}}), want: "is it an image"},
		{name: "encrypted layer", in: with(obj{"config": desc(tConfig, p.config, nil), "layers": []any{desc(tLayer+"+encrypted", p.layer, nil)}}), want: "media type"},
		{name: "layer count differs", in: with(obj{"config": desc(tConfig, p.config, nil), "layers": []any{desc(tLayer, p.layer, nil), desc(tLayer, p.layer, nil)}}), want: "diff ids"},
		{name: "lying size", in: with(obj{"config": desc(tConfig, p.config, nil), "layers": []any{desc(tLayer, p.layer, obj{"size": 7})}}), want: "the manifest says 7"},
		{name: "deep index", in: pack(t, append(append(blobs, deep...), entry{name: "index.json", body: inner})...), want: "nested deeper"},
		{name: "too large", in: pack(t, entry{name: "f", body: make([]byte, 10000)}), lim: small, want: "too large"},
		{name: "too large unpacked", in: gz(t, pack(t, entry{name: "f", body: make([]byte, 10000)})), lim: small, want: "too large"},
		{name: "too many files", in: pack(t, entry{name: "a"}, entry{name: "b"}, entry{name: "c"}, entry{name: "d"}), lim: small, want: "more than 3 files"},
		{name: "large index", in: pack(t, entry{name: "index.json", body: make([]byte, 5<<20)}), want: "at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lim, arch := tt.lim, "amd64"
			if lim == (image.Limits{}) {
				lim = image.DefaultLimits
			}
			if tt.name == "wrong architecture" {
				arch = "arm64"
			}
			_, err := image.ReadArchive(t.Context(), bytes.NewReader(tt.in), arch, lim, &memory{})
			if !errors.Is(err, image.ErrRefused) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want a refusal with %q", err, tt.want)
			}
		})
	}
}

// again writes the image as an archive and reads that: it is the same image.
func again(t *testing.T, img *image.Image, store *memory) []byte {
	t.Helper()
	k, err := image.ReadManifest(img.Manifest, img.ManifestType, image.DefaultLimits)
	if err != nil {
		t.Fatalf("manifest of an image that was read: %v", err)
	}
	k.Name = img.Name
	var out bytes.Buffer
	if err := image.WriteArchive(t.Context(), &out, k, store); err != nil {
		t.Fatalf("write: %v", err)
	}
	got, err := image.ReadArchive(t.Context(), bytes.NewReader(out.Bytes()), "amd64", image.DefaultLimits, &memory{})
	if err != nil {
		t.Fatalf("read what was written: %v", err)
	}
	if diff := cmp.Diff(img, got); diff != "" {
		t.Errorf("written and read (-before +after):\n%s", diff)
	}
	return out.Bytes()
}

func TestWriteArchive(t *testing.T) {
	p := newParts(t)
	store := &memory{}
	img, err := image.ReadArchive(t.Context(), bytes.NewReader(pack(t, blobEntry(p.layer), blobEntry(p.config), blobEntry(p.manifest), p.index(t))), "amd64", image.DefaultLimits, store)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again(t, img, store), again(t, img, store)) {
		t.Error("written twice it differs")
	}
}

// TestExtend: what was extended is the old layers and the new one, and
// nothing else of what the old image said.
func TestExtend(t *testing.T) {
	p := newParts(t)
	store := &memory{}
	img, err := image.ReadArchive(t.Context(), bytes.NewReader(pack(t, blobEntry(p.layer), blobEntry(p.config), blobEntry(p.manifest), p.index(t))), "amd64", image.DefaultLimits, store)
	if err != nil {
		t.Fatal(err)
	}
	k, err := image.ReadManifest(img.Manifest, img.ManifestType, image.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	more := tarOf(t, dir("usr"), reg("usr/tool"))
	got, err := image.Extend(t.Context(), k, store, bytes.NewReader(more), int64(len(more)), image.DefaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	want := append(img.Layers, image.Layer{Digest: digest(more), DiffID: digest(more), Size: int64(len(more)), MediaType: tLayer})
	if diff := cmp.Diff(want, got.Layers); diff != "" {
		t.Errorf("layers (-want +got):\n%s", diff)
	}
	if text := string(store.blobs[got.Config]); strings.Contains(text, "Entrypoint") || strings.Contains(text, "User") {
		t.Errorf("configuration %s", text)
	}
	again(t, got, store) // it can be saved and imported
	few := image.DefaultLimits
	few.Layers = 1
	if _, err := image.Extend(t.Context(), k, store, bytes.NewReader(more), int64(len(more)), few); !errors.Is(err, image.ErrRefused) {
		t.Errorf("a layer too many: %v", err)
	}
	k.Layers = append(k.Layers, k.Layers[0])
	if _, err := image.Extend(t.Context(), k, store, bytes.NewReader(more), int64(len(more)), image.DefaultLimits); !errors.Is(err, image.ErrRefused) {
		t.Errorf("fewer diff ids than layers: %v", err)
	}
}

func TestReadManifest(t *testing.T) {
	p := newParts(t)
	with := func(more obj) []byte {
		m := obj{"config": desc(tConfig, p.config, nil), "layers": []any{desc(tLayer, p.layer, nil)}}
		maps.Copy(m, more)
		return enc(t, m)
	}
	listing := func(text string) []byte { return with(obj{"annotations": obj{image.PackagesAnnotation: text}}) }
	for _, tt := range []struct {
		name string
		raw  []byte
		want []string
	}{
		{"none", with(nil), nil},
		{"some", listing("bash 5.2\njq 1.6"), []string{"bash 5.2", "jq 1.6"}},
		{"an empty line", listing("bash 5.2\n\njq 1.6"), nil},
		{"a long line", listing(strings.Repeat("x", 1000)), nil},
		{"too many", listing(strings.Repeat("x 1\n", 20_001)), nil},
	} {
		k, err := image.ReadManifest(tt.raw, tManifest, image.DefaultLimits)
		if err != nil || len(k.Layers) != 1 || !cmp.Equal(k.Packages, tt.want) {
			t.Errorf("%s: %+v, %v; want packages %q", tt.name, k, err, tt.want)
		}
	}
	for name, raw := range map[string][]byte{
		"no JSON":       []byte("x"),
		"climbing blob": with(obj{"config": obj{"digest": "sha256:../../etc/shadow"}}),
		"negative size": with(obj{"layers": []any{desc(tLayer, p.layer, obj{"size": -1})}}),
		"large":         append([]byte("{}"), bytes.Repeat([]byte(" "), 5<<20)...),
	} {
		if k, err := image.ReadManifest(raw, tManifest, image.DefaultLimits); !errors.Is(err, image.ErrRefused) {
			t.Errorf("%s: %+v, %v; want a refusal", name, k, err)
		}
	}
}

// TestReadArchiveDockerSave has what "docker save" writes today: an OCI
// layout and, for older readers, manifest.json beside it. The containerd
// image store's has an index with an attestation in it.
func TestReadArchiveDockerSave(t *testing.T) {
	p := newParts(t)
	blobs := []entry{{name: "oci-layout", body: []byte("{}")}, blobEntry(p.layer), blobEntry(p.config), blobEntry(p.manifest)}
	old := entry{name: "manifest.json", body: enc(t, []any{obj{"Config": blobEntry(p.config).name, "RepoTags": []string{"tools:1"}, "Layers": []string{blobEntry(p.layer).name}, "LayerSources": obj{}}})}
	attestation := []byte(`{"layers":[]}`)
	inner := enc(t, obj{"manifests": []any{
		desc(tManifest, p.manifest, obj{"platform": obj{"os": "linux", "architecture": "amd64"}}),
		desc(tManifest, attestation, obj{"platform": obj{"os": "unknown", "architecture": "unknown"}}),
	}})
	index := func(d obj) entry { return entry{name: "index.json", body: enc(t, obj{"manifests": []any{d}})} }
	names := obj{"annotations": obj{"io.containerd.image.name": "docker.io/library/tools:1", "org.opencontainers.image.ref.name": "1"}}
	for name, a := range map[string][]byte{
		"graph drivers":         pack(t, append(blobs, index(desc(tManifest, p.manifest, names)), old, entry{name: "repositories", body: []byte("{}")})...),
		"containerd store":      pack(t, append(blobs, blobEntry(attestation), blobEntry(inner), index(desc(tIndex, inner, names)), old)...),
		"only blobs and a list": pack(t, append(blobs, old)...),
	} {
		img, err := image.ReadArchive(t.Context(), bytes.NewReader(a), "amd64", image.DefaultLimits, &memory{})
		if err != nil || !strings.HasSuffix(img.Name, "tools:1") || len(img.Layers) != 1 || img.Config != digest(p.config) {
			t.Errorf("%s: %+v, %v", name, img, err)
		}
	}
}

// FuzzReadArchive: no more is stored than the archive may hold, and what is
// returned is in the store under its own digest, and can be saved and read again.
func FuzzReadArchive(f *testing.F) {
	p := newParts(f)
	f.Add(pack(f, blobEntry(p.layer), blobEntry(p.config), blobEntry(p.manifest), p.index(f)))
	f.Add(pack(f, entry{name: "manifest.json", body: []byte(`[{"Config":"c","Layers":["l"]}]`)}, entry{name: "c", body: p.config}, entry{name: "l", body: p.layer}))
	f.Add(gz(f, pack(f, p.index(f))))
	lim := image.DefaultLimits
	lim.Archive, lim.Entries, lim.JSON = 64<<10, 16, 4096
	f.Fuzz(func(t *testing.T, b []byte) {
		store := &memory{}
		img, err := image.ReadArchive(t.Context(), bytes.NewReader(b), "amd64", lim, store)
		if store.bytes > lim.Archive || len(store.blobs) > lim.Entries {
			t.Errorf("%d bytes in %d blobs stored", store.bytes, len(store.blobs))
		}
		if err != nil {
			return
		}
		if digest(img.Manifest) != img.ManifestDigest {
			t.Errorf("manifest is not %s", img.ManifestDigest)
		}
		for _, l := range img.Layers {
			if body, ok := store.blobs[l.Digest]; !ok || int64(len(body)) != l.Size {
				t.Errorf("layer %+v is not in the store", l)
			}
		}
		again(t, img, store)
	})
}
