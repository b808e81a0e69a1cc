package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"
)

// oneshotStage has curl run a command in one request, and ask for the version:
// the program's start, the way and an answer, without a command.
func (b *bench) oneshotStage(ctx context.Context) error {
	res, _, err := b.spawn(ctx)
	if err != nil {
		return err
	}
	path := "/v1/sandboxes/" + res.Sandbox.ID + "/exec"
	var took, base []float64
	for i := range warm + b.n {
		if err := sleep(ctx, lull); err != nil {
			return err
		}
		d, err := b.curl(ctx, path, "-H", "Content-Type: application/json", "-d", `{"command":["/bin/true"]}`)
		if err != nil {
			return err
		}
		if err := sleep(ctx, lull); err != nil {
			return err
		}
		plain, err := b.curl(ctx, "/v1/version")
		if err != nil {
			return err
		}
		if i >= warm {
			took, base = append(took, ms(d)), append(base, ms(plain))
		}
	}
	b.report.add("exec_oneshot", "ms", took, "curl /v1/version: curl's start and an answer", base, target{})
	return b.removeAll(ctx)
}

// curl makes one request; an answer that is an error is one here.
func (b *bench) curl(ctx context.Context, path string, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, "curl", append([]string{"-sS", "--fail-with-body", "--unix-socket", b.socket, "http://creel" + path}, args...)...)
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("curl %s: %w: %s", path, err, out)
	}
	return time.Since(began), nil
}

// importStage imports the image with the command line, and has tar unpack the
// same layers out of the same archive onto the same disk, in turn. Neither
// finds anything of the time before; both find the archive in memory.
func (b *bench) importStage(ctx context.Context) error {
	layers, err := b.layers(ctx)
	if err != nil {
		return err
	}
	var took, base []float64
	for i := range 1 + b.rounds { // the first reads the archive into memory
		if err := b.forget(ctx); err != nil {
			return err
		}
		unix.Sync()
		d, err := b.creel(ctx, "image", "import", "--ref", imageName, b.image)
		if err != nil {
			return err
		}
		unix.Sync()
		plain, err := b.untar(ctx, layers)
		if err != nil {
			return err
		}
		if i > 0 {
			took, base = append(took, ms(d)), append(base, ms(plain))
		}
	}
	b.report.add("import", "ms", took, "tar -xO of the archive into tar -x, same disk", base, target{})
	return nil
}

// layers are the names of the image's layers in its archive.
func (b *bench) layers(ctx context.Context) (names []string, err error) {
	m, err := images.Manifest(ctx, b.bare.cd.ContentStore(), b.bare.image.Target(), platforms.All)
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		names = append(names, "blobs/"+l.Digest.Algorithm().String()+"/"+l.Digest.Encoded())
	}
	return names, nil
}

// forget removes the image, and waits until containerd has nothing of it.
func (b *bench) forget(ctx context.Context) error {
	diffs, err := b.bare.image.RootFS(ctx)
	if err != nil {
		return err
	}
	if err := b.RemoveImage(ctx, imageName); err != nil {
		return err
	}
	return eventually(ctx, "the image's end", time.Minute, func() error {
		if _, err := b.bare.cd.ContentStore().Info(ctx, b.bare.image.Target().Digest); !errdefs.IsNotFound(err) {
			return fmt.Errorf("its manifest is there, %w", err)
		}
		if _, err := b.bare.cd.SnapshotService("overlayfs").Stat(ctx, identity.ChainID(diffs).String()); !errdefs.IsNotFound(err) {
			return fmt.Errorf("its snapshot is there, %w", err)
		}
		return nil
	})
}

// untar unpacks the layers of the archive into a directory, which it removes.
func (b *bench) untar(ctx context.Context, layers []string) (_ time.Duration, err error) {
	dir, err := os.MkdirTemp(b.state, "untar-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	for _, layer := range layers {
		if err := b.untarLayer(ctx, layer, dir); err != nil {
			return 0, fmt.Errorf("%s of %s: %w", layer, filepath.Base(b.image), err)
		}
	}
	return time.Since(began), nil
}

func (b *bench) untarLayer(ctx context.Context, layer, dir string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	read := exec.CommandContext(ctx, "tar", "-xOf", b.image, layer)
	read.Stdout, read.Stderr = w, os.Stderr
	unpack := exec.CommandContext(ctx, "tar", "-x", "--numeric-owner", "-C", dir)
	unpack.Stdin, unpack.Stderr = r, os.Stderr
	err = read.Start()
	if err == nil {
		if err = unpack.Start(); err != nil {
			_ = read.Process.Kill()
		}
	}
	closeAll(r, w) // the programs have them
	if read.Process != nil {
		err = errors.Join(err, read.Wait())
	}
	if unpack.Process != nil {
		err = errors.Join(err, unpack.Wait())
	}
	return err
}

func closeAll(list ...io.Closer) {
	for _, c := range list {
		_ = c.Close()
	}
}
