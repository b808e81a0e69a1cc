package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/store"

	"github.com/google/go-cmp/cmp"
)

// starting runs a command in the background until the test ends it, or the
// daemon does.
func starting(t *testing.T, l *lab.Lab, ref string, req api.ExecRequest) *client.Process {
	t.Helper()
	p, err := l.StartExec(t.Context(), ref, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func execsOf(t *testing.T, l *lab.Lab, ref string, labels map[string]string) map[string]api.Exec {
	t.Helper()
	list, err := l.Execs(t.Context(), ref, labels)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(list, func(a, b api.Exec) int { return a.Started.Compare(b.Started) }) {
		t.Errorf("not by start: %+v", list)
	}
	out := map[string]api.Exec{}
	for _, e := range list {
		out[e.ID] = e
	}
	if len(out) != len(list) {
		t.Errorf("%d of %d execs are there twice", len(list)-len(out), len(list))
	}
	return out
}

func TestExecList(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "box", Limits: api.Limits{Pids: 8}, Command: sh("sleep 1000")})

	// What ended is there at once, as it ended.
	run := func(req api.ExecRequest) api.Exec {
		t.Helper()
		_, res := l.ShContext(t.Context(), sb.ID, req)
		e, ok := execsOf(t, l, "box", nil)[res.ID]
		if !ok || e.ExitCode == nil || *e.ExitCode != res.ExitCode || e.Reason != res.Reason || e.Ended.Before(e.Started) {
			t.Errorf("%q ended with %+v and is listed as %+v", req.Command, res, e)
		}
		if diff := cmp.Diff(res.LimitsHit, e.LimitsHit); diff != "" {
			t.Errorf("limits hit (-result +listed):\n%s", diff)
		}
		return e
	}
	e := run(api.ExecRequest{Command: sh("exit 3"), Labels: map[string]string{"job": "7", "k": "v"}})
	if diff := cmp.Diff(sh("exit 3"), e.Command); diff != "" || e.IO != "fds" || e.OutputBytes == nil || *e.OutputBytes != 0 || e.Labels["job"] != "7" {
		t.Errorf("%+v", e)
	}
	if e := run(api.ExecRequest{Command: []string{"/does/not/exist"}}); *e.ExitCode != 127 || e.Error == "" {
		t.Errorf("%+v", e)
	}
	if e := run(api.ExecRequest{Command: sh("sleep 1000"), Timeout: api.Duration(50 * time.Millisecond)}); e.Reason != api.ReasonTimeout {
		t.Errorf("%+v", e)
	}
	long := run(api.ExecRequest{Command: sh("exit 0 #" + strings.Repeat("é\x1b", 10_000))})
	if n := len(strings.Join(long.Command, " ")); !long.Cut || n < 4000 || n > 4096 {
		t.Errorf("%d bytes of a long command are kept, cut: %v", n, long.Cut)
	}

	// Only bytes that pass the daemon are counted, and all of those.
	e = run(api.ExecRequest{Command: sh("head -c 100000 /dev/zero; echo more >&2"), IO: client.IOFramed})
	l.Eventually("output is counted", 5*time.Second, func() error {
		if e = execsOf(t, l, sb.ID, nil)[e.ID]; e.OutputBytes == nil || *e.OutputBytes != 100_005 {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})

	// File operations are nobody's commands; nor is the main one an exec.
	if _, err := l.StatFile(t.Context(), sb.ID, "/tmp"); err != nil {
		t.Fatal(err)
	}
	// What runs is there, and then lost with its client.
	p := starting(t, l, sb.ID, api.ExecRequest{Command: sh("sleep 1000"), Labels: map[string]string{"job": "8"}})
	got := execsOf(t, l, sb.ID, map[string]string{"job": "8"})
	if e := got[p.ID()]; len(got) != 1 || e.Reason != "" || !e.Ended.IsZero() || e.ExitCode != nil {
		t.Errorf("running: %+v", got)
	}
	if got := execsOf(t, l, sb.ID, map[string]string{"job": "7", "k": "other"}); len(got) != 0 {
		t.Errorf("labels that are not all there find %+v", got)
	}
	_ = p.Close()
	l.Eventually("the command is lost", 10*time.Second, func() error {
		if e := execsOf(t, l, sb.ID, nil)[p.ID()]; e.Reason != api.ReasonLost || e.Ended.IsZero() {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	if e := run(api.ExecRequest{Command: sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait")}); e.LimitsHit["pids"] == 0 {
		t.Errorf("%+v", e)
	}
	if got := execsOf(t, l, sb.ID, nil); len(got) != 7 {
		t.Errorf("%d execs, want 7: %+v", len(got), got)
	}

	// The list is kept with an ended sandbox, and goes with it.
	if err := l.Client.Kill(t.Context(), sb.ID, "KILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Wait(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if got := execsOf(t, l, sb.ID, nil); len(got) != 7 {
		t.Errorf("%d execs of the ended sandbox", len(got))
	}
	out, _, code := l.Creel("exec", "ls", "box")
	if code != 0 || strings.Contains(out, "\x1b") || !strings.Contains(out, `é\x1b`) || !strings.Contains(out, "timeout (124)") || !strings.Contains(out, "pids ") {
		t.Errorf("exec ls: %d\n%.2000s", code, out)
	}
	if err := l.Remove(t.Context(), sb.ID, false); err != nil {
		t.Fatal(err)
	}
	l.Eventually("it is forgotten", 10*time.Second, func() error {
		if list, err := l.Execs(t.Context(), sb.ID, nil); api.CodeOf(err) != api.CodeNotFound {
			return fmt.Errorf("execs of a removed sandbox: %+v, %w", list, err)
		}
		return nil
	})
}

// TestExecListAfterKill kills the daemon: what had ended is as it was, what
// ran is lost, and nothing is running for ever.
func TestExecListAfterKill(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "box"})
	_, res := l.Sh(sb.ID, "exit 4")
	p := starting(t, l, sb.ID, api.ExecRequest{Command: sh("sleep 1000"), Labels: map[string]string{"job": "7"}})
	// No client waits for the commits, but the event of an end comes after
	// that end's, and the start before it was committed with it or before.
	_, last := l.Sh(sb.ID, "exit 0")
	event(t, l, sb.ID, "exec.ended", func(e api.Event) bool { return e.Fields["exec"] == last.ID })
	l.Kill()
	l.State(func(s *store.Store) error {
		kept, err := s.Execs(sb.ID)
		if err == nil && len(kept) != 3 {
			err = fmt.Errorf("%d execs on disk: %+v", len(kept), kept)
		}
		return err
	})
	l.Start()
	got := execsOf(t, l, sb.ID, nil)
	if e := got[res.ID]; e.ExitCode == nil || *e.ExitCode != 4 || e.Reason != api.ReasonExited {
		t.Errorf("what had ended: %+v", e)
	}
	if e := got[p.ID()]; e.ExitCode != nil || e.Reason != api.ReasonLost || e.Ended.IsZero() || e.Labels["job"] != "7" {
		t.Errorf("what ran: %+v", e)
	}
	if _, res := l.Sh(sb.ID, "exit 5"); execsOf(t, l, sb.ID, nil)[res.ID].ExitCode == nil {
		t.Error("the next exec is not listed")
	}
}

// TestExecListBound runs more than are kept, with one from before them.
func TestExecListBound(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	p := starting(t, l, sb.ID, api.ExecRequest{Command: sh("sleep 1000")})
	last := ""
	for range store.MaxExecs + 10 {
		_, res := l.ShContext(t.Context(), sb.ID, api.ExecRequest{Command: []string{"/bin/true"}})
		last = res.ID
	}
	l.Eventually("the oldest go", 10*time.Second, func() error {
		got := execsOf(t, l, sb.ID, nil)
		if len(got) != store.MaxExecs+1 || got[last].Reason == "" || got[p.ID()].ID == "" || got[p.ID()].Reason != "" {
			return fmt.Errorf("%d execs, the oldest: %+v, the newest: %+v", len(got), got[p.ID()], got[last])
		}
		return nil
	})
	_ = p.Close()
	l.Eventually("the one that ran takes a place", 10*time.Second, func() error {
		got := execsOf(t, l, sb.ID, nil)
		if len(got) != store.MaxExecs || got[p.ID()].Reason != api.ReasonLost {
			return fmt.Errorf("%d execs, the oldest: %+v", len(got), got[p.ID()])
		}
		return nil
	})
}

func TestTop(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "box", Command: sh("sleep 1001 & sleep 1002; :")})
	p := starting(t, l, sb.ID, api.ExecRequest{Command: sh("sleep 1003 & sleep 1004; :")})
	// A daemon of an exec that has ended stays that exec's.
	_, left := l.Sh(sb.ID, "(setsid sleep 1005 </dev/null >/dev/null 2>&1 &)")

	var top *api.Top
	find := func(arg string) (found api.Process) {
		for _, p := range top.Processes {
			if slices.ContainsFunc(p.Args, func(s string) bool { return strings.HasPrefix(s, arg) }) {
				found = p
			}
		}
		return found
	}
	l.Eventually("all processes run", 10*time.Second, func() (err error) {
		if top, err = l.Top(t.Context(), "box"); err != nil {
			return err
		}
		if n := len(top.Processes); n != 8 {
			return fmt.Errorf("%d processes, want 8: %+v", n, top.Processes)
		}
		for _, arg := range []string{"1001", "1002", "1003", "1004", "1005"} {
			if find(arg).Comm != "sleep" {
				return fmt.Errorf("sleep %s is not there: %+v", arg, top.Processes)
			}
		}
		return nil
	})
	if top.ID != sb.ID || top.Name != "box" || top.Truncated {
		t.Errorf("%+v", top)
	}
	one := top.Processes[0]
	if one.PID != 1 || one.PPID != 0 || one.Exec != "" || one.Threads < 1 || one.MemoryBytes == 0 || one.State == "" || time.Since(one.Started) > time.Minute {
		t.Errorf("PID 1: %+v", one)
	}
	byPID := map[int]api.Process{}
	for _, p := range top.Processes {
		byPID[p.PID] = p
	}
	for arg, exec := range map[string]string{"1001": "main", "1002": "main", "1003": p.ID(), "1004": p.ID(), "1005": left.ID} {
		got := find(arg)
		if got.Exec != exec || got.Comm != "sleep" {
			t.Errorf("sleep %s is %+v, want it of exec %s", arg, got, exec)
		}
		parent := byPID[got.PPID]
		if arg == "1005" && parent.PID != 1 || arg != "1005" && parent.Exec != exec {
			t.Errorf("the parent of sleep %s is %+v", arg, parent)
		}
	}

	// A process may call itself anything; a terminal gets none of it raw.
	h := starting(t, l, sb.ID, api.ExecRequest{Command: []string{"/bin/sh", "-c", "sleep 1007; :", "1006\x1b[2J\n\u202e"}})
	l.Eventually("the hostile name is seen", 10*time.Second, func() (err error) {
		if top, err = l.Top(t.Context(), "box"); err == nil && find("1006").Exec != h.ID() {
			err = fmt.Errorf("%+v", top.Processes)
		}
		return err
	})
	out, _, code := l.Creel("top", "box")
	if code != 0 || strings.ContainsFunc(out, func(r rune) bool { return r < ' ' && r != '\n' }) || !strings.Contains(out, "    sleep 1003") || !strings.Contains(out, left.ID) {
		t.Errorf("creel top: %d\n%s", code, out)
	}

	// Frozen processes are shown too; ended ones are not.
	if err := l.Pause(t.Context(), "box"); err != nil {
		t.Fatal(err)
	}
	if top, err := l.Top(t.Context(), "box"); err != nil || len(top.Processes) < 10 {
		t.Errorf("of a paused sandbox: %+v, %v", top, err)
	}
	if err := l.Client.Kill(t.Context(), "box", "KILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Wait(t.Context(), "box"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Top(t.Context(), "box"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("of an ended sandbox: %v", err)
	}
}

// TestTopWhileTheyCome reads while processes come and go by the hundred: no
// error, nothing of the host's, and every one of the right exec.
func TestTopWhileTheyCome(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Pids: 200}})
	other := l.Spawn(api.SpawnRequest{Command: sh("sleep 31415")})
	p := starting(t, l, sb.ID, api.ExecRequest{Command: sh("while :; do for i in 1 2 3 4 5 6 7 8 9; do (sleep 0) & done; wait; done")})
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		top, err := l.Top(t.Context(), sb.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, proc := range top.Processes {
			if proc.PID == 1 != (proc.Exec == "") || proc.Exec != "" && proc.Exec != p.ID() || proc.PID > 1<<22 || slices.Contains(proc.Args, "31415") {
				t.Fatalf("%+v", proc)
			}
		}
	}
	if err := l.Remove(t.Context(), other.ID, true); err != nil {
		t.Error(err)
	}
	_ = p.Close()
	onlyInit(t, l, sb.ID)
}

