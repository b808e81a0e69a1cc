// Package agents knows the agents that sandboxes belong to: who they are, what
// they were given and used, and whether they may run.
//
// An agent is a caller and a name. It is there from its first sandbox on and
// outlives them all. What is to be written is planned first (Use, Revoke,
// Restore, Expire), committed by whoever keeps the state, and then Put: what is in
// memory is never ahead of the disk.
package agents

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// MaxPerUser is how many agents one caller may have. Beyond it, the one that
// was unused for longest is forgotten, unless it has sandboxes, is revoked or
// has an end.
const MaxPerUser = 1024

// maxNames is how many names of each kind are remembered of what was used, and
// maxName how many bytes of each.
const (
	maxNames = 32
	maxName  = 256
)

// The states of an agent.
const (
	Active  = "active"
	Revoked = "revoked"
	Expired = "expired"
)

type key struct {
	uid  uint32
	name string
}

// Registry is all agents. It is safe for concurrent use.
type Registry struct {
	mu     sync.Mutex
	agents map[key]api.Agent
	users  map[uint32]int
}

// New makes a registry of what was kept.
func New(kept []api.Agent) *Registry {
	r := &Registry{agents: map[key]api.Agent{}, users: map[uint32]int{}}
	for _, a := range kept {
		r.Put(a)
	}
	return r
}

// Put is an agent as it is on disk now.
func (r *Registry) Put(a api.Agent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := key{a.Caller.UID, a.Name}
	if _, ok := r.agents[k]; !ok {
		r.users[k.uid]++
	}
	r.agents[k] = a
}

// Drop forgets one.
func (r *Registry) Drop(uid uint32, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.agents[key{uid, name}]; ok {
		delete(r.agents, key{uid, name})
		if r.users[uid]--; r.users[uid] == 0 {
			delete(r.users, uid)
		}
	}
}

// State is what an agent is at a moment: one that is active on disk has expired
// when its time is over, by the host's clock.
func State(a api.Agent, now time.Time) string {
	if e := a.Expires; a.State == Active && e != nil && !e.Time.IsZero() && !now.Before(e.Time) {
		return Expired
	}
	return a.State
}

// State is that of the agent of that name. One that is not known yet is active.
func (r *Registry) State(uid uint32, name string, now time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.agents[key{uid, name}]; ok {
		return State(a, now)
	}
	return Active
}

// Check is nil if an agent may run: an error of class permission_denied if it
// is revoked or has expired. One that is not known yet may.
func (r *Registry) Check(uid uint32, name string, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.agents[key{uid, name}]
	if !ok {
		return nil
	}
	switch State(a, now) {
	case Active:
		return nil
	case Expired:
		return api.Errorf(api.CodeDenied, "agent %q expired at %s", name, a.Expires.Time.UTC().Format(time.RFC3339)).
			WithHint("have an operator give it more time: creel agent expire " + a.ID + " --in 24h")
	}
	e := api.Errorf(api.CodeDenied, "agent %q is revoked", name).WithHint("creel agent restore " + name)
	if a.Revoked != nil && a.Revoked.Operator {
		e.Hint = "have an operator restore it"
	}
	return e
}

