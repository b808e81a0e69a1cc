package admission_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/spec"
)

// drawRequest draws a request of what a child could have more of. Most is left
// open, or hardly one would be let in.
func drawRequest(t *rapid.T) api.SpawnRequest {
	oneOf := func(label string, of ...string) string { return draw(t, label, of) }
	size := func(label string) api.Size {
		return draw(t, label, []api.Size{1 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30, 3 << 30, 8 << 30})
	}
	count := func(label string) int64 { return draw(t, label, []int64{10, 50, 128, 400, 2000}) }
	life := func(label string) api.Duration {
		return api.Duration(draw(t, label, []time.Duration{time.Second, time.Minute, time.Hour, 100 * time.Hour}))
	}
	req := api.SpawnRequest{
		Profile: oneOf("profile", "default", "strict", "build", "endless"), Agent: oneOf("agent", "default", "other"),
		Image: oneOf("image", "base", "dev"), Runtime: oneOf("runtime", "crun", "runc"),
		Socket: draw(t, "socket", []bool{true}),
		Rootfs: oneOf("rootfs", "readonly", "ephemeral"), Home: oneOf("home", "ephemeral", "persistent"),
		Limits: api.Limits{
			Memory: size("memory"), CPUs: draw(t, "cpus", []float64{0.5, 1, 2, 4}), Pids: count("pids"), Files: count("files"),
			Disk: size("disk"), Tmp: size("tmp"), ShmSize: size("shm"), IOWeight: count("weight"), OutputRate: size("rate"),
			EgressBytes: size("bytes"), EgressConnections: count("connections"), EgressRequests: count("requests"),
			TTL: life("ttl"), Idle: life("idle"), OnIdle: oneOf("on_idle", "pause", "stop"),
		},
		Network: rapid.SampledFrom([]string{"", "none", "policy"}).Draw(t, "network"),
	}
	if req.Network == "policy" {
		req.Egress = rapid.SliceOfN(rapid.SampledFrom(drawnRules), 0, 3).Draw(t, "egress")
		req.Secrets = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2, rapid.ID).Draw(t, "secrets")
	}
	return req
}

// drawnRules are rules of which some allow what others do, and drawnHosts names that
// tell them apart.
var (
	drawnRules = []string{"a.x.example", "*.x.example", "b.x.example", "tcp a.x.example:22", "tls a.x.example:443,8443", "https a.x.example GET /v1/**", "https a.x.example GET,POST", "tcp db.agent.creel.internal:22"}
	drawnHosts = []egress.Name{"a.x.example", "b.x.example", "c.x.example", "db.agent.creel.internal"}
)

// reach is all that rules allow, of what tells drawnRules apart.
func reach(t *rapid.T, rules []string) map[string]bool {
	p, problems := egress.ParseLines("", "", rules)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s, can := egress.NewSnapshot(p), map[string]bool{}
	for _, h := range drawnHosts {
		for _, port := range []uint16{22, 443, 8443} {
			if g, err := s.Connect(h, port); err == nil {
				for _, kind := range []egress.Kinds{egress.Raw, egress.TLS, egress.HTTPS} {
					can[fmt.Sprint(h, port, " as ", kind)] = g.Kinds&kind != 0
				}
			}
			for _, method := range []string{"GET", "POST"} {
				for _, path := range []egress.Path{"/v1/x", "/v2"} {
					_, err := s.Request(egress.HTTPS, h, port, method, path)
					can[fmt.Sprint(h, port, method, path)] = err == nil
				}
			}
		}
	}
	return can
}

// reachesMore says what a child's rules allow that one of its parent's parties does
// not.
func reachesMore(t *rapid.T, child, parent *api.SpawnRequest, parties []api.EgressParty) string {
	if child.Network != "policy" {
		return ""
	}
	if parent.Network != "policy" {
		return "a network"
	}
	mine := reach(t, child.Egress)
	for _, p := range parties {
		theirs := reach(t, p.Rules)
		for what, can := range mine {
			if can && !theirs[what] {
				return what + ", which is not allowed by " + p.By
			}
		}
	}
	return ""
}

// draw gives one of some values, and most often none.
func draw[T any](t *rapid.T, label string, of []T) (v T) {
	if rapid.IntRange(0, 4).Draw(t, label+" asked for") > 0 {
		return v
	}
	return rapid.SampledFrom(of).Draw(t, label)
}

