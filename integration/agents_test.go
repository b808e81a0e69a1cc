package integration_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestAgents: every sandbox belongs to an agent that outlives it, with a stable
// id. A revoked agent's sandboxes end, what is being made never runs, and no
// more are made, also after a restart; its caller cannot undo what an operator
// did, and another caller knows nothing of it.
func TestAgents(t *testing.T) {
	l := lab.New(t, lab.Options{})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	other := &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1}
	creel := func(as *syscall.Credential, args ...string) (string, int) {
		t.Helper()
		out, errOut, code := l.CreelAs(as, "", args...)
		return out + errOut, code
	}
	show := func(as *syscall.Credential, ref string) (a api.Agent) {
		t.Helper()
		out, code := creel(as, "agent", "show", ref)
		if err := json.Unmarshal([]byte(out), &a); code != 0 || err != nil {
			t.Fatalf("agent show %s: %d %s", ref, code, out)
		}
		return a
	}
	spawn := func(args ...string) string {
		t.Helper()
		out, code := creel(guest, append([]string{"run", "-d", "--image", "base", "--agent", "coder"}, args...)...)
		if code != 0 {
			t.Fatal(out)
		}
		return strings.TrimSpace(out)
	}
	one, two := spawn(), spawn("--memory", "64M", "--", "/bin/sleep", "1000")
	first := show(guest, "coder")
	if first.State != "active" || first.Spawns != 2 || first.Sandboxes != 2 || first.Caller.UID != stranger || first.Given == nil ||
		first.Given.Ceiling != "default" || strings.Join(first.Used.Profiles, " ") != "default" || first.Used.Sandboxes != 2 {
		t.Errorf("the agent is %+v", first)
	}
	if v, err := l.Inspect(t.Context(), one); err != nil || v.AgentID != first.ID {
		t.Errorf("its sandbox is of agent %q, %v; want %q", v.AgentID, err, first.ID)
	}
	if out, code := creel(other, "agent", "ls", "--json"); code != 0 || strings.Contains(out, "coder") {
		t.Errorf("another caller lists %d %s", code, out)
	}
	for _, verb := range []string{"show", "revoke", "restore"} {
		theirs, code := creel(other, "agent", verb, first.ID)
		none, code2 := creel(other, "agent", verb, "aaaaaaaaaaaaaaaa")
		if code != 1 || code != code2 || strings.ReplaceAll(theirs, first.ID, "REF") != strings.ReplaceAll(none, "aaaaaaaaaaaaaaaa", "REF") {
			t.Errorf("agent %s: %q for another's, %q for none", verb, theirs, none)
		}
	}

	// One is on its way when the agent is revoked: it must not run.
	l.Fail("launch.prove hold")
	type result struct {
		out  string
		code int
	}
	late := make(chan result, 1)
	go func() {
		out, code := creel(guest, "run", "-d", "--name", "late", "--image", "base", "--agent", "coder")
		late <- result{out, code}
	}()
	l.Held("launch.prove")
	revoked := make(chan result, 1)
	go func() {
		out, code := creel(nil, "agent", "revoke", first.ID)
		revoked <- result{out, code}
	}()
	for _, id := range []string{one, two} {
		if r, err := l.Wait(t.Context(), id); err != nil || r.Reason != api.ReasonRevoked {
			t.Errorf("a sandbox of a revoked agent: %+v, %v", r, err)
		}
	}
	l.Fail()
	if r := <-late; r.code != 125 || !strings.Contains(r.out, `agent "coder" is revoked`) {
		t.Errorf("the one that was on its way: %+v", r)
	}
	if r := <-revoked; r.code != 0 || !strings.Contains(r.out, "revoked") {
		t.Errorf("revoke: %+v", r)
	}
	refused := func(when string) {
		t.Helper()
		if out, code := creel(guest, "run", "-d", "--image", "base", "--agent", "coder"); code != 125 || !strings.Contains(out, `agent "coder" is revoked`) {
			t.Errorf("%s: %d %s", when, code, out)
		}
		if out, code := creel(guest, "agent", "restore", "coder"); code != 1 || !strings.Contains(out, "an operator revoked") {
			t.Errorf("%s, its caller restores it: %d %s", when, code, out)
		}
	}
	refused("revoked")
	l.Kill()
	l.Start()
	open(t, l)
	refused("after a crash")
	if out, code := creel(guest, "agent", "report", "--json"); code != 0 || !strings.Contains(out, `"kind": "revoked"`) {
		t.Errorf("report: %d %s", code, out)
	}
	if out, code := creel(nil, "agent", "restore", first.ID); code != 0 {
		t.Errorf("an operator restores it: %s", out)
	}
	three := spawn()
	if again := show(guest, "coder"); again.ID != first.ID || !again.Created.Equal(first.Created) || again.Spawns != 4 || again.State != "active" {
		t.Errorf("the agent was %+v, is %+v", first, again)
	}

	// A daemon that was killed right after the commit ends what runs.
	l.Fail("agent.revoked kill")
	_, _ = creel(guest, "agent", "revoke", "coder")
	<-l.Exited()
	l.Fail()
	l.Start()
	open(t, l)
	l.Eventually("what a revoked agent has ends", 30*time.Second, func() error {
		v, err := l.Inspect(t.Context(), three)
		if err == nil && (v.State != api.StateStopped || v.Reason != api.ReasonRevoked) {
			err = fmt.Errorf("it is %s, %s", v.State, v.Reason)
		}
		return err
	})
}

