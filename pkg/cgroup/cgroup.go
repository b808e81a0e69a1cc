// Package cgroup limits, counts, freezes and kills what runs in a sandbox.
//
// The OCI runtime makes the sandbox's cgroup (Host.CgroupsPath) with its
// limits; Host.Open then divides it:
//
//	<root>/ID             limits of the sandbox: the agent's plus a reserve
//	<root>/ID/init        PID 1, and children it has just forked (v2)
//	<root>/ID/agent       the agent's limits
//	<root>/ID/agent/exec-EXECID   one per exec
//
// PID 1 is outside "agent", so neither the OOM killer nor a fork bomb that
// meets the agent's limits reaches it: that is what the reserve is for.
// Pausing freezes "agent" only, so that a paused sandbox's PID 1 still answers.
//
// Both cgroup versions are driven. On v1 PID 1 stays in <root>/ID, and the
// cgroups below exist in the memory, pids and freezer hierarchies; in the
// others every process stays in the sandbox's own cgroup. Host.Weaker says what v1 cannot do. See cgroups(7) and the
// kernel's admin-guide/cgroup-v2.rst and cgroup-v1/.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
)

// What a sandbox's own limits are above its agent's.
const (
	ReserveMemory = 8 << 20 // bytes
	ReservePids   = 32      // tasks
)

// cpuPeriod is the period of the CPU quota in microseconds.
const cpuPeriod = 100_000

// Limits are the agent's. Memory, Pids and CPUs are required.
type Limits struct {
	Memory   int64   // bytes; swap is never added
	Pids     int64   // tasks: processes and threads
	CPUs     float64 // processors
	IOWeight int64   // 10 to 1000, as OCI's blockIO.weight; 0 when not asked for
}

// Sandbox is what the OCI runtime is to set on the sandbox's own cgroup.
func (l Limits) Sandbox() Limits {
	l.Memory += ReserveMemory
	l.Pids += ReservePids
	return l
}

// CPUQuota is CPUs as CFS bandwidth: microseconds of run time per period.
func (l Limits) CPUQuota() (quota int64, period uint64) {
	return int64(math.Round(l.CPUs * cpuPeriod)), cpuPeriod
}

func (l Limits) check() error {
	if l.Memory < pageSize || l.Pids < 1 || l.CPUs < 0.01 {
		return fmt.Errorf("limits %+v: memory, pids and cpus (at least 0.01) must all be set", l)
	}
	return nil
}

// Host is the cgroup hierarchies of this machine. Its methods may be called
// from several goroutines at once.
type Host struct {
	version int
	proc    string
	all     []*hierarchy          // every one, named and empty ones too
	by      map[string]*hierarchy // by controller
	leafs   []*hierarchy          // those that have init, agent and execs
	notes   []string              // what is weaker
	look    bool                  // nothing is made
	bpf     bool                  // ask the kernel for device programs (v2)

	mu     sync.Mutex
	watch  *watcher // made when first needed
	closed bool
}

// Close ends the OOM watch and lets go of the hierarchies.
func (h *Host) Close() error {
	var errs []error
	h.mu.Lock()
	w := h.watch
	h.watch, h.closed = nil, true
	h.mu.Unlock()
	if w != nil {
		errs = append(errs, w.close())
	}
	for _, hr := range h.all {
		errs = append(errs, hr.close())
	}
	return errors.Join(errs...)
}

// Version is "v1" or "v2": where the memory controller is.
func (h *Host) Version() string { return fmt.Sprintf("v%d", h.version) }

// CgroupsPath is the OCI spec's linux.cgroupsPath for a sandbox, to be used
// with the runtime's cgroupfs driver.
func (h *Host) CgroupsPath(id string) string { return "/" + h.by["memory"].at(id) }

// Weaker says in plain words what this host's cgroups cannot enforce.
func (h *Host) Weaker() []string {
	out := slices.Clone(h.notes)
	if h.version == 1 {
		out = append(out,
			"cgroup v1 has no cgroup.kill: creel freezes, signals and thaws every process of an exec instead",
			"cgroup v1 has no memory.oom.group: the kernel kills one process of an exec that is out of memory, and creel the rest a moment later",
			"cgroup v1 does not attribute buffered writes: disk writes go out at the host's pace whatever the I/O weight",
			"cgroup v1 has no pressure files per sandbox")
		if !h.by["memory"].exists("memory.memsw.limit_in_bytes") {
			out = append(out, "swap accounting is off (swapaccount=1 turns it on): swap is kept off by swappiness 0 only")
		}
	}
	// Where nothing is made, the place that would have the file may not be there.
	if h.ioWeightFile() == "" && (!h.look || h.by["memory"].exists(h.by["memory"].base)) {
		out = append(out, "no I/O weight: the io controller or the bfq scheduler is missing, so sandboxes share the disk unweighted")
	}
	return out
}

// LimitsSwap says whether the OCI runtime can be told a limit of memory and
// swap together.
func (h *Host) LimitsSwap() bool {
	return h.version == 2 || h.by["memory"].exists("memory.memsw.limit_in_bytes")
}

// WeighsIO says whether the OCI runtime can be told a block I/O weight.
func (h *Host) WeighsIO() bool { return h.ioWeightFile() != "" }

// ioWeightFile is the file that holds the I/O weight, "" when there is none.
// The files do not exist at the top of a hierarchy, so the base is looked at.
func (h *Host) ioWeightFile() string {
	hr := h.by["blkio"]
	files := []string{"blkio.weight", "blkio.bfq.weight"}
	if h.version == 2 {
		hr, files = h.by["io"], []string{"io.bfq.weight", "io.weight"}
	}
	if hr == nil {
		return ""
	}
	for _, f := range files {
		if hr.exists(hr.base + "/" + f) {
			return f
		}
	}
	return ""
}

// List is the ids of the sandboxes of which any hierarchy has a cgroup.
func (h *Host) List() ([]string, error) {
	var out []string
	for _, hr := range h.all {
		kids, err := hr.children(hr.base)
		if err != nil {
			return nil, err
		}
		for _, k := range kids {
			if validID(k) == nil {
				out = append(out, k)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// RemoveAll kills whatever runs in a sandbox's cgroups, made by us or by the
// runtime, and removes them in every hierarchy. It succeeds when there is
// nothing.
func (h *Host) RemoveAll(ctx context.Context, id string) error {
	if err := validID(id); err != nil {
		return err
	}
	s := h.sandbox(id, 0, Limits{})
	return errors.Join(s.Kill(ctx), s.Remove())
}

func validID(id string) error {
	if id == "" || len(id) > 64 || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || id[0] == '-' {
		return fmt.Errorf("%q is not an id: 1 to 64 of a-z, 0-9 and -", id)
	}
	return nil
}
