package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestChildren: a child has what its parent has where it asks for nothing, and
// never more, of anything; what is refused says by which rule and what to do.
func TestChildren(t *testing.T) {
	l := forUsers(t)
	dir, other, private := workspace(t), workspace(t), workspace(t)
	mkdirs(t, dir, "out/src", "src/in")
	if out, errOut, code := l.CreelAs(caller, "", "volume", "create", "--size", "16M", "--agent", "coder", "kept"); code != 0 {
		t.Fatalf("volume: %s%s", out, errOut)
	}
	parent := started(t, l, "--name", "top", "--agent", "coder", "--memory", "512M", "--pids", "100", "--ttl", "1h", "-v", dir+":/w", "-v", dir+"/src:/w/src:ro", "-v", other+":/other:ro", "-v", "kept:/kept")
	run := func(flags ...string) (string, string, int) {
		t.Helper()
		return l.CreelAs(caller, "", append([]string{"run", "-d"}, flags...)...)
	}
	end := func(id string) {
		t.Helper()
		if err := l.Remove(t.Context(), id, true); err != nil {
			t.Error(err)
		}
	}

	child := started(t, l, "--parent", "top", "--name", "child")
	v, err := l.Inspect(t.Context(), child)
	if err != nil || v.Parent != parent || v.Agent != "coder" || v.Limits.Memory != 512<<20 || v.Limits.Pids != 100 || v.Limits.TTL.D() != time.Hour || v.Limits.Tmp > 128<<20 || len(v.Mounts) != 0 {
		t.Errorf("the child is %+v, %v", v, err)
	}
	if failed := provenNow(t, l, child); len(failed) > 0 {
		t.Errorf("proven: %q", failed)
	}
	if out, _, _ := l.CreelAs(caller, "", "ps"); !strings.Contains(out, "PARENT") || strings.Count(out, parent) != 2 {
		t.Errorf("ps:\n%s", out)
	}
	end(child)
	if out, _, _ := l.CreelAs(caller, "", "ps"); strings.Contains(out, "PARENT") {
		t.Errorf("ps without children:\n%s", out)
	}

	all := "-v " + dir + ":/m -v " + dir + "/src:/m/src:ro"
	for _, tt := range []struct {
		name, flags string
		refused     string // the rule; empty if it is let in
		fix         string
	}{
		{"the same mounts elsewhere", all, "", ""},
		{"what is in a mount that is read-only", "-v " + dir + "/src/in:/m:ro", "", ""},
		{"the volume", "-v kept:/k", "", ""},
		{"the volume, read-only", "-v kept:/k:ro", "", ""},
		{"a directory of its own", "-v " + private + ":/m:own", "", ""},
		{"its own in the place of the parent's", "-v " + dir + ":/m -v " + private + ":/m/src:own", "", ""},
		{"what is not its own", "-v " + private + ":/m", "parent.mounts", "leave it out"},
		{"strict", "--profile strict --memory 64M", "", ""},
		{"shorter", "--ttl 10m --idle 1m", "", ""},
		{"the image by its name", "--image base", "", ""},
		{"what the parent's other mount hides", "-v " + dir + ":/m", "parent.mounts", "leave it out"},
		{"with something else in its place", "-v " + dir + ":/m -v " + other + ":/m/src:ro", "parent.mounts", "leave it out"},
		{"part of it, with the same one in another place", "-v " + dir + "/out:/m -v " + dir + "/src:/m/src:ro", "parent.mounts", "leave it out"},
		{"part of what has a mount in it", "-v " + dir + "/out:/m", "parent.mounts", "leave it out"},
		{"to write what is read-only", "-v " + other + ":/m", "parent.mounts", "mount it read-only (:ro)"},
		{"to write the protected part", "-v " + dir + ":/m -v " + dir + "/src:/m/src", "parent.mounts", "mount it read-only (:ro)"},
		{"above it", "-v " + filepath.Dir(dir) + ":/m:ro", "parent.mounts", "leave it out"},
		{"memory", "--memory 1G", "parent.memory", "ask for less"},
		{"pids", "--pids 101", "parent.pids", "ask for less"},
		{"tmp", "--tmp 200M", "parent.tmp", "ask for tmp of at most 128M"},
		{"files", "--files 8192", "parent.files", "ask for files of at most 4096"},
		{"life", "--ttl 2h", "parent.ttl", "ask for ttl of at most 1h0m0s"},
		{"a writable root", "--rootfs ephemeral", "parent.rootfs", "ask for rootfs readonly"},
		{"a home", "--home persistent", "parent.home", "ask for home ephemeral"},
		{"another agent", "--agent other", "parent.agent", "ask for agent coder"},
		{"root inside", "--profile build", "parent.profile", "ask for profile default"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			flags := append([]string{"--parent", parent}, strings.Fields(tt.flags)...)
			out, errOut, code := run(flags...)
			if tt.refused == "" {
				if code != 0 {
					t.Fatalf("%d %s", code, errOut)
				}
				end(strings.TrimSpace(out))
			} else if code != 125 || !strings.Contains(errOut, tt.fix) {
				t.Errorf("%d, %s; want %q", code, errOut, tt.fix)
			}
			out, errOut, code = l.CreelAs(caller, "", append([]string{"explain"}, flags...)...)
			if want := map[bool]int{true: 0, false: 1}[tt.refused == ""]; code != want || !strings.Contains(out, "parent.profile") || !strings.Contains(out, tt.refused) {
				t.Errorf("explain: %d, want %d\n%s%s", code, want, out, errOut)
			}
		})
	}

	t.Run("what is one's own is nobody else's", func(t *testing.T) {
		mkdirs(t, private, "in")
		const small = " --memory 128M --pids 20 --cpus 0.2"
		id := started(t, l, append(strings.Fields("--parent top"+small), "-v", private+"/in:/m:own")...)
		for _, flags := range []string{
			"--parent top -v " + private + "/in:/m:own" + small, "--agent coder -v " + private + ":/m:ro", "--agent coder -v " + private + "/in:/m:ro", "--agent else -v " + private + "/in:/m",
			"--parent top -v " + dir + "/src:/m:own" + small, // the parent has it
		} {
			if _, errOut, code := run(strings.Fields(flags)...); code != 125 || !strings.Contains(errOut, "nobody else's") {
				t.Errorf("%s: %d, %s", flags, code, errOut)
			}
		}
		end(id)
		end(started(t, l, "--agent", "else", "-v", private+"/in:/m"))
	})

	t.Run("the mounts are in the child as in the parent", func(t *testing.T) {
		id := started(t, l, append(strings.Fields(all), "--parent", "top")...)
		if out, _ := l.Sh(id, "echo x >/m/out/new; cat /m/src/precious; touch /m/src/new"); !strings.Contains(out, "the user's") || !strings.Contains(out, "Read-only file system") {
			t.Errorf("%q", out)
		}
		if out, _ := l.Sh(parent, "cat /w/out/new"); out != "x\n" {
			t.Errorf("the parent reads %q", out)
		}
		end(id)
	})
	t.Run("depth", func(t *testing.T) {
		above := "top"
		for i, refused := range []string{"", "", "", "at most depth 3"} {
			name := fmt.Sprintf("level%d", i)
			_, errOut, code := run("--parent", above, "--name", name, "--memory", fmt.Sprint(256>>i, "M"), "--cpus", fmt.Sprint(1/float64(int(1)<<i)), "--pids", fmt.Sprint(48>>i))
			if (code == 0) != (refused == "") || !strings.Contains(errOut, refused) {
				t.Errorf("%d: %d %s", i, code, errOut)
			}
			above = name
		}
		end("level0")
		for _, name := range []string{"level1", "level2"} {
			if v, err := l.Inspect(t.Context(), name); err != nil || v.State != api.StateStopped || v.Reason != api.ReasonParent {
				t.Errorf("%s is %+v, %v", name, v, err)
			}
			end(name)
		}
	})
	t.Run("a wider filter", func(t *testing.T) {
		id := started(t, l, "--profile", "strict", "--name", "strict")
		_, errOut, code := run("--parent", "strict", "--profile", "default")
		if code != 125 || !strings.Contains(errOut, "default (seccomp default)") {
			t.Errorf("%d %s", code, errOut)
		}
		end(started(t, l, "--parent", "strict"))
		end(id)
	})
	t.Run("of nobody else's", func(t *testing.T) {
		guest := &syscall.Credential{Uid: stranger, Gid: stranger}
		for _, as := range []*syscall.Credential{guest, {Uid: callerUID, Gid: stranger}, nil} {
			theirs, errOut, code := l.CreelAs(as, "", "run", "-d", "--parent", parent)
			_, none, _ := l.CreelAs(as, "", "run", "-d", "--parent", strings.Repeat("a", 20))
			if code != 125 || as == guest && strings.ReplaceAll(errOut, parent, "REF") != strings.ReplaceAll(none, strings.Repeat("a", 20), "REF") ||
				as != guest && !strings.Contains(errOut, "of another user or group") {
				t.Errorf("%v: %d %s%s", as, code, theirs, errOut)
			}
		}
	})
	t.Run("it is on record", func(t *testing.T) {
		id := started(t, l, "--parent", "top")
		out, errOut, code := l.Creel("audit", "log", "--json", "--sandbox", id)
		if code != 0 || !strings.Contains(out, `"parent":"`+parent+`"`) {
			t.Errorf("%d %s%s", code, out, errOut)
		}
		end(id)
	})
}

