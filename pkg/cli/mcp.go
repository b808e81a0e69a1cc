package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// MCPOptions are what a line of "creel mcp" says; they mean what those of
// pkg/mcp do.
type MCPOptions struct {
	Client    *client.Client
	Spawn     api.SpawnRequest
	Timeout   time.Duration
	Sandboxes int
	Keep, All bool
}

// MainMCP is Main for the program that "creel mcp" executes: the same line,
// with the verb mcp alone, which serve carries out.
func MainMCP(ctx context.Context, args []string, stdio Stdio, serve func(context.Context, MCPOptions) error) int {
	return runMain(ctx, &app{Stdio: stdio, line: args, serveMCP: serve})
}

type mcpFlags struct {
	runFlags
	timeout   api.Duration
	sandboxes int
	keep, all bool
}

// maxMCPSandboxes bounds --sandboxes: one model's server is not the whole box.
const maxMCPSandboxes = 64

func mcpCommand(a *app) *cobra.Command {
	f := mcpFlags{timeout: api.Duration(10 * time.Minute)}
	cmd := &cobra.Command{
		Use:   "mcp [flags]",
		Short: "Serve sandboxes to a language model (MCP on standard input and output)",
		Long: `Serve sandboxes to a language model, by the Model Context Protocol on standard
input and output: tools run, exec, read, write, list, logs, stop and remove.

Mounts, image, profile and limits are those of this line; the model cannot
change them. It reaches only the sandboxes that it launched here, and these are
removed when the server ends.`,
		Example: `  creel mcp -v .:/workspace --memory 1G
  creel mcp --profile strict -v /srv/data:/data:ro --ttl 2h`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.serveMCP == nil {
				return a.become("creel-mcp")
			}
			return a.mcp(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	f.registerSandbox(fl)
	durationVar(fl, &f.timeout, "timeout", "end a command that is waited for after this long (default 10m)")
	fl.IntVar(&f.sandboxes, "sandboxes", 8, "how many there may be at once")
	fl.BoolVar(&f.keep, "keep", false, "leave the sandboxes when the server ends")
	fl.BoolVar(&f.all, "all", false, "let the model reach all your sandboxes, not only its own")
	return cmd
}

func (a *app) mcp(ctx context.Context, f *mcpFlags) error {
	req, err := f.sandbox()
	if f.sandboxes < 1 || f.sandboxes > maxMCPSandboxes {
		err = errors.Join(err, fmt.Errorf("--sandboxes %d: 1 to %d", f.sandboxes, maxMCPSandboxes))
	}
	if f.timeout.D() < time.Second || f.timeout.D() > 24*time.Hour {
		err = errors.Join(err, fmt.Errorf("--timeout %s: 1s to 24h", f.timeout))
	}
	if err != nil {
		return &exitError{exitMisuse, err}
	}
	return a.serveMCP(ctx, MCPOptions{
		Client: a.client(), Spawn: req, Timeout: f.timeout.D(), Sandboxes: f.sandboxes, Keep: f.keep, All: f.all,
	})
}
