package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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

// inNetns works on the links in the network namespace of a sandbox, as
// somebody on the host with root could.
func inNetns(t *testing.T, sb *api.Sandbox, fn func(*netlink.Handle) error) {
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
		return fn(h)
	})
	if err != nil {
		t.Fatal(err)
	}
}

var wire0 = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire0"}, PeerName: "wire1"}

func addWire(t *testing.T, _ *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	inNetns(t, sb, func(h *netlink.Handle) error { return h.LinkAdd(wire0) })
}

func removeWire(t *testing.T, _ *lab.Lab, sb *api.Sandbox) {
	t.Helper()
	inNetns(t, sb, func(h *netlink.Handle) error { return h.LinkDel(wire0) })
}

// chmodInit and moveInit change a sandbox's copy of creel-init.
func chmodInit(mode os.FileMode) func(*testing.T, *lab.Lab, *api.Sandbox) {
	return func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
		t.Helper()
		if err := os.Chmod(initOf(l, sb), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func moveInit(from, to string) func(*testing.T, *lab.Lab, *api.Sandbox) {
	return func(t *testing.T, l *lab.Lab, sb *api.Sandbox) {
		t.Helper()
		if err := os.Rename(initOf(l, sb)+from, initOf(l, sb)+to); err != nil {
			t.Fatal(err)
		}
	}
}

func initOf(l *lab.Lab, sb *api.Sandbox) string {
	return filepath.Join(l.Dir, "run", "sandboxes", sb.ID, "init")
}

// drifts are the events of a sandbox's drift, in order.
func drifts(t *testing.T, l *lab.Lab, id string) (kinds []string) {
	t.Helper()
	// One of another sandbox comes after all that were told before.
	last := l.Spawn(api.SpawnRequest{})
	errSeen := errors.New("seen")
	err := l.Events(deadline(t), 0, func(e api.Event) error {
		switch {
		case e.Sandbox == last.ID:
			return errSeen
		case e.Sandbox == id && strings.HasPrefix(e.Type, "evidence."):
			kinds = append(kinds, e.Type)
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		t.Fatal(err)
	}
	return kinds
}

// proven waits until a sandbox's isolation has been looked at so many times
// more. Only proofs that can be taken count.
func proven(t *testing.T, l *lab.Lab, id string, more int) {
	t.Helper()
	begin := time.Now()
	l.Eventually("proofs", time.Minute, func() error {
		all, err := l.Evidence(t.Context(), id, false)
		if err != nil {
			return err
		}
		n := 0
		for _, ev := range all {
			if ev.Taken.After(begin) {
				n++
			}
		}
		if n < more {
			return fmt.Errorf("%d since", n)
		}
		return nil
	})
}

// TestDrift changes a running sandbox from outside: the timer's proof finds
// it, by the name of a control, and tells it everywhere, once as long as it
// lasts, and once when it is over; a proof that cannot be taken is told as
// well. The next daemon finds it too.
func TestDrift(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[evidence]\ninterval = \"1s\"\n"})
	for _, tt := range []struct {
		name           string
		change, revert func(*testing.T, *lab.Lab, *api.Sandbox)
		want           string
		taken          bool // the proof can be
	}{
		{"a wire", addWire, removeWire, "wire0", true},
		{"a readable init", chmodInit(0o755), chmodInit(0o111), "exe.unreadable", true},
		{"no init to compare with", moveInit("", ".away"), moveInit(".away", ""), "cannot be taken", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{})
			problem := func(want string) {
				t.Helper()
				l.Eventually("inspect says so", time.Minute, func() error {
					got, err := l.Inspect(t.Context(), sb.ID)
					if err == nil && (!strings.Contains(got.Problem, want) || (want == "") != (got.Problem == "")) {
						err = fmt.Errorf("problem %q", got.Problem)
					}
					return err
				})
			}
			tt.change(t, l, sb)
			e := event(t, l, sb.ID, "evidence.drift", nil)
			if !strings.Contains(e.Fields["controls"], tt.want) {
				t.Errorf("the event says %q, want %q", e.Fields["controls"], tt.want)
			}
			problem(tt.want)
			if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.State != api.StateRunning {
				t.Errorf("it is %+v, %v", got, err)
			}
			want := []string{"evidence.drift"}
			if tt.taken {
				proven(t, l, sb.ID, 2)
				if got := drifts(t, l, sb.ID); !slices.Equal(got, want) {
					t.Errorf("while it lasts it was told as %q, want %q", got, want)
				}
			}
			tt.revert(t, l, sb)
			e = event(t, l, sb.ID, "evidence.restored", nil)
			if !strings.Contains(e.Fields["controls"], tt.want) {
				t.Errorf("the event of its end says %q, want %q", e.Fields["controls"], tt.want)
			}
			problem("")
			proven(t, l, sb.ID, 2)
			want = append(want, "evidence.restored")
			if got := drifts(t, l, sb.ID); !slices.Equal(got, want) {
				t.Errorf("in all it was told as %q, want %q", got, want)
			}
		})
	}
	t.Run("another beside it", func(t *testing.T) {
		sb := l.Spawn(api.SpawnRequest{})
		addWire(t, l, sb)
		event(t, l, sb.ID, "evidence.drift", nil)
		chmodInit(0o755)(t, l, sb)
		event(t, l, sb.ID, "evidence.drift", func(e api.Event) bool {
			return strings.Contains(e.Fields["controls"], "wire0") && strings.Contains(e.Fields["controls"], "exe.unreadable")
		})
	})
	t.Run("not told again by the next daemon", func(t *testing.T) {
		sb := l.Spawn(api.SpawnRequest{})
		addWire(t, l, sb)
		event(t, l, sb.ID, "evidence.drift", nil)
		l.Kill()
		l.Start()
		proven(t, l, sb.ID, 1)
		if got, want := drifts(t, l, sb.ID), []string{"evidence.drift"}; !slices.Equal(got, want) {
			t.Errorf("it was told as %q, want %q", got, want)
		}
	})
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

// TestIdleRace runs a command just when the sandbox is about to be paused for
// being idle: before and after that is decided. It is not caught by the pause.
func TestIdleRace(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Idle: api.Duration(time.Second), OnIdle: "pause"}})
	here := func() {
		out, res := l.Sh(sb.ID, "echo here")
		if out != "here\n" || res.ExitCode != 0 {
			t.Errorf("%q, %+v", out, res)
		}
	}
	for range 3 {
		// It was found idle, and nobody has decided yet.
		l.Fail("idle.due hold")
		l.Held("idle.due")
		here()
		l.Fail()
		// It is decided: the command has to wait for the pause, and end it.
		l.Fail("idle.pausing hold")
		l.Held("idle.pausing")
		done := make(chan struct{})
		go func() { defer close(done); here() }()
		l.Fail()
		<-done
	}
}
