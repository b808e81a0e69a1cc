package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestRunRemoves: creel run --rm gives all output and the exit code of the
// shortest command, and the daemon removes the sandbox also when creel is
// killed meanwhile. The command runs on then, to its own end.
func TestRunRemoves(t *testing.T) {
	l := lab.New(t, lab.Options{})
	gone := func(t *testing.T) {
		t.Helper()
		l.Eventually("nothing on record", 30*time.Second, func() error { return noRecord(l) })
		l.NothingLeft()
	}
	t.Run("short commands", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				out, errOut, code := l.Creel("run", "--rm", "--name", fmt.Sprintf("n%d", i), "--", "/bin/sh", "-c", fmt.Sprintf("echo out%d; echo err >&2; exit %d", i, i))
				if out != fmt.Sprintf("out%d\n", i) || errOut != "err\n" || code != i {
					t.Errorf("%q, %q, %d", out, errOut, code)
				}
				// It is gone when creel returns, and its name free.
				if _, err := l.Inspect(t.Context(), fmt.Sprintf("n%d", i)); api.CodeOf(err) != api.CodeNotFound {
					t.Errorf("inspect after: %v", err)
				}
			})
		}
		all.Wait()
		gone(t)
	})
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("creel is killed, restart=%v", restart), func(t *testing.T) {
			cmd := l.Command(nil, "run", "--rm", "--name", "left", "--", "/bin/sh", "-c", "echo started; until [ -e /tmp/go ]; do usleep 20000; done")
			out := awaiting("started")
			cmd.Stdout = out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-out.seen:
			case <-time.After(time.Minute):
				t.Error("it does not start")
			}
			if restart {
				l.Kill()
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if restart {
				l.Start()
				// This daemon has seen no client: one that comes and goes will do.
				p, err := l.Attach(t.Context(), "left", client.AttachOptions{})
				if err != nil {
					t.Fatal(err)
				}
				_ = p.Close()
			}
			if sb, err := l.Inspect(t.Context(), "left"); err != nil || sb.State != api.StateRunning {
				t.Fatalf("the command does not run on: %+v, %v", sb, err)
			}
			l.Sh("left", ": >/tmp/go")
			gone(t)
		})
	}
	t.Run("killed while it waits for a client", func(t *testing.T) {
		res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Command: sh("echo kept; exit 4"), Remove: true, Attach: true})
		if err != nil {
			t.Fatal(err)
		}
		ended(t, l, res.Sandbox.ID, api.ReasonExited, 4)
		l.Kill()
		l.Start()
		p, err := l.Attach(t.Context(), res.Sandbox.ID, client.AttachOptions{Replay: true})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if got, err := p.Run(client.Stdio{Out: &out}); err != nil || got.ExitCode != 4 || out.String() != "kept\n" {
			t.Errorf("%+v, %v, %q", got, err, out.String())
		}
		_ = p.Close()
		gone(t)
	})
	t.Run("a reader that takes its time", func(t *testing.T) {
		res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Command: sh("yes | head -c 1000000"), Remove: true, Attach: true})
		if err != nil {
			t.Fatal(err)
		}
		p, err := l.Attach(t.Context(), res.Sandbox.ID, client.AttachOptions{Replay: true})
		if err != nil {
			t.Fatal(err)
		}
		ended(t, l, res.Sandbox.ID, api.ReasonExited, 0)
		if _, err := l.Inspect(t.Context(), res.Sandbox.ID); err != nil {
			t.Errorf("while it is read: %v", err)
		}
		var out bytes.Buffer
		if got, err := p.Run(client.Stdio{Out: &out}); err != nil || got.ExitCode != 0 || out.Len() != 1_000_000 {
			t.Errorf("%+v, %v, %d bytes", got, err, out.Len())
		}
		_ = p.Close()
		gone(t)
	})
	t.Run("not without a command", func(t *testing.T) {
		_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Attach: true})
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeInvalid || len(e.Problems) != 1 || e.Problems[0].Field != "attach" {
			t.Errorf("%+v", err)
		}
	})
}
