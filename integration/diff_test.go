package integration_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
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
