package launcher

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/verify"
)

// specOf is the resolved sandbox of a record: at the launch and, for the
// proof, ever after. The network namespace's path is the launch's alone.
func (l *Launcher) specOf(r *store.Record) spec.Sandbox {
	ro := r.Sandbox.Rootfs == "readonly"
	s := spec.Sandbox{
		ID: r.Sandbox.ID, HostUID: r.Sandbox.HostUID, Profile: r.Sandbox.Profile, Runtime: r.Sandbox.Runtime,
		CgroupsPath: r.CgroupsPath, InitSource: filepath.Join(l.dir(r.Sandbox.ID), "init"),
		Hostname: r.Sandbox.Name, Limits: r.Sandbox.Limits, ReadonlyRoot: ro,
		User: r.Sandbox.User, Capabilities: r.Sandbox.Capabilities,
		Tmpfs:       spec.TmpfsOf(r.Sandbox.Limits, ro, r.Sandbox.Home == "persistent"),
		CgroupMount: l.Cgroups.Version() == "v2",
		SwapLimit:   l.Cgroups.LimitsSwap(),
		IOWeight:    l.Cgroups.WeighsIO(),
	}
	if r.Sandbox.Socket {
		s.SocketSource = l.socketDir(r.Sandbox.ID)
	}
	if reaches(&r.Sandbox) {
		s.ResolvConf = l.resolvConf(r.Sandbox.ID)
	}
	if opened(&r.Sandbox) {
		s.TrustSource = l.trustDir(&r.Sandbox)
	}
	for _, m := range r.Mounts {
		s.Mounts = append(s.Mounts, spec.Mount{Source: m.Staged, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	return s
}

// devices are what the OCI spec gives every container
// (runtime-spec, config-linux.md, "Default Devices"); in a user namespace the
// runtimes bind the host's. The numbers are the kernel's
// (Documentation/admin-guide/devices.txt).
var devices = []struct {
	path string
	dev  uint64
}{
	{"/dev/null", devNull},
	{"/dev/zero", unix.Mkdev(1, 5)},
	{"/dev/full", unix.Mkdev(1, 7)},
	{"/dev/random", unix.Mkdev(1, 8)},
	{"/dev/urandom", unix.Mkdev(1, 9)},
	{"/dev/tty", unix.Mkdev(5, 0)},
}

// devNull is bound over masked files as well: unix.Mkdev(1, 3).
const devNull = 1<<8 | 3

// expectedMounts is the whole mount table of a sandbox: what the spec asks
// for, and what the runtime adds to keep the OCI spec's promises. files are what
// is mounted of the sandbox's own directory, by target.
func expectedMounts(sb *sandbox, files map[string]verify.FileID) []verify.Mount {
	sb.mu.Lock()
	rec := sb.rec
	sb.mu.Unlock()
	s := spec.Build(sb.l.specOf(&rec))
	root := verify.Mount{Target: "/", FSType: "overlay", Flags: []string{"nosuid", "nodev"}, Writable: !s.Root.Readonly}
	if s.Root.Readonly {
		root.Flags = append(root.Flags, "ro")
	}
	ms := []verify.Mount{root}
	files = maps.Clone(files)
	for _, m := range rec.Mounts {
		files[m.Target] = verify.FileID{Dev: m.Dev, Ino: m.Inode}
	}
	for _, m := range s.Mounts {
		v := expectedMount(m, sb.l.Cgroups.Version())
		v.File = files[m.Destination]
		ms = append(ms, v)
	}
	for _, m := range rec.Mounts {
		if !slices.ContainsFunc(s.Mounts, func(o specs.Mount) bool { return o.Destination == m.Target }) {
			// In another's tree: the runtime does nothing to it, and it is as staged.
			v := expectedMount(spec.Bind(spec.Mount{Target: m.Target, ReadOnly: m.ReadOnly}), "")
			v.File = files[m.Target]
			ms = append(ms, v)
		}
		if m.Volume == "" {
			continue
		}
		// The whole of that volume, by its device.
		i := slices.IndexFunc(ms, func(v verify.Mount) bool { return v.Target == m.Target })
		ms[i].FSType, ms[i].Source, ms[i].Root, ms[i].Writable = "ext4", m.Device, "/", !m.ReadOnly
	}
	for _, d := range devices {
		ms = append(ms, verify.Mount{Target: d.path, Device: d.dev})
	}
	for _, p := range s.Linux.MaskedPaths {
		// The sandbox's /proc has what the host's kernel has.
		switch st, err := os.Stat(p); {
		case err != nil:
		case st.IsDir():
			ms = append(ms, verify.Mount{Target: p, FSType: "tmpfs", Flags: []string{"ro"}})
		default:
			ms = append(ms, verify.Mount{Target: p, Device: devNull})
		}
	}
	for _, p := range s.Linux.ReadonlyPaths {
		if _, err := os.Stat(p); err == nil {
			ms = append(ms, verify.Mount{Target: p, FSType: "proc", Flags: []string{"ro", "nosuid", "nodev", "noexec"}})
		}
	}
	return ms
}

func expectedMount(m specs.Mount, cgroupVersion string) verify.Mount {
	v := verify.Mount{Target: m.Destination}
	switch {
	case m.Type == "cgroup" && cgroupVersion == "v2":
		v.FSType = "cgroup2" // the spec has one name for both
	case m.Type != "bind":
		v.FSType = m.Type
	}
	for _, o := range m.Options {
		key, val, _ := strings.Cut(o, "=")
		n, _ := strconv.ParseUint(val, 10, 64) // spec.Build wrote it
		switch key {
		case "ro", "nosuid", "nodev", "noexec":
			v.Flags = append(v.Flags, key)
		case "size":
			v.Size = n
		case "nr_inodes":
			v.Inodes = n
		}
	}
	own := []string{spec.InitPath, spec.SocketDir, spec.ResolvConf, spec.TrustDir}
	if m.Type == "bind" && !slices.Contains(own, m.Destination) {
		v.Flags = append(v.Flags, "idmapped")
	}
	return v
}
