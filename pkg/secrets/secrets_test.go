package secrets_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/secrets"
)

const value = "the-value-of-the-secret"

func open(t *testing.T, dir string) *secrets.Store {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := secrets.Key("", "", filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := secrets.Open(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func code(err error) api.Code {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Code
	}
	return ""
}

var (
	mine  = secrets.Ref{Owner: secrets.Owner{UID: 1000}, Name: "key"}
	box   = secrets.Ref{Owner: secrets.Owner{Box: true}, Name: "key"}
	other = secrets.Ref{Owner: secrets.Owner{UID: 1001}, Name: "key"}
)

// TestStore: what was set is there after a restart, each caller's apart, and no
// value is in any file or answer.
func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	s := open(t, dir)
	req := api.SecretRequest{Value: value, Rule: "API.example.com", Env: "KEY", Agents: []string{"team-*"}}
	got, err := s.Set(mine, api.Caller{UID: 1000}, req)
	if err != nil {
		t.Fatal(err)
	}
	want := api.Secret{Name: "key", Rule: "https api.example.com:443", Place: api.SecretPlace{Kind: "bearer"}, Env: "KEY", Agents: []string{"team-*"}, Caller: api.Caller{UID: 1000}, Set: got.Set}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Set(box, api.Caller{}, api.SecretRequest{Value: "of-the-box", Rule: "box.example.com GET /x/**", Place: api.SecretPlace{Kind: "query", Name: "k"}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if l := s.List(1000); len(l) != 2 || l[0].Box || !l[1].Box {
			t.Errorf("%+v", l)
		}
		if l := s.List(1001); len(l) != 1 || !l[0].Box {
			t.Errorf("%+v", l)
		}
		if r, _, err := s.Find(1000, "key"); r != mine || err != nil {
			t.Errorf("%v, %v", r, err)
		}
		if r, _, err := s.Find(1001, "key"); r != box || err != nil {
			t.Errorf("%v, %v", r, err)
		}
		if _, _, err := s.Find(1000, "none"); code(err) != api.CodeNotFound {
			t.Error(err)
		}
		c, ok := s.Use(mine, "one", "team-a")
		if !ok || c.Value != value || c.Placeholder == "" || strings.Contains(c.Placeholder, value) {
			t.Errorf("%+v, %v", c, ok)
		}
		if _, again := s.Env(mine, "one"); again != c.Placeholder {
			t.Errorf("the placeholder changed from %s to %s", c.Placeholder, again)
		}
		if _, b := s.Env(mine, "two"); b == c.Placeholder {
			t.Error("two sandboxes have one placeholder")
		}
		if _, ok := s.Use(mine, "one", "another"); ok {
			t.Error("another agent has it")
		}
		if _, ok := s.Use(other, "one", "team-a"); ok {
			t.Error("another caller has it")
		}
		s.Close()
		s = open(t, dir)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	for _, n := range names {
		text, err := os.ReadFile(n)
		st, serr := os.Stat(n)
		if err != nil || serr != nil || st.Mode().Perm() != 0o600 || bytes.Contains(text, []byte(value)) {
			t.Errorf("%s: %v, %v, %v: %s", n, st.Mode(), err, serr, text)
		}
	}
	s.Used(mine, time.Now())
	if _, err := s.Set(mine, api.Caller{UID: 1000}, api.SecretRequest{Value: "another-value", Rule: "api.example.com"}); err != nil {
		t.Fatal(err)
	}
	if c, ok := s.Use(mine, "one", "anyone"); !ok || c.Value != "another-value" {
		t.Errorf("%+v", c)
	}
	if l := s.List(1000); l[0].Uses != 1 || l[0].LastUsed.IsZero() {
		t.Errorf("%+v", l)
	}
	if err := s.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(mine); code(err) != api.CodeNotFound {
		t.Error(err)
	}
	if _, ok := s.Use(mine, "one", "anyone"); ok {
		t.Error("what was removed is used")
	}
}

// TestSealed: nothing of a secret can be changed, or put in another's place, by
// who can write the files.
func TestSealed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	s := open(t, dir)
	if _, err := s.Set(mine, api.Caller{UID: 1000}, api.SecretRequest{Value: value, Rule: "api.example.com"}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	file := filepath.Join(dir, "1000.key.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := secrets.Key("", "", filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][2]string{
		"host": {"api.example.com", "evil.example.com"}, "sealed": {`"sealed":"`, `"sealed":"AAAA`}, "caller": {`"uid":1000`, `"uid":1001`}, "cut": {`}`, ``},
	} {
		text := strings.Replace(string(good), bad[0], bad[1], 1)
		if text == string(good) {
			t.Fatalf("%s is not in %s", name, good)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		damaged(t, dir, key, name)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, filepath.Join(dir, "1001.key.json")); err != nil {
		t.Fatal(err)
	}
	damaged(t, dir, key, "another's place")
	if err := os.Rename(filepath.Join(dir, "1001.key.json"), file); err != nil {
		t.Fatal(err)
	}
	key[0] ^= 1
	damaged(t, dir, key, "another key")
	key[0] ^= 1
	if s, err = secrets.Open(dir, key); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if c, ok := s.Use(mine, "one", "a"); !ok || c.Value != value || len(s.Damaged()) != 0 {
		t.Errorf("%+v, %v, %v", c, ok, s.Damaged())
	}
}

// damaged fails the test if a secret can be used.
func damaged(t *testing.T, dir string, key []byte, what string) {
	t.Helper()
	s, err := secrets.Open(dir, key)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer s.Close()
	if all := s.Damaged(); len(all) != 1 || len(s.List(1000))+len(s.List(1001)) != 0 {
		t.Errorf("%s: %v", what, all)
	}
	for _, r := range []secrets.Ref{mine, other} {
		if _, ok := s.Use(r, "one", "a"); ok {
			t.Errorf("%s: it is used", what)
		}
		if _, _, err := s.Find(r.Owner.UID, "key"); err == nil {
			t.Errorf("%s: it is found", what)
		}
	}
}

func TestKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	first, err := secrets.Key(dir, "none", file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := secrets.Key("", "", file); err != nil || !bytes.Equal(first, again) {
		t.Errorf("%x, %v", again, err)
	}
	given := strings.Repeat("ab", 32) + "\n"
	if err := os.WriteFile(filepath.Join(dir, "given"), []byte(given), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err := secrets.Key(dir, "given", file); err != nil || k[0] != 0xab {
		t.Errorf("%x, %v", k, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "given"), []byte("ab"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Key(dir, "given", file); err == nil {
		t.Error("a short key")
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Key("", "", file); err == nil {
		t.Error("a key that others can read")
	}
}

func TestCheck(t *testing.T) {
	req := api.SecretRequest{Value: "short", Rule: "*.example.com", Place: api.SecretPlace{Kind: "cookie"}, Env: "A B", Agents: []string{"["}}
	err := secrets.Check("A", &req)
	e, ok := errors.AsType[*api.Error](err)
	if !ok || len(e.Problems) != 6 {
		t.Fatalf("%v", err)
	}
	if text, _ := json.Marshal(e); strings.Contains(string(text), "short\"") {
		t.Errorf("the value is in %s", text)
	}
}

func TestAllowed(t *testing.T) {
	own := secrets.Ref{Owner: secrets.Owner{Box: true}, Name: "own"}
	for _, tt := range []struct {
		list []string
		r    secrets.Ref
		want bool
	}{
		{nil, mine, false},
		{[]string{"own"}, mine, true},
		{[]string{"*"}, mine, false},
		{[]string{"*"}, box, true},
		{[]string{"own"}, box, false},
		{[]string{"k*"}, box, true},
		{[]string{"x", "key"}, box, true},
		{[]string{"own"}, own, false},
		{[]string{"*"}, own, true},
	} {
		if got := secrets.Allowed(tt.list, tt.r); got != tt.want {
			t.Errorf("%v has %v: %v", tt.list, tt.r, got)
		}
	}
}
