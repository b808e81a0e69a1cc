package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

func psCommand(a *app) *cobra.Command {
	var all, quiet bool
	var limit int
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
			return a.ps(cmd.Context(), opts, limit, quiet)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only ids")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only those with KEY=VALUE; may be repeated")
	addLimit(cmd, &limit, "the newest so many")
	return cmd
}

func (a *app) ps(ctx context.Context, opts client.ListOptions, limit int, quiet bool) error {
	list, err := pages(a, limit, maxPage, func(p client.Page) ([]api.Sandbox, string, error) { return a.client().ListPage(ctx, opts, p) })
	switch {
	case err != nil:
		return err
	case quiet && a.json:
		ids := []string{}
		for _, s := range list {
			ids = append(ids, s.ID)
		}
		return a.writeJSON(ids)
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
	head := []string{"ID", "NAME", "AGENT", "STATE", "PROFILE", "IMAGE", "CREATED", "EXECS", "LIMITS HIT"}
	families := slices.ContainsFunc(list, func(s api.Sandbox) bool { return s.Parent != "" })
	if families {
		head = append(head, "PARENT")
	}
	t.header(head...)
	for _, s := range list {
		row := []any{s.ID, s.Name, s.Agent, stateCell(s), s.Profile, imageCell(s), ago(s.Created, time.Now()), s.Execs, hits(s.LimitsHit)}
		if families {
			row = append(row, s.Parent)
		}
		t.row(row...)
	}
	return a.writeTable(&t)
}

// maxPage is the most items that the daemon has on one page.
const maxPage = 1000

func addLimit(cmd *cobra.Command, limit *int, what string) {
	cmd.Flags().IntVar(limit, "limit", 0, "only "+what+"; 0 is all")
}

// pages gets a list page by page, each at most size long, up to limit items,
// or all of them when that is 0. It says when there are more.
func pages[T any](a *app, limit, size int, get func(client.Page) ([]T, string, error)) ([]T, error) {
	if limit < 0 {
		return nil, misuse("--limit %d: want 1 or more, or 0 for all", limit)
	}
	list := []T{} // not null in JSON
	for p := (client.Page{}); ; {
		p.Limit = size
		if limit > 0 {
			p.Limit = min(size, limit-len(list))
		}
		items, next, err := get(p)
		if err != nil {
			return nil, err
		}
		list = append(list, items...)
		switch {
		case next == "":
			return list, nil
		case limit > 0 && len(list) >= limit:
			a.say("there are more than these %d", len(list))
			return list, nil
		case next == p.After:
			return nil, errors.New("the daemon answered the same page twice")
		}
		p.After = next
	}
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
