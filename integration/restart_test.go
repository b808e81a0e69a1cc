package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// spawnsAgain spawns until it works. Until then the answer must be the one
// that tells a caller to try again.
func spawnsAgain(t *testing.T, l *lab.Lab, req api.SpawnRequest) *api.Sandbox {
	t.Helper()
	var res *api.SpawnResult
	l.Eventually("spawn works", 60*time.Second, func() (err error) {
		if res, err = l.Client.Spawn(t.Context(), req); err != nil && api.CodeOf(err) != api.CodeUnavailable {
			t.Fatalf("spawn: %v (%s)\n%s", err, api.CodeOf(err), l.LogTail(5))
		}
		return err
	})
	return &res.Sandbox
}

// TestContainerdKilled kills containerd: sandboxes go on, commands too, and a
// spawn right after works or says that it can be tried again.
func TestContainerdKilled(t *testing.T) {
	l := lab.New(t, lab.Options{})
	counting := l.Spawn(api.SpawnRequest{Name: "counting", Command: sh(counter)})
	quiet := l.Spawn(everything(t, l))
	for range 3 {
		old := l.ContainerdPID()
		l.KillProcess(lab.Containerd, "")
		if out, res := l.Sh(quiet.ID, "echo here"); out != "here\n" || res.ExitCode != 0 {
			t.Errorf("without containerd it answers %q, %+v", out, res)
		}
		sb := spawnsAgain(t, l, api.SpawnRequest{})
		if now := l.ContainerdPID(); now == 0 || now == old {
			t.Errorf("containerd was %d, is %d", old, now)
		}
		if err := l.Remove(t.Context(), sb.ID, true); err != nil {
			t.Error(err)
		}
	}
	countedAll(t, l, counting)
}

// TestContainerdKilledInLaunch kills containerd while sandboxes are made.
// What does not come up leaves nothing.
func TestContainerdKilledInLaunch(t *testing.T) {
	l := lab.New(t, lab.Options{})
	for i := range 5 {
		failed := make(chan error)
		go func() {
			_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: fmt.Sprintf("half-%d", i), Remove: true, Command: sh("exit 0")})
			failed <- err
		}()
		time.Sleep(time.Duration(i*8) * time.Millisecond)
		l.KillProcess(lab.Containerd, "")
		if err := <-failed; err != nil && api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("spawn: %v (%s)\n%s", err, api.CodeOf(err), l.LogTail(5))
		}
		spawnsAgain(t, l, api.SpawnRequest{Remove: true, Command: sh("exit 0")})
	}
	l.Eventually("nothing on record", 60*time.Second, func() error { return noRecord(l) })
	l.NothingLeft()
}

