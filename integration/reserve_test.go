package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestDiskReserve: below the reserve those who write are paused, and nobody
// else; everything that ends and removes works; with room they go on.
func TestDiskReserve(t *testing.T) {
	l := lab.New(t, lab.Options{StateMiB: 480, Config: "[disk]\nreserve = \"150M\"\n"})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	onDisk := api.SpawnRequest{Rootfs: "ephemeral", Limits: api.Limits{Memory: 64 << 20, Disk: 64 << 20}}
	spawn := func(name, script string) *api.Sandbox {
		req := onDisk
		req.Name, req.Command = name, []string{"/bin/sh", "-c", script}
		return l.Spawn(req)
	}
	// 60 MiB at most each, at 2.5 MiB a second.
	fill := `while :; do i=$((i+1)); [ $i -gt 240 ] || dd if=/dev/zero of=$HOME/f bs=256k count=1 seek=$i conv=notrunc,fsync 2>/dev/null; usleep 100000; done`
	writers := map[string]*api.Sandbox{}
	for _, name := range []string{"stopped", "killed", "removed"} {
		writers[name] = spawn(name, fill)
	}
	// Without a root to write to, its output is what grows.
	writers["talker"] = l.Spawn(api.SpawnRequest{Name: "talker", Command: []string{"/bin/sh", "-c", "while :; do seq 10000; usleep 100000; done"}})
	if _, err := l.CreateVolume(t.Context(), api.VolumeRequest{Name: "work", Size: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	writers["keeper"] = l.Spawn(api.SpawnRequest{
		Name: "keeper", Command: []string{"/bin/sh", "-c", strings.ReplaceAll(fill, "$HOME", "/work")}, Mounts: []api.Mount{{Volume: "work", Target: "/work"}},
	})
	l.Spawn(api.SpawnRequest{Name: "reader", Agent: "other", Mounts: []api.Mount{{Volume: "work", Target: "/work", ReadOnly: true}}})
	quiet := spawn("quiet", `while :; do dd if=/dev/zero of=$HOME/f bs=4k count=1 conv=notrunc,fsync 2>/dev/null; cat /etc/passwd >/dev/null; usleep 100000; done`)

	state := func(id string, want api.State, why api.Reason) {
		t.Helper()
		l.Eventually(fmt.Sprintf("%s is %s %s", id, want, why), 20*time.Second, func() error {
			sb, err := l.Inspect(t.Context(), id)
			if err == nil && (sb.State != want || sb.Reason != why) {
				err = fmt.Errorf("it is %s, %q", sb.State, sb.Reason)
			}
			return err
		})
	}
	ballast := filepath.Join(l.StateDir(), "ballast")
	lower := func() { // below the reserve, with room for what the writers write meanwhile
		t.Helper()
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := l.DiskUsage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d.Disk.Reserve != 150<<20 || d.Disk.Free < d.Disk.Reserve || d.Disk.Total > 480<<20 {
			t.Fatalf("disk: %+v", d.Disk)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, 0, d.Disk.Free-140<<20); err != nil {
			t.Fatal(err)
		}
	}
	for _, sb := range writers {
		state(sb.ID, api.StateRunning, "")
	}
	lower()
	for _, sb := range writers {
		state(sb.ID, api.StatePaused, api.ReasonDisk)
	}
	state(quiet.ID, api.StateRunning, "")
	state("reader", api.StateRunning, "")
	if out, res := l.Sh(quiet.ID, "echo alive"); out != "alive\n" {
		t.Errorf("who does not grow: %q, %+v", out, res)
	}
	if out, _, _ := l.Creel("ps"); strings.Count(out, "paused (disk)") != len(writers) {
		t.Errorf("creel ps:\n%s", out)
	}

	_, err := l.Client.Spawn(t.Context(), onDisk)
	if api.CodeOf(err) != api.CodeExhausted || !strings.Contains(err.Error(), "creel system prune") {
		t.Errorf("one more with a root on disk: %v", err)
	}
	inMemory := l.Spawn(api.SpawnRequest{Rootfs: "ephemeral", Limits: api.Limits{Memory: 64 << 20, Disk: 16 << 20}})
	l.Spawn(api.SpawnRequest{})
	if err := l.Remove(t.Context(), inMemory.ID, true); err != nil {
		t.Error(err)
	}
	asStranger(t, func() {
		if status, body := ask(t, l, "POST", "/v1/images?ref=x", "some bytes"); status != 429 || !strings.Contains(body, "disk.reserve") {
			t.Errorf("import: %d %s", status, body)
		}
	})
	_, err = l.Exec(t.Context(), "stopped", api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
	if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "disk") {
		t.Errorf("exec in one that is paused: %v", err)
	}

	// By hand it goes on, until it writes again.
	if err := l.Resume(t.Context(), "talker"); err != nil {
		t.Error(err)
	}
	state("talker", api.StatePaused, api.ReasonDisk)
	l.Kill()
	l.Start()
	state("talker", api.StatePaused, api.ReasonDisk)
	state("stopped", api.StatePaused, api.ReasonDisk)

	grace := 100 * time.Millisecond
	if _, err := l.Client.Stop(t.Context(), "stopped", &grace); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := l.Client.Kill(t.Context(), "killed", "KILL"); err != nil {
		t.Errorf("kill: %v", err)
	}
	if err := l.Remove(t.Context(), "removed", true); err != nil {
		t.Errorf("remove: %v", err)
	}
	state("stopped", api.StateStopped, api.ReasonStopped)
	state("killed", api.StateStopped, api.ReasonKilled)
	if _, err := l.Inspect(t.Context(), "removed"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("removed: %v", err)
	}
	if _, err := l.Prune(t.Context(), api.PruneRequest{}); err != nil {
		t.Errorf("prune: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	state("talker", api.StateRunning, "")
	if _, err := l.Client.Spawn(t.Context(), onDisk); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
