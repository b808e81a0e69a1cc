package cgroup

import (
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// counts are what limits did.
type counts struct{ pids, oom int64 }

func (c counts) hits() map[string]int64 {
	out := map[string]int64{}
	if c.pids > 0 {
		out["pids"] = c.pids
	}
	if c.oom > 0 {
		out["memory"] = c.oom
	}
	return out
}

// counters reads a file of "name number" lines.
func (h *hierarchy) counters(name string) (map[string]int64, error) {
	data, err := h.read(name)
	if err != nil {
		return nil, err
	}
	return parseCounters(data), nil
}

func parseCounters(data string) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(data) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if n, err := strconv.ParseInt(v, 10, 64); err == nil {
			out[k] = n
		}
	}
	return out
}

// number reads a file with one number. "max", and what is beyond an int64, is
// math.MaxInt64; a file that is not there is 0.
func (h *hierarchy) number(name string) int64 {
	data, err := h.read(name)
	if err != nil {
		return 0
	}
	return parseNumber(data)
}

func parseNumber(data string) int64 {
	if data == "max" {
		return math.MaxInt64
	}
	n, err := strconv.ParseUint(data, 10, 64)
	if err != nil {
		return 0
	}
	return int64(min(n, math.MaxInt64))
}

func (h *Host) oomFile() string {
	if h.version == 2 {
		return "memory.events"
	}
	return "memory.oom_control"
}

// count reads one counter of the agent's cgroup.
func (s *Sandbox) count(controller, file, name string) (int64, error) {
	hr := s.host.by[controller]
	c, err := hr.counters(hr.at(s.id, "agent", file))
	return c[name], err
}

// counts are the sandbox's, execs that are gone included. The agent's own
// file has what the kernel counts hierarchically, the execs' what it counts
// where it happened.
func (s *Sandbox) counts() counts {
	s.mu.Lock()
	total := s.removed
	s.mu.Unlock()
	agentPids, _ := s.count("pids", "pids.events", "max")
	agentOOM, _ := s.count("memory", s.host.oomFile(), "oom_kill")
	for _, id := range s.Execs() {
		c := s.exec(id).counts()
		total.pids += c.pids
		total.oom += c.oom
	}
	total.pids += agentPids
	if s.host.version == 2 {
		total.oom = agentOOM // memory.events is hierarchical and outlives the execs
	} else {
		total.oom += agentOOM
	}
	return total
}

// Hits is how often limits refused or ended something since Open or Reopen:
// "pids" is forks refused, "memory" OOM kills. Zero counts are left out.
func (s *Sandbox) Hits() map[string]int64 { return s.counts().hits() }

// CPUUsage is the CPU time the whole sandbox has used. The error wraps
// fs.ErrNotExist when the cgroup was removed.
func (s *Sandbox) CPUUsage() (time.Duration, error) {
	if s.host.version == 2 {
		hr := s.host.by["memory"]
		c, err := hr.counters(hr.at(s.id, "cpu.stat"))
		return time.Duration(c["usage_usec"]) * time.Microsecond, s.absent(err)
	}
	hr := s.host.by["cpuacct"]
	data, err := hr.read(hr.at(s.id, "cpuacct.usage"))
	return time.Duration(parseNumber(data)), s.absent(err)
}

// absent makes fs.ErrNotExist of the kernel's errors about a removed cgroup.
func (s *Sandbox) absent(err error) error {
	if gone(err) {
		return fmt.Errorf("cgroup of %s: %w", s.id, fs.ErrNotExist)
	}
	return err
}

// Stats is what the sandbox uses now: memory and pids of the agent's cgroup,
// whose limits are those asked for; CPU and I/O of the whole sandbox. Name is
// left empty. A measure that this kernel does not have is 0. The error wraps
// fs.ErrNotExist when the cgroup was removed.
func (s *Sandbox) Stats() (api.Stats, error) {
	cpu, err := s.CPUUsage()
	if err != nil {
		return api.Stats{}, err
	}
	mem, pids := s.host.by["memory"], s.host.by["pids"]
	use, limit, peak := "memory.current", "memory.max", "memory.peak"
	if s.host.version == 1 {
		use, limit, peak = "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.max_usage_in_bytes"
	}
	st := api.Stats{
		ID:          s.id,
		Read:        time.Now(),
		MemoryBytes: mem.number(mem.at(s.id, "agent", use)),
		MemoryLimit: mem.number(mem.at(s.id, "agent", limit)),
		MemoryPeak:  mem.number(mem.at(s.id, "agent", peak)),
		CPUSeconds:  cpu.Seconds(),
		Pids:        pids.number(pids.at(s.id, "agent", "pids.current")),
		PidsLimit:   pids.number(pids.at(s.id, "agent", "pids.max")),
		OOMKills:    s.counts().oom,
	}
	st.ThrottledSecs = s.throttled().Seconds()
	st.IOReadBytes, st.IOWriteBytes = s.io()
	return st, nil
}

func (s *Sandbox) throttled() time.Duration {
	hr := s.host.by["cpu"]
	if hr == nil {
		return 0
	}
	c, err := hr.counters(hr.at(s.id, "cpu.stat"))
	if err != nil {
		return 0
	}
	if s.host.version == 2 {
		return time.Duration(c["throttled_usec"]) * time.Microsecond
	}
	return time.Duration(c["throttled_time"])
}

func (s *Sandbox) io() (read, written int64) {
	hr, file := s.host.by["blkio"], "blkio.throttle.io_service_bytes_recursive"
	if s.host.version == 2 {
		hr, file = s.host.by["io"], "io.stat"
	}
	if hr == nil {
		return 0, 0
	}
	data, err := hr.read(hr.at(s.id, file))
	if err != nil {
		return 0, 0
	}
	return parseIO(data)
}

// parseIO adds up the devices of io.stat ("8:0 rbytes=1 wbytes=2 ...") or of
// v1's io_service_bytes ("8:0 Read 1").
func parseIO(data string) (read, written int64) {
	for line := range strings.Lines(data) {
		f := strings.Fields(line)
		if len(f) == 3 && f[1] == "Read" {
			read += parseNumber(f[2])
		} else if len(f) == 3 && f[1] == "Write" {
			written += parseNumber(f[2])
		}
		for _, kv := range f {
			if v, ok := strings.CutPrefix(kv, "rbytes="); ok {
				read += parseNumber(v)
			} else if v, ok := strings.CutPrefix(kv, "wbytes="); ok {
				written += parseNumber(v)
			}
		}
	}
	return read, written
}
