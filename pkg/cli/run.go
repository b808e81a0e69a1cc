package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

type runFlags struct {
	req         api.SpawnRequest
	file        string
	detach      bool
	ensure      bool
	interactive bool
	mounts      []string
	env         []string
	envFiles    []string
	labels      []string
	pull        string
	pullFlags
}

func runCommand(a *app) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "Launch a sandbox and run a command in it",
		Long: `Launch a sandbox, prove its isolation, and run a command in it.

In the foreground creel exits with the command's own code; 128+n when signal n
ended it; 124 timed out; 125 creel itself failed; 126 not executable; 127 not
found. Ctrl-C goes to the command; the third in a row kills it. Without a
command the sandbox waits for execs.

An image that is not here and whose name says of which registry it is, such as
ghcr.io/team/tools:1 or docker.io/library/debian:12, is pulled first, as by
"creel image pull". --pull never does not, --pull always asks the registry each
time. A short name, such as base, is never pulled.

When creel itself is killed, the command runs on; creel attach joins it again.
With --rm, creeld removes the sandbox when the command has ended, whatever
became of creel.`,
		Example: `  creel run -v .:/workspace -- python3 analyse.py
  creel run -it --rm -- bash
  creel run -d --name helper --ttl 2h
  creel run -f request.json`,
		Annotations: map[string]string{ownExit: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), cmd, &f, args)
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().SetInterspersed(false) // what follows COMMAND is the command's
	return cmd
}

func (f *runFlags) register(fl *pflag.FlagSet) {
	r := &f.req
	fl.StringVarP(&f.file, "file", "f", "", "read the whole request from a JSON file (- is standard input)")
	fl.BoolVarP(&f.detach, "detach", "d", false, "print the id and leave it running")
	fl.BoolVar(&f.ensure, "ensure", false, "with -d and --name: if that sandbox is there and the same, print its id")
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&r.TTY, "tty", "t", false, "give the command a terminal")
	fl.BoolVar(&r.Remove, "rm", false, "remove the sandbox when it has ended")
	fl.BoolVar(&r.Trace, "trace", false, "show what each step of the launch took")
	durationVar(fl, &r.Timeout, "timeout", "end the command after this long (exit code 124)")
	fl.StringVar(&r.Name, "name", "", "name of the sandbox")
	fl.StringVar(&f.pull, "pull", pullMissing, "pull the image: missing, always or never")
	f.pullFlags.register(fl)
	f.registerSandbox(fl)
}

// registerSandbox are the flags that say what a sandbox is, whatever runs in it.
func (f *runFlags) registerSandbox(fl *pflag.FlagSet) {
	r, l := &f.req, &f.req.Limits
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set NAME=VALUE, or pass NAME on")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a file, one a line")
	fl.StringVarP(&r.Workdir, "workdir", "w", "", "start in this directory of the sandbox")
	fl.StringArrayVarP(&f.mounts, "volume", "v", nil, "show a directory or a volume: DIR:DST[:ro] or NAME:DST[:ro]; DST may lie in another's; :own for a directory that no other sandbox is to have, :protect to have what runs on the host later (.git/hooks, .envrc, CI files) read-only in it")
	fl.StringVar(&r.Agent, "agent", "", "agent it belongs to")
	fl.StringVar(&r.Parent, "parent", "", "make it a child of this sandbox: with no more than that has, and ending with it")
	fl.BoolVar(&r.Socket, "grant-socket", false, "let the agent make children of this sandbox, by /run/creel/creel.sock in it")
	fl.StringVar(&r.Profile, "profile", "", "isolation profile")
	fl.StringVar(&r.Image, "image", "", "image")
	fl.StringVar(&r.Rootfs, "rootfs", "", "readonly or ephemeral")
	fl.StringVar(&r.Home, "home", "", "ephemeral, or persistent: a volume of the agent's")
	fl.StringVar(&r.Runtime, "runtime", "", "crun or runc")
	fl.StringVar(&r.Network, "network", "", "none, or policy: what --allow, the profile and the caller's ceiling let be reached")
	fl.StringArrayVar(&r.Egress, "allow", nil, "let it reach HOST[:PORT], a rule such as \"tcp git.example.com:22\", or a preset's such as @github; means --network policy")
	fl.StringArrayVar(&r.Secrets, "secret", nil, "let its requests go out with this secret, see creel secret; means --network policy")
	fl.StringArrayVar(&f.labels, "label", nil, "keep NAME=VALUE with the sandbox")
	fl.StringVar(&r.Logs, "logs", "", "none keeps nothing of any output")
	sizeVar(fl, &l.Memory, "memory", "memory, such as 512M")
	fl.Float64Var(&l.CPUs, "cpus", 0, "processors, such as 1.5")
	fl.Int64Var(&l.Pids, "pids", 0, "processes and threads")
	fl.Int64Var(&l.Files, "files", 0, "open files of a process")
	sizeVar(fl, &l.Disk, "disk", "writable root (--rootfs ephemeral)")
	sizeVar(fl, &l.Tmp, "tmp", "all temporary directories together")
	sizeVar(fl, &l.ShmSize, "shm-size", "/dev/shm, counted as memory (256M)")
	sizeVar(fl, &l.EgressBytes, "egress-bytes", "end the sandbox when so much has gone out and come back")
	fl.Int64Var(&l.EgressConnections, "egress-connections", 0, "end it after so many connections")
	fl.Int64Var(&l.EgressRequests, "egress-requests", 0, "end it after so many requests that are read")
	durationVar(fl, &l.TTL, "ttl", "end the sandbox this long after its start")
	durationVar(fl, &l.Idle, "idle", "how long it may do nothing")
	fl.StringVar(&l.OnIdle, "on-idle", "", "pause or stop")
}

