package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

func psCommand(a *app) *cobra.Command {
	var all, quiet bool
	var filters []string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List sandboxes",
		Long: `List sandboxes.

A filter is label=NAME=VALUE, agent=NAME, status=STATE or image=REFERENCE (or its
digest). Of several agents, states or images any may be; of several labels all
must. A status finds ended sandboxes without -a.`,
		Example: `  creel ps -a -q --filter label=job=7 --filter status=stopped`,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts, err := parseFilters(filters, "label", "agent", "status", "image")
			if err != nil {
				return err
			}
			opts.All = all
			return a.ps(cmd.Context(), opts, quiet)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only ids")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only those with KEY=VALUE; may be repeated")
	return cmd
}

func (a *app) ps(ctx context.Context, opts client.ListOptions, quiet bool) error {
	list, err := a.client().List(ctx, opts)
	switch {
	case err != nil:
		return err
	case quiet:
		for _, s := range list {
			if _, err := fmt.Fprintln(a.Out, printable(s.ID)); err != nil {
				return err
			}
		}
		return nil
	case a.json:
		return a.writeJSON(list)
	}
	var t table
	t.header("ID", "NAME", "AGENT", "STATE", "PROFILE", "IMAGE", "CREATED", "EXECS", "LIMITS HIT")
	for _, s := range list {
		t.row(s.ID, s.Name, s.Agent, stateCell(s), s.Profile, imageCell(s), ago(s.Created, time.Now()), s.Execs, hits(s.LimitsHit))
	}
	return a.writeTable(&t)
}

// imageCell says when the image's name has gone over to another since.
func imageCell(s api.Sandbox) cell {
	if s.ImageMoved {
		return cell{s.Image + " (moved)", yellow}
	}
	return cell{s.Image, plain}
}

func stateCell(s api.Sandbox) cell {
	text := string(s.State)
	c := plain
	switch s.State {
	case api.StateRunning:
		c = green
	case api.StatePaused:
		c = yellow
		if s.Reason != "" {
			text += " (" + string(s.Reason) + ")"
		}
	case api.StateStopped:
		c = faint
		if e := ended(s.Reason, s.ExitCode); e != "" {
			text = e
		}
		if s.Reason != api.ReasonExited && s.Reason != api.ReasonStopped {
			c = red
		}
	case api.StateUnknown:
		c = red
	case api.StateCreating, api.StateStopping, api.StateRemoving:
	}
	return cell{text, c}
}
