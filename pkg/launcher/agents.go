package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/svid"
)

// ListAgents are the caller's, an operator's everybody's.
func (l *Launcher) ListAgents(c peer.Cred) []api.Agent {
	all := l.Agents.List(c.UID, l.Callers.Operator(c))
	for i := range all {
		all[i] = l.viewAgent(all[i])
	}
	return all
}

// FindAgent is one of them, by name or id.
func (l *Launcher) FindAgent(c peer.Cred, ref string) (*api.Agent, error) {
	a, err := l.Agents.Find(c.UID, l.Callers.Operator(c), ref)
	if err != nil {
		return nil, err
	}
	a = l.viewAgent(a)
	return &a, nil
}

func (l *Launcher) viewAgent(a api.Agent) api.Agent {
	a.Sandboxes, a.State = len(l.liveOf(a)), agents.State(a, time.Now())
	return a
}

// liveOf are an agent's sandboxes that have not ended.
func (l *Launcher) liveOf(a api.Agent) (out []*sandbox) {
	for _, sb := range l.all() {
		if r := &sb.fixed.Sandbox; r.Caller.UID == a.Caller.UID && r.Agent == a.Name && !ended(sb.state()) {
			out = append(out, sb)
		}
	}
	return out
}

// RevokeAgent lets an agent run no more and ends what it has. What is being
// made then is refused before its first instruction, or ended by the watch.
func (l *Launcher) RevokeAgent(ctx context.Context, c peer.Cred, ref string) (*api.Agent, error) {
	operator := l.Callers.Operator(c)
	a, err := l.changeAgent(c, ref, func(a api.Agent) (api.Agent, error) {
		return agents.Revoke(a, c.UID, operator, time.Now().UTC()), nil
	})
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit("agent.revoked"); err != nil {
		return nil, err
	}
	live := l.liveOf(a)
	for _, sb := range live {
		if sb.launched() == nil {
			sb.end(api.ReasonRevoked, nil)
		}
	}
	for _, sb := range live {
		select {
		case <-sb.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	a = l.viewAgent(a)
	return &a, nil
}

// RestoreAgent lets it run again.
func (l *Launcher) RestoreAgent(_ context.Context, c peer.Cred, ref string) (*api.Agent, error) {
	operator := l.Callers.Operator(c)
	a, err := l.changeAgent(c, ref, func(a api.Agent) (api.Agent, error) { return agents.Restore(a, operator) })
	if err != nil {
		return nil, err
	}
	a = l.viewAgent(a)
	return &a, nil
}

// ExpireAgent sets until when an agent may run. What it has then is ended by
// the watch.
func (l *Launcher) ExpireAgent(_ context.Context, c peer.Cred, ref string, at time.Time) (*api.Agent, error) {
	operator := l.Callers.Operator(c)
	a, err := l.changeAgent(c, ref, func(a api.Agent) (api.Agent, error) { return agents.Expire(a, at, c.UID, operator) })
	if err != nil {
		return nil, err
	}
	a = l.viewAgent(a)
	return &a, nil
}

// changeAgent commits a change. No sandbox is let in meanwhile.
func (l *Launcher) changeAgent(c peer.Cred, ref string, change func(api.Agent) (api.Agent, error)) (api.Agent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, err := l.Agents.Find(c.UID, l.Callers.Operator(c), ref)
	if err != nil {
		return a, err
	}
	if a, err = change(a); err != nil {
		return a, err
	}
	if err := l.Store.PutAgent(a); err != nil {
		return a, err
	}
	l.Agents.Put(a)
	return a, nil
}

// identityOf is the SPIFFE ID of a sandbox: its caller's name, or uid where the
// host has none that can be part of one, its agent and its own id. A user's name
// of digits alone is not taken for one, so that it is nobody else's uid.
func (l *Launcher) identityOf(s *api.Sandbox) (string, error) {
	uid := strconv.FormatUint(uint64(s.Caller.UID), 10)
	if u, err := user.LookupId(uid); err == nil && strings.Trim(u.Username, "0123456789") != "" {
		if id, err := l.Identities.ID("caller", u.Username, "agent", s.Agent, s.ID); err == nil {
			return id, nil
		}
	}
	return l.Identities.ID("caller", uid, "agent", s.Agent, s.ID)
}

// Identify signs who a sandbox is, as the process of a caller asks, for as long as
// it runs and its agent may.
func (l *Launcher) Identify(caller uint32, r link.Question) link.Reply {
	l.mu.Lock()
	sb := l.sandboxes[r.ID]
	l.mu.Unlock()
	if sb == nil || sb.fixed.Sandbox.Caller.UID != caller {
		return link.Reply{Refused: true, Error: "no such sandbox"}
	}
	rec := sb.record()
	if ended(rec.Sandbox.State) {
		return link.Reply{Refused: true, Error: "the sandbox has ended"}
	}
	if err := l.Agents.Check(caller, rec.Sandbox.Agent, time.Now()); err != nil {
		return link.Reply{Refused: true, Error: err.Error()}
	}
	signed, err := l.Identities.Sign(rec.Sandbox.Identity, r.Key)
	switch {
	case errors.Is(err, svid.ErrDomain):
		return link.Reply{Refused: true, Error: "the sandbox is of another trust domain than " + l.Identities.Domain() + "; make another"}
	case err != nil:
		return link.Reply{Error: err.Error()}
	}
	sb.mu.Lock()
	first := !sb.issued
	sb.issued = true
	sb.mu.Unlock()
	if first {
		l.publish("identity.issued", sb.identity(), "spiffe_id", signed.ID)
	}
	return link.Reply{SPIFFEID: signed.ID, Certificate: signed.Certificate, Bundle: signed.Bundle}
}

// Channel connects a sandbox to a server in the one that runs for another agent of
// its caller's, on its loopback. All who have a say in what it reaches have to
// allow it by the agent's name, which is judged here once more: who asks parses
// what agents send. What creel itself serves on a loopback is no agent's.
func (l *Launcher) Channel(ctx context.Context, caller uint32, q link.Question) (*net.TCPConn, error) {
	l.mu.Lock()
	sb := l.sandboxes[q.ID]
	l.mu.Unlock()
	if sb == nil || sb.fixed.Sandbox.Caller.UID != caller {
		return nil, errors.New("no such sandbox")
	}
	if err := channelAllowed(sb.record(), q); err != nil {
		return nil, err
	}
	var to *sandbox
	for _, other := range l.all() {
		s := &other.fixed.Sandbox
		if s.Caller.UID != caller || s.Agent != q.Agent || ended(other.state()) || other.launched() != nil {
			continue
		}
		if to != nil {
			return nil, fmt.Errorf("the agent %s has several sandboxes", q.Agent)
		}
		to = other
	}
	if to == nil {
		return nil, fmt.Errorf("the agent %s has no sandbox that runs", q.Agent)
	}
	if err := to.active(ctx); err != nil {
		return nil, err
	}
	rec := to.record()
	ns, err := netns.Open(rec.InitPID, rec.NetNS, reaches(&rec.Sandbox))
	if err != nil {
		return nil, errors.New("its sandbox has ended")
	}
	defer func() { _ = ns.Close() }()
	return ns.Dial(ctx, q.Port)
}

// channelAllowed is nil if a sandbox may be connected to an agent's server.
func channelAllowed(r *store.Record, q link.Question) error {
	name, err := egress.ParseName(q.Agent + ".agent.creel.internal")
	if agent, ok := name.Agent(); err != nil || !ok || agent != q.Agent {
		return fmt.Errorf("%.100q is no agent", q.Agent)
	}
	if q.Port == 0 || q.Port == steer.ProxyPort || q.Port == steer.WorkloadPort {
		return fmt.Errorf("port %d is no agent's", q.Port)
	}
	if ended(r.Sandbox.State) || !reaches(&r.Sandbox) {
		return errors.New("the sandbox has no network")
	}
	parties := slices.Clone(r.Sandbox.Egress)
	for _, o := range r.Approvals.EverOnce(parties) { // which of them is used, its own process knows
		for _, i := range o.Parties {
			parties[i].Rules = append(slices.Clone(parties[i].Rules), o.Rule)
		}
	}
	var all []*egress.Policy
	for _, p := range parties {
		pol, _ := egress.ParseLines(p.By, "egress", p.Rules) // nil allows nothing
		all = append(all, pol)
	}
	_, err = egress.NewSnapshot(all...).Connect(name, q.Port)
	return err
}
