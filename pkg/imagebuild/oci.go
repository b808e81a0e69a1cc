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
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// nameAnnotation is where containerd looks for an image's full name.
const nameAnnotation = "io.containerd.image.name"

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
	layer := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: digestOf(sum.Sum(nil)), Size: n.n}
	config, manifest, index, err := b.documents(layer, epoch)
	if err != nil {
		return nil, err
	}
	b.opts.Progress(fmt.Sprintf("writing the image, %d MiB", layer.Size>>20))
	a := &archiver{tw: tar.NewWriter(w), epoch: epoch}
	a.dir("blobs/")
	a.dir("blobs/sha256/")
	a.file(v1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+v1.ImageLayoutVersion+`"}`))
	a.file("index.json", index)
	a.blob(config)
	a.blob(manifest)
	a.stream("blobs/sha256/"+layer.Digest.Encoded(), layer.Size, func(w io.Writer) error {
		_, _, err := b.layer(ctx, w, epoch)
		return err
	})
	if err := a.close(); err != nil {
		return nil, fmt.Errorf("write image: %w", err)
	}
	return &Result{
		Ref: b.opts.Ref, Digest: digest.FromBytes(manifest).String(), Size: layer.Size,
		Packages: packages, Dropped: dropped,
	}, nil
}

func digestOf(sum []byte) digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum))
}

func (b *builder) layer(ctx context.Context, w io.Writer, epoch time.Time) ([]string, Dropped, error) {
	if _, err := b.raw.Seek(0, io.SeekStart); err != nil {
		return nil, Dropped{}, fmt.Errorf("read the system: %w", err)
	}
	buf := bufio.NewWriterSize(w, 256<<10)
	packages, dropped, err := rewrite(ctx, bufio.NewReaderSize(b.raw, 256<<10), buf, epoch)
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
func (b *builder) documents(layer v1.Descriptor, epoch time.Time) (config, manifest, index []byte, err error) {
	created := epoch.UTC()
	config, err = json.Marshal(v1.Image{
		Created:  &created,
		Platform: v1.Platform{Architecture: b.opts.Arch, OS: "linux"},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
		History:  []v1.History{{Created: &created, CreatedBy: "creel image build base, Debian " + b.opts.Suite}},
	})
	if err != nil {
		return nil, nil, nil, err
	}
	manifest, err = json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []v1.Descriptor{layer},
	})
	if err != nil {
		return nil, nil, nil, err
	}
	index, err = json.Marshal(v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest)),
			Platform:    &v1.Platform{Architecture: b.opts.Arch, OS: "linux"},
			Annotations: map[string]string{nameAnnotation: b.opts.Ref, v1.AnnotationRefName: b.opts.Ref},
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

func (a *archiver) blob(b []byte) { a.file("blobs/sha256/"+digest.FromBytes(b).Encoded(), b) }

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