// TestFamilyTotals: children asked for at one time never have more together
// than their parent, and are not more than there may be.
func TestFamilyTotals(t *testing.T) {
	l := lab.New(t, lab.Options{})
	parent := l.Spawn(api.SpawnRequest{Limits: api.Limits{Memory: 128 << 20, Pids: 512}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 10 {
		wg.Go(func() {
			_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Parent: parent.ID, Limits: api.Limits{Memory: 32 << 20, Pids: 16, CPUs: 0.1}})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if api.CodeOf(err) != api.CodeExhausted {
				t.Errorf("refused with %v", err)
			}
		})
	}
	wg.Wait()
	if made != 4 {
		t.Errorf("%d children of 32M in a parent of 128M", made)
	}
	// The daemon's sums are of the records, so the next one's are the same.
	l.Kill()
	l.Start()
	if _, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Parent: parent.ID, Limits: api.Limits{Memory: 16 << 20, Pids: 16, CPUs: 0.1}}); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("after a restart: %v", err)
	}
	if err := l.Remove(t.Context(), parent.ID, true); err != nil {
		t.Error(err)
	}
	if list, err := l.List(t.Context(), client.ListOptions{}); err != nil || len(list) != 0 {
		t.Errorf("still there: %+v, %v", list, err)
	}
}

