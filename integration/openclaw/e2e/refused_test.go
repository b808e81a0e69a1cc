package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// require asks for a child of an agent's, in a sandbox.
func require(agent string) obj { return obj{"agentId": agent, "sandbox": "require"} }

// testRefused: where there is no sandbox to be had nothing runs, and who asked
// is told why.
func testRefused(t *testing.T, w *world, g *gateway) {
	t.Helper()
	ran := filepath.Join(g.Dir, "ran")
	for _, tt := range []struct{ name, parent, target, want string }{
		{"a target that is not sandboxed", "open", "open", `sessions_spawn sandbox="require" needs a sandboxed target runtime. Pick a sandboxed agentId or use sandbox="inherit".`},
		{"a way out of a sandbox", "main", "open", "Sandboxed sessions cannot spawn unsandboxed subagents. Set a sandboxed target agent or use the same agent runtime."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := require(tt.target)
			args["task"] = "say nothing"
			r := g.results(t, tt.parent, "refused", do("sessions_spawn", args))
			if a := spawnAnswer(t, r[0]); a.Status != "forbidden" || a.Error != tt.want {
				t.Errorf("%+v", a)
			}
		})
	}
	revoke := func(verb string) {
		id := w.sandboxAgent(t, "revoked")
		if out, errOut, code := w.Creel("agent", verb, id); code != 0 {
			t.Errorf("agent %s: %s%s", verb, out, errOut)
		}
	}
	g.uses(t, "revoked", "refused", use{"exec", shell("id -u"), "1000"}) // there is such an agent from now on
	// OpenClaw takes a quarter of a minute to tell of a child that failed.
	t.Run("at once", func(t *testing.T) {
		revoke("revoke")
		defer revoke("restore")
		w.refused(t, g, "refused-at-once", map[string]string{
			"nobackend": `^error: Sandbox backend "nope" is not registered\.\nLoad the plugin that provides it, or set agents\.defaults\.sandbox\.backend=docker\..*`,
			"noimage":   `^error: creel: image "nosuch" is not here; get it with "creel image pull REF" or "creel image import FILE", or make one with "creel image build"; "creel image ls" lists what is here`,
			"noprofile": `^error: creel: the request has 1 problem\(s\); profile = nosuch: one of build, default, strict`,
			"revoked":   `^error: creel: agent "openclaw-[0-9a-f]{8}-revoked" is revoked; have an operator restore it`,
		})
	})
	t.Run("revoked while it runs", func(t *testing.T) {
		f := g.spawn(t, "open", "refused-running", require("revoked"), do("exec", shell("sleep 4715")), do("exec", shell("id -u")), do("write", obj{"path": "x", "content": "x"}))
		w.begins(t, "sleep", "4715")
		revoke("revoke")
		defer revoke("restore")
		w.ends(t, "sleep", "4715")
		s := g.model.wait(t, f.child)
		const ended = `^.*(creel: sandbox [a-z2-7]{20} has ended; creel audit log --sandbox [a-z2-7]{20} says why|is revoked; have an operator restore it).*`
		for i, want := range []string{"creel: the command: the sandbox ended\n\n(Command exited with code 137)", ended, ended} {
			same(t, fmt.Sprint("step ", i), s.results[i], want)
		}
	})
	g.uses(t, "main", "quota", use{"exec", shell("id -u"), "1000"})
	for _, tt := range []struct {
		name, want    string
		before, after func()
	}{
		{"quota", "error: creel: ceiling.sandboxes is 1, and your sandboxes with this one would have more; stop a sandbox, or have the operator raise ceiling.sandboxes", func() { w.sandboxesMax(t, 60, 1) }, func() { w.sandboxesMax(t, 1, 60) }},
		{"daemon", fmt.Sprintf(`^error: creel: creeld at %s cannot be asked \(connect (ENOENT|ECONNREFUSED) [^)]*\); start it with: systemctl start creeld`, w.Socket), w.Stop, w.Start},
		{"control", "error: creel: isolation not proven: caps.bounding (want 0000000000000000, is 0000000000002000); creel doctor says what this host lacks", func() { w.Fail("layer.caps on") }, func() { w.Fail() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.before()
			defer tt.after()
			w.refused(t, g, "refused-"+tt.name, map[string]string{"boxed": tt.want})
		})
	}
	// The parent is in a sandbox, and the child would be part of it.
	t.Run("its parent's sandbox was removed", func(t *testing.T) {
		results := g.results(t, "main", "ended", do("exec", shell("id -u")))
		if err := w.Remove(t.Context(), w.sandbox(t, sessionKey("main", "ended")).ID, true); err != nil || results[0] != "1000" {
			t.Fatal(results, err)
		}
		f := g.spawn(t, "main", "ended", obj{"sandbox": "require"}, do("exec", shell("id -u")))
		if told := g.told(t, f); told != "ok" {
			t.Errorf("told %q", told)
		}
	})
	// A turn of a user's own is refused by the same words, in the log.
	r := g.turn(t, "noimage", "refused", do("exec", shell("touch "+ran)))
	if r.status != http.StatusInternalServerError || r.begun || !strings.Contains(g.logTail(20), `SandboxProvisioningError: creel: image "nosuch" is not here`) {
		t.Errorf("%d %s, begun %v\n%s", r.status, r.answer, r.begun, g.logTail(20))
	}
}

