package integration_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// auditRecords are the records that the lab's root, or somebody else, is shown.
func auditRecords(t *testing.T, l *lab.Lab, cred *syscall.Credential, args ...string) (out []map[string]any) {
	t.Helper()
	text, stderr, code := l.CreelAs(cred, "", append([]string{"audit", "log", "--json"}, args...)...)
	if code != 0 {
		t.Fatalf("creel audit log %v: %d: %s", args, code, stderr)
	}
	for line := range strings.Lines(text) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, r)
	}
	return out
}

// awaitAudit waits until there is a record that matches.
func awaitAudit(t *testing.T, l *lab.Lab, what string, match func(r map[string]any) bool) (found map[string]any) {
	t.Helper()
	l.Eventually("the audit log has "+what, 20*time.Second, func() error {
		for _, r := range auditRecords(t, l, nil) {
			if match(r) {
				found = r
				return nil
			}
		}
		return fmt.Errorf("it has not")
	})
	return found
}

func is(kind, action string) func(map[string]any) bool {
	return func(r map[string]any) bool { return r["kind"] == kind && r["action"] == action }
}

// verifyAudit verifies the daemon's files as they are.
func verifyAudit(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key.pem")
	out, stderr, code := l.Creel("audit", "key")
	if code != 0 {
		t.Fatal(stderr)
	}
	if err := os.WriteFile(key, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	out, stderr, code = l.Creel(slices.Concat([]string{"--socket", "/nowhere", "audit", "verify", "--key", key}, args, []string{filepath.Join(l.StateDir(), "audit")})...)
	if code != 0 {
		t.Fatalf("creel audit verify: %d: %s%s", code, out, stderr)
	}
	return out
}

// TestAudit: what a caller does is on the log, before and after, with who and
// what and nothing secret; each sees its own; and it verifies.
func TestAudit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	const secret = "hunter2-not-to-be-found"
	alice, bob := &syscall.Credential{Uid: 54321, Gid: 54322, Groups: []uint32{54323}}, &syscall.Credential{Uid: 54331, Gid: 54331}
	stdout, stderr, code := l.CreelAs(alice, "", "run", "-d", "--name", "box", "--agent", "coder", "-e", "TOKEN="+secret)
	if code != 0 {
		t.Fatal(stderr)
	}
	id := strings.TrimSpace(stdout)
	if _, stderr, code = l.CreelAs(alice, secret, "exec", "-i", "-e", "PASSWORD="+secret, "box", "--", "/bin/sh", "-c", "cat >/dev/null; exit 3"); code != 3 {
		t.Fatalf("exec: %d: %s", code, stderr)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(secret), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code = l.Creel("cp", file, id+":/tmp/f"); code != 0 {
		t.Fatal(stderr)
	}
	if _, _, code = l.CreelAs(bob, "", "run", "--profile", "none-such", "--", "true"); code != 125 {
		t.Fatalf("a profile that is not there: %d", code)
	}
	if _, stderr, code = l.CreelAs(alice, "", "rm", "-f", "box"); code != 0 {
		t.Fatal(stderr)
	}

	awaitAudit(t, l, "the removal", is("outcome", "sandbox.remove"))
	spawn := awaitAudit(t, l, "the spawn", is("intent", "sandbox.spawn"))
	who, _ := spawn["who"].(map[string]any)
	if who["uid"] != 54321.0 || who["gid"] != 54322.0 || fmt.Sprint(who["groups"]) != "[54323]" || who["exe"] != filepath.Join(l.Dir, "creel") {
		t.Errorf("who spawned: %v", who)
	}
	decided, _ := spawn["decided"].(map[string]any)
	if spawn["sandbox"] != id || spawn["agent"] != "coder" || decided["profile"] != "default" || decided["rule"] != "ceiling default, profile default of embedded" {
		t.Errorf("intent: %v", spawn)
	}
	outcome := awaitAudit(t, l, "the spawn's outcome", func(r map[string]any) bool {
		return is("outcome", "sandbox.spawn")(r) && r["op"] == spawn["op"]
	})
	digests, _ := outcome["digests"].(map[string]any)
	for _, d := range []string{"image", "spec", "evidence"} {
		if s, _ := digests[d].(string); !strings.HasPrefix(s, "sha256:") || len(s) != 71 {
			t.Errorf("digest of %s: %q", d, s)
		}
	}
	exec := awaitAudit(t, l, "the exec", is("intent", "exec.start"))
	if fmt.Sprint(exec["command"]) != "[/bin/sh -c cat >/dev/null; exit 3]" {
		t.Errorf("command: %v", exec["command"])
	}
	ended := awaitAudit(t, l, "the exec's end", is("fact", "exec.ended"))
	if res, _ := ended["result"].(map[string]any); res["exit"] != 3.0 || ended["agent"] != "coder" {
		t.Errorf("end: %v", ended)
	}
	wrote := awaitAudit(t, l, "the copy", is("outcome", "file.write"))
	if detail, _ := wrote["detail"].(map[string]any); detail["bytes"] != fmt.Sprint(len(secret)) {
		t.Errorf("copied: %v", wrote)
	}
	awaitAudit(t, l, "the refusal", func(r map[string]any) bool {
		res, _ := r["result"].(map[string]any)
		return is("outcome", "sandbox.spawn")(r) && res["code"] == "invalid_argument" && r["asked"] != nil
	})
	for _, action := range []string{"daemon.start", "policy.load", "sandbox.stopped"} {
		awaitAudit(t, l, action, is("fact", action))
	}

	for _, r := range auditRecords(t, l, alice) {
		who, _ := r["who"].(map[string]any)
		detail, _ := r["detail"].(map[string]any)
		if (who["uid"] != 54321.0 && detail["caller_uid"] != "54321") || r["seq"] != nil || r["prev"] != nil {
			t.Errorf("alice sees %v", r)
		}
	}
	if n := len(auditRecords(t, l, bob)); n != 1 {
		t.Errorf("bob sees %d records, want the one of his refusal", n)
	}
	if n := len(auditRecords(t, l, bob, "--caller", "54321")); n != 0 {
		t.Errorf("bob sees %d records of alice's", n)
	}
	for _, verb := range []string{"export", "anchor"} {
		if _, stderr, code := l.CreelAs(alice, "", "audit", verb); code != 1 || !strings.Contains(stderr, "root") {
			t.Errorf("creel audit %s by alice: %d %s", verb, code, stderr)
		}
	}
	paths, err := audit.Files(filepath.Join(l.StateDir(), "audit"))
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	if text := string(mustRead(t, paths[0])); strings.Contains(text, secret) || !strings.Contains(text, `"env":"TOKEN"`) {
		t.Errorf("a secret is on the log, or the names of the environment are not:\n%s", text)
	}

	anchor := filepath.Join(t.TempDir(), "anchor")
	out, stderr, code := l.Creel("audit", "anchor")
	if code != 0 {
		t.Fatal(stderr)
	}
	if err := os.WriteFile(anchor, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Kill()
	l.Start()
	if out := verifyAudit(t, l, "--anchor", anchor); !strings.Contains(out, "1 of 1 anchors found") {
		t.Error(out)
	}
}

// TestAuditDigest: commands are recorded as configured.
func TestAuditDigest(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[audit]\ncommands = \"digest\"\n"})
	sb := l.Spawn(api.SpawnRequest{})
	l.Sh(sb.ID, "true # not to be found")
	exec := awaitAudit(t, l, "the exec", is("intent", "exec.start"))
	digests, _ := exec["digests"].(map[string]any)
	if s, _ := digests["command"].(string); !strings.HasPrefix(s, "sha256:") || exec["command"] != nil {
		t.Errorf("recorded: %v", exec)
	}
}