// TestRevokedAgentDoesNothing: from the moment that the revocation is on disk,
// before its sandboxes have ended, nothing begins in them and none is let go
// on; and what is refused for it leaves nothing, and is explained as refused.
func TestRevokedAgentDoesNothing(t *testing.T) {
	l := lab.New(t, lab.Options{})
	runs := l.Spawn(api.SpawnRequest{Name: "runs", Agent: "coder"})
	held := l.Spawn(api.SpawnRequest{Name: "held", Agent: "coder"})
	if err := l.Pause(t.Context(), held.ID); err != nil {
		t.Fatal(err)
	}
	l.Fail("agent.revoked hold")
	revoked := make(chan error, 1)
	go func() {
		_, err := l.RevokeAgent(t.Context(), "coder")
		revoked <- err
	}()
	l.Held("agent.revoked")
	// The watch may have ended them by now: that is as good.
	ended := func(err error) bool { return api.CodeOf(err) == api.CodeDenied || api.CodeOf(err) == api.CodeConflict }
	if err := l.Resume(t.Context(), held.ID); !ended(err) {
		t.Errorf("its paused sandbox is resumed: %v", err)
	}
	if _, err := l.ExecOnce(t.Context(), runs.ID, api.ExecRequest{Command: []string{"/bin/true"}}); !ended(err) {
		t.Errorf("a command in its sandbox: %v", err)
	}
	l.Fail()
	if err := <-revoked; err != nil {
		t.Fatal(err)
	}
	req := api.SpawnRequest{Agent: "coder", Home: "persistent"}
	if _, err := l.Client.Spawn(t.Context(), req); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("one more: %v", err)
	}
	if vs, err := l.Volumes(t.Context()); err != nil || len(vs) > 0 {
		t.Errorf("it has a home, made for nothing: %+v, %v", vs, err)
	}
	d, err := l.Explain(t.Context(), req)
	if err != nil || d.Allowed || !strings.Contains(fmt.Sprint(d.Rules), `agent "coder" is revoked`) {
		t.Errorf("explained as %+v, %v", d, err)
	}
}

// TestAgentReport: what agents do not use is recorded by itself again and
// again, and each caller reads it of its own.
func TestAgentReport(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[audit]\nreport = \"1s\"\n"})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	other := &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1}
	if out, errOut, code := l.CreelAs(guest, "", "run", "--image", "base", "--agent", "coder", "--", "/bin/true"); code != 0 {
		t.Fatal(out, errOut)
	}
	finding := is("fact", "agent.finding")
	found := awaitAudit(t, l, "a finding", func(r map[string]any) bool { return finding(r) && r["agent"] == "coder" })
	if detail, _ := found["detail"].(map[string]any); detail["caller_uid"] != fmt.Sprint(stranger) || detail["what"] == "" || detail["fix"] == "" {
		t.Errorf("it is %v", found)
	}
	after := found["seq"].(float64)
	awaitAudit(t, l, "the next report", func(r map[string]any) bool {
		return is("fact", "agent.report")(r) && r["seq"].(float64) > after && r["detail"].(map[string]any)["agents"] == "1"
	})
	if n := len(auditRecords(t, l, guest, "--action", "agent.finding")); n == 0 {
		t.Error("its caller reads nothing of it")
	}
	if n := len(auditRecords(t, l, other, "--action", "agent.finding")); n != 0 {
		t.Errorf("another caller reads %d findings", n)
	}
}

