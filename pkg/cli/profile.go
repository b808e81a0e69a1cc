package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

const maxProfile = 1 << 20

func profileCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "profile", Short: "Isolation profiles", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		&cobra.Command{Use: "ls", Short: "List profiles", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Profiles(cmd.Context())
			if err != nil || a.json {
				return orJSON(a, list, err)
			}
			var t table
			t.header("NAME", "SOURCE", "DESCRIPTION")
			for _, p := range list {
				t.row(p.Name, p.Source, p.Description)
			}
			return a.writeTable(&t)
		}},
		&cobra.Command{Use: "show NAME", Short: "Show a profile", Args: args(1, 1), RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.client().Profile(cmd.Context(), args[0])
			if err != nil || a.json {
				return orJSON(a, p, err)
			}
			_, err = fmt.Fprintf(a.Out, "# %s, from %s\n%s", printable(p.Name), printable(p.Source), printableLines(p.TOML))
			return err
		}},
		&cobra.Command{Use: "check FILE", Short: "Check a profile's file (- is standard input)", Args: args(1, 1), RunE: func(cmd *cobra.Command, args []string) error {
			b, err := readSmall(args[0], a.In, maxProfile)
			if err != nil {
				return err
			}
			if err := a.client().CheckProfile(cmd.Context(), b); err != nil {
				return err
			}
			if a.json {
				return a.writeJSON(map[string]bool{"ok": true})
			}
			_, err = fmt.Fprintln(a.Out, "ok")
			return err
		}},
	)
	return cmd
}

// orJSON writes v unless there is an error.
func orJSON(a *app, v any, err error) error {
	if err != nil {
		return err
	}
	return a.writeJSON(v)
}

func readSmall(name string, stdin io.Reader, most int64) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s: larger than %d bytes", name, most)
	}
	return b, err
}
