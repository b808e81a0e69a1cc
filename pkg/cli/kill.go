package cli

import "github.com/spf13/cobra"

func killCommand(a *app) *cobra.Command {
	var sig string
	cmd := &cobra.Command{
		Use:   "kill [-s SIGNAL] SANDBOX...",
		Short: "Send a signal to a sandbox's command; KILL ends the sandbox",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(ref string) error {
				if err := a.client().Kill(cmd.Context(), ref, sig); err != nil {
					return err
				}
				return a.done(ref)
			})
		},
	}
	cmd.Flags().StringVarP(&sig, "signal", "s", "KILL", "name or number")
	return cmd
}
