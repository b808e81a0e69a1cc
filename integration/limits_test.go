package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// eat is a command that uses 1 GB of memory.
const eat = "tail -c 1000000000 /dev/zero >/dev/null"

// event waits for an event of a sandbox's.
func event(t *testing.T, l *lab.Lab, id, kind string, match func(api.Event) bool) api.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var found api.Event
	errFound := errors.New("found")
	err := l.Events(ctx, 0, func(e api.Event) error {
		if e.Sandbox == id && e.Type == kind && (match == nil || match(e)) {
			found = e
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		t.Fatalf("no event %s of %s: %v", kind, id, err)
	}
	return found
}

// hit holds that a refusal of a limit is told everywhere it is promised: the
// exec's result and event, inspect, and ps.
func hit(t *testing.T, l *lab.Lab, id string, res api.ExecResult, limit string) {
	t.Helper()
	if res.LimitsHit[limit] < 1 {
		t.Errorf("the exec's result does not count %s: %+v", limit, res)
	}
	e := event(t, l, id, "exec.ended", func(e api.Event) bool { return e.Fields["exec"] == res.ID })
	if want := fmt.Sprint(res.LimitsHit[limit]); e.Fields["limits_hit."+limit] != want {
		t.Errorf("the event says %q, want limits_hit.%s=%s", e.Fields, limit, want)
	}
	sb, err := l.Inspect(t.Context(), id)
	if err != nil || sb.LimitsHit[limit] < 1 {
		t.Errorf("inspect does not count %s: %v, %v", limit, sb.LimitsHit, err)
	}
	out, _, _ := l.Creel("ps", "-a")
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, id) && strings.Contains(line, limit) {
			return
		}
	}
	t.Errorf("ps does not name %s:\n%s", limit, out)
}

// TestOOMEndsItsExec has the exec that uses too much memory end, as a whole,
// and neither its neighbour nor PID 1.
func TestOOMEndsItsExec(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Memory: 48 << 20}})
	neighbour, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Close()
	for _, tt := range []struct{ name, script string }{
		{"first process", "exec " + eat},
		{"a child", "sleep 1000 & (" + eat + ") & wait; sleep 1000"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, res := l.Sh(sb.ID, tt.script)
			if res.Reason != api.ReasonOOM || res.ExitCode != 137 {
				t.Errorf("result %+v, %q", res, out)
			}
			hit(t, l, sb.ID, res, "memory")
			processes(t, l, sb.ID, 1)
		})
	}
	event(t, l, sb.ID, "sandbox.oom", nil)
	var out bytes.Buffer
	res, err := neighbour.Run(client.Stdio{In: strings.NewReader("untouched"), Out: &out})
	if err != nil || res.ExitCode != 0 || out.String() != "untouched" {
		t.Errorf("the neighbour: %+v, %v, %q", res, err, out.String())
	}
	if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.State != api.StateRunning {
		t.Errorf("the sandbox: %+v, %v", got, err)
	}
}

// TestPidsLimit refuses the fork that is one too many, counts that, and does
// not keep anybody from running a command in a sandbox that is full.
func TestPidsLimit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	const limit = 16
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Pids: limit}})
	out, res := l.Sh(sb.ID, `i=0; while [ $i -lt 40 ]; do sleep 1 & i=$((i+1)); done; wait`)
	if res.ExitCode == 0 || !strings.Contains(out, "fork") {
		t.Errorf("%d processes: %q, %+v", 40, out, res)
	}
	hit(t, l, sb.ID, res, "pids")
	onlyInit(t, l, sb.ID)
	full, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/bin/sh", "-c", fmt.Sprintf(`i=1; while [ $i -lt %d ]; do sleep 1000 & i=$((i+1)); done; wait`, limit)}})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	processes(t, l, sb.ID, limit)
	for range 5 {
		out, res = l.ShContext(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/bin/echo", "still here"}})
		if res.ExitCode != 0 || out != "still here\n" {
			t.Errorf("an exec in a full sandbox: %q, %+v", out, res)
		}
	}
	if out, res = l.Sh(sb.ID, "/bin/true; echo done"); res.ExitCode == 0 || !strings.Contains(out, "fork") {
		t.Errorf("it can fork: %q, %+v", out, res)
	}
	hit(t, l, sb.ID, res, "pids")
}

