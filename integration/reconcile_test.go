package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// survivor is a sandbox that runs while the daemon does not.
type survivor struct {
	name  string
	req   api.SpawnRequest
	alive func(*testing.T, *lab.Lab, *api.Sandbox) // before the kill
	dead  func(*testing.T, *lab.Lab, *api.Sandbox) // while no daemon runs
	after func(*testing.T, *lab.Lab, *api.Sandbox)
	ends  bool // it does not run any more afterwards
}

// lines is how many a counting command writes to each of its streams.
const lines = 20000

// counter writes numbered lines to both streams for about two seconds, and
// ends with 7.
const counter = `i=0
while [ $i -lt 20000 ]; do
	i=$((i+1)); echo "o$i"; echo "e$i" >&2
	[ $((i % 100)) = 0 ] && usleep 10000
done
exit 7`

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func survivors(t *testing.T) []survivor {
	t.Helper()
	shared := workspace(t)
	return []survivor{
		{name: "counting", req: api.SpawnRequest{Command: sh(counter)}, ends: true, after: countedAll},
		{
			name: "terminal", req: api.SpawnRequest{Command: sh(`while read l; do echo "<$l>"; done`), TTY: true, Stdin: true},
			alive: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) { echoes(t, l, sb, "before") },
			after: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
				echoes(t, l, sb, "after")
				if out := output(t, l, sb.ID); strings.Count(out, "<before>") != 1 || strings.Count(out, "<after>") != 1 {
					t.Errorf("the log is %q", out)
				}
			},
		},
		{
			name: "input", req: api.SpawnRequest{Command: sh(`while read l; do echo "<$l>"; done; exit 3`), Stdin: true}, ends: true,
			alive: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) { echoes(t, l, sb, "before") },
			after: endsWithInput,
		},
		{
			name: "exited meanwhile", req: api.SpawnRequest{Command: sh(`trap 'echo bye; exit 9' TERM; echo hi; while :; do usleep 10000; done`)}, ends: true,
			alive: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
				l.Eventually("it runs", 30*time.Second, func() error { return contains(output(t, l, sb.ID), "hi") })
			},
			dead: func(t *testing.T, _ *lab.Lab, sb *api.Sandbox) {
				children := lab.Children(sb.PID)
				if len(children) != 1 {
					t.Errorf("PID 1 has children %v, want the command", children)
				}
				for _, pid := range children {
					if err := unix.Kill(pid, unix.SIGTERM); err != nil {
						t.Error(err)
					}
					for lab.Alive(pid) {
						time.Sleep(5 * time.Millisecond)
					}
				}
			},
			after: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
				ended(t, l, sb.ID, api.ReasonExited, 9)
				if out := output(t, l, sb.ID); out != "hi\nbye\n" {
					t.Errorf("the log is %q", out)
				}
			},
		},
		{
			name: "died meanwhile", req: api.SpawnRequest{}, ends: true,
			dead: func(_ *testing.T, _ *lab.Lab, sb *api.Sandbox) {
				_ = unix.Kill(sb.PID, unix.SIGKILL)
				for lab.Alive(sb.PID) {
					time.Sleep(5 * time.Millisecond)
				}
			},
			after: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) { ended(t, l, sb.ID, api.ReasonDied, 137) },
		},
		{
			name: "too old", req: api.SpawnRequest{Command: sh("sleep 600"), Limits: api.Limits{TTL: api.Duration(5 * time.Second)}}, ends: true,
			dead: func(_ *testing.T, _ *lab.Lab, sb *api.Sandbox) {
				time.Sleep(time.Until(sb.Started.Add(5*time.Second + 100*time.Millisecond)))
			},
			after: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) { ended(t, l, sb.ID, api.ReasonTTL, 137) },
		},
		{
			name: "paused", req: api.SpawnRequest{Command: sh(`while :; do echo tick; usleep 20000; done`)},
			alive: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
				if err := l.Pause(t.Context(), sb.ID); err != nil {
					t.Fatal(err)
				}
			},
			after: staysPaused,
		},
		{
			name: "with commands", req: api.SpawnRequest{}, alive: startsCommands, after: lostCommandsEnd,
		},
		{
			name: "with files", req: api.SpawnRequest{
				Rootfs: "ephemeral", Limits: api.Limits{Memory: 128 << 20, Disk: 64 << 20},
				Mounts: []api.Mount{{Source: shared, Target: "/workspace", ReadOnly: true}},
			},
			alive: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
				if out, res := l.Sh(sb.ID, "echo kept > /home/agent/file"); res.ExitCode != 0 {
					t.Errorf("%q, %+v", out, res)
				}
			},
			after: func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
				if out, _ := l.Sh(sb.ID, "cat /home/agent/file /workspace/src/precious"); out != "kept\nthe user's\n" {
					t.Errorf("its files have %q", out)
				}
			},
		},
	}
}

