package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func inspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SANDBOX...",
		Short: "Show all that is known of a sandbox, as JSON",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return inspectEach(a, refs, func(ref string) (*api.Sandbox, error) { return a.client().Inspect(cmd.Context(), ref) })
		},
	}
}

// inspectEach writes what get says of each: one is an object and several are
// a list.
func inspectEach[T any](a *app, refs []string, get func(ref string) (*T, error)) error {
	var list []*T
	err := a.each(refs, func(ref string) error {
		v, err := get(ref)
		if err == nil {
			list = append(list, v)
		}
		return err
	})
	var out any = list
	if len(refs) == 1 {
		if err != nil {
			return err
		}
		out = list[0]
	}
	if werr := a.writeJSON(out); werr != nil {
		return werr
	}
	return err
}

func evidenceCommand(a *app) *cobra.Command {
	var fresh bool
	cmd := &cobra.Command{
		Use:   "evidence [--fresh] SANDBOX",
		Short: "Show the proof of a sandbox's isolation",
		Long: `Show what was read back from the kernel of a sandbox, control by control.

The exit code is 1 when a control was not in force.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.evidence(cmd.Context(), refs[0], fresh)
		},
	}
	cmd.Flags().BoolVar(&fresh, "fresh", false, "read it from the kernel again now")
	return cmd
}

func (a *app) evidence(ctx context.Context, ref string, fresh bool) error {
	list, err := a.client().Evidence(ctx, ref, fresh)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return api.Errorf(api.CodeNotFound, "there is no evidence of %s", ref)
	}
	if a.json {
		err = a.writeJSON(list)
	} else {
		err = a.writeEvidence(list[0])
	}
	if err == nil && !list[0].OK {
		err = &exitError{code: exitFailed}
	}
	return err
}

func (a *app) writeEvidence(e api.Evidence) error {
	var t table
	t.header("", "CONTROL", "EXPECTED", "OBSERVED")
	bad := 0
	for _, c := range e.Controls {
		mark := cell{"ok", green}
		if !c.OK {
			mark = cell{"FAIL", red}
			bad++
		}
		t.row(mark, c.Name, shorten(c.Expected), shorten(c.Observed))
	}
	if err := a.writeTable(&t); err != nil {
		return err
	}
	verdict := fmt.Sprintf("all %d controls in force", len(e.Controls))
	if bad > 0 || !e.OK {
		verdict = fmt.Sprintf("%d of %d controls NOT in force", bad, len(e.Controls))
	}
	if _, err := fmt.Fprintf(a.Out, "\nsandbox %s: %s (%s, %s)\n", printable(e.Sandbox), verdict,
		printable(e.Why), e.Taken.Local().Format(time.RFC3339)); err != nil {
		return err
	}
	for _, w := range e.Weaker {
		if _, err := fmt.Fprintf(a.Out, "weaker here: %s\n", printable(w)); err != nil {
			return err
		}
	}
	return nil
}

// shorten keeps a long value from pushing the table off the screen; --json has
// all of it.
func shorten(s string) string {
	const most = 64
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-3]) + "..."
}
