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

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/recent"
)

// TestDiff: what an agent did to its root is listed, whatever it calls it, by
// a daemon that follows none of its links.
func TestDiff(t *testing.T) {
	l := lab.New(t, lab.Options{})
	dir := t.TempDir()
	for _, tt := range []struct {
		kind   string
		limits api.Limits
	}{
		{"tmpfs", api.Limits{Memory: 128 << 20, Disk: 16 << 20}},
		{"ext4", api.Limits{Memory: 64 << 20, Disk: 64 << 20}},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{Rootfs: "ephemeral", Limits: tt.limits})
			if d, err := l.Diff(t.Context(), sb.ID, 0); err != nil || len(d.Changes) != 0 || d.Truncated || d.Rootfs != "ephemeral" {
				t.Errorf("before anything was done: %+v, %v", d, err)
			}
			// The agent owns its home alone.
			out, res := l.Sh(sb.ID, `cd /home/agent && mkdir d && echo hello >d/f && chmod 640 d/f && ln -s /etc out && ln -s `+filepath.Join(l.Dir, "state")+` up &&
				touch "$(printf '\033[2Jx\nD passwd')" "$(printf 'bad\377')" && mknod fifo p && mkdir back && rmdir back`)
			if res.ExitCode != 0 {
				t.Fatalf("%q, %+v", out, res)
			}
			want := []api.Change{
				{Kind: "C", Path: "/home", Type: "dir", Mode: 0o755},
				{Kind: "C", Path: "/home/agent", Type: "dir", Mode: 0o755},
				{Kind: "A", Path: "/home/agent/\x1b[2Jx\nD passwd", Type: "file", Mode: 0o644},
				{Kind: "A", Path: "/home/agent/bad\ufffd", Type: "file", Mode: 0o644},
				{Kind: "A", Path: "/home/agent/d", Type: "dir", Mode: 0o755},
				{Kind: "A", Path: "/home/agent/d/f", Type: "file", Mode: 0o640, Size: 6},
				{Kind: "A", Path: "/home/agent/fifo", Type: "other", Mode: 0o644},
				{Kind: "A", Path: "/home/agent/out", Type: "symlink", Mode: 0o777, Size: 4},
				{Kind: "A", Path: "/home/agent/up", Type: "symlink", Mode: 0o777, Size: int64(len(l.Dir) + len("/state"))},
			}
			check := func(when string) {
				t.Helper()
				d, err := l.Diff(t.Context(), sb.ID, 0)
				if err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if diff := cmp.Diff(want, d.Changes); diff != "" || d.Truncated || !slices.Contains(d.NotCompared, "/tmp") {
					t.Errorf("%s: %v (-want +got):\n%s", when, d.NotCompared, diff)
				}
			}
			check("while it runs")
			if err := l.Pause(t.Context(), sb.ID); err != nil {
				t.Fatal(err)
			}
			check("paused")
			l.Kill()
			l.Start()
			check("taken over")
			text, errs, code := l.Creel("diff", sb.ID)
			if code != 0 || strings.Contains(text, "\x1b") || strings.Count(text, "\n") != len(want) || !strings.Contains(errs, "not compared: ") {
				t.Errorf("creel diff: %d, %q, %q", code, text, errs)
			}
			if d, err := l.Diff(t.Context(), sb.ID, 2); err != nil || len(d.Changes) != 2 || !d.Truncated {
				t.Errorf("limited: %+v, %v", d, err)
			}
			if _, err := l.Client.Stop(t.Context(), sb.ID, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Diff(t.Context(), sb.ID, 0); api.CodeOf(err) != api.CodeConflict {
				t.Errorf("ended: %v", err)
			}
		})
	}
	t.Run("readonly", func(t *testing.T) {
		sb := l.Spawn(api.SpawnRequest{Mounts: []api.Mount{{Source: dir, Target: "/mnt", ReadOnly: true}}})
		d, err := l.Diff(t.Context(), sb.ID, 0)
		if err != nil || d.Rootfs != "readonly" || len(d.Changes) != 0 || slices.Contains(d.NotCompared, "/mnt") {
			t.Errorf("%+v, %v", d, err)
		}
	})
}

