package integration_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestEvidenceElsewhere: what the daemon proved is verified from a file and a
// public key alone, says what it is of, and outlives the daemon that signed it.
func TestEvidenceElsewhere(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Agent: "coder"})
	dir := t.TempDir()
	save := func(name string, args ...string) string {
		t.Helper()
		out, stderr, code := l.Creel(args...)
		if code != 0 {
			t.Fatalf("creel %v: %d: %s", args, code, stderr)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	key := save("key.pem", "audit", "key")
	if st, err := os.Stat(filepath.Join(l.StateDir(), "box.key")); err != nil || st.Mode() != 0o600 {
		t.Fatalf("box.key: mode %v, error %v, want 0600", st.Mode(), err)
	}
	l.Kill()
	l.Start()
	save("again.json", "evidence", "--fresh", "--json", sb.ID)
	file := save("evidence.json", "evidence", "--json", sb.ID)
	verified := save("verified.json", "--socket", "/nowhere", "evidence", "--verify", "--file", file, "--key", key, "--json")

	var list []api.EvidenceStatement
	text, err := os.ReadFile(verified)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 { // spawn, reconcile, request
		t.Errorf("%d pieces, want 3", len(list))
	}
	for _, s := range list {
		if s.Sandbox != sb.ID || s.ImageDigest != sb.ImageDigest || s.Agent != "coder" || !strings.HasPrefix(s.SpecDigest, "sha256:") ||
			!strings.HasPrefix(s.Runtime, "crun 1.") || s.Creel == "" || s.Kernel == "" || s.Containerd == "" || len(s.Controls) < 20 || s.Taken.IsZero() {
			t.Errorf("signed: %+v", s)
		}
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(mustRead(t, file)), `"ok": true`, `"ok": false`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := l.Creel("evidence", "--verify", "--file", file, "--key", key); code != 1 || !strings.Contains(stderr, "changed") {
		t.Errorf("changed evidence: code %d, %s", code, stderr)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
