// Command creel-egress is what one caller's sandboxes reach the network by; see
// pkg/egress/serve. creeld starts it, as a user of its own, with its socket at
// descriptor 3.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/confine"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/serve"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "creel-egress:", err)
		os.Exit(1)
	}
}

func run() error {
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	if len(os.Args) != 1 {
		return errors.New("takes no arguments; creeld starts it")
	}
	l, err := listen()
	if err != nil {
		return err
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	build, err := link.BuildOf(exe)
	if err := errors.Join(err, exe.Close()); err != nil {
		return err
	}
	if err := confine.Process(); err != nil {
		return err
	}
	return serve.New(build).Run(context.Background(), l)
}

// listen makes the socket that creeld has bound one of this process.
func listen() (*net.UnixListener, error) {
	if err := unix.Listen(link.FD, 8); err != nil {
		return nil, fmt.Errorf("descriptor %d: %w; creeld starts this program", link.FD, err)
	}
	f := os.NewFile(link.FD, "control")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", link.FD, err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("descriptor %d is a %T", link.FD, l), l.Close())
	}
	ul.SetUnlinkOnClose(false) // creeld named it
	return ul, nil
}
