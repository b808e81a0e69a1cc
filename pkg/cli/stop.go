package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func stopCommand(a *app) *cobra.Command {
	grace := api.Duration(10 * time.Second)
	cmd := &cobra.Command{
		Use:   "stop [-t TIME] SANDBOX...",
		Short: "Ask a sandbox's command to end, then kill it",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			d := grace.D()
			return a.each(refs, func(ref string) error {
				res, err := a.client().Stop(cmd.Context(), ref, &d)
				if err != nil {
					return err
				}
				if a.json {
					return a.writeJSON(res)
				}
				return a.done(ref)
			})
		},
	}
	cmd.Flags().VarP(&text[api.Duration, *api.Duration]{v: &grace, kind: "duration", raw: "10s"}, "time", "t", "how long to wait before it is killed")
	return cmd
}

func killCommand(a *app) *cobra.Command {
	var sig string
	cmd := a.forEach("kill [-s SIGNAL] SANDBOX...", "Send a signal to a sandbox's command; KILL ends the sandbox", func(ctx context.Context, ref string) error {
		return a.client().Kill(ctx, ref, sig)
	})
	cmd.Flags().StringVarP(&sig, "signal", "s", "KILL", "name or number")
	return cmd
}

func pauseCommand(a *app) *cobra.Command {
	return a.forEach("pause SANDBOX...", "Freeze a sandbox", func(ctx context.Context, ref string) error {
		return a.client().Pause(ctx, ref)
	})
}

func resumeCommand(a *app) *cobra.Command {
	return a.forEach("resume SANDBOX...", "Let a frozen sandbox go on", func(ctx context.Context, ref string) error {
		return a.client().Resume(ctx, ref)
	})
}

func waitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "wait SANDBOX...",
		Short: "Wait until a sandbox has ended and print its exit code",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(ref string) error {
				res, err := a.client().Wait(cmd.Context(), ref)
				if err != nil {
					return err
				}
				if a.json {
					return a.writeJSON(res)
				}
				_, err = fmt.Fprintln(a.Out, res.ExitCode)
				return err
			})
		},
	}
}

func removeCommand(a *app) *cobra.Command {
	var force bool
	cmd := a.forEach("rm [-f] SANDBOX...", "Remove sandboxes that have ended", func(ctx context.Context, ref string) error {
		return a.client().Remove(ctx, ref, force)
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also running ones, which are killed")
	return cmd
}
