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
			return inspectEach(a, refs, func(ref string) (*api.Sandbox, error) { return a.client().Inspect(cmd.Context(), ref) })
		},
	}
}

// inspectEach writes what get says of each: one is an object and several are
// a list.
func inspectEach[T any](a *app, refs []string, get func(ref string) (*T, error)) error {
	var list []*T
	err := a.each(refs, func(ref string) error {
		v, err := get(ref)
		if err == nil {
			list = append(list, v)
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
}
