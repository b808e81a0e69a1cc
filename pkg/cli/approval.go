package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func egressPendingCommand(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "pending [--all] [SANDBOX]", Short: "List what sandboxes were refused and somebody may let",
		Long: `List what your sandboxes were refused and somebody may let, each destination once,
with the rule that lets it: what only the sandbox's own request does not name, and
what its ceiling has under ask. What nobody answers is denied in the end. All else
that was refused is in creel egress log.`,
		Args: args(0, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			ref := ""
			if len(refs) > 0 {
				ref = refs[0]
			}
			list, err := a.client().Approvals(cmd.Context(), ref, all)
			if err != nil || a.json {
				return orJSON(a, list, err)
			}
			var t table
			t.header("ID", "SANDBOX", "AGENT", "TO", "TIMES", "REFUSED BY", "RULE", "BY WHOM", "STATE")
			for _, p := range list {
				t.row(p.ID, p.Name, p.Agent, p.To, p.Times, p.RefusedBy, fmt.Sprintf("%q", p.Rule), p.Approver, approvalState(p, time.Now()))
			}
			return a.writeTable(&t)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "what was decided, too")
	return cmd
}

// approvalState is how far it has come, in words.
func approvalState(p api.Approval, now time.Time) string {
	switch {
	case p.State == api.ApprovalPending:
		return fmt.Sprintf("pending, %s left", max(0, p.Expires.Sub(now)).Round(time.Second))
	case p.For != "":
		return fmt.Sprintf("%s (%s)", p.State, p.For)
	}
	return string(p.State)
}

func egressApproveCommand(a *app) *cobra.Command {
	var once, agent bool
	cmd := &cobra.Command{
		Use: "approve [--once | --agent] ID", Short: "Let what a sandbox was refused",
		Long: `Let what a sandbox was refused: until it ends; with --once for the next connection
or request that needs it; with --agent for all later sandboxes of its agent as
well, whose rules are shown as they change. creel egress forget takes those back.`,
		Example: "  creel egress pending\n  creel egress approve --once k3v7q2m5x4w6b7n2.1",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			d := api.ApprovalDecision{Allow: true, For: api.ForSandbox}
			switch {
			case once:
				d.For = api.ForOnce
			case agent:
				d.For = api.ForAgent
			}
			p, err := a.client().DecideApproval(cmd.Context(), ids[0], d)
			if err != nil || a.json {
				return orJSON(a, p, err)
			}
			if d.For != api.ForAgent {
				_, err = fmt.Fprintf(a.Out, "%s may reach %s (%s)\n", printable(p.Name), printable(p.Rule), d.For)
				return err
			}
			sb, err := a.client().Inspect(cmd.Context(), p.Sandbox)
			if err != nil {
				return err
			}
			g, err := a.client().Agent(cmd.Context(), sb.AgentID) // its name may be another caller's as well
			if err != nil {
				return err
			}
			return a.egressDiff(g, p.Rule, "+")
		},
	}
	f := cmd.Flags()
	f.BoolVar(&once, "once", false, "for one connection or request")
	f.BoolVar(&agent, "agent", false, "for the agent's later sandboxes, too")
	cmd.MarkFlagsMutuallyExclusive("once", "agent")
	return cmd
}

// egressDiff shows an agent's rules, as a change of one.
func (a *app) egressDiff(g *api.Agent, rule, mark string) error {
	if _, err := fmt.Fprintf(a.Out, "agent %s\n", printable(g.Name)); err != nil {
		return err
	}
	for _, r := range g.Egress {
		at := " "
		if r.Rule == rule {
			at = mark
		}
		if _, err := fmt.Fprintf(a.Out, "%s %s\n", at, printable(r.Rule)); err != nil {
			return err
		}
	}
	return nil
}

func egressDenyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "deny ID...", Short: "Deny what a sandbox was refused for good",
		Args: args(1, -1),
		RunE: func(cmd *cobra.Command, ids []string) error {
			denied := []*api.Approval{}
			for _, id := range ids {
				p, err := a.client().DecideApproval(cmd.Context(), id, api.ApprovalDecision{})
				if err != nil {
					return err
				}
				denied = append(denied, p)
			}
			if a.json {
				return a.writeJSON(denied)
			}
			return nil
		},
	}
}

func egressForgetCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "forget AGENT [RULE...]", Short: "Take back what was let for an agent",
		Long: `Take back rules that were let for an agent, or all without any. creel agent show
lists them. What runs keeps what it has.`,
		Args: args(1, -1),
		RunE: func(cmd *cobra.Command, words []string) error {
			g, err := a.client().ForgetEgress(cmd.Context(), words[0], words[1:])
			if err != nil || a.json {
				return orJSON(a, g, err)
			}
			return a.egressDiff(g, "", "")
		},
	}
}
