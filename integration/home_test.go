package integration_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestHome is a persistent home's life: made when it is first asked for, there
// in every later sandbox of the agent with a root of either kind, nobody
// else's, and removed as a volume is.
func TestHome(t *testing.T) {
	l := forUsers(t)
	creel := func(want int, args ...string) (string, string) {
		t.Helper()
		out, errOut, code := l.CreelAs(caller, "", args...)
		if code != want {
			t.Errorf("creel %q: %d, want %d\n%s%s\n%s", args, code, want, out, errOut, l.LogTail(3))
		}
		return out, errOut
	}
	run := func(agent, script string, more ...string) string {
		t.Helper()
		out, _ := creel(0, append(append([]string{"run", "--rm", "--agent", agent, "--home", "persistent"}, more...), "--", "/bin/sh", "-c", script)...)
		return out
	}
	out := run("coder", `pwd; ls -A | wc -l; stat -c %a:%u:%g .; echo mine >f; mkdir d; touch d/f; grep -c ' /home/agent ext4\| /home/agent .* ext4 ' /proc/self/mountinfo`)
	if out != "/home/agent\n0\n755:1000:1000\n1\n" {
		t.Errorf("the first time: %q", out)
	}
	if out := run("coder", "cat f; ls", "--rootfs", "ephemeral"); out != "mine\nd\nf\n" {
		t.Errorf("on a writable root: %q", out)
	}
	if out := run("other", "ls -A | wc -l"); out != "0\n" {
		t.Errorf("another agent's home: %q", out)
	}
	if out, _ := creel(0, "run", "--rm", "--agent", "coder", "--", "/bin/sh", "-c", "ls -A | wc -l; touch gone"); out != "0\n" {
		t.Errorf("not asked for: %q", out)
	}
	// It has a name that no request can say.
	for _, args := range [][]string{
		{"run", "--rm", "--agent", "other", "-v", "coder.home:/w:ro", "--", "/bin/true"},
		{"run", "--rm", "--agent", "coder", "-v", "coder.home:/w", "--", "/bin/true"},
	} {
		if _, e := creel(125, args...); !strings.Contains(e, "coder.home") {
			t.Errorf("%q: %q", args, e)
		}
	}
	if _, e := creel(1, "volume", "create", "--agent", "mine", "third.home"); !strings.Contains(e, "name") {
		t.Errorf("taken before its agent is there: %q", e)
	}
	if _, e := creel(125, "run", "--rm", "--profile", "strict", "--home", "persistent", "--", "/bin/true"); !strings.Contains(e, "ephemeral in profile strict") {
		t.Errorf("strict: %q", e)
	}
	// What an agent leaves in its home is in nobody's way: a mount in it, for
	// which the runtime would look for a place there, is refused.
	run("coder", "ln -s /etc work; chmod 0 .")
	if _, e := creel(125, "run", "--rm", "--agent", "coder", "--home", "persistent", "-v", "v:/home/agent/work", "--", "/bin/true"); !strings.Contains(e, "not in a persistent home") {
		t.Errorf("a mount in it: %q", e)
	}
	run("coder", "chmod 755 /home/agent && cd && rm work", "-w", "/")
	if out, _ := creel(0, "volume", "ls"); !strings.Contains(out, "coder.home  coder  4G") || !strings.Contains(out, "other.home  other  4G") {
		t.Errorf("ls: %q", out)
	}
	creel(0, "volume", "rm", "coder.home", "other.home")
	if out := run("coder", "ls -A | wc -l"); out != "0\n" {
		t.Errorf("after its removal: %q", out)
	}
	creel(0, "volume", "rm", "coder.home")
	l.NothingLeft()
	if left, _ := os.ReadDir(filepath.Join(l.Dir, "state", "volumes")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestHomeShared: an agent's sandboxes have one home between them, however
// many want it first, and the evidence and the volume say who has it.
func TestHomeShared(t *testing.T) {
	l := lab.New(t, lab.Options{})
	var wg sync.WaitGroup
	ids := make([]string, 3)
	for i := range ids {
		wg.Go(func() {
			res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: fmt.Sprintf("s%d", i), Home: "persistent"})
			if err != nil {
				t.Errorf("spawn: %v", err)
				return
			}
			ids[i] = res.Sandbox.ID
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i, id := range ids {
		if out, res := l.Sh(id, fmt.Sprintf("echo %d >>/home/agent/f; cat /home/agent/f", i)); res.ExitCode != 0 || !strings.HasSuffix(out, fmt.Sprintf("%d\n", i)) || len(out) != 2*(i+1) {
			t.Errorf("the %dth: %q", i, out)
		}
	}
	v, err := l.Volume(t.Context(), "default.home")
	if err != nil || len(v.UsedBy) != 3 || v.Agent != "default" || v.Size != 4<<30 {
		t.Errorf("volume %+v, %v", v, err)
	}
	if err := l.RemoveVolume(t.Context(), "default.home"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("removed under them: %v", err)
	}
	l.Kill() // and who takes over finds it in place
	l.Start()
	ev, err := l.Evidence(t.Context(), ids[0], true)
	if err != nil || !ev[0].OK {
		t.Fatalf("evidence: %v, %+v", err, ev)
	}
	found := ""
	for _, c := range ev[0].Controls {
		if c.Name == "mount./home/agent" {
			found = c.Expected
		}
	}
	if !strings.HasPrefix(found, "ext4 /dev/loop") || !strings.Contains(found, "nosuid") || !strings.Contains(found, "idmapped") {
		t.Errorf("mount./home/agent expects %q", found)
	}
	if sb, err := l.Inspect(t.Context(), ids[0]); err != nil || sb.Home != "persistent" {
		t.Errorf("%+v, %v", sb, err)
	}
	for _, id := range ids {
		if err := l.Remove(t.Context(), id, true); err != nil {
			t.Error(err)
		}
	}
	l.NothingLeft()
	if err := l.RemoveVolume(t.Context(), "default.home"); err != nil {
		t.Error(err)
	}
}

// TestHomeOfOthers: an agent of the same name of another caller's has another
// home, which counts among that caller's volumes.
func TestHomeOfOthers(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[limits.max]\nvolume_bytes_per_user = \"5G\"\n"})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	sb := l.Spawn(api.SpawnRequest{Agent: "coder", Home: "persistent"})
	if out, res := l.Sh(sb.ID, "echo secret >/home/agent/f"); res.ExitCode != 0 {
		t.Fatal(out)
	}
	asStranger(t, func() {
		if status, body := ask(t, l, "GET", "/v1/volumes/coder.home", ""); status != http.StatusNotFound {
			t.Errorf("the other's: %d %s", status, body)
		}
		status, body := ask(t, l, "POST", "/v1/sandboxes", `{"name":"own","agent":"coder","home":"persistent"}`)
		if status != http.StatusCreated {
			t.Fatalf("spawn: %d %s", status, body)
		}
		if status, body := ask(t, l, "POST", "/v1/sandboxes", `{"agent":"more","home":"persistent"}`); status != http.StatusTooManyRequests || !strings.Contains(body, "volume_bytes_per_user") {
			t.Errorf("a second home: %d %s", status, body)
		}
		if status, body := ask(t, l, "GET", "/v1/volumes", ""); status != http.StatusOK || strings.Count(body, `"name":"coder.home"`) != 1 || strings.Contains(body, "more") {
			t.Errorf("volumes: %d %s", status, body)
		}
	})
	if out, _ := l.Sh("own", "ls -A /home/agent | wc -l"); out != "0\n" {
		t.Errorf("its home has %q", out)
	}
	if out, _ := l.Sh(sb.ID, "cat /home/agent/f"); out != "secret\n" {
		t.Errorf("the home is %q", out)
	}
}

// TestHomeKilled kills creeld while a launch makes a home, and after: it is
// there whole, or not at all, and the next launch has it.
func TestHomeKilled(t *testing.T) {
	l := lab.New(t, lab.Options{})
	req := api.SpawnRequest{Home: "persistent"}
	for _, tt := range []struct {
		point  string
		exists bool
	}{
		{"volume.made", false},
		{"volume.recorded", true},
		{"launch.reserve", true},
		{"volume.opened", true},
		{"launch.prove", true},
	} {
		t.Run(tt.point, func(t *testing.T) {
			l.Fail(tt.point + " kill")
			if _, err := l.Client.Spawn(t.Context(), req); err == nil {
				t.Fatal("spawn succeeded")
			}
			died(t, l)
			if left := l.Snapshot(); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
			_, err := l.Volume(t.Context(), "default.home")
			if tt.exists != (err == nil) || err != nil && api.CodeOf(err) != api.CodeNotFound {
				t.Errorf("on record: %v", err)
			}
			dirs, err := os.ReadDir(filepath.Join(l.Dir, "state", "volumes"))
			if err != nil || len(dirs) > 0 != tt.exists || tt.exists && strings.Contains(dirs[0].Name(), "pending") {
				t.Errorf("on disk: %v, %v", dirs, err)
			}
			sb := l.Spawn(req)
			if out, res := l.Sh(sb.ID, "touch /home/agent/f"); res.ExitCode != 0 {
				t.Errorf("afterwards: %q", out)
			}
			if err := l.Remove(t.Context(), sb.ID, true); err != nil {
				t.Error(err)
			}
			if err := l.RemoveVolume(t.Context(), "default.home"); err != nil {
				t.Error(err)
			}
			l.NothingLeft()
		})
	}
}
