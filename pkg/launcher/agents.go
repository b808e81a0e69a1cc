package launcher

import (
	"context"
	"errors"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/peer"
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
func (l *Launcher) Identify(caller uint32, r link.SignRequest) link.Signed {
	l.mu.Lock()
	sb := l.sandboxes[r.ID]
	l.mu.Unlock()
	if sb == nil || sb.fixed.Sandbox.Caller.UID != caller {
		return link.Signed{Refused: true, Error: "no such sandbox"}
	}
	rec := sb.record()
	if ended(rec.Sandbox.State) {
		return link.Signed{Refused: true, Error: "the sandbox has ended"}
	}
	if err := l.Agents.Check(caller, rec.Sandbox.Agent, time.Now()); err != nil {
		return link.Signed{Refused: true, Error: err.Error()}
	}
	signed, err := l.Identities.Sign(rec.Sandbox.Identity, r.Key)
	switch {
	case errors.Is(err, svid.ErrDomain):
		return link.Signed{Refused: true, Error: "the sandbox is of another trust domain than " + l.Identities.Domain() + "; make another"}
	case err != nil:
		return link.Signed{Error: err.Error()}
	}
	if sb.firstTime("identity.issued") {
		l.publish("identity.issued", sb.identity(), "spiffe_id", signed.ID)
	}
	return link.Signed{SPIFFEID: signed.ID, Certificate: signed.Certificate, Bundle: signed.Bundle}
}
