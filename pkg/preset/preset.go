// Package preset has lists of egress rules by name, for what agents are often let
// reach. A preset is nothing but its rules: whoever uses one names them.
//
// Those of services are files. Those of package managers (Of) are made of the
// configuration of the box's own client, whichever registry or mirror that is for.
package preset

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// Preset is a list of rules.
type Preset struct {
	Name        string   `json:"name" toml:"-"`
	Description string   `json:"description" toml:"description"`
	Rules       []string `json:"rules" toml:"rules"` // of egress.ParseText
	// Source is where it is from: "embedded", a file, or a package manager's
	// configuration.
	Source string `json:"source" toml:"-"`
}

// nameRE is what a preset may be called.
var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// maxFile is the most bytes of a file.
const maxFile = 64 << 10

// Parse reads a preset.
func Parse(name string, text []byte) (*Preset, error) {
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("preset %.100q: not a name", name)
	}
	p := Preset{Name: name}
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&p); err != nil {
		return nil, fmt.Errorf("preset %s: %w", name, err)
	}
	return &p, p.check()
}

func (p *Preset) check() error {
	pol, problems := egress.ParseLines("preset "+p.Name, "rules", p.Rules)
	if len(problems) > 0 {
		return fmt.Errorf("preset %s: %s: %q: want %s", p.Name, problems[0].Field, problems[0].Value, problems[0].Want)
	}
	if text := pol.Any(); text != "" {
		return fmt.Errorf("preset %s: %q: want %s", p.Name, text, egress.WantNoAny)
	}
	if len(p.Rules) == 0 {
		return fmt.Errorf("preset %s: no rules", p.Name)
	}
	p.Rules = pol.Texts()
	return nil
}

// Dir is a directory of presets, NAME.toml each, and what it is called.
type Dir struct {
	FS   fs.FS
	Name string
}

// Load reads the presets of some directories. One that is not there has none; of
// two of a name the one of the later directory counts.
func Load(dirs ...Dir) (map[string]*Preset, error) {
	all := map[string]*Preset{}
	for _, d := range dirs {
		files, err := fs.ReadDir(d.FS, ".")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("presets: %w", err)
		}
		for _, f := range files {
			name, ok := strings.CutSuffix(f.Name(), ".toml")
			if !ok {
				continue
			}
			info, err := fs.Stat(d.FS, f.Name())
			if err != nil {
				return nil, fmt.Errorf("presets: %w", err)
			}
			if info.Size() > maxFile {
				return nil, fmt.Errorf("preset %s: %d bytes", name, info.Size())
			}
			text, err := fs.ReadFile(d.FS, f.Name())
			if err != nil {
				return nil, fmt.Errorf("presets: %w", err)
			}
			p, err := Parse(name, text)
			if err != nil {
				return nil, err
			}
			p.Source = d.Name
			if d.Name != "embedded" {
				p.Source = path.Join(d.Name, f.Name())
			}
			all[name] = p
		}
	}
	return all, nil
}

// Names are those of presets, in order.
func Names(all map[string]*Preset) []string { return slices.Sorted(maps.Keys(all)) }
