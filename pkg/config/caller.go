package config

import (
	"fmt"
	"math"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
)

// Caller is a ceiling and whom it is for: one [[caller]] table. A key that is
// left out has its value of DefaultCaller, so that a short table is no open one.
type Caller struct {
	// Match is "user:NAME", "uid:N", "group:NAME", "gid:N", "socket_group" or
	// "default". Required.
	Match    string   `toml:"match"`
	Profiles []string `toml:"profiles"`
	Images   []string `toml:"images"`
	// Mounts are absolute paths, "own" or "*", each with ":ro" or without.
	Mounts      []string `toml:"mounts"`
	Runtimes    []string `toml:"runtimes"`
	Sandboxes   int      `toml:"sandboxes"`
	Memory      api.Size `toml:"memory"`
	CPUs        float64  `toml:"cpus"`
	Pids        int64    `toml:"pids"`
	Disk        api.Size `toml:"disk"`
	SpawnRate   int      `toml:"spawn_rate"`
	ExecRate    int      `toml:"exec_rate"`
	ImageBytes  api.Size `toml:"image_bytes"`
	Connections int      `toml:"connections"`
	// AgentTTL is for how long an agent of the caller's may run, from its first
	// sandbox on; 0 is for ever.
	AgentTTL api.Duration `toml:"agent_ttl"`
	// Socket lets sandboxes have a socket of their own.
	Socket bool `toml:"socket"`
	// Egress is what sandboxes may reach; nothing when empty.
	Egress []string `toml:"egress"`
	// Ask is what they may reach once somebody let it, and Approve who may:
	// "caller" or "operator".
	Ask     []string `toml:"ask"`
	Approve string   `toml:"approve"`
	// EgressBytes, EgressConnections and EgressRequests are the budgets of one
	// sandbox at most; 0 is no bound.
	EgressBytes       api.Size `toml:"egress_bytes"`
	EgressConnections int64    `toml:"egress_connections"`
	EgressRequests    int64    `toml:"egress_requests"`
	// Secrets are "own" (all that the caller set) and patterns of names of the
	// box's.
	Secrets []string `toml:"secrets"`
}

// DefaultCaller is the shipped ceiling, of those whom the socket lets in.
func DefaultCaller() Caller {
	return Caller{
		Match: "socket_group", Profiles: []string{"default", "strict"}, Images: []string{"box", "own"},
		Mounts: []string{"own", "*:ro"}, Runtimes: []string{"crun", "runc"},
		Sandboxes: 32, Memory: 64 << 30, CPUs: 64, Pids: 16384, Disk: 32 << 30,
		SpawnRate: 240, ExecRate: 6000, ImageBytes: 32 << 30, Connections: 128, Egress: []string{}, Ask: []string{}, Approve: "operator", Secrets: []string{"own"},
	}
}

// whoRE is whom a table or an operator may be. Names are what useradd(8)
// allows, and the backslash, at sign and capitals of directory services.
var whoRE = regexp.MustCompile(`^(user:[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,255}\$?|group:[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,255}|uid:[0-9]{1,10}|gid:[0-9]{1,10})$`)

const wantWho = `"user:NAME", "uid:NUMBER", "group:NAME" or "gid:NUMBER"`

// callers reads the [[caller]] tables, each over the default one.
func (l *loader) callers(v value) []Caller {
	tables, ok := v.v.([]any)
	if !ok {
		l.bad(v.file, v.pos, "caller: %v is not a table; write [[caller]]", v.v)
		return nil
	}
	out := make([]Caller, 0, len(tables))
	for i, t := range tables {
		doc, ok := t.(map[string]any)
		if !ok {
			l.bad(v.file, v.pos, "caller: %v is not a table; write [[caller]]", t)
			continue
		}
		at := func(key string) position { return l.placeOf(v, fmt.Sprintf("caller[%d]", i), key) }
		c := DefaultCaller()
		c.Match = ""
		known := fields(reflect.ValueOf(&c).Elem())
		for _, e := range flatten("", doc, known) {
			field, ok := known[e.name]
			if !ok {
				l.bad(v.file, at(e.name), "unknown key %q in [[caller]]", e.name)
				continue
			}
			if err := assign(field, e.v); err != nil {
				l.bad(v.file, at(e.name), "caller.%s: %v", e.name, err)
			}
		}
		c.check(func(key, format string, args ...any) {
			l.bad(v.file, at(key), "caller.%s: %s", key, fmt.Sprintf(format, args...))
		})
		out = append(out, c)
	}
	return out
}

