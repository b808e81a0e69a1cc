package imagebuild

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// The names of the OCI image specification 1.1 that an archive needs.
const (
	layoutVersion  = "1.0.0"
	typeIndex      = "application/vnd.oci.image.index.v1+json"
	typeManifest   = "application/vnd.oci.image.manifest.v1+json"
	typeConfig     = "application/vnd.oci.image.config.v1+json"
	typeLayer      = "application/vnd.oci.image.layer.v1.tar"
	nameAnnotation = "org.opencontainers.image.ref.name"
	// fullNameAnnotation is where containerd looks for an image's full name.
	fullNameAnnotation = "io.containerd.image.name"
	// packagesAnnotation is where "creel image inspect" looks for the packages,
	// one "name version" a line. They are in the image as well.
	packagesAnnotation = "io.creel.packages"
)

// The documents, with the fields that are used. The specification's own Go
// types are not: they compile regular expressions when the program starts,
// and every exec would wait for that.
type (
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Platform    *platform         `json:"platform,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	imageIndex struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	imageManifest struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Annotations   map[string]string `json:"annotations"`
	}
	imageConfig struct {
		Created time.Time `json:"created"`
		platform
		Config  struct{}  `json:"config"`
		RootFS  rootFS    `json:"rootfs"`
		History []history `json:"history"`
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	history struct {
		Created   time.Time `json:"created"`
		CreatedBy string    `json:"created_by"`
	}
)

// builder turns a finished system into an archive.
type builder struct {
	opts    Options
	raw     *os.File
	started time.Time
}

// archive writes the OCI archive. The layer is made twice, once for its digest
// and once for its bytes: that costs a second and no second temporary file.
// It is not compressed, because the archive does not travel: an import then
// reads it at the disk's speed.
func (b *builder) archive(ctx context.Context, w io.Writer) (*Result, error) {
	epoch := b.opts.Epoch
	if epoch.IsZero() {
		var err error
		if epoch, err = b.newestPackaged(); err != nil {
			return nil, err
		}
	}
	sum := sha256.New()
	n := &counter{w: sum}
	packages, dropped, err := b.layer(ctx, n, epoch)
	if err != nil {
		return nil, err
	}
	layer := descriptor{MediaType: typeLayer, Digest: digestPrefix + hex.EncodeToString(sum.Sum(nil)), Size: n.n}
	config, manifest, index, err := b.documents(layer, epoch, packages)
	if err != nil {
		return nil, err
	}
	b.opts.Progress(fmt.Sprintf("writing the image, %d MiB", layer.Size>>20))
	a := &archiver{tw: tar.NewWriter(w), epoch: epoch}
	a.dir("blobs/")
	a.dir("blobs/sha256/")
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"`+layoutVersion+`"}`))
	a.file("index.json", index)
	a.blob(config)
	a.blob(manifest)
	a.stream(blobName(layer.Digest), layer.Size, func(w io.Writer) error {
		_, _, err := b.layer(ctx, w, epoch)
		return err
	})
	if err := a.close(); err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	return &Result{
		Ref: b.opts.Ref, Digest: digestOf(manifest), Size: layer.Size,
		Packages: packages, Dropped: dropped,
	}, nil
}

const digestPrefix = "sha256:"

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}

func blobName(digest string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest, digestPrefix)
}

func (b *builder) layer(ctx context.Context, w io.Writer, epoch time.Time) ([]string, Dropped, error) {
	if _, err := b.raw.Seek(0, io.SeekStart); err != nil {
		return nil, Dropped{}, fmt.Errorf("read the system: %w", err)
	}
	buf := bufio.NewWriterSize(w, 256<<10)
	packages, dropped, err := rewrite(ctx, bufio.NewReaderSize(b.raw, 256<<10), buf, epoch, recipes[b.opts.Recipe].files)
	if err != nil {
		return nil, Dropped{}, err
	}
	return packages, dropped, buf.Flush()
}

// newestPackaged is the newest time of a file that came out of a package: one
// that is older than this build. Byte-compiled Python remembers its source's
// time, so a clamp below that would have every import compile again.
func (b *builder) newestPackaged() (time.Time, error) {
	if _, err := b.raw.Seek(0, io.SeekStart); err != nil {
		return time.Time{}, fmt.Errorf("read the system: %w", err)
	}
	newest := time.Unix(0, 0)
	for tr := tar.NewReader(bufio.NewReader(b.raw)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return newest.Truncate(time.Second), nil
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("read the system: %w", err)
		}
		// A second's margin: the archive's times may be whole seconds.
		if h.ModTime.Before(b.started.Add(-time.Second)) && h.ModTime.After(newest) {
			newest = h.ModTime
		}
	}
}

// documents are the image's JSON. The configuration names no user, no
// entrypoint and no environment: creel uses none of an image's.
func (b *builder) documents(layer descriptor, epoch time.Time, packages []string) (config, manifest, index []byte, err error) {
	created := epoch.UTC()
	here := platform{Architecture: b.opts.Arch, OS: "linux"}
	config, err = json.Marshal(imageConfig{
		Created: created, platform: here,
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{layer.Digest}},
		History: []history{{Created: created, CreatedBy: "creel image build " + b.opts.Recipe + ", Debian " + b.opts.Suite}},
	})
	if err != nil {
		return nil, nil, nil, err
	}
	manifest, err = json.Marshal(imageManifest{
		SchemaVersion: 2, MediaType: typeManifest,
		Config:      descriptor{MediaType: typeConfig, Digest: digestOf(config), Size: int64(len(config))},
		Layers:      []descriptor{layer},
		Annotations: map[string]string{packagesAnnotation: strings.Join(packages, "\n")},
	})
	if err != nil {
		return nil, nil, nil, err
	}
	index, err = json.Marshal(imageIndex{
		SchemaVersion: 2, MediaType: typeIndex,
		Manifests: []descriptor{{
			MediaType: typeManifest, Digest: digestOf(manifest), Size: int64(len(manifest)), Platform: &here,
			Annotations: map[string]string{nameAnnotation: b.opts.Ref, fullNameAnnotation: b.opts.Ref},
		}},
	})
	return config, manifest, index, err
}

// archiver writes the outer tar; after an error it does nothing.
type archiver struct {
	tw    *tar.Writer
	epoch time.Time
	err   error
}

func (a *archiver) header(h tar.Header) bool {
	if a.err == nil {
		h.ModTime = a.epoch
		a.err = a.tw.WriteHeader(&h)
	}
	return a.err == nil
}

func (a *archiver) dir(name string) {
	a.header(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755})
}

func (a *archiver) file(name string, b []byte) {
	a.stream(name, int64(len(b)), func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

func (a *archiver) blob(b []byte) { a.file(blobName(digestOf(b)), b) }

func (a *archiver) stream(name string, size int64, write func(io.Writer) error) {
	if a.header(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}) {
		a.err = write(a.tw)
	}
}

func (a *archiver) close() error {
	if a.err != nil {
		return a.err
	}
	return a.tw.Close()
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
