// Package config reads creeld's configuration: TOML, version 1.
//
// A file is read over the defaults, then every *.toml of the directory
// config.d beside it, in the order of their names; a later value replaces an
// earlier one, arrays (the [[share]] tables, too) as a whole. An unknown key, a value of the wrong type
// and a value out of bounds are errors, all reported at once with file, line
// and column.
package config

import (
	_ "embed"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/share"
)

// DefaultPath is where creeld looks for its configuration.
const DefaultPath = "/etc/creel/creeld.toml"

//go:embed default.toml
var defaultText string

// Default is the default configuration as commented TOML. Reading it gives
// the defaults; a test holds that.
func Default() string { return defaultText }

// Config is the whole configuration. default.toml describes each key.
type Config struct {
	Version        int        `toml:"version"`
	RunDir         string     `toml:"run_dir"`
	StateDir       string     `toml:"state_dir"`
	BinDir         string     `toml:"bin_dir"`
	Socket         string     `toml:"socket"`
	SocketGroup    string     `toml:"socket_group"`
	ProfilesDir    string     `toml:"profiles_dir"`
	DefaultProfile string     `toml:"default_profile"`
	DefaultImage   string     `toml:"default_image"`
	Containerd     Containerd `toml:"containerd"`
	Runtime        Runtime    `toml:"runtime"`
	IDs            IDs        `toml:"ids"`
	Cgroup         Cgroup     `toml:"cgroup"`
	Limits         Limits     `toml:"limits"`
	Host           Host       `toml:"host"`
	Exec           Exec       `toml:"exec"`
	Logs           Logs       `toml:"logs"`
	Evidence       Evidence   `toml:"evidence"`
	Audit          Audit      `toml:"audit"`
	Retention      Retention  `toml:"retention"`
	Disk           Disk       `toml:"disk"`
	Mounts         Mounts     `toml:"mounts"`
	Server         Server     `toml:"server"`
	Egress         Egress     `toml:"egress"`
	Identity       Identity   `toml:"identity"`
	Log            Log        `toml:"log"`
	// Share are grants of directories to several agents.
	Share []share.Grant `toml:"share"`
	// Operators see and do all, as root does.
	Operators []string `toml:"operators"`
	// Callers are the ceilings of everybody else.
	Callers []Caller `toml:"caller"`
}

// Containerd chooses the containerd.
type Containerd struct {
	// Address is the socket of an existing one; empty is a private one.
	Address string `toml:"address"`
}

// Runtime chooses OCI runtimes.
type Runtime struct {
	Default string   `toml:"default"`
	Allowed []string `toml:"allowed"`
}

// IDs are the host uids and gids that sandboxes may have, both ends included.
type IDs struct {
	First uint32 `toml:"first"`
	Last  uint32 `toml:"last"`
}

// Cgroup is where sandboxes' cgroups are.
type Cgroup struct {
	// Root is their parent; empty chooses one.
	Root string `toml:"root"`
}

// Limits bound all sandboxes together.
type Limits struct {
	Max Totals `toml:"max"`
}

// Totals are sums over all sandboxes that have not ended. Zero is no bound.
type Totals struct {
	Sandboxes        int      `toml:"sandboxes"`
	SandboxesPerUser int      `toml:"sandboxes_per_user"`
	KeptPerUser      int      `toml:"kept_per_user"` // ended, and not removed
	Memory           api.Size `toml:"memory"`
	CPUs             float64  `toml:"cpus"`
	Pids             int64    `toml:"pids"`
	Disk             api.Size `toml:"disk"` // writable layers
	// Of each user's volumes: how many, and the sum of their sizes.
	VolumesPerUser     int      `toml:"volumes_per_user"`
	VolumeBytesPerUser api.Size `toml:"volume_bytes_per_user"`
}

// Host is what the box must have left for one more sandbox. Zero is no bound.
type Host struct {
	Memory         api.Size `toml:"memory"`
	Pids           int64    `toml:"pids"`
	MemoryPressure float64  `toml:"memory_pressure"` // percent
	IOPressure     float64  `toml:"io_pressure"`
}

// Exec bounds execs.
type Exec struct {
	MaxPerSandbox int `toml:"max_per_sandbox"`
}

// Logs bounds kept output.
type Logs struct {
	MaxBytes api.Size `toml:"max_bytes"`
}

