package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/doctor"
)

func doctorCommand(a *app) *cobra.Command {
	var caller, workspace string
	cmd := &cobra.Command{
		Use:   "doctor [--caller USER] [--workspace DIR]",
		Short: "Say what this host can enforce, what is missing and how to mend it",
		Long: `Say, control by control, what this host can enforce, what is missing, what that
costs and how to mend it; and which leftovers there are.

When creeld does not answer, creel says why, and checks by itself what needs no
privilege. "creeld doctor", as root, checks all that creeld refuses to start
for, without starting it.

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

// doctorTimeout is how long the daemon may take. A socket of systemd's takes
// connections also while the daemon behind it fails to start.
const doctorTimeout = 15 * time.Second

func (a *app) doctor(ctx context.Context, caller, workspace string) error {
	if workspace != "" {
		abs, err := filepath.Abs(workspace)
		if err != nil {
			return err
		}
		workspace = abs
	}
	asked, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	d, err := a.client().Doctor(asked, caller, workspace)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = api.Errorf(api.CodeUnavailable, "socket %s: nothing answers within %s", a.client().Socket(), doctorTimeout)
	}
	if unanswered(err) {
		d, err = withoutDaemon(ctx, err, caller, workspace), nil
	}
	if err != nil {
		return err
	}
	if err = a.showDoctor(d); err == nil && doctor.Bad(d) != nil {
		err = &exitError{code: exitFailed}
	}
	return err
}

// unanswered tells that it was not the daemon that said so: its own refusals
// have a request id.
func unanswered(err error) bool {
	var e *api.Error
	return errors.As(err, &e) && e.Code == api.CodeUnavailable && e.RequestID == ""
}

// withoutDaemon is what creel itself can see of the host, and how to get at
// the rest.
func withoutDaemon(ctx context.Context, why error, caller, workspace string) *api.Doctor {
	check := api.Check{Name: "creeld", Status: doctor.Missing, Detail: why.Error(), Cost: "no sandbox can be started", Fix: wayToStart()}
	more := "sudo creeld doctor"
	if caller != "" {
		more += " --caller " + caller
	}
	out := api.Doctor{Checks: []api.Check{check}}
	if workspace != "" {
		// Which directories are never mounted, creel does not know.
		more += " --workspace " + workspace
		out.Checks = append(out.Checks, api.Check{
			Name: "workspace", Status: doctor.Weaker, Detail: workspace + ": not checked without creeld", Cost: "not known", Fix: more,
		})
	}
	out.Checks[0].Fix += "; for what it refuses to start for: " + more
	out.Checks = append(out.Checks, doctor.Run(ctx, doctor.Inputs{User: caller}).Checks...)
	return &out
}

// wayToStart says what to run when nobody listens.
func wayToStart() string {
	if _, err := exec.LookPath("creeld"); err != nil {
		return "creeld is not in PATH: install it (make install), or name its socket with --socket or CREEL_SOCKET"
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return "start creeld as root: its last line says why when it does not stay"
	}
	return "sudo systemctl start creeld; its last words: journalctl -u creeld -n 20"
}

// showDoctor writes the findings, as a table or as JSON. Leftovers that are
// nil were not looked for.
func (a *app) showDoctor(d *api.Doctor) error {
	if a.json {
		return a.writeJSON(d)
	}
	var t table
	t.header("", "CHECK", "DETAIL")
	for _, c := range d.Checks {
		mark := cell{c.Status, green}
		switch c.Status {
		case doctor.OK:
		case doctor.Weaker:
			mark.color = yellow
		default: // missing, danger, and what a newer daemon may add
			mark.color = red
		}
		for i, line := range strings.Split(c.Detail, "\n") {
			if i == 0 {
				t.row(mark, c.Name, line)
			} else {
				t.row("", "", line)
			}
		}
		if c.Cost != "" {
			t.row("", "", "cost: "+c.Cost)
		}
		if c.Fix != "" {
			t.row("", "", "fix:  "+c.Fix)
		}
	}
	err := a.writeTable(&t)
	if err == nil {
		err = a.writeLeftovers(d.Leftovers)
	}
	if bad := doctor.Bad(d); err == nil && bad != nil {
		_, err = fmt.Fprintf(a.Out, "\nmissing or dangerous: %s\n", printable(strings.Join(bad, ", ")))
	}
	return err
}

func (a *app) writeLeftovers(list []string) error {
	switch {
	case list == nil:
		_, err := fmt.Fprintln(a.Out, "\nleftovers: not looked for; creeld knows them when it runs")
		return err
	case len(list) == 0:
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