// TestDiffMounts: of volumes and directories is listed what was made or changed
// since the start, under the mount it is in, and nothing that is beyond it.
func TestDiffMounts(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	creel := func(args ...string) string {
		t.Helper()
		out, errOut, code := l.CreelAs(caller, "", args...)
		if code != 0 {
			t.Fatalf("creel %q: %d, %q", args, code, errOut)
		}
		return strings.TrimSpace(out)
	}
	creel("volume", "create", "--size", "16M", "work")
	creel("run", "--rm", "-v", "work:/work", "--", "/bin/sh", "-c", "mkdir d; echo a >d/kept; echo b >d/changed; echo c >removed; sleep 0.1")
	// What is there by now is from before, the last tick of the clock apart.
	before, _ := os.Stat(filepath.Join(dir, "src"))
	l.Eventually("the clock goes on", 10*time.Second, func() error {
		if !recent.Now().After(before.ModTime()) {
			return errors.New("it has not")
		}
		return nil
	})
	id := creel("run", "-d", "-v", dir+":/workspace", "-v", "work:/work", "--home", "persistent")
	type change struct{ Kind, Path, Mount string }
	check := func(when string, want ...change) {
		t.Helper()
		d, err := l.Diff(t.Context(), id, 0)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		var got []change
		for _, c := range d.Changes {
			if c.Mount != "" {
				got = append(got, change{c.Kind, c.Path, c.Mount})
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || d.Truncated || fmt.Sprint(d.ByTime) != "[/workspace /work /home/agent]" || slices.Contains(d.NotCompared, "/work") {
			t.Errorf("%s: by time %v, not compared %v (-want +got):\n%s", when, d.ByTime, d.NotCompared, diff)
		}
	}
	check("before anything was done")
	out, res := l.Sh(id, `cd /workspace && echo new >src/new && echo more >>src/precious && ln -s /etc out &&
		cd /work && echo >>d/changed && rm removed && touch -d @1 d/changed && mkdir e && mv d/kept e/ && echo >/home/agent/f`)
	if res.ExitCode != 0 {
		t.Fatalf("%q, %+v", out, res)
	}
	if err := os.WriteFile(filepath.Join(dir, "theirs"), nil, 0o644); err != nil { // by somebody else
		t.Fatal(err)
	}
	want := []change{
		{"C", "/workspace", "/workspace"},
		{"A", "/workspace/out", "/workspace"},
		{"C", "/workspace/src", "/workspace"},
		{"A", "/workspace/src/new", "/workspace"},
		{"C", "/workspace/src/precious", "/workspace"},
		{"A", "/workspace/theirs", "/workspace"},
		{"C", "/work", "/work"},
		{"C", "/work/d", "/work"},
		{"C", "/work/d/changed", "/work"},
		{"A", "/work/e", "/work"},
		{"C", "/work/e/kept", "/work"},
		{"C", "/home/agent", "/home/agent"},
		{"A", "/home/agent/f", "/home/agent"},
	}
	check("while it runs", want...)
	if err := os.WriteFile(filepath.Join(dir, "src", "precious"), []byte("the user's\n"), 0o644); err != nil {
		t.Error(err)
	}
	l.Kill()
	l.Start()
	check("taken over", want...)
	text, errs, code := l.Creel("diff", id)
	if code != 0 || !strings.Contains(text, "C /work/d/changed\n") || !strings.Contains(errs, "by time, whoever did it, and without what was removed: /workspace, /work, /home/agent") {
		t.Errorf("creel diff: %d, %q, %q", code, text, errs)
	}
	for _, limit := range []int{1, 3, len(want)} { // the root has no changes
		if d, err := l.Diff(t.Context(), id, limit); err != nil || len(d.Changes) != limit || d.Truncated != (limit < len(want)) {
			t.Errorf("at most %d: %d, truncated %t, %v", limit, len(d.Changes), d.Truncated, err)
		}
	}
	// Of a directory that the caller cannot look into it learns nothing.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "closed"), 0o700), os.WriteFile(filepath.Join(dir, "closed", "secret"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	d, err := l.Diff(t.Context(), id, 0)
	if err != nil || slices.ContainsFunc(d.Changes, func(c api.Change) bool { return strings.Contains(c.Path, "secret") }) ||
		!slices.ContainsFunc(d.Changes, func(c api.Change) bool { return c.Path == "/workspace/closed" }) {
		t.Errorf("%+v, %v", d, err)
	}
}
