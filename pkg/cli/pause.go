package cli

import (
	"context"

	"github.com/spf13/cobra"
)

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
