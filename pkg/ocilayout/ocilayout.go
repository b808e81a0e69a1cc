// Package ocilayout turns an OCI image layout, a directory, into an archive
// that an import can read.
//
// It runs in the client as the calling user, and says nothing about what is
// in the directory: whoever reads the archive checks it. What is read is only
// what lies beneath the directory and is a regular file, and no more of it
// than an import takes.
package ocilayout

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a layout. An import has the same.
const (
	maxBlobs = 4090
	maxBytes = 16 << 30
	maxIndex = 4 << 20
)

// Archive writes the layout as a tar: oci-layout, index.json and the SHA-256
// blobs by name, so that the same layout gives the same bytes.
func Archive(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	blobs, err := blobNames(root)
	if err != nil {
		return err
	}
	a := archiver{root: root, out: tar.NewWriter(w), left: maxBytes}
	for _, name := range []string{"oci-layout", "index.json"} {
		if err := a.add(ctx, name, maxIndex); err != nil {
			return err
		}
	}
	for _, name := range blobs {
		if err := a.add(ctx, name, maxBytes); err != nil {
			return err
		}
	}
	return a.out.Close()
}

func blobNames(root *os.Root) ([]string, error) {
	d, err := root.Open("blobs/sha256")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no OCI image layout: there is no blobs/sha256 in it", root.Name())
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(maxBlobs + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxBlobs {
		return nil, fmt.Errorf("%s: more than %d blobs", root.Name(), maxBlobs)
	}
	var out []string
	for _, n := range names {
		if isHex(n) { // others are half-written blobs of a copy that broke off
			out = append(out, "blobs/sha256/"+n)
		}
	}
	slices.Sort(out)
	return out, nil
}

func isHex(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

type archiver struct {
	root *os.Root
	out  *tar.Writer
	left int64
}

// add writes one file; one that changes its size meanwhile is an error.
func (a *archiver) add(ctx context.Context, name string, most int64) error {
	// A pipe or device must not hold the open up.
	f, err := a.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", name)
	}
	if a.left -= st.Size(); st.Size() > most || a.left < 0 {
		return fmt.Errorf("%s: too large: the file may have %d bytes, the layout %d", name, most, int64(maxBytes))
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: st.Size(), ModTime: time.Unix(0, 0)}
	if err := a.out.WriteHeader(h); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	for left := st.Size(); left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(a.out, f, min(left, 8<<20))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		left -= n
	}
	return nil
}
