package agents_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func idle(uint32, string) bool { return false }

// use makes an agent do something, and keeps it.
func use(t *testing.T, r *agents.Registry, id string, uid uint32, name string, at time.Time, used api.Grant, busy func(uint32, string) bool) (api.Agent, *api.Agent, error) {
	t.Helper()
	a, forget, err := r.Use(id, api.Caller{UID: uid}, name, at, &api.Grant{Ceiling: "default"}, 0, used, busy)
	if err == nil {
		r.Put(a)
		if forget != nil {
			r.Drop(forget.Caller.UID, forget.Name)
		}
	}
	return a, forget, err
}

// TestUse: an agent keeps its id and creation, and what it used adds up within
// bounds.
func TestUse(t *testing.T) {
	r := agents.New(nil)
	if _, _, err := use(t, r, "id1", 1, "coder", start, api.Grant{Profiles: []string{"a"}, Memory: 5}, idle); err != nil {
		t.Fatal(err)
	}
	got, _, err := use(t, r, "id2", 1, "coder", start.Add(time.Hour), api.Grant{Profiles: []string{"b"}, Memory: 3, Pids: 2}, idle)
	if err != nil || got.ID != "id1" || !got.Created.Equal(start) || !got.LastUsed.Equal(start.Add(time.Hour)) || got.Spawns != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, got.Used.Profiles); diff != "" || got.Used.Memory != 5 || got.Used.Pids != 2 {
		t.Errorf("used %+v\n%s", got.Used, diff)
	}
	for i := range 100 {
		got, _, err = use(t, r, "", 1, "coder", start, api.Grant{Mounts: []string{fmt.Sprintf("/%d", i), strings.Repeat("x", 5000)}}, idle)
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := len(got.Used.Mounts); n != 32 || len(got.Used.Mounts[31]) != 256 || got.Used.Mounts[30] != "/99" {
		t.Errorf("%d mounts are remembered: %.300q", n, got.Used.Mounts)
	}
	if other, _, _ := use(t, r, "id3", 2, "coder", start, api.Grant{}, idle); other.ID != "id3" {
		t.Errorf("another caller's agent of that name is %s", other.ID)
	}
}

// TestRevoke: a revoked agent has nothing more; what an operator revoked, only
// an operator restores, and what is on disk says so again.
func TestRevoke(t *testing.T) {
	r := agents.New(nil)
	a, _, err := use(t, r, "id1", 1, "coder", start, api.Grant{}, idle)
	if err != nil {
		t.Fatal(err)
	}
	own := agents.Revoke(a, 1, false, start)
	r = agents.New([]api.Agent{own})
	if _, _, err := use(t, r, "", 1, "coder", start, api.Grant{}, idle); api.CodeOf(err) != api.CodeDenied || api.CodeOf(r.Check(1, "coder", start)) != api.CodeDenied {
		t.Errorf("a revoked agent: %v", err)
	}
	if r.Check(2, "coder", start) != nil || r.Check(1, "other", start) != nil {
		t.Error("another is revoked, too")
	}
	if back, err := agents.Restore(own, false); err != nil || back.State != agents.Active || back.Revoked != nil {
		t.Errorf("its caller restores it: %+v, %v", back, err)
	}
	by := agents.Revoke(own, 0, true, start)
	if _, err := agents.Restore(by, false); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("its caller restores what an operator revoked: %v", err)
	}
	if weaker := agents.Revoke(by, 1, false, start); !weaker.Revoked.Operator {
		t.Error("revoked again by its caller, it is the caller's to restore")
	}
	if _, err := agents.Restore(by, true); err != nil {
		t.Error(err)
	}
}

