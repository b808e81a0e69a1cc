package launcher

import (
	"context"
	"time"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/peer"
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
