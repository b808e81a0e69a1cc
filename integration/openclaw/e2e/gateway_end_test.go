package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testGateway: two gateways under one uid, of which one is killed in the middle
// of a command and comes back, alone and together with creeld.
func testGateway(t *testing.T, w *world, g *gateway) {
	t.Helper()
	two := newGateway(t, w, "two")
	two.borrow(g, w.plugin(), false)
	two.start()
	t.Cleanup(two.stop)
	t.Run("without the plugin", func(t *testing.T) {
		f := two.spawn(t, "open", "off", require("boxed"), do("exec", shell("true")))
		same(t, "told", two.told(t, f), "error: Sandbox backend \"creel\" is not registered.\nLoad the plugin that provides it, or set agents.defaults.sandbox.backend=docker.")
		w.nothingRan(t, two, f.child, "")
	})
	two.stop()
	two.borrow(g, w.plugin(), true)
	two.start()
	key := sessionKey("main", "two")
	where := func(g *gateway) string { return g.results(t, "main", "two", do("exec", shell("hostname")))[0] }
	one, other := where(g), where(two)
	if one == other {
		t.Fatalf("two gateways have one sandbox, %s", one)
	}
	if all := w.sandboxes(t, key); len(all) != 2 || all[0].AgentID == all[1].AgentID {
		t.Fatalf("%+v", all)
	}
	// killed has the second gateway killed while a command of its runs.
	killed := func(n string, end func()) {
		t.Helper()
		text := w.model.add(do("exec", shell("echo "+n+" >>begun; sleep "+n+"; echo late >late")))
		answered := make(chan int, 1)
		go func() { status, _ := two.say(t, "main", "two-"+n, text); answered <- status }()
		w.begins(t, "sleep", n)
		end()
		w.ends(t, "sleep", n)
		if status := <-answered; status == http.StatusOK {
			t.Errorf("a gateway that was killed answers %d", status)
		}
	}
	goesOn := func(n string) {
		t.Helper()
		two.start()
		two.uses(t, "main", "two-"+n, use{"exec", shell("cat begun; ls late 2>&1"), fmt.Sprintf("^%s\n.*'late': No such file.*", n)})
		if now := where(two); now != other {
			t.Errorf("the session is in %s, was in %s", now, other)
		}
	}
	killed("4731", two.kill)
	if now := where(g); now != one {
		t.Errorf("the other gateway's session is in %s, was in %s", now, one)
	}
	if n := len(w.sandboxes(t, key)); n != 2 {
		t.Errorf("there are %d sandboxes", n)
	}
	goesOn("4731")
	killed("4732", func() { w.Kill(); two.kill(); w.Start() })
	goesOn("4732")
	if now := where(g); now != one {
		t.Errorf("the other gateway's session is in %s, was in %s", now, one)
	}
	two.stop()
	owned(t, two.Dir)
}

// borrow gives a gateway the plugin that another has installed.
func (g *gateway) borrow(from *gateway, plugin obj, enabled bool) {
	g.tb.Helper()
	g.config["plugins"] = obj{
		"load": obj{"paths": []string{from.installed()}}, "allow": []string{"creel"},
		"entries": obj{"creel": obj{"enabled": enabled, "config": plugin}},
	}
	g.write(g.config)
}

// testCLI: openclaw's own commands for sandboxes show true things.
func testCLI(t *testing.T, w *world, g *gateway) {
	t.Helper()
	for _, session := range []string{"cli", "other"} {
		g.uses(t, "main", session, use{"exec", shell("echo kept >kept"), "(no output)"})
	}
	sb, other := w.sandbox(t, sessionKey("main", "cli")), w.sandbox(t, sessionKey("main", "other"))
	if err := w.Remove(t.Context(), other.ID, true); err != nil {
		t.Fatal(err)
	}
	list := func() map[string]obj {
		t.Helper()
		out, errOut, code := g.cli(t, "sandbox", "list", "--json")
		var listed struct{ Containers []obj }
		if err := json.Unmarshal([]byte(out), &listed); err != nil || code != 0 {
			t.Fatalf("list: %d %v %s%s", code, err, out, errOut)
		}
		m := map[string]obj{}
		for _, c := range listed.Containers {
			m[fmt.Sprint(c["containerName"])] = c
		}
		return m
	}
	scope := sb.Labels["openclaw.scope"]
	had := list()
	if c := had[sb.Name]; c["running"] != true || c["imageMatch"] != true || c["image"] != "default (base)" || c["backendId"] != "creel" || c["sessionKey"] != scope {
		t.Errorf("what runs is listed as %v", c)
	}
	if c := had[other.Name]; c["running"] != false {
		t.Errorf("what has ended is listed as %v", c)
	}
	out, errOut, code := g.cli(t, "sandbox", "explain", "--session", sessionKey("main", "cli"), "--json")
	var explained struct{ Sandbox obj }
	if err := json.Unmarshal([]byte(out), &explained); err != nil || code != 0 {
		t.Errorf("explain: %d %v %s%s", code, err, out, errOut)
	}
	if s := explained.Sandbox; s["backend"] != "creel" || s["sessionIsSandboxed"] != true || s["runtimeWorkdir"] != "/workspace" || s["workspaceAccess"] != "none" {
		t.Errorf("explain: %s", out)
	}
	out, errOut, code = g.cli(t, "sandbox", "recreate", "--session", scope, "--force")
	if code != 0 || !strings.Contains(out+errOut, sb.Name) || strings.Contains(out+errOut, other.Name) {
		t.Errorf("recreate: %d %s%s", code, out, errOut)
	}
	if all := w.sandboxes(t, sessionKey("main", "cli")); len(all) != 0 {
		t.Errorf("recreate leaves %+v", all)
	}
	// The workspace is not the sandbox's to lose.
	g.uses(t, "main", "cli", use{"exec", shell("cat kept"), "kept"})
	if now := w.sandbox(t, sessionKey("main", "cli")); now.ID == sb.ID || now.Name == sb.Name {
		t.Errorf("recreated is %s, %s", now.ID, now.Name)
	}
	// And creel's own, of OpenClaw's configuration.
	cmd := w.Command(g.cred, "openclaw", "check", "--config", g.configPath(), "--json")
	cmd.Env = append(cmd.Env, "OPENCLAW_STATE_DIR="+filepath.Join(g.Dir, "state"))
	checked, err := cmd.Output()
	if _, ok := errors.AsType[*exec.ExitError](err); !ok {
		t.Errorf("check: %v", err)
	}
	var found []struct{ Level, About, What string }
	if err := json.Unmarshal(checked, &found); err != nil {
		t.Fatalf("check: %v in %s", err, checked)
	}
	level := map[string]string{}
	for _, f := range found {
		level[f.About] = f.Level
	}
	for about, want := range map[string]string{
		"config": "ok", "plugin": "ok", "agents.defaults": "ok", "agent main": "ok", "agent rw": "ok", "agent open": "danger", "agent nobackend": "missing", "files": "ok", "creeld": "ok",
	} {
		if level[about] != want {
			t.Errorf("check: %s is %q, want %q, in %s", about, level[about], want, checked)
		}
	}
}
