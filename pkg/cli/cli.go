// Package cli is creel's command line: one file for each verb
// or family of verbs.
//
// Results go to standard output and talk to standard error. Text that an
// agent could have made (file names, image names, evidence) is escaped before
// it reaches a terminal; only a command's own output is passed on as it is.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// The exit codes of creel itself. run and exec exit with the command's own
// code otherwise.
const (
	exitFailed   = 1
	exitMisuse   = 2
	exitOwn      = 125 // of run and exec: creel failed, not the command
	exitNotFound = 127 // as a shell's
)

// Stdio is where a command line reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// app is what every verb works with.
type app struct {
	Stdio
	socket string
	json   bool
	conn   *client.Client

	line []string // without the program's name

	// Of creel's other programs; nil in creel itself.
	serveMCP   func(context.Context, MCPOptions) error
	openRemote func(context.Context, PullOptions) (*RemoteImage, error)
}

func (a *app) client() *client.Client {
	if a.conn == nil {
		a.conn = client.New(a.socket)
	}
	return a.conn
}

// exitError ends the program with a code. It is printed when err is not nil.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// misuse is a command line that cannot be right.
func misuse(format string, args ...any) error {
	return &exitError{exitMisuse, fmt.Errorf(format, args...)}
}

// Main runs one command line, without the program's name, and returns its
// exit code.
func Main(ctx context.Context, args []string, stdio Stdio) int {
	return runMain(ctx, &app{Stdio: stdio, line: args})
}

func runMain(ctx context.Context, a *app) int {
	root := newRoot(a)
	root.SetArgs(a.line)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code, show := exitFailed, err
	var ee *exitError
	switch {
	case errors.As(err, &ee):
		code, show = ee.code, ee.err
	case isUsage(cmd, err):
		code = exitMisuse
	}
	if cmd != nil && cmd.Annotations[ownExit] != "" && (code == exitFailed || code == exitMisuse) && show != nil {
		code = exitOwn
	}
	if show != nil {
		a.printError(show)
	}
	if show != nil && isUsage(cmd, err) {
		fmt.Fprintf(a.Err, "See: %s --help\n", cmd.CommandPath())
	}
	return code
}

// ownExit marks the verbs that exit with the inner command's code.
const ownExit = "own-exit"

// isUsage tells cobra's own complaints, which have no type.
func isUsage(cmd *cobra.Command, err error) bool {
	if ee, ok := errors.AsType[*exitError](err); ok {
		return ee.code == exitMisuse
	}
	return cmd != nil && !cmd.HasParent() // only an unknown verb fails at the root
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "creel",
		Short:         "Run AI agents in sandboxes that are proven before they start",
		SilenceErrors: true,
		SilenceUsage:  true,
		// Without this cobra prints an error's usage by itself.
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("unknown verb %q", args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misuse("%w", err) })
	root.PersistentFlags().StringVar(&a.socket, "socket", "", "creeld's socket (CREEL_SOCKET, else "+client.DefaultSocket+")")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "write the result as JSON")
	if a.serveMCP != nil {
		root.AddCommand(mcpCommand(a))
		return root
	}
	if a.openRemote != nil {
		image := &cobra.Command{Use: "image", Args: args(0, 0), RunE: root.RunE}
		image.AddCommand(imagePullCommand(a))
		root.AddCommand(image)
		return root
	}
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Sandboxes:"}, &cobra.Group{ID: groupLook, Title: "Looking in:"},
		&cobra.Group{ID: groupBox, Title: "Images, volumes, profiles and the host:"})
	for _, g := range []struct {
		id   string
		cmds []*cobra.Command
	}{
		{groupRun, []*cobra.Command{
			runCommand(a), explainCommand(a), execCommand(a), attachCommand(a), forwardCommand(a), psCommand(a), stopCommand(a), killCommand(a),
			pauseCommand(a), resumeCommand(a), removeCommand(a), waitCommand(a), mcpCommand(a),
		}},
		{groupLook, []*cobra.Command{
			logsCommand(a), inspectCommand(a), cpCommand(a), lsCommand(a), diffCommand(a), commitCommand(a),
			statsCommand(a), topCommand(a), eventsCommand(a), evidenceCommand(a), auditCommand(a),
		}},
		{groupBox, []*cobra.Command{imageCommand(a), volumeCommand(a), secretCommand(a), egressCommand(a), identityCommand(a), agentCommand(a), profileCommand(a), openclawCommand(a), systemCommand(a), doctorCommand(a), versionCommand(a)}},
	} {
		for _, c := range g.cmds {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	return root
}

const (
	groupRun  = "run"
	groupLook = "look"
	groupBox  = "box"
)

// args checks the number of arguments; most < 0 means any number.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, got []string) error {
		if len(got) < least || most >= 0 && len(got) > most {
			return misuse("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// each runs fn for every ref, goes on after an error, and reports them all.
func (a *app) each(refs []string, fn func(ref string) error) error {
	failed := false
	for _, ref := range refs {
		if err := fn(ref); err != nil {
			a.printError(fmt.Errorf("%s: %w", ref, err))
			failed = true
		}
	}
	if failed {
		return &exitError{code: exitFailed}
	}
	return nil
}

// forEach is a command that does one thing to every sandbox it is given.
func (a *app) forEach(use, short string, fn func(ctx context.Context, ref string) error) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args(1, -1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(ref string) error {
				if err := fn(cmd.Context(), ref); err != nil {
					return err
				}
				return a.done(ref)
			})
		},
	}
}

// done says on stdout what a verb did its work on, as scripts expect.
func (a *app) done(ref string) error {
	if a.json {
		return a.writeJSON(map[string]string{"ref": ref})
	}
	_, err := fmt.Fprintln(a.Out, printable(ref))
	return err
}

// say writes one line of talk.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Err, "creel: %s\n", printable(fmt.Sprintf(format, args...)))
}

// printError writes an error, its problems and its hint, a line each.
func (a *app) printError(err error) {
	if a.json {
		e := &api.Error{Code: api.CodeInternal, Message: err.Error()}
		_ = errors.As(err, &e)
		if b, jerr := json.Marshal(e); jerr == nil {
			_, _ = fmt.Fprintf(a.Err, "%s\n", safeJSON(b))
			return
		}
	}
	var e *api.Error
	if !errors.As(err, &e) {
		a.say("%v", err)
		return
	}
	// What was wrapped around the daemon's error ("name: ...") stays in front.
	prefix := ""
	if full, own := err.Error(), e.Error(); len(full) > len(own) && full[len(full)-len(own):] == own {
		prefix = full[:len(full)-len(own)]
	}
	a.say("%s%s", prefix, e.Message)
	for _, p := range e.Problems {
		_, _ = fmt.Fprintf(a.Err, "  %s\n", printable(p.String()))
	}
	if e.Evidence != nil {
		for _, c := range e.Evidence.Controls {
			if !c.OK {
				_, _ = fmt.Fprintf(a.Err, "  %s: expected %s, observed %s\n",
					printable(c.Name), printable(c.Expected), printable(c.Observed))
			}
		}
	}
	if e.Hint != "" {
		_, _ = fmt.Fprintf(a.Err, "  hint: %s\n", printable(e.Hint))
	}
	if e.RequestID != "" && e.Code == api.CodeInternal {
		_, _ = fmt.Fprintf(a.Err, "  request id: %s\n", printable(e.RequestID))
	}
}

// isTerminal reports whether a stream is one.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && fileIsTerminal(f)
}
