package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

// Media types that are understood. Others, such as encrypted or foreign
// layers, are refused.
const (
	typeIndex      = "application/vnd.oci.image.index.v1+json"
	typeList       = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeManifest   = "application/vnd.oci.image.manifest.v1+json"
	typeManifest2  = "application/vnd.docker.distribution.manifest.v2+json"
	typeConfig     = "application/vnd.oci.image.config.v1+json"
	typeConfig2    = "application/vnd.docker.container.image.v1+json"
	typeLayer      = "application/vnd.oci.image.layer.v1.tar"
	typeLayer2     = "application/vnd.docker.image.rootfs.diff.tar"
	maxIndexDepth  = 4
	maxDescriptors = 64
)

// descriptor is the part of an OCI descriptor that is used.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type index struct {
	Manifests []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type config struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	RootFS       struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// oci finds the image by index.json.
func (a *archive) oci(ctx context.Context, arch string) (*Image, error) {
	var found []descriptor
	if err := a.manifests(ctx, a.small["index.json"], "", arch, 0, &found); err != nil {
		return nil, err
	}
	one := map[string]descriptor{}
	for _, d := range found {
		if old, ok := one[d.Digest]; !ok || name(old) == "" {
			one[d.Digest] = d
		}
	}
	if len(one) == 0 {
		return nil, refuse("no image for linux/%s is in the archive", arch)
	}
	if len(one) > 1 {
		return nil, refuse("%d images for linux/%s are in the archive; export one", len(one), arch)
	}
	d := one[found[0].Digest]
	raw, err := a.json(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := decode(raw, &m, "manifest"); err != nil {
		return nil, err
	}
	if m.MediaType != "" && m.MediaType != d.MediaType {
		return nil, refuse("the manifest says it is %q, the index %q", m.MediaType, d.MediaType)
	}
	img := &Image{Name: name(d), Manifest: raw, ManifestType: d.MediaType, ManifestDigest: d.Digest}
	return img, a.fill(ctx, img, m, arch)
}

// manifests collects the manifests for arch out of an index and the indexes
// that it names. outer is the name that the index itself was given.
func (a *archive) manifests(ctx context.Context, raw []byte, outer, arch string, depth int, out *[]descriptor) error {
	if depth == maxIndexDepth {
		return refuse("indexes nested deeper than %d", maxIndexDepth)
	}
	var idx index
	if err := decode(raw, &idx, "index"); err != nil {
		return err
	}
	if len(idx.Manifests)+len(*out) > maxDescriptors {
		return refuse("an index of more than %d manifests", maxDescriptors)
	}
	for _, d := range idx.Manifests {
		if name(d) == "" && outer != "" {
			d.Annotations = map[string]string{"io.containerd.image.name": outer}
		}
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != arch) {
			continue
		}
		switch d.MediaType {
		case typeManifest, typeManifest2:
			*out = append(*out, d)
		case typeIndex, typeList:
			inner, err := a.json(ctx, d.Digest)
			if err != nil {
				return err
			}
			if err := a.manifests(ctx, inner, name(d), arch, depth+1, out); err != nil {
				return err
			}
		default:
			return refuse("media type %q in the index", d.MediaType)
		}
	}
	return nil
}

// name is what an index calls an image.
func name(d descriptor) string {
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		return n
	}
	return d.Annotations["org.opencontainers.image.ref.name"]
}

// docker finds the image by the manifest.json of "docker save", and makes the
// manifest that such an archive has not.
func (a *archive) docker(ctx context.Context, arch string) (*Image, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := decode(a.small["manifest.json"], &list, "manifest.json"); err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, refuse("%d images are in the archive; save one", len(list))
	}
	if len(list[0].Layers) > a.lim.Layers {
		return nil, refuse("%d layers; at most %d", len(list[0].Layers), a.lim.Layers)
	}
	cfg, err := a.find(list[0].Config)
	if err != nil {
		return nil, err
	}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest2, Config: descriptor{MediaType: typeConfig2, Digest: cfg.digest, Size: cfg.size}}
	for _, l := range list[0].Layers {
		b, err := a.find(l)
		if err != nil {
			return nil, err
		}
		// Plain or compressed: who unpacks looks at the bytes.
		m.Layers = append(m.Layers, descriptor{MediaType: typeLayer2, Digest: b.digest, Size: b.size})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	img := &Image{Manifest: raw, ManifestType: m.MediaType, ManifestDigest: digestOf(raw)}
	if len(list[0].RepoTags) > 0 {
		img.Name = list[0].RepoTags[0]
	}
	return img, a.fill(ctx, img, m, arch)
}

// fill checks a manifest against its configuration and what was put.
func (a *archive) fill(ctx context.Context, img *Image, m manifest, arch string) error {
	if len(m.Layers) == 0 || len(m.Layers) > a.lim.Layers {
		return refuse("%d layers; want 1 to %d", len(m.Layers), a.lim.Layers)
	}
	if m.Config.MediaType != typeConfig && m.Config.MediaType != typeConfig2 {
		return refuse("configuration of media type %q; is it an image?", m.Config.MediaType)
	}
	raw, err := a.json(ctx, m.Config.Digest)
	if err != nil {
		return err
	}
	var c config
	if err := decode(raw, &c, "configuration"); err != nil {
		return err
	}
	if c.OS != "linux" || c.Architecture != arch {
		return refuse("the image is for %q/%q; want linux/%s", c.OS, c.Architecture, arch)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return refuse("%d layers but %d diff ids", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	img.Config, img.ConfigType, img.ConfigSize = m.Config.Digest, m.Config.MediaType, int64(len(raw))
	if m.Config.Size != img.ConfigSize {
		return refuse("the configuration has %d bytes, the manifest says %d", img.ConfigSize, m.Config.Size)
	}
	for i, l := range m.Layers {
		size, ok := a.known[l.Digest]
		if !ok {
			return refuse("layer %s is not in the archive", l.Digest)
		}
		if size != l.Size {
			return refuse("layer %s has %d bytes, the manifest says %d", l.Digest, size, l.Size)
		}
		if !layerType(l.MediaType) {
			return refuse("layer of media type %q", l.MediaType)
		}
		if !isDigest(c.RootFS.DiffIDs[i]) {
			return refuse("diff id %q", c.RootFS.DiffIDs[i])
		}
		img.Layers = append(img.Layers, Layer{Digest: l.Digest, DiffID: c.RootFS.DiffIDs[i], Size: size, MediaType: l.MediaType})
	}
	return nil
}

// layerType reports whether a media type is a plain, gzip or zstd layer.
func layerType(t string) bool {
	switch t {
	case typeLayer, typeLayer + "+gzip", typeLayer + "+zstd",
		typeLayer2, typeLayer2 + ".gzip", typeLayer2 + ".zstd":
		return true
	}
	return false
}

func isDigest(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*sha256.Size || strings.ToLower(h) != h {
		return false
	}
	_, err := hex.DecodeString(h)
	return err == nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func decode(b []byte, v any, what string) error {
	if err := json.Unmarshal(b, v); err != nil {
		return refuse("%s: %v", what, err)
	}
	return nil
}
