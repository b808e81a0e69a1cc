package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// session is a command in a sandbox that this terminal belongs to.
type session struct {
	app   *app
	proc  *client.Process
	tty   bool
	stdin bool
	// kill ends the command for good; the third Ctrl-C does that.
	kill func(ctx context.Context) error
	// signals are those that the command gets instead of creel.
	signals []os.Signal
	// in is read instead of standard input, when not nil.
	in io.Reader
}

// run passes streams, signals and sizes on until the command has ended.
func (s *session) run(ctx context.Context) (api.ExecResult, error) {
	defer func() { _ = s.proc.Close() }()
	stdio := client.Stdio{Out: s.app.Out, Err: s.app.Err}
	if s.stdin {
		if stdio.In = s.in; s.in == nil {
			stdio.In = s.app.In
		}
	}
	if s.tty {
		restore, err := rawMode(s.app.In)
		if err != nil {
			return api.ExecResult{}, fmt.Errorf("terminal: %w", err)
		}
		defer restore()
		defer watchSize(s.app.In, func(cols, rows uint16) { _ = s.proc.Resize(cols, rows) })()
	}
	defer s.forward(ctx)()
	return s.proc.Run(stdio)
}

// forwarded are the signals the command of a session gets, but for those left out.
func forwarded(but ...os.Signal) []os.Signal {
	return slices.DeleteFunc([]os.Signal{
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
	}, func(s os.Signal) bool { return slices.Contains(but, s) })
}

// forward passes signals on until stop is called. A command may ignore
// Ctrl-C, so the third in a row kills it.
func (s *session) forward(ctx context.Context) (stop func()) {
	if len(s.signals) == 0 {
		return func() {} // Notify without a list would take them all
	}
	c := make(chan os.Signal, 8)
	signal.Notify(c, s.signals...)
	done := make(chan struct{})
	go func() {
		var presses interrupts
		for {
			select {
			case sig := <-c:
				s.pass(ctx, sig.(syscall.Signal), &presses)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(c)
		close(done)
	}
}

func (s *session) pass(ctx context.Context, sig syscall.Signal, presses *interrupts) {
	n := 0
	if sig == syscall.SIGINT {
		n = presses.count(time.Now())
	}
	if n >= 3 {
		s.app.say("killing it")
		if err := s.kill(ctx); err != nil {
			s.app.printError(err)
		}
		return
	}
	if n == 2 {
		s.app.say("interrupted twice; once more kills it")
	}
	_ = s.proc.Signal(sig) // a connection that is gone is reported by run
}

// interrupts counts Ctrl-C presses that belong together.
type interrupts struct {
	n    int
	last time.Time
}

func (i *interrupts) count(now time.Time) int {
	const together = 3 * time.Second
	if now.Sub(i.last) > together {
		i.n = 0
	}
	i.n++
	i.last = now
	return i.n
}

// errInterrupted is why the context of an interruptible verb ended.
var errInterrupted = errors.New("interrupted")

// interruptible is ctx that ends with Ctrl-C or a request to end, for verbs
// that have something to clean up then.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		select {
		case <-c:
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		cancel(nil)
	}
}

// finish turns a result into creel's exit code and says what the code alone
// does not.
func (a *app) finish(command []string, res api.ExecResult) error {
	if a.json {
		// The command's output has stdout, so the result goes beside it.
		b, err := marshalLine(res)
		if err == nil {
			_, err = fmt.Fprintf(a.Err, "%s\n", b)
		}
		if err != nil {
			return err
		}
	} else {
		a.explain(command, res)
	}
	if res.ExitCode == 0 {
		return nil
	}
	return &exitError{code: res.ExitCode}
}

var reasons = map[api.Reason]string{
	api.ReasonOOM:     "ended by the kernel: out of memory; give it more with --memory",
	api.ReasonTTL:     "ended: the sandbox's time to live (--ttl) is over",
	api.ReasonIdle:    "ended: the sandbox was idle (--idle)",
	api.ReasonOutput:  "ended: it wrote output faster than the profile allows",
	api.ReasonEgress:  "ended: a budget of its network is used up (--egress-bytes, --egress-connections, --egress-requests)",
	api.ReasonTimeout: "ended: timed out (--timeout)",
	api.ReasonStopped: "ended: the sandbox was stopped",
	api.ReasonKilled:  "ended: killed",
	api.ReasonRevoked: "ended: its agent was revoked",
	api.ReasonExpired: "ended: its agent expired",
	api.ReasonParent:  "ended: the sandbox it was a child of ended",
	api.ReasonLost:    "ended: the daemon lost its client",
	api.ReasonDied:    "ended: the sandbox's first process died unasked",
}

func (a *app) explain(command []string, res api.ExecResult) {
	switch {
	case res.Error != "":
		name := "the command"
		if len(command) > 0 {
			name = command[0]
		}
		a.say("%s: %s", name, res.Error)
	case reasons[res.Reason] != "":
		a.say("%s", reasons[res.Reason])
	}
	if h := hits(res.LimitsHit); h != "" {
		a.say("limits refused something: %s", h)
	}
}

// streamsOf says how a command's streams are wanted, and refuses what cannot be.
func (a *app) streamsOf(interactive, tty bool) error {
	if tty && interactive && !isTerminal(a.In) {
		return fmt.Errorf("-t needs a terminal on standard input; use -i alone for a pipe")
	}
	return nil
}
