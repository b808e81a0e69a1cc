package cli

import (
	"io"

	"github.com/spf13/cobra"
)

func identityCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "identity", Short: "Identities: what sandboxes prove who they are by", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use: "bundle", Short: "Print what sandboxes' X.509-SVIDs are verified with",
		Long: `Print the certificates of the box's SPIFFE trust domain, as PEM: a server that
requires clients' certificates of these authorities knows each sandbox by the
URI in its certificate, which "creel inspect" shows as its identity. A copy is
good for 90 days at least.`,
		Example: "  creel identity bundle > bundle.pem",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.client().TrustBundle(cmd.Context())
			if err != nil || a.json {
				return orJSON(a, b, err)
			}
			_, err = io.WriteString(a.Out, b.PEM)
			return err
		},
	})
	return cmd
}
