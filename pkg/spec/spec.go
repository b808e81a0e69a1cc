package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/creel-sandbox/creel/pkg/api"
)

// maskedPaths of /proc tell of the host or reach into it; threats.md, and the
// default lists of containerd and moby.
var maskedPaths = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kallsyms",
	"/proc/kcore",
	"/proc/keys",
	"/proc/latency_stats",
	"/proc/modules",
	"/proc/sched_debug",
	"/proc/scsi",
	"/proc/timer_list",
	"/proc/timer_stats",
}

// readonlyPaths of /proc change the host when written by a root.
var readonlyPaths = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}

// Build returns the OCI spec of s. It has no seccomp section: creel-init
// installs the filter that the daemon compiled, and pkg/verify reads it back
// instruction by instruction (docs/adr/0003).
func Build(s Sandbox) *specs.Spec {
	oomScoreAdj := 0
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.HostUID, Size: RangeSize}}
	return &specs.Spec{
		// crun 1.8 to 1.21 and runc 1.2 to 1.5 all read this one.
		Version:  "1.0.2",
		Root:     &specs.Root{Path: "rootfs", Readonly: s.ReadonlyRoot},
		Hostname: s.Hostname,
		Process: &specs.Process{
			User:            specs.User{UID: UID(s.User), GID: UID(s.User)},
			Args:            []string{InitPath},
			Env:             []string{"PATH=/usr/bin:/bin"},
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities:    capabilities(s),
			OOMScoreAdj:     &oomScoreAdj,
			Rlimits:         rlimits(s.Limits),
		},
		Mounts: mounts(s),
		Linux: &specs.Linux{
			UIDMappings: ids,
			GIDMappings: ids,
			CgroupsPath: s.CgroupsPath,
			Resources:   resources(s),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
				{Type: specs.NetworkNamespace, Path: s.NetNS},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			// Where the host's mounts are shared, as under systemd, runc's
			// default leaves what it binds from them receiving their events.
			RootfsPropagation: "rprivate",
		},
	}
}

// capabilities are a root's; the agent has none. Nothing is inheritable or
// ambient: who stops being root has none any more.
func capabilities(s Sandbox) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{}
	if s.User != api.UserRoot {
		return c
	}
	for _, name := range s.Capabilities {
		c.Bounding = append(c.Bounding, "CAP_"+name)
	}
	c.Permitted, c.Effective = c.Bounding, c.Bounding
	return c
}

func rlimits(l api.Limits) []specs.POSIXRlimit {
	files := uint64(l.Files)
	return []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Hard: files, Soft: files},
		// A core of the agent would be written by the host's core_pattern.
		{Type: "RLIMIT_CORE", Hard: 0, Soft: 0},
		// No POSIX message queues or locked memory to speak of: both are
		// charged per user, not per cgroup, on kernels before 5.14.
		{Type: "RLIMIT_MSGQUEUE", Hard: 0, Soft: 0},
		{Type: "RLIMIT_MEMLOCK", Hard: 64 << 10, Soft: 64 << 10},
	}
}

// cpuPeriod is in microseconds; the kernel's default (cfs bandwidth control).
const cpuPeriod = 100_000

func resources(s Sandbox) *specs.LinuxResources {
	memory := int64(s.Limits.Memory) + MemoryReserve
	pids := s.Limits.Pids + PidsReserve
	period := uint64(cpuPeriod)
	quota := int64(s.Limits.CPUs * cpuPeriod)
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: &memory},
		CPU:     &specs.LinuxCPU{Period: &period, Quota: &quota},
		Pids:    &specs.LinuxPids{Limit: &pids},
	}
	if s.SwapLimit {
		r.Memory.Swap = &memory // memory and swap together: no swap
	}
	if s.IOWeight {
		weight := uint16(max(s.Limits.IOWeight, 10)) // OCI's least
		r.BlockIO = &specs.LinuxBlockIO{Weight: &weight}
	}
	return r
}

