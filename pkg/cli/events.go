package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

func eventsCommand(a *app) *cobra.Command {
	var after uint64
	cmd := &cobra.Command{
		Use:   "events [--after NUMBER]",
		Short: "Show what happens, as it happens",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.client().Events(cmd.Context(), after, a.writeEvent)
			if cmd.Context().Err() != nil {
				return nil // Ctrl-C is how one leaves
			}
			return err
		},
	}
	cmd.Flags().Uint64Var(&after, "after", 0, "only events after this number")
	return cmd
}

func (a *app) writeEvent(ev api.Event) error {
	if a.json {
		return a.writeJSONLine(ev)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s %s", ev.Seq, ev.Time.Local().Format("2006-01-02T15:04:05.000"), printable(ev.Type))
	for _, f := range [][2]string{{"sandbox", ev.Sandbox}, {"name", ev.Name}} {
		if f[1] != "" {
			fmt.Fprintf(&b, " %s=%s", f[0], printable(f[1]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(ev.Fields)) {
		v := printable(ev.Fields[k])
		if v == "" || strings.ContainsAny(v, ` "=`) {
			v = `"` + strings.ReplaceAll(v, `"`, `\"`) + `"`
		}
		fmt.Fprintf(&b, " %s=%s", printable(k), v)
	}
	_, err := fmt.Fprintln(a.Out, b.String())
	return err
}