// TestSurvives kills creeld under sandboxes of every sort, and also stops it
// as systemd does.
func TestSurvives(t *testing.T) {
	for _, how := range []struct {
		name string
		end  func(*lab.Lab)
	}{
		{"kill", (*lab.Lab).Kill},
		{"stop", (*lab.Lab).Stop},
		{"kill with containerd", func(l *lab.Lab) { l.KillProcess(lab.Containerd, ""); l.Kill() }},
	} {
		t.Run(how.name, func(t *testing.T) {
			l := lab.New(t, lab.Options{})
			all := survivors(t)
			sandboxes := make([]*api.Sandbox, len(all))
			for i, s := range all {
				s.req.Name = strings.ReplaceAll(s.name, " ", "-")
				sandboxes[i] = l.Spawn(s.req)
				if s.alive != nil {
					s.alive(t, l, sandboxes[i])
				}
			}
			how.end(l)
			if _, err := l.Version(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
				t.Errorf("without a daemon: %v", err)
			}
			for i, s := range all {
				if s.dead != nil {
					s.dead(t, l, sandboxes[i])
				}
			}
			l.Start()
			for i, s := range all {
				t.Run(s.name, func(t *testing.T) {
					if !s.ends {
						provenAgain(t, l, sandboxes[i])
					}
					s.after(t, l, sandboxes[i])
				})
			}
		})
	}
}

// provenAgain holds a sandbox to be the one that it was.
func provenAgain(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	got, err := l.Inspect(t.Context(), sb.ID)
	if err != nil || got.PID != sb.PID || got.Problem != "" || got.Ended != (time.Time{}) {
		t.Fatalf("it is %+v, %v\n%s", got, err, l.LogTail(20))
	}
	ev, err := l.Evidence(t.Context(), sb.ID, false)
	if err != nil || len(ev) < 2 {
		t.Fatalf("%d proofs, %v", len(ev), err)
	}
	if ev[0].Why != "reconcile" || !ev[0].OK || !ev[len(ev)-1].OK || ev[len(ev)-1].Why != "spawn" {
		t.Errorf("newest proof: %s, %v; oldest: %s, %v", ev[0].Why, ev[0].OK, ev[len(ev)-1].Why, ev[len(ev)-1].OK)
	}
}

// ended waits for a sandbox's end and says what is not as it should be.
func ended(t *testing.T, l *lab.Lab, id string, why api.Reason, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	res, err := l.Wait(ctx, id)
	if err != nil || res.State != api.StateStopped || res.Reason != why || res.ExitCode != code {
		t.Errorf("it ended as %+v, %v; want %s, %d", res, err, why, code)
	}
}

// output is what is kept of both streams, in the order of the log.
func output(t *testing.T, l *lab.Lab, id string) string {
	t.Helper()
	var out bytes.Buffer
	if err := l.Logs(t.Context(), id, client.LogOptions{Tail: -1}, &out, &out); err != nil {
		t.Error(err)
	}
	return out.String()
}

