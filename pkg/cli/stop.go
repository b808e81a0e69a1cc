package cli

import (
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