// sandboxesMax changes how many sandboxes the gateways may have.
func (w *world) sandboxesMax(t *testing.T, from, to int) {
	t.Helper()
	before, err := w.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.Reconfigure(fmt.Sprint("sandboxes = ", from), fmt.Sprint("sandboxes = ", to))
	w.Eventually("the configuration is read", 10*time.Second, func() error {
		if v, err := w.Version(t.Context()); err != nil || v.Policy == before.Policy {
			return fmt.Errorf("%+v, %w", v, err)
		}
		return nil
	})
}

// sandboxAgent is the id that creeld gave an agent of OpenClaw's.
func (w *world) sandboxAgent(t *testing.T, name string) string {
	t.Helper()
	agents, err := w.Agents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range agents {
		if strings.HasPrefix(a.Name, "openclaw-") && strings.HasSuffix(a.Name, "-"+name) {
			return a.ID
		}
	}
	t.Fatalf("no agent %s in %+v", name, agents)
	return ""
}

// refused has sessions of an agent each spawn a child of one that cannot have a
// sandbox, all at one time, and compares what they are told.
func (w *world) refused(t *testing.T, g *gateway, session string, want map[string]string) {
	t.Helper()
	ran := filepath.Join(g.Dir, "ran")
	families := map[string]family{}
	var wg sync.WaitGroup
	for agent := range want {
		f := family{child: g.model.add(do("exec", shell("touch "+ran)), do("write", obj{"path": ran, "content": "x"}))}
		f.parent = g.model.add(do("sessions_spawn", obj{"agentId": agent, "sandbox": "require", "task": f.child}), do("sessions_yield", obj{}))
		families[agent] = f
		wg.Go(func() {
			if status, answer := g.say(t, "open", session+"-"+agent, f.parent); status != http.StatusOK {
				t.Errorf("%d %s", status, answer)
			}
		})
	}
	wg.Wait()
	for agent, f := range families {
		same(t, agent, g.told(t, f), want[agent])
		// It was accepted: only the child finds out.
		if a := spawnAnswer(t, g.model.seen(g.model.script(f.parent)).results[0]); a.Status != "accepted" {
			t.Errorf("%+v", a)
		}
		w.nothingRan(t, g, f.child, ran)
	}
}

// nothingRan holds that a child was never begun, and made no file.
func (w *world) nothingRan(t *testing.T, g *gateway, child, file string) {
	t.Helper()
	if s := g.model.seen(g.model.script(child)); s.begun {
		t.Errorf("the child did %q", s.results)
	}
	if _, err := os.Lstat(file); err == nil {
		t.Errorf("there is %s", file)
	}
}

// testDaemon: what happens to sessions when their daemon is killed, wherever it
// is, and that they go on with the next one.
func testDaemon(t *testing.T, w *world, g *gateway) {
	t.Helper()
	ran := filepath.Join(g.Dir, "ran")
	t.Run("while a child's sandbox is made", func(t *testing.T) {
		w.Fail("launch.image hold")
		f := g.spawn(t, "open", "during", require("boxed"), do("exec", shell("touch "+ran)))
		w.Held("launch.image")
		w.Kill()
		told := g.told(t, f)
		w.Fail()
		w.Start()
		same(t, "told", told, `^error: creel: creeld at \S+ cannot be asked \(socket hang up\); look at: journalctl -u creeld`)
		w.nothingRan(t, g, f.child, ran)
		if all := w.sandboxes(t, f.key); len(all) > 0 {
			t.Errorf("the child has sandboxes: %+v", all)
		}
	})
	t.Run("while a child's command runs", func(t *testing.T) {
		at := newGate()
		f := g.spawn(t, "open", "after", obj{"agentId": "boxed", "sandbox": "require"},
			do("exec", shell("echo kept >kept; hostname")),
			do("exec", shell("sleep 4721")),
			do("exec", shell("cat kept")),
			do("write", obj{"path": "new", "content": "x"}),
			do("read", obj{"path": "kept"}),
			at.before(do("exec", shell("cat kept; hostname"))),
			do("write", obj{"path": "new", "content": "x"}))
		w.begins(t, "sleep", "4721")
		id := w.sandbox(t, f.key).ID
		w.Kill()
		at.wait(t)
		w.Start()
		w.ends(t, "sleep", "4721")
		close(at.open)
		s := g.model.wait(t, f.child)
		for i, want := range []string{
			"", "creel: the daemon broke the connection: EOF\n  hint: its log says why (journalctl -u creeld)\n\n(Command exited with code 125)",
			`^.*creeld at .* cannot be asked.*`, `^.*"error": "creeld at .* cannot be asked \(.*\); start it with: systemctl start creeld".*`, `^.*creeld at .* cannot be asked.*`, "kept\n" + s.results[0], "Successfully wrote 1 bytes to /workspace/new",
		} {
			if i > 0 {
				same(t, fmt.Sprint("step ", i), s.results[i], want)
			}
		}
		if told := g.told(t, f); told != "ok" {
			t.Errorf("told %q", told)
		}
		if now := w.sandbox(t, f.key); now.ID != id || now.State != api.StateRunning {
			t.Errorf("the sandbox is %s, %s, not %s", now.ID, now.State, id)
		}
	})
}