// placeOf is where a key of the i-th table is, or else the table.
func (l *loader) placeOf(v value, table, key string) position {
	places := l.places[v.file]
	for _, name := range []string{table + "." + key, table} {
		if p, ok := places[name]; ok {
			return p
		}
	}
	return v.pos
}

func (c *Caller) check(bad func(key, format string, args ...any)) {
	if c.Match != "default" && c.Match != "socket_group" && !whoRE.MatchString(c.Match) {
		bad("match", `%q is nobody; write %s, "socket_group" or "default"`, c.Match, wantWho)
	}
	for _, p := range c.Profiles {
		if p != "*" && !nameRE.MatchString(p) {
			bad("profiles", "%q is not a profile's name", p)
		}
	}
	for _, p := range c.Secrets {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			bad("secrets", `%q is not "own" or a pattern such as "team-*"`, p)
		}
	}
	for _, p := range c.Images {
		if _, err := path.Match(p, ""); err != nil || p == "" {
			bad("images", `%q is not "box", "own" or a pattern such as "team/*"`, p)
		}
	}
	for _, m := range c.Mounts {
		p := strings.TrimSuffix(m, ":ro")
		if p != "own" && p != "*" && (!filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsRune(p, 0)) {
			bad("mounts", `%q is not "own", "*" or an absolute path without ".." or a slash at its end, each with ":ro" or without`, m)
		}
	}
	for _, r := range c.Runtimes {
		if !slices.Contains([]string{"*", "crun", "runc"}, r) {
			bad("runtimes", "%q is not a runtime; there are crun and runc", r)
		}
	}
	for key, rules := range map[string][]string{"egress": c.Egress, "ask": c.Ask} {
		pol, problems := egress.ParseLines("", key, rules)
		if pol != nil && pol.Any() != "" {
			bad(key, "%q: want %s", pol.Any(), egress.WantNoAny)
		}
		for _, p := range problems {
			bad(key, "%q (%s): want %s", p.Value, p.Field, p.Want)
		}
	}
	if c.Approve != "caller" && c.Approve != "operator" {
		bad("approve", `%q is not "caller" or "operator"`, c.Approve)
	}
	for _, n := range []struct {
		key   string
		v, hi float64
	}{
		{"sandboxes", float64(c.Sandboxes), 32768},
		{"memory", float64(c.Memory), 1 << 60},
		{"cpus", c.CPUs, 1 << 20},
		{"pids", float64(c.Pids), 1 << 22},
		{"disk", float64(c.Disk), 1 << 60},
		{"spawn_rate", float64(c.SpawnRate), 1 << 20},
		{"exec_rate", float64(c.ExecRate), 1 << 30},
		{"image_bytes", float64(c.ImageBytes), 1 << 60},
		{"egress_bytes", float64(c.EgressBytes), 1 << 60},
		{"egress_connections", float64(c.EgressConnections), 1 << 50},
		{"egress_requests", float64(c.EgressRequests), 1 << 50},
		{"connections", float64(c.Connections), 65536},
		{"agent_ttl", c.AgentTTL.D().Seconds(), 10 * 365 * 24 * 3600},
	} {
		if n.v < 0 || n.v > n.hi || math.IsNaN(n.v) {
			bad(n.key, "%.10g is not from 0 to %.10g", n.v, n.hi)
		}
	}
	if c.Connections == 1 {
		bad("connections", "1 is not enough: a stream and a request that ends it need two")
	}
}

// checkCallers holds what is about all of them.
func checkCallers(cfg *Config, bad func(key, format string, args ...any)) {
	for _, o := range cfg.Operators {
		if !whoRE.MatchString(o) {
			bad("operators", "%q is nobody; write %s", o, wantWho)
		}
	}
	seen := map[string]bool{}
	for _, c := range cfg.Callers {
		if seen[c.Match] {
			bad("caller", "two tables are for %q", c.Match)
		}
		seen[c.Match] = true
	}
}