// TestTopMany has more processes than are shown.
func TestTopMany(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Pids: 1100, Memory: 512 << 20}})
	p := starting(t, l, sb.ID, api.ExecRequest{Command: sh("i=0; while [ $i -lt 1010 ]; do sleep 1000 & i=$((i+1)); done; wait")})
	l.Eventually("they run", 60*time.Second, func() error {
		st, err := l.Stats(t.Context(), sb.ID)
		if err == nil && st.Pids < 1011 {
			err = fmt.Errorf("%d processes", st.Pids)
		}
		return err
	})
	top, err := l.Top(t.Context(), sb.ID)
	if err != nil || len(top.Processes) != 1000 || !top.Truncated || top.Processes[0].PID != 1 {
		t.Errorf("%d processes, truncated: %v, %v", len(top.Processes), top.Truncated, err)
	}
	_ = p.Close()
	onlyInit(t, l, sb.ID)
}

func TestFilters(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Import("other", lab.Tiny(t))
	one := l.Spawn(api.SpawnRequest{Agent: "ann", Labels: map[string]string{"job": "7", "k": "a=b"}})
	two := l.Spawn(api.SpawnRequest{Agent: "bob", Image: "other", Labels: map[string]string{"job": "7"}})
	done := l.Spawn(api.SpawnRequest{Agent: "ann", Labels: map[string]string{"job": "8"}, Command: []string{"/bin/true"}})
	if _, err := l.Wait(t.Context(), done.ID); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{one.ID: "one", two.ID: "two", done.ID: "done"}
	for args, want := range map[string]string{
		"":                              "one two",
		"-a":                            "done one two",
		"-f label=job=7":                "one two",
		"-f label=job=7 -f label=k=a=b": "one",
		"-f label=job=8":                "",
		"-a -f label=job=8":             "done",
		"-f agent=ann -f agent=bob":     "one two",
		"-a -f agent=ann":               "done one",
		"-f status=stopped":             "done",
		"-f status=stopped -f status=running -f agent=ann": "done one",
		"-f image=other":                 "two",
		"-f image=" + two.ImageDigest:    "one two", // both names are of one image
		"-f image=base -f image=nothing": "one",
		"-f image=nothing":               "",
	} {
		out, errOut, code := l.Creel(append([]string{"ps", "-q"}, strings.Fields(args)...)...)
		var got []string
		for id := range strings.FieldsSeq(out) {
			got = append(got, names[id])
		}
		slices.Sort(got)
		if code != 0 || strings.Join(got, " ") != want {
			t.Errorf("ps %s: %q, want %q (%d, %s)", args, got, want, code, errOut)
		}
	}
}

