package launcher

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/approval"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/store"
)

// AllowEgress has a sandbox that runs reach more than its request named. That is
// its caller's own to say: what profile, ceiling and parent do not allow stays
// refused, and a rule of which they do not have all is an error. What a child was
// given stays as it was.
func (l *Launcher) AllowEgress(ctx context.Context, c peer.Cred, ref string, rules []string) (*api.Sandbox, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	added, problems := egress.ParseLines(requestParty, "allow", rules)
	if added == nil || len(rules) == 0 {
		e := api.Errorf(api.CodeInvalid, "the rules are not valid")
		e.Problems = problems
		return nil, e
	}
	if text := added.Any(); text != "" {
		return nil, api.Errorf(api.CodeInvalid, "%q: want %s", text, egress.WantNoAny)
	}
	if added.Reads() && !opened(&sb.fixed.Sandbox) {
		return nil, api.Errorf(api.CodeInvalid, "the TLS of sandbox %s is not opened up, since no rule asked for it when it was made", sb.id).
			WithHint("leave methods and paths out, or make a new sandbox with --allow")
	}
	l.secretMu.Lock() // what is told last is what is on record
	defer l.secretMu.Unlock()
	if err := sb.widen(added); err != nil {
		return nil, err
	}
	if l.Egress == nil {
		return nil, fmt.Errorf("its network: %w", l.NoEgress)
	}
	if err := l.Egress.Resume(ctx, sb.id, l.egressPolicy(sb.record())); err != nil {
		return nil, err
	}
	v := sb.view()
	return &v, nil
}

// requestParty is what a sandbox's own request is called among its parties, which
// come before its parent's.
const requestParty = "the request"

// widen adds rules to those of the sandbox's own request, if all others who have a
// say allow them.
func (sb *sandbox) widen(added *egress.Policy) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	r := sb.rec
	own := slices.IndexFunc(r.Sandbox.Egress, func(p api.EgressParty) bool { return p.By == requestParty })
	if len(r.Request.Egress) == 0 || own < 0 || ended(r.Sandbox.State) {
		return api.Errorf(api.CodeConflict, "sandbox %s reaches all that others allow it, or has no network", sb.id).
			WithHint("\"creel egress explain\" says who refuses")
	}
	parties := slices.Clone(r.Sandbox.Egress)
	for i, p := range parties {
		pol, _ := egress.ParseLines(p.By, "egress", p.Rules)
		if pol == nil {
			return fmt.Errorf("the rules of %s cannot be read", p.By)
		}
		if i == own {
			continue
		}
		for _, n := range added.Beyond(pol) {
			return api.Errorf(api.CodeDenied, "%s is not allowed by %s", added.Texts()[n], p.By)
		}
	}
	mine := slices.Clone(parties[own].Rules)
	for _, text := range added.Texts() {
		if !slices.Contains(mine, text) {
			mine = append(mine, text)
		}
	}
	if len(mine) > egress.MaxRules {
		return api.Errorf(api.CodeExhausted, "%d rules; %d at most", len(mine), egress.MaxRules)
	}
	parties[own].Rules = mine
	r.Sandbox.Egress = parties
	return sb.putLocked(r)
}

// ask has what the sandbox was refused wait for an approval, where there is who
// may give one.
//
// An agent can be refused very often: what cannot be asked for is judged once, and
// from mostDestinations on nothing new is.
func (sb *sandbox) ask(r link.Record) {
	rule := approval.Rule(r)
	if rule == "" {
		return
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.unasked[rule] {
		return
	}
	if sb.rec.Approvals.For(rule) == nil && len(sb.unasked) >= mostDestinations {
		return
	}
	next := sb.rec
	next.Approvals = next.Approvals.Clone()
	a, fresh := next.Approvals.Note(&next.Sandbox, r, time.Now().UTC(), sb.l.AskTTL)
	switch {
	case a == nil:
		if sb.unasked == nil {
			sb.unasked = map[string]bool{}
		}
		sb.unasked[rule] = true
	case ended(next.Sandbox.State):
	case !fresh:
		sb.rec.Approvals = next.Approvals // how often is not worth a commit
	default:
		if err := sb.putLocked(next); err != nil {
			sb.l.log.Error("what a sandbox was refused cannot be asked for", slog.String("sandbox", sb.id), slog.Any("error", err))
			return
		}
		sb.l.publish("approval.requested", &next, "id", a.ID, "to", line(a.To), "rule", a.Rule, "refused_by", line(a.RefusedBy), "approver", a.Approver, "expires", a.Expires.Format(time.RFC3339))
	}
}

// usedOnce has what was let once be over, for the next process too.
func (l *Launcher) usedOnce(sb *sandbox, once string) {
	l.secretMu.Lock()
	defer l.secretMu.Unlock()
	rec, err := sb.usedOnce(once)
	if rec == nil && err == nil {
		return
	}
	if err == nil && l.Egress != nil {
		err = l.Egress.Resume(l.ctx, sb.id, l.egressPolicy(rec))
	}
	if err != nil && !ended(sb.state()) {
		l.log.Error("what was allowed once may be so again", slog.String("sandbox", sb.id), slog.Any("error", err))
	}
}

func (sb *sandbox) usedOnce(once string) (*store.Record, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	next := sb.rec
	next.Approvals = next.Approvals.Clone()
	a := next.Approvals.Used(once)
	if a == nil {
		return nil, nil
	}
	sb.l.publish("approval.used", &next, "id", a.ID, "rule", a.Rule)
	return &next, sb.putLocked(next)
}

// expireApprovals denies what nobody has answered in time.
func (sb *sandbox) expireApprovals(now time.Time) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if !slices.ContainsFunc(sb.rec.Approvals.All, func(a api.Approval) bool { return a.State == api.ApprovalPending && now.After(a.Expires) }) {
		return
	}
	next := sb.rec
	next.Approvals = next.Approvals.Clone()
	over := next.Approvals.Expire(now.UTC())
	if err := sb.putLocked(next); err != nil {
		sb.l.log.Error("an approval that has expired is still there", slog.String("sandbox", sb.id), slog.Any("error", err))
		return
	}
	for _, a := range over {
		sb.l.publish("approval.expired", &next, "id", a.ID, "to", line(a.To), "rule", a.Rule)
	}
}

