// Package imagebuild makes the agent images, base and dev: a small Debian
// system with what agents need, as an OCI archive.
//
// It runs in the client as the calling user; the daemon never builds. Debian's
// mmdebstrap makes the system, and this package rewrites its tar stream into
// one layer: no device nodes, no set-ID bits, no file capabilities, no caches
// or logs, an "agent" account, and times clamped so that the same packages give
// the same bytes.
package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// DefaultSuite is the Debian release the images are made from.
const DefaultSuite = "bookworm"

// Options say what to build. The zero value builds the base image.
type Options struct {
	// Recipe is one of Recipes. "base" when empty.
	Recipe string
	// Ref is the image's name in the archive. The recipe's when empty.
	Ref string
	// Suite is the Debian release. DefaultSuite when empty.
	Suite string
	// Mirrors are URLs of Debian archives, or whole "deb ..." lines. When
	// empty, this host's own APT sources for Debian are used.
	Mirrors []string
	// Packages replaces the recipe's when not nil.
	Packages []string
	// Extra are packages besides those, such as apt, which no image has by
	// itself.
	Extra []string
	// Arch is the Debian architecture, this machine's when empty.
	Arch string
	// Epoch clamps every time in the image. When zero it is the newest
	// modification time that a package's own file has, so that it depends on
	// the packages alone.
	Epoch time.Time
	// TempDir holds the system while it is made: half a gigabyte of base, two
	// and a half of dev.
	// os.TempDir when empty.
	TempDir string
	// Progress gets one line for each step, for people. May be nil.
	Progress func(line string)
}

// Result describes a finished image.
type Result struct {
	Ref      string   `json:"ref"`
	Digest   string   `json:"digest"` // of the manifest
	Size     int64    `json:"size"`   // of the layer, in bytes
	Packages []string `json:"packages"`
	Dropped  Dropped  `json:"dropped"`
}

// Dropped counts what the rewrite left out.
type Dropped struct {
	Devices      int `json:"devices"`      // device nodes, pipes, sockets
	SetIDs       int `json:"set_ids"`      // files that lost a set-ID bit
	Capabilities int `json:"capabilities"` // files that lost extended attributes
	Files        int `json:"files"`        // caches, logs, identities
}

// Build makes the image and writes it to w as an OCI archive.
//
// It takes a minute or so, dev some more, mostly in mmdebstrap, which must be installed. As a
// user other than root it needs newuidmap and a range in /etc/subuid.
func Build(ctx context.Context, opts Options, w io.Writer) (_ *Result, err error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	started := time.Now()
	raw, err := unnamedTemp(opts.TempDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	if err := bootstrap(ctx, opts, raw); err != nil {
		return nil, err
	}
	opts.Progress("rewriting the file system")
	b := builder{opts: opts, raw: raw, started: started}
	return b.archive(ctx, w)
}

func (o *Options) fill() error {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Recipe == "" {
		o.Recipe = "base"
	}
	recipe, known := recipes[o.Recipe]
	if o.Ref == "" {
		o.Ref = o.Recipe
	}
	if o.Suite == "" {
		o.Suite = DefaultSuite
	}
	if o.Packages == nil {
		o.Packages = recipe.packages
	}
	o.Packages = slices.Concat(o.Packages, o.Extra)
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if o.TempDir == "" {
		o.TempDir = os.TempDir()
	}
	var errs []error
	if !known {
		errs = append(errs, fmt.Errorf("recipe %q is not one of %s", o.Recipe, strings.Join(Recipes(), ", ")))
	}
	if !isName(o.Suite) {
		errs = append(errs, fmt.Errorf("suite %q is not a Debian release name", o.Suite))
	}
	for _, p := range o.Packages {
		if !isName(p) {
			errs = append(errs, fmt.Errorf("package %q is not a Debian package name", p))
		}
	}
	if !slices.Contains([]string{"amd64", "arm64"}, o.Arch) {
		errs = append(errs, fmt.Errorf("architecture %q is not amd64 or arm64", o.Arch))
	}
	return errors.Join(errs...)
}

// isName accepts what Debian Policy 5.6.1 allows in names. Nothing of it can be
// read by mmdebstrap or APT as an option, a list or a pattern.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !alnum && (i == 0 || c != '+' && c != '-' && c != '.') {
			return false
		}
	}
	return s != ""
}
