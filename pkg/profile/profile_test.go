package profile_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/profiles"
)

func TestEmbeddedProfilesLoad(t *testing.T) {
	set, err := profile.Load(profiles.FS)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"default", "strict", "build"} {
		if _, err := set.Get(name); err != nil {
			t.Error(err)
		}
	}
	if p, _ := set.Get("strict"); p.WritableMounts {
		t.Error("strict has writable mounts")
	}
	for name, p := range set {
		if p.Root() != (name == "build") || !p.Root() && len(p.Capabilities) > 0 {
			t.Errorf("%s is root: %t, with %q", name, p.Root(), p.Capabilities)
		}
	}
}

func TestParseErrors(t *testing.T) {
	good, err := profiles.FS.ReadFile("default.toml")
	if err != nil {
		t.Fatal(err)
	}
	edit := func(from, to string) string {
		s := strings.Replace(string(good), from, to, 1)
		if s == string(good) {
			t.Fatalf("no %q in default.toml", from)
		}
		return s
	}
	for name, tt := range map[string]struct{ text, want string }{
		"unknown key":   {edit("[limits]", "[limits]\nswap = 1"), `line 55, column 1: unknown key "limits.swap"`},
		"syntax":        {edit("version = 1", "version ="), "line 2"},
		"version":       {edit("version = 1", "version = 2"), "version: is 2"},
		"no seccomp":    {edit(`seccomp = "default"`, `seccomp = ""`), "seccomp:"},
		"climbing":      {edit(`seccomp = "default"`, `seccomp = "../x"`), "seccomp:"},
		"rootfs":        {edit(`["readonly", "ephemeral"]`, `["shared"]`), "rootfs:"},
		"home":          {edit(`home = ["ephemeral", "persistent"]`, `home = ["shared"]`), `home: "shared" must be`},
		"no home":       {edit(`home = ["ephemeral", "persistent"]`, `home = []`), "home: must list"},
		"home's size":   {edit(`home_size = "4G"`, `home_size = "4K"`), "home_size: 4K must be from 16M to 8T"},
		"no home size":  {edit(`home_size = "4G"`, ``), "home_size: 0 must be from"},
		"size alone":    {edit(`home = ["ephemeral", "persistent"]`, ``), "home_size: has no meaning"},
		"above its max": {edit(`memory = "2G"`, `memory = "32G"`), "limits.memory: is above"},
		"no pids":       {edit("pids = 512", "pids = 0"), "limits.pids: must be more than zero"},
		"shm":           {edit(`# shm_size = ""`, `shm_size = "1025M"`), "limits.shm_size: must be at most half"},
		"shm and tmp":   {edit(`# shm_size = ""`, "shm_size = \"1G\"\ntmp = \"1G\""), "limits.shm_size: must be"},
		"every name":    {edit(`# egress = ["api`, "egress = [\"http *\"]\n# [\"api"), `egress: "http *:80": want a host`},
		"observe":       {edit(`network = ["none", "policy"]`, "network = [\"none\"]\nobserve = true"), "observe: has no meaning"},
		"on idle":       {edit(`on_idle = "pause"`, `on_idle = "sleep"`), "limits.on_idle"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := profile.Parse([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestRoot: a root comes with what keeps it to its own layer, or not at all.
func TestRoot(t *testing.T) {
	good, err := profiles.FS.ReadFile("build.toml")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ from, to, want string }{
		"mounts":          {"no_mounts = true", "no_mounts = false", "no_mounts: must be true"},
		"writable mounts": {"writable_mounts = false", "writable_mounts = true", "no_mounts: must be true"},
		"readonly root":   {`["ephemeral"]`, `["ephemeral", "readonly"]`, "rootfs: must be"},
		"commands":        {`"required"`, `"preferred"`, "exec_isolation: must be"},
		"another user":    {`user = "root"`, `user = "toor"`, "user:"},
		"an agent's":      {`user = "root"`, `user = "agent"`, "capabilities: only with"},
		"CAP_":            {`"CHOWN"`, `"CAP_CHOWN"`, `capabilities: "CAP_CHOWN" must be one of`},
		"twice":           {`"CHOWN"`, `"SETUID"`, "twice"},
		"SYS_ADMIN":       {`"CHOWN"`, `"SYS_ADMIN"`, "capabilities:"},
		"SYS_PTRACE":      {`"CHOWN"`, `"SYS_PTRACE"`, "capabilities:"},
		"MKNOD":           {`"CHOWN"`, `"MKNOD"`, "capabilities:"},
		"SETFCAP":         {`"CHOWN"`, `"SETFCAP"`, "capabilities:"},
		"NET_ADMIN":       {`"CHOWN"`, `"NET_ADMIN"`, "capabilities:"},
		"ALL":             {`"CHOWN"`, `"ALL"`, "capabilities:"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(string(good), tt.from, tt.to, 1)
			if _, err := profile.Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestOverridesWin(t *testing.T) {
	text, err := profiles.FS.ReadFile("strict.toml")
	if err != nil {
		t.Fatal(err)
	}
	mine := strings.Replace(string(text), `memory = "512M"`, `memory = "256M"`, 1)
	set, err := profile.Load(profiles.FS, fstest.MapFS{"strict.toml": {Data: []byte(mine)}})
	if err != nil {
		t.Fatal(err)
	}
	if p, _ := set.Get("strict"); p.Limits.Memory != 256<<20 {
		t.Errorf("memory is %s", p.Limits.Memory)
	}
	if set, err := profile.Load(profiles.FS, fstest.MapFS{"protect.toml": {Data: []byte("names = []")}}); err != nil || set["protect"] != nil {
		t.Errorf("the list of protected names is a profile: %v, %v", set["protect"], err)
	}
	if _, err := profile.Load(profiles.FS, fstest.MapFS{"other.toml": {Data: []byte(mine)}}); err == nil {
		t.Error("a file that is not called by its profile's name was taken")
	}
}

// FuzzParse: what parses is usable, and nothing makes it panic.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"default.toml", "strict.toml", "build.toml"} {
		text, err := profiles.FS.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := profile.Parse(text)
		if err != nil {
			return
		}
		if p.Limits.Memory <= 0 || p.Limits.Pids <= 0 || len(p.Rootfs) == 0 || p.Limits.Tmp > p.Limits.Memory/2 || p.Limits.Tmp+p.Limits.ShmSize > p.Limits.Memory/4*3 {
			t.Errorf("parsed to %+v", p)
		}
	})
}
