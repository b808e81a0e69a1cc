// Package profile reads isolation profiles: the named sets of limits and
// choices that a request starts from. A profile is TOML; unknown keys are
// errors, reported with line and column.
//
// What every sandbox gets (namespaces, no_new_privs, masked paths, for an agent
// no capabilities) is not in a profile, so that no profile can leave it out.
package profile

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

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
)

// Profile is one file.
type Profile struct {
	Version        int      `toml:"version"`
	Name           string   `toml:"name"`
	Description    string   `toml:"description"`
	Image          string   `toml:"image"`
	Seccomp        string   `toml:"seccomp"`
	Rootfs         []string `toml:"rootfs"` // the first is the default
	Home           []string `toml:"home"`   // the first is the default; "ephemeral" alone when not given
	HomeSize       api.Size `toml:"home_size"`
	WritableMounts bool     `toml:"writable_mounts"`
	NoMounts       bool     `toml:"no_mounts"`      // neither directories nor volumes
	User           string   `toml:"user"`           // "agent", also when not given, or "root"
	Capabilities   []string `toml:"capabilities"`   // a root's, of api.Capabilities
	ExecIsolation  string   `toml:"exec_isolation"` // "required", also when not given, or "preferred"
	UnixPeers      string   `toml:"unix_peers"`     // the same
	Network        []string `toml:"network"`        // the first is the default; "none" alone when not given
	Egress         []string `toml:"egress"`         // the most that "policy" may reach; nil when others decide
	Observe        bool     `toml:"observe"`        // what sandboxes reach is told in detail, and egress may have "*"
	Limits         Limits   `toml:"limits"`

	// Source is "embedded" or the file's path; Text is its content.
	Source string `toml:"-"`
	Text   string `toml:"-"`
}

// Limits are the values a request starts from and those it may ask for.
type Limits struct {
	api.Limits
	Max api.Limits `toml:"max"`
}

// maxFile is the most bytes a profile may have.
const maxFile = 256 << 10

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Parse reads and checks a profile. The error lists every problem; a syntax
// error or unknown key has line and column.
func Parse(text []byte) (*Profile, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("profile is longer than %d bytes", maxFile)
	}
	p := Profile{Text: string(text)}
	dec := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return nil, explain(err)
	}
	if p.Home == nil {
		p.Home = []string{"ephemeral"}
	}
	if p.Network == nil {
		p.Network = []string{"none"}
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return &p, nil
}

// explain gives a TOML error its position.
func explain(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var errs []error
		for _, e := range strict.Errors {
			row, col := e.Position()
			errs = append(errs, fmt.Errorf("line %d, column %d: unknown key %q", row, col, strings.Join(e.Key(), ".")))
		}
		return errors.Join(errs...)
	}
	if dec, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, col := dec.Position()
		return fmt.Errorf("line %d, column %d: %w", row, col, err)
	}
	return err
}

func (p *Profile) check() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if p.Version != 1 {
		bad("version", "is %d; this creel reads version 1", p.Version)
	}
	if !nameRE.MatchString(p.Name) {
		bad("name", "%q must be 1 to 63 of a-z, 0-9 and -, starting with a letter or digit", p.Name)
	}
	if !nameRE.MatchString(p.Seccomp) {
		bad("seccomp", "%q must name a file in profiles/seccomp", p.Seccomp)
	}
	if len(p.Rootfs) == 0 {
		bad("rootfs", `must list at least one of "readonly", "ephemeral"`)
	}
	for _, r := range p.Rootfs {
		if r != "readonly" && r != "ephemeral" {
			bad("rootfs", `%q must be "readonly" or "ephemeral"`, r)
		}
	}
	p.checkHome(bad)
	for _, c := range []struct{ name, value string }{{"exec_isolation", p.ExecIsolation}, {"unix_peers", p.UnixPeers}} {
		if c.value != "" && c.value != "required" && c.value != "preferred" {
			bad(c.name, `%q must be "required" or "preferred"`, c.value)
		}
	}
	p.checkUser(bad)
	p.checkNetwork(bad)
	l, m := p.Limits.Limits, p.Limits.Max
	for _, f := range []struct {
		name     string
		val, max int64
		required bool
	}{
		{"memory", int64(l.Memory), int64(m.Memory), true},
		{"cpus", int64(l.CPUs * 1000), int64(m.CPUs * 1000), true},
		{"pids", l.Pids, m.Pids, true},
		{"files", l.Files, m.Files, true},
		{"tmp", int64(l.Tmp), int64(m.Tmp), false},
		{"shm_size", int64(l.ShmSize), int64(m.ShmSize), false},
		{"disk", int64(l.Disk), int64(m.Disk), slices.Contains(p.Rootfs, "ephemeral")},
		{"io_weight", l.IOWeight, m.IOWeight, true},
		{"output_rate", int64(l.OutputRate), int64(m.OutputRate), true},
		{"egress_bytes", int64(l.EgressBytes), int64(m.EgressBytes), false},
		{"egress_connections", l.EgressConnections, m.EgressConnections, false},
		{"egress_requests", l.EgressRequests, m.EgressRequests, false},
		{"ttl", int64(l.TTL), int64(m.TTL), false},
		{"idle", int64(l.Idle), int64(m.Idle), false},
	} {
		if f.val < 0 || f.required && f.val == 0 {
			bad("limits."+f.name, "must be more than zero")
		}
		if f.max != 0 && f.val > f.max {
			bad("limits."+f.name, "is above limits.max.%s", f.name)
		}
	}
	if l.Tmp > l.Memory/2 {
		bad("limits.tmp", "must be at most half of limits.memory, or a full tmpfs is an OOM")
	}
	if l.ShmSize < 0 || l.ShmSize > l.Memory/2 || l.Tmp+l.ShmSize > l.Memory/4*3 {
		bad("limits.shm_size", "must be at most half of limits.memory, and with limits.tmp at most three quarters")
	}
	if l.OnIdle != "pause" && l.OnIdle != "stop" {
		bad("limits.on_idle", `%q must be "pause" or "stop"`, l.OnIdle)
	}
	return errors.Join(errs...)
}

