package admission_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/profiles"
)

func policy(tb testing.TB) admission.Policy {
	tb.Helper()
	set, err := profile.Load(profiles.FS)
	if err != nil {
		tb.Fatal(err)
	}
	return admission.Policy{Profiles: set, DefaultProfile: "default", DefaultRuntime: "crun", Runtimes: []string{"crun", "runc"}}
}

func TestResolveDefaults(t *testing.T) {
	a, err := admission.Resolve(api.SpawnRequest{}, policy(t))
	if err != nil {
		t.Fatal(err)
	}
	r := a.Request
	if r.Profile != "default" || r.Image != "base" || r.Runtime != "crun" || r.Network != "none" || r.Rootfs != "readonly" || r.Workdir != spec.Home {
		t.Errorf("defaults are %+v", r)
	}
	if a.Limits.Memory != 2<<30 || a.Limits.Tmp != 512<<20 || a.Limits.ShmSize != 256<<20 || a.Limits.OnIdle != "pause" {
		t.Errorf("limits are %+v", a.Limits)
	}
}

// TestShm: what is not asked for follows the memory.
func TestShm(t *testing.T) {
	for _, tt := range []struct {
		profile string
		limits  api.Limits
		want    api.Size
	}{
		{"default", api.Limits{}, 256 << 20},
		{"default", api.Limits{Memory: 16 << 30}, 256 << 20},
		{"default", api.Limits{Memory: 64 << 20}, 8 << 20},
		{"strict", api.Limits{}, 64 << 20},
		{"default", api.Limits{Memory: 64 << 20, ShmSize: 32 << 20}, 32 << 20},
		{"default", api.Limits{ShmSize: 1 << 30}, 1 << 30},
	} {
		a, err := admission.Resolve(api.SpawnRequest{Profile: tt.profile, Limits: tt.limits}, policy(t))
		if err != nil || a.Limits.ShmSize != tt.want {
			t.Errorf("%s, %+v: %v, %v; want %s", tt.profile, tt.limits, a, err, tt.want)
		}
	}
}

