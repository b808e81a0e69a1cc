package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control is one promise and what the kernel says of it, as api.Control.
type Control struct {
	Name, Expected, Observed string
	OK                       bool
}

// Controls reads back where PID 1 is and every limit of the sandbox and of its
// agent. A limit that this host cannot hold is not here but in Host.Weaker.
func (s *Sandbox) Controls() []Control {
	out := s.membership()
	for _, part := range []struct {
		name string
		lim  Limits
	}{{"", s.lim.Sandbox()}, {"agent", s.lim}} {
		out = append(out, s.memoryControls(part.name, part.lim)...)
		out = append(out, s.compare("pids", part.name, "pids.max", strconv.FormatInt(part.lim.Pids, 10)))
	}
	out = append(out, s.cpuControl(), s.devicesControl())
	if s.lim.IOWeight > 0 {
		if file := s.host.ioWeightFile(); file != "" {
			out = append(out, s.ioControl(file))
		}
	}
	return out
}

// controlName is "cgroup.[agent.]FILE".
func controlName(sub, file string) string {
	if sub != "" {
		sub += "."
	}
	return "cgroup." + sub + file
}

// value reads a control file of the sandbox or of its part sub.
func (s *Sandbox) value(controller, sub, file string) (string, error) {
	hr := s.host.by[controller]
	parts := []string{file}
	if sub != "" {
		parts = []string{sub, file}
	}
	return hr.read(hr.at(s.id, parts...))
}

// compare expects exactly one value. What cannot be read is not in force.
func (s *Sandbox) compare(controller, sub, file, want string) Control {
	got, err := s.value(controller, sub, file)
	if err != nil {
		got = err.Error()
	}
	return Control{controlName(sub, file), want, got, err == nil && got == want}
}

// membership is one control per hierarchy with a controller: PID 1 is in
// exactly the cgroup it should be in.
func (s *Sandbox) membership() []Control {
	data, err := os.ReadFile(s.host.proc + "/" + strconv.Itoa(s.pid1) + "/cgroup")
	own := parseMembership(string(data))
	var out []Control
	for _, hr := range s.host.all {
		if len(hr.controllers) == 0 || strings.HasPrefix(hr.controllers[0], "name=") {
			continue
		}
		want := hr.kernelPath(s.id)
		for _, leaf := range s.host.leafs {
			if leaf == hr {
				want = strings.TrimSuffix(hr.root, "/") + "/" + s.host.initAt(hr, s.id)
			}
		}
		name := hr.key
		if name == "" {
			name = "unified"
		}
		got, ok := own[hr.key]
		if err != nil {
			got = err.Error()
		}
		out = append(out, Control{"cgroup.member." + name, want, got, err == nil && ok && got == want})
	}
	return out
}

func (s *Sandbox) memoryControls(sub string, lim Limits) []Control {
	limit := strconv.FormatInt(lim.Memory/pageSize*pageSize, 10)
	if s.host.version == 2 {
		out := []Control{s.compare("memory", sub, "memory.max", limit)}
		if c := s.compare("memory", sub, "memory.swap.max", "0"); c.OK || !s.missing(sub, "memory.swap.max") {
			out = append(out, c)
		}
		return out
	}
	oom, err := s.value("memory", sub, "memory.oom_control")
	if err != nil {
		oom = err.Error()
	}
	first, _, _ := strings.Cut(oom, "\n")
	out := []Control{
		s.compare("memory", sub, "memory.limit_in_bytes", limit),
		{controlName(sub, "memory.oom_control"), "oom_kill_disable 0", first, err == nil && first == "oom_kill_disable 0"},
	}
	// Swap is off by the limit of both together where the kernel counts swap,
	// else by swappiness: Weaker says so.
	if s.missing(sub, "memory.memsw.limit_in_bytes") {
		return append(out, s.compare("memory", sub, "memory.swappiness", "0"))
	}
	return append(out, s.compare("memory", sub, "memory.memsw.limit_in_bytes", limit))
}

func (s *Sandbox) missing(sub, file string) bool {
	_, err := s.value("memory", sub, file)
	return errors.Is(err, fs.ErrNotExist)
}

func (s *Sandbox) cpuControl() Control {
	quota, period := s.lim.CPUQuota()
	want := fmt.Sprintf("%d %d", quota, period)
	if s.host.version == 2 {
		return s.compare("cpu", "", "cpu.max", want)
	}
	q, errQ := s.value("cpu", "", "cpu.cfs_quota_us")
	p, errP := s.value("cpu", "", "cpu.cfs_period_us")
	got := q + " " + p
	if err := errors.Join(errQ, errP); err != nil {
		got = err.Error()
	}
	return Control{"cgroup.cpu.cfs_quota_us", want, got, got == want}
}

// ioControl expects the weight as the runtimes write it: io.weight has another
// scale than OCI's (runtime-spec, config-linux.md; runc's ConvertBlkIOToIOWeightValue).
func (s *Sandbox) ioControl(file string) Control {
	controller, want := "blkio", s.lim.IOWeight
	if s.host.version == 2 {
		controller = "io"
	}
	if file == "io.weight" {
		want = 1 + (want-10)*9999/990
	}
	c := s.compare(controller, "", file, strconv.FormatInt(want, 10))
	first, _, _ := strings.Cut(c.Observed, "\n")
	c.Observed = strings.TrimPrefix(first, "default ")
	c.OK = c.Observed == c.Expected
	return c
}

// devicesControl reads back the device rules: the list on v1, that a program
// is attached on v2, whose rules are in BPF code.
func (s *Sandbox) devicesControl() Control {
	if s.host.version == 2 {
		c := Control{Name: "cgroup.devices", Expected: "a device program attached"}
		n, err := s.devicePrograms()
		c.Observed = fmt.Sprintf("%d attached", n)
		if err != nil {
			c.Observed = err.Error()
		}
		c.OK = err == nil && n > 0
		return c
	}
	c := Control{Name: "cgroup.devices.list", Expected: "no rule for all devices, no block device but by mknod"}
	list, err := s.value("devices", "", "devices.list")
	c.Observed = strings.ReplaceAll(list, "\n", "; ")
	if err != nil {
		c.Observed = err.Error()
	}
	c.OK = err == nil && list != "" && devicesClosed(list)
	return c
}

// devicesClosed tells that no line of devices.list gives read or write access
// to all devices, to all of a kind, or to a block device.
func devicesClosed(list string) bool {
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] == "a" {
			return false
		}
		use := strings.ContainsAny(f[2], "rw")
		if use && (f[0] != "c" || strings.HasPrefix(f[1], "*:")) {
			return false
		}
	}
	return true
}

// devicePrograms counts the device programs of the sandbox's cgroup with
// BPF_PROG_QUERY, see bpf(2).
func (s *Sandbox) devicePrograms() (uint32, error) {
	if !s.host.bpf {
		return 0, errors.ErrUnsupported
	}
	hr := s.host.by["memory"]
	dir, err := hr.open(hr.at(s.id), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dir)
	attr := struct {
		targetFD, attachType, queryFlags, attachFlags uint32
		progIDs                                       uint64
		progCount, _                                  uint32
	}{targetFD: uint32(dir), attachType: unix.BPF_CGROUP_DEVICE}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, fmt.Errorf("bpf program query: %w", errno)
	}
	return attr.progCount, nil
}
