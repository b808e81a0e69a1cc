package clienttest

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"
)

// Agents are two: one that uses little of what it has, and one that nobody
// has seen for a year.
func (d *Daemon) Agents(context.Context, server.Caller) ([]api.Agent, error) {
	now := time.Now()
	return []api.Agent{
		{
			ID: "aaaaaaaaaaaaaaaa", Name: "coder", State: "active", Created: now, LastUsed: now, Spawns: 3, Sandboxes: 1,
			Given: &api.Grant{Ceiling: "group:creel", Profiles: []string{"default", "strict"}, Runtimes: []string{"crun"}, Sandboxes: 8, Memory: 1 << 30, CPUs: 1, Pids: 64, Disk: 1},
			Used:  api.Grant{Profiles: []string{"default"}, Runtimes: []string{"crun"}, Sandboxes: 1, Memory: 1 << 29, CPUs: 1, Pids: 64, Disk: 1},
		},
		{ID: "bbbbbbbbbbbbbbbb", Name: "old\x1b[2J", State: "active", LastUsed: now.AddDate(-1, 0, 0)},
	}, nil
}

// Agent is one that is active.
func (d *Daemon) Agent(_ context.Context, _ server.Caller, ref string) (*api.Agent, error) {
	return &api.Agent{ID: "aaaaaaaaaaaaaaaa", Name: ref, State: "active"}, nil
}

// Approvals are one that waits.
func (d *Daemon) Approvals(context.Context, server.Caller, string, bool) ([]api.Approval, error) {
	return []api.Approval{testApproval()}, nil
}

// DecideApproval says that it did.
func (d *Daemon) DecideApproval(_ context.Context, _ server.Caller, id string, said api.ApprovalDecision) (*api.Approval, error) {
	a := testApproval()
	if id != a.ID {
		return nil, api.Errorf(api.CodeNotFound, "no approval %q", id)
	}
	a.State, a.For = api.ApprovalDenied, said.For
	if said.Allow {
		a.State = api.ApprovalAllowed
	}
	return &a, nil
}

func testApproval() api.Approval {
	return api.Approval{
		ID: "abc.1", Sandbox: "abc", Name: "box", Agent: "coder", To: "api.example.com:443", Rule: "api.example.com", RefusedBy: "the ceiling default",
		Approver: "caller", State: api.ApprovalPending, Times: 3, Expires: time.Now().Add(time.Hour),
	}
}

// ForgetEgress says that it did.
func (d *Daemon) ForgetEgress(_ context.Context, _ server.Caller, ref string, _ []string) (*api.Agent, error) {
	return &api.Agent{Name: ref}, nil
}

// RevokeAgent says that it did.
func (d *Daemon) RevokeAgent(_ context.Context, _ server.Caller, ref string) (*api.Agent, error) {
	return &api.Agent{Name: ref, State: "revoked"}, nil
}

// RestoreAgent says that it did.
func (d *Daemon) RestoreAgent(_ context.Context, _ server.Caller, ref string) (*api.Agent, error) {
	return &api.Agent{Name: ref, State: "active"}, nil
}

// ExpireAgent says that it did.
func (d *Daemon) ExpireAgent(_ context.Context, _ server.Caller, ref string, at time.Time) (*api.Agent, error) {
	a := &api.Agent{Name: ref, State: "active", Expires: &api.Expiry{Time: at}}
	return a, nil
}

// Explain refuses the profile "open", and counts the directories.
func (d *Daemon) Explain(_ context.Context, _ server.Caller, req api.SpawnRequest, dirs []*os.File) (*api.Decision, error) {
	profiles := api.Rule{Rule: "ceiling.profiles", Field: "profile", Asked: req.Profile, Allowed: "strict", OK: req.Profile != "open"}
	if !profiles.OK {
		profiles.Fix = "ask for profile strict"
	}
	mounts := api.Rule{Rule: "ceiling.mounts", Asked: fmt.Sprint(len(dirs)), Allowed: "own", OK: true}
	return &api.Decision{Allowed: profiles.OK, Ceiling: "group:\x1b[2Jcreel", Rules: []api.Rule{profiles, mounts}}, nil
}