// Use is an agent as it is with one more sandbox, and, if there is no room for
// a new one, the agent that is forgotten for it. ttl is the agent_ttl of its
// ceiling, which counts from the first use under such a one. busy says whether
// an agent has sandboxes.
func (r *Registry) Use(newID string, caller api.Caller, name string, now time.Time, given *api.Grant, ttl time.Duration, used api.Grant, busy func(uid uint32, name string) bool) (next api.Agent, forget *api.Agent, err error) {
	if err := r.Check(caller.UID, name, now); err != nil {
		return next, nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next, ok := r.agents[key{caller.UID, name}]
	if !ok {
		if r.users[caller.UID] >= MaxPerUser {
			if forget = r.oldestLocked(caller.UID, busy); forget == nil {
				return next, nil, api.Errorf(api.CodeExhausted, "this user has %d agents that run, are revoked or have an end, the most there may be", MaxPerUser).
					WithHint("use the name of one that is there (creel agent ls)")
			}
		}
		next = api.Agent{ID: newID, Name: name, Caller: caller, State: Active, Created: now}
	}
	next.LastUsed, next.Given = now, given
	if next.Expires == nil && ttl > 0 {
		next.Expires = &api.Expiry{Time: now.Add(ttl), Ceiling: true}
	}
	next.Spawns++
	u := next.Used
	next.Used = api.Grant{
		Profiles: join(u.Profiles, used.Profiles), Runtimes: join(u.Runtimes, used.Runtimes),
		Images: join(u.Images, used.Images), Mounts: join(u.Mounts, used.Mounts), Socket: u.Socket || used.Socket,
		Sandboxes: max(u.Sandboxes, used.Sandboxes), Memory: max(u.Memory, used.Memory), CPUs: max(u.CPUs, used.CPUs),
		Pids: max(u.Pids, used.Pids), Disk: max(u.Disk, used.Disk),
	}
	if len(u.Egress)+len(used.Egress) > 0 {
		next.Used.Egress = join(u.Egress, used.Egress)
	}
	if len(u.Secrets)+len(used.Secrets) > 0 {
		next.Used.Secrets = join(u.Secrets, used.Secrets)
	}
	return next, forget, nil
}

// join is the newest of both, without doubles, the newest last.
func join(old, more []string) []string {
	out := slices.Clone(old)
	for _, m := range more {
		if len(m) > maxName {
			m = strings.ToValidUTF8(m[:maxName], "")
		}
		out = append(slices.DeleteFunc(out, func(o string) bool { return o == m }), m)
	}
	if out == nil {
		out = []string{}
	}
	return out[max(0, len(out)-maxNames):]
}

func (r *Registry) oldestLocked(uid uint32, busy func(uint32, string) bool) *api.Agent {
	var oldest *api.Agent
	for k, a := range r.agents {
		// Made again under its name, a revoked one would be active, and one with
		// an end would have all of its time once more.
		keep := a.State == Revoked || a.Expires != nil && !a.Expires.Time.IsZero()
		if k.uid == uid && !keep && (oldest == nil || a.LastUsed.Before(oldest.LastUsed)) && !busy(uid, k.name) {
			oldest = &a
		}
	}
	return oldest
}

// Revoke is an agent as it is when it may not run any more.
func Revoke(a api.Agent, by uint32, operator bool, now time.Time) api.Agent {
	if a.State == Revoked && (a.Revoked.Operator || !operator) {
		return a // as it is
	}
	a.State, a.Revoked = Revoked, &api.Revocation{Time: now, UID: by, Operator: operator}
	return a
}

// Restore is an agent that may run again. What an operator revoked, only an
// operator restores: the error is of class permission_denied.
func Restore(a api.Agent, operator bool) (api.Agent, error) {
	if a.Revoked != nil && a.Revoked.Operator && !operator {
		return a, api.Errorf(api.CodeDenied, "an operator revoked agent %q", a.Name).WithHint("have an operator restore it")
	}
	a.State, a.Revoked = Active, nil
	return a, nil
}

// Expire is an agent that may run until at, or for ever if that is zero. Only
// an operator gives it more time than it has, or takes back that an operator
// set one: the error is of class permission_denied.
func Expire(a api.Agent, at time.Time, by uint32, operator bool) (api.Agent, error) {
	if e := a.Expires; !operator && (at.IsZero() || e != nil && !e.Time.IsZero() && at.After(e.Time)) {
		return a, api.Errorf(api.CodeDenied, "only an operator gives agent %q more time", a.Name).WithHint("set an earlier time, or have an operator do it")
	}
	a.Expires = &api.Expiry{Time: at, UID: by, Operator: operator}
	return a, nil
}

// Find is the agent that ref, an id or a name, is to a user; to an operator
// (all), also of others.
func (r *Registry) Find(uid uint32, all bool, ref string) (api.Agent, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a, ok := r.agents[key{uid, ref}]; ok {
		return a, nil
	}
	var found []api.Agent
	for k, a := range r.agents {
		if (all || k.uid == uid) && (a.ID == ref || k.name == ref) {
			found = append(found, a)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return api.Agent{}, api.Errorf(api.CodeNotFound, "no agent %q", ref).WithHint("creel agent ls lists yours")
	}
	return api.Agent{}, api.Errorf(api.CodeConflict, "%d callers have an agent %q", len(found), ref).WithHint("use the id")
}

// List are a user's agents, to an operator (all) everybody's, by user and name.
func (r *Registry) List(uid uint32, all bool) []api.Agent {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []api.Agent{}
	for k, a := range r.agents {
		if all || k.uid == uid {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b api.Agent) int {
		return cmp.Or(cmp.Compare(a.Caller.UID, b.Caller.UID), cmp.Compare(a.Name, b.Name))
	})
	return out
}