// TestStatsLive shows all sandboxes, again and again, while one ends and
// another begins.
func TestStatsLive(t *testing.T) {
	l := lab.New(t, lab.Options{})
	one, two := l.Spawn(api.SpawnRequest{Name: "one"}), l.Spawn(api.SpawnRequest{Name: "two"})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := l.Command(nil, "stats", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	dec := json.NewDecoder(out)
	until := func(want ...string) {
		t.Helper()
		for {
			var list []api.Stats
			if err := dec.Decode(&list); err != nil {
				t.Fatalf("until %q: %v", want, err)
			}
			var got []string
			for _, s := range list {
				got = append(got, s.ID)
			}
			slices.Sort(got)
			slices.Sort(want)
			if slices.Equal(got, want) {
				return
			}
		}
	}
	until(one.ID, two.ID)
	if err := l.Remove(t.Context(), two.ID, true); err != nil {
		t.Fatal(err)
	}
	until(one.ID)
	three := l.Spawn(api.SpawnRequest{Name: "three"})
	until(one.ID, three.ID)
}

// TestDidIsTheCallers: what a sandbox did is its caller's to see.
func TestDidIsTheCallers(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "roots", Labels: map[string]string{"job": "secret"}})
	l.Sh(sb.ID, "exit 0")
	for _, args := range [][]string{{"exec", "ls"}, {"top"}} {
		var said [2]string
		for i, ref := range []string{sb.ID, strings.Repeat("a", 20)} {
			out, errOut, code := l.CreelAs(caller, "", append(slices.Clone(args), ref)...)
			if code == 0 || out != "" {
				t.Errorf("%q %s: %d, %s", args, ref, code, out)
			}
			said[i] = strings.ReplaceAll(errOut, ref, "REF")
		}
		if said[0] != said[1] {
			t.Errorf("%q tells another's sandbox, %q, from none, %q", args, said[0], said[1])
		}
	}
	if out, _, _ := l.CreelAs(caller, "", "ps", "-a", "-q", "-f", "label=job=secret"); out != "" {
		t.Errorf("a stranger's filter finds %q", out)
	}
}
