package launcher

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/spec"
)

// weaken takes one layer away when a test asks for it, to see that the proof
// refuses the sandbox. In a normal build failpoint.Enabled is false and this
// is nothing.
func weaken(s *specs.Spec) {
	if !failpoint.Enabled {
		return
	}
	drop := func(ns specs.LinuxNamespaceType) {
		kept := s.Linux.Namespaces[:0]
		for _, n := range s.Linux.Namespaces {
			if n.Type != ns {
				kept = append(kept, n)
			}
		}
		s.Linux.Namespaces = kept
	}
	mount := func(target string, change func(*specs.Mount)) {
		for i := range s.Mounts {
			if s.Mounts[i].Destination == target {
				change(&s.Mounts[i])
			}
		}
	}
	without := func(m *specs.Mount, option string) {
		kept := []string{}
		for _, o := range m.Options {
			if o != option {
				kept = append(kept, o)
			}
		}
		m.Options = kept
	}
	for name, fn := range map[string]func(){
		"layer.nnp":        func() { s.Process.NoNewPrivileges = false },
		"layer.root":       func() { s.Root.Readonly = false },
		"layer.caps":       func() { s.Process.Capabilities.Bounding = []string{"CAP_NET_RAW"} },
		"layer.uid":        func() { s.Process.User.UID = 0 },
		"layer.groups":     func() { s.Process.User.AdditionalGids = []uint32{0} },
		"layer.ipc":        func() { drop(specs.IPCNamespace) },
		"layer.uts":        func() { drop(specs.UTSNamespace); s.Hostname = "" },
		"layer.cgroupns":   func() { drop(specs.CgroupNamespace) },
		"layer.net":        func() { drop(specs.NetworkNamespace) },
		"layer.netown":     func() { s.Linux.Namespaces[len(s.Linux.Namespaces)-1].Path = "" },
		"layer.rlimit":     func() { s.Process.Rlimits = s.Process.Rlimits[1:] },
		"layer.masked":     func() { s.Linux.MaskedPaths = s.Linux.MaskedPaths[:1] },
		"layer.readonly":   func() { s.Linux.ReadonlyPaths = s.Linux.ReadonlyPaths[:1] },
		"layer.tmp.nosuid": func() { mount("/tmp", func(m *specs.Mount) { without(m, "nosuid") }) },
		"layer.tmp.nodev":  func() { mount("/tmp", func(m *specs.Mount) { without(m, "nodev") }) },
		"layer.tmp.size": func() {
			mount("/tmp", func(m *specs.Mount) { m.Options = []string{"nosuid", "nodev", "mode=1777"} })
		},
		"layer.memory": func() { s.Linux.Resources.Memory = nil },
		"layer.pids":   func() { s.Linux.Resources.Pids = nil },
		"layer.cpu":    func() { s.Linux.Resources.CPU = nil },
		"layer.oom":    func() { n := 10; s.Process.OOMScoreAdj = &n },
		"layer.userns": func() { s.Linux.UIDMappings[0].Size-- },
		"layer.pidns":  func() { drop(specs.PIDNamespace) },
		"layer.shared": func() { s.Linux.RootfsPropagation = "shared" },
		"layer.cgroup": func() { s.Linux.CgroupsPath += "x" },
		"layer.exe":    func() { mount(spec.InitPath, func(m *specs.Mount) { m.Source += otherInit }) },
		"layer.extramount": func() {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "tmpfs", Source: "tmpfs"})
		},
	} {
		if failpoint.On(name) {
			fn()
		}
	}
}

// otherInit is a second copy of creel-init beside the sandbox's own.
const otherInit = ".other"

// weakenInit makes the sandbox's copy of creel-init readable, and with it PID
// 1 dumpable, or puts another beside it.
func weakenInit(path string) error {
	if failpoint.On("layer.dumpable") {
		return os.Chmod(path, 0o555)
	}
	if failpoint.On("layer.exe") {
		return copyInit(path, path+otherInit)
	}
	return nil
}
