package admission

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/secrets"
)

// Ceiling is what one caller may have at most, whatever it asks for. A list
// allows what it names, and nothing when it is empty; a total of 0 is no bound.
type Ceiling struct {
	// Name is what the configuration calls whom it is for, such as
	// "group:creel".
	Name string
	// Profiles and Runtimes are names; "*" is all.
	Profiles, Runtimes []string
	// Images are "box" (all that operators imported), "own" (what the caller
	// did) and patterns, see path.Match, of names of the box's.
	Images []string
	Mounts []Root
	Totals
	// SpawnRate and ExecRate are how many may begin in a minute, all at once
	// or spread.
	SpawnRate, ExecRate int
	ImageBytes          api.Size // of the caller's own images together
	Connections         int
	// AgentTTL is for how long an agent may run; 0 is for ever.
	AgentTTL time.Duration
	// Socket allows sandboxes a socket of their own.
	Socket bool
	// Egress are rules of what sandboxes may reach, see egress.ParseText.
	Egress []string
	// Budgets are the egress limits of one sandbox at most; 0 is no bound.
	Budgets api.Limits
	// Ask are those that somebody may let besides, and Approve who may.
	Ask     []string
	Approve string
	// Secrets are "own" (all that the caller set) and patterns of names of the
	// box's.
	Secrets []string
}

// Root is where directories may be to be mounted.
type Root struct {
	// Path is a directory of the host's, "own" for any that the caller owns,
	// or "*" for any that it can open.
	Path     string
	ReadOnly bool
}

// Facts are what a decision needs to know beside the request.
type Facts struct {
	// Own says that the image is one of the caller's own; Names are otherwise
	// those that the box has for it.
	Own   bool
	Names []string
	// Mounts say for each of the request's which of the ceiling's roots hold
	// its directory; of a volume nothing is asked.
	Mounts [][]bool
	// Secrets are the request's, as who they are found by.
	Secrets []secrets.Ref
}

// Judge holds an admitted request against a ceiling, but for the totals: every
// rule that applies, with what was asked and what is allowed.
func (c *Ceiling) Judge(a *Admitted, f Facts) []api.Rule {
	rs := []api.Rule{
		c.listed("ceiling.profiles", "profile", a.Request.Profile, c.Profiles),
		c.listed("ceiling.runtimes", "runtime", a.Request.Runtime, c.Runtimes),
		c.image(a.Request.Image, f),
	}
	for i, m := range a.Request.Mounts {
		if m.Volume == "" {
			rs = append(rs, c.mount(i, m, f.Mounts[i]))
		}
	}
	if a.Request.Network == PolicyNetwork {
		rs = append(rs, c.egress(a))
		rs = append(rs, budgets("ceiling", &a.Limits, &c.Budgets)...)
	}
	for _, s := range f.Secrets {
		rs = append(rs, c.secret(s))
	}
	if a.Request.Socket {
		r := api.Rule{Rule: "ceiling.socket", Field: "socket", Asked: "true", Allowed: fmt.Sprint(c.Socket), OK: c.Socket}
		if !r.OK {
			r.Fix = "leave it out, or have the operator set socket of [[caller]] " + c.Name
		}
		rs = append(rs, r)
	}
	return rs
}

func (c *Ceiling) secret(s secrets.Ref) api.Rule {
	r := api.Rule{Rule: "ceiling.secrets", Field: "secrets", Asked: s.Name, Allowed: among(c.Secrets), OK: secrets.Allowed(c.Secrets, s)}
	if !s.Owner.Box {
		r.Asked += " (own)"
	}
	if !r.OK {
		r.Fix = c.raise(r.Rule)
	}
	return r
}

func (c *Ceiling) listed(rule, field, asked string, allowed []string) api.Rule {
	r := api.Rule{Rule: rule, Field: field, Asked: asked, Allowed: among(allowed)}
	r.OK = slices.Contains(allowed, "*") || slices.Contains(allowed, asked)
	if !r.OK {
		r.Fix = "ask for " + field + " " + r.Allowed
		if len(allowed) == 0 {
			r.Fix = c.raise(rule)
		}
	}
	return r
}

// among is a list as people read it.
func among(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " or ")
}