// family is a parent with a child and that one's child, all with a command.
func family(t *testing.T, l *lab.Lab, top api.SpawnRequest) (ids []string) {
	t.Helper()
	top.Command = []string{"/bin/sleep", "1000"}
	top.Limits.Memory = 128 << 20
	ids = append(ids, l.Spawn(top).ID)
	for range 2 {
		ids = append(ids, l.Spawn(api.SpawnRequest{Parent: ids[len(ids)-1], Limits: api.Limits{Memory: 32 << 20, Pids: 16, CPUs: 0.2}, Command: []string{"/bin/sleep", "1000"}}).ID)
	}
	return ids
}

// TestTreeEndsWithParent: however a sandbox ends, its children end with it,
// and before anybody is told that it has ended.
func TestTreeEndsWithParent(t *testing.T) {
	l := lab.New(t, lab.Options{})
	ended := func(t *testing.T, ids []string) {
		t.Helper()
		for _, id := range ids {
			v, err := l.Inspect(t.Context(), id)
			if err != nil || v.State != api.StateStopped || v.Reason != api.ReasonParent && v.Reason != api.ReasonTTL { // they have the parent's
				t.Errorf("%s is %s (%s), %v; want stopped (parent)", id, v.State, v.Reason, err)
			}
			if err := l.Remove(t.Context(), id, true); err != nil {
				t.Error(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		top  api.SpawnRequest
		end  func(id string) error
	}{
		{"stop", api.SpawnRequest{}, func(id string) error { g := time.Duration(0); _, err := l.Client.Stop(t.Context(), id, &g); return err }},
		{"kill", api.SpawnRequest{}, func(id string) error { return l.Client.Kill(t.Context(), id, "KILL") }},
		{"its command ends", api.SpawnRequest{}, func(id string) error { return l.Client.Kill(t.Context(), id, "TERM") }},
		{"PID 1 dies", api.SpawnRequest{}, func(id string) error { l.KillProcess("init", id); return nil }},
		{"ttl", api.SpawnRequest{Limits: api.Limits{TTL: api.Duration(3 * time.Second)}}, func(string) error { return nil }},
		{"revoked", api.SpawnRequest{}, func(string) error { _, _, _ = l.Creel("agent", "revoke", "default"); return nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ids := family(t, l, tt.top)
			if err := tt.end(ids[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Wait(t.Context(), ids[0]); err != nil {
				t.Fatal(err)
			}
			if tt.name == "revoked" { // they are its own as well
				_, _, _ = l.Creel("agent", "restore", "default")
				for _, id := range ids[1:] {
					if _, err := l.Wait(t.Context(), id); err != nil {
						t.Error(err)
					}
					if err := l.Remove(t.Context(), id, true); err != nil {
						t.Error(err)
					}
				}
			} else {
				ended(t, ids[1:])
			}
			if err := l.Remove(t.Context(), ids[0], true); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("the daemon is killed in between", func(t *testing.T) {
		ids := family(t, l, api.SpawnRequest{})
		l.Fail("end.stopping kill")
		_ = l.Client.Kill(t.Context(), ids[0], "KILL")
		<-l.Exited()
		l.Fail()
		l.Start()
		for _, id := range ids {
			if _, err := l.Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		ended(t, ids[1:])
		if err := l.Remove(t.Context(), ids[0], true); err != nil {
			t.Error(err)
		}
	})
	t.Run("it dies, and is forgotten, without a daemon", func(t *testing.T) {
		ids := family(t, l, api.SpawnRequest{Remove: true})
		top, err := l.Inspect(t.Context(), ids[0])
		if err != nil {
			t.Fatal(err)
		}
		l.Kill()
		l.KillPID(top.PID)
		l.Start()
		if _, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Parent: ids[1]}); err == nil {
			t.Error("an orphan has a child")
		}
		for _, id := range ids[1:] {
			if _, err := l.Wait(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		ended(t, ids[1:])
		l.Kill() // and again, when there is no record of it
		l.Start()
	})
	t.Run("a child is being let in", func(t *testing.T) {
		ids := family(t, l, api.SpawnRequest{})
		l.Fail("launch.image hold")
		made := make(chan error, 1)
		go func() {
			_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Parent: ids[0], Limits: api.Limits{Memory: 16 << 20, Pids: 16, CPUs: 0.1}})
			made <- err
		}()
		l.Held("launch.image")
		if err := l.Client.Kill(t.Context(), ids[0], "KILL"); err != nil {
			t.Error(err)
		}
		if _, err := l.Wait(t.Context(), ids[0]); err != nil {
			t.Error(err)
		}
		l.Fail()
		if err := <-made; api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "can have no child") {
			t.Errorf("the child: %v", err)
		}
		ended(t, ids[1:])
		if err := l.Remove(t.Context(), ids[0], true); err != nil {
			t.Error(err)
		}
	})
	t.Run("a child is being made", func(t *testing.T) {
		for _, at := range []string{"launch.reserve", "launch.prove", "launch.go"} {
			ids := family(t, l, api.SpawnRequest{})
			l.Fail(at + " hold")
			made := make(chan error, 1)
			go func() {
				_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Name: "late", Parent: ids[0], Limits: api.Limits{Memory: 16 << 20, Pids: 16, CPUs: 0.1}})
				made <- err
			}()
			l.Held(at)
			gone := make(chan error, 1)
			go func() { gone <- l.Remove(t.Context(), ids[0], true) }()
			l.Eventually("the parent ends", 10*time.Second, func() error {
				if v, err := l.Inspect(t.Context(), ids[0]); err != nil || v.State == api.StateRunning {
					return fmt.Errorf("%+v, %w", v, err)
				}
				return nil
			})
			select {
			case err := <-gone:
				t.Errorf("%s: the parent is gone while a child is being made: %v", at, err)
			case <-time.After(300 * time.Millisecond):
			}
			l.Fail()
			if err := errors.Join(<-gone); err != nil {
				t.Error(err)
			}
			if err := <-made; err == nil && at != "launch.go" {
				t.Errorf("%s: the child runs", at)
			}
			if v, err := l.Inspect(t.Context(), "late"); err == nil {
				if v.State != api.StateStopped || v.Reason != api.ReasonParent {
					t.Errorf("%s: it is %s (%s)", at, v.State, v.Reason)
				}
				_ = l.Remove(t.Context(), "late", true)
			}
			ended(t, ids[1:])
		}
	})
	l.NothingLeft()
}

// TestBusyParent: a sandbox whose child works is not idle.
func TestBusyParent(t *testing.T) {
	l := lab.New(t, lab.Options{})
	parent := l.Spawn(api.SpawnRequest{Limits: api.Limits{Memory: 64 << 20, Idle: api.Duration(2 * time.Second), OnIdle: "stop"}})
	child := l.Spawn(api.SpawnRequest{Parent: parent.ID, Command: []string{"/bin/sh", "-c", "end=$(($(date +%s)+5)); while [ $(date +%s) -lt $end ]; do :; done"}})
	if res, err := l.Wait(t.Context(), child.ID); err != nil || res.Reason != api.ReasonExited {
		t.Errorf("the child ended: %+v, %v", res, err)
	}
	if res, err := l.Wait(t.Context(), parent.ID); err != nil || res.Reason != api.ReasonIdle {
		t.Errorf("the parent ended: %+v, %v", res, err)
	}
	idle := l.Spawn(api.SpawnRequest{Limits: api.Limits{Memory: 64 << 20, Idle: api.Duration(time.Second), OnIdle: "pause"}})
	l.Eventually("it is paused", 10*time.Second, func() error {
		if v, err := l.Inspect(t.Context(), idle.ID); err != nil || v.State != api.StatePaused {
			return fmt.Errorf("%s, %w", v.State, err)
		}
		return nil
	})
	l.Spawn(api.SpawnRequest{Parent: idle.ID})
	if v, err := l.Inspect(t.Context(), idle.ID); err != nil || v.State != api.StateRunning {
		t.Errorf("the parent of a new child is %s, %v", v.State, err)
	}
	if err := l.Pause(t.Context(), idle.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Parent: idle.ID, Limits: api.Limits{Memory: 16 << 20}}); api.CodeOf(err) == "" {
		t.Error("a sandbox that was paused has a child")
	}
	raw, err := json.Marshal(child)
	if err != nil || !strings.Contains(string(raw), `"parent":"`+parent.ID+`"`) {
		t.Errorf("%s, %v", raw, err)
	}
}
