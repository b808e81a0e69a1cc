package policy

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/hostload"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/secrets"
)

// Question is a request that is to be judged.
type Question struct {
	Caller   peer.Cred
	Admitted *admission.Admitted
	// Dirs are the directories of its mounts, by index; nil for a volume.
	Dirs []*os.File
	// Host pins the host's mount namespace; nil is the daemon's own.
	Host *os.File
	// Names are those that the box has for the request's image; none when the
	// image is the caller's own. It is asked only where that matters.
	Names func(context.Context) ([]string, error)
	// Secrets are the request's, as who they are found by.
	Secrets []secrets.Ref
}

// Judge holds a request against the caller's ceiling, but for its totals:
// every rule, and none for an operator.
func (r *Rules) Judge(ctx context.Context, q Question) ([]api.Rule, error) {
	ceiling := r.Ceiling(q.Caller)
	if ceiling == nil {
		return nil, r.mustBeOperator(q.Caller)
	}
	facts := admission.Facts{Secrets: q.Secrets}
	if !ceiling.AnyImage() {
		var err error
		if facts.Names, err = q.Names(ctx); err != nil {
			return nil, err
		}
		facts.Own = len(facts.Names) == 0
	}
	for i, dir := range q.Dirs {
		var in []bool
		if dir != nil {
			var err error
			if in, err = ceiling.Holds(q.Caller, dir, q.Host); err != nil {
				return nil, fmt.Errorf("mount %s: %w", q.Admitted.Request.Mounts[i].Source, err)
			}
		}
		facts.Mounts = append(facts.Mounts, in)
	}
	return ceiling.Judge(q.Admitted, facts), nil
}

// mustBeOperator refuses whoever has no ceiling and is no operator. The server
// has asked before; a reload may have come between.
func (r *Rules) mustBeOperator(c peer.Cred) error {
	if r.now.Load().unbounded(c) {
		return nil
	}
	return api.Errorf(api.CodeDenied, "uid %d has no ceiling any more", c.UID).WithHint("have the operator add a [[caller]] that is for it")
}

// Room holds what a caller's sandboxes, and all, would sum up to with one more
// against every total.
func (r *Rules) Room(c peer.Cred, own, all, want admission.Sum) ([]api.Rule, error) {
	p := r.now.Load()
	var rules []api.Rule
	if p.kept > 0 {
		rules = append(rules, api.Rule{
			Rule: "limits.max.kept_per_user", Allowed: fmt.Sprint(p.kept), Asked: fmt.Sprintf("%d ended sandboxes of yours are kept", own.Kept),
			OK: own.Kept < p.kept, Total: true, Whose: "your kept", Fix: "remove some with creel rm, or use creel run --rm",
		})
	}
	if ceiling := r.Ceiling(c); ceiling != nil {
		rules = append(rules, ceiling.Totals.Judge("ceiling.", "your", own, want)...)
	} else if err := r.mustBeOperator(c); err != nil {
		return nil, err
	}
	for _, rule := range (admission.Totals{Sandboxes: p.perUser}).Judge("limits.max.", "your", own, want) {
		rule.Rule += "_per_user"
		rules = append(rules, rule)
	}
	for _, rule := range p.max.Judge("limits.max.", "all", all, want) {
		if !p.Operator(c) {
			unsaid(&rule)
		}
		rules = append(rules, rule)
	}
	if c.Via != "" { // whoever asks from inside is not told of the caller's others
		for i := range rules {
			unsaid(&rules[i])
		}
	}
	return rules, nil
}

// unsaid is a rule about all sandboxes for a caller, who is not told how much
// others have: only whether this one fits.
func unsaid(r *api.Rule) {
	r.Asked = "this one, with all there are"
	if !r.OK {
		r.Fix = "stop a sandbox, ask for less, try again later, or have the operator raise " + r.Rule
	}
}

// Name is what the configuration calls whom a caller's ceiling is for;
// "operator" for one, who has none.
func (r *Rules) Name(c peer.Cred) string {
	if ceiling := r.Ceiling(c); ceiling != nil {
		return ceiling.Name
	}
	return "operator"
}

// AgentTTL is for how long an agent of the caller's may run from its first
// sandbox on; 0 is for ever.
func (r *Rules) AgentTTL(c peer.Cred) time.Duration {
	if ceiling := r.Ceiling(c); ceiling != nil {
		return ceiling.AgentTTL
	}
	return 0
}

// Given is a caller's ceiling as it is remembered of its agents; nil for an
// operator.
func (r *Rules) Given(c peer.Cred) *api.Grant {
	ceiling := r.Ceiling(c)
	if ceiling == nil {
		return nil
	}
	g := &api.Grant{
		Ceiling: ceiling.Name, Profiles: ceiling.Profiles, Runtimes: ceiling.Runtimes, Images: ceiling.Images, Mounts: []string{}, Socket: ceiling.Socket, Egress: ceiling.Egress, Secrets: ceiling.Secrets,
		Sandboxes: ceiling.Sandboxes, Memory: ceiling.Memory, CPUs: ceiling.CPUs, Pids: ceiling.Pids, Disk: ceiling.Disk,
	}
	for _, m := range ceiling.Mounts {
		g.Mounts = append(g.Mounts, m.String())
	}
	return g
}

// loadAge is how old what the kernel said may be: reading it takes a tenth of
// a millisecond and more, and a burst of spawns need not each ask.
const loadAge = 100 * time.Millisecond

// load is what the kernel said last.
type load struct {
	mu    sync.Mutex
	at    time.Time
	state hostload.State
}

func (l *load) read() (hostload.State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.at.IsZero() || now.Sub(l.at) > loadAge {
		s, err := hostload.Read(os.DirFS("/proc"))
		if err != nil {
			return s, err
		}
		l.state, l.at = s, now
	}
	return l.state, nil
}

// Box holds what the kernel says of the host against what it must have left for
// one more sandbox, whoever asks.
func (r *Rules) Box() ([]api.Rule, error) {
	s, err := r.load.read()
	if err != nil {
		return nil, err
	}
	return hostload.Judge(s, r.now.Load().host), nil
}
