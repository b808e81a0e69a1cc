package policy_test

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
)

// compile reads a configuration.
func compile(t *testing.T, text string) (*policy.Policy, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "creeld.toml")
	if err := os.WriteFile(path, []byte("version = 1\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Compile(cfg)
}

func rules(t *testing.T, text string) *policy.Rules {
	t.Helper()
	p, err := compile(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return policy.NewRules(p)
}

// TestWho: the user's table comes before a group's, of groups the first in the
// file, then everybody's; operators have none.
func TestWho(t *testing.T) {
	r := rules(t, `operators = ["uid:50", "gid:60"]
[[caller]]
match = "default"
[[caller]]
match = "gid:10"
[[caller]]
match = "gid:11"
[[caller]]
match = "uid:2000"
`)
	for _, tt := range []struct {
		c    peer.Cred
		want string
	}{
		{peer.Cred{UID: 0}, "operator"},
		{peer.Cred{UID: 50, GID: 10}, "operator"},
		{peer.Cred{UID: 2000, GID: 60}, "operator"},
		{peer.Cred{UID: 1, Groups: []uint32{7, 60, 61}}, "operator"},
		{peer.Cred{UID: 2000, GID: 10}, "uid:2000"},
		{peer.Cred{UID: 2001, GID: 11, Groups: []uint32{10}}, "gid:10"},
		{peer.Cred{UID: 2001, GID: 11}, "gid:11"},
		{peer.Cred{UID: 10, GID: 2000}, "default"}, // a uid is no gid
		{peer.Cred{UID: 60, GID: 50}, "default"},
	} {
		got := "operator"
		if !r.Operator(tt.c) {
			got = r.Ceiling(tt.c).Name
		} else if r.Ceiling(tt.c) != nil {
			t.Errorf("%+v: an operator has a ceiling", tt.c)
		}
		if got != tt.want || !r.Known(tt.c) {
			t.Errorf("%+v is %s, want %s", tt.c, got, tt.want)
		}
		// From inside a sandbox of its: no operator, and with no other ceiling.
		inside := tt.c
		inside.Via = "box"
		if r.Operator(inside) || !r.Known(inside) || r.Ceiling(inside) != r.Ceiling(tt.c) {
			t.Errorf("%+v is an operator: %t, known: %t, of ceiling %v", inside, r.Operator(inside), r.Known(inside), r.Ceiling(inside))
		}
	}
}

// TestNobody: whom no table matches is not known, has few connections, and is
// refused whatever it asks.
func TestNobody(t *testing.T) {
	r := rules(t, "socket_group = \"no-such-group-here\"\n")
	c := peer.Cred{UID: 1234, GID: 1234}
	if r.Known(c) || r.Operator(c) || r.Ceiling(c) != nil || r.Connections(c) != 4 {
		t.Error("a caller without a table is somebody")
	}
	if _, err := r.Judge(t.Context(), policy.Question{Caller: c}); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("Judge: %v", err)
	}
	if _, err := r.Room(c, sum(0), sum(0), sum(1)); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("Room: %v", err)
	}
}

// TestNames: names are looked up when the configuration is read, and one that
// is not there, or that is the same as another, is an error; all are told.
func TestNames(t *testing.T) {
	kerneltest.Require(t, kerneltest.Users)
	root, err := user.LookupId("0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = compile(t, fmt.Sprintf(`operators = ["group:no-such-group-here"]
[[caller]]
match = "user:no-such-user-here"
[[caller]]
match = "user:%s"
[[caller]]
match = "uid:0"
mounts = ["/no/such/directory"]
[[caller]]
match = "uid:4294967295"
`, root.Username))
	for _, want := range []string{
		`no group "no-such-group-here"`, `no user "no-such-user-here"`, "user:" + root.Username + " and uid:0 are the same",
		"open /no/such/directory: no such file or directory", `"4294967295" is not an id`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

// TestRate: a minute's worth at once, then as it fills, with the time to wait;
// callers do not use up each other's.
func TestRate(t *testing.T) {
	r := rules(t, "[[caller]]\nmatch = \"default\"\nspawn_rate = 6\nexec_rate = 0\n")
	a, b := peer.Cred{UID: 1}, peer.Cred{UID: 2}
	synctest.Test(t, func(t *testing.T) {
		for i := range 6 {
			if err := r.Spawn(a); err != nil {
				t.Fatalf("spawn %d: %v", i, err)
			}
		}
		err := r.Spawn(a)
		e, ok := err.(*api.Error) //nolint:errorlint // it is to be the very answer
		if !ok || e.Code != api.CodeExhausted || e.Retry < 9*time.Second || e.Retry > 10*time.Second {
			t.Fatalf("the seventh: %v", err)
		}
		if err := r.Spawn(b); err != nil {
			t.Errorf("another caller: %v", err)
		}
		time.Sleep(e.Retry + time.Millisecond)
		if err := r.Spawn(a); err != nil {
			t.Errorf("after the time it was told: %v", err)
		}
		if err := r.Spawn(a); err == nil {
			t.Error("one more than the rate")
		}
		for range 10_000 {
			if r.Exec(a) != nil || r.Spawn(peer.Cred{UID: 0}) != nil {
				t.Fatal("0 is a bound, or root has one")
			}
		}
	})
}
