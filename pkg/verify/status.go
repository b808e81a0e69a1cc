package verify

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// parseFields reads "Name:\tvalue" lines, as in /proc/PID/status. The first
// of two lines with one name counts.
func parseFields(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ":")
		if _, twice := out[name]; ok && !twice {
			out[name] = strings.Join(strings.Fields(value), " ")
		}
	}
	return out
}

// thread is the status of one thread.
type thread struct {
	tid    int
	fields map[string]string
}

// readThreads checks what every thread has for itself: ids, capabilities,
// no_new_privs and seccomp are per thread in Linux.
func readThreads(r *report, p *proc, e Expect) {
	threads, err := allThreads(p)
	r.within(err, func() {
		uid, gid := strconv.FormatUint(uint64(e.HostUID)+uint64(e.AgentUID), 10), strconv.FormatUint(uint64(e.HostUID)+uint64(e.AgentGID), 10)
		same := func(name, field, expected string) { r.check(name, expected, common(threads, field)) }
		same("uid", "Uid", fill(uid, 4)) // real, effective, saved, file system
		same("gid", "Gid", fill(gid, 4))
		same("groups", "Groups", groups(e))
		for _, c := range []struct {
			name, field string
			caps        uint64
		}{
			{"inheritable", "CapInh", 0},
			{"permitted", "CapPrm", e.Caps},
			{"effective", "CapEff", e.Caps},
			{"bounding", "CapBnd", e.Caps},
			{"ambient", "CapAmb", 0},
		} {
			same("caps."+c.name, c.field, fmt.Sprintf("%016x", c.caps))
		}
		same("no_new_privs", "NoNewPrivs", "1")
		same("seccomp.mode", "Seccomp", "2")
		same("seccomp.filters", "Seccomp_filters", "1")
		same("process.tracer", "TracerPid", "0")
		checkPID1(r, e.PID, threads)
	})
	st, err := p.stat("mem")
	r.within(err, func() {
		// The owner of /proc/PID/mem is the process's own uid while it is
		// dumpable; else root of the user namespace its program belongs to,
		// which is the host's, or the range's first id.
		owner := st.Uid
		ok := (owner == 0 || owner == e.HostUID) && uint64(owner) != uint64(e.HostUID)+uint64(e.AgentUID)
		r.add("dumpable", "no: /proc/PID/mem belongs to root", fmt.Sprintf("/proc/PID/mem belongs to uid %d", owner), ok)
	})
}

func allThreads(p *proc) ([]thread, error) {
	tids, err := p.list("task")
	if err != nil {
		return nil, err
	}
	var out []thread
	for _, tid := range tids {
		text, err := p.read("task/" + strconv.Itoa(tid) + "/status")
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			continue // it has ended; that of the process shows at the end
		}
		if err != nil {
			return nil, err
		}
		out = append(out, thread{tid, parseFields(text)})
	}
	return out, nil
}

// none is an empty list.
const none = "none"

// common is the value all threads have, or every value with its threads.
func common(threads []thread, field string) string {
	var values []string
	tids := map[string][]string{}
	for _, t := range threads {
		v, ok := t.fields[field]
		if !ok {
			v = "no " + field + " in status"
		}
		if v == "" {
			v = none
		}
		if tids[v] == nil {
			values = append(values, v)
		}
		tids[v] = append(tids[v], strconv.Itoa(t.tid))
	}
	if len(values) == 1 {
		return values[0]
	}
	for i, v := range values {
		values[i] = v + " in thread " + strings.Join(tids[v], ",")
	}
	return "differs: " + strings.Join(values, "; ")
}

func checkPID1(r *report, pid int, threads []thread) {
	observed := "no such thread"
	for _, t := range threads {
		if t.tid == pid {
			// One number per pid namespace, the outermost first.
			observed = t.fields["NSpid"]
		}
	}
	f := strings.Fields(observed)
	ok := len(f) >= 2 && f[0] == strconv.Itoa(pid) && f[len(f)-1] == "1"
	r.add("process.pid1", strconv.Itoa(pid)+" outside, 1 inside", observed, ok)
}

func fill(s string, n int) string { return strings.Join(slices.Repeat([]string{s}, n), " ") }

func groups(e Expect) string {
	if len(e.Groups) == 0 {
		return none
	}
	ids := slices.Sorted(slices.Values(e.Groups))
	out := make([]string, len(ids))
	for i, g := range ids {
		out[i] = strconv.FormatUint(uint64(e.HostUID)+uint64(g), 10)
	}
	return strings.Join(out, " ")
}
