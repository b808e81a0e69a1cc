package cli

import "github.com/spf13/cobra"

func resumeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "resume SANDBOX...",
		Short: "Let a frozen sandbox go on",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(ref string) error {
				if err := a.client().Resume(cmd.Context(), ref); err != nil {
					return err
				}
				return a.done(ref)
			})
		},
	}
}
