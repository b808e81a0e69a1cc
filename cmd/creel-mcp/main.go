// Command creel-mcp is "creel mcp", which executes it: a server of the Model
// Context Protocol on standard input and output. It is a program of its own
// because what it links costs every start of creel a millisecond.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/cli"
	"github.com/creel-sandbox/creel/pkg/mcp"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	// A client that went away must not end the server before it has cleaned up.
	signal.Ignore(unix.SIGPIPE)
	stdio := cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}
	return cli.MainMCP(ctx, os.Args[1:], stdio, func(ctx context.Context, o cli.MCPOptions) error {
		return mcp.Serve(ctx, mcp.Options(o), os.Stdin, os.Stdout)
	})
}
