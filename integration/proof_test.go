package integration_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/thread"
	"github.com/creel-sandbox/creel/pkg/verify"
)

// TestProofIsNotRepeatedAtOnce: the interval of the timer counts from the
// spawn's proof, which is also the one that people are shown.
func TestProofIsNotRepeatedAtOnce(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	time.Sleep(2500 * time.Millisecond) // two ticks of the launcher's watch
	ev, err := l.Evidence(t.Context(), sb.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(ev) != 1 || ev[0].Why != "spawn" {
		for _, e := range ev {
			t.Errorf("evidence of %s, taken %s", e.Why, e.Taken)
		}
	}
}

// TestProofSeesOtherThings exchanges what a running sandbox has for something
// of the same kind, which only the thing itself tells apart.
func TestProofSeesOtherThings(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Mounts: []api.Mount{{Source: t.TempDir(), Target: "/work", ReadOnly: true}}})
	for _, tt := range []struct{ target, source, observed string }{
		{"/dev/null", "/dev/zero", "character device 1:5"},
		{"/proc/keys", "/dev/zero", "character device 1:5"},
		{"/work", t.TempDir(), ""},
	} {
		t.Run(tt.target, func(t *testing.T) {
			exchange(t, sb.PID, tt.source, tt.target)
			ev, err := l.Evidence(t.Context(), sb.ID, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range verify.Failed(ev[0].Controls) {
				if c.Name == "mount."+tt.target && strings.Contains(c.Observed, tt.observed) {
					return
				}
			}
			t.Errorf("another %s is not seen: %+v", tt.target, verify.Failed(ev[0].Controls))
		})
	}
}

// exchange mounts the host's source in place of what a sandbox has at target.
func exchange(t *testing.T, pid int, source, target string) {
	t.Helper()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := thread.Do(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			return err
		}
		return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}); err != nil {
		t.Fatalf("mount %s on %s: %v", source, target, err)
	}
}

// TestProofRemembers: a later daemon holds a sandbox against what was proven
// before go, and says so when the record does not have that.
func TestProofRemembers(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	again := func(change func(*store.Record)) api.Evidence {
		t.Helper()
		l.Stop()
		l.State(func(s *store.Store) error {
			_, err := s.ModifySandbox(sb.ID, func(r *store.Record) error { change(r); return nil })
			return err
		})
		l.Start()
		ev, err := l.Evidence(t.Context(), sb.ID, false)
		if err != nil || ev[0].Why != "reconcile" { // the newest comes first
			t.Fatalf("newest of %d evidences is of %q, %v", len(ev), ev[0].Why, err)
		}
		return ev[0]
	}
	names := func(ev api.Evidence) (out []string) {
		for _, c := range verify.Failed(ev.Controls) {
			out = append(out, c.Name)
		}
		return out
	}
	var proven store.Record
	if ev := again(func(r *store.Record) { proven = *r }); !ev.OK || strings.Contains(strings.Join(ev.Weaker, "\n"), "record:") {
		t.Errorf("unchanged: %q, weaker %q", names(ev), ev.Weaker)
	}
	if len(proven.Namespaces) != 7 || proven.Label == "" {
		t.Errorf("recorded: %+v, %q", proven.Namespaces, proven.Label)
	}
	ev := again(func(r *store.Record) {
		for name := range r.Namespaces {
			r.Namespaces[name]++
		}
		r.Label = "another"
	})
	want := []string{"namespace.user", "namespace.pid", "namespace.mnt", "namespace.net", "namespace.ipc", "namespace.uts", "namespace.cgroup", "lsm.label"}
	if diff := cmp.Diff(want, names(ev)); diff != "" {
		t.Errorf("with other namespaces and another label (-want +got):\n%s", diff)
	}
	ev = again(func(r *store.Record) { r.Namespaces, r.Label = nil, "" })
	if !ev.OK || !strings.Contains(strings.Join(ev.Weaker, "\n"), "record:") {
		t.Errorf("record of an older daemon: %q, weaker %q", names(ev), ev.Weaker)
	}
}