// raise is the fix when the request itself cannot be mended.
func (c *Ceiling) raise(rule string) string {
	return fmt.Sprintf("have the operator add it to %s of [[caller]] %s", strings.TrimPrefix(rule, "ceiling."), c.Name)
}

func (c *Ceiling) image(ref string, f Facts) api.Rule {
	r := api.Rule{Rule: "ceiling.images", Field: "image", Asked: ref, Allowed: among(c.Images)}
	if f.Own {
		r.Asked += " (own)"
		r.OK = slices.Contains(c.Images, "own")
	} else {
		r.OK = slices.Contains(c.Images, "box") || slices.ContainsFunc(f.Names, c.named)
	}
	if !r.OK {
		r.Fix = "ask for image " + r.Allowed
		if len(c.Images) == 0 {
			r.Fix = c.raise(r.Rule)
		}
	}
	return r
}

// named says whether a name of the box's is one of the ceiling's images, with
// or without the tag that it has when it is given none.
func (c *Ceiling) named(name string) bool {
	return slices.ContainsFunc(c.Images, func(pattern string) bool {
		for _, n := range []string{name, strings.TrimSuffix(name, ":latest")} {
			if ok, err := path.Match(pattern, n); ok && err == nil {
				return true
			}
		}
		return false
	})
}

// AnyImage says that no image is refused, so that whose it is need not be
// looked up.
func (c *Ceiling) AnyImage() bool {
	return slices.Contains(c.Images, "box") && slices.Contains(c.Images, "own")
}

func (c *Ceiling) mount(i int, m api.Mount, in []bool) api.Rule {
	r := api.Rule{
		Rule: "ceiling.mounts", Field: fmt.Sprintf("mounts[%d]", i),
		Asked: clip(m.Source) + access(m.ReadOnly), Allowed: among(c.roots()),
	}
	readable := false
	for j, root := range c.Mounts {
		if in[j] {
			readable = true
			r.OK = r.OK || m.ReadOnly || !root.ReadOnly
		}
	}
	switch {
	case r.OK:
	case readable:
		r.Fix = "mount it read-only (:ro)"
	default:
		r.Fix = c.raise(r.Rule)
	}
	return r
}

func (c *Ceiling) roots() []string {
	var out []string
	for _, m := range c.Mounts {
		out = append(out, m.String())
	}
	return out
}

// String is the root as the configuration has it.
func (r Root) String() string {
	if r.ReadOnly {
		return r.Path + ":ro"
	}
	return r.Path
}

func access(readonly bool) string {
	if readonly {
		return ":ro"
	}
	return ""
}

// Explained turns an error that a request would be answered into rules that do
// not hold. One that is not the request's to mend stays an error.
func Explained(err error) ([]api.Rule, error) {
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code == api.CodeInternal || e.Code == api.CodeUnavailable {
		return nil, err
	}
	if len(e.Problems) == 0 {
		return []api.Rule{{Rule: "request", Allowed: e.Message, Fix: e.Hint, Total: e.Code == api.CodeExhausted}}, nil
	}
	var rules []api.Rule
	for _, p := range e.Problems {
		rules = append(rules, api.Rule{Rule: or(p.Rule, "request"), Field: p.Field, Asked: p.Value, Allowed: p.Want, Fix: p.Field + ": " + p.Want})
	}
	return rules, nil
}

// Refusal is nil if every rule holds, and else one error with all that do not:
// permission_denied if something is not the caller's to have at all,
// resource_exhausted if there is only no room for it now.
func Refusal(rules []api.Rule) error {
	var e *api.Error
	told := map[string]bool{}
	for _, r := range rules {
		if r.OK {
			continue
		}
		code := api.CodeDenied
		if r.Total {
			code = api.CodeExhausted
		}
		if e == nil {
			e = api.Errorf(code, "%s", r.Message())
			e.Hint = r.Fix
		} else if !told[r.Fix] {
			e.Hint += "; " + r.Fix
		}
		told[r.Fix] = true
		if code == api.CodeDenied {
			e.Code = code
		}
		e.Problems = append(e.Problems, api.Problem{Field: r.Field, Value: r.Asked, Want: r.Allowed, Rule: r.Rule})
	}
	if e == nil {
		return nil
	}
	if n := len(e.Problems); n > 1 {
		e.Message = fmt.Sprintf("%d rules refuse it", n)
	} else {
		e.Problems = nil // the message is the problem
	}
	return e
}
