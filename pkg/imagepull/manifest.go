package imagepull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Bounds of an image. An import has the same.
const (
	maxJSON        = 4 << 20 // bytes of a manifest, index or configuration
	maxLayers      = 127
	maxBytes       = 16 << 30 // of the archive
	maxIndexDepth  = 4
	maxDescriptors = 64
)

// errRefused is wrapped by every error that is the image's fault.
var errRefused = errors.New("image refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errRefused}, args...)...)
}

// resolve gives the manifest of a reference that is for a processor, by way
// of the indexes that it is in. A manifest that is asked for by digest has it.
func resolve(ctx context.Context, p *remote.Puller, ref name.Reference, arch string) (*remote.Descriptor, error) {
	for range maxIndexDepth {
		desc, err := p.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		if !desc.MediaType.IsIndex() {
			return desc, nil
		}
		child, err := choose(desc.Manifest, arch)
		if err != nil {
			return nil, err
		}
		ref = ref.Context().Digest(child.String())
	}
	return nil, refuse("indexes nested deeper than %d", maxIndexDepth)
}

// choose gives the first manifest of an index for linux on a processor.
// Signatures and the like, which are in there too, are for "unknown".
func choose(raw []byte, arch string) (v1.Hash, error) {
	idx, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return v1.Hash{}, refuse("index: %v", err)
	}
	if len(idx.Manifests) > maxDescriptors {
		return v1.Hash{}, refuse("an index of more than %d manifests", maxDescriptors)
	}
	for _, d := range idx.Manifests {
		if p := d.Platform; p == nil || p.OS == "linux" && p.Architecture == arch {
			return d.Digest, sha256Only(d.Digest)
		}
	}
	return v1.Hash{}, refuse("it is not for linux/%s", arch)
}

// check reads the manifest, before anything that it names is asked for.
func (i *Image) check() error {
	m, err := v1.ParseManifest(bytes.NewReader(i.manifest))
	if err != nil {
		return refuse("manifest: %v", err)
	}
	if m.MediaType != "" {
		i.mediaType = string(m.MediaType) // what is signed, not what a header says
	}
	if !types.MediaType(i.mediaType).IsImage() {
		return refuse("manifest of media type %q; is it an image?", i.mediaType)
	}
	if !m.Config.MediaType.IsConfig() {
		return refuse("configuration of media type %q; is it an image?", m.Config.MediaType)
	}
	if m.Config.Size < 0 || m.Config.Size > maxJSON {
		return refuse("a configuration of %d bytes; at most %d", m.Config.Size, maxJSON)
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return refuse("%d layers; want 1 to %d", len(m.Layers), maxLayers)
	}
	i.config = m.Config
	i.Size = int64(len(i.manifest)) + m.Config.Size
	seen := map[v1.Hash]int64{m.Config.Digest: m.Config.Size}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := errors.Join(sha256Only(d.Digest), noURLs(d)); err != nil {
			return err
		}
	}
	for _, l := range m.Layers {
		size, again := seen[l.Digest]
		switch {
		case !slices.Contains(layerTypes, l.MediaType):
			return refuse("layer of media type %q", l.MediaType)
		case again && size != l.Size:
			return refuse("blob %s has two sizes", l.Digest)
		case again:
			continue
		case l.Size < 0 || l.Size > maxBytes-i.Size:
			return refuse("its layers have more than %d bytes", int64(maxBytes))
		}
		seen[l.Digest] = l.Size
		i.Size += l.Size
		i.layers = append(i.layers, l)
	}
	return nil
}

// noURLs: a blob comes from the registry that was named and from where that
// one redirects to, and not from where a manifest points (CVE-2020-15157).
func noURLs(d v1.Descriptor) error {
	if len(d.URLs) > 0 {
		return refuse("blob %s is to be fetched from elsewhere (%q)", d.Digest, d.URLs[0])
	}
	return nil
}

func sha256Only(h v1.Hash) error {
	if h.Algorithm != "sha256" {
		return refuse("digest %q; want a SHA-256", h)
	}
	return nil
}

// layerTypes are plain, gzip and zstd layers. Others are foreign or encrypted.
var layerTypes = []types.MediaType{
	types.OCIUncompressedLayer, types.OCILayer, types.OCILayerZStd,
	types.DockerUncompressedLayer, types.DockerLayer, types.DockerUncompressedLayer + ".zstd",
}

// checkPlatform looks at the configuration before the layers are fetched for
// an import that would refuse them.
func checkPlatform(raw []byte, arch string) error {
	var c struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return refuse("configuration: %v", err)
	}
	if c.OS != "linux" || c.Architecture != arch {
		return refuse("it is for %q/%q; want linux/%s", c.OS, c.Architecture, arch)
	}
	return nil
}
