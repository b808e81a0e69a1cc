package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress/destination"
)

// Policy is one party's rules. It does not change. A nil Policy allows nothing.
type Policy struct {
	by    string
	rules []rule
}

// Parse makes a policy of rules, or says all that is wrong with them. by names
// the party where a refusal is told: "the profile default". Field names begin
// with at, which is "egress" in most places.
func Parse(by, at string, rules []Rule) (*Policy, []api.Problem) {
	if len(rules) > MaxRules {
		return nil, []api.Problem{{Field: at, Want: fmt.Sprintf("%d rules at most", MaxRules)}}
	}
	p := &Policy{by: by}
	var problems []api.Problem
	for i, in := range rules {
		r, wrong := parseRule(in, fmt.Sprintf("%s[%d]", at, i))
		problems = append(problems, wrong...)
		p.rules = append(p.rules, r)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return p, nil
}

// Any is the first rule for every name, "" where there is none. Only who observes
// has one: such a policy is as good as none.
func (p *Policy) Any() string {
	for i := range p.rules {
		if r := &p.rules[i]; !r.cidr.IsValid() && r.host.any() {
			return r.text
		}
	}
	return ""
}

// WantNoAny is what is wanted where a rule for every name is refused.
const WantNoAny = "a host; every name is for profiles that observe"

// Snapshot is all that decides for one sandbox at one time. It does not change.
// One without a policy, the zero Snapshot, allows nothing.
type Snapshot struct {
	policies []*Policy
	once     []*Once
}

// NewSnapshot is of the policies of all who have a say.
func NewSnapshot(all ...*Policy) Snapshot { return Snapshot{policies: slices.Clone(all)} }

// WithOnce is the snapshot with what it lets one time each.
func (s Snapshot) WithOnce(once ...*Once) Snapshot {
	s.once = slices.Clone(once)
	return s
}

// Once lets one connection or request through that a Snapshot refuses. Use
// NewOnce.
type Once struct {
	with Snapshot
	used *atomic.Bool
	told func()
}

// NewOnce lets what policies allow, unless used is set; it is, and told is called,
// when something is let through.
func NewOnce(used *atomic.Bool, told func(), all ...*Policy) *Once {
	return &Once{with: NewSnapshot(all...), used: used, told: told}
}

// orOnce has what a snapshot refuses be asked of those that let it one time.
func (s Snapshot) orOnce(g Grant, err error, ask func(Snapshot) (Grant, error)) (Grant, error) {
	if err == nil {
		return g, nil
	}
	for _, o := range s.once {
		if o.used.Load() {
			continue
		}
		if lets, no := ask(o.with); no == nil {
			lets.once = o
			return lets, nil
		}
	}
	return g, err
}

// RefusedError says which party's rules do not allow something. Its text is
// for the agent, and tells nothing that the agent did not ask for.
type RefusedError struct {
	// By is the party.
	By string
	// What was refused: "GET https://api.example.com/v1/models".
	What string
	// Near are that party's rules about the same host, as far as there are.
	Near []string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s is not allowed by %s", e.What, e.By)
}

// Grant is what lets something through.
type Grant struct {
	// Rules are those that allow it, one for each party.
	Rules []string
	// Kinds are the ways in which the connection may be treated. At least one.
	Kinds Kinds
	// Wildcard says that some party allows the name by no rule of its own, so
	// that the name is the agent's choice, and can say something to who owns
	// the domain.
	Wildcard bool

	once *Once
}

// Take says whether what was granted may be done now: once, if it was granted
// once. It is to be called just before.
func (g Grant) Take() bool {
	if g.once == nil {
		return true
	}
	if !g.once.used.CompareAndSwap(false, true) {
		return false
	}
	g.once.told()
	return true
}

// each asks every party for its rules that match, and refuses where one has
// none.
func (s Snapshot) each(what string, host Name, ask func(*rule) bool, granted func([]*rule)) error {
	if len(s.policies) == 0 {
		return &RefusedError{By: "a sandbox without a policy", What: what}
	}
	for _, p := range s.policies {
		if p == nil {
			return &RefusedError{By: "a policy that is not there", What: what}
		}
		var found []*rule
		var near []string
		for i := range p.rules {
			r := &p.rules[i]
			if ask(r) {
				found = append(found, r)
			} else if host != "" && !r.cidr.IsValid() && r.host.matches(host) {
				near = append(near, r.text)
			}
		}
		if len(found) == 0 {
			return &RefusedError{By: p.by, What: what, Near: near}
		}
		granted(found)
	}
	return nil
}

// Resolves says whether a name is told an address.
func (s Snapshot) Resolves(host Name) (Grant, error) {
	var g Grant
	err := s.each("the name "+string(host), host, func(r *rule) bool { return !r.cidr.IsValid() && r.host.matches(host) }, func(found []*rule) {
		g.Rules = append(g.Rules, found[0].text)
		g.Wildcard = g.Wildcard || !slices.ContainsFunc(found, func(r *rule) bool { return !r.host.wildcard })
	})
	if err != nil {
		return s.orOnce(Grant{}, err, func(o Snapshot) (Grant, error) { return o.Resolves(host) })
	}
	return g, nil
}

// Connect says whether a connection to a name may be made, and how it may be
// treated.
func (s Snapshot) Connect(host Name, port uint16) (Grant, error) {
	return s.connect(fmt.Sprintf("a connection to %s:%d", host, port), host, func(r *rule) bool { return r.connects(host, port) })
}

// ConnectAddr says the same of an address that no name stands for. The address
// itself is to be checked with Dial as well.
func (s Snapshot) ConnectAddr(a netip.Addr, port uint16) (Grant, error) {
	g, err := s.connect("a connection to "+netip.AddrPortFrom(a, port).String(), "", func(r *rule) bool { return r.reaches(a, port) })
	g.Kinds &= Raw // nothing else can be held against an address
	return g, err
}

func (s Snapshot) connect(what string, host Name, ask func(*rule) bool) (Grant, error) {
	g := Grant{Kinds: Raw | TLS | HTTP | HTTPS}
	err := s.each(what, host, ask, func(found []*rule) {
		g.Rules = append(g.Rules, found[0].text)
		var kinds Kinds
		for _, r := range found {
			kinds |= r.kinds()
		}
		g.Kinds &= kinds
	})
	if err == nil && g.Kinds == 0 {
		err = &RefusedError{By: "policies that agree on no protocol", What: what, Near: g.Rules}
	}
	if err != nil {
		return s.orOnce(Grant{}, err, func(o Snapshot) (Grant, error) { return o.connect(what, host, ask) })
	}
	return g, nil
}

// Dial says whether an address may be dialled for a connection that Connect or
// ConnectAddr allowed. own are the addresses of the host; see
// destination.Check. Every party that lists no range for the address refuses
// one that is not public.
func (s Snapshot) Dial(a netip.Addr, port uint16, own []netip.Addr) error {
	if len(s.policies) == 0 {
		return &RefusedError{By: "a sandbox without a policy", What: a.String()}
	}
	for _, p := range s.policies {
		if p == nil {
			return &RefusedError{By: "a policy that is not there", What: a.String()}
		}
		var listed []netip.Prefix
		for _, r := range p.rules {
			if r.reaches(a, port) {
				listed = append(listed, r.cidr)
			}
		}
		if err := destination.Check(a, own, listed); err != nil {
			return fmt.Errorf("%w, and no range of %s has it", err, p.by)
		}
	}
	return nil
}

// Request says whether a request may be made on a connection to a name that is
// treated as kind, HTTP or HTTPS. A path is "" if ParsePath refuses it; rules
// with paths then allow nothing.
func (s Snapshot) Request(kind Kinds, host Name, port uint16, method string, path Path) (Grant, error) {
	scheme := map[Kinds]string{HTTP: "http", HTTPS: "https"}[kind]
	what := fmt.Sprintf("%s %s://%s:%d%s", method, scheme, host, port, path)
	if scheme == "" || method == "CONNECT" {
		return Grant{}, &RefusedError{By: "every policy", What: what}
	}
	g := Grant{Kinds: kind}
	err := s.each(what, host, func(r *rule) bool {
		return r.connects(host, port) && r.kinds()&kind != 0 && r.requests(method, path)
	}, func(found []*rule) { g.Rules = append(g.Rules, found[0].text) })
	if err != nil {
		return s.orOnce(Grant{}, err, func(o Snapshot) (Grant, error) { return o.Request(kind, host, port, method, path) })
	}
	return g, nil
}

// Beyond are the rules, by index, with which p allows what outer does not, as
// far as can be told from single rules: one that several of outer's allow only
// together is among them. It is for telling a person; what decides is a
// Snapshot that has both.
func (p *Policy) Beyond(outer *Policy) []int {
	var beyond []int
	for i := range p.rules {
		if !slices.ContainsFunc(outer.rules, func(o rule) bool { return o.covers(&p.rules[i]) }) {
			beyond = append(beyond, i)
		}
	}
	return beyond
}

// covers says whether r allows all that q allows.
func (r *rule) covers(q *rule) bool {
	if r.cidr.IsValid() != q.cidr.IsValid() || r.kinds()|q.kinds() != r.kinds() {
		return false
	}
	if r.cidr.IsValid() {
		if r.cidr.Bits() > q.cidr.Bits() || !r.cidr.Contains(q.cidr.Addr()) {
			return false
		}
	} else if !r.host.covers(q.host) {
		return false
	}
	for _, port := range q.ports {
		if !slices.Contains(r.ports, port) {
			return false
		}
	}
	if len(r.methods) > 0 && (len(q.methods) == 0 || slices.ContainsFunc(q.methods, func(m string) bool { return !slices.Contains(r.methods, m) })) {
		return false
	}
	return len(r.paths) == 0 || len(q.paths) > 0 && !slices.ContainsFunc(q.paths, func(in pathPattern) bool {
		return !slices.ContainsFunc(r.paths, func(out pathPattern) bool { return out.covers(in) })
	})
}
