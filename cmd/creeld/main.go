// Command creeld is the daemon that launches sandboxes.
//
//	creeld [--config FILE]
//	creeld config default
//	creeld config check [FILE]
//	creeld doctor [--config FILE] [--caller USER] [--workspace DIR] [--json]
//	creeld version
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/daemon"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/mountns"
	"github.com/creel-sandbox/creel/pkg/policy"
)

const usage = `creeld launches AI agents in hardened sandboxes.

  creeld [--config FILE]       run in the foreground (default ` + config.DefaultPath + `,
                               built-in defaults when that does not exist)
  creeld config default        print the default configuration, commented
  creeld config check [FILE]   check a configuration; every problem with its line
  creeld doctor [--config FILE] [--caller USER] [--workspace DIR] [--json]
                               say what this host lacks, and what creeld would
                               refuse to start for; starts nothing. Exit code 1
                               when something is missing or dangerous
  creeld version               print the version
`

// errUsage is a command line that is not understood.
var errUsage = errors.New("usage")

// errFound is that doctor has found something, and has said so.
var errFound = errors.New("something is missing or dangerous")

func main() {
	err := run(os.Args[1:], os.Stdout)
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case errors.Is(err, errFound):
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "creeld:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	path, err := configPath()
	switch {
	case err != nil:
		return err
	case len(args) == 0:
		return serve(path)
	case len(args) == 2 && args[0] == "--config":
		return serve(args[1])
	case len(args) == 1 && (args[0] == "--help" || args[0] == "-h"):
		_, err = io.WriteString(out, usage)
	case len(args) == 1 && args[0] == "version":
		_, err = fmt.Fprintln(out, api.BuildVersion)
	case len(args) == 2 && args[0] == "config" && args[1] == "default":
		_, err = io.WriteString(out, config.Default())
	case len(args) >= 1 && args[0] == "doctor":
		return examine(path, args[1:], out)
	case len(args) >= 2 && len(args) <= 3 && args[0] == "config" && args[1] == "check":
		if len(args) == 3 {
			path = args[2]
		}
		if err := check(path); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s is good\n", path)
	default:
		return errUsage
	}
	return err
}

// check reads a configuration as the daemon does, with the names in it.
func check(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	_, err = policy.Compile(cfg)
	return err
}

// configPath is the usual file if it is there. One that cannot be looked at is
// an error: defaults in its place could be weaker.
func configPath() (string, error) {
	_, err := os.Stat(config.DefaultPath)
	switch {
	case err == nil:
		return config.DefaultPath, nil
	case errors.Is(err, os.ErrNotExist):
		return "", nil
	}
	return "", err
}

// examine is the doctor for a daemon that does not run.
func examine(path string, args []string, out io.Writer) error {
	var caller, workspace string
	var asJSON bool
	fl := flag.NewFlagSet("doctor", flag.ContinueOnError)
	fl.SetOutput(io.Discard)
	fl.StringVar(&path, "config", path, "")
	fl.StringVar(&caller, "caller", "", "")
	fl.StringVar(&workspace, "workspace", "", "")
	fl.BoolVar(&asJSON, "json", false, "")
	if err := fl.Parse(args); err != nil || fl.NArg() > 0 {
		return errUsage
	}
	if workspace != "" {
		abs, err := filepath.Abs(workspace)
		if err != nil {
			return err
		}
		workspace = abs
	}
	d, err := daemon.Doctor(context.Background(), path, caller, workspace)
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(d)
	} else {
		err = doctor.Write(out, d)
	}
	if err == nil && doctor.Bad(d) != nil {
		err = errFound
	}
	return err
}

func serve(path string) error {
	// From the start: a reload that is asked for too early must not end it.
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	// Whoever starts creeld does not choose the modes of what it makes: its
	// containerd inherits this, and makes the root directories of sandboxes,
	// which the agent must be able to enter. Every private file of creeld's
	// own says 0600 or 0700 itself.
	unix.Umask(0o022)
	enter := mountns.Enter
	if cfg.Containerd.Address != "" {
		enter = mountns.Stay
	}
	if err := enter(cfg.RunDir); err != nil {
		return err
	}
	log := slog.New(handler(cfg))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	return daemon.Run(ctx, cfg, log, daemon.Reload{Asked: reload, Load: func() (*config.Config, error) { return config.Load(path) }})
}

func handler(cfg *config.Config) slog.Handler {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Log.Level)) // config.Load has checked it
	o := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.NewJSONHandler(os.Stderr, o)
	}
	return slog.NewTextHandler(os.Stderr, o)
}
