package approval_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/approval"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
)

func TestRule(t *testing.T) {
	name := func(to string) link.Record { return link.Record{Kind: link.KindConnection, To: to} }
	request := func(scheme, to, method, path string) link.Record {
		return link.Record{Kind: link.KindRequest, Scheme: scheme, To: to, Method: method, Path: path}
	}
	for _, tt := range []struct {
		r    link.Record
		want string
	}{
		{link.Record{Kind: link.KindName, To: "a.example"}, "a.example"},
		{name("a.example:443"), "a.example"},
		{name("a.example:80"), "http a.example"},
		{name("git.example:22"), "tcp git.example:22"},
		{name("10.0.0.1:22"), ""},
		{name("[::1]:22"), ""},
		{name("localhost"), ""},
		{name("A.example"), ""},
		{name("a.example:0"), ""},
		{name("x\x1b[2J.example"), ""},
		{name(""), ""},
		{request("https", "a.example:443", "POST", "/v1/x"), "https a.example POST /v1/x"},
		{request("https", "a.example:8443", "GET", "/"), "https a.example:8443 GET /"},
		{request("http", "a.example:80", "GET", "/"), "http a.example GET /"},
		{request("http", "a.example:443", "GET", "/"), "http a.example:443 GET /"},
		{request("https", "a.example:443", "GET", "/a b"), ""},
		{request("https", "a.example:443", "GET", "/a**"), ""},
		{request("https", "a.example:443", "G T", "/a"), ""},
		{request("", "a.example:443", "GET", "/a"), ""},
	} {
		if got := approval.Rule(tt.r); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.r, got, tt.want)
		}
	}
}

var now = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// box is a sandbox of a profile, a request and a ceiling, and of a parent.
func box(parent bool) (*api.Sandbox, *approval.State) {
	sb := &api.Sandbox{ID: "abc", Name: "box", Agent: "coder", Caller: api.Caller{UID: 1000}, Egress: []api.EgressParty{
		{By: "the profile", Rules: []string{"*.example.com", "tcp *.example.com:22"}},
		{By: "the request", Rules: []string{"a.example.com"}},
		{By: "the ceiling", Rules: []string{"a.example.com", "b.example.com"}},
	}}
	if parent {
		sb.Egress = append(sb.Egress, api.EgressParty{By: "the request", Rules: []string{"a.example.com"}})
	}
	return sb, &approval.State{Request: 2, Ceiling: 3, Ask: []string{"*.example.com"}, By: approval.Operator}
}

func refused(to string) link.Record {
	return link.Record{Kind: link.KindConnection, To: to, By: "the request"}
}

func TestNote(t *testing.T) {
	sb, s := box(false)
	for _, tt := range []struct{ to, approver string }{
		{"b.example.com:443", approval.Caller},   // the request alone refuses it
		{"c.example.com:443", approval.Operator}, // and the ceiling asks
		{"c.example.com:22", ""},                 // which it does not ask for
		{"c.example.org:443", ""},                // for which the profile is against it
		{"10.0.0.1:443", ""},
	} {
		a, fresh := s.Note(sb, refused(tt.to), now, time.Hour)
		if tt.approver == "" {
			if a != nil || fresh {
				t.Errorf("%s: %+v", tt.to, a)
			}
			continue
		}
		if a == nil || !fresh || a.Approver != tt.approver || a.State != api.ApprovalPending || !a.Expires.Equal(now.Add(time.Hour)) {
			t.Errorf("%s: %+v", tt.to, a)
		}
	}
	// Again, and by its name: it is the same.
	if a, fresh := s.Note(sb, link.Record{Kind: link.KindName, To: "b.example.com"}, now.Add(time.Minute), time.Hour); fresh || a == nil || a.Times != 2 || a.ID != "abc.1" || !a.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("again: %+v", a)
	}
	if w := s.Waiting(sb); len(w) != 2 {
		t.Errorf("waiting: %v", w)
	}
	// What a parent does not have, nobody is asked for.
	child, cs := box(true)
	if a, _ := cs.Note(child, refused("b.example.com:443"), now, time.Hour); a != nil {
		t.Errorf("a child: %+v", a)
	}
	for i := range 2 * approval.Most {
		s.Note(sb, refused(fmt.Sprintf("n%d.example.com:443", i)), now, time.Hour)
	}
	if len(s.All) != approval.Most {
		t.Errorf("%d approvals", len(s.All))
	}
}

