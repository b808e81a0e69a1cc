package integration_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// neighbour is a sandbox that every crash must leave alone.
func neighbour(t *testing.T, l *lab.Lab) (check func()) {
	t.Helper()
	sb := l.Spawn(api.SpawnRequest{Name: "neighbour", Command: []string{"/bin/sleep", "600"}})
	return func() {
		t.Helper()
		got, err := l.Inspect(t.Context(), sb.ID)
		if err != nil || got.State != api.StateRunning || got.PID != sb.PID || got.Problem != "" {
			t.Fatalf("the neighbour is %+v, %v", got, err)
		}
		if out, res := l.Sh(sb.ID, "echo here"); out != "here\n" || res.ExitCode != 0 {
			t.Errorf("the neighbour answers %q, %+v", out, res)
		}
		l.Eventually("only the neighbour is left", 30*time.Second, func() error {
			left := slices.DeleteFunc(l.Snapshot(), func(s string) bool {
				return strings.Contains(s, sb.ID) || strings.Contains(s, fmt.Sprintf("process %d ", sb.PID)) ||
					strings.Contains(s, `["/bin/sleep" "600"`)
			})
			if len(left) > 0 {
				return fmt.Errorf("beside it there is:\n%s", strings.Join(left, "\n"))
			}
			return nil
		})
	}
}

// died waits until a failpoint has killed creeld, and starts it again.
func died(t *testing.T, l *lab.Lab) {
	t.Helper()
	select {
	case <-l.Exited():
	case <-time.After(20 * time.Second):
		t.Fatalf("creeld was not killed:\n%s", l.LogTail(5))
	}
	l.Fail()
	l.Start()
}

// TestKilledAtEachStep kills creeld after each step of a launch.
func TestKilledAtEachStep(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	req := everything(t, l)
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			l.Fail("launch." + step + " kill")
			if _, err := l.Client.Spawn(t.Context(), req); err == nil {
				t.Fatal("spawn succeeded")
			}
			died(t, l)
			all, err := l.List(t.Context(), client.ListOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, sb := range all {
				if sb.Name != req.Name {
					continue
				}
				// After "record" it was a running sandbox; only its caller did
				// not hear of it.
				if step != "record" || sb.State != api.StateRunning {
					t.Errorf("on record: %s, %s", sb.State, sb.Problem)
				}
				if err := l.Remove(t.Context(), sb.ID, true); err != nil {
					t.Error(err)
				}
				l.Eventually("it is gone", 30*time.Second, func() error {
					if _, err := l.Inspect(t.Context(), sb.ID); api.CodeOf(err) != api.CodeNotFound {
						return fmt.Errorf("inspect: %w", err)
					}
					return nil
				})
			}
			check()
		})
	}
	l.Spawn(req)
}

// TestKilledInUndo kills creeld while it takes a failed launch back.
func TestKilledInUndo(t *testing.T) {
	l := lab.New(t, lab.Options{Ranges: 3}) // one is creel-egress's
	check := neighbour(t, l)
	req := everything(t, l)
	for _, effect := range append(slices.Clone(effects), "record") {
		t.Run(effect, func(t *testing.T) {
			l.Fail("launch.record error", "undo."+effect+" kill")
			if _, err := l.Client.Spawn(t.Context(), req); err == nil {
				t.Fatal("spawn succeeded")
			}
			died(t, l)
			check()
		})
	}
}

// TestKilledInEnd kills creeld while a sandbox ends and is cleaned up. How it
// ended is not forgotten, its last output is not lost, and nothing is left.
func TestKilledInEnd(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	for _, point := range append([]string{"end.stopping"}, under("undo.", effects)...) {
		t.Run(point, func(t *testing.T) {
			req := everything(t, l)
			req.Command = []string{"/bin/sh", "-c", "read line; echo last $line; exit 7"}
			req.Stdin = true
			sb := l.Spawn(req)
			l.Fail(point + " kill")
			p, err := l.Attach(t.Context(), sb.ID, client.AttachOptions{Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = p.Run(client.Stdio{In: strings.NewReader("words\n")})
			_ = p.Close()
			died(t, l)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			res, err := l.Wait(ctx, sb.ID)
			if err != nil || res.State != api.StateStopped || res.Reason != api.ReasonExited || res.ExitCode != 7 {
				t.Errorf("it ended as %+v, %v", res, err)
			}
			var out strings.Builder
			if err := l.Logs(ctx, sb.ID, client.LogOptions{Tail: -1}, &out, &out); err != nil || out.String() != "last words\n" {
				t.Errorf("output %q, %v", out.String(), err)
			}
			if err := l.Remove(ctx, sb.ID, false); err != nil {
				t.Error(err)
			}
			check()
		})
	}
}

func under(prefix string, names []string) (out []string) {
	for _, n := range names {
		out = append(out, prefix+n)
	}
	return out
}

// TestKilledInExec kills creeld when a command waits in its cgroup for its
// release: it never runs, and PID 1 forgets it.
func TestKilledInExec(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	for range 3 {
		l.Fail("exec.placed kill")
		_, err := l.Exec(t.Context(), "neighbour", api.ExecRequest{Command: []string{"/bin/touch", "/tmp/ran"}}, client.Stdio{})
		if err == nil {
			t.Fatal("exec succeeded")
		}
		died(t, l)
	}
	check()
	out, res := l.Sh("neighbour", "ls /tmp; ls /proc | grep -c '^[0-9]'")
	if strings.Contains(out, "ran") || res.ExitCode != 0 {
		t.Errorf("the command ran: %q, %+v", out, res)
	}
	// PID 1, the main command, the shell, ls and grep.
	if n := strings.TrimSpace(out); n != "5" && n != "4" {
		t.Errorf("%s processes in the sandbox", n)
	}
}
