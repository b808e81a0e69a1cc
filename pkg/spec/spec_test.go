package spec_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/spec"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

func base() spec.Sandbox {
	lim := api.Limits{Memory: 2 << 30, CPUs: 1.5, Pids: 512, Files: 4096, IOWeight: 100, Tmp: 512 << 20, ShmSize: 256 << 20}
	return spec.Sandbox{
		ID: "aaaabbbbccccddddeeee", HostUID: 0x7800_0000, Profile: "default", Runtime: "crun",
		CgroupsPath: "/creel/aaaabbbbccccddddeeee", NetNS: "/proc/1/fd/9",
		InitSource: "/run/creel/sandboxes/aaaabbbbccccddddeeee/init", Hostname: "web",
		Limits: lim, ReadonlyRoot: true, Tmpfs: spec.TmpfsOf(lim, true, false),
	}
}

func TestBuild(t *testing.T) {
	workspace := base()
	workspace.Mounts = []spec.Mount{
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/0", Target: "/workspace"},
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/1", Target: "/data", ReadOnly: true},
	}
	nested := base()
	nested.Mounts = []spec.Mount{
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/0", Target: "/workspace/.git", ReadOnly: true},
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/1", Target: "/workspace"},
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/2", Target: "/workspace/a/b"},
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/3", Target: "/workspace-2"},
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/4", Target: "/data", ReadOnly: true},
		{Source: "/run/creel/sandboxes/aaaabbbbccccddddeeee/mnt/5", Target: "/data/out"},
	}
	ephemeral := base()
	ephemeral.ReadonlyRoot = false
	ephemeral.Tmpfs = spec.TmpfsOf(ephemeral.Limits, false, false)
	root := ephemeral
	root.User, root.Capabilities = api.UserRoot, []string{"CHOWN", "SETUID"}
	v2 := base()
	v2.CgroupMount, v2.SwapLimit, v2.IOWeight = true, true, true
	socket := workspace
	socket.SocketSource = "/run/creel/sandboxes/aaaabbbbccccddddeeee/socket"
	network := base()
	network.ResolvConf, network.TrustSource = "/run/creel/sandboxes/aaaabbbbccccddddeeee/resolv.conf", "/run/creel/trust/1000"
	for name, sb := range map[string]spec.Sandbox{
		"socket": socket, "network": network,
		"default": base(), "workspace": workspace, "nested": nested, "ephemeral": ephemeral, "cgroup-v2": v2, "root": root,
	} {
		t.Run(name, func(t *testing.T) { golden(t, name, spec.Build(sb)) })
	}
}

// TestNeverPrivileged holds what no field of a sandbox may change.
func TestNeverPrivileged(t *testing.T) {
	for _, ro := range []bool{true, false} {
		sb := base()
		sb.ReadonlyRoot = ro
		s := spec.Build(sb)
		if !s.Process.NoNewPrivileges || s.Process.User.UID == 0 || s.Process.User.GID == 0 {
			t.Error("the process could gain privilege")
		}
		if cmp.Diff(s.Process.Capabilities, &specs.LinuxCapabilities{}) != "" {
			t.Error("the process has capabilities")
		}
		var kinds []string
		for _, ns := range s.Linux.Namespaces {
			kinds = append(kinds, string(ns.Type))
		}
		slices.Sort(kinds)
		if got := strings.Join(kinds, " "); got != "cgroup ipc mount network pid user uts" {
			t.Errorf("namespaces are %q", got)
		}
		for _, m := range s.Mounts {
			if !slices.Contains(m.Options, "nosuid") {
				t.Errorf("%s is not nosuid", m.Destination)
			}
			if strings.HasPrefix(m.Source, "/") && m.Type != "bind" || m.Type == "sysfs" {
				t.Errorf("%s shows the host by %s", m.Destination, m.Type)
			}
			if m.Type == "bind" && slices.Contains(m.Options, "rbind") {
				t.Errorf("%s is recursive", m.Destination)
			}
		}
		if s.Hooks != nil || len(s.Annotations) != 0 || s.Linux.Seccomp != nil {
			t.Error("hooks, annotations or a runtime's seccomp in the spec")
		}
	}
}

// TestRoot: uid 0 with what was listed and no more, and only when it is said.
func TestRoot(t *testing.T) {
	sb := base()
	sb.Capabilities = []string{"CHOWN"}
	if s := spec.Build(sb); len(s.Process.Capabilities.Bounding) != 0 || s.Process.User.UID != spec.AgentUID {
		t.Errorf("the agent is %d with %+v", s.Process.User.UID, s.Process.Capabilities)
	}
	sb.User = api.UserRoot
	s := spec.Build(sb)
	only := []string{"CAP_CHOWN"}
	want := &specs.LinuxCapabilities{Bounding: only, Permitted: only, Effective: only}
	if diff := cmp.Diff(want, s.Process.Capabilities); diff != "" || s.Process.User.UID != 0 || !s.Process.NoNewPrivileges {
		t.Errorf("root (-want +got):\n%s", diff)
	}
}

func TestTmpfsIsBelowItsTotal(t *testing.T) {
	for _, ro := range []bool{true, false} {
		for _, total := range []api.Size{1 << 20, 5 << 20, 512 << 20, 8 << 30} {
			var sum api.Size
			for _, m := range spec.TmpfsOf(api.Limits{Tmp: total, ShmSize: total + 5}, ro, false) {
				if m.Size%4096 != 0 || m.Size == 0 {
					t.Errorf("%s of %s: %d bytes is not a whole number of pages", m.Target, total, m.Size)
				}
				if m.Target == "/dev/shm" {
					if m.Size != total {
						t.Errorf("/dev/shm of %d has %d bytes", total+5, m.Size)
					}
					continue
				}
				sum += m.Size
			}
			if sum > total {
				t.Errorf("tmpfs of %s add up to %s", total, sum)
			}
		}
	}
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s changed (-want +got), run with -update if that is meant, and review it as a security change:\n%s", file, diff)
	}
}