// endless is policy with a profile whose sandboxes have no end.
func endless(t *testing.T) admission.Policy {
	t.Helper()
	pol := policy(t)
	p := *pol.Profiles["default"]
	p.Name, p.Limits.TTL, p.Limits.Idle, p.Limits.Max.TTL, p.Limits.Max.Idle = "endless", 0, 0, 0, 0
	pol.Profiles["endless"] = &p
	return pol
}

// parentOf is a parent that was launched as pa.
func parentOf(pa *admission.Admitted) *admission.Parent {
	r, user := pa.Request, ""
	if pa.Profile.Root() {
		user = api.UserRoot
	}
	return &admission.Parent{Sandbox: api.Sandbox{
		ID: "parent", Name: "parent", Agent: r.Agent, Profile: r.Profile, Image: r.Image, ImageDigest: "sha256:" + r.Image, Runtime: r.Runtime,
		Rootfs: r.Rootfs, Home: r.Home, Network: r.Network, Egress: pa.Egress, Secrets: r.Secrets, User: user, Capabilities: pa.Profile.Capabilities, Socket: r.Socket, Limits: pa.Limits,
	}}
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(v string) bool { return !slices.Contains(b, v) })
}

// TestChildHasNoMore: for any parent and any request, a child that is let in
// has nothing that its parent does not have.
func TestChildHasNoMore(t *testing.T) {
	pol := endless(t)
	in, out := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		pa, err := admission.Resolve(drawRequest(t), pol)
		if err != nil {
			return
		}
		p := parentOf(pa)
		p.Depth = draw(t, "depth", []int{1, 2, 3, 4})
		for range 20 {
			if childOf(t, p, pa, pol) {
				in++
			} else {
				out++
			}
		}
	})
	if in < 3 || out < 3 {
		t.Errorf("%d were let in and %d were not: nothing is shown", in, out)
	}
}