func mounts(s Sandbox) []specs.Mount {
	dev := []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}
	if s.User == api.UserRoot {
		// It is root's, who could fill it with empty files.
		dev = append(dev, "nr_inodes=256")
	}
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		// crun makes the minimal device nodes (null, zero, full, random,
		// urandom, tty) by binding the host's; no others exist.
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: dev},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		// sysfs cannot be mounted over a network namespace that the sandbox
		// does not own, and would only tell of the host (tried; design.md).
		{Destination: "/sys", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "ro", "mode=555", "size=4k"}},
	}
	if s.CgroupMount {
		ms = append(ms, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
	}
	for _, t := range s.Tmpfs {
		ms = append(ms, tmpfs(t, UID(s.User)))
	}
	ms = append(ms, specs.Mount{
		Destination: InitPath, Type: "bind", Source: s.InitSource,
		Options: []string{"bind", "ro", "nosuid", "nodev", "private"},
	})
	if s.SocketSource != "" {
		// The directory, because the socket in it is another after a restart of
		// creeld. It is root's, and connecting is no write.
		ms = append(ms, specs.Mount{
			Destination: SocketDir, Type: "bind", Source: s.SocketSource,
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "private"},
		})
	}
	if s.TrustSource != "" {
		// The directory, because the files in it are replaced.
		ms = append(ms, specs.Mount{
			Destination: TrustDir, Type: "bind", Source: s.TrustSource,
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "private"},
		})
	}
	if s.ResolvConf != "" {
		ms = append(ms, specs.Mount{
			Destination: ResolvConf, Type: "bind", Source: s.ResolvConf,
			Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "private"},
		})
	}
	for _, m := range s.Mounts {
		bind := Bind(m)
		inner := func(dir, p Mount) bool { return strings.HasPrefix(p.Target, dir.Target+"/") }
		if slices.ContainsFunc(s.Mounts, func(o Mount) bool { return inner(o, m) }) {
			continue // it is in that one's tree
		}
		if m.Tree || slices.ContainsFunc(s.Mounts, func(o Mount) bool { return inner(m, o) }) {
			bind.Options[0] = "rbind" // the other options are of the outermost alone
		}
		ms = append(ms, bind)
	}
	return ms
}

// Bind is the mount of a staged directory that has no other in it.
func Bind(m Mount) specs.Mount {
	opts := []string{"bind", "nosuid", "nodev", "private"}
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	return specs.Mount{Destination: m.Target, Type: "bind", Source: m.Source, Options: opts}
}

func tmpfs(t Tmpfs, owner uint32) specs.Mount {
	opts := []string{"nosuid", "nodev", fmt.Sprintf("mode=%o", t.Mode), fmt.Sprintf("size=%d", t.Size)}
	// One inode for each 4 KiB: a flood of empty files is bounded as well.
	opts = append(opts, fmt.Sprintf("nr_inodes=%d", max(int64(t.Size)/4096, 16)))
	if t.Agent {
		opts = append(opts, fmt.Sprintf("uid=%d", owner), fmt.Sprintf("gid=%d", owner))
	}
	if t.NoExec {
		opts = append(opts, "noexec")
	}
	return specs.Mount{Destination: t.Target, Type: "tmpfs", Source: "tmpfs", Options: opts}
}

// TmpfsOf is a sandbox's /dev/shm, and its tmpfs bytes divided among its
// writable places. Home is left out when the root is writable, because then it
// is on the root, and when it is a volume.
func TmpfsOf(l api.Limits, readonlyRoot, homeIsVolume bool) []Tmpfs {
	part := func(n api.Size) api.Size { return max(l.Tmp*n/16/4096*4096, 64<<10) }
	ts := []Tmpfs{
		{Target: "/dev/shm", Size: max(l.ShmSize/4096*4096, 64<<10), Mode: 0o1777, NoExec: true},
		{Target: "/run", Size: part(1), Mode: 0o755, Agent: true},
		{Target: "/tmp", Size: part(8), Mode: 0o1777},
	}
	if readonlyRoot {
		ts = append(ts, Tmpfs{Target: "/var/tmp", Size: part(1), Mode: 0o1777})
	}
	if readonlyRoot && !homeIsVolume {
		ts = append(ts, Tmpfs{Target: Home, Size: part(6), Mode: 0o755, Agent: true})
	}
	return ts
}
