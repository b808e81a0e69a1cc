package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
)

func doctorCommand(a *app) *cobra.Command {
	var caller, workspace string
	cmd := &cobra.Command{
		Use:   "doctor [--caller USER] [--workspace DIR]",
		Short: "Say what this host can enforce, what is missing and how to mend it",
		Long: `Say, control by control, what this host can enforce, what is missing, what that
costs and how to mend it; and which leftovers there are.

The exit code is 1 when something is missing or dangerous.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.doctor(cmd.Context(), caller, workspace)
		},
	}
	cmd.Flags().StringVar(&caller, "caller", "", "also: is this user root already by another door?")
	cmd.Flags().StringVar(&workspace, "workspace", "", "also: can this directory be mounted?")
	return cmd
}

func (a *app) doctor(ctx context.Context, caller, workspace string) error {
	if workspace != "" {
		abs, err := filepath.Abs(workspace)
		if err != nil {
			return err
		}
		workspace = abs
	}
	d, err := a.client().Doctor(ctx, caller, workspace)
	if err != nil {
		return err
	}
	bad := false
	var t table
	t.header("", "CHECK", "DETAIL")
	for _, c := range d.Checks {
		mark := cell{c.Status, green}
		switch c.Status {
		case "ok":
		case "weaker":
			mark.color = yellow
		default: // missing, danger, and what a newer daemon may add
			mark.color, bad = red, true
		}
		t.row(mark, c.Name, c.Detail)
		if c.Cost != "" {
			t.row("", "", "cost: "+c.Cost)
		}
		if c.Fix != "" {
			t.row("", "", "fix:  "+c.Fix)
		}
	}
	if a.json {
		err = a.writeJSON(d)
	} else if err = a.writeTable(&t); err == nil {
		err = a.writeLeftovers(d.Leftovers)
	}
	if err == nil && bad {
		err = &exitError{code: exitFailed}
	}
	return err
}

func (a *app) writeLeftovers(list []string) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(a.Out, "\nno leftovers")
		return err
	}
	if _, err := fmt.Fprintln(a.Out, "\nleftovers:"); err != nil {
		return err
	}
	for _, l := range list {
		if _, err := fmt.Fprintf(a.Out, "  %s\n", printable(l)); err != nil {
			return err
		}
	}
	return nil
}