func code(err error) api.Code {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Code
	}
	return ""
}

func TestDecide(t *testing.T) {
	allow := api.ApprovalDecision{Allow: true, For: api.ForSandbox}
	for _, tt := range []struct {
		name     string
		to       string
		d        api.ApprovalDecision
		operator bool
		want     api.Code
		state    api.ApprovalState
	}{
		{"its own request, by its caller", "b.example.com:443", allow, false, "", api.ApprovalAllowed},
		{"beyond the ceiling, by its caller", "c.example.com:443", allow, false, api.CodeDenied, ""},
		{"beyond the ceiling, by an operator", "c.example.com:443", allow, true, "", api.ApprovalAllowed},
		{"to deny beyond the ceiling, by its caller", "c.example.com:443", api.ApprovalDecision{}, false, api.CodeDenied, ""},
		{"to deny", "b.example.com:443", api.ApprovalDecision{}, false, "", api.ApprovalDenied},
	} {
		sb, s := box(false)
		a, _ := s.Note(sb, refused(tt.to), now, time.Hour)
		before := slices.Clone(sb.Egress)
		got, err := s.Decide(sb, a.ID, tt.d, 7, tt.operator, now)
		if code(err) != tt.want || err == nil && (got.State != tt.state || *got.DecidedBy != 7) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
		}
		if allowed := reaches(t, sb, tt.to); allowed != (tt.state == api.ApprovalAllowed) {
			t.Errorf("%s: then it is allowed: %v", tt.name, allowed)
		}
		if tt.state != api.ApprovalAllowed && !cmp.Equal(before, sb.Egress) {
			t.Errorf("%s: %s", tt.name, cmp.Diff(before, sb.Egress))
		}
	}
	sb, s := box(false)
	if _, err := s.Decide(sb, "abc.1", allow, 0, true, now); code(err) != api.CodeNotFound {
		t.Errorf("none: %v", err)
	}
	a, _ := s.Note(sb, refused("b.example.com:443"), now, time.Hour)
	if _, err := s.Decide(sb, a.ID, allow, 0, true, now); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Decide(sb, a.ID, api.ApprovalDecision{}, 0, true, now); code(err) != api.CodeConflict {
		t.Errorf("twice: %v", err)
	}
}

// reaches says whether all parties allow "HOST:443".
func reaches(t *testing.T, sb *api.Sandbox, to string) bool {
	t.Helper()
	want, problems := egress.ParseLines("", "", []string{approval.Rule(refused(to))})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return !slices.ContainsFunc(sb.Egress, func(p api.EgressParty) bool {
		pol, problems := egress.ParseLines(p.By, "", p.Rules)
		return len(problems) > 0 || len(want.Beyond(pol)) > 0
	})
}