// childOf asks for a child of what pa became, and says whether it was let in.
func childOf(t *rapid.T, p *admission.Parent, pa *admission.Admitted, pol admission.Policy) bool {
	r := pa.Request
	asked := drawRequest(t)
	var b admission.Birth
	for i := range draw(t, "mounts", []int{1, 2}) {
		asked.Mounts = append(asked.Mounts, api.Mount{Source: "/src", FD: new(i), Target: fmt.Sprintf("/m%d", i), ReadOnly: rapid.Bool().Draw(t, "readonly")})
		asked.Mounts[i].Protect = !asked.Mounts[i].ReadOnly && rapid.Bool().Draw(t, "protect")
		b.Mounts = append(b.Mounts, rapid.SampledFrom([]admission.Access{admission.NoAccess, admission.ReadAccess, admission.ProtectedAccess, admission.WriteAccess, admission.WriteAccess}).Draw(t, "access"))
	}
	full := p.Inherit(asked, pol)
	c, err := admission.Resolve(full, pol)
	if err != nil {
		return false
	}
	p.Cap(c, full.Limits)
	b.Digest = "sha256:" + c.Request.Image
	if draw(t, "weaker", []bool{true}) {
		b.Weaker = []string{"seccomp build"}
	}
	if slices.ContainsFunc(p.Judge(c, b), func(r api.Rule) bool { return !r.OK }) {
		return false
	}
	// Written out again, and without the code that judges.
	pl, cl, cr := pa.Limits, c.Limits, c.Request
	for what, bad := range map[string]bool{
		"depth": p.Depth >= 3, "agent": cr.Agent != r.Agent, "image": cr.Image != r.Image, "weaker filter": len(b.Weaker) > 0,
		"root": c.Profile.Root() && !pa.Profile.Root(), "rootfs": cr.Rootfs == "ephemeral" && r.Rootfs != "ephemeral",
		"home": cr.Home == "persistent" && r.Home != "persistent", "network": reachesMore(t, &cr, &r, pa.Egress) != "", "secrets": !subset(cr.Secrets, r.Secrets), "socket": cr.Socket && !r.Socket, "a socket unasked": cr.Socket != asked.Socket,
		"files": cl.Files > pl.Files, "tmp": cl.Tmp > pl.Tmp, "shm": cl.ShmSize > pl.ShmSize,
		"weight": cl.IOWeight > pl.IOWeight, "rate": cl.OutputRate > pl.OutputRate,
		"egress bytes":       pl.EgressBytes != 0 && (cl.EgressBytes == 0 || cl.EgressBytes > pl.EgressBytes),
		"egress connections": pl.EgressConnections != 0 && (cl.EgressConnections == 0 || cl.EgressConnections > pl.EgressConnections),
		"egress requests":    pl.EgressRequests != 0 && (cl.EgressRequests == 0 || cl.EgressRequests > pl.EgressRequests),
		"ttl":                pl.TTL != 0 && (cl.TTL == 0 || cl.TTL > pl.TTL),
		"idle":               pl.Idle != 0 && (cl.Idle == 0 || cl.Idle > pl.Idle || pl.OnIdle == "stop" && cl.OnIdle != "stop"),
		// The spec is made of the list.
		"tmpfs": slices.ContainsFunc(c.Tmpfs, func(f spec.Tmpfs) bool { return f.Size > max(pl.Tmp, pl.ShmSize) }),
	} {
		if bad {
			t.Errorf("%s: %+v %+v is more than %+v %+v", what, cr, cl, r, pl)
		}
	}
	for i, m := range cr.Mounts {
		if b.Mounts[i] == admission.NoAccess || b.Mounts[i] == admission.ReadAccess && !m.ReadOnly || b.Mounts[i] == admission.ProtectedAccess && !m.ReadOnly && !m.Protect {
			t.Errorf("mount %d of access %v: %+v", i, b.Mounts[i], m)
		}
	}
	for _, cp := range c.Profile.Capabilities {
		if !slices.Contains(pa.Profile.Capabilities, cp) {
			t.Errorf("it has %s", cp)
		}
	}
	// Its sums are held against the parent's by Family, as far as it has them.
	sum, have := admission.SumOf(cr.Rootfs == "ephemeral", cl), admission.Sum{}
	if !slices.ContainsFunc(admission.Family(&p.Sandbox, 1, have, sum), func(r api.Rule) bool { return !r.OK }) &&
		(cl.Memory > pl.Memory || cl.CPUs > pl.CPUs || cl.Pids > pl.Pids || sum.Disk > int64(pl.Disk)) {
		t.Errorf("sums: %+v is more than %+v", cl, pl)
	}
	return true
}

// TestOpenChild: what a request leaves open is what the parent has, so one
// that leaves everything open is let in, whatever the parent asked for.
func TestOpenChild(t *testing.T) {
	pol := endless(t)
	rapid.Check(t, func(t *rapid.T) {
		pa, err := admission.Resolve(drawRequest(t), pol)
		if err != nil {
			return
		}
		p := parentOf(pa)
		full := p.Inherit(api.SpawnRequest{}, pol)
		c, err := admission.Resolve(full, pol)
		if err != nil {
			t.Fatalf("%+v: %v", full, err)
		}
		p.Cap(c, full.Limits)
		rules := p.Judge(c, admission.Birth{Digest: p.Sandbox.ImageDigest})
		rules = append(rules, admission.Family(&p.Sandbox, 1, admission.Sum{}, admission.SumOf(c.Request.Rootfs == "ephemeral", c.Limits))...)
		if err := admission.Refusal(rules); err != nil {
			t.Fatalf("%+v: %v", c.Limits, err)
		}
	})
}

