package cli

import "github.com/spf13/cobra"

func removeCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm [-f] SANDBOX...",
		Short: "Remove sandboxes that have ended",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(ref string) error {
				if err := a.client().Remove(cmd.Context(), ref, force); err != nil {
					return err
				}
				return a.done(ref)
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also running ones, which are killed")
	return cmd
}
