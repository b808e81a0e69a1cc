package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// Exec is the cgroup of one command and everything it starts.
type Exec struct {
	s    *Sandbox
	id   string
	name string
	// pidsBefore is the agent's count of refused forks when the exec began.
	pidsBefore int64
}

func (s *Sandbox) exec(id string) *Exec { return &Exec{s: s, id: id, name: "exec-" + id} }

// NewExec makes the cgroup of an exec. An id that exists is an error.
func (s *Sandbox) NewExec(id string) (*Exec, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	e := s.exec(id)
	for i, hr := range s.host.leafs {
		if err := hr.mkdir(e.at(hr)); err != nil {
			for _, made := range s.host.leafs[:i] {
				err = errors.Join(err, made.rmdir(e.at(made)))
			}
			return nil, fmt.Errorf("exec %s: %w", id, err)
		}
	}
	if s.host.version == 2 {
		hr := s.host.by["memory"]
		if err := hr.write(e.at(hr, "memory.oom.group"), "1"); err != nil {
			return nil, errors.Join(fmt.Errorf("exec %s: %w", id, err), e.Remove())
		}
		e.pidsBefore, _ = s.count("pids", "pids.events", "max")
	}
	return e, nil
}

// Exec is the exec of that id, made before. The error wraps fs.ErrNotExist
// when there is none.
func (s *Sandbox) Exec(id string) (*Exec, error) {
	if err := validID(id); err != nil {
		return nil, err
	}
	if !slices.Contains(s.Execs(), id) {
		return nil, fmt.Errorf("exec %s: %w", id, fs.ErrNotExist)
	}
	return s.exec(id), nil
}

func (e *Exec) at(hr *hierarchy, sub ...string) string {
	return hr.at(e.s.id, append([]string{"agent", e.name}, sub...)...)
}

// ID is the exec's id.
func (e *Exec) ID() string { return e.id }

// Add moves a process with all its threads into the exec. It must not have
// children of its own yet: those stay where they are.
func (e *Exec) Add(pid int) error {
	for _, hr := range e.s.host.leafs {
		if err := hr.write(e.at(hr, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("exec %s: %w", e.id, err)
		}
	}
	return nil
}

// Entrances are the files by which a single-threaded process moves itself
// into the exec, by writing "0" to each; they are the caller's to close. That
// takes no lock, while Add waits for an RCU grace period when nothing was
// moved for a while: 8 to 16 ms against 0.05 (kernel/cgroup/cgroup.c,
// cgroup_procs_write_start). Cgroup v2 has no such file, except in threaded
// cgroups, and there are none then; mounted with "favordynmods" (Linux 6.0)
// its Add is as fast.
func (e *Exec) Entrances() (files []*os.File, err error) {
	if e.s.host.version == 2 {
		return nil, nil
	}
	for _, hr := range e.s.host.leafs {
		fd, err := hr.open(e.at(hr, "tasks"), unix.O_WRONLY)
		if err != nil {
			for _, f := range files {
				_ = f.Close()
			}
			return nil, fmt.Errorf("exec %s: %w", e.id, err)
		}
		files = append(files, os.NewFile(uintptr(fd), "tasks"))
	}
	return files, nil
}

// Has says whether a process is in the exec, in every hierarchy.
func (e *Exec) Has(pid int) (bool, error) {
	for _, hr := range e.s.host.leafs {
		pids, err := hr.procs(e.at(hr))
		if err != nil || !slices.Contains(pids, pid) {
			return false, err
		}
	}
	return true, nil
}

// Pids is every process of the exec now.
func (e *Exec) Pids() ([]int, error) {
	hr := e.s.host.by["pids"]
	return hr.procs(e.at(hr))
}

// Kill ends every process of the exec with SIGKILL, those that daemonised or
// were re-parented included and those of a paused sandbox too, and returns
// when the cgroup is empty. It fails only with ctx's error, or when the
// kernel's files cannot be used; the exec may then have processes left.
func (e *Exec) Kill(ctx context.Context) error {
	if err := e.s.kill(ctx, []string{"agent/" + e.name}, false); err != nil {
		return fmt.Errorf("kill exec %s: %w", e.id, err)
	}
	return nil
}

// OOMKills is how many of the exec's processes the OOM killer ended.
func (e *Exec) OOMKills() int64 {
	hr := e.s.host.by["memory"]
	c, _ := hr.counters(e.at(hr, e.s.host.oomFile()))
	return c["oom_kill"]
}

// Hits is how often limits refused or ended something in the exec: "pids" is
// forks refused, "memory" OOM kills. Zero counts are left out. Since Linux
// 6.11 cgroup v2 counts refused forks at the limit, not at the fork: pids then
// includes those of execs that ran at the same time.
func (e *Exec) Hits() map[string]int64 {
	c := e.counts()
	if e.s.host.version == 2 && c.pids == 0 {
		if now, err := e.s.count("pids", "pids.events", "max"); err == nil {
			c.pids = now - e.pidsBefore
		}
	}
	return c.hits()
}

// counts are the exec's own counters.
func (e *Exec) counts() counts {
	hr := e.s.host.by["pids"]
	p, _ := hr.counters(e.at(hr, "pids.events"))
	return counts{pids: p["max"], oom: e.OOMKills()}
}

// Remove removes the exec's cgroup, which must be empty; it waits up to 2 s
// for processes that are just leaving. Its counts go to the sandbox's.
func (e *Exec) Remove() error {
	c := e.counts()
	var errs []error
	for _, hr := range e.s.host.leafs {
		errs = append(errs, hr.rmdir(e.at(hr)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove exec %s: %w", e.id, err)
	}
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	e.s.removed.pids += c.pids
	e.s.removed.oom += c.oom
	delete(e.s.seenOOM, e.id)
	return nil
}