// TestFamilyIsAtomic: however children and grandchildren of one sandbox are
// asked for at one time, at no moment do they sum up to more than it has, nor
// are they more than there may be.
func TestFamilyIsAtomic(t *testing.T) {
	var tally admission.Tally
	top := api.Sandbox{ID: "top", Name: "top", Rootfs: "ephemeral", Limits: api.Limits{Memory: 100 << 20, CPUs: 3, Pids: 64, Disk: 20 << 20}}
	mid := api.Sandbox{ID: "mid", Name: "mid", Rootfs: "ephemeral", Limits: api.Limits{Memory: 40 << 20, CPUs: 1, Pids: 20, Disk: 8 << 20}}
	check := func(s *api.Sandbox) {
		f := tally.Families([]string{s.ID})[0]
		if l := s.Limits; f.Memory > int64(l.Memory) || float64(f.CPUs) > l.CPUs*1e6 || f.Pids > l.Pids || f.Disk > int64(l.Disk) || f.Sandboxes > admission.MaxDescendants {
			t.Errorf("below %s: %+v is more than %+v", s.ID, f, l)
		}
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	whose := map[bool]int{}
	for g := range 16 {
		wg.Go(func() {
			for i := range 400 {
				n, line := (g*7+i)%12, []*api.Sandbox{&top}
				if g%2 == 0 {
					line = []*api.Sandbox{&mid, &top}
				}
				p := admission.Part{UID: 1, Sum: admission.SumOf(i%2 == 0, api.Limits{Memory: api.Size(n) << 20, CPUs: float64(n) / 30, Pids: int64(n), Disk: api.Size(n) << 20})}
				for _, s := range line {
					p.Above = append(p.Above, s.ID)
				}
				id := fmt.Sprintf("%d-%d", g, i)
				err := tally.Take(id, p, func(_, _ admission.Sum, families []admission.Sum) error {
					var rules []api.Rule
					for i, s := range line {
						rules = append(rules, admission.Family(s, i+1, families[i], p.Sum)...)
					}
					return admission.Refusal(rules)
				})
				check(&top)
				check(&mid)
				mu.Lock()
				whose[err == nil]++
				mu.Unlock()
				if err == nil && i%3 > 0 {
					tally.Drop(id)
				} else if err != nil && api.CodeOf(err) != api.CodeExhausted {
					t.Errorf("refused with %v", err)
				}
			}
		})
	}
	wg.Wait()
	if whose[true] == 0 || whose[false] == 0 {
		t.Errorf("let in and refused: %v", whose)
	}
}

// TestParentRules: each rule says what is wrong and what to do.
func TestParentRules(t *testing.T) {
	pol := policy(t)
	pa, err := admission.Resolve(api.SpawnRequest{Profile: "strict", Agent: "a"}, pol)
	if err != nil {
		t.Fatal(err)
	}
	p := parentOf(pa)
	p.Depth = 3
	c, err := admission.Resolve(api.SpawnRequest{
		Profile: "build", Agent: "b", Image: "dev", Limits: api.Limits{Memory: 1 << 30, CPUs: 2, Pids: 500, Files: 4096, TTL: api.Duration(2 * time.Hour)},
	}, pol)
	if err != nil {
		t.Fatal(err)
	}
	rules := p.Judge(c, admission.Birth{Digest: "sha256:2", Weaker: []string{"seccomp build"}})
	for _, r := range rules {
		if want := "build (seccomp build, user, CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID)"; r.Rule == "parent.profile" && r.Asked != want {
			t.Errorf("profile: %q, want %q", r.Asked, want)
		}
	}
	rules = append(rules, admission.Family(&p.Sandbox, 1, admission.Sum{Sandboxes: 32}, admission.SumOf(true, c.Limits))...)
	var e *api.Error
	if !errors.As(admission.Refusal(rules), &e) || strings.Count(e.Hint, "end one of its parent's descendants, or ask for less") != 1 {
		t.Errorf("the hint says it more than once: %+v", e)
	}
	got := map[string]string{}
	for _, r := range rules {
		if !r.OK {
			got[r.Rule] = r.Fix
		}
	}
	c.Limits.TTL = 0 // for ever
	for _, r := range p.Judge(c, admission.Birth{}) {
		if r.Rule == "parent.ttl" && r.OK {
			t.Errorf("no end: %+v", r)
		}
	}
	for rule, fix := range map[string]string{
		"parent.depth":     "leave out the parent, or name one further up",
		"parent.agent":     "ask for agent a",
		"parent.image":     "leave out the image, or ask for sha256:base",
		"parent.profile":   "ask for profile strict",
		"parent.rootfs":    "ask for rootfs readonly",
		"parent.files":     "ask for files of at most 1024",
		"parent.ttl":       "ask for ttl of at most 1h0m0s",
		"parent.memory":    "end one of its parent's descendants, or ask for less",
		"parent.cpus":      "end one of its parent's descendants, or ask for less",
		"parent.pids":      "end one of its parent's descendants, or ask for less",
		"parent.sandboxes": "end one of its parent's descendants",
	} {
		if got[rule] != fix {
			t.Errorf("%s: %q, want %q", rule, got[rule], fix)
		}
	}
}