// Evidence says how often isolation is read back.
type Evidence struct {
	Interval api.Duration `toml:"interval"`
}

// Audit says how the audit log is kept.
type Audit struct {
	// Dir has its files; empty is "audit" in the state directory.
	Dir string `toml:"dir"`
	// FileSize is the size from which a new file is begun.
	FileSize api.Size `toml:"file_size"`
	// Keep is how many files are kept; 0 is all.
	Keep int `toml:"keep"`
	// Commands is "full" or "digest".
	Commands string `toml:"commands"`
	// Report is how often the report of agents is recorded; 0 is never.
	Report api.Duration `toml:"report"`
}

// Retention bounds what is kept of sandboxes that have ended. Zero is no bound.
type Retention struct {
	Age      api.Duration `toml:"age"`
	PerUser  int          `toml:"per_user"`
	All      int          `toml:"all"`
	LogBytes api.Size     `toml:"log_bytes"`
	Evidence int          `toml:"evidence"`
}

// Disk keeps a part of the state directory's file system free.
type Disk struct {
	Reserve api.Size `toml:"reserve"`
}

// Mounts says how callers may name directories.
type Mounts struct {
	Paths bool `toml:"paths"`
}

// Server bounds callers.
type Server struct {
	MaxConnections      int          `toml:"max_connections"`
	MaxStreams          int          `toml:"max_streams"`
	MaxTotalConnections int          `toml:"max_total_connections"`
	HeaderTimeout       api.Duration `toml:"header_timeout"`
	IdleTimeout         api.Duration `toml:"idle_timeout"`
	StallTimeout        api.Duration `toml:"stall_timeout"`
}

// Egress is of what sandboxes reach.
type Egress struct {
	// Roots is a file of certificates, as PEM, that servers are verified by
	// besides the host's.
	Roots string `toml:"roots"`
	// AskTTL is how long an approval waits.
	AskTTL api.Duration `toml:"ask_ttl"`
}

// Identity is of what sandboxes prove who they are by.
type Identity struct {
	// TrustDomain is the SPIFFE trust domain; empty for the one that there is, or
	// the host's name.
	TrustDomain string `toml:"trust_domain"`
}

// Log says what the daemon logs and how.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

// Defaults is the configuration when nothing is set.
func Defaults() Config {
	return Config{
		Version: 1, RunDir: "/run/creel", StateDir: "/var/lib/creel", BinDir: "/usr/lib/creel/bin",
		Socket: "/run/creel/creel.sock", SocketGroup: "creel",
		ProfilesDir: "/etc/creel/profiles", DefaultProfile: "default",
		Runtime:  Runtime{Default: "crun", Allowed: []string{"crun", "runc"}},
		IDs:      IDs{First: 0x7800_0000, Last: 0x7FFD_FFFF},
		Limits:   Limits{Max: Totals{Sandboxes: 1024, SandboxesPerUser: 256, KeptPerUser: 512, VolumesPerUser: 64, VolumeBytesPerUser: 64 << 30}},
		Host:     Host{Memory: 128 << 20, Pids: 1024, MemoryPressure: 20, IOPressure: 90},
		Exec:     Exec{MaxPerSandbox: 64},
		Logs:     Logs{MaxBytes: 64 << 20},
		Egress:   Egress{AskTTL: api.Duration(time.Hour)},
		Evidence: Evidence{Interval: api.Duration(10 * time.Minute)},
		Audit:    Audit{FileSize: 16 << 20, Keep: 64, Commands: "full", Report: api.Duration(24 * time.Hour)},
		Retention: Retention{
			Age: api.Duration(30 * 24 * time.Hour), PerUser: 256, All: 4096, LogBytes: 4 << 30, Evidence: 10_000,
		},
		Disk: Disk{Reserve: 512 << 20},
		Server: Server{
			MaxConnections: 256, MaxStreams: 192, MaxTotalConnections: 2048,
			HeaderTimeout: api.Duration(10 * time.Second), IdleTimeout: api.Duration(2 * time.Minute), StallTimeout: api.Duration(10 * time.Minute),
		},
		Log:       Log{Level: "info", Format: "text"},
		Operators: []string{}, Callers: []Caller{DefaultCaller()},
	}
}
