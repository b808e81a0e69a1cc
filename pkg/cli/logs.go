package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

func logsCommand(a *app) *cobra.Command {
	var follow bool
	var tail, since string
	cmd := &cobra.Command{
		Use:   "logs [-f] [--tail N] [--since TIME] SANDBOX",
		Short: "Show what the main command wrote",
		Args:  args(1, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			opts := client.LogOptions{Follow: follow, Tail: -1}
			var err error
			if tail != "all" {
				if opts.Tail, err = strconv.Atoi(tail); err != nil || opts.Tail < 0 {
					return misuse("--tail %q is neither a number of lines nor \"all\"", tail)
				}
			}
			if opts.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			out, errOut := a.Out, a.Err
			if a.json {
				out, errOut = a.jsonStream("stdout"), a.jsonStream("stderr")
			}
			return a.client().Logs(cmd.Context(), refs[0], opts, out, errOut)
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on until the sandbox has ended")
	fl.StringVar(&tail, "tail", "all", "only the last lines")
	fl.StringVar(&since, "since", "", "only what is newer: a time (RFC 3339), or how long ago such as 10m")
	return cmd
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, misuse("--since %q is neither a time such as 2026-01-31T12:00:00Z nor a span such as 10m", s)
	}
	return t, nil
}

// jsonStream writes each piece of output as a JSON line. Bytes that are no
// UTF-8 become U+FFFD there; without --json they are passed on as they are.
func (a *app) jsonStream(name string) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		if err := a.writeJSONLine(map[string]string{"stream": name, "data": string(p)}); err != nil {
			return 0, fmt.Errorf("write log: %w", err)
		}
		return len(p), nil
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

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
