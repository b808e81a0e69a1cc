package policy

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// Rules are the policy that is in force, and what each caller has used of its
// rates. They are safe for concurrent use.
type Rules struct {
	now    atomic.Pointer[Policy]
	spawns rates
	execs  rates
	load   load
}

// NewRules puts a policy in force.
func NewRules(p *Policy) *Rules {
	r := &Rules{}
	r.now.Store(p)
	return r
}

// Replace puts another in force, for what is asked from now on: what runs
// keeps what it was given.
func (r *Rules) Replace(p *Policy) { r.now.Store(p) }

// Operator says whether a caller sees and does all.
func (r *Rules) Operator(c peer.Cred) bool { return r.now.Load().Operator(c) }

// Known says whether a caller may ask for more than the version and a list.
func (r *Rules) Known(c peer.Cred) bool { return r.now.Load().unbounded(c) || r.Ceiling(c) != nil }

// Ceiling is what a caller may have; nil for an operator, who has none, also in
// its sandboxes, and for whoever is not Known.
func (r *Rules) Ceiling(c peer.Cred) *Ceiling {
	p := r.now.Load()
	if p.unbounded(c) {
		return nil
	}
	return p.Ceiling(c)
}

// unknownConnections is for callers without a ceiling.
const unknownConnections = 4

// Connections is how many a caller may have; 0 is no bound of its own.
func (r *Rules) Connections(c peer.Cred) int {
	switch ceiling := r.Ceiling(c); {
	case ceiling != nil:
		return ceiling.Connections
	case r.Operator(c):
		return 0
	}
	return unknownConnections
}

// Spawn and Exec count one more, or say when there is room for it.
func (r *Rules) Spawn(c peer.Cred) error {
	ceiling := r.Ceiling(c)
	if ceiling == nil {
		return nil
	}
	return r.spawns.take(c.UID, ceiling.SpawnRate, "ceiling.spawn_rate")
}

// Exec is Spawn for commands.
func (r *Rules) Exec(c peer.Cred) error {
	ceiling := r.Ceiling(c)
	if ceiling == nil {
		return nil
	}
	return r.execs.take(c.UID, ceiling.ExecRate, "ceiling.exec_rate")
}

// Rate is whether one more spawn would be counted, which it is not by asking.
func (r *Rules) Rate(c peer.Cred) []api.Rule {
	ceiling := r.Ceiling(c)
	if ceiling == nil || ceiling.SpawnRate == 0 {
		return nil
	}
	left := r.spawns.left(c.UID, ceiling.SpawnRate)
	rule := api.Rule{
		Rule: "ceiling.spawn_rate", Asked: fmt.Sprintf("%d are left", left), Allowed: fmt.Sprintf("%d in a minute", ceiling.SpawnRate),
		OK: left > 0, Total: true,
	}
	if left == 0 {
		rule.Fix = "wait"
	}
	return []api.Rule{rule}
}

// rates are a token bucket for each user: a minute's worth, filled evenly.
type rates struct {
	mu    sync.Mutex
	users map[uint32]*bucket
}

type bucket struct {
	*rate.Limiter
	perMinute int
}

// maxBuckets is when those that are full, and so say nothing, are dropped.
const maxBuckets = 1024

func (r *rates) take(uid uint32, perMinute int, rule string) error {
	if perMinute <= 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	b, ok := r.users[uid]
	if !ok {
		r.dropFullLocked(now)
		b = &bucket{rate.NewLimiter(perSecond(perMinute), perMinute), perMinute}
		r.users[uid] = b
	}
	if b.perMinute != perMinute { // the configuration was read again
		b.perMinute = perMinute
		b.SetLimitAt(now, perSecond(perMinute))
		b.SetBurstAt(now, perMinute)
	}
	if b.AllowN(now, 1) {
		return nil
	}
	wait := b.ReserveN(now, 1)
	delay := wait.DelayFrom(now)
	wait.CancelAt(now)
	e := api.Errorf(api.CodeExhausted, "%s is %d in a minute, and they are used up", rule, perMinute).
		WithHint(fmt.Sprintf("try again in %v, or have the operator raise it", max(delay.Round(time.Second), time.Second)))
	e.Retry = delay
	return e
}

func (r *rates) left(uid uint32, perMinute int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.users[uid]
	if !ok {
		return perMinute
	}
	return max(0, int(b.TokensAt(time.Now())))
}

func (r *rates) dropFullLocked(now time.Time) {
	if r.users == nil {
		r.users = map[uint32]*bucket{}
	}
	if len(r.users) < maxBuckets {
		return
	}
	for uid, b := range r.users {
		if b.TokensAt(now) >= float64(b.perMinute) {
			delete(r.users, uid)
		}
	}
}

func perSecond(perMinute int) rate.Limit { return rate.Limit(float64(perMinute) / 60) }
