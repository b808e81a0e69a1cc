package cli

import (
	"cmp"
	"context"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

type execFlags struct {
	req      api.ExecRequest
	prepared string
	env      []string
	envFiles []string
	labels   []string
}

func execCommand(a *app) *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] (SANDBOX [--] COMMAND [ARG...] | --prepared ID)",
		Short: "Run a command in a running sandbox",
		Long: `Run a command in a running sandbox.

creel exits with the command's own code; 128+n when signal n ended it; 124
timed out; 125 creel itself failed; 126 not executable; 127 not found. When
creel goes away, the command is killed with all it started.

--prepared runs what another program has given the daemon before, so that this
command line tells nothing of it (POST /v1/sandboxes/SANDBOX/prepare). An id is
good for one run. --kill-tree has HUP, INT and TERM end the command with all it
started; without, they go to its first process.`,
		Example: `  creel exec helper -- ls -l
  creel exec -it helper bash
  creel exec ls helper`,
		Annotations: map[string]string{ownExit: "yes"},
		Args: func(cmd *cobra.Command, words []string) error {
			if f.prepared != "" {
				return args(0, 0)(cmd, words)
			}
			return args(2, -1)(cmd, words)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.prepared != "" {
				return a.execPrepared(cmd.Context(), f.prepared, f.req.Stdin)
			}
			return a.exec(cmd.Context(), &f, args[0], args[1:])
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.req.Stdin, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&f.req.TTY, "tty", "t", false, "give the command a terminal")
	fl.StringVarP(&f.req.Workdir, "workdir", "w", "", "start in this directory of the sandbox")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set NAME=VALUE, or pass NAME on")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a file, one a line")
	fl.StringArrayVar(&f.labels, "label", nil, "keep NAME=VALUE with the record of the command")
	fl.BoolVar(&f.req.KillTree, "kill-tree", false, "a signal that asks it to end ends all that it started")
	fl.StringVar(&f.prepared, "prepared", "", "run the command that was prepared under this id")
	for _, name := range []string{"tty", "workdir", "env", "env-file", "label", "kill-tree"} {
		cmd.MarkFlagsMutuallyExclusive("prepared", name)
	}
	fl.StringVar(&f.req.Logs, "logs", "", "none keeps nothing of the output")
	durationVar(fl, &f.req.Timeout, "timeout", "end the command after this long (exit code 124)")
	fl.SetInterspersed(false) // what follows SANDBOX is the command's
	cmd.AddCommand(execListCommand(a))
	return cmd
}

func execListCommand(a *app) *cobra.Command {
	var filters []string
	cmd := &cobra.Command{
		Use:   "ls SANDBOX",
		Short: "List the commands that exec runs and ran in a sandbox",
		Long: `List the commands that exec runs in a sandbox, and the newest 256 that it ran.

OUTPUT is the bytes that passed the daemon; it is - where none do. LOGS is none
for a command whose output is not kept (--logs none). A sandbox that is itself
called ls is reached by creel exec -- ls COMMAND.`,
		Args: args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFilters(filters, "label")
			if err != nil {
				return err
			}
			return a.execList(cmd.Context(), args[0], f.Labels)
		},
	}
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "only those with label=NAME=VALUE")
	return cmd
}

func (a *app) execList(ctx context.Context, ref string, labels map[string]string) error {
	execs, err := a.client().Execs(ctx, ref, labels)
	if err != nil {
		return err
	}
	if a.json {
		return a.writeJSON(execs)
	}
	var t table
	t.header("ID", "STARTED", "STATE", "TOOK", "OUTPUT", "LOGS", "LIMITS HIT", "COMMAND")
	for _, e := range execs {
		state, took, output, logs := cell{"running", green}, "-", "-", cmp.Or(e.Logs, "kept")
		if e.Reason != "" {
			state = cell{ended(e.Reason, e.ExitCode), plain}
			if e.Reason != api.ReasonExited {
				state.color = red
			}
		}
		if !e.Ended.IsZero() && e.ExitCode != nil {
			took = e.Ended.Sub(e.Started).Round(time.Millisecond).String()
		}
		if e.OutputBytes != nil {
			output = size(*e.OutputBytes)
		}
		t.row(e.ID, ago(e.Started, time.Now()), state, took, output, logs, hits(e.LimitsHit), words(e.Command, e.Cut))
	}
	return a.writeTable(&t)
}

// words is a command on one line, for reading: quotes in it are not escaped.
func words(args []string, cut bool) string {
	var b strings.Builder
	for i, arg := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		if arg == "" || strings.ContainsFunc(arg, unicode.IsSpace) {
			arg = "'" + arg + "'"
		}
		b.WriteString(arg)
	}
	if cut {
		b.WriteString("...")
	}
	return b.String()
}

func (a *app) exec(ctx context.Context, f *execFlags, ref string, command []string) error {
	if command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 {
		return &exitError{exitOwn, misuse("no command")}
	}
	req := f.req
	req.Command = command
	var err error
	if req.Env, err = environment(f.env, f.envFiles); err != nil {
		return &exitError{exitOwn, err}
	}
	if req.Labels, err = parseLabels(f.labels); err != nil {
		return &exitError{exitOwn, err}
	}
	if err := a.streamsOf(req.Stdin, req.TTY); err != nil {
		return &exitError{exitOwn, err}
	}
	if req.TTY {
		req.Cols, req.Rows = sizeOr(a.In)
	}
	proc, err := a.client().StartExec(ctx, ref, req)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	return a.execution(ctx, proc, req.TTY, req.Stdin, command)
}

func (a *app) execPrepared(ctx context.Context, id string, stdin bool) error {
	proc, err := a.client().StartPrepared(ctx, id, stdin)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	return a.execution(ctx, proc, false, stdin, nil)
}

// execution is this terminal's part of a command that runs, to its end.
func (a *app) execution(ctx context.Context, proc *client.Process, tty, stdin bool, command []string) error {
	s := session{app: a, proc: proc, tty: tty, stdin: stdin, signals: forwarded(), kill: func(context.Context) error {
		return proc.Signal(syscall.SIGKILL)
	}}
	res, err := s.run(ctx)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	return a.finish(command, res)
}
