// Package hostload says whether the box can carry one more sandbox now, by
// what the kernel says of its memory, its tasks and its stalls. Limits of
// sandboxes are promises, and are added up elsewhere; this is what is there.
//
//	s, err := hostload.Read(os.DirFS("/proc"))
//	rules := hostload.Judge(s, least)
package hostload

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"syscall"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Bounds are what a box must have left, and how long it may have stalled. Zero
// is no bound.
type Bounds struct {
	// Memory is the bytes that must be available.
	Memory api.Size
	// Pids is how many tasks the kernel must have left.
	Pids int64
	// MemoryPressure and IOPressure are the percent of the last 10 s in which
	// every task that was not idle waited for memory, or for disks.
	MemoryPressure, IOPressure float64
}

// State is what the kernel says.
type State struct {
	// Memory is MemAvailable in bytes, see proc_meminfo(5): what can be had
	// without swapping.
	Memory int64
	// Tasks exist, of at most MaxTasks: the lower of kernel.pid_max and
	// kernel.threads-max.
	Tasks, MaxTasks int64
	// MemoryPressure and IOPressure are "full avg10" of PSI
	// (Documentation/accounting/psi.rst); -1 where the kernel does not tell.
	MemoryPressure, IOPressure float64
}

// Read reads the state below /proc. What the kernel cannot be asked is an
// error, but for PSI, which kernels may be built or booted without.
func Read(proc fs.FS) (State, error) {
	var s State
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	var err error
	s.Memory, err = available(proc)
	keep(err)
	s.Tasks, err = tasks(proc)
	keep(err)
	pids, err := number(proc, "sys/kernel/pid_max")
	keep(err)
	threads, err := number(proc, "sys/kernel/threads-max")
	keep(err)
	s.MaxTasks = min(pids, threads)
	s.MemoryPressure, err = full(proc, "pressure/memory")
	keep(err)
	s.IOPressure, err = full(proc, "pressure/io")
	keep(err)
	if err := errors.Join(errs...); err != nil {
		return State{}, fmt.Errorf("load of the host: %w", err)
	}
	return s, nil
}

func available(proc fs.FS) (int64, error) {
	b, err := fs.ReadFile(proc, "meminfo")
	if err != nil {
		return 0, err
	}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("meminfo has no MemAvailable")
}

// tasks is the second number of loadavg's fourth field, see proc_loadavg(5).
func tasks(proc fs.FS) (int64, error) {
	b, err := fs.ReadFile(proc, "loadavg")
	if err != nil {
		return 0, err
	}
	if f := strings.Fields(string(b)); len(f) == 5 {
		if _, n, ok := strings.Cut(f[3], "/"); ok {
			return strconv.ParseInt(n, 10, 64)
		}
	}
	return 0, fmt.Errorf("loadavg is %q", bytes.TrimSpace(b))
}

func number(proc fs.FS, name string) (int64, error) {
	b, err := fs.ReadFile(proc, name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

func full(proc fs.FS, name string) (float64, error) {
	b, err := fs.ReadFile(proc, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EOPNOTSUPP) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "full" {
			continue
		}
		v, ok := strings.CutPrefix(f[1], "avg10=")
		if !ok {
			break
		}
		return strconv.ParseFloat(v, 64)
	}
	return 0, fmt.Errorf("%s has no full avg10", name)
}

// Judge holds a state against bounds: every bound that is set, and of PSI those
// that the kernel can tell.
func Judge(s State, b Bounds) []api.Rule {
	var rules []api.Rule
	add := func(key, asked, allowed string, ok bool, fix string) {
		r := api.Rule{Rule: "host." + key, Asked: asked, Allowed: allowed, OK: ok, Total: true}
		if !ok {
			r.Fix = fix + ", or have the operator change host." + key
		}
		rules = append(rules, r)
	}
	if b.Memory > 0 {
		add("memory", fmt.Sprintf("%s available", api.Size(s.Memory>>20<<20)), fmt.Sprintf("at least %s", b.Memory),
			s.Memory >= int64(b.Memory), "wait, or stop what uses the host's memory")
	}
	if b.Pids > 0 {
		add("pids", fmt.Sprintf("%d tasks of %d left", s.MaxTasks-s.Tasks, s.MaxTasks), fmt.Sprintf("at least %d", b.Pids),
			s.MaxTasks-s.Tasks >= b.Pids, "stop something, or raise kernel.pid_max and kernel.threads-max")
	}
	for _, p := range []struct {
		key       string
		have, max float64
		what      string
	}{
		{"memory_pressure", s.MemoryPressure, b.MemoryPressure, "memory"},
		{"io_pressure", s.IOPressure, b.IOPressure, "disks"},
	} {
		if p.max > 0 && p.have >= 0 {
			add(p.key, fmt.Sprintf("%.2f %% of 10 s", p.have), fmt.Sprintf("at most %g %%", p.max),
				p.have <= p.max, "wait: everything that runs here waits for its "+p.what)
		}
	}
	return rules
}