// TestAuditFull: on a full disk nothing new begins, what runs can be stopped
// and removed, that is recorded, and with room all goes on.
func TestAuditFull(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	l := lab.New(t, lab.Options{Config: fmt.Sprintf("[audit]\ndir = %q\n", dir)})
	running := []*api.Sandbox{l.Spawn(api.SpawnRequest{}), l.Spawn(api.SpawnRequest{}), l.Spawn(api.SpawnRequest{})}
	ballast := filepath.Join(dir, "ballast")
	f, err := os.OpenFile(ballast, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 4096); err == nil; {
		_, err = f.Write(b)
	}
	_ = f.Close()
	// What is allocated ahead is used up first.
	refused := func(what string, fn func() error) {
		t.Helper()
		l.Eventually(what+" is refused", 30*time.Second, func() error {
			for range 20 {
				err := fn()
				if api.CodeOf(err) == api.CodeUnavailable && strings.Contains(err.Error(), "audit log's disk is full") {
					return nil
				}
			}
			return fmt.Errorf("it is not")
		})
	}
	pad := map[string]string{"PAD": ""}
	command := []string{"/bin/true", strings.Repeat("x", 4000)}
	refused("an exec", func() error {
		_, err := l.ExecOnce(t.Context(), running[0].ID, api.ExecRequest{Command: command, Env: pad})
		return err
	})
	refused("a spawn", func() error {
		res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{})
		if err == nil {
			_ = l.Remove(t.Context(), res.Sandbox.ID, true)
		}
		return err
	})
	if _, err := l.Client.Stop(t.Context(), running[0].ID, nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := l.Client.Kill(t.Context(), running[1].ID, ""); err != nil {
		t.Errorf("kill: %v", err)
	}
	if err := l.Remove(t.Context(), running[2].ID, true); err != nil {
		t.Errorf("remove: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.Spawn(api.SpawnRequest{})
	for i, action := range []string{"sandbox.stop", "sandbox.kill", "sandbox.remove"} {
		awaitAudit(t, l, action, func(r map[string]any) bool {
			return is("intent", action)(r) && r["sandbox"] == running[i].ID
		})
	}
}