func contains(s, want string) error {
	if strings.Contains(s, want) {
		return nil
	}
	return fmt.Errorf("%q has no %q", s, want)
}

// countedAll is for a command that wrote numbered lines while daemons came
// and went: each is there once, in order.
func countedAll(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	ended(t, l, sb.ID, api.ReasonExited, 7)
	var out, errOut bytes.Buffer
	if err := l.Logs(t.Context(), sb.ID, client.LogOptions{Tail: -1}, &out, &errOut); err != nil {
		t.Fatal(err)
	}
	for stream, text := range map[string]string{"o": out.String(), "e": errOut.String()} {
		got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(got) != lines {
			t.Errorf("%d lines of %q, want %d", len(got), stream, lines)
		}
		for i, line := range got {
			if line != stream+strconv.Itoa(i+1) {
				t.Errorf("line %d is %q", i+1, line)
				break
			}
		}
	}
}

// TestOutputOfManyDaemons kills creeld again and again under a command that
// writes all the time.
func TestOutputOfManyDaemons(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: sh(counter)})
	for range 4 {
		had := len(output(t, l, sb.ID))
		l.Eventually("it writes", 30*time.Second, func() error {
			if len(output(t, l, sb.ID)) > had || !lab.Alive(sb.PID) {
				return nil
			}
			return errors.New("nothing")
		})
		l.Kill()
		time.Sleep(100 * time.Millisecond) // it writes on, to nobody
		l.Start()
	}
	countedAll(t, l, sb)
}

// echoes writes a line to the main command, which gives it back, and detaches.
func echoes(t *testing.T, l *lab.Lab, sb *api.Sandbox, word string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p, err := l.Attach(ctx, sb.ID, client.AttachOptions{Stdin: true, TTY: sb.TTY, Cols: 80, Rows: 24})
	if err != nil {
		t.Errorf("attach: %v", err)
		return
	}
	in, typing := io.Pipe()
	saw := make(chan struct{})
	go func() { _, _ = io.WriteString(typing, word+"\n") }()
	go func() {
		_, _ = p.Run(client.Stdio{In: in, Out: &until{want: "<" + word + ">", found: saw}})
	}()
	select {
	case <-saw:
	case <-ctx.Done():
		t.Errorf("no echo of %q; the log has %q", word, output(t, l, sb.ID))
	}
	_ = p.Close()
}

// until closes found when it was written what it wants.
type until struct {
	want  string
	found chan struct{}
	text  []byte
}

func (u *until) Write(p []byte) (int, error) {
	had := bytes.Contains(u.text, []byte(u.want))
	u.text = append(u.text, p...)
	if !had && bytes.Contains(u.text, []byte(u.want)) {
		close(u.found)
	}
	return len(p), nil
}

