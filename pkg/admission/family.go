package admission

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/profile"
)

// Bounds on families: how many generations may be below a sandbox that has no
// parent, and how many descendants any sandbox may have that have not ended.
const (
	MaxDepth       = 3
	MaxDescendants = 32
)

// Parent is a sandbox that is to have a child, as it was launched. What it may
// do bounds what the child may.
type Parent struct {
	Sandbox api.Sandbox
	// Depth is how many sandboxes are above it.
	Depth int
}

// Access is what a parent has of a directory or volume that its child asks for.
type Access int

// What there is to have.
const (
	NoAccess Access = iota
	ReadAccess
	ProtectedAccess // writes, but to the names that run on the host later
	WriteAccess
)

// Birth is what a decision about a child needs to know beside the request.
type Birth struct {
	// Digest is the child's image.
	Digest string
	// Weaker names the parts of the child's profile that refuse less than what
	// the parent has, but for those that Parent tells.
	Weaker []string
	// Mounts say of each of the request's what the parent has of it.
	Mounts []Access
}

// Inherit fills in what a request for a child leaves open: with what its parent
// has, where the profile does not rule that out, and with no more than the
// parent has of what a profile gives. Resolve and Cap are to follow.
func (p *Parent) Inherit(req api.SpawnRequest, pol Policy) api.SpawnRequest {
	s := &p.Sandbox
	req.Parent = s.ID
	req.Profile = or(req.Profile, s.Profile)
	req.Agent = or(req.Agent, s.Agent)
	req.Image = or(req.Image, s.Image)
	req.Runtime = or(req.Runtime, s.Runtime)
	prof, err := pol.Profiles.Get(req.Profile)
	if err != nil {
		return req // Resolve says so
	}
	if slices.Contains(prof.Network, s.Network) {
		req.Network = or(req.Network, s.Network)
	}
	if slices.Contains(prof.Rootfs, s.Rootfs) {
		req.Rootfs = or(req.Rootfs, s.Rootfs)
	}
	if slices.Contains(prof.Home, s.Home) {
		req.Home = or(req.Home, s.Home)
	}
	def, most, l := prof.Limits.Limits, s.Limits, &req.Limits
	lower(&l.Memory, def.Memory, most.Memory)
	lower(&l.CPUs, def.CPUs, most.CPUs)
	lower(&l.Pids, def.Pids, most.Pids)
	lower(&l.Files, def.Files, most.Files)
	lower(&l.Disk, def.Disk, most.Disk)
	lower(&l.IOWeight, def.IOWeight, most.IOWeight)
	lower(&l.OutputRate, def.OutputRate, most.OutputRate)
	lowerBudgets(l, &def, &most)
	lower(&l.TTL, endless(def.TTL), most.TTL)
	lower(&l.Idle, endless(def.Idle), most.Idle)
	if most.Idle != 0 && most.OnIdle == "stop" {
		l.OnIdle = or(l.OnIdle, most.OnIdle)
	}
	return req
}

// lower asks for the most there may be where nothing was asked for and the
// default is more. A most of zero is no bound.
func lower[T cmp.Ordered](asked *T, def, most T) {
	var zero T
	if *asked == zero && most != zero && def > most {
		*asked = most
	}
}

// endless is a limit of which zero means that there is no end.
func endless[T ~int64](d T) T {
	if d == 0 {
		return 1<<63 - 1
	}
	return d
}

// Cap lowers what Resolve worked out from other limits, and nobody asked for,
// to what the parent has.
func (p *Parent) Cap(a *Admitted, asked api.Limits) {
	if asked.Tmp == 0 {
		a.Limits.Tmp = min(a.Limits.Tmp, p.Sandbox.Limits.Tmp)
	}
	if asked.ShmSize == 0 {
		a.Limits.ShmSize = min(a.Limits.ShmSize, p.Sandbox.Limits.ShmSize)
	}
	a.Tmpfs = tmpfs(a)
}

// Judge holds an admitted request for a child against its parent: every rule
// but those of sums, see Family. A child never has what its parent does not.
func (p *Parent) Judge(a *Admitted, b Birth) []api.Rule {
	s, r := &p.Sandbox, &a.Request
	rs := []api.Rule{
		{Rule: "parent.depth", Field: "parent", Asked: fmt.Sprintf("a child of depth %d", p.Depth+1), Allowed: fmt.Sprintf("at most depth %d", MaxDepth), OK: p.Depth < MaxDepth, Fix: "leave out the parent, or name one further up"},
		p.same("agent", r.Agent, s.Agent),
		p.image(r.Image, b.Digest),
		p.profile(a.Profile, b.Weaker),
		{
			Rule: "parent.runtime", Field: "runtime", Asked: r.Runtime, Allowed: s.Runtime, OK: r.Runtime == s.Runtime || ofTheHost[r.Runtime] && ofTheHost[s.Runtime],
			Fix: "ask for runtime " + s.Runtime,
		},
		{Rule: "parent.rootfs", Field: "rootfs", Asked: r.Rootfs, Allowed: s.Rootfs, OK: r.Rootfs == s.Rootfs || r.Rootfs == "readonly", Fix: "ask for rootfs readonly"},
		{Rule: "parent.home", Field: "home", Asked: r.Home, Allowed: s.Home, OK: r.Home == s.Home || r.Home == "ephemeral", Fix: "ask for home ephemeral"},
	}
	rs = append(rs, p.network(a)...)
	for i, m := range r.Mounts {
		rs = append(rs, p.mount(i, m, b.Mounts[i]))
	}
	if r.Socket {
		rs = append(rs, api.Rule{Rule: "parent.socket", Field: "socket", Asked: "true", Allowed: fmt.Sprint(s.Socket), OK: s.Socket, Fix: "leave it out"})
	}
	rs = append(rs, p.limits(&a.Limits)...)
	for i := range rs {
		if rs[i].OK {
			rs[i].Fix = ""
		}
	}
	return rs
}

