package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func explainCommand(a *app) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "explain [flags] [--] [COMMAND [ARG...]]",
		Short: "Say whether a run would be let in, rule by rule",
		Long: `Say whether a run of the same flags would be let in now, rule by rule, and what
would turn a no into a yes. It makes nothing and counts for nothing.

The exit code is 1 when it would be refused.`,
		Example: `  creel explain -v .:/workspace --memory 8G
  creel explain -f request.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(a, cmd.Flags(), args)
			if err != nil {
				return err
			}
			return a.decide(cmd.Context(), req)
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (a *app) decide(ctx context.Context, req api.SpawnRequest) error {
	d, err := a.client().Explain(ctx, req)
	if err != nil {
		return err
	}
	if a.json {
		err = a.writeJSON(d)
	} else {
		err = a.writeDecision(d)
	}
	if err == nil && !d.Allowed {
		return &exitError{1, nil}
	}
	return err
}

func (a *app) writeDecision(d *api.Decision) error {
	var t table
	t.header("", "RULE", "ASKED", "ALLOWED")
	for _, r := range d.Rules {
		mark := "ok"
		if !r.OK {
			mark = "NO"
		}
		rule := r.Rule
		if rule == "request" {
			rule = r.Field
		}
		t.row(mark, rule, r.Asked, r.Allowed)
	}
	if err := a.writeTable(&t); err != nil {
		return err
	}
	verdict := "allowed"
	if !d.Allowed {
		verdict = "refused"
	}
	if _, err := fmt.Fprintf(a.Out, "\n%s, by the ceiling of %s\n", verdict, printable(d.Ceiling)); err != nil {
		return err
	}
	for _, r := range d.Rules {
		if r.OK || r.Fix == "" {
			continue
		}
		if _, err := fmt.Fprintf(a.Out, "  fix: %s\n", printable(r.Fix)); err != nil {
			return err
		}
	}
	return nil
}
