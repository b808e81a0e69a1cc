package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

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
