package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// The steps of a launch and its effects, as pkg/launcher names them.
var (
	steps   = []string{"image", "reserve", "init", "steer", "egress", "netns", "socket", "nested", "mounts", "prepare", "container", "task", "start", "channel", "prove", "go", "main", "record"}
	effects = []string{"rundir", "steer", "egress", "unix_peers", "socket", "volumes", "mounts", "rootfs", "container", "task", "cgroup"}
)

// everything is a request whose launch makes every effect there is.
func everything(t *testing.T, l *lab.Lab) api.SpawnRequest {
	t.Helper()
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "kept", Size: 16 << 20}); err != nil && api.CodeOf(err) != api.CodeConflict {
		t.Fatal(err)
	}
	dir := workspace(t)
	if err := os.Mkdir(filepath.Join(dir, "kept"), 0o755); err != nil {
		t.Fatal(err)
	}
	return api.SpawnRequest{
		Name: "everything", Command: []string{"/bin/sleep", "600"}, Rootfs: "ephemeral", Socket: true, Network: "policy", Egress: []string{"tcp host.creel.internal:9"},
		Limits: api.Limits{Memory: 128 << 20, Disk: 64 << 20}, // more than a quarter: a loop device
		Mounts: []api.Mount{{Source: dir, Target: "/workspace", ReadOnly: true}, {Volume: "kept", Target: "/workspace/kept"}},
	}
}

// callerUID is an ordinary user of the host, who need not exist.
const callerUID = 4242

// workspace is a directory of callerUID's with one file in a directory.
func workspace(t *testing.T) string {
	t.Helper()
	top, err := os.MkdirTemp("", "creel-ws-") //nolint:usetesting // t.TempDir lets only root pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	dir := filepath.Join(top, "workspace")
	for _, err := range []error{
		os.Chmod(top, 0o755),
		os.MkdirAll(filepath.Join(dir, "src"), 0o755),
		os.WriteFile(filepath.Join(dir, "src", "precious"), []byte("the user's\n"), 0o644),
		os.Chown(dir, callerUID, callerUID),
		os.Chown(filepath.Join(dir, "src"), callerUID, callerUID),
		os.Chown(filepath.Join(dir, "src", "precious"), callerUID, callerUID),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(filepath.Join(dir, "src", "precious")); err != nil || string(b) != "the user's\n" {
			t.Errorf("the user's file is %q, %v", b, err)
		}
	})
	return dir
}

// noRecord fails if the daemon still knows of a sandbox.
func noRecord(l *lab.Lab) error {
	all, err := l.List(context.Background(), client.ListOptions{All: true})
	if err != nil {
		return err
	}
	for _, sb := range all {
		err = errors.Join(err, fmt.Errorf("record of %s: %s, %s", sb.ID, sb.State, sb.Problem))
	}
	return err
}

// TestEachStepIsUndone fails a launch after each of its steps.
func TestEachStepIsUndone(t *testing.T) {
	l := lab.New(t, lab.Options{Ranges: 2}) // one is creel-egress's; one not given back fails the next
	req := everything(t, l)
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			l.Fail("launch." + step + " error")
			defer l.Fail()
			if _, err := l.Client.Spawn(t.Context(), req); err == nil || api.CodeOf(err) != api.CodeInternal {
				t.Errorf("spawn: %v", err)
			}
			if log := l.LogTail(3); !strings.Contains(log, "failpoint launch."+step) {
				t.Errorf("it did not fail there:\n%s", log)
			}
			// At once: a caller that was told of a failure finds nothing.
			if left := l.Snapshot(); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
			if err := noRecord(l); err != nil {
				t.Error(err)
			}
		})
	}
	l.Spawn(req) // its name and ids are free
}

// TestEachUndoIsRetried fails each undo of a failed launch. What is left is
// on record, and goes with the next try or with the next daemon.
func TestEachUndoIsRetried(t *testing.T) {
	l := lab.New(t, lab.Options{Ranges: 2})
	req := everything(t, l)
	for _, next := range []struct {
		name string
		try  func()
	}{
		{"retry", func() { l.Fail("watch.fastretry on") }},
		{"restart", func() { l.Fail(); l.Kill(); l.Start() }},
	} {
		for _, effect := range append(effects, "record") {
			t.Run(next.name+"/"+effect, func(t *testing.T) {
				defer l.Fail()
				l.Fail("launch.record error", "undo."+effect+" error")
				// The ids of the one before are free a moment after its record.
				l.Eventually("the ids are free", 10*time.Second, func() error {
					_, err := l.Client.Spawn(t.Context(), req)
					if err == nil {
						t.Fatal("spawn succeeded")
					}
					if api.CodeOf(err) == api.CodeExhausted {
						return err
					}
					return nil
				})
				unknown(t, l, effect)
				next.try()
				l.Eventually("nothing on record", 30*time.Second, func() error { return noRecord(l) })
				l.NothingLeft()
				l.Fail()
				sb := l.Spawn(req)
				if err := l.Remove(t.Context(), sb.ID, true); err != nil {
					t.Error(err)
				}
				l.NothingLeft()
			})
		}
	}
}

// unknown holds the record of a launch that could not be undone.
func unknown(t *testing.T, l *lab.Lab, effect string) {
	t.Helper()
	all, err := l.List(t.Context(), client.ListOptions{All: true})
	if err != nil || len(all) != 1 {
		t.Fatalf("want one record, are %+v, %v", all, err)
	}
	sb := all[0]
	if sb.State != api.StateUnknown || !strings.Contains(sb.Problem, "undo."+effect) {
		t.Errorf("the record is %s, problem %q", sb.State, sb.Problem)
	}
	// Nobody waits for it in vain, and nobody gets its ids.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if res, err := l.Wait(ctx, sb.ID); err != nil || res.State != api.StateUnknown {
		t.Errorf("wait: %+v, %v", res, err)
	}
	if _, err := l.Client.Spawn(ctx, api.SpawnRequest{Name: "another"}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("a second sandbox while the ids are not free: %v", err)
	}
	if _, err := l.Exec(ctx, sb.ID, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{}); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("exec: %v", err)
	}
}

// TestEachCleanUpIsRetried is the same for a sandbox that ran.
func TestEachCleanUpIsRetried(t *testing.T) {
	l := lab.New(t, lab.Options{Ranges: 2})
	req := everything(t, l)
	for _, effect := range effects {
		t.Run(effect, func(t *testing.T) {
			defer l.Fail()
			sb := l.Spawn(req)
			l.Fail("undo." + effect + " error")
			if err := l.Remove(t.Context(), sb.ID, true); err != nil {
				t.Fatalf("the removal waits for what can be done later: %v", err)
			}
			l.Eventually("the failure is noted", 30*time.Second, func() error {
				got, err := l.Inspect(t.Context(), sb.ID)
				if err == nil && !strings.Contains(got.Problem, "undo."+effect) {
					err = fmt.Errorf("problem %q", got.Problem)
				}
				return err
			})
			l.Fail("watch.fastretry on")
			l.NothingLeft()
			l.Eventually("the record is gone", 30*time.Second, func() error {
				if _, err := l.Inspect(t.Context(), sb.ID); api.CodeOf(err) != api.CodeNotFound {
					return fmt.Errorf("inspect: %w", err)
				}
				return nil
			})
		})
	}
	l.Spawn(req)
}
