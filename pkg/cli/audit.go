package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func auditCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "The audit log, and the key it is signed with", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(auditKeyCommand(a))
	return cmd
}

func auditKeyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Print the public key that the box signs with",
		Long: `Print the public key that the box signs evidence and the audit log with, as PEM.
Keep it on another machine: there it is what "creel evidence --verify" and
"creel audit verify" take.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := a.client().PublicKey(cmd.Context())
			if err != nil || a.json {
				return orJSON(a, k, err)
			}
			_, err = fmt.Fprint(a.Out, printableLines(k.PEM))
			return err
		},
	}
}
