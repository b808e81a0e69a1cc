package launcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/undo"
)

var states = []api.State{
	api.StateCreating, api.StateRunning, api.StatePaused, api.StateStopping, api.StateStopped, api.StateRemoving, api.StateUnknown,
}

// TestMoves holds what the life of a sandbox must never allow, whatever is
// added to the table.
func TestMoves(t *testing.T) {
	for _, from := range states {
		to, ok := moves[from]
		if !ok {
			t.Errorf("%s is not in the table", from)
		}
		for _, s := range states {
			err := checkMove(from, s)
			if (err == nil) != slices.Contains(to, s) {
				t.Errorf("%s to %s: %v", from, s, err)
			}
			switch {
			case err == nil && s == api.StateCreating:
				t.Errorf("%s can become creating again", from)
			case err == nil && from == s:
				t.Errorf("%s can become what it is", from)
			case err == nil && ended(from) && !ended(s):
				t.Errorf("%s has ended and can become %s", from, s)
			case err != nil && api.CodeOf(err) != api.CodeConflict:
				t.Errorf("%s to %s: class %s", from, s, api.CodeOf(err))
			}
		}
	}
}

// TestEveryStateEnds finds a way from each state to removing.
func TestEveryStateEnds(t *testing.T) {
	for _, from := range states {
		reached := map[api.State]bool{from: true}
		for range states {
			for s := range reached {
				for _, next := range moves[s] {
					reached[next] = true
				}
			}
		}
		if !reached[api.StateRemoving] {
			t.Errorf("%s is for ever", from)
		}
	}
}

// TestEffectsAreInOrder holds that what uses an effect is made after it, and
// so undone before it.
func TestEffectsAreInOrder(t *testing.T) {
	made := map[string]int{}
	for i, e := range effects {
		made[e.name] = i
	}
	for i, e := range effects {
		for _, a := range e.above {
			if at, ok := made[a]; !ok || at <= i {
				t.Errorf("%s is used by %s, which is not made after it", e.name, a)
			}
		}
	}
}

// TestStuckEffectKeepsWhatItUses replaces the effects' undos by ones that fail.
func TestStuckEffectKeepsWhatItUses(t *testing.T) {
	whole := effects
	t.Cleanup(func() { effects = whole })
	for _, broken := range []struct {
		name string
		want []string // undone, in this order
	}{
		{"", []string{"cgroup", "task", "container", "rootfs", "mounts", "volumes", "socket", "unix_peers", "egress", "steer", "rundir"}},
		{"cgroup", []string{"task", "container", "rootfs", "mounts", "volumes", "socket", "unix_peers", "egress", "steer", "rundir"}},
		{"task", []string{"cgroup", "socket", "egress", "steer"}},
		{"container", []string{"cgroup", "task", "mounts", "volumes", "socket", "unix_peers", "egress", "steer", "rundir"}},
		{"rootfs", []string{"cgroup", "task", "container", "mounts", "volumes", "socket", "unix_peers", "egress", "steer", "rundir"}},
		{"mounts", []string{"cgroup", "task", "container", "rootfs", "socket", "unix_peers", "egress", "steer"}},
		{"volumes", []string{"cgroup", "task", "container", "rootfs", "mounts", "socket", "unix_peers", "egress", "steer", "rundir"}},
		{"socket", []string{"cgroup", "task", "container", "rootfs", "mounts", "volumes", "unix_peers", "egress", "steer"}},
	} {
		t.Run(broken.name, func(t *testing.T) {
			var undone []string
			effects = slices.Clone(whole)
			for i, e := range effects {
				effects[i].undo = func(*Launcher, context.Context, string) error {
					if e.name == broken.name {
						return errors.New("broken")
					}
					undone = append(undone, e.name)
					return nil
				}
			}
			err := new(Launcher).undoAll(t.Context(), "id")
			if _, failed := errors.AsType[*undo.Error](err); failed != (broken.name != "") {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(broken.want, undone); diff != "" {
				t.Errorf("undone (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRemoveDirGoesNoDeeper: below a directory in it are a caller's files.
func TestRemoveDirGoesNoDeeper(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "id")
	precious := filepath.Join(dir, "mnt", "0", "precious")
	if err := errors.Join(os.MkdirAll(filepath.Dir(precious), 0o700), os.WriteFile(filepath.Join(dir, "init"), nil, 0o100), os.WriteFile(precious, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := removeDir(dir); !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "mnt")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // gone is success
		if err := removeDir(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestExitCodes are what a shell or timeout(1) would give.
func TestExitCodes(t *testing.T) {
	three := 3
	for _, tt := range []struct {
		why  api.Reason
		code *int
		want int
	}{
		{api.ReasonExited, &three, 3},
		{api.ReasonTimeout, nil, 124},
		{api.ReasonTimeout, &three, 124},
		{api.ReasonKilled, nil, 137},
		{api.ReasonOOM, nil, 137},
		{api.ReasonTTL, nil, 137},
		{api.ReasonStopped, nil, 0},
		{api.ReasonStopped, &three, 3},
	} {
		if got := exitCode(tt.why, tt.code); got == nil || *got != tt.want {
			t.Errorf("%s with %v: %v, want %d", tt.why, tt.code, got, tt.want)
		}
	}
}