// withFile are the flags that go with -f; the others would say things twice.
var withFile = map[string]bool{"file": true, "detach": true, "ensure": true, "trace": true, "rm": true, "json": true, "socket": true, "pull": true, "authfile": true, "tls-verify": true}

// request joins flags, file and arguments, and reports all that is wrong.
func (f *runFlags) request(a *app, fl *pflag.FlagSet, args []string) (api.SpawnRequest, error) {
	if f.file != "" {
		return f.fromFile(a, fl, args)
	}
	req, err := f.sandbox()
	req.Command = args
	req.Stdin = f.interactive
	if len(args) > 0 && fl.ArgsLenAtDash() != 0 && looksLikeImage(args[0]) {
		err = errors.Join(err, fmt.Errorf("%q looks like an image; name it with: --image %s", args[0], args[0]))
	}
	return req, err
}

// sandbox joins the flags of registerSandbox.
func (f *runFlags) sandbox() (api.SpawnRequest, error) {
	req := f.req
	var errs []error
	for _, m := range f.mounts {
		mount, err := parseMount(m)
		errs = append(errs, err)
		req.Mounts = append(req.Mounts, mount)
	}
	if len(req.Egress)+len(req.Secrets) > 0 && req.Network == "" {
		req.Network = "policy"
	}
	var err error
	req.Egress, err = expand(context.Background(), req.Egress)
	errs = append(errs, err)
	req.Env, err = environment(f.env, f.envFiles)
	errs = append(errs, err)
	req.Labels, err = parseLabels(f.labels)
	errs = append(errs, err)
	return req, errors.Join(errs...)
}

func (f *runFlags) fromFile(a *app, fl *pflag.FlagSet, args []string) (api.SpawnRequest, error) {
	var errs []error
	fl.Visit(func(flag *pflag.Flag) {
		if !withFile[flag.Name] {
			errs = append(errs, fmt.Errorf("--%s does not go with -f; write it in the file", flag.Name))
		}
	})
	if len(args) > 0 {
		errs = append(errs, errors.New("a command does not go with -f; write it in the file"))
	}
	req, err := readRequest(f.file, a.In)
	req.Trace = req.Trace || f.req.Trace
	req.Remove = req.Remove || f.req.Remove
	return req, errors.Join(append(errs, err)...)
}

// looksLikeImage tells "debian:12" and "example.org/agent" from commands.
func looksLikeImage(arg string) bool {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return false
	}
	host, _, isPath := strings.Cut(arg, "/")
	return strings.Contains(arg, ":") || strings.Contains(arg, "@sha256") || isPath && strings.Contains(host, ".")
}