func TestOnce(t *testing.T) {
	sb, s := box(false)
	a, _ := s.Note(sb, refused("c.example.com:443"), now, time.Hour)
	if _, err := s.Decide(sb, a.ID, api.ApprovalDecision{Allow: true, For: api.ForOnce}, 0, true, now); err != nil {
		t.Fatal(err)
	}
	if reaches(t, sb, "c.example.com:443") {
		t.Error("it is allowed for more than once")
	}
	once := fmt.Sprintf("abc.1@%d", now.UnixNano())
	want := []link.Once{{ID: once, Rule: "c.example.com", Parties: []int{1, 2}}}
	if diff := cmp.Diff(want, s.Once(sb.Egress)); diff != "" {
		t.Error(diff)
	}
	for _, other := range []string{"abc.1", "abc.2", "", "abc.1@1", "abc.2@1"} {
		if s.Used(other) != nil {
			t.Errorf("%q was used", other)
		}
	}
	if s.Used(once) == nil || s.Used(once) != nil || len(s.Once(sb.Egress)) > 0 {
		t.Errorf("used: %+v", s.All)
	}
	// It can be asked for once more.
	if _, err := s.Decide(sb, a.ID, api.ApprovalDecision{Allow: true, For: api.ForOnce}, 0, true, now); err != nil {
		t.Error(err)
	}
}

func TestExpire(t *testing.T) {
	sb, s := box(false)
	s.Note(sb, refused("b.example.com:443"), now, time.Hour)
	s.Note(sb, refused("c.example.com:443"), now.Add(time.Minute), time.Hour)
	if over := s.Expire(now.Add(time.Hour - 1)); len(over) > 0 {
		t.Errorf("too early: %v", over)
	}
	if over := s.Expire(now.Add(time.Hour)); len(over) != 1 || over[0].ID != "abc.1" || over[0].State != api.ApprovalExpired {
		t.Errorf("over: %v", over)
	}
	if a, fresh := s.Note(sb, refused("b.example.com:443"), now.Add(2*time.Hour), time.Hour); fresh || a.State != api.ApprovalExpired {
		t.Errorf("tried again: %+v, %v", a, fresh)
	}
	if _, err := s.Decide(sb, "abc.1", api.ApprovalDecision{Allow: true, For: api.ForSandbox}, 1000, false, now.Add(2*time.Hour)); err != nil {
		t.Errorf("allowed after all: %v", err)
	}
}

// What was let for an agent holds as far as the ceiling still has it asked for.
func TestAgent(t *testing.T) {
	sb, s := box(false)
	sb.Egress = s.Agent(sb.Egress, let(true, "c.example.com", "tcp c.example.com:22", "c.example.org", "nonsense nonsense"))
	if !reaches(t, sb, "c.example.com:443") || reaches(t, sb, "c.example.com:22") {
		t.Errorf("%v", sb.Egress)
	}
	if n := len(sb.Egress[1].Rules) + len(sb.Egress[2].Rules); n != 5 {
		t.Errorf("%v", sb.Egress)
	}
	sb, s = box(false)
	s.Ask = nil
	if sb.Egress = s.Agent(sb.Egress, let(true, "c.example.com")); reaches(t, sb, "c.example.com:443") {
		t.Errorf("without being asked for: %v", sb.Egress)
	}
}

// What a caller let itself is not let any more when it is an operator's to let.
func TestAgentByWhom(t *testing.T) {
	for _, tt := range []struct {
		operator bool // let it
		by       string
		rule     string
		want     bool
	}{
		{false, approval.Operator, "c.example.com", false},
		{true, approval.Operator, "c.example.com", true},
		{false, approval.Caller, "c.example.com", true},
		{false, approval.Operator, "b.example.com", true}, // the ceiling allows it
	} {
		sb, s := box(false)
		s.By = tt.by
		if sb.Egress = s.Agent(sb.Egress, let(tt.operator, tt.rule)); reaches(t, sb, tt.rule+":443") != tt.want {
			t.Errorf("%+v: %v", tt, sb.Egress)
		}
	}
}

func let(operator bool, rules ...string) (out []api.AgentRule) {
	for _, r := range rules {
		out = append(out, api.AgentRule{Rule: r, Operator: operator})
	}
	return out
}

func TestNumber(t *testing.T) {
	for id, want := range map[string]string{"abc.1": "abc", "abc": "", "abc.": "", "abc.x": "", ".1": "", "": "", "abc.-1": ""} {
		if got, ok := approval.Number(id); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v", id, got, ok)
		}
	}
}