func TestResolveProblems(t *testing.T) {
	mount := func(target string) api.SpawnRequest {
		return api.SpawnRequest{Mounts: []api.Mount{{Source: "/x", FD: new(0), Target: target}}}
	}
	tests := []struct {
		name   string
		req    api.SpawnRequest
		fields []string
	}{
		{"profile", api.SpawnRequest{Profile: "none"}, []string{"profile"}},
		{"all at once", api.SpawnRequest{Name: "A", Agent: "-", Image: "..", Runtime: "x", Network: "host", Rootfs: "rw"}, []string{"name", "agent", "image", "runtime", "network", "rootfs"}},
		{"mount without a descriptor", api.SpawnRequest{Mounts: []api.Mount{{Source: "/x", Target: "/w"}}}, []string{"mounts[0].fd"}},
		{"a volume and a directory", api.SpawnRequest{Mounts: []api.Mount{{Volume: "v", FD: new(0), Target: "/w"}, {Volume: "v", Source: "/x", Target: "/y"}}}, []string{"mounts[0].volume", "mounts[1].volume"}},
		{"no volume's name", api.SpawnRequest{Mounts: []api.Mount{{Volume: "../v", Target: "/w"}}}, []string{"mounts[0].volume"}},
		{"no such home", api.SpawnRequest{Home: "shared"}, []string{"home"}},
		{"strict keeps nothing", api.SpawnRequest{Profile: "strict", Home: "persistent"}, []string{"home"}},
		{"protected, and not to be written", api.SpawnRequest{Mounts: []api.Mount{{Volume: "v", Target: "/v", Protect: true}, {FD: new(0), Target: "/w", ReadOnly: true, Protect: true}}}, []string{"mounts[0].protect", "mounts[1].protect"}},
		{"too many protected", api.SpawnRequest{Mounts: []api.Mount{
			{FD: new(0), Target: "/a", Protect: true},
			{FD: new(1), Target: "/b", Protect: true},
			{FD: new(2), Target: "/c", Protect: true},
			{FD: new(3), Target: "/d", Protect: true},
			{FD: new(4), Target: "/e"},
			{FD: new(5), Target: "/f", Protect: true},
		}}, []string{"mounts[5].protect"}},
		{"mounts in a persistent home", api.SpawnRequest{Home: "persistent", Mounts: []api.Mount{{Volume: "v", Target: "/home/agent/v"}, {Volume: "w", Target: "/w"}}}, []string{"mounts[0].target"}},
		{"another's home as a volume", api.SpawnRequest{Mounts: []api.Mount{{Volume: "other.home", Target: "/w", ReadOnly: true}}}, []string{"mounts[0].volume"}},
		{"volume over home", api.SpawnRequest{Mounts: []api.Mount{{Volume: "v", Target: "/home/agent"}}}, []string{"mounts[0].target"}},
		{"strict writes no volume", api.SpawnRequest{Profile: "strict", Mounts: []api.Mount{{Volume: "v", Target: "/w"}}}, []string{"mounts[0].readonly"}},
		{"build has no directory", api.SpawnRequest{Profile: "build", Mounts: []api.Mount{{FD: new(0), Target: "/w", ReadOnly: true}}}, []string{"mounts"}},
		{"build has no volume", api.SpawnRequest{Profile: "build", Mounts: []api.Mount{{Volume: "v", Target: "/w"}}}, []string{"mounts"}},
		{"build is not read-only", api.SpawnRequest{Profile: "build", Rootfs: "readonly"}, []string{"rootfs"}},
		{"mount over root", mount("/"), []string{"mounts[0].target"}},
		{"mount over proc", mount("/proc"), []string{"mounts[0].target"}},
		{"mount in dev", mount("/dev/x"), []string{"mounts[0].target"}},
		{"mount over home", mount("/home"), []string{"mounts[0].target"}},
		{"unclean", mount("/a/../b"), []string{"mounts[0].target"}},
		{"relative", mount("a"), []string{"mounts[0].target"}},
		{"control character", mount("/a\x1b"), []string{"mounts[0].target"}},
		{"mounts over its own socket", api.SpawnRequest{Socket: true, Mounts: []api.Mount{{FD: new(0), Target: "/run/creel"}, {FD: new(1), Target: "/run"}, {Volume: "v", Target: "/run/creel/x"}, {Volume: "w", Target: "/run/creels"}}}, []string{"mounts[0].target", "mounts[1].target", "mounts[2].target"}},
		{"one place twice", api.SpawnRequest{Mounts: []api.Mount{{FD: new(0), Target: "/w/x"}, {FD: new(1), Target: "/w"}, {Volume: "v", Target: "/w/x"}}}, []string{"mounts[2].target"}},
		{"strict is read-only", api.SpawnRequest{Profile: "strict", Mounts: []api.Mount{{FD: new(0), Target: "/w"}}}, []string{"mounts[0].readonly"}},
		{"too much memory", api.SpawnRequest{Limits: api.Limits{Memory: 1 << 50}}, []string{"limits.memory"}},
		{"too little of all", api.SpawnRequest{Limits: api.Limits{Memory: 1, Pids: 1, Files: 1, CPUs: 0.0001}}, []string{"limits.memory", "limits.pids", "limits.files", "limits.cpus"}},
		{"tmp above half", api.SpawnRequest{Limits: api.Limits{Memory: 64 << 20, Tmp: 40 << 20}}, []string{"limits.tmp"}},
		{"shm above half", api.SpawnRequest{Limits: api.Limits{Memory: 64 << 20, ShmSize: 33 << 20}}, []string{"limits.shm_size"}},
		{"shm and tmp above three quarters", api.SpawnRequest{Limits: api.Limits{Memory: 64 << 20, ShmSize: 30 << 20, Tmp: 30 << 20}}, []string{"limits.shm_size"}},
		{"shm too small", api.SpawnRequest{Limits: api.Limits{ShmSize: 1}}, []string{"limits.shm_size"}},
		{"shm above the profile's", api.SpawnRequest{Profile: "strict", Limits: api.Limits{Memory: 2 << 30, ShmSize: 512 << 20}}, []string{"limits.shm_size"}},
		{"nul", api.SpawnRequest{Command: []string{"a\x00b"}}, []string{"command[0]"}},
		{"env name", api.SpawnRequest{Command: []string{"a"}, Env: map[string]string{"A B": ""}}, []string{"env"}},
		{"tty without a command", api.SpawnRequest{TTY: true}, []string{"tty"}},
		{"too long", api.SpawnRequest{Command: []string{strings.Repeat("x", 200<<10)}}, []string{"command"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := admission.Resolve(tt.req, policy(t))
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeInvalid {
				t.Fatalf("error is %v", err)
			}
			var got []string
			for _, p := range e.Problems {
				got = append(got, p.Field)
				if p.Want == "" {
					t.Errorf("%s does not say what would be right", p.Field)
				}
			}
			for _, f := range tt.fields {
				if !slices.Contains(got, f) {
					t.Errorf("problems are of %q, want %q", got, f)
				}
			}
		})
	}
}

// TestOneInAnother: targets may lie in one another in any order.
func TestOneInAnother(t *testing.T) {
	req := api.SpawnRequest{Mounts: []api.Mount{
		{FD: new(0), Target: "/w/a/b", ReadOnly: true}, {FD: new(1), Target: "/w"}, {Volume: "v", Target: "/w/a"}, {Volume: "u", Target: "/w2"},
	}}
	if _, err := admission.Resolve(req, policy(t)); err != nil {
		t.Error(err)
	}
}