// ofTheHost are the runtimes whose sandboxes run on the host's kernel: none of
// them is stronger than another.
var ofTheHost = map[string]bool{"crun": true, "runc": true}

func (p *Parent) same(field, asked, has string) api.Rule {
	return api.Rule{Rule: "parent." + field, Field: field, Asked: asked, Allowed: has, OK: asked == has, Fix: "ask for " + field + " " + has}
}

func (p *Parent) image(asked, digest string) api.Rule {
	s := &p.Sandbox
	return api.Rule{
		Rule: "parent.image", Field: "image", Asked: asked + " (" + digest + ")", Allowed: s.ImageDigest, OK: digest == s.ImageDigest,
		Fix: "leave out the image, or ask for " + s.ImageDigest,
	}
}

func (p *Parent) profile(prof *profile.Profile, weaker []string) api.Rule {
	s := &p.Sandbox
	weaker = slices.Clone(weaker)
	if prof.Root() && s.User != api.UserRoot {
		weaker = append(weaker, "user")
	}
	for _, c := range prof.Capabilities {
		if !slices.Contains(s.Capabilities, c) {
			weaker = append(weaker, c)
		}
	}
	r := api.Rule{
		Rule: "parent.profile", Field: "profile", Asked: prof.Name, OK: len(weaker) == 0,
		Allowed: "one that refuses no less than " + s.Profile, Fix: "ask for profile " + s.Profile,
	}
	if len(weaker) > 0 {
		r.Asked += " (" + strings.Join(weaker, ", ") + ")"
	}
	return r
}

func (p *Parent) mount(i int, m api.Mount, has Access) api.Rule {
	what := m.Source
	if m.Volume != "" {
		what = "volume " + m.Volume
	}
	r := api.Rule{
		Rule: "parent.mounts", Field: fmt.Sprintf("mounts[%d]", i), Asked: clip(what) + access(m.ReadOnly),
		OK: has == WriteAccess || has == ProtectedAccess && m.Protect || has != NoAccess && m.ReadOnly, Allowed: "what the parent has mounted, and what is in it",
	}
	r.Fix = "leave it out"
	switch has {
	case ReadAccess:
		r.Allowed, r.Fix = "read-only", "mount it read-only (:ro)"
	case ProtectedAccess:
		r.Allowed, r.Fix = "with what runs on the host later protected", "mount it with protect (:protect), or read-only (:ro)"
	case NoAccess, WriteAccess:
	}
	return r
}

// limits are those of which each sandbox has its own.
func (p *Parent) limits(l *api.Limits) []api.Rule {
	most := &p.Sandbox.Limits
	rs := []api.Rule{
		limitRule("files", l.Files, most.Files),
		limitRule("tmp", l.Tmp, most.Tmp),
		limitRule("shm_size", l.ShmSize, most.ShmSize),
		limitRule("io_weight", l.IOWeight, most.IOWeight),
		limitRule("output_rate", l.OutputRate, most.OutputRate),
	}
	rs = append(rs, budgets("parent", l, most)...)
	if most.TTL != 0 {
		rs = append(rs, lifeRule("parent", "ttl", l.TTL, most.TTL))
	}
	if most.Idle != 0 {
		rs = append(rs, lifeRule("parent", "idle", l.Idle, most.Idle))
		rs = append(rs, api.Rule{
			Rule: "parent.on_idle", Field: "limits.on_idle", Asked: l.OnIdle, Allowed: most.OnIdle, OK: l.OnIdle == most.OnIdle || l.OnIdle == "stop",
			Fix: "ask for on_idle stop",
		})
	}
	return rs
}

func limitRule[T cmp.Ordered](name string, asked, most T) api.Rule {
	return api.Rule{
		Rule: "parent." + name, Field: "limits." + name, Asked: fmt.Sprint(asked), Allowed: fmt.Sprintf("at most %v", most), OK: asked <= most,
		Fix: fmt.Sprintf("ask for %s of at most %v", name, most),
	}
}

// lifeRule is limitRule for what has no end when it is zero.
func lifeRule[T cmp.Ordered](party, name string, asked, most T) api.Rule {
	var none T
	r := limitRule(name, asked, most)
	r.Rule = party + "." + name
	r.OK = r.OK && asked != none
	return r
}

// Family holds what the descendants of a sandbox, which generations are above
// the one that is to be made (1 is its parent), sum up to with that one
// against the sandbox's own limits and against how many there may be.
func Family(s *api.Sandbox, generations int, have, want Sum) []api.Rule {
	whose, prefix := "its parent's descendants", "parent."
	if generations > 1 {
		whose, prefix = "the descendants of "+s.Name, "ancestor."
	}
	t := Totals{Sandboxes: MaxDescendants, Memory: s.Limits.Memory, CPUs: s.Limits.CPUs, Pids: s.Limits.Pids}
	if s.Rootfs == "ephemeral" {
		t.Disk = s.Limits.Disk
	}
	rules := t.Judge(prefix, whose, have, want)
	for i := range rules {
		r := &rules[i]
		if r.OK {
			continue
		}
		r.Whose = ""
		r.Fix = "end one of " + whose + ", or ask for less"
		if r.Rule == prefix+"sandboxes" {
			r.Fix = "end one of " + whose
		}
	}
	return rules
}