// endsWithInput is for a command whose input was open when the daemon was
// killed: it can still be written to, and its end still reaches the command.
func endsWithInput(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	p, err := l.Attach(t.Context(), sb.ID, client.AttachOptions{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	res, err := p.Run(client.Stdio{In: strings.NewReader("after\n")})
	if err != nil || res.ExitCode != 3 {
		t.Errorf("attach: %+v, %v", res, err)
	}
	ended(t, l, sb.ID, api.ReasonExited, 3)
	if out := output(t, l, sb.ID); out != "<before>\n<after>\n" {
		t.Errorf("the log is %q", out)
	}
}

func staysPaused(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	got, err := l.Inspect(t.Context(), sb.ID)
	if err != nil || got.State != api.StatePaused {
		t.Fatalf("it is %+v, %v", got, err)
	}
	before := output(t, l, sb.ID)
	time.Sleep(100 * time.Millisecond)
	if now := output(t, l, sb.ID); now != before {
		t.Errorf("it wrote %d bytes while paused", len(now)-len(before))
	}
	if err := l.Resume(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	l.Eventually("it goes on", 30*time.Second, func() error {
		if now := output(t, l, sb.ID); len(now) <= len(before) {
			return fmt.Errorf("%d bytes, as before", len(now))
		}
		return nil
	})
}

// startsCommands leaves a command with a client, and a server of a command
// that has ended.
func startsCommands(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	if _, res := l.Sh(sb.ID, "setsid sleep 1001 >/dev/null 2>&1 </dev/null & exit 0"); res.ExitCode != 0 {
		t.Errorf("%+v", res)
	}
	p, err := l.StartExec(t.Context(), sb.ID, api.ExecRequest{Command: sh("setsid sleep 1002 & sleep 1003")})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() { _, err := p.Run(client.Stdio{}); _ = p.Close(); told <- err }()
	t.Cleanup(func() {
		select {
		case err := <-told:
			if err == nil {
				t.Error("the client of a lost daemon was told that its command ended well")
			}
		case <-time.After(20 * time.Second):
			t.Error("the client of a lost daemon was not told")
		}
	})
	l.Eventually("all run", 30*time.Second, func() error {
		out, _ := l.Sh(sb.ID, "ps")
		for _, n := range []string{"1001", "1002", "1003"} {
			if err := contains(out, "sleep "+n); err != nil {
				return err
			}
		}
		return nil
	})
}

// lostCommandsEnd holds that the daemon's clients took their commands along,
// and nothing else.
func lostCommandsEnd(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	out, _ := l.Sh(sb.ID, "ps")
	if regexp.MustCompile(`sleep 100[23]`).MatchString(out) {
		t.Errorf("commands of lost clients run:\n%s", out)
	}
	if err := contains(out, "sleep 1001"); err != nil {
		t.Errorf("the server of a command that had ended was killed: %v", err)
	}
	if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.Execs != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestReboot restarts the machine, as far as creel can see.
func TestReboot(t *testing.T) {
	l := lab.New(t, lab.Options{})
	req := everything(t, l)
	running := l.Spawn(req)
	paused := l.Spawn(api.SpawnRequest{Name: "paused"})
	if err := l.Pause(t.Context(), paused.ID); err != nil {
		t.Fatal(err)
	}
	l.Kill()
	l.Reboot()
	l.Start()
	for _, id := range []string{running.ID, paused.ID} {
		ended(t, l, id, api.ReasonDied, 137)
	}
	l.NothingLeftBut("directory state/logs/")
	req.Name = "again"
	l.Spawn(req)
}

// TestOtherBoot is a record of another boot while everything still runs, as
// after a restored backup: pids mean nothing then, and nothing is taken over.
func TestOtherBoot(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(everything(t, l))
	l.Kill()
	l.OtherBoot()
	l.Start()
	ended(t, l, sb.ID, api.ReasonDied, 137)
	l.NothingLeftBut("directory state/logs/")
}

// TestStateLost removes the state file under running sandboxes: nobody knows
// them any more, so they go.
func TestStateLost(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Spawn(everything(t, l))
	l.Spawn(api.SpawnRequest{Name: "other", Command: sh("echo words; sleep 600")})
	l.Kill()
	if err := os.Remove(l.StatePath()); err != nil {
		t.Fatal(err)
	}
	l.Start()
	if err := noRecord(l); err != nil {
		t.Error(err)
	}
	if left := l.Snapshot(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	l.Spawn(everything(t, l))
}

// TestStateDamaged cuts the state file: creeld names it and does not start,
// and the sandboxes go on until it is put back.
func TestStateDamaged(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	l.Kill()
	good, err := os.ReadFile(l.StatePath())
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"cut":     good[:3*os.Getpagesize()],
		"garbage": bytes.Repeat([]byte("garbage "), 8192),
	} {
		if err := os.WriteFile(l.StatePath(), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		out := l.Refused(func(s string) string { return s })
		for _, want := range []string{filepath.Base(l.StatePath()), "damaged"} {
			if err := contains(out, want); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := os.WriteFile(l.StatePath(), good, 0o600); err != nil {
		t.Fatal(err)
	}
	l.Start()
	check()
}
