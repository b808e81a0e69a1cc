package config

import (
	"encoding"
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// position is a place in a file, from 1; the zero value is none.
type position struct{ line, column int }

var (
	tableRE = regexp.MustCompile(`^\s*(\[+)\s*([A-Za-z0-9_."-]+)\s*\]+`)
	keyRE   = regexp.MustCompile(`^(\s*)([A-Za-z0-9_."-]+(?:\s*\.\s*[A-Za-z0-9_"-]+)*)\s*=`)
)

// locate finds where each key is set, for messages: the TOML decoder tells
// places of its own errors only. A line within a multi-line string that looks
// like a key can only misplace a message.
func locate(text []byte) map[string]position {
	places, table, n := map[string]position{}, "", 0
	count := map[string]int{} // of arrays of tables, which are numbered from 0
	for line := range strings.Lines(string(text)) {
		n++
		if m := tableRE.FindStringSubmatch(line); m != nil {
			table = clean(m[2])
			names := []string{table}
			if m[1] == "[[" {
				count[table]++
				table = fmt.Sprintf("%s[%d]", table, count[table]-1)
				names = append(names, table)
			}
			for _, name := range names {
				if _, ok := places[name]; !ok {
					places[name] = position{n, strings.IndexByte(line, '[') + 1}
				}
			}
			continue
		}
		if m := keyRE.FindStringSubmatch(line); m != nil {
			key := clean(m[2])
			if table != "" {
				key = table + "." + key
			}
			if _, ok := places[key]; !ok {
				places[key] = position{n, len(m[1]) + 1}
			}
		}
	}
	return places
}

// clean takes quotes and blanks out of a dotted key.
func clean(key string) string { return strings.NewReplacer(`"`, "", " ", "", "\t", "").Replace(key) }

// assign sets a field to a decoded TOML value. What is wrong says what would
// be right.
func assign(field reflect.Value, v any) error {
	if s, ok := v.(string); ok {
		if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](field.Addr()); ok {
			return u.UnmarshalText([]byte(s))
		}
	}
	switch field.Interface().(type) {
	case api.Size:
		n, ok := v.(int64)
		if !ok || n < 0 {
			return fmt.Errorf("%v is not a size; write a string such as \"512M\"", v)
		}
		field.SetInt(n)
	case api.Duration:
		return fmt.Errorf("%v is not a duration; write a string such as \"90s\"", v)
	case []string:
		return assignStrings(field, v)
	default:
		return assignPlain(field, v)
	}
	return nil
}

func assignStrings(field reflect.Value, v any) error {
	list, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%v is not an array of strings", v)
	}
	out := make([]string, len(list))
	for i, e := range list {
		if out[i], ok = e.(string); !ok {
			return fmt.Errorf("%v is not a string", e)
		}
	}
	field.Set(reflect.ValueOf(out))
	return nil
}

func assignPlain(field reflect.Value, v any) error {
	switch field.Kind() {
	case reflect.String:
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("%v is not a string", v)
		}
		field.SetString(s)
	case reflect.Bool:
		b, ok := v.(bool)
		if !ok {
			return fmt.Errorf("%v is not true or false", v)
		}
		field.SetBool(b)
	case reflect.Float64:
		f, ok := v.(float64)
		if n, isInt := v.(int64); isInt {
			f, ok = float64(n), true
		}
		if !ok || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%v is not a number", v)
		}
		field.SetFloat(f)
	case reflect.Uint32:
		n, ok := v.(int64)
		if !ok || n < 0 || n > math.MaxUint32 {
			return fmt.Errorf("%v is not a whole number from 0 to 4294967295", v)
		}
		field.SetUint(uint64(n))
	case reflect.Int, reflect.Int64:
		n, ok := v.(int64)
		if !ok {
			return fmt.Errorf("%v is not a whole number", v)
		}
		field.SetInt(n)
	default:
		return fmt.Errorf("a key of kind %v cannot be set", field.Kind())
	}
	return nil
}

// idRange is how many ids each sandbox has.
const idRange = 65536

var (
	nameRE   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	cgroupRE = regexp.MustCompile(`^(/[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]*)+$`)
)