// Approvals are those of the caller's sandboxes that have not ended, an operator's
// everybody's: what waits, or with all what was decided as well; of one sandbox if
// ref names one. The oldest come first.
func (l *Launcher) Approvals(_ context.Context, c peer.Cred, ref string, all bool) ([]api.Approval, error) {
	boxes := l.all()
	if ref != "" {
		sb, err := l.find(c, ref)
		if err != nil {
			return nil, err
		}
		boxes = []*sandbox{sb}
	}
	out := []api.Approval{}
	for _, sb := range boxes {
		if !l.mayUse(c, sb) {
			continue
		}
		rec := sb.record()
		switch {
		case all:
			out = append(out, rec.Approvals.All...)
		case !ended(rec.Sandbox.State):
			out = append(out, rec.Approvals.Waiting(&rec.Sandbox)...)
		}
	}
	slices.SortFunc(out, func(a, b api.Approval) int { return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// DecideApproval answers an approval. What is let is so before it returns.
func (l *Launcher) DecideApproval(ctx context.Context, c peer.Cred, id string, d api.ApprovalDecision) (*api.Approval, error) {
	if err := d.Valid(); err != nil {
		return nil, err
	}
	ref, ok := approval.Number(id)
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "no approval %q", id).WithHint("creel egress pending lists them")
	}
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	l.secretMu.Lock() // what is told last is what is on record
	defer l.secretMu.Unlock()
	a, rec, err := sb.decide(c, id, d)
	if err != nil || !d.Allow {
		return a, err
	}
	if d.For == api.ForAgent {
		if err := l.letAgent(&rec.Sandbox, a.Rule, l.Callers.Operator(c)); err != nil {
			return nil, fmt.Errorf("%s is let for the sandbox alone: %w", a.Rule, err)
		}
	}
	if l.Egress == nil {
		return nil, fmt.Errorf("its network: %w", l.NoEgress)
	}
	return a, l.Egress.Resume(ctx, sb.id, l.egressPolicy(rec))
}

func (sb *sandbox) decide(c peer.Cred, id string, d api.ApprovalDecision) (*api.Approval, *store.Record, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if ended(sb.rec.Sandbox.State) {
		return nil, nil, api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	next := sb.rec
	next.Approvals = next.Approvals.Clone()
	a, err := next.Approvals.Decide(&next.Sandbox, id, d, c.UID, sb.l.Callers.Operator(c), time.Now().UTC())
	if err != nil {
		return nil, nil, err
	}
	if err := sb.putLocked(next); err != nil {
		return nil, nil, err
	}
	said := *a
	return &said, &next, nil
}

// letAgent has an agent's later sandboxes reach more.
func (l *Launcher) letAgent(s *api.Sandbox, rule string, operator bool) error {
	return l.changeEgress(s.Caller.UID, s.Agent, func(rules []api.AgentRule) ([]api.AgentRule, error) {
		rules = slices.DeleteFunc(slices.Clone(rules), func(r api.AgentRule) bool {
			operator = operator || r.Rule == rule && r.Operator
			return r.Rule == rule
		})
		if len(rules) >= egress.MaxRules {
			return nil, api.Errorf(api.CodeExhausted, "the agent %s has %d rules of its own", s.Agent, len(rules)).WithHint("take some back with creel egress forget")
		}
		return append(rules, api.AgentRule{Rule: rule, Operator: operator}), nil
	})
}

// ForgetEgress takes back what was let for an agent: rules, or without any all of
// them. What runs keeps what it has.
func (l *Launcher) ForgetEgress(_ context.Context, c peer.Cred, ref string, rules []string) (*api.Agent, error) {
	a, err := l.Agents.Find(c.UID, l.Callers.Operator(c), ref)
	if err != nil {
		return nil, err
	}
	err = l.changeEgress(a.Caller.UID, a.Name, func(have []api.AgentRule) ([]api.AgentRule, error) {
		for _, rule := range rules {
			if !slices.ContainsFunc(have, func(r api.AgentRule) bool { return r.Rule == rule }) {
				return nil, api.Errorf(api.CodeNotFound, "the agent %s was not let %q", a.Name, rule).WithHint("creel agent show lists what it was")
			}
		}
		return slices.DeleteFunc(slices.Clone(have), func(r api.AgentRule) bool { return len(rules) == 0 || slices.Contains(rules, r.Rule) }), nil
	})
	if err != nil {
		return nil, err
	}
	return l.FindAgent(c, a.ID)
}

func (l *Launcher) changeEgress(uid uint32, name string, change func([]api.AgentRule) ([]api.AgentRule, error)) error {
	_, err := l.changeAgent(peer.Cred{UID: uid}, name, func(a api.Agent) (_ api.Agent, err error) {
		a.Egress, err = change(a.Egress)
		return a, err
	})
	return err
}
