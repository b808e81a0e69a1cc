package cli

import (
	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func inspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect SANDBOX...",
		Short: "Show all that is known of a sandbox, as JSON",
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			// One is an object and several are a list.
			var list []*api.Sandbox
			err := a.each(refs, func(ref string) error {
				s, err := a.client().Inspect(cmd.Context(), ref)
				if err == nil {
					list = append(list, s)
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
		},
	}
}
