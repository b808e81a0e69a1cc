// Package imagepull reads an image of a registry, as an OCI archive that an
// import can read.
//
// It runs in the client as the calling user, with that user's credentials and
// network; the daemon never pulls. A registry, and what it names, is hostile:
// metadata is bounded and checked before a layer is asked for, every byte is
// counted and every digest verified on the way, plain HTTP is only spoken with
// this machine itself, and what the archive holds is checked once more by who
// imports it.
package imagepull

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Options say what to pull.
type Options struct {
	// Ref is a name with a tag or a digest, read as docker reads it: without a
	// registry it is Docker Hub's, without either its tag is "latest".
	Ref string
	// Arch is the processor as Go names it (runtime.GOARCH).
	Arch string
	// AuthFile has the credentials, in the form of containers-auth.json(5) or
	// of Docker's config.json. When empty they are looked for where podman and
	// docker have them; see Credentials.
	AuthFile string
	// SkipTLSVerify takes any certificate, and plain HTTP.
	SkipTLSVerify bool
}

// Image is what a registry has under a reference, for one processor. Its
// metadata has been read and checked, its layers have not been asked for.
type Image struct {
	Ref    string // in full
	Digest string // of the manifest
	Size   int64  // bytes of what Archive writes, but for tar's own

	manifest  []byte
	mediaType string
	config    v1.Descriptor
	configRaw []byte
	layers    []v1.Descriptor // each once
	img       v1.Image
	net       *roundTripper
	cancel    context.CancelCauseFunc
	explain   func(error) error
}

// target is a parsed reference.
type target struct {
	full     string // normalised, for the daemon and for people
	registry string // host and port, "docker.io" for Docker Hub
	path     string // of the repository
	ref      name.Reference
}

// maxRef is more than any registry takes.
const maxRef = 1024

// parse reads a reference by the rules of who imports it. Those of the
// registry's library differ ("localhost/x" is Docker Hub's there), and two
// readings of one name would be two images.
func parse(o Options) (*target, error) {
	bad := func(want string) error {
		return &api.Error{Code: api.CodeInvalid, Message: "image reference", Problems: []api.Problem{{Field: "ref", Value: o.Ref, Want: want}}}
	}
	if len(o.Ref) > maxRef {
		return nil, api.Errorf(api.CodeInvalid, "an image reference of %d bytes; at most %d", len(o.Ref), maxRef)
	}
	if strings.HasPrefix(o.Ref, "sha256:") {
		return nil, bad("the registry and the name that has this digest: HOST/NAME@" + o.Ref)
	}
	n, err := reference.ParseNormalizedNamed(o.Ref)
	if err != nil {
		return nil, bad("a name such as debian:12, HOST/NAME:TAG or HOST/NAME@sha256:… (" + err.Error() + ")")
	}
	n = reference.TagNameOnly(n)
	t := &target{full: n.String(), registry: reference.Domain(n), path: reference.Path(n)}
	var opts []name.Option
	if o.SkipTLSVerify || isLoopback(hostOf(t.registry)) {
		opts = append(opts, name.Insecure) // else the library does not try HTTP
	}
	reg, err := name.NewRegistry(t.registry, opts...)
	if err != nil {
		return nil, bad("a registry's name (" + err.Error() + ")")
	}
	repo := reg.Repo(t.path)
	switch n := n.(type) {
	case reference.Canonical: // also with a tag, which says nothing then
		if n.Digest().Algorithm() != "sha256" {
			return nil, bad("a SHA-256 digest")
		}
		t.ref = repo.Digest(n.Digest().String())
	case reference.Tagged:
		t.ref = repo.Tag(n.Tag())
	}
	return t, nil
}

// Open asks the registry for a reference, and gives the image of it that is
// for o.Arch. The caller closes it. ctx holds for all that is read of it.
func Open(ctx context.Context, o Options) (_ *Image, err error) {
	t, err := parse(o)
	if err != nil {
		return nil, err
	}
	cred, err := Credentials(ctx, t.registry, t.path, o.AuthFile)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if err != nil {
			cancel(nil)
		}
	}()
	rt := newTransport(t.registry, o.SkipTLSVerify)
	puller, err := remote.NewPuller(remote.WithTransport(rt), remote.WithAuth(cred.auth()), remote.WithUserAgent("creel/"+api.BuildVersion), remote.WithJobs(1))
	if err != nil {
		return nil, err
	}
	explain := func(err error) error { return failed(context.Cause(ctx), err, t, cred) }
	desc, err := resolve(ctx, puller, t.ref, o.Arch)
	if err != nil {
		return nil, explain(err)
	}
	i := &Image{
		Ref: t.full, Digest: desc.Digest.String(), manifest: desc.Manifest, mediaType: string(desc.MediaType),
		net: rt, cancel: cancel, explain: explain,
	}
	if err := i.check(); err != nil {
		return nil, explain(err)
	}
	if i.img, err = desc.Image(); err != nil {
		return nil, explain(err)
	}
	if i.configRaw, err = i.img.RawConfigFile(); err != nil {
		return nil, explain(err)
	}
	if err := checkPlatform(i.configRaw, o.Arch); err != nil {
		return nil, explain(err)
	}
	return i, nil
}

// Close ends what is still being read.
func (i *Image) Close() { i.cancel(nil) }

// Archive writes the image as an OCI archive. Layers are read one after the
// other and pass through: the archive is written as they come, and nothing of
// it is kept here. So a pull fills no disk of the caller's and has no
// directory that somebody else could get at, at the price of one layer at a
// time. What turns out wrong at the end of a layer is an error then, and the
// archive has no end; an import keeps nothing of such an archive.
func (i *Image) Archive(ctx context.Context, w io.Writer) error {
	stop := context.AfterFunc(ctx, func() { i.cancel(context.Cause(ctx)) })
	defer stop()
	out := tar.NewWriter(w)
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
		"manifests": []map[string]any{{"mediaType": i.mediaType, "digest": i.Digest, "size": len(i.manifest)}},
	})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
	}{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", index},
		{blobName(i.Digest), i.manifest},
		{blobName(i.config.Digest.String()), i.configRaw},
	} {
		if err := header(out, f.name, int64(len(f.text))); err != nil {
			return err
		}
		if _, err := out.Write(f.text); err != nil {
			return err
		}
	}
	for n, l := range i.layers {
		read, write := i.layer(out, l)
		if read != nil {
			return i.explain(fmt.Errorf("layer %d of %d: %w", n+1, len(i.layers), read))
		}
		if write != nil {
			return write
		}
	}
	return out.Close()
}

// layer copies one layer. The library reads no more of it than its size, and
// ends with an error if the size or the digest is another. Reading it and
// writing it fail each for reasons of their own.
func (i *Image) layer(out *tar.Writer, d v1.Descriptor) (read, write error) {
	i.net.most.Store(max(d.Size, maxJSON)) // an answer that redirects has a body, too
	l, err := i.img.LayerByDigest(d.Digest)
	if err != nil {
		return err, nil
	}
	r, err := l.Compressed()
	if err != nil {
		return err, nil
	}
	defer func() { _ = r.Close() }()
	if err := header(out, blobName(d.Digest.String()), d.Size); err != nil {
		return nil, err
	}
	in := &source{r: r}
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, in, make([]byte, 256<<10))
	if in.err != nil {
		return in.err, nil
	}
	return nil, err
}

// source remembers a failure to read, to tell it from one to write.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func header(out *tar.Writer, name string, size int64) error {
	return out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
}

func blobName(digest string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:")
}
