package cli

import (
	"context"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
)

type execFlags struct {
	req      api.ExecRequest
	env      []string
	envFiles []string
}

func execCommand(a *app) *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] SANDBOX [--] COMMAND [ARG...]",
		Short: "Run a command in a running sandbox",
		Long: `Run a command in a running sandbox.

creel exits with the command's own code; 128+n when signal n ended it; 124
timed out; 125 creel itself failed; 126 not executable; 127 not found. When
creel goes away, the command is killed with all it started.`,
		Example: `  creel exec helper -- ls -l
  creel exec -it helper bash`,
		Annotations: map[string]string{ownExit: "yes"},
		Args:        args(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd.Context(), &f, args[0], args[1:])
		},
	}
	fl := cmd.Flags()
	fl.BoolVarP(&f.req.Stdin, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&f.req.TTY, "tty", "t", false, "give the command a terminal")
	fl.StringVarP(&f.req.Workdir, "workdir", "w", "", "start in this directory of the sandbox")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set NAME=VALUE, or pass NAME on")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a file, one a line")
	durationVar(fl, &f.req.Timeout, "timeout", "end the command after this long (exit code 124)")
	fl.SetInterspersed(false) // what follows SANDBOX is the command's
	return cmd
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
	s := session{app: a, proc: proc, tty: req.TTY, stdin: req.Stdin, signals: forwarded(), kill: func(context.Context) error {
		return proc.Signal(syscall.SIGKILL)
	}}
	res, err := s.run(ctx)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	return a.finish(command, res)
}
