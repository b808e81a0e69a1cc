package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/share"

	"github.com/google/go-cmp/cmp"
)

// write puts files below a new directory and returns the path of creeld.toml.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "creeld.toml")
}

func TestDefaultTextIsTheDefaults(t *testing.T) {
	got, err := config.Load(write(t, map[string]string{"creeld.toml": config.Default()}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Defaults(), *got); diff != "" {
		t.Errorf("Default() read back (-Defaults +Default):\n%s", diff)
	}
	got, err = config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(config.Defaults(), *got); diff != "" {
		t.Errorf("no file (-want +got):\n%s", diff)
	}
}

func TestMerge(t *testing.T) {
	got, err := config.Load(write(t, map[string]string{
		"creeld.toml":           "version = 1\nrun_dir = '/r'\ncgroup.root = '/agents.slice/creel-2'\n[runtime]\nallowed = ['crun', 'runc']\n[log]\nlevel = 'debug'\n",
		"config.d/20-b.toml":    "log.level = 'warn'\n[limits.max]\ncpus = 3\nmemory = '8G'\n",
		"config.d/10-a.toml":    "[log]\nlevel = 'error'\nformat = 'json'\n[runtime]\nallowed = ['runc']\ndefault = 'runc'\n[evidence]\ninterval = '1m'\n",
		"config.d/.hidden.toml": "nonsense",
		"config.d/note.txt":     "nonsense",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := config.Defaults()
	want.RunDir, want.Cgroup.Root = "/r", "/agents.slice/creel-2"
	want.Log = config.Log{Level: "warn", Format: "json"}
	want.Runtime = config.Runtime{Default: "runc", Allowed: []string{"runc"}}
	want.Limits.Max.CPUs, want.Limits.Max.Memory = 3, 8<<30
	want.Evidence.Interval = api.Duration(time.Minute)
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
}

func TestGrants(t *testing.T) {
	got, err := config.Load(write(t, map[string]string{
		"creeld.toml": "version = 1\n[[share]]\npath = '/srv/x'\nagents = ['uid:1/a', 'uid:0/b']\n[[share]]\npath = '/srv/y'\nagents = ['uid:1/a', 'uid:1/c', 'uid:2/a']\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := []share.Grant{
		{Path: "/srv/x", Agents: []share.Agent{{UID: 1, Name: "a"}, {UID: 0, Name: "b"}}},
		{Path: "/srv/y", Agents: []share.Agent{{UID: 1, Name: "a"}, {UID: 1, Name: "c"}, {UID: 2, Name: "a"}}},
	}
	if diff := cmp.Diff(want, got.Share); diff != "" {
		t.Errorf("grants (-want +got):\n%s", diff)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  string // DIR stands for the directory
	}{
		{"missing", nil, "DIR/creeld.toml: no such file or directory"},
		{"syntax", map[string]string{"creeld.toml": "version = 1\nrun_dir = /run\n"}, "DIR/creeld.toml:2:11: "},
		{"no version", map[string]string{"creeld.toml": "run_dir = '/r'\n"}, "DIR/creeld.toml:1:1: version is missing; write version = 1"},
		{"version", map[string]string{"creeld.toml": "version = 2\n"}, "DIR/creeld.toml:1:1: version: 2 is not a version that this creeld reads; write 1"},
		{"all at once, in every file", map[string]string{
			"creeld.toml":     "version = 1\nrun_dirs = '/r'\nsocket = 'creel.sock'\nlevel = 'debug'\n[log]\nlevel = 'loud'\n  format = 3\n[ids]\nfirst = 1000\nlast = 0x80000000\n",
			"config.d/a.toml": "[logs]\nmax_bytes = 'lots'\n[exec]\nmax_per_sandbox = 0\n[server]\nmax_streams = 256\nidle_timeout = 90\n[nope]\nx = 1\n[runtime]\nallowed = ['crun', 'gvisor']\ndefault = 'runc'\n",
		}, `DIR/creeld.toml:4:1: unknown key "level"; there is log.level
DIR/creeld.toml:2:1: unknown key "run_dirs"
DIR/config.d/a.toml:9:1: unknown key "nope.x"
DIR/creeld.toml:7:3: log.format: 3 is not a string
DIR/config.d/a.toml:2:1: logs.max_bytes: "lots" is not a size; write bytes or a number with K, M, G or T
DIR/config.d/a.toml:7:1: server.idle_timeout: 90 is not a duration; write a string such as "90s"
DIR/creeld.toml:3:1: socket: "creel.sock" is not an absolute path without ".." or a slash at its end
DIR/config.d/a.toml:11:1: runtime.allowed: "gvisor" is not a runtime; there are crun and runc
DIR/config.d/a.toml:12:1: runtime.default: "runc" is not among runtime.allowed
DIR/creeld.toml:6:1: log.level: "loud" is not debug, info, warn or error
DIR/creeld.toml:9:1: ids.first: 0x3e8 is not a multiple of 65536 above 0
DIR/creeld.toml:10:1: ids.last: 0x80000000 is not a multiple of 65536, less one, below 2^31
DIR/config.d/a.toml:4:1: exec.max_per_sandbox: 0 is not from 1 to 4096
DIR/config.d/a.toml:6:1: server.max_streams: 256 is not from 1 to 255 (one less than server.max_connections)`},
		{"cgroup root", map[string]string{"creeld.toml": "version = 1\n[cgroup]\nroot = '/a/../b'\n"}, `DIR/creeld.toml:3:1: cgroup.root: "/a/../b" is not a cgroup such as "/creel": names of letters, digits, "_", "-", ".", ":" and "@", each after a slash and not starting with a dot`},
		{"grants", map[string]string{
			"creeld.toml":     "version = 1\n[[share]]\npath = '/ignored'\n",
			"config.d/a.toml": "[[share]]\npath = '/srv/x'\nagents = ['uid:1/a', 'uid:2/b']\n\n[[share]]\n  path = 'srv/../y'\n  agents = ['uid:1/a', '2/b', 'uid:1/A']\n  mode = 'rw'\n[[share]]\nagents = ['uid:1/a', 'uid:1/a']\n[[share]]\npath = '/'\nagents = 'uid:1/a'\n[[share]]\npath = '/z'\nagents = ['uid:1/a']\n",
		}, `DIR/config.d/a.toml:8:3: share[1].mode: unknown key; a grant has path and agents
DIR/config.d/a.toml:6:3: share[1].path: "srv/../y" is not an absolute path without ".." or a slash at its end
DIR/config.d/a.toml:7:3: share[1].agents: "2/b" is not a caller's uid and an agent, such as "uid:1000/coder"
DIR/config.d/a.toml:7:3: share[1].agents: "uid:1/A" is not a caller's uid and an agent, such as "uid:1000/coder"
DIR/config.d/a.toml:9:1: share[2].path: "" is not an absolute path without ".." or a slash at its end
DIR/config.d/a.toml:10:1: share[2].agents: uid:1/a is there twice
DIR/config.d/a.toml:12:1: share[3].path: "/" is not an absolute path without ".." or a slash at its end
DIR/config.d/a.toml:13:1: share[3].agents: there is no array such as ["uid:1000/coder", "uid:1001/tester"]
DIR/config.d/a.toml:16:1: share[4].agents: two agents or more share a directory: [uid:1/a] are not`},
		{"no grants", map[string]string{"creeld.toml": "version = 1\nshare = [1]\n"}, "DIR/creeld.toml:2:1: share[0]: 1 is not a table with path and agents"},
		{"a grant as a table", map[string]string{"creeld.toml": "version = 1\n[share]\npath = '/x'\n"}, "DIR/creeld.toml:2:1: share: write each grant as a table, [[share]], with path and agents"},
		{"table for a value", map[string]string{"creeld.toml": "version = 1\n[socket]\npath = '/x'\n"}, "DIR/creeld.toml:2:1: socket: map[path:/x] is not a string"},
		{"value for a table", map[string]string{"creeld.toml": "version = 1\nlog = 'debug'\n"}, `DIR/creeld.toml:2:1: unknown key "log"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, tt.files)
			err := config.Check(path)
			if err == nil {
				t.Fatal("no error")
			}
			got := strings.ReplaceAll(err.Error(), filepath.Dir(path), "DIR")
			if tt.name == "syntax" { // the rest is the decoder's wording
				got = got[:min(len(got), len(tt.want))]
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Check (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNotARegularFile(t *testing.T) {
	dir := t.TempDir()
	if err := config.Check(dir); err == nil || !strings.HasSuffix(err.Error(), ": not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}

// TestWhoCanWriteIsRoot: as root, a file that others can write is refused.
func TestWhoCanWriteIsRoot(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	for name, change := range map[string]func(string) error{
		"another owner":  func(p string) error { return os.Chown(p, 1000, 0) },
		"group writable": func(p string) error { return os.Chmod(p, 0o664) },
		"world writable": func(p string) error { return os.Chmod(p, 0o646) },
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, map[string]string{"creeld.toml": "version = 1\n", "config.d/a.toml": ""})
			if err := config.Check(path); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{path, filepath.Join(filepath.Dir(path), "config.d", "a.toml")} {
				if err := change(p); err != nil {
					t.Fatal(err)
				}
				if err := config.Check(path); err == nil || !strings.Contains(err.Error(), p+": uid ") {
					t.Errorf("%s: Check = %v, want a refusal", p, err)
				}
				if err := os.Chown(p, 0, 0); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(p, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCallers reads [[caller]] tables: each begins as the shipped one, and what
// is wrong is told where it is.
func TestCallers(t *testing.T) {
	got, err := config.Load(write(t, map[string]string{"creeld.toml": `version = 1
operators = ["group:adm", "uid:7"]
[[caller]]
match = "user:gateway"
profiles = []
memory = "1G"
socket = true
[[caller]]
match = "default"
mounts = ["/srv:ro", "own"]
`}))
	if err != nil {
		t.Fatal(err)
	}
	first, second := config.DefaultCaller(), config.DefaultCaller()
	first.Match, first.Profiles, first.Memory, first.Socket = "user:gateway", []string{}, 1<<30, true
	second.Match, second.Mounts = "default", []string{"/srv:ro", "own"}
	if diff := cmp.Diff([]config.Caller{first, second}, got.Callers); diff != "" {
		t.Errorf("callers (-want +got):\n%s", diff)
	}
	path := write(t, map[string]string{"creeld.toml": `version = 1
operators = ["root"]
[[caller]]
match = "default"
[[caller]]
match = "users"
secretz = ["*"]
mounts = ["home/", "/a/../b"]
sandboxes = -1
connections = 1
cpus = "many"
images = ["["]
runtimes = ["gvisor"]
[[caller]]
match = "default"
`})
	want := `DIR/creeld.toml:11:1: caller.cpus: many is not a number
DIR/creeld.toml:7:1: unknown key "secretz" in [[caller]]
DIR/creeld.toml:6:1: caller.match: "users" is nobody; write "user:NAME", "uid:NUMBER", "group:NAME" or "gid:NUMBER", "socket_group" or "default"
DIR/creeld.toml:12:1: caller.images: "[" is not "box", "own" or a pattern such as "team/*"
DIR/creeld.toml:8:1: caller.mounts: "home/" is not "own", "*" or an absolute path without ".." or a slash at its end, each with ":ro" or without
DIR/creeld.toml:8:1: caller.mounts: "/a/../b" is not "own", "*" or an absolute path without ".." or a slash at its end, each with ":ro" or without
DIR/creeld.toml:13:1: caller.runtimes: "gvisor" is not a runtime; there are crun and runc
DIR/creeld.toml:9:1: caller.sandboxes: -1 is not from 0 to 32768
DIR/creeld.toml:10:1: caller.connections: 1 is not enough: a stream and a request that ends it need two
DIR/creeld.toml:2:1: operators: "root" is nobody; write "user:NAME", "uid:NUMBER", "group:NAME" or "gid:NUMBER"
DIR/creeld.toml:3:1: caller: two tables are for "default"`
	err = config.Check(path)
	if err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(want, strings.ReplaceAll(err.Error(), filepath.Dir(path), "DIR")); diff != "" {
		t.Errorf("Check (-want +got):\n%s", diff)
	}
}