// TestExpire: an agent has nothing more when its time is over, that is as its
// ceiling says or somebody said, and only an operator gives more.
func TestExpire(t *testing.T) {
	r := agents.New(nil)
	take := func(name string, at time.Time, ttl time.Duration) (api.Agent, error) {
		t.Helper()
		a, _, err := r.Use("id-"+name, api.Caller{UID: 1}, name, at, nil, ttl, api.Grant{}, idle)
		if err == nil {
			r.Put(a)
		}
		return a, err
	}
	hour := start.Add(time.Hour)
	a, err := take("coder", start, time.Hour)
	if err != nil || a.Expires == nil || !a.Expires.Time.Equal(hour) || !a.Expires.Ceiling {
		t.Fatalf("%+v, %v", a, err)
	}
	if a, err = take("coder", start.Add(time.Minute), 2*time.Hour); err != nil || !a.Expires.Time.Equal(hour) {
		t.Errorf("used again it has until %+v, %v", a.Expires, err)
	}
	for at, want := range map[time.Time]string{hour.Add(-1): agents.Active, hour: agents.Expired, hour.AddDate(9, 0, 0): agents.Expired} {
		err := r.Check(1, "coder", at)
		if s := r.State(1, "coder", at); s != want || (err == nil) != (want == agents.Active) || err != nil && api.CodeOf(err) != api.CodeDenied {
			t.Errorf("at %s: %s, %v; want %s", at, s, err, want)
		}
	}
	if _, err := take("coder", hour, 0); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("used after its time: %v", err)
	}
	if s := r.State(1, "nobody", start); s != agents.Active {
		t.Errorf("one that is not known is %s", s)
	}
	for _, tt := range []struct {
		what     string
		at       time.Time
		operator bool
		ok       bool
	}{
		{"its caller, less", hour.Add(-time.Minute), false, true},
		{"its caller, the same", hour, false, true},
		{"its caller, more", hour.Add(time.Second), false, false},
		{"its caller, for ever", time.Time{}, false, false},
		{"an operator, more", hour.Add(time.Hour), true, true},
		{"an operator, for ever", time.Time{}, true, true},
	} {
		b, err := agents.Expire(a, tt.at, 1, tt.operator)
		if (err == nil) != tt.ok || err == nil && !b.Expires.Time.Equal(tt.at) || err != nil && api.CodeOf(err) != api.CodeDenied {
			t.Errorf("%s: %+v, %v", tt.what, b.Expires, err)
		}
	}
	ever, err := agents.Expire(a, time.Time{}, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	r.Put(ever)
	if a, err := take("coder", hour, time.Hour); err != nil || !a.Expires.Time.IsZero() {
		t.Errorf("what an operator gave for ever has until %+v, %v", a.Expires, err)
	}
	if b, err := agents.Expire(ever, hour, 1, false); err != nil || agents.State(b, hour) != agents.Expired {
		t.Errorf("its caller ends it: %+v, %v", b, err)
	}
	dead := agents.Revoke(a, 1, false, start)
	if s := agents.State(dead, hour); s != agents.Revoked {
		t.Errorf("one that is revoked and over is %s", s)
	}
}

// TestBound: beyond the bound the one unused for longest goes, and never one
// that has sandboxes or is revoked.
func TestBound(t *testing.T) {
	r := agents.New(nil)
	for i := range agents.MaxPerUser {
		a, _, err := use(t, r, fmt.Sprint(i), 1, fmt.Sprintf("a%d", i), start.Add(time.Duration(i)), api.Grant{}, idle)
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 0:
			r.Put(agents.Revoke(a, 1, false, start))
		case 2: // by hand
			a.Expires = &api.Expiry{Time: start, UID: 1}
			r.Put(a)
		case 3: // by the ceiling
			a.Expires = &api.Expiry{Time: start, Ceiling: true}
			r.Put(a)
		case 4: // for ever, by an operator
			a.Expires = &api.Expiry{Operator: true}
			r.Put(a)
		}
	}
	busy := func(_ uint32, name string) bool { return name == "a1" }
	_, forget, err := use(t, r, "", 1, "new", start, api.Grant{}, busy)
	if err != nil || forget == nil || forget.Name != "a4" {
		t.Errorf("%+v goes, %v; want a4", forget, err)
	}
	if n := len(r.List(1, false)); n != agents.MaxPerUser {
		t.Errorf("%d agents", n)
	}
	if _, _, err := use(t, r, "", 1, "newer", start, api.Grant{}, func(uint32, string) bool { return true }); api.CodeOf(err) != api.CodeExhausted {
		t.Errorf("all are busy: %v", err)
	}
	if _, forget, err := use(t, r, "", 2, "new", start, api.Grant{}, busy); err != nil || forget != nil {
		t.Errorf("another caller: %v, %v", forget, err)
	}
}

