package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

func cgroups(in Inputs) []api.Check {
	const name = "cgroup"
	switch {
	case in.CgroupErr != nil:
		return []api.Check{bad(Missing, name, in.CgroupErr.Error(), "no sandbox can be limited, so none is started",
			"boot with systemd.unified_cgroup_hierarchy=1 and without cgroup_disable=")}
	case in.CgroupVersion == "":
		return nil
	}
	fix := ""
	out := []api.Check{ok(name, "%s", in.CgroupVersion)}
	if in.CgroupVersion != "v2" {
		fix = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"
		out[0] = bad(Weaker, name, in.CgroupVersion, "see the next lines", fix)
	}
	for _, w := range in.CgroupWeaker {
		what, cost, found := strings.Cut(w, ": ")
		if !found {
			cost = what
		}
		out = append(out, bad(Weaker, name, what, cost, fix))
	}
	return out
}

// security are the checks of what guards the host beside creel.
func security() []api.Check {
	out := lsms()
	out = append(out, bounding(), lockdown(), unprivilegedBPF(), corePattern(read("/proc/sys/kernel/core_pattern")))
	return append(out, vulnerabilities())
}

// read is a file without surrounding space, or "".
func read(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// lsmNames are the ids of lsm_list_modules(2), from uapi/linux/lsm.h.
var lsmNames = map[uint64]string{
	100: "capability", 101: "selinux", 102: "smack", 103: "tomoyo", 104: "apparmor", 105: "yama", 106: "loadpin",
	107: "safesetid", 108: "lockdown", 109: "bpf", 110: "landlock", 111: "ima", 112: "evm", 113: "ipe",
}

// activeLSMs asks securityfs, and where it is not mounted the kernel (6.8).
func activeLSMs() ([]string, error) {
	if s := read("/sys/kernel/security/lsm"); s != "" {
		return strings.Split(s, ","), nil
	}
	var ids [64]uint64
	size := uint32(unsafe.Sizeof(ids))
	n, _, errno := unix.Syscall(unix.SYS_LSM_LIST_MODULES, uintptr(unsafe.Pointer(&ids)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("%w: mount securityfs at /sys/kernel/security to see them", errUnknown)
	}
	var out []string
	for _, id := range ids[:min(int(n), len(ids))] {
		name := lsmNames[id]
		if name == "" {
			name = strconv.FormatUint(id, 10)
		}
		out = append(out, name)
	}
	return out, nil
}

func lsms() []api.Check {
	active, err := activeLSMs()
	if err != nil {
		return []api.Check{bad(Weaker, "lsm", err.Error(), "", "mount -t securityfs securityfs /sys/kernel/security")}
	}
	has := func(n string) bool { return slices.Contains(active, n) }
	out := []api.Check{ok("lsm", "%s", strings.Join(active, ", "))}
	if has("apparmor") || has("selinux") {
		out = append(out, ok("lsm.mandatory", "AppArmor or SELinux is active"))
	} else {
		out = append(out, bad(Weaker, "lsm.mandatory", "neither AppArmor nor SELinux is active",
			"no label is a barrier beside the namespaces", "boot with security=apparmor"))
	}
	if has("bpf") {
		out = append(out, ok("lsm.bpf", "active"))
	} else {
		out = append(out, bad(Weaker, "lsm.bpf", "the BPF LSM is not active",
			"a socket in a shared directory connects a sandbox with whoever listens there", "add bpf to lsm= on the kernel's command line"))
	}
	return out
}

// wantedCaps are what creeld and its runtime need in the bounding set, with
// what the absence of each costs.
var wantedCaps = []struct {
	bit        int
	name, cost string
	required   bool
}{
	{unix.CAP_SYS_ADMIN, "SYS_ADMIN", "no namespaces and mounts", true},
	{unix.CAP_SETUID, "SETUID", "no user namespaces", true},
	{unix.CAP_SETGID, "SETGID", "no user namespaces", true},
	{unix.CAP_CHOWN, "CHOWN", "nothing can be given to an agent", true},
	{unix.CAP_DAC_OVERRIDE, "DAC_OVERRIDE", "agents' files cannot be reached", true},
	{unix.CAP_FOWNER, "FOWNER", "agents' files cannot be reached", true},
	{unix.CAP_KILL, "KILL", "no agent can be ended", true},
	{unix.CAP_SYS_PTRACE, "SYS_PTRACE", "nothing can be read back, so nothing is proven", true},
	{unix.CAP_NET_ADMIN, "NET_ADMIN", "no network can be made", true},
	{unix.CAP_MKNOD, "MKNOD", "the runtime makes no devices", true},
	{unix.CAP_SYS_CHROOT, "SYS_CHROOT", "no root can be changed", true},
	{unix.CAP_SYS_RESOURCE, "SYS_RESOURCE", "limits cannot be raised, nor the daemon kept from the OOM killer", false},
	{unix.CAP_BPF, "BPF", "", false},
}

func bounding() api.Check { return boundingOf(read("/proc/self/status")) }

func boundingOf(status string) api.Check {
	const name = "capabilities"
	for line := range strings.Lines(status) {
		hex, found := strings.CutPrefix(line, "CapBnd:")
		if !found {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			break
		}
		return judgeCaps(set)
	}
	return bad(Weaker, name, "the bounding set cannot be read", "it is not known what the daemon may do", "mount /proc")
}

func judgeCaps(set uint64) api.Check {
	var lacks, costs []string
	status := Weaker
	for _, c := range wantedCaps {
		if set&(1<<c.bit) != 0 {
			continue
		}
		lacks = append(lacks, "CAP_"+c.name)
		if c.cost != "" {
			costs = append(costs, c.cost)
		}
		if c.required {
			status = Missing
		}
	}
	if lacks == nil {
		return ok("capabilities", "the bounding set has all that is needed")
	}
	return bad(status, "capabilities", "the bounding set lacks "+strings.Join(lacks, ", "), strings.Join(costs, "; "),
		"run creeld outside a container, or with CapabilityBoundingSet= of its own unit")
}

func lockdown() api.Check {
	const name = "lockdown"
	s := read("/sys/kernel/security/lockdown")
	_, mode, found := strings.Cut(s, "[")
	mode, _, _ = strings.Cut(mode, "]")
	switch {
	case !found:
		return ok(name, "not in this kernel, or securityfs is not mounted")
	case mode == "confidentiality":
		return bad(Weaker, name, mode, "BPF programs cannot be read back: the network's evidence is thinner", "boot with lockdown=integrity")
	}
	return ok(name, "%s", mode)
}

func unprivilegedBPF() api.Check {
	const name = "unprivileged bpf"
	switch read("/proc/sys/kernel/unprivileged_bpf_disabled") {
	case "":
		return ok(name, "not in this kernel")
	case "0":
		return bad(Weaker, name, "kernel.unprivileged_bpf_disabled is 0",
			"any user of this host (not a sandbox, whose filter refuses bpf) may load programs", "sysctl kernel.unprivileged_bpf_disabled=1")
	}
	return ok(name, "refused")
}

// corePattern judges core(5)'s pattern. A helper behind a pipe or socket runs
// as root on the host and parses what a hostile process left of itself
// (CVE-2025-4598, CVE-2025-5054).
func corePattern(p string) api.Check {
	const name = "core dumps"
	if strings.HasPrefix(p, "|") || strings.HasPrefix(p, "@") {
		return bad(Weaker, name, "kernel.core_pattern is "+strconv.Quote(p),
			"when an agent crashes on purpose, that program gets its memory, as root on the host", "sysctl kernel.core_pattern=core")
	}
	return ok(name, "kernel.core_pattern %q starts no program", p)
}

func vulnerabilities() api.Check {
	const name, dir = "cpu", "/sys/devices/system/cpu/vulnerabilities"
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ok(name, "the kernel does not say which flaws the processor has")
	}
	var open []string
	for _, e := range entries {
		if strings.HasPrefix(read(filepath.Join(dir, e.Name())), "Vulnerable") {
			open = append(open, e.Name())
		}
	}
	if open == nil {
		return ok(name, "no known flaw without a mitigation")
	}
	return bad(Weaker, name, "vulnerable: "+strings.Join(open, ", "), "an agent may read memory of the host",
		"do not boot with mitigations=off; update microcode")
}