func TestVolume(t *testing.T) {
	req := api.VolumeRequest{Name: "work"}
	if err := admission.Volume(&req); err != nil || req.Agent != "default" || req.Size != 1<<30 {
		t.Errorf("defaults are %+v, %v", req, err)
	}
	req = api.VolumeRequest{Name: "work", Agent: "a", Size: 17<<20 + 5}
	if err := admission.Volume(&req); err != nil || req.Agent != "a" || req.Size != 17<<20 {
		t.Errorf("resolved to %+v, %v", req, err)
	}
	var e *api.Error
	err := admission.Volume(&api.VolumeRequest{Name: "A", Agent: "-", Size: 1})
	if !errors.As(err, &e) || e.Code != api.CodeInvalid || len(e.Problems) != 3 {
		t.Errorf("error is %v", err)
	}
}

// TestRoot: root is for who asks for it by name.
func TestRoot(t *testing.T) {
	pol := policy(t)
	a, err := admission.Resolve(api.SpawnRequest{Profile: "build"}, pol)
	if err != nil {
		t.Fatal(err)
	}
	env := admission.Env(a.Profile.User, nil, false)
	if a.Request.Workdir != "/root" || env["HOME"] != "/root" || env["USER"] != "root" || a.Request.Rootfs != "ephemeral" {
		t.Errorf("resolved to %+v with %v", a.Request, env)
	}
	pol.DefaultProfile = "build"
	var e *api.Error
	if _, err := admission.Resolve(api.SpawnRequest{}, pol); !errors.As(err, &e) || len(e.Problems) != 1 || e.Problems[0].Field != "profile" {
		t.Errorf("root by default: %v", err)
	}
}

// FuzzResolve holds what every admitted request has, whatever it asked for.
func FuzzResolve(f *testing.F) {
	f.Add([]byte(`{"command":["true"],"limits":{"memory":"64M","cpus":0.5},"env":{"A":"b"}}`))
	f.Add([]byte(`{"profile":"strict","rootfs":"ephemeral","mounts":[{"source":"/","fd":0,"target":"/w"}]}`))
	f.Add([]byte(`{"profile":"build","mounts":[{"volume":"v","target":"/w"}]}`))
	f.Add([]byte(`{"limits":{"tmp":"1T","pids":-1,"ttl":"-1s"}}`))
	pol := policy(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req api.SpawnRequest
		if json.Unmarshal(raw, &req) != nil {
			return
		}
		a, err := admission.Resolve(req, pol)
		if err != nil {
			if api.CodeOf(err) != api.CodeInvalid {
				t.Fatalf("error of class %s: %v", api.CodeOf(err), err)
			}
			return
		}
		l, top := a.Limits, a.Profile.Limits.Max
		if l.Memory < 16<<20 || l.Memory > top.Memory || l.Pids < 1 || l.Pids > top.Pids || l.Files < 1 || l.CPUs <= 0 || l.CPUs > top.CPUs || l.Tmp <= 0 || l.Tmp > l.Memory/2 || l.ShmSize <= 0 || l.Tmp+l.ShmSize > l.Memory/4*3 {
			t.Errorf("admitted with limits %+v", l)
		}
		for _, m := range a.Request.Mounts {
			if a.Profile.NoMounts || (m.FD == nil) != (m.Volume != "") || !a.Profile.WritableMounts && !m.ReadOnly || strings.Contains(m.Target, "..") || strings.HasPrefix(m.Target, "/proc") || strings.HasPrefix(m.Target, "/dev") {
				t.Errorf("admitted mount %+v", m)
			}
		}
		if a.Profile.Root() && req.Profile == "" {
			t.Error("root by default")
		}
		s := spec.Build(spec.Sandbox{Limits: l, Tmpfs: a.Tmpfs})
		if !s.Process.NoNewPrivileges || len(s.Process.Capabilities.Bounding) != 0 {
			t.Error("an admitted request became privileged")
		}
	})
}

func TestExecProblems(t *testing.T) {
	labels := map[string]string{}
	for i := range 16 {
		labels[fmt.Sprint(i)] = strings.Repeat("v", 256)
	}
	ok := api.ExecRequest{Command: []string{"true"}, Labels: labels, IO: "fds"}
	if err := admission.Exec(ok); err != nil {
		t.Errorf("Exec(%+v) = %v", ok, err)
	}
	more := maps.Clone(labels)
	more["one more"] = ""
	for name, req := range map[string]api.ExecRequest{
		"no command":      {},
		"too many labels": {Command: []string{"true"}, Labels: more},
		"a long label":    {Command: []string{"true"}, Labels: map[string]string{"k": strings.Repeat("v", 257)}},
		"no label's name": {Command: []string{"true"}, Labels: map[string]string{"": "v"}},
		"control codes":   {Command: []string{"true"}, Labels: map[string]string{"k": "\x1b[2J"}},
		"io":              {Command: []string{"true"}, IO: "tape"},
	} {
		if err := admission.Exec(req); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