// TestFind: a caller's own, by name or id; another's does not exist for it.
func TestFind(t *testing.T) {
	r := agents.New(nil)
	for _, a := range []struct {
		id   string
		uid  uint32
		name string
	}{{"one", 1, "coder"}, {"two", 2, "coder"}, {"three", 2, "only"}} {
		if _, _, err := use(t, r, a.id, a.uid, a.name, start, api.Grant{}, idle); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		uid  uint32
		all  bool
		ref  string
		want string // an id, or a class
	}{
		{1, false, "coder", "one"},
		{2, false, "two", "two"},
		{1, false, "two", "not_found"},
		{1, false, "only", "not_found"},
		{1, false, "nobody", "not_found"},
		{0, true, "only", "three"},
		{0, true, "coder", "conflict"},
		{0, true, "one", "one"},
	} {
		a, err := r.Find(tt.uid, tt.all, tt.ref)
		got := a.ID
		if err != nil {
			got = string(api.CodeOf(err))
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// TestReport tells what nobody needs, and nothing of what is needed.
func TestReport(t *testing.T) {
	now := start.AddDate(0, 0, 40)
	full := api.Grant{Ceiling: "c", Profiles: []string{"p"}, Runtimes: []string{"r"}, Mounts: []string{"own"}, Sandboxes: 4, Memory: 4, CPUs: 4, Pids: 4, Disk: 4}
	used := full
	used.Sandboxes, used.Memory, used.CPUs, used.Pids, used.Disk = 1, 1, 1, 1, 1
	agent := func(name string, at time.Time, given *api.Grant, used api.Grant) api.Agent {
		return api.Agent{ID: name, Name: name, State: agents.Active, LastUsed: at, Given: given, Used: used}
	}
	expires := func(a api.Agent, at time.Time) api.Agent {
		a.Expires = &api.Expiry{Time: at}
		return a
	}
	broad, open := full, full
	broad.Profiles, broad.Memory = []string{"p", "q"}, 5
	open.Runtimes, open.Pids = []string{"*"}, 0
	more, usedMore := full, used
	more.Images, more.Mounts, more.Socket = []string{"box", "node:*", "team/*", "go"}, []string{"/srv/a", "/srv/b:ro"}, true
	usedMore.Images, usedMore.Mounts = []string{"node:24", "go:latest"}, nil
	all := usedMore
	all.Images, all.Mounts, all.Socket = []string{"sha256:12"}, []string{"/work"}, true
	more.Egress, usedMore.Egress, all.Egress = []string{"*.example.com", "tcp git.example.com:22"}, []string{"a.example.com"}, []string{"b.example.com", "tcp git.example.com:22"}
	more.Secrets, usedMore.Secrets, all.Secrets = []string{"own", "team-*"}, []string{"mine"}, []string{"team-a"}
	old := agent("old", start, &full, used)
	running := agent("runs", start, &full, used)
	running.Sandboxes = 1
	var got []string
	for _, f := range agents.Report([]api.Agent{
		agent("good", now, &full, used), agent("broad", now, &broad, used), agent("open", now, &open, used),
		agent("more", now, &more, usedMore), agent("all", now, &more, all),
		agent("operators", now, nil, api.Grant{}), expires(agent("over", now, &full, used), now), expires(agent("ends", now, &full, used), now.AddDate(0, 0, 6)),
		expires(agent("later", now, &full, used), now.AddDate(0, 0, 8)), expires(agent("never", now, &full, used), time.Time{}), old, running, agents.Revoke(agent("revoked", now, &full, used), 0, true, start),
	}, now, 30*24*time.Hour) {
		if f.Fix == "" {
			t.Errorf("%+v has no fix", f)
		}
		got = append(got, f.Agent+" "+f.Kind+": "+f.What)
	}
	want := []string{
		"broad grant: profiles q never used",
		"broad wide: memory is 5, of which 1 was the most that was used together",
		"open grant: runtimes is *; used: r",
		"open wide: pids has no bound",
		"more grant: images team/* never used",
		"more grant: mounts /srv/a, /srv/b:ro never used",
		"more grant: egress tcp git.example.com:22 never used",
		"more grant: secrets team-* never used",
		"more grant: socket never used",
		"over expired: expired 2026-02-10T00:00:00Z",
		"ends expiring: expires 2026-02-16T00:00:00Z",
		"old unused: not seen for 40 days",
		"revoked revoked: revoked 2026-01-01T00:00:00Z",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
