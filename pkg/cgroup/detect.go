package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one line of /proc/self/mountinfo that shows a cgroup file system.
type mount struct {
	root    string // the cgroup at the mount point, as /proc/PID/cgroup writes it
	point   string
	v2      bool
	options []string // v1: the controllers, or name=...
}

// parseMounts reads proc_pid_mountinfo(5). Lines of other file systems and
// lines it cannot read are passed over: a missing hierarchy is an error later.
func parseMounts(data string) []mount {
	var out []mount
	for line := range strings.Lines(data) {
		left, right, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 3 {
			continue
		}
		m := mount{root: unescape(l[3]), point: unescape(l[4])}
		switch r[0] {
		case "cgroup2":
			m.v2 = true
		case "cgroup":
			for o := range strings.SplitSeq(r[2], ",") {
				if !slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children", ""}, o) {
					m.options = append(m.options, o)
				}
			}
		default:
			continue
		}
		out = append(out, m)
	}
	return out
}

// unescape undoes mountinfo's octal escapes of space, tab, newline, backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// parseMembership reads proc_pid_cgroup: controllers (as joined by the
// kernel; "" for v2) to the path.
func parseMembership(data string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(data) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 {
			out[f[1]] = f[2]
		}
	}
	return out
}

// hierarchy is one cgroup tree.
type hierarchy struct {
	*tree
	point       string
	root        string // what the kernel calls the mount point's cgroup
	key         string // its name in /proc/PID/cgroup
	controllers []string
	base        string // where sandboxes are, relative to the mount point
}

// at is the name of a sandbox's cgroup, or of one below it, for tree's calls.
func (h *hierarchy) at(id string, sub ...string) string {
	return strings.Join(append([]string{h.base, id}, sub...), "/")
}

// kernelPath is how /proc/PID/cgroup writes the same.
func (h *hierarchy) kernelPath(id string, sub ...string) string {
	return strings.TrimSuffix(h.root, "/") + "/" + h.at(id, sub...)
}

// initAt is at for the cgroup of PID 1. Version 2 allows no process in a cgroup
// that passes controllers on, so there it is a leaf of its own. On version 1
// PID 1 stays where the runtime has put it: a move would wait for an RCU grace
// period, 8 to 16 ms of a launch.
func (h *Host) initAt(hr *hierarchy, id string, sub ...string) string {
	if h.version == 2 {
		sub = append([]string{"init"}, sub...)
	}
	return hr.at(id, sub...)
}

// ErrUnsupported means that this host's cgroups cannot hold a sandbox.
var ErrUnsupported = errors.New("cgroups of this host are not usable")

// Options say where to look. The zero value is right for a daemon.
type Options struct {
	// Root is the cgroup under which sandboxes are made, from the top of each
	// hierarchy, such as "/creel". Chosen by Detect when empty.
	Root string
	// Proc is where procfs is mounted, "/proc" when empty.
	Proc string
}

// Detect opens the host's cgroup hierarchies and prepares the place for
// sandboxes. The Host is the caller's to Close. The error wraps
// ErrUnsupported when a controller that the limits need is missing.
func Detect(o Options) (*Host, error) { return detect(o, false) }

// Look is Detect that makes, moves and switches on nothing, for a process that
// only wants to know what Detect would find. The Host is good for Version,
// Weaker and Close.
func Look(o Options) (*Host, error) { return detect(o, true) }

func detect(o Options, look bool) (*Host, error) {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	o.Root = strings.Trim(o.Root, "/")
	if slices.Contains(strings.Split(o.Root, "/"), "..") {
		return nil, fmt.Errorf("cgroup root %q must not have \"..\" in it", o.Root)
	}
	info, err := os.ReadFile(o.Proc + "/self/mountinfo")
	if err != nil {
		return nil, err
	}
	self, err := os.ReadFile(o.Proc + "/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, own := parseMounts(string(info)), parseMembership(string(self))
	h := &Host{proc: o.Proc, bpf: true, look: look}
	if slices.ContainsFunc(mounts, func(m mount) bool { return slices.Contains(m.options, "memory") }) {
		err = h.openV1(mounts, own, o)
	} else {
		err = h.openV2(mounts, own, o)
	}
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) openV1(mounts []mount, own map[string]string, o Options) error {
	h.version = 1
	base := o.Root
	if base == "" {
		base = "creel"
	}
	seen := map[string]bool{}
	for _, m := range mounts {
		key, ok := keyOf(m, own)
		if !ok || seen[key] {
			continue
		}
		t, err := openTree(m.point)
		if err != nil {
			return fmt.Errorf("open cgroup hierarchy: %w", err)
		}
		seen[key] = true
		h.all = append(h.all, &hierarchy{t, m.point, m.root, key, m.options, base})
	}
	if err := h.index("memory", "pids", "freezer", "cpu", "cpuacct", "devices"); err != nil {
		return err
	}
	if blkio := h.by["blkio"]; blkio != nil && !h.look {
		// To see whether the weight exists: the top of the hierarchy has no such file.
		return blkio.ensure(base)
	}
	return nil
}

// keyOf finds a mount's line in /proc/self/cgroup: the kernel may order
// co-mounted controllers in another way than the mount options.
func keyOf(m mount, own map[string]string) (string, bool) {
	if m.v2 {
		_, ok := own[""]
		return "", ok
	}
	want := slices.Sorted(slices.Values(m.options))
	for key := range own {
		if slices.Equal(want, slices.Sorted(strings.SplitSeq(key, ","))) {
			return key, true
		}
	}
	return "", false
}

// index finds the hierarchies of the controllers; those in need must exist.
func (h *Host) index(need ...string) error {
	h.by = map[string]*hierarchy{}
	for _, hr := range h.all {
		for _, c := range hr.controllers {
			h.by[c] = hr
		}
	}
	var missing []string
	for _, c := range need {
		if h.by[c] == nil {
			missing = append(missing, c)
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: no controller %s; enable it in the kernel's command line (cgroup_enable=) or the container's delegation",
			ErrUnsupported, strings.Join(missing, ", "))
	}
	for _, c := range []string{"memory", "pids", "freezer"} {
		if hr := h.by[c]; hr != nil && !slices.Contains(h.leafs, hr) {
			h.leafs = append(h.leafs, hr)
		}
	}
	return nil
}

// pageSize is the unit to which the kernel rounds memory limits down.
var pageSize = int64(unix.Getpagesize())
