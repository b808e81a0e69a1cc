// Package image reads container images whose every byte is hostile.
//
// [ReadArchive] takes an OCI or docker archive apart as it streams by, into a
// [Store] of blobs, and says which image is in it. [Tree] then looks at the
// layers, in order, before anybody unpacks them, and refuses what an unpacker
// or a runtime could be led astray with: device nodes, names that climb out,
// entries below a symbolic link, attributes that steer overlayfs, sizes and
// numbers beyond [Limits]. [Tree.Check] says whether the places a runtime
// mounts on are real directories in the merged result.
//
// Of an image's metadata nothing leaves this package but its layers and, for
// display, its name: no user, label, entry point, volume or environment.
package image

import (
	"errors"
	"fmt"
)

// ErrRefused is wrapped by every error that is the image's fault. Others are
// the store's or the reader's.
var ErrRefused = errors.New("image refused")

// refuse makes an error that is the image's fault.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}

// Limits bound what reading and unpacking an image may take.
type Limits struct {
	Archive int64 // bytes of the archive
	Entries int   // files in the archive
	JSON    int64 // bytes of a manifest, index or configuration
	Layers  int   // layers of the image; overlayfs takes a few hundred
	Bytes   int64 // unpacked bytes, all layers together
	Files   int   // entries of all layers together
	Path    int   // bytes of a path
	Ratio   int64 // unpacked to packed bytes, where it is more than RatioFrom
	// RatioFrom is how many bytes a layer may unpack to at any ratio.
	RatioFrom int64
}

// DefaultLimits are generous for images of people and small for bombs.
var DefaultLimits = Limits{
	Archive:   16 << 30,
	Entries:   4096,
	JSON:      4 << 20,
	Layers:    127,
	Bytes:     16 << 30,
	Files:     2_000_000,
	Path:      4096,
	Ratio:     250,
	RatioFrom: 64 << 20,
}

// Layer is one layer of an image.
type Layer struct {
	Digest    string // of the blob in the store
	DiffID    string // of the unpacked tar
	Size      int64  // of the blob
	MediaType string
}

// Image is what an archive holds.
type Image struct {
	// Name is what the archive calls the image; it may be empty.
	Name string
	// Manifest is the manifest's bytes, made here for a docker archive, and
	// ManifestType and ManifestDigest name them.
	Manifest       []byte
	ManifestType   string
	ManifestDigest string
	// Config is the digest of the configuration in the store.
	Config     string
	ConfigType string
	ConfigSize int64
	Layers     []Layer // the lowest first
}
