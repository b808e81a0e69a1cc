package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
)

func agentCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "agent", Short: "Agents: whom sandboxes belong to", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(agentListCommand(a), agentShowCommand(a), agentRevokeCommand(a), agentRestoreCommand(a), agentExpireCommand(a), agentReportCommand(a))
	return cmd
}

func agentListCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List agents", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		list, err := a.client().Agents(cmd.Context())
		if err != nil || a.json {
			return orJSON(a, list, err)
		}
		var t table
		t.header("ID", "NAME", "UID", "STATE", "SANDBOXES", "SPAWNS", "CREATED", "LAST USED", "EXPIRES", "CEILING")
		for _, g := range list {
			ceiling := "operator"
			if g.Given != nil {
				ceiling = g.Given.Ceiling
			}
			t.row(g.ID, g.Name, g.Caller.UID, g.State, g.Sandboxes, g.Spawns, ago(g.Created, time.Now()), ago(g.LastUsed, time.Now()), expiry(g), ceiling)
		}
		return a.writeTable(&t)
	}}
}

func agentShowCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "show AGENT", Short: "Show all that is known of an agent, as JSON", Args: args(1, 1), RunE: func(cmd *cobra.Command, names []string) error {
		g, err := a.client().Agent(cmd.Context(), names[0])
		if err != nil {
			return err
		}
		return a.writeJSON(g)
	}}
}

func agentRevokeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revoke AGENT", Short: "End an agent's sandboxes, and let it have no more",
		Long: `End all sandboxes of an agent, and let it have no more, until it is restored.
What an operator revokes, only an operator can restore.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, names []string) error {
			g, err := a.client().RevokeAgent(cmd.Context(), names[0])
			return a.saidAgent(g, err)
		},
	}
}

func agentRestoreCommand(a *app) *cobra.Command {
	return &cobra.Command{Use: "restore AGENT", Short: "Let a revoked agent have sandboxes again", Args: args(1, 1), RunE: func(cmd *cobra.Command, names []string) error {
		g, err := a.client().RestoreAgent(cmd.Context(), names[0])
		return a.saidAgent(g, err)
	}}
}

func agentExpireCommand(a *app) *cobra.Command {
	var in api.Duration
	var at string
	var never bool
	cmd := &cobra.Command{
		Use: "expire (--in TIME | --at RFC3339 | --never) AGENT", Short: "Say until when an agent may run",
		Long: `Say until when an agent may run. Then its sandboxes end, and it has no more.
Only an operator can give it more time than it has.`,
		Example: "  creel agent expire coder --in 24h",
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, names []string) error {
			req := api.ExpireRequest{Never: never}
			set := 0
			for _, name := range []string{"in", "at", "never"} {
				if cmd.Flags().Changed(name) {
					set++
				}
			}
			if set != 1 {
				return misuse("want one of --in, --at and --never")
			}
			switch {
			case at != "":
				var err error
				if req.At, err = time.Parse(time.RFC3339, at); err != nil {
					return misuse("--at %q: want a time such as %s", at, time.Now().UTC().Add(24*time.Hour).Format(time.RFC3339))
				}
			case !never:
				req.At = time.Now().UTC().Add(in.D()).Truncate(time.Second)
			}
			g, err := a.client().ExpireAgent(cmd.Context(), names[0], req)
			return a.saidAgent(g, err)
		},
	}
	durationVar(cmd.Flags(), &in, "in", "so long from now")
	cmd.Flags().StringVar(&at, "at", "", "at this time, as RFC 3339 has it")
	cmd.Flags().BoolVar(&never, "never", false, "never")
	return cmd
}

// expiry is when an agent's time is over, for people.
func expiry(g api.Agent) string {
	if g.Expires == nil || g.Expires.Time.IsZero() {
		return "never"
	}
	return g.Expires.Time.UTC().Format(time.RFC3339)
}

func (a *app) saidAgent(g *api.Agent, err error) error {
	if err != nil || a.json {
		return orJSON(a, g, err)
	}
	var t table
	row := []any{g.Name, g.State}
	if when := expiry(*g); when != "never" {
		row = append(row, "until "+when)
	}
	t.row(row...)
	return a.writeTable(&t)
}

func agentReportCommand(a *app) *cobra.Command {
	unused := api.Duration(agents.UnusedFor)
	cmd := &cobra.Command{
		Use: "report [--unused-for TIME]", Short: "List what agents were given and do not use",
		Long: `List agents that were not seen for long, are revoked, have expired or will within
a week, and of the others what
of their ceiling they never used: profiles, runtimes, directories, and totals of
which less than a quarter was ever used together.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Agents(cmd.Context())
			if err != nil {
				return err
			}
			found := agents.Report(list, time.Now(), unused.D())
			if a.json {
				return a.writeJSON(found)
			}
			var t table
			t.header("AGENT", "UID", "WHAT", "FIX")
			for _, f := range found {
				t.row(f.Agent, f.UID, strings.TrimSpace(f.What), f.Fix)
			}
			return a.writeTable(&t)
		},
	}
	durationVar(cmd.Flags(), &unused, "unused-for", "agents not seen for this long (30d)")
	return cmd
}