// TestDiskLimit fills each kind of writable place: one MiB more than it holds
// ends in ENOSPC, from the file system itself.
func TestDiskLimit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	for _, tt := range []struct {
		name string
		req  api.SpawnRequest
		path string
		size api.Size // that path's file system refuses one MiB more than
	}{
		{"tmpfs", api.SpawnRequest{Limits: api.Limits{Memory: 128 << 20, Tmp: 32 << 20}}, "/tmp/file", 16 << 20}, // half of all
		{"ephemeral in memory", api.SpawnRequest{Rootfs: "ephemeral", Limits: api.Limits{Memory: 128 << 20, Disk: 16 << 20}}, "/home/agent/file", 16 << 20},
		{"ephemeral on disk", api.SpawnRequest{Rootfs: "ephemeral", Limits: api.Limits{Memory: 64 << 20, Disk: 48 << 20}}, "/home/agent/file", 48 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(tt.req)
			out, res := l.Sh(sb.ID, fmt.Sprintf("dd if=/dev/zero of=%s bs=1M count=%d && sync", tt.path, tt.size>>20+1))
			if res.ExitCode == 0 || !strings.Contains(out, "No space left on device") {
				t.Errorf("%+v, %q", res, out)
			}
			hit(t, l, sb.ID, res, "disk")
			out, res = l.Sh(sb.ID, fmt.Sprintf("stat -c %%s %s; rm %[1]s; echo again >%[1]s; cat %[1]s", tt.path))
			var wrote api.Size
			if n, err := fmt.Sscan(out, &wrote); n != 1 || err != nil || wrote > tt.size || wrote < tt.size*8/10 {
				t.Errorf("%s of a limit of %s were written", wrote, tt.size)
			}
			if res.ExitCode != 0 || res.LimitsHit != nil || !strings.HasSuffix(out, "\nagain\n") {
				t.Errorf("after the removal: %+v, %q", res, out)
			}
			if err := l.Remove(t.Context(), sb.ID, true); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFilesLimit refuses the descriptor that is one too many, and counts the
// process that stays at its limit.
func TestFilesLimit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Files: 256}})
	out, res := l.Sh(sb.ID, `ulimit -n; ulimit -Hn; i=1000; while [ $i -lt 1300 ]; do echo x >/tmp/$i; i=$((i+1)); done; tail -n1 /tmp/1*`)
	if res.ExitCode == 0 || !strings.Contains(out, "256\n256\n") || !strings.Contains(out, "Too many open files") {
		t.Errorf("%+v, %q", res, out)
	}
	// tail -f keeps what it could open.
	out, res = l.Sh(sb.ID, `tail -f /tmp/1* >/dev/null 2>&1 & tail -n1 /tmp/1000; sleep 3; kill $!`)
	if res.LimitsHit["files"] != 1 {
		t.Errorf("%+v, %q", res, out)
	}
	hit(t, l, sb.ID, res, "files")
	if _, res = l.Sh(sb.ID, `tail -f /tmp/10* >/dev/null 2>&1 & sleep 2; kill $!`); res.LimitsHit != nil {
		t.Errorf("a process below its limit: %+v", res)
	}
}

// TestCPULimit holds a busy loop to its share.
func TestCPULimit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	const share = 0.2
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{CPUs: share}})
	began := time.Now()
	res := execIn(t, l, sb.ID, api.ExecRequest{Command: []string{"/bin/sh", "-c", "while :; do :; done & while :; do :; done"}, Timeout: api.Duration(2 * time.Second)})
	wall := time.Since(began)
	st, err := l.Stats(t.Context(), sb.ID)
	if err != nil || res.ExitCode != 124 {
		t.Fatalf("%+v, %v", res, err)
	}
	if most := share*wall.Seconds()*1.2 + 0.1; st.CPUSeconds > most || st.ThrottledSecs == 0 {
		t.Errorf("%.2f s of processor in %v, throttled for %.2f s; want at most %.2f s", st.CPUSeconds, wall, st.ThrottledSecs, most)
	}
}

func execIn(t *testing.T, l *lab.Lab, id string, req api.ExecRequest) api.ExecResult {
	t.Helper()
	_, res := l.ShContext(deadline(t), id, req)
	return res
}
