package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Sandbox is the cgroups of one sandbox. Its methods may be called from
// several goroutines at once.
type Sandbox struct {
	host *Host
	id   string
	pid1 int
	lim  Limits

	mu      sync.Mutex
	seenOOM map[string]int64 // OOM kills already reported, by exec
	removed counts           // of execs that are removed
}

func (h *Host) sandbox(id string, pid1 int, lim Limits) *Sandbox {
	return &Sandbox{host: h, id: id, pid1: pid1, lim: lim, seenOOM: map[string]int64{}}
}

// Open divides the cgroup that the runtime made for a started sandbox: it
// makes the leaves, moves PID 1 into its own (v2) and sets the agent's limits.
// What it made before an error is undone by Remove or Host.RemoveAll.
func (h *Host) Open(id string, pid1 int, lim Limits) (*Sandbox, error) {
	if err := errors.Join(validID(id), lim.check()); err != nil {
		return nil, err
	}
	if pid1 < 1 {
		return nil, fmt.Errorf("sandbox %s: pid %d is not a process", id, pid1)
	}
	s := h.sandbox(id, pid1, lim)
	for _, hr := range h.leafs {
		if h.version == 2 {
			if err := hr.ensure(h.initAt(hr, id)); err != nil {
				return nil, fmt.Errorf("init leaf: %w", err)
			}
			if err := hr.write(h.initAt(hr, id, "cgroup.procs"), strconv.Itoa(pid1)); err != nil {
				return nil, fmt.Errorf("move PID 1 to its leaf: %w", err)
			}
			// Only now: a cgroup with processes of its own cannot pass on controllers.
			if err := s.passOn(); err != nil {
				return nil, err
			}
		}
		if err := hr.ensure(hr.at(id, "agent")); err != nil {
			return nil, fmt.Errorf("agent cgroup: %w", err)
		}
	}
	return s, s.limitAgent()
}

// Reopen takes over a sandbox that Open divided before the daemon restarted.
func (h *Host) Reopen(id string, pid1 int, lim Limits) (*Sandbox, error) {
	if err := errors.Join(validID(id), lim.check()); err != nil {
		return nil, err
	}
	for _, hr := range h.leafs {
		for _, dir := range []string{h.initAt(hr, id), hr.at(id, "agent")} {
			if !hr.exists(dir) {
				return nil, fmt.Errorf("cgroup %s of hierarchy %q: %w", dir, hr.key, fs.ErrNotExist)
			}
		}
	}
	s := h.sandbox(id, pid1, lim)
	for _, execID := range s.Execs() {
		// An OOM kill while no daemon watched is told to the exec's owner by
		// Exec.OOMKills; the watch reports only what comes now.
		s.seenOOM[execID] = s.exec(execID).OOMKills()
	}
	return s, nil
}

// passOn enables the controllers for the leaves (v2).
func (s *Sandbox) passOn() error {
	hr := s.host.by["memory"]
	enable := "+memory +pids"
	if s.host.by["cpu"] != nil {
		// So that PID 1 has a share of its own beside a busy agent.
		enable += " +cpu"
	}
	if err := hr.write(hr.at(s.id, "cgroup.subtree_control"), enable); err != nil {
		return fmt.Errorf("enable controllers in the sandbox: %w", err)
	}
	if err := hr.ensure(hr.at(s.id, "agent")); err != nil {
		return fmt.Errorf("agent cgroup: %w", err)
	}
	if err := hr.write(hr.at(s.id, "agent", "cgroup.subtree_control"), "+memory +pids"); err != nil {
		return fmt.Errorf("enable controllers in the agent's cgroup: %w", err)
	}
	return nil
}

// setting is a control file and its value.
type setting struct {
	controller, file, value string
	optional                bool // a kernel without it is noted in Weaker
}

