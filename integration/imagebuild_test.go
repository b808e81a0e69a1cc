package integration_test

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/imagebuild"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestSameBytes builds each image twice: the same packages give the same
// archive, to the byte. It fetches packages and takes minutes, so only the
// soak has it.
func TestSameBytes(t *testing.T) {
	kerneltest.Require(t, kerneltest.Soak, kerneltest.Root, kerneltest.Mmdebstrap)
	for _, recipe := range imagebuild.Recipes() {
		t.Run(recipe, func(t *testing.T) {
			one, packages := build(t, recipe)
			two, again := build(t, recipe)
			if !slices.Equal(packages, again) {
				t.Fatal("other packages came in between; run it again")
			}
			if sumOf(t, one) == sumOf(t, two) {
				return
			}
			a, b := entriesOf(t, one), entriesOf(t, two)
			for name := range a {
				if a[name] != b[name] {
					t.Errorf("%s: %s and %s", name, a[name], b[name])
				}
			}
			t.Errorf("two archives of the same packages differ; they have %d and %d entries", len(a), len(b))
		})
	}
}

// build makes an image into a file.
func build(t *testing.T, recipe string) (file string, packages []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	file = filepath.Join(t.TempDir(), "image.tar")
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	res, err := imagebuild.Build(ctx, imagebuild.Options{Recipe: recipe}, f)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Packages) == 0 {
		t.Fatal("the image has no packages")
	}
	return file, res.Packages
}

func sumOf(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if n, err := io.Copy(h, f); err != nil || n == 0 {
		t.Fatalf("%s: %d bytes, %v", file, n, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// entriesOf says of each file of an archive's layers what it is, and of its
// other parts.
func entriesOf(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string]string{}
	for outer := tar.NewReader(f); ; {
		part, err := outer.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		name := part.Name
		if strings.HasPrefix(name, "blobs/") {
			name = "blobs/ (their names are their digests)"
		}
		all[name] = fmt.Sprint(part.Size)
		for inner := tar.NewReader(outer); ; {
			h, err := inner.Next()
			if err != nil {
				break // its end, or not a layer
			}
			sum := sha256.New()
			if _, err := io.Copy(sum, inner); err != nil {
				t.Fatal(err)
			}
			all["/"+h.Name] = fmt.Sprintf("%c %o %d:%d %d %s %q %.8x", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.UTC().Format(time.RFC3339), h.Linkname, sum.Sum(nil))
		}
	}
}
