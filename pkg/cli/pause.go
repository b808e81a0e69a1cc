package cli

import "github.com/spf13/cobra"

func pauseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pause SANDBOX...",
		Short: "Freeze a sandbox",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(ref string) error {
				if err := a.client().Pause(cmd.Context(), ref); err != nil {
					return err
				}
				return a.done(ref)
			})
		},
	}
}