func (s *Sandbox) limitAgent() error {
	mem, pids := strconv.FormatInt(s.lim.Memory, 10), strconv.FormatInt(s.lim.Pids, 10)
	settings := []setting{
		{"pids", "pids.max", pids, false},
		{"memory", "memory.max", mem, false},
		{"memory", "memory.swap.max", "0", true},
	}
	if s.host.version == 1 {
		settings = []setting{
			{"pids", "pids.max", pids, false},
			{"memory", "memory.limit_in_bytes", mem, false},
			// After the limit, below which it may not be.
			{"memory", "memory.memsw.limit_in_bytes", mem, true},
			{"memory", "memory.swappiness", "0", false},
		}
	}
	for _, st := range settings {
		hr := s.host.by[st.controller]
		err := hr.write(hr.at(s.id, "agent", st.file), st.value)
		if err != nil && (!st.optional || !errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("limit the agent: %w", err)
		}
	}
	return nil
}

// ID is the sandbox's id.
func (s *Sandbox) ID() string { return s.id }

// Init is the pids in PID 1's cgroup: PID 1 and what is [Sandbox.Pending].
func (s *Sandbox) Init() ([]int, error) {
	hr := s.host.by["pids"]
	return hr.procs(s.host.initAt(hr, s.id))
}

// Pending is the pids in PID 1's cgroup that are not PID 1: children that have
// been forked for an exec and not been placed yet.
func (s *Sandbox) Pending() ([]int, error) {
	pids, err := s.Init()
	return slices.DeleteFunc(pids, func(p int) bool { return p == s.pid1 }), err
}

// procs reads a cgroup's processes; none when it is gone.
func (h *hierarchy) procs(name string) ([]int, error) {
	data, err := h.read(name + "/cgroup.procs")
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for f := range strings.FieldsSeq(data) {
		pid, err := strconv.Atoi(f)
		if err != nil || pid < 1 {
			return nil, fmt.Errorf("process %q in cgroup %s is outside the daemon's pid namespace", f, name)
		}
		out = append(out, pid)
	}
	return out, nil
}

// Execs is the ids of the execs that have a cgroup.
func (s *Sandbox) Execs() []string {
	var out []string
	for _, hr := range s.host.leafs {
		kids, err := hr.children(hr.at(s.id, "agent"))
		if err != nil {
			continue // the other hierarchies have the same
		}
		for _, k := range kids {
			if id, ok := strings.CutPrefix(k, "exec-"); ok {
				out = append(out, id)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Freeze stops every process of the agent; PID 1 goes on. It returns when all
// are stopped, or with ctx's error and the agent running again.
func (s *Sandbox) Freeze(ctx context.Context) error {
	if err := s.setFrozen(true); err != nil {
		return err
	}
	if err := s.await(ctx, s.frozen); err != nil {
		return errors.Join(fmt.Errorf("freeze sandbox %s: %w", s.id, err), s.setFrozen(false))
	}
	return nil
}

// Thaw lets the agent go on.
func (s *Sandbox) Thaw(ctx context.Context) error {
	if err := s.setFrozen(false); err != nil {
		return err
	}
	return s.await(ctx, func() (bool, error) { f, err := s.frozen(); return !f, err })
}

func (s *Sandbox) setFrozen(on bool) error {
	hr := s.host.by["freezer"]
	if s.host.version == 2 {
		v := "0"
		if on {
			v = "1"
		}
		return hr.write(hr.at(s.id, "agent", "cgroup.freeze"), v)
	}
	return hr.write(hr.at(s.id, "agent", "freezer.state"), freezerState[on])
}

var freezerState = map[bool]string{true: "FROZEN", false: "THAWED"}

func (s *Sandbox) frozen() (bool, error) {
	hr := s.host.by["freezer"]
	if s.host.version == 2 {
		ev, err := hr.counters(hr.at(s.id, "agent", "cgroup.events"))
		return ev["frozen"] == 1, err
	}
	st, err := hr.read(hr.at(s.id, "agent", "freezer.state"))
	return st == "FROZEN", err
}

// await polls done until it says yes.
func (s *Sandbox) await(ctx context.Context, done func() (bool, error)) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Remove removes the sandbox's cgroups, execs' and the runtime's included, in
// every hierarchy, and ends its OOM watch. Processes must be gone: it waits up
// to 2 s for those that are just leaving. What is gone already is no error.
func (s *Sandbox) Remove() error {
	s.unwatch()
	var errs []error
	for _, hr := range s.host.all {
		errs = append(errs, hr.removeAll(hr.at(s.id)))
	}
	return errors.Join(errs...)
}