func (a *app) run(ctx context.Context, cmd *cobra.Command, f *runFlags, args []string) error {
	req, err := f.request(a, cmd.Flags(), args)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	if f.ensure && (!f.detach || req.Name == "") {
		return &exitError{exitOwn, errors.New("--ensure goes with -d and a name: creel run -d --name NAME --ensure")}
	}
	if err := checkPull(f.pull, req.Image); err != nil {
		return &exitError{exitOwn, err}
	}
	// Without a command there is nothing to be in front of.
	foreground := !f.detach && len(req.Command) > 0
	if foreground {
		if err := a.streamsOf(req.Stdin, req.TTY); err != nil {
			return &exitError{exitOwn, err}
		}
	}
	// The daemon could be done with a short command, or drop the start of a
	// long output, before creel has joined it.
	req.Attach = foreground
	res, err := a.spawnPulling(ctx, f, req)
	if err != nil {
		return a.spawnFailed(ctx, req, err)
	}
	if req.Trace && !a.json {
		if err := writeTrace(a, res.Trace); err != nil {
			return err
		}
	}
	switch {
	case !foreground && a.json:
		return a.writeJSON(res)
	case !foreground:
		_, err := fmt.Fprintln(a.Out, res.Sandbox.ID)
		return err
	}
	ended, err := a.foreground(ctx, req, res.Sandbox)
	if ended && req.Remove {
		err = a.removeAfter(ctx, res.Sandbox, err)
	}
	return err
}

// spawnFailed is creel's own failure, unless it is the command that could not
// be executed.
func (a *app) spawnFailed(ctx context.Context, req api.SpawnRequest, err error) error {
	if ee, ok := errors.AsType[*exitError](err); ok {
		return ee
	}
	var e *api.Error
	if !errors.As(err, &e) || e.ExitCode == 0 {
		return &exitError{exitOwn, err}
	}
	if e.ExitCode == exitNotFound {
		a.hintImage(ctx, req)
	}
	return &exitError{e.ExitCode, err}
}

// removeAfter removes the sandbox of a run that is over, which the daemon is
// about to: so that it is gone, and its name free, when creel returns. The
// command's exit code says more than a removal that failed.
func (a *app) removeAfter(ctx context.Context, sb api.Sandbox, err error) error {
	rerr := a.client().Remove(ctx, sb.ID, false)
	if rerr == nil || api.CodeOf(rerr) == api.CodeNotFound {
		return err
	}
	if err == nil {
		return &exitError{exitOwn, fmt.Errorf("remove sandbox %s: %w", sb.Name, rerr)}
	}
	a.printError(fmt.Errorf("remove sandbox %s: %w", sb.Name, rerr))
	return err
}

func (a *app) spawn(ctx context.Context, req api.SpawnRequest, ensure bool) (*api.SpawnResult, error) {
	p := a.progress("starting the sandbox")
	defer p.end()
	if ensure {
		res, _, err := a.client().Ensure(ctx, req)
		return res, err
	}
	return a.client().Spawn(ctx, req)
}

// foreground joins the main command. Its output from before is replayed, so
// that nothing is lost between the launch and this. ended says that the
// command has, as far as creel knows.
func (a *app) foreground(ctx context.Context, req api.SpawnRequest, sb api.Sandbox) (ended bool, err error) {
	opts := client.AttachOptions{Replay: true, Stdin: req.Stdin, TTY: req.TTY}
	if req.TTY {
		opts.Cols, opts.Rows = sizeOr(a.In)
	}
	proc, err := a.client().Attach(ctx, sb.ID, opts)
	if err != nil {
		return false, &exitError{exitOwn, fmt.Errorf("sandbox %s: %w", sb.Name, err)}
	}
	s := session{app: a, proc: proc, tty: req.TTY, stdin: req.Stdin, signals: forwarded(), kill: func(ctx context.Context) error {
		return a.client().Kill(ctx, sb.ID, "KILL")
	}}
	res, err := s.run(ctx)
	if err != nil {
		return false, &exitError{exitOwn, runsOn(sb.Name, err)}
	}
	if res.ExitCode == exitNotFound {
		a.hintImage(ctx, req)
	}
	return true, a.finish(req.Command, res)
}

// hintImage helps who wrote the image where the command goes.
func (a *app) hintImage(ctx context.Context, req api.SpawnRequest) {
	if strings.Contains(req.Command[0], "/") {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := a.client().Image(ctx, req.Command[0]); err == nil {
		a.say("%q is an image; name it with: --image %s", req.Command[0], req.Command[0])
	}
}

func writeTrace(a *app, steps []api.Step) error {
	var t table
	t.header("STEP", "START ms", "TOOK ms")
	for _, s := range steps {
		t.row(s.Name, fmt.Sprintf("%.2f", s.Start), fmt.Sprintf("%.2f", s.Took))
	}
	return t.write(a.Err, colors(a.Err))
}
