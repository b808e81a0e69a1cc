package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// addWire puts a link into the network namespace of a sandbox, as somebody on
// the host with root could.
func addWire(t *testing.T, _ *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	err := thread.Do(func() error {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", sb.PID))
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire0"}, PeerName: "wire1"})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func initOf(l *lab.Lab, sb *api.Sandbox) string {
	return filepath.Join(l.Dir, "run", "sandboxes", sb.ID, "init")
}

// TestDrift changes a running sandbox from outside: the timer's proof finds
// it, by the name of a control, and tells it everywhere; a proof that cannot
// be taken is told as well. The next daemon finds it too.
func TestDrift(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[evidence]\ninterval = \"1s\"\n"})
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *lab.Lab, *api.Sandbox)
		want   string
	}{
		{"a wire", addWire, "wire0"},
		{"a readable init", func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
			t.Helper()
			if err := os.Chmod(initOf(l, sb), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "exe.unreadable"},
		{"no init to compare with", func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
			t.Helper()
			if err := os.Rename(initOf(l, sb), initOf(l, sb)+".away"); err != nil {
				t.Fatal(err)
			}
		}, "cannot be taken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{})
			tt.change(t, l, sb)
			e := event(t, l, sb.ID, "evidence.drift", nil)
			if !strings.Contains(e.Fields["controls"], tt.want) {
				t.Errorf("the event says %q, want %q", e.Fields["controls"], tt.want)
			}
			l.Eventually("inspect says so", 10*time.Second, func() error {
				got, err := l.Inspect(t.Context(), sb.ID)
				if err == nil && !strings.Contains(got.Problem, tt.want) {
					err = fmt.Errorf("problem %q", got.Problem)
				}
				return err
			})
			if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.State != api.StateRunning {
				t.Errorf("it is %+v, %v", got, err)
			}
		})
	}
	t.Run("told by the next daemon", func(t *testing.T) {
		sb := l.Spawn(api.SpawnRequest{})
		l.Kill()
		addWire(t, l, sb)
		l.Start()
		got, err := l.Inspect(t.Context(), sb.ID)
		if err != nil || !strings.Contains(got.Problem, "wire0") {
			t.Errorf("it is %+v, %v", got, err)
		}
	})
}

// TestStateNotCommitted has the disk refuse the records of a sandbox's end: it
// ends all the same, its room is free, and the record follows.
func TestStateNotCommitted(t *testing.T) {
	l := lab.New(t, lab.Options{Ranges: 1})
	for _, states := range [][]string{{"stopping"}, {"stopped"}, {"stopping", "stopped"}} {
		t.Run(strings.Join(states, " and "), func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{Command: sh("read line; exit 3"), Stdin: true})
			var fail []string
			for _, s := range states {
				fail = append(fail, "commit."+s+" error")
			}
			l.Fail(fail...)
			p, err := l.Attach(t.Context(), sb.ID, client.AttachOptions{Stdin: true})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if res, err := p.Run(client.Stdio{In: strings.NewReader("go\n")}); err != nil || res.ExitCode != 3 {
				t.Errorf("attach: %+v, %v", res, err)
			}
			ended(t, l, sb.ID, api.ReasonExited, 3)
			l.Fail()
			if err := l.Remove(t.Context(), sb.ID, false); err != nil {
				t.Error(err)
			}
			l.NothingLeft()
		})
	}
}

// TestKilledInImport kills creeld while it looks at an unpacked image: the
// next one ends that import, and the same import works.
func TestKilledInImport(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Fail("import.mounted kill")
	f, err := os.Open(lab.Tiny(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := l.ImportImage(t.Context(), "again", f); err == nil {
		t.Fatal("import succeeded")
	}
	died(t, l)
	l.NothingLeft()
	if left, err := filepath.Glob(filepath.Join(l.Dir, "run", "containerd", "check-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	l.Import("again", lab.Tiny(t))
}

// TestIdleRace runs a command each time just when the sandbox is about to be
// paused for being idle: none is caught by the pause.
func TestIdleRace(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Idle: api.Duration(time.Second), OnIdle: "pause"}})
	for i := range 6 {
		// The look at idleness comes once a second: around the second look.
		time.Sleep(time.Second - 60*time.Millisecond + time.Duration(i)*20*time.Millisecond)
		began := time.Now()
		out, res := l.Sh(sb.ID, "echo here")
		if out != "here\n" || res.ExitCode != 0 || time.Since(began) > 10*time.Second {
			t.Errorf("after %v: %q, %+v", time.Since(began), out, res)
		}
	}
}
