package protect

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// FileName is what a list is called among the profiles.
const FileName = "protect.toml"

// Bounds of a list: each name is a few mounts in each sandbox that has it.
const (
	maxFile  = 64 << 10
	maxNames = 64
	maxName  = 128
	maxParts = 4
	maxText  = 64
)

// List are the names to protect, in order.
type List []Name

// Name is one of them.
type Name struct {
	parts []string
	kind  Kind   // of its placeholder
	text  string // of a placeholder that is a file
}

// String is its path.
func (n Name) String() string { return strings.Join(n.parts, "/") }

// IsDir says whether it is a directory's.
func (n Name) IsDir() bool { return n.kind == Directory }

// placeholder is what is to be where the i-th part is missing.
func (n Name) placeholder(i int) Placeholder {
	p := Placeholder{Name: strings.Join(n.parts[:i+1], "/"), Kind: Directory}
	if i == len(n.parts)-1 {
		p.Kind, p.Text = n.kind, n.text
	}
	return p
}

// Load reads the list of the last of some directories that has one.
func Load(dirs ...fs.FS) (List, error) {
	for _, dir := range slices.Backward(dirs) {
		text, err := fs.ReadFile(dir, FileName)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", FileName, err)
		}
		l, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", FileName, err)
		}
		return l, nil
	}
	return nil, fmt.Errorf("%s: %w", FileName, fs.ErrNotExist)
}

// Parse reads and checks a list. The error has every problem.
func Parse(text []byte) (List, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("longer than %d bytes", maxFile)
	}
	var f struct {
		Version int               `toml:"version"`
		Names   []string          `toml:"names"`
		Texts   map[string]string `toml:"texts"`
	}
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, err
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if f.Version != 1 {
		bad("version: is %d; this creel reads version 1", f.Version)
	}
	if len(f.Names) == 0 || len(f.Names) > maxNames {
		bad("names: are %d; must be 1 to %d", len(f.Names), maxNames)
	}
	var l List
	for _, s := range f.Names {
		path, dir := strings.CutSuffix(s, "/")
		n := Name{parts: strings.Split(path, "/"), kind: Socket}
		if why := wrong(path, n.parts); why != "" {
			bad("names: %.200q %s", s, why)
			continue
		}
		t, has := f.Texts[s]
		switch {
		case dir:
			n.kind = Directory
		case has:
			n.kind, n.text = File, t
		}
		for _, o := range l {
			if k := min(len(o.parts), len(n.parts)); slices.Equal(o.parts[:k], n.parts[:k]) {
				bad("names: %q is in %q, or the other way round", s, o)
			}
		}
		l = append(l, n)
	}
	for _, s := range slices.Sorted(maps.Keys(f.Texts)) {
		if len(f.Texts[s]) > maxText || strings.HasSuffix(s, "/") || !slices.Contains(f.Names, s) {
			bad("texts: %.200q must be at most %d bytes, for a file in names", s, maxText)
		}
	}
	return l, errors.Join(errs...)
}

// wrong says what is wrong with a path.
func wrong(path string, parts []string) string {
	switch {
	case len(path) > maxName || len(parts) > maxParts:
		return fmt.Sprintf("is longer than %d bytes or %d parts", maxName, maxParts)
	case slices.ContainsFunc(parts, func(p string) bool { return p == "" || p == "." || p == ".." }):
		return "is not a clean path from the top of the mount"
	case strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`*?[]{}\`, r) }):
		return "has a wildcard, a space or no plain character in it"
	}
	return ""
}
