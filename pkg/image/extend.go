package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// Extend puts one more layer, a plain tar of size bytes, on top of an image
// that is in a store, and the configuration of the result. Of the old
// configuration only what an image must have is kept, and the list of packages
// is not: it is no longer what is in it. The result is as [ReadArchive] gives
// one: its layers are still to be looked at.
func Extend(ctx context.Context, k *Kept, store Store, layer io.Reader, size int64, lim Limits) (*Image, error) {
	c, err := configOf(ctx, k, store, lim)
	if err != nil {
		return nil, err
	}
	if len(c.RootFS.DiffIDs) != len(k.Layers) {
		return nil, refuse("the configuration has %d layers and the manifest %d", len(c.RootFS.DiffIDs), len(k.Layers))
	}
	if len(k.Layers) >= lim.Layers {
		return nil, refuse("%d layers, and at most %d with one more", len(k.Layers), lim.Layers)
	}
	added, err := store.Put(ctx, layer, size)
	if err != nil {
		return nil, err
	}
	img := &Image{ManifestType: typeManifest, ConfigType: typeConfig}
	for i, l := range k.Layers {
		img.Layers = append(img.Layers, Layer{Digest: l.Digest, DiffID: c.RootFS.DiffIDs[i], Size: l.Size, MediaType: ociType(l.MediaType)})
	}
	img.Layers = append(img.Layers, Layer{Digest: added, DiffID: added, Size: size, MediaType: typeLayer})
	c.RootFS.DiffIDs = append(slices.Clone(c.RootFS.DiffIDs), added)
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	img.ConfigSize = int64(len(text))
	if img.Config, err = store.Put(ctx, bytes.NewReader(text), img.ConfigSize); err != nil {
		return nil, err
	}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest, Config: descriptor{MediaType: typeConfig, Digest: img.Config, Size: img.ConfigSize}}
	for _, l := range img.Layers {
		m.Layers = append(m.Layers, descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size})
	}
	if img.Manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	img.ManifestDigest = digestOf(img.Manifest)
	return img, nil
}

// configOf reads an image's configuration.
func configOf(ctx context.Context, k *Kept, store Store, lim Limits) (*config, error) {
	if k.ConfigSize > lim.JSON {
		return nil, refuse("the configuration has %d bytes; at most %d", k.ConfigSize, lim.JSON)
	}
	r, err := store.Open(ctx, k.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, lim.JSON))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var c config
	return &c, decode(raw, &c, "configuration")
}

// ociType is the OCI name of a docker layer's media type: both name the same
// bytes.
func ociType(typ string) string {
	switch typ {
	case typeLayer2:
		return typeLayer
	case typeLayer2 + ".gzip":
		return typeLayer + "+gzip"
	case typeLayer2 + ".zstd":
		return typeLayer + "+zstd"
	}
	return typ
}