// check holds every value against its bounds. A problem is reported where the
// value was set.
func (l *loader) check(cfg *Config, path string) {
	bad := func(key, format string, args ...any) {
		v, ok := l.values[key]
		if !ok {
			v.file = path
		}
		l.bad(v.file, v.pos, "%s: %s", key, fmt.Sprintf(format, args...))
	}
	if cfg.Version != 1 {
		bad("version", "%d is not a version that this creeld reads; write 1", cfg.Version)
	}
	checkNames(cfg, bad)
	checkCallers(cfg, bad)
	checkIDs(cfg.IDs, bad)
	checkNumbers(cfg, bad)
}

func checkNames(cfg *Config, bad func(key, format string, args ...any)) {
	for _, p := range []struct {
		key, v   string
		optional bool
	}{
		{"run_dir", cfg.RunDir, false},
		{"state_dir", cfg.StateDir, false},
		{"bin_dir", cfg.BinDir, false},
		{"socket", cfg.Socket, false},
		{"profiles_dir", cfg.ProfilesDir, true},
		{"containerd.address", cfg.Containerd.Address, true},
		{"audit.dir", cfg.Audit.Dir, true},
		{"egress.roots", cfg.Egress.Roots, true},
	} {
		if (p.v != "" || !p.optional) && (!filepath.IsAbs(p.v) || filepath.Clean(p.v) != p.v || p.v == "/" || strings.ContainsRune(p.v, 0)) {
			bad(p.key, "%q is not an absolute path without \"..\" or a slash at its end", p.v)
		}
	}
	// sockaddr_un has 108 bytes, see unix(7).
	for key, v := range map[string]string{"socket": cfg.Socket, "containerd.address": cfg.Containerd.Address} {
		if len(v) > 100 {
			bad(key, "%d bytes are too long for a socket; at most 100", len(v))
		}
	}
	if d := cfg.Identity.TrustDomain; d != "" {
		if td, err := spiffeid.TrustDomainFromString(d); err != nil || td.Name() != d {
			bad("identity.trust_domain", "%q is not a SPIFFE trust domain: a name of a-z, 0-9, \".\", \"-\" and \"_\", such as \"box.example.com\"", d)
		}
	}
	if !nameRE.MatchString(cfg.DefaultProfile) {
		bad("default_profile", "%q is not a profile's name: 1 to 63 of a-z, 0-9 and -", cfg.DefaultProfile)
	}
	if r := cfg.Cgroup.Root; r != "" && !cgroupRE.MatchString(r) {
		bad("cgroup.root", "%q is not a cgroup such as \"/creel\": names of letters, digits, \"_\", \"-\", \".\", \":\" and \"@\", each after a slash and not starting with a dot", r)
	}
	if strings.ContainsAny(cfg.SocketGroup, ":/ \n\x00") {
		bad("socket_group", "%q is not a group's name", cfg.SocketGroup)
	}
	for _, r := range cfg.Runtime.Allowed {
		if r != "crun" && r != "runc" {
			bad("runtime.allowed", "%q is not a runtime; there are crun and runc", r)
		}
	}
	if !slices.Contains(cfg.Runtime.Allowed, cfg.Runtime.Default) {
		bad("runtime.default", "%q is not among runtime.allowed", cfg.Runtime.Default)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, cfg.Log.Level) {
		bad("log.level", "%q is not debug, info, warn or error", cfg.Log.Level)
	}
	if cfg.Audit.Keep == 1 {
		bad("audit.keep", "1 is too few: the file that is written, and one before; 0 is all")
	}
	if r := cfg.Audit.Report.D(); r != 0 && r < time.Second {
		bad("audit.report", "%v is not 0s, which is never, or 1s and more", r)
	}
	if cfg.Audit.Commands != "full" && cfg.Audit.Commands != "digest" {
		bad("audit.commands", "%q is not full or digest", cfg.Audit.Commands)
	}
	if cfg.Log.Format != "text" && cfg.Log.Format != "json" {
		bad("log.format", "%q is not text or json", cfg.Log.Format)
	}
}

// checkIDs refuses ids that are people's or, from 2^31, negative to some file
// systems and tools.
func checkIDs(ids IDs, bad func(key, format string, args ...any)) {
	if ids.First < idRange || ids.First%idRange != 0 {
		bad("ids.first", "%#x is not a multiple of 65536 above 0", ids.First)
	}
	if ids.Last >= 1<<31 || (ids.Last+1)%idRange != 0 {
		bad("ids.last", "%#x is not a multiple of 65536, less one, below 2^31", ids.Last)
	}
	if ids.Last <= ids.First {
		bad("ids.last", "%#x is not above ids.first %#x", ids.Last, ids.First)
	}
}

