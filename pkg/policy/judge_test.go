package policy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
)

func sum(n int) admission.Sum {
	return admission.SumOf(false, api.Limits{Memory: api.Size(n) << 20, CPUs: float64(n), Pids: int64(n)})
}

// TestMountRoots: a directory is in a root or not, by what it is and not by
// what it is called.
func TestMountRoots(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := t.TempDir()
	for _, d := range []string{"root/in/side", "rooted", "ro/x"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "rooted"), filepath.Join(dir, "root/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "root/in"), filepath.Join(dir, "rooted/in")); err != nil {
		t.Fatal(err)
	}
	me := uint32(os.Getuid())
	r := rules(t, "[[caller]]\nmatch = \"default\"\nmounts = [\""+dir+"/root\", \""+dir+"/ro:ro\"]\n"+
		"[[caller]]\nmatch = \"uid:5001\"\nmounts = [\"own\", \"*:ro\"]\n[[caller]]\nmatch = \"uid:5002\"\nmounts = []\n")
	for _, tt := range []struct {
		path     string
		uid      uint32
		readOnly bool
		ok       bool
	}{
		{"root", 5000, false, true},
		{"root/in/side", 5000, false, true},
		{"root/../root/in", 5000, false, true},
		{"rooted/in", 5000, false, true}, // a link into it
		{"rooted", 5000, false, false},
		{"root/link", 5000, false, false}, // a link out of it
		{"root/..", 5000, true, false},
		{"ro/x", 5000, true, true},
		{"ro/x", 5000, false, false},
		{"rooted", 5001, false, me == 5001},
		{"rooted", 5001, true, true},
		{"root", 5002, true, false},
	} {
		f, err := os.Open(filepath.Join(dir, tt.path))
		if err != nil {
			t.Fatal(err)
		}
		a := &admission.Admitted{Request: api.SpawnRequest{
			Profile: "default", Runtime: "crun", Image: "base", Mounts: []api.Mount{{Source: tt.path, Target: "/w", ReadOnly: tt.readOnly}},
		}}
		got, err := r.Judge(t.Context(), policy.Question{Caller: peer.Cred{UID: tt.uid}, Admitted: a, Dirs: []*os.File{f}})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := admission.Refusal(got); (err == nil) != tt.ok {
			t.Errorf("%s of uid %d, read-only %t: %v", tt.path, tt.uid, tt.readOnly, err)
		}
	}
	// The root is another directory by now: nothing is in it.
	if err := errors.Join(os.Rename(filepath.Join(dir, "root"), filepath.Join(dir, "was")), os.Mkdir(filepath.Join(dir, "root"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"root", "was/in"} {
		f, err := os.Open(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		in, err := r.Ceiling(peer.Cred{UID: 5000}).Holds(peer.Cred{}, f, nil)
		f.Close()
		if err != nil || in[0] {
			t.Errorf("%s after the root was replaced: %v, %v", p, in, err)
		}
	}
}

// TestJudge lists every rule that refuses, with what would mend it.
func TestJudge(t *testing.T) {
	r := rules(t, "[[caller]]\nmatch = \"default\"\nprofiles = [\"strict\"]\nruntimes = [\"crun\"]\nimages = [\"team/*\", \"base\"]\n")
	ask := func(profile, runtime, image string, names ...string) error {
		a := &admission.Admitted{Request: api.SpawnRequest{Profile: profile, Runtime: runtime, Image: image}}
		rs, err := r.Judge(t.Context(), policy.Question{
			Caller: peer.Cred{UID: 9}, Admitted: a, Names: func(context.Context) ([]string, error) { return names, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return admission.Refusal(rs)
	}
	for _, tt := range []struct {
		profile, runtime, image string
		names                   []string
		rules                   string // of the refusal
	}{
		{"strict", "crun", "team/tools:1", []string{"team/tools:1"}, ""},
		{"strict", "crun", "base", []string{"base:latest"}, ""},
		{"strict", "crun", "sha256:0", []string{"other:1", "team/x:2"}, ""},
		{"strict", "crun", "base:2", []string{"base:2"}, "ceiling.images"},
		{"strict", "crun", "team/a/b", []string{"team/a/b:latest"}, "ceiling.images"},
		{"strict", "crun", "team/mine", nil, "ceiling.images"}, // its own, by that name
		{"default", "runc", "x", []string{"x"}, "ceiling.profiles ceiling.runtimes ceiling.images"},
	} {
		err := ask(tt.profile, tt.runtime, tt.image, tt.names...)
		if (err == nil) != (tt.rules == "") || err != nil && api.CodeOf(err) != api.CodeDenied {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		for rule := range strings.FieldsSeq(tt.rules) {
			var e *api.Error
			if !errors.As(err, &e) || e.Hint == "" || !strings.Contains(e.Error(), rule) && !strings.Contains(ruleNames(e), rule) {
				t.Errorf("%+v: %v does not name %s", tt, err, rule)
			}
		}
	}
}

// TestSocket: nobody's sandboxes have a socket of their own unless the ceiling
// says so; of one that does not ask there is no rule.
func TestSocket(t *testing.T) {
	for key, ok := range map[string]bool{"": false, "socket = false": false, "socket = true": true} {
		r := rules(t, "[[caller]]\nmatch = \"default\"\n"+key+"\n")
		for _, asked := range []bool{true, false} {
			a := &admission.Admitted{Request: api.SpawnRequest{Profile: "default", Runtime: "crun", Image: "base", Socket: asked}}
			rs, err := r.Judge(t.Context(), policy.Question{Caller: peer.Cred{UID: 9}, Admitted: a})
			if err != nil {
				t.Fatal(err)
			}
			said := fmt.Sprintf("%+v", rs)
			if strings.Contains(said, "ceiling.socket") != asked || (admission.Refusal(rs) == nil) != (ok || !asked) {
				t.Errorf("%q, asked %t: %s", key, asked, said)
			}
			if asked && !ok && !strings.Contains(said, "leave it out, or have the operator set socket of [[caller]] default") {
				t.Errorf("no fix: %s", said)
			}
		}
	}
}

func ruleNames(e *api.Error) (s string) {
	for _, p := range e.Problems {
		s += p.Rule + " "
	}
	return s
}

// TestRoomSaysNothingOfOthers: a caller is told whether there is room, and not
// how much others have; an operator, who sees all, is.
func TestRoomSaysNothingOfOthers(t *testing.T) {
	r := rules(t, "operators = [\"uid:50\"]\n[limits.max]\nsandboxes = 100\nmemory = \"777M\"\ncpus = 50.0\npids = 40\n[[caller]]\nmatch = \"default\"\nsandboxes = 0\nmemory = 0\ncpus = 0\npids = 0\n")
	said := func(uid uint32, want int) string {
		t.Helper()
		rs, err := r.Room(peer.Cred{UID: uid}, admission.Sum{}, sum(33), sum(want))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%+v %v", rs, admission.Refusal(rs))
	}
	for _, want := range []int{1, 30} { // with room, and with too little
		for _, n := range []string{"33", fmt.Sprint(33 + want), "744", "17", "at most"} { // what others have, with this one, what is left
			if got := said(9, want); strings.Contains(got, n) || !strings.Contains(got, "limits.max.memory") {
				t.Errorf("a caller is told %s: %s", n, got)
			}
		}
	}
	if got := said(9, 30); !strings.Contains(got, "limits.max.cpus is 50, and all sandboxes with this one would have more") && !strings.Contains(got, "2 rules refuse it") {
		t.Errorf("it is not told why: %s", got)
	}
	// From inside a sandbox nobody is told of the caller's others, operators neither.
	for _, uid := range []uint32{9, 50} {
		c := peer.Cred{UID: uid, Via: "box"}
		rs, err := rules(t, "operators = [\"uid:50\"]\n[limits.max]\nkept_per_user = 100\n[[caller]]\nmatch = \"default\"\n").Room(c, sum(17), sum(33), sum(1))
		if got := fmt.Sprintf("%+v", rs); err != nil || len(rs) == 0 || strings.Contains(got, "17") || strings.Contains(got, "18") || strings.Contains(got, "33") {
			t.Errorf("from inside, uid %d is told %s, %v", uid, got, err)
		}
		if _, err := r.Judge(t.Context(), policy.Question{Caller: c, Admitted: &admission.Admitted{}}); uid == 50 && err != nil {
			t.Errorf("an operator's sandbox: %v", err)
		}
	}
	if got := said(50, 30); !strings.Contains(got, "33M, with this one 63M") {
		t.Errorf("an operator is told %s", got)
	}
}
