package admission

import (
	"fmt"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/secrets"
)

// PolicyNetwork is the network by which a sandbox reaches what rules name.
const PolicyNetwork = "policy"

// resolveNetwork checks what a request asks of the network, and gives those who
// have a say in what is reached: the profile, and the request.
func resolveNetwork(ps *problems, r *api.SpawnRequest, p *profile.Profile) []api.EgressParty {
	allowed := false
	for _, n := range p.Network {
		allowed = allowed || n == r.Network
	}
	if !allowed {
		ps.add("network", r.Network, "%s in profile %s", among(p.Network), p.Name)
	}
	if r.Network != PolicyNetwork {
		if len(r.Egress) > 0 {
			ps.add("egress", fmt.Sprint(len(r.Egress)), "left out unless network is %q", PolicyNetwork)
		}
		if len(r.Secrets) > 0 {
			ps.add("secrets", fmt.Sprint(len(r.Secrets)), "left out unless network is %q", PolicyNetwork)
		}
		return nil
	}
	checkSecrets(ps, r.Secrets)
	var parties []api.EgressParty
	var outer *egress.Policy
	if p.Egress != nil {
		by := "the profile " + p.Name
		outer, _ = egress.ParseLines(by, "egress", p.Egress) // it was read when the profile was
		parties = append(parties, api.EgressParty{By: by, Rules: outer.Texts()})
	}
	if len(r.Egress) > 0 {
		asked, wrong := egress.ParseLines("the request", "egress", r.Egress)
		*ps = append(*ps, wrong...)
		if asked == nil {
			return nil
		}
		if text := asked.Any(); text != "" {
			ps.add("egress", text, "%s", egress.WantNoAny)
		}
		if outer != nil {
			for _, i := range asked.Beyond(outer) {
				ps.add(fmt.Sprintf("egress[%d]", i), asked.Texts()[i], "within the rules of profile %s: %s", p.Name, some(outer.Texts()))
			}
		}
		parties = append(parties, api.EgressParty{By: "the request", Rules: asked.Texts()})
	}
	return parties
}

// maxSecrets is how many one sandbox uses.
const maxSecrets = 32

func checkSecrets(ps *problems, names []string) {
	if len(names) > maxSecrets {
		ps.add("secrets", fmt.Sprint(len(names)), "at most %d", maxSecrets)
		return
	}
	for i, n := range names {
		if !secrets.NameRE.MatchString(n) || slices.Contains(names[:i], n) {
			ps.add(fmt.Sprintf("secrets[%d]", i), clip(n), "a secret's name, once")
		}
	}
}

// some is a list as people read it, as far as it fits.
func some(list []string) string {
	const most = 8
	if len(list) > most {
		return strings.Join(list[:most], "; ") + fmt.Sprintf("; and %d more", len(list)-most)
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, "; ")
}

// egress is the rule of a ceiling for a network. A request that asks for less
// than all is refused if that is more than the ceiling's: it would not work.
func (c *Ceiling) egress(a *Admitted) api.Rule {
	outer, problems := egress.ParseLines(c.party(), "egress", c.Egress)
	r := api.Rule{Rule: "ceiling.egress", Field: "egress", Allowed: some(c.Egress)}
	r.Asked, r.OK = beyond(a.Request.Egress, outer)
	r.OK = r.OK && len(problems) == 0 && len(c.Egress) > 0
	if !r.OK {
		r.Fix = fmt.Sprintf("leave it out, or have the operator add it to egress of [[caller]] %s", c.Name)
	}
	return r
}

// party names the ceiling where a refusal is told.
func (c *Ceiling) party() string { return "the ceiling of " + c.Name }

// Narrow fills in the budgets that a request leaves open with the ceiling's, where
// the profile's are more. Resolve and Judge are to follow.
func (c *Ceiling) Narrow(req api.SpawnRequest, pol Policy) api.SpawnRequest {
	prof, err := pol.Profiles.Get(or(req.Profile, pol.DefaultProfile))
	if err != nil {
		return req // Resolve says so
	}
	lowerBudgets(&req.Limits, &prof.Limits.Limits, &c.Budgets)
	return req
}

// lowerBudgets has a request that names no budget ask for the most there may be,
// where the default is more.
func lowerBudgets(asked, def, most *api.Limits) {
	lower(&asked.EgressBytes, endless(def.EgressBytes), most.EgressBytes)
	lower(&asked.EgressConnections, endless(def.EgressConnections), most.EgressConnections)
	lower(&asked.EgressRequests, endless(def.EgressRequests), most.EgressRequests)
}

// budgets are the rules for what may go out in a sandbox's life, as party says.
func budgets(party string, asked, most *api.Limits) (rs []api.Rule) {
	if most.EgressBytes != 0 {
		rs = append(rs, lifeRule(party, "egress_bytes", asked.EgressBytes, most.EgressBytes))
	}
	if most.EgressConnections != 0 {
		rs = append(rs, lifeRule(party, "egress_connections", asked.EgressConnections, most.EgressConnections))
	}
	if most.EgressRequests != 0 {
		rs = append(rs, lifeRule(party, "egress_requests", asked.EgressRequests, most.EgressRequests))
	}
	return rs
}

// Party is the ceiling's say in what a sandbox reaches.
func (c *Ceiling) Party() api.EgressParty { return api.EgressParty{By: c.party(), Rules: c.Egress} }

// beyond says which of the rules asked for are beyond outer, if any are.
func beyond(asked []string, outer *egress.Policy) (string, bool) {
	if len(asked) == 0 {
		return "all that is allowed", outer != nil
	}
	p, problems := egress.ParseLines("the request", "egress", asked)
	if len(problems) > 0 || outer == nil {
		return some(asked), false
	}
	var out []string
	for _, i := range p.Beyond(outer) {
		out = append(out, p.Texts()[i])
	}
	if len(out) > 0 {
		return some(out), false
	}
	return some(p.Texts()), true
}

// network are the rules of a parent's network. Its child has the same or none,
// and of that what all who have a say in the parent's allow.
func (p *Parent) network(a *Admitted) []api.Rule {
	s, r := &p.Sandbox, &a.Request
	rs := []api.Rule{{
		Rule: "parent.network", Field: "network", Asked: r.Network, Allowed: s.Network, OK: r.Network == s.Network || r.Network == "none",
		Fix: "ask for network " + s.Network,
	}}
	if r.Network != PolicyNetwork || s.Network != PolicyNetwork {
		return rs
	}
	for _, party := range s.Egress {
		outer, _ := egress.ParseLines(party.By, "egress", party.Rules)
		rule := api.Rule{Rule: "parent.egress", Field: "egress", Allowed: party.By + ": " + some(party.Rules), Fix: "leave it out"}
		rule.Asked, rule.OK = beyond(r.Egress, outer)
		rs = append(rs, rule)
	}
	for _, name := range r.Secrets {
		rs = append(rs, api.Rule{Rule: "parent.secrets", Field: "secrets", Asked: name, Allowed: some(s.Secrets), OK: slices.Contains(s.Secrets, name), Fix: "leave it out"})
	}
	return rs
}