// TestExpiredAgent: an agent whose time is over has its sandboxes ended and no
// more made, also by the next daemon, until an operator gives it more.
func TestExpiredAgent(t *testing.T) {
	l := lab.New(t, lab.Options{Config: fmt.Sprintf("\n[[caller]]\nmatch = \"uid:%d\"\nagent_ttl = \"1h\"\n", stranger)})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	creel := func(as *syscall.Credential, args ...string) (string, int) {
		t.Helper()
		out, errOut, code := l.CreelAs(as, "", args...)
		return out + errOut, code
	}
	id, code := creel(guest, "run", "-d", "--image", "base", "--agent", "coder")
	if code != 0 {
		t.Fatal(id)
	}
	id = strings.TrimSpace(id)
	out, _ := creel(guest, "agent", "show", "coder")
	var a api.Agent
	if err := json.Unmarshal([]byte(out), &a); err != nil || a.State != "active" || a.Expires == nil || !a.Expires.Ceiling || !a.Expires.Time.Equal(a.Created.Add(time.Hour)) {
		t.Errorf("the agent is %s, %v", out, err)
	}
	if out, _ := creel(guest, "agent", "report"); !strings.Contains(out, "expires ") {
		t.Errorf("the report has no word of it:\n%s", out)
	}
	for _, args := range [][]string{{"--in", "2h"}, {"--never"}} {
		if out, code := creel(guest, append([]string{"agent", "expire", "coder"}, args...)...); code != 1 || !strings.Contains(out, "only an operator") {
			t.Errorf("its caller, %v: %d %s", args, code, out)
		}
	}
	if out, code := creel(guest, "agent", "expire", "coder", "--in", "0s"); code != 0 || !strings.Contains(out, "expired") {
		t.Errorf("%d %s", code, out)
	}
	if res, err := l.Wait(t.Context(), id); err != nil || res.Reason != api.ReasonExpired {
		t.Errorf("its sandbox: %+v, %v", res, err)
	}
	for range 2 {
		if out, code := creel(guest, "run", "-d", "--image", "base", "--agent", "coder"); code != 125 || !strings.Contains(out, "expired at") {
			t.Errorf("it has another: %d %s", code, out)
		}
		if out, _ := creel(guest, "agent", "ls"); !strings.Contains(out, "expired") {
			t.Errorf("it is\n%s", out)
		}
		l.Kill()
		l.Start()
		open(t, l)
	}
	if out, code := creel(guest, "agent", "expire", "coder", "--in", "1h"); code != 1 || !strings.Contains(out, "only an operator") {
		t.Errorf("its caller revives it: %d %s", code, out)
	}
	if out, code := creel(nil, "agent", "expire", a.ID, "--never"); code != 0 || !strings.Contains(out, "active") {
		t.Errorf("an operator: %d %s", code, out)
	}
	id, code = creel(guest, "run", "-d", "--image", "base", "--agent", "coder")
	if code != 0 {
		t.Errorf("revived: %s", id)
	}
	// While no daemon runs, too.
	if out, code := creel(guest, "agent", "expire", "coder", "--in", "2s"); code != 0 {
		t.Error(out)
	}
	l.Kill()
	time.Sleep(2 * time.Second)
	l.Start()
	if res, err := l.Wait(t.Context(), strings.TrimSpace(id)); err != nil || res.Reason != api.ReasonExpired {
		t.Errorf("its sandbox: %+v, %v", res, err)
	}
	if out, _, code := l.Creel("audit", "log", "--action", "agent.expire"); code != 0 || strings.Count(out, "agent.expire") < 5 {
		t.Errorf("on record: %d\n%s", code, out)
	}
}