func checkNumbers(cfg *Config, bad func(key, format string, args ...any)) {
	for _, n := range []struct {
		key       string
		v, lo, hi float64
		unit      string
	}{
		{"limits.max.sandboxes", float64(cfg.Limits.Max.Sandboxes), 0, 32768, ""},
		{"limits.max.sandboxes_per_user", float64(cfg.Limits.Max.SandboxesPerUser), 0, 32768, ""},
		{"limits.max.kept_per_user", float64(cfg.Limits.Max.KeptPerUser), 0, 32768, ""},
		{"limits.max.memory", float64(cfg.Limits.Max.Memory), 0, 1 << 60, " bytes"},
		{"limits.max.cpus", cfg.Limits.Max.CPUs, 0, 1 << 20, ""},
		{"limits.max.disk", float64(cfg.Limits.Max.Disk), 0, 1 << 60, " bytes"},
		{"limits.max.pids", float64(cfg.Limits.Max.Pids), 0, 1 << 22, ""},
		{"limits.max.volumes_per_user", float64(cfg.Limits.Max.VolumesPerUser), 0, 32768, ""},
		{"limits.max.volume_bytes_per_user", float64(cfg.Limits.Max.VolumeBytesPerUser), 0, 1 << 60, " bytes"},
		{"host.memory", float64(cfg.Host.Memory), 0, 1 << 60, " bytes"},
		{"host.pids", float64(cfg.Host.Pids), 0, 1 << 22, ""},
		{"host.memory_pressure", cfg.Host.MemoryPressure, 0, 100, " percent"},
		{"host.io_pressure", cfg.Host.IOPressure, 0, 100, " percent"},
		{"exec.max_per_sandbox", float64(cfg.Exec.MaxPerSandbox), 1, 4096, ""},
		{"logs.max_bytes", float64(cfg.Logs.MaxBytes), 64 << 10, 1 << 40, " bytes"},
		{"audit.file_size", float64(cfg.Audit.FileSize), 64 << 10, 1 << 30, " bytes"},
		{"audit.keep", float64(cfg.Audit.Keep), 0, 1 << 20, ""},
		{"retention.per_user", float64(cfg.Retention.PerUser), 0, 32768, ""},
		{"retention.all", float64(cfg.Retention.All), 0, 1 << 20, ""},
		{"retention.log_bytes", float64(cfg.Retention.LogBytes), 0, 1 << 50, " bytes"},
		{"retention.evidence", float64(cfg.Retention.Evidence), 0, 1 << 24, ""},
		{"disk.reserve", float64(cfg.Disk.Reserve), 0, 1 << 50, " bytes"},
		{"server.max_connections", float64(cfg.Server.MaxConnections), 2, 65536, ""},
		{"server.max_streams", float64(cfg.Server.MaxStreams), 1, float64(cfg.Server.MaxConnections - 1), " (one less than server.max_connections)"},
		{"server.max_total_connections", float64(cfg.Server.MaxTotalConnections), float64(cfg.Server.MaxConnections), 1 << 20, " (from server.max_connections)"},
	} {
		if n.v < n.lo || n.v > n.hi {
			bad(n.key, "%.10g is not from %.10g to %.10g%s", n.v, n.lo, n.hi, n.unit)
		}
	}
	for _, d := range []struct {
		key       string
		v, lo, hi time.Duration
	}{
		{"evidence.interval", cfg.Evidence.Interval.D(), time.Second, 24 * time.Hour},
		{"egress.ask_ttl", cfg.Egress.AskTTL.D(), time.Second, 30 * 24 * time.Hour},
		{"audit.report", cfg.Audit.Report.D(), 0, 365 * 24 * time.Hour},
		{"retention.age", cfg.Retention.Age.D(), 0, 10 * 365 * 24 * time.Hour},
		{"server.header_timeout", cfg.Server.HeaderTimeout.D(), time.Second, time.Minute},
		{"server.idle_timeout", cfg.Server.IdleTimeout.D(), time.Second, time.Hour},
		{"server.stall_timeout", cfg.Server.StallTimeout.D(), time.Second, 24 * time.Hour},
	} {
		if d.v < d.lo || d.v > d.hi {
			bad(d.key, "%v is not from %v to %v", d.v, d.lo, d.hi)
		}
	}
}
