// Command creel is the command line of creeld.
package main

import (
	"context"
	"os"

	"github.com/creel-sandbox/creel/pkg/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