// TestKilledBelowAtEachStep kills containerd, the shim and PID 1 after each
// step of a launch. The spawn fails, or the sandbox ends right after, and in
// the end nothing is left.
func TestKilledBelowAtEachStep(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	for _, victim := range []string{lab.Containerd, lab.Shim, lab.Init} {
		first := "reserve" // before which there is no sandbox
		if victim != lab.Containerd {
			first = "task" // nor any of these
		}
		for _, step := range steps[slices.Index(steps, first):] {
			t.Run(victim+"/"+step, func(t *testing.T) {
				name := victim + "-" + step
				req := everything(t, l)
				req.Name = name
				l.Fail("launch." + step + " hold")
				spawned := make(chan error, 1)
				go func() { _, err := l.Client.Spawn(t.Context(), req); spawned <- err }()
				l.Held("launch." + step)
				half, err := l.Inspect(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				killBelow(t, l, victim, half.ID)
				l.Fail()
				select {
				case err = <-spawned:
				case <-time.After(60 * time.Second):
					t.Fatalf("spawn has no answer:\n%s", l.LogTail(10))
				}
				if err == nil {
					if victim != lab.Containerd { // without which a sandbox goes on
						ended(t, l, half.ID, api.ReasonDied, 137)
					}
					if err := l.Remove(t.Context(), half.ID, true); err != nil {
						t.Error(err)
					}
				}
				l.Eventually("it is gone", 60*time.Second, func() error {
					if got, err := l.Inspect(t.Context(), half.ID); api.CodeOf(err) != api.CodeNotFound {
						return fmt.Errorf("%+v, %w", got, err)
					}
					return nil
				})
				check()
			})
		}
	}
}

// killBelow kills what belongs to a sandbox that is being made.
func killBelow(t *testing.T, l *lab.Lab, victim, id string) {
	t.Helper()
	if victim != lab.Init {
		l.KillProcess(victim, id)
		return
	}
	children := lab.Children(l.ShimPID(id))
	if len(children) != 1 {
		t.Fatalf("the shim has children %v, want PID 1", children)
	}
	l.KillPID(children[0])
}

// TestKilledBelow kills what holds a sandbox up: it ends as "died", its
// output up to then is kept, and nothing is left but the record.
func TestKilledBelow(t *testing.T) {
	l := lab.New(t, lab.Options{})
	check := neighbour(t, l)
	for _, victims := range [][]string{
		{lab.Init},
		{lab.Shim},
		{lab.Shim, lab.Containerd},
		{lab.Containerd, lab.Shim},
		{lab.Shim, lab.Daemon},
		{lab.Init, lab.Daemon},
		{lab.Daemon, lab.Shim, lab.Containerd, lab.Init},
	} {
		t.Run(strings.Join(victims, " and "), func(t *testing.T) {
			req := everything(t, l)
			req.Command = sh("echo words; sleep 600")
			sb := l.Spawn(req)
			l.Eventually("it runs", 30*time.Second, func() error { return contains(output(t, l, sb.ID), "words") })
			restart := false
			for _, v := range victims {
				if v == lab.Init {
					l.KillPID(sb.PID)
					continue
				}
				restart = restart || v == lab.Daemon
				l.KillProcess(v, sb.ID)
			}
			if restart {
				l.Start()
			}
			ended(t, l, sb.ID, api.ReasonDied, 137)
			if out := output(t, l, sb.ID); out != "words\n" {
				t.Errorf("the log is %q", out)
			}
			if err := l.Remove(t.Context(), sb.ID, false); err != nil {
				t.Error(err)
			}
			check()
		})
	}
}

// TestClientsOfStoppedDaemon stops the daemon under every sort of request:
// each client gets an error that says so, none hangs.
func TestClientsOfStoppedDaemon(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "a", Command: sh("sleep 600")})
	// Each says that it was cut off, and what to do about it; none that it was
	// misused, or that its command ended.
	verbs := []struct {
		args []string
		code int
		says string
	}{
		{[]string{"exec", "a", "--", "/bin/sleep", "600"}, 125, "creeld is stopping"},
		{[]string{"attach", "a"}, 125, "creel attach a"},
		{[]string{"attach", "--no-stdin", "--replay", "a"}, 125, "creel attach a"},
		{[]string{"logs", "-f", "a"}, 1, "creeld is stopping"},
		{[]string{"wait", "a"}, 1, "creeld is stopping"},
		{[]string{"events"}, 0, ""}, // the end of the daemon is the end of its events
	}
	type answer struct {
		verb   int
		stderr string
		code   int
	}
	answers := make(chan answer, len(verbs))
	before := sockets(t, l)
	for i, v := range verbs {
		go func() {
			_, stderr, code := l.Creel(v.args...)
			answers <- answer{i, stderr, code}
		}()
	}
	l.Eventually("the command runs", 30*time.Second, func() error {
		if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.Execs == 0 {
			return fmt.Errorf("%+v, %w", got, err)
		}
		return nil
	})
	l.Eventually("every command is connected", 30*time.Second, func() error {
		if n := sockets(t, l); n < before+len(verbs) {
			return fmt.Errorf("%d sockets, %d before", n, before)
		}
		return nil
	})
	time.Sleep(200 * time.Millisecond) // and asks at once
	l.Stop()
	for range verbs {
		a := <-answers
		v := verbs[a.verb]
		t.Logf("%s: exit code %d, %q", v.args[0], a.code, a.stderr)
		if a.code != v.code || (a.stderr == "") != (v.code == 0) || !strings.Contains(a.stderr, v.says) {
			t.Errorf("%q: exit code %d, %q; want %d, %q", v.args, a.code, a.stderr, v.code, v.says)
		}
	}
	l.Start()
	if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.State != api.StateRunning || got.PID != sb.PID {
		t.Errorf("the sandbox is %+v, %v", got, err)
	}
}

// sockets is how many creeld has open; each client is one more.
func sockets(t *testing.T, l *lab.Lab) (n int) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", l.DaemonPID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
