package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
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
	var opts client.LogOptions
	var tail, since string
	cmd := &cobra.Command{
		Use:   "logs [-f] [--tail N] [--since TIME] [--exec EXEC] SANDBOX",
		Short: "Show what the commands of a sandbox wrote",
		Long: `Show what is kept of the output of a sandbox's commands.

The output of one command, which is the main command as long as there was no
other, comes byte for byte. That of several comes line by line, in the order of
time: each line begins with the exec's id, or main, and control characters in it
are escaped. --exec takes one of them: an id of creel exec ls, or main.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			opts.Tail = -1
			var err error
			if tail != "all" {
				if opts.Tail, err = strconv.Atoi(tail); err != nil || opts.Tail < 0 {
					return misuse("--tail %q is neither a number of lines nor \"all\"", tail)
				}
			}
			if opts.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			return a.logs(cmd.Context(), refs[0], opts)
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&opts.Follow, "follow", "f", false, "go on until the sandbox has ended")
	fl.StringVar(&tail, "tail", "all", "only the last lines")
	fl.StringVar(&since, "since", "", "only what is newer: a time (RFC 3339), or how long ago such as 10m")
	fl.StringVar(&opts.Exec, "exec", "", "only of this exec, or main")
	return cmd
}

func (a *app) logs(ctx context.Context, ref string, opts client.LogOptions) error {
	c := a.client()
	switch {
	case a.json && opts.Exec == "":
		return c.AllLogs(ctx, ref, opts, a.jsonOutput)
	case a.json:
		emit := func(stderr bool) io.Writer {
			return writerFunc(func(p []byte) (int, error) {
				return len(p), a.jsonOutput(client.Output{Exec: opts.Exec, Stderr: stderr, Data: p})
			})
		}
		return c.Logs(ctx, ref, opts, emit(false), emit(true))
	case opts.Exec != "":
		return c.Logs(ctx, ref, opts, a.Out, a.Err)
	}
	sb, err := c.Inspect(ctx, ref)
	if err != nil {
		return err
	}
	execs, err := c.Execs(ctx, ref, nil)
	if err != nil {
		return err
	}
	lines := tagged{out: a.Out, errOut: a.Err, on: len(execs) > 0 || len(sb.Command) == 0, open: map[line][]byte{}}
	return errors.Join(c.AllLogs(ctx, ref, opts, lines.add), lines.end())
}

// tagged writes the output of several commands so that each line says whose
// it is. What a command writes cannot look like another's line: that begins
// with its own tag too, and what moves a terminal's cursor is escaped.
type tagged struct {
	out, errOut io.Writer
	on          bool // else all was of the main command until now
	open        map[line][]byte
}

// line is where a line that has no end yet belongs.
type line struct {
	exec   string
	stderr bool
}

// lineMax is how much of a line is waited for.
const lineMax = 64 << 10

func (t *tagged) add(o client.Output) error {
	key := line{o.Exec, o.Stderr}
	if t.on = t.on || o.Exec != "main" && o.Exec != ""; !t.on {
		_, err := t.to(key).Write(o.Data)
		return err
	}
	text := append(t.open[key], o.Data...)
	for {
		i := bytes.IndexByte(text, '\n')
		if i < 0 && len(text) < lineMax {
			break
		}
		end := i
		if i < 0 {
			i, end = lineMax-1, lineMax
		}
		if err := t.write(key, text[:end]); err != nil {
			return err
		}
		text = text[i+1:]
	}
	if delete(t.open, key); len(text) > 0 {
		t.open[key] = bytes.Clone(text)
	}
	return nil
}

// end writes the lines that have none.
func (t *tagged) end() error {
	keys := slices.SortedFunc(maps.Keys(t.open), func(a, b line) int { return strings.Compare(a.exec, b.exec) })
	for _, key := range keys {
		if err := t.write(key, t.open[key]); err != nil {
			return err
		}
	}
	return nil
}

func (t *tagged) to(key line) io.Writer {
	if key.stderr {
		return t.errOut
	}
	return t.out
}

func (t *tagged) write(key line, text []byte) error {
	_, err := fmt.Fprintf(t.to(key), "%-12s | %s\n", printable(cmp.Or(key.exec, "creel")), printableLines(strings.TrimSuffix(string(text), "\r")))
	return err
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

// jsonOutput writes a piece of output as a JSON line. Bytes that are no UTF-8
// become U+FFFD there; with --exec, without --json, they are passed on as they
// are.
func (a *app) jsonOutput(o client.Output) error {
	stream := "stdout"
	if o.Stderr {
		stream = "stderr"
	}
	if err := a.writeJSONLine(map[string]string{"exec": o.Exec, "stream": stream, "data": string(o.Data)}); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
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