func (p *Profile) checkNetwork(bad func(field, format string, args ...any)) {
	if len(p.Network) == 0 {
		bad("network", `must list at least one of "none", "policy"`)
	}
	for _, n := range p.Network {
		if n != "none" && n != "policy" {
			bad("network", `%q must be "none" or "policy"`, n)
		}
	}
	if p.Observe && !slices.Contains(p.Network, "policy") {
		bad("observe", `has no meaning unless network lists "policy"`)
	}
	if p.Egress == nil {
		return
	}
	if !slices.Contains(p.Network, "policy") {
		bad("egress", `has no meaning unless network lists "policy"`)
	}
	pol, problems := egress.ParseLines("the profile "+p.Name, "egress", p.Egress)
	if pol != nil && pol.Any() != "" && !p.Observe {
		bad("egress", "%q: want %s", pol.Any(), egress.WantNoAny)
	}
	for _, w := range problems {
		bad(w.Field, "%q: want %s", w.Value, w.Want)
	}
}

func (p *Profile) checkHome(bad func(field, format string, args ...any)) {
	if len(p.Home) == 0 {
		bad("home", `must list at least one of "ephemeral", "persistent"`)
	}
	for _, h := range p.Home {
		if h != "ephemeral" && h != "persistent" {
			bad("home", `%q must be "ephemeral" or "persistent"`, h)
		}
	}
	if want := slices.Contains(p.Home, "persistent"); want && (p.HomeSize < api.MinVolume || p.HomeSize > api.MaxVolume) {
		bad("home_size", "%s must be from %s to %s, since home lists \"persistent\"", p.HomeSize, api.MinVolume, api.MaxVolume)
	} else if !want && p.HomeSize != 0 {
		bad("home_size", `has no meaning unless home lists "persistent"`)
	}
}

// checkUser holds together what makes a root inside no more than it is: it
// writes to its own layer and to nothing of anybody else's.
func (p *Profile) checkUser(bad func(field, format string, args ...any)) {
	for i, c := range p.Capabilities {
		if _, ok := api.Capabilities[c]; !ok {
			bad("capabilities", "%q must be one of %s", c, strings.Join(slices.Sorted(maps.Keys(api.Capabilities)), ", "))
		}
		if slices.Contains(p.Capabilities[:i], c) {
			bad("capabilities", "%q is there twice", c)
		}
	}
	switch {
	case p.User == "" || p.User == "agent":
		if len(p.Capabilities) > 0 {
			bad("capabilities", `only with user = "root": an agent has none`)
		}
		return
	case !p.Root():
		bad("user", `%q must be "agent" or "root"`, p.User)
		return
	}
	if !p.NoMounts || p.WritableMounts {
		bad("no_mounts", `must be true with user = "root", which can make set-user-ID files, and writable_mounts false`)
	}
	if len(p.Rootfs) != 1 || p.Rootfs[0] != "ephemeral" {
		bad("rootfs", `must be ["ephemeral"] with user = "root"`)
	}
	if p.ExecIsolation == "preferred" {
		bad("exec_isolation", `must be "required" with user = "root"`)
	}
}

// Root says whether commands are root of the sandbox's own user namespace.
func (p *Profile) Root() bool { return p.User == api.UserRoot }

// Set is the profiles of a daemon by name.
type Set map[string]*Profile

// protectFile is beside the profiles and is none: see pkg/protect.
const protectFile = "protect.toml"

// Load reads every NAME.toml of the embedded profiles and then of each
// override directory, whose files win. A file that cannot be read or is wrong
// is an error: a profile that silently fell back would be weaker than asked.
func Load(embedded fs.FS, overrides ...fs.FS) (Set, error) {
	set := Set{}
	for i, fsys := range append([]fs.FS{embedded}, overrides...) {
		names, err := fs.Glob(fsys, "*.toml")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if name == protectFile {
				continue
			}
			text, err := fs.ReadFile(fsys, name)
			if err != nil {
				return nil, fmt.Errorf("profile %s: %w", name, err)
			}
			p, err := Parse(text)
			if err != nil {
				return nil, fmt.Errorf("profile %s: %w", name, err)
			}
			if want := strings.TrimSuffix(path.Base(name), ".toml"); p.Name != want {
				return nil, fmt.Errorf("profile %s: name is %q; the file must be called %s.toml", name, p.Name, p.Name)
			}
			p.Source = "embedded"
			if i > 0 {
				p.Source = name
			}
			set[p.Name] = p
		}
	}
	return set, nil
}

// Get is the named profile, or an error that lists the names there are.
func (s Set) Get(name string) (*Profile, error) {
	if p, ok := s[name]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("no profile %q; there are %s", name, strings.Join(s.Names(), ", "))
}

// Names are sorted.
func (s Set) Names() []string {
	names := make([]string, 0, len(s))
	for n := range s {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
