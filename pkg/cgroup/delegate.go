package cgroup

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// supervisor is the child of a delegated cgroup where the daemon itself is:
// a cgroup with processes of its own cannot pass on controllers. It is what
// the unit's DelegateSubgroup= must say.
const supervisor = "supervisor"

// openV2 finds the place for sandboxes, in this order: Options.Root; the
// delegated unit, if systemd put the daemon in its subgroup; the top of a
// container's own tree; "/creel".
//
// A delegated unit without the subgroup is not used. systemd could not start
// the daemon again while sandboxes run: it puts the new process in the unit's
// cgroup, which cannot have one then (EBUSY, exit status 219/CGROUP).
func (h *Host) openV2(mounts []mount, own map[string]string, o Options) error {
	h.version = 2
	i := slices.IndexFunc(mounts, func(m mount) bool { return m.v2 })
	self, ok := own[""]
	if i < 0 || !ok {
		return fmt.Errorf("%w: neither a v1 memory hierarchy nor cgroup2 is mounted; mount cgroup2 at /sys/fs/cgroup", ErrUnsupported)
	}
	m := mounts[i]
	t, err := openTree(m.point)
	if err != nil {
		return fmt.Errorf("open cgroup2: %w", err)
	}
	hr := &hierarchy{tree: t, point: m.point, root: m.root}
	h.all = []*hierarchy{hr}
	rel := strings.Trim(strings.TrimPrefix(self, strings.TrimSuffix(m.root, "/")), "/")
	top, from := h.choose(hr, rel, o.Root)
	hr.base = strings.TrimPrefix(top+"/sandboxes", "/")
	controls := hr.base + "/cgroup.subtree_control"
	if h.look {
		controls = "cgroup.controllers" // what can be passed on
	} else if err := hr.prepare(top, from, rel); err != nil {
		return err
	}
	on, err := hr.read(controls)
	if err != nil {
		return err
	}
	hr.controllers = append(strings.Fields(on), "freezer")
	if err := h.index("memory", "pids", "cpu"); err != nil {
		return err
	}
	if h.by["memory"].exists(hr.base) && !hr.exists(hr.base+"/memory.swap.max") {
		h.notes = append(h.notes, "this kernel does not count swap: an agent may be swapped out where the host has swap")
	}
	return nil
}

// choose gives the cgroup for creel and how many of its path's components are
// someone else's, in which controllers are not switched.
func (h *Host) choose(hr *hierarchy, self, root string) (top string, from int) {
	dir := path.Dir("/" + self)[1:]
	switch {
	case root != "":
		return root, 0
	case path.Base(self) == supervisor && hr.delegated(dir):
		return dir, strings.Count(dir, "/") + 1
	case hr.exists("cgroup.events"): // not the host's top: a container's
		return "", 0
	case hr.delegated(self):
		h.notes = append(h.notes, "the unit has no DelegateSubgroup=supervisor (systemd before 254 does not know it): sandboxes are in /creel, outside the unit")
	}
	return "creel", 0
}

// delegated tells that systemd left the cgroup to its unit (systemd sets the
// attribute for Delegate=yes).
func (h *hierarchy) delegated(dir string) bool {
	if dir == "" {
		return false
	}
	buf := make([]byte, 8)
	n, err := unix.Lgetxattr(h.point+"/"+dir, "trusted.delegate", buf)
	return err == nil && string(buf[:n]) == "1"
}

// prepare makes top/sandboxes and switches the controllers on down to it.
func (h *hierarchy) prepare(top string, from int, self string) error {
	var parts []string
	if top != "" {
		parts = strings.Split(top, "/")
	}
	parts = append(parts, "sandboxes")
	dir := ""
	for i, p := range append([]string{""}, parts...) {
		dir = strings.TrimPrefix(dir+"/"+p, "/")
		if dir != "" {
			if err := h.ensure(dir); err != nil {
				return fmt.Errorf("make the place for sandboxes: %w; set the cgroup root to one the daemon may write", err)
			}
		}
		if i < from {
			continue
		}
		if err := h.enable(dir, self); err != nil {
			return err
		}
	}
	return nil
}

// wanted controllers; the first three are required, which index checks.
var wanted = []string{"memory", "pids", "cpu", "io", "cpuset"}

func (h *hierarchy) enable(dir, self string) error {
	in := func(file string) string { return strings.TrimPrefix(dir+"/"+file, "/") }
	have, err := h.read(in("cgroup.controllers"))
	if err != nil {
		return err
	}
	on, err := h.read(in("cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, c := range wanted {
		if !slices.Contains(strings.Fields(have), c) || slices.Contains(strings.Fields(on), c) {
			continue
		}
		err := h.write(in("cgroup.subtree_control"), "+"+c)
		if errors.Is(err, unix.EBUSY) && dir == self {
			err = errors.Join(h.stepAside(dir), h.write(in("cgroup.subtree_control"), "+"+c))
		}
		if err != nil {
			return fmt.Errorf("pass on controller %s: %w", c, err)
		}
	}
	return nil
}

// stepAside moves the processes of the daemon's own cgroup, itself included,
// into its supervisor child.
func (h *hierarchy) stepAside(dir string) error {
	to := strings.TrimPrefix(dir+"/"+supervisor, "/")
	if err := h.ensure(to); err != nil {
		return err
	}
	for range 10 { // a process may fork before it is moved
		procs, err := h.read(strings.TrimPrefix(dir+"/cgroup.procs", "/"))
		if err != nil || procs == "" {
			return err
		}
		for pid := range strings.FieldsSeq(procs) {
			if _, err := strconv.Atoi(pid); err != nil {
				return err
			}
			if err := h.write(to+"/cgroup.procs", pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("step aside: %w", err)
			}
		}
	}
	return fmt.Errorf("cgroup /%s: %w: its processes fork faster than they are moved", dir, unix.EBUSY)
}
