// Package approval is what a sandbox was refused and somebody may let: what is
// asked, of whom, and what was said. It is pure: approvals are kept in the record
// of their sandbox, and this package changes a copy of one.
//
// A rule can be asked for if those who do not allow it are the sandbox's own
// request, which its caller may widen, or its ceiling, as far as that has it under
// "ask". What a profile or a parent does not allow nobody is asked for.
package approval

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
)

// Most is how many one sandbox has, decided or not.
const Most = 64

// Who may say yes.
const (
	Caller   = "caller" // whose sandbox it is, or an operator
	Operator = "operator"
)

// State is what is kept of one sandbox. It is part of its record.
type State struct {
	// Request and Ceiling are the places of those two among its parties, from 1 on;
	// 0 is none.
	Request int `json:"request,omitempty"`
	Ceiling int `json:"ceiling,omitempty"`
	// Ask are the rules that its ceiling has asked for, and By who may let them:
	// Caller or Operator.
	Ask []string `json:"ask,omitempty"`
	By  string   `json:"by,omitempty"`
	// All are its approvals, by number from 1 on.
	All []api.Approval `json:"all,omitempty"`
}

// Rule is a rule that lets what a record says was refused, and as little else as
// a rule can; "" where there is none that could be asked for: a bare address is to
// be thought about.
func Rule(r link.Record) string {
	host, port, found := strings.Cut(r.To, ":")
	if name, err := egress.ParseName(host); err != nil || string(name) != host {
		return ""
	}
	text := host
	switch {
	case r.Kind == link.KindRequest:
		text = request(r, host, port)
	case found && port == "80":
		text = "http " + host
	case found && port != "443":
		text = "tcp " + r.To
	}
	if _, problems := egress.ParseLines("", "rule", []string{text}); len(problems) > 0 {
		return ""
	}
	return text
}

// plain are methods and paths that read in a rule as what they are.
var plain = regexp.MustCompile(`^[A-Za-z0-9/_.~-]{1,200}$`)

func request(r link.Record, host, port string) string {
	if !plain.MatchString(r.Method) || !plain.MatchString(r.Path) {
		return ""
	}
	usual, ok := map[string]string{"http": "80", "https": "443"}[r.Scheme]
	if !ok {
		return ""
	}
	if port != usual {
		host = r.To
	}
	return fmt.Sprintf("%s %s %s %s", r.Scheme, host, r.Method, r.Path)
}

// Note is told that something was refused. It gives the approval that asks for it
// and says whether that is new; nil where nobody can be asked.
func (s *State) Note(sb *api.Sandbox, r link.Record, now time.Time, ttl time.Duration) (*api.Approval, bool) {
	rule := Rule(r)
	if rule == "" {
		return nil, false
	}
	if a := s.For(rule); a != nil {
		a.Times++
		a.Last = now
		return a, false
	}
	_, by, _ := s.missing(sb.Egress, rule)
	if by == "" || len(s.All) >= Most {
		return nil, false
	}
	s.All = append(s.All, api.Approval{
		ID: fmt.Sprintf("%s.%d", sb.ID, len(s.All)+1), Sandbox: sb.ID, Name: sb.Name, Agent: sb.Agent, Caller: sb.Caller,
		To: r.To, Rule: rule, RefusedBy: r.By, Approver: by, State: api.ApprovalPending, First: now, Last: now, Times: 1, Expires: now.Add(ttl),
	})
	return &s.All[len(s.All)-1], true
}

// missing are the parties, by index, to which a rule is to be added for all to
// allow it, and who may let that; or who refuses it for good.
func (s *State) missing(parties []api.EgressParty, rule string) (add []int, by string, refuses string) {
	want, problems := egress.ParseLines("", "rule", []string{rule})
	if len(problems) > 0 {
		return nil, "", "nobody that can be asked"
	}
	by = Caller
	for i, p := range parties {
		pol, problems := egress.ParseLines(p.By, "egress", p.Rules)
		if len(problems) > 0 {
			return nil, "", p.By
		}
		if len(want.Beyond(pol)) == 0 {
			continue
		}
		switch i + 1 {
		case s.Request:
		case s.Ceiling:
			ask, problems := egress.ParseLines("", "ask", s.Ask)
			if len(problems) > 0 || len(want.Beyond(ask)) > 0 {
				return nil, "", p.By
			}
			by = s.By
		default:
			return nil, "", p.By
		}
		add = append(add, i)
	}
	return add, by, ""
}

// Waiting are the approvals that wait for somebody, of those whose rule is not
// allowed by now.
func (s *State) Waiting(sb *api.Sandbox) (out []api.Approval) {
	for _, a := range s.All {
		if add, _, refuses := s.missing(sb.Egress, a.Rule); a.State == api.ApprovalPending && (len(add) > 0 || refuses != "") {
			out = append(out, a)
		}
	}
	return out
}

// For is the approval that asks for a rule.
func (s *State) For(rule string) *api.Approval {
	for i := range s.All {
		if s.All[i].Rule == rule {
			return &s.All[i]
		}
	}
	return nil
}

