package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/client"
)

func attachCommand(a *app) *cobra.Command {
	var noStdin, replay bool
	cmd := &cobra.Command{
		Use:   "attach [--no-stdin] [--replay] SANDBOX",
		Short: "Join a sandbox's main command",
		Long: `Join a sandbox's main command, as creel run had it: its output from now on, and
its input and terminal if it was started with them (-i, -t).

creel exits as run does when the command ends. Until then, with a terminal,
Ctrl-P Ctrl-Q leaves it. Without one, Ctrl-C goes to the command, and the end of
the input is the end of the command's. With --no-stdin creel only watches: no
key and no signal goes to the command, and Ctrl-C leaves it. When creel goes
away, by a hang-up of its terminal too, the command runs on.`,
		Example: `  creel attach helper
  creel attach --no-stdin --replay helper`,
		Annotations: map[string]string{ownExit: "yes"},
		Args:        args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attach(cmd.Context(), args[0], !noStdin, replay)
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "only watch: send neither input nor signals")
	cmd.Flags().BoolVar(&replay, "replay", false, "first what is kept of the output so far")
	return cmd
}

func (a *app) attach(ctx context.Context, ref string, takePart, replay bool) error {
	sb, err := a.client().Inspect(ctx, ref)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	opts := client.AttachOptions{Replay: replay, Stdin: sb.Stdin && takePart, TTY: sb.TTY && takePart}
	if err := a.streamsOf(opts.Stdin, opts.TTY); err != nil {
		return &exitError{exitOwn, fmt.Errorf("%w, or --no-stdin to watch", err)}
	}
	if opts.TTY {
		opts.Cols, opts.Rows = sizeOr(a.In)
	}
	// By id: a name may be another's when this one has ended.
	proc, err := a.client().Attach(ctx, sb.ID, opts)
	if err != nil {
		return &exitError{exitOwn, err}
	}
	// A terminal without input stays as it is: its Ctrl-C is a signal then.
	s := session{app: a, proc: proc, tty: opts.TTY && opts.Stdin, stdin: opts.Stdin, kill: func(ctx context.Context) error {
		return a.client().Kill(ctx, sb.ID, "KILL")
	}}
	if takePart {
		s.signals = forwarded(syscall.SIGHUP)
	}
	var keys *detachKeys
	if opts.TTY && opts.Stdin {
		keys = &detachKeys{in: a.In, leave: func() { _ = proc.Close() }}
		s.in = keys
	}
	res, err := s.run(ctx)
	switch {
	case keys != nil && keys.pressed.Load():
		a.say("left %s; it runs on", sb.Name)
		return nil
	case err != nil:
		return &exitError{exitOwn, runsOn(sb.Name, err)}
	}
	return a.finish(sb.Command, res)
}

// runsOn says that not the command has ended but what creel had of it.
func runsOn(name string, err error) error {
	return fmt.Errorf("cut off; the sandbox may be running on: creel attach %s: %w", name, err)
}

// detachKeys is a terminal's input in which Ctrl-P Ctrl-Q, which is held back,
// leaves the command alone.
type detachKeys struct {
	in      io.Reader
	leave   func()
	pressed atomic.Bool

	held bool   // Ctrl-P was the last key, and is not passed on yet
	rest []byte // read, and not passed on
	err  error  // of in, for when rest is passed on
}

const ctrlP, ctrlQ = 'P' & 0x1f, 'Q' & 0x1f

// Read never returns the end of the input because of the keys: that would be
// the end of the command's.
func (d *detachKeys) Read(p []byte) (int, error) {
	for len(d.rest) == 0 {
		if d.pressed.Load() {
			d.leave()
			return 0, os.ErrClosed
		}
		if d.err != nil {
			return 0, d.err
		}
		buf := make([]byte, len(p))
		n, err := d.in.Read(buf)
		d.scan(buf[:n])
		if d.err = err; err != nil && d.held {
			d.held, d.rest = false, append(d.rest, ctrlP)
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

func (d *detachKeys) scan(b []byte) {
	for _, c := range b {
		switch {
		case d.held && c == ctrlQ:
			d.held = false
			d.pressed.Store(true)
			return
		case d.held && c == ctrlP:
			d.rest = append(d.rest, ctrlP)
			continue
		case d.held:
			d.rest = append(d.rest, ctrlP)
		}
		if d.held = c == ctrlP; !d.held {
			d.rest = append(d.rest, c)
		}
	}
}
