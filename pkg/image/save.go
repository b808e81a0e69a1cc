package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// PackagesAnnotation is where a manifest lists the packages of its image, one
// "name version" a line. It is what the image says of itself.
const PackagesAnnotation = "io.creel.packages"

const (
	maxPackages = 20_000
	maxPackage  = 256 // bytes of a name and its version
)

// Kept is an image that is in a store. Layers has no diff ids, and Name may
// be empty.
type Kept struct {
	Image
	// Packages are what its manifest lists, or nil.
	Packages []string
}

// ReadManifest reads the manifest of an image that [ReadArchive] put in a
// store. typ is its media type.
func ReadManifest(raw []byte, typ string, lim Limits) (*Kept, error) {
	if int64(len(raw)) > lim.JSON {
		return nil, refuse("the manifest has %d bytes; at most %d", len(raw), lim.JSON)
	}
	var m manifest
	if err := decode(raw, &m, "manifest"); err != nil {
		return nil, err
	}
	k := &Kept{Image: Image{
		Manifest: raw, ManifestType: typ, ManifestDigest: digestOf(raw),
		Config: m.Config.Digest, ConfigType: m.Config.MediaType, ConfigSize: m.Config.Size,
	}}
	if len(m.Layers) > lim.Layers {
		return nil, refuse("%d layers; at most %d", len(m.Layers), lim.Layers)
	}
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		if !isDigest(d.Digest) || d.Size < 0 {
			return nil, refuse("blob %q of %d bytes", d.Digest, d.Size)
		}
	}
	for _, l := range m.Layers {
		k.Layers = append(k.Layers, Layer{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType})
	}
	k.Packages = packages(m.Annotations[PackagesAnnotation])
	return k, nil
}

// packages is the list of an annotation, nil if it is not one.
func packages(text string) (list []string) {
	for line := range strings.Lines(text) {
		name := strings.TrimSuffix(line, "\n")
		if name == "" || len(name) > maxPackage || len(list) == maxPackages {
			return nil
		}
		list = append(list, name)
	}
	return list
}

// WriteArchive writes an image of a store as an OCI archive. Reading that
// again gives the same image, and the same image gives the same bytes.
func WriteArchive(ctx context.Context, w io.Writer, k *Kept, store Store) error {
	d := descriptor{MediaType: k.ManifestType, Digest: k.ManifestDigest, Size: int64(len(k.Manifest))}
	if k.Name != "" {
		d.Annotations = map[string]string{"io.containerd.image.name": k.Name}
	}
	idx, err := json.Marshal(struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		index
	}{2, typeIndex, index{[]descriptor{d}}})
	if err != nil {
		return err
	}
	out := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) error {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.Copy(out, until(ctx, r))
		return err
	}
	for _, f := range []struct{ name, text string }{
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`},
		{"index.json", string(idx)},
		{blobName(k.ManifestDigest), string(k.Manifest)},
	} {
		if err := put(f.name, int64(len(f.text)), strings.NewReader(f.text)); err != nil {
			return err
		}
	}
	done := map[string]bool{k.ManifestDigest: true}
	for _, b := range append([]Layer{{Digest: k.Config, Size: k.ConfigSize}}, k.Layers...) {
		if done[b.Digest] {
			continue
		}
		done[b.Digest] = true
		r, err := store.Open(ctx, b.Digest)
		if err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
		err = put(blobName(b.Digest), b.Size, r)
		r.Close()
		if err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return out.Close()
}

func blobName(digest string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:")
}