// Find is an approval by its id.
func (s *State) Find(id string) *api.Approval {
	for i := range s.All {
		if s.All[i].ID == id {
			return &s.All[i]
		}
	}
	return nil
}

// Number splits an approval's id.
func Number(id string) (sandbox string, ok bool) {
	sandbox, n, found := strings.Cut(id, ".")
	_, err := strconv.ParseUint(n, 10, 16)
	return sandbox, found && err == nil && sandbox != ""
}

// Decide carries out what somebody said: it changes the approval, and for more
// than once the sandbox's parties. who is their uid. The error's class is
// permission_denied where it is not theirs to let, and conflict where it is let
// already, or cannot be any more.
func (s *State) Decide(sb *api.Sandbox, id string, d api.ApprovalDecision, who uint32, operator bool, now time.Time) (*api.Approval, error) {
	a := s.Find(id)
	if a == nil {
		return nil, api.Errorf(api.CodeNotFound, "no approval %q", id).WithHint("creel egress pending --all lists them")
	}
	if a.State == api.ApprovalAllowed {
		return nil, api.Errorf(api.CodeConflict, "%s is allowed already", id)
	}
	add, by, refuses := s.missing(sb.Egress, a.Rule)
	if by == "" {
		return nil, api.Errorf(api.CodeConflict, "%s is not allowed by %s, and not for anybody to let", a.Rule, refuses)
	}
	if by == Operator && !operator {
		return nil, api.Errorf(api.CodeDenied, "%s is for an operator to decide on", id)
	}
	a.Decided, a.DecidedBy, a.For = now, &who, ""
	if !d.Allow {
		a.State = api.ApprovalDenied
		return a, nil
	}
	a.State, a.For = api.ApprovalAllowed, d.For
	if d.For == api.ForOnce {
		return a, nil
	}
	parties := slices.Clone(sb.Egress)
	for _, i := range add {
		if len(parties[i].Rules) >= egress.MaxRules {
			return nil, api.Errorf(api.CodeExhausted, "%s has %d rules; there may be %d", parties[i].By, len(parties[i].Rules), egress.MaxRules)
		}
		parties[i].Rules = append(slices.Clone(parties[i].Rules), a.Rule)
	}
	sb.Egress = parties
	return a, nil
}

// Once are the rules that are let once, for a sandbox to be served by.
func (s *State) Once(parties []api.EgressParty) []link.Once {
	return s.once(parties, api.ApprovalAllowed)
}

// EverOnce are those and the ones that were used: that one was may be heard of
// before what it let is done.
func (s *State) EverOnce(parties []api.EgressParty) []link.Once {
	return s.once(parties, api.ApprovalAllowed, api.ApprovalUsed)
}

func (s *State) once(parties []api.EgressParty, states ...api.ApprovalState) (all []link.Once) {
	for _, a := range s.All {
		if !slices.Contains(states, a.State) || a.For != api.ForOnce {
			continue
		}
		if add, by, _ := s.missing(parties, a.Rule); by != "" {
			all = append(all, link.Once{ID: onceID(a), Rule: a.Rule, Parties: add})
		}
	}
	return all
}

// onceID tells what was let once from what the same approval let before.
func onceID(a api.Approval) string { return fmt.Sprintf("%s@%d", a.ID, a.Decided.UnixNano()) }

// Used is told by the id of a link.Once that it was used, and gives the approval;
// nil where that is not so.
func (s *State) Used(once string) *api.Approval {
	id, _, _ := strings.Cut(once, "@")
	a := s.Find(id)
	if a == nil || a.State != api.ApprovalAllowed || a.For != api.ForOnce || onceID(*a) != once {
		return nil
	}
	a.State = api.ApprovalUsed
	return a
}

// Expire denies what nobody has answered in time, and gives it.
func (s *State) Expire(now time.Time) (over []api.Approval) {
	for i := range s.All {
		if a := &s.All[i]; a.State == api.ApprovalPending && !now.Before(a.Expires) {
			a.State, a.Decided = api.ApprovalExpired, now
			over = append(over, *a)
		}
	}
	return over
}

// Clone is a copy that can be changed.
func (s *State) Clone() State {
	c := *s
	c.All = slices.Clone(s.All)
	return c
}

// Agent adds the rules that were let for an agent to the parties of a sandbox of
// its, as far as its ceiling still has them asked for, of whoever let them: what a
// caller let itself ends when it comes to be an operator's to let.
func (s *State) Agent(parties []api.EgressParty, rules []api.AgentRule) []api.EgressParty {
	parties = slices.Clone(parties)
	for _, r := range rules {
		add, by, _ := s.missing(parties, r.Rule)
		if by == "" || by == Operator && !r.Operator {
			continue
		}
		for _, i := range add {
			if len(parties[i].Rules) < egress.MaxRules {
				parties[i].Rules = append(slices.Clone(parties[i].Rules), r.Rule)
			}
		}
	}
	return parties
}
