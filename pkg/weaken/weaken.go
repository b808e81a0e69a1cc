// Package weaken takes one layer of the isolation away when a test asks for it
// by a failpoint, to see that the proof refuses the sandbox. In a normal build
// failpoint.Enabled is false and none of it does anything.
package weaken

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/spec"
)

// Spec takes a layer out of the spec of a sandbox whose directory is dir.
func Spec(s *specs.Spec, dir string) {
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
	binds(s, filepath.Join(dir, "mnt")+"/", without)
	for name, fn := range map[string]func(){
		"layer.nnp":  func() { s.Process.NoNewPrivileges = false },
		"layer.root": func() { s.Root.Readonly = false },
		"layer.caps": func() {
			s.Process.Capabilities.Bounding = append(slices.Clone(s.Process.Capabilities.Bounding), "CAP_NET_RAW")
		},
		"layer.uid":        func() { s.Process.User.UID = spec.AgentUID - s.Process.User.UID }, // the other of the two
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
		"layer.mntns":  func() { drop(specs.MountNamespace) },
		"layer.swap":   func() { s.Linux.Resources.Memory.Swap = nil },
		"layer.devices": func() {
			s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		},
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

// binds is Spec for the caller's directories, which are staged below a path.
func binds(s *specs.Spec, staged string, without func(*specs.Mount, string)) {
	if failpoint.On("layer.mount.none") {
		s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Source, staged) })
	}
	for i := range s.Mounts {
		m := &s.Mounts[i]
		if !strings.HasPrefix(m.Source, staged) {
			continue
		}
		if failpoint.On("layer.mount.other") {
			m.Source = filepath.Join(m.Source, "src")
		}
		for _, flag := range []string{"nosuid", "nodev", "ro"} {
			if failpoint.On("layer.mount." + flag) {
				without(m, flag)
			}
		}
	}
}

// Mount takes a layer away from a staged mount, as it must be before the
// runtime binds it: a flag that is there then stays.
func Mount(staged, source string) error {
	if !failpoint.Enabled {
		return nil
	}
	for name, flag := range map[string]uint64{
		"nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV, "ro": unix.MOUNT_ATTR_RDONLY,
	} {
		if failpoint.On("layer.mount." + name) {
			return unix.MountSetattr(unix.AT_FDCWD, staged, unix.AT_SYMLINK_NOFOLLOW, &unix.MountAttr{Attr_clr: flag})
		}
	}
	if !failpoint.On("layer.mount.idmap") {
		return nil
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	if err := unix.Unmount(staged, unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, staged, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// Protected lets everything in a staged mount be written, or takes away what is
// mounted in it.
func Protected(staged string) error {
	switch {
	case !failpoint.Enabled:
	case failpoint.On("layer.mount.protect"):
		return unix.MountSetattr(unix.AT_FDCWD, staged, unix.AT_SYMLINK_NOFOLLOW|unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	case failpoint.On("layer.mount.unprotected"):
		return unix.Unmount(staged+"/.envrc", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	return nil
}

// otherInit is a second copy of creel-init beside the sandbox's own.
const otherInit = ".other"

// Init makes the sandbox's copy of creel-init readable, and with it PID 1
// dumpable, or puts another beside it, which makeCopy makes.
func Init(path string, makeCopy func(src, dst string) error) error {
	if failpoint.On("layer.dumpable") {
		return os.Chmod(path, 0o555)
	}
	if failpoint.On("layer.exe") {
		return makeCopy(path, path+otherInit)
	}
	return nil
}
