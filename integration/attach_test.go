package integration_test

import (
	"bytes"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestAttach joins a command that creel has left: killed, hung up, or asked to.
func TestAttach(t *testing.T) {
	l := lab.New(t, lab.Options{})
	// Under nohup(1) a program would inherit that hang-ups are ignored; a
	// signal that is caught is at its default after execve.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP)
	defer signal.Stop(caught)
	start := func(t *testing.T, wait string, args ...string) (stdin io.WriteCloser, send func(syscall.Signal), end func() (string, int)) {
		t.Helper()
		cmd := l.Command(nil, args...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out := awaiting(wait)
		var errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = out, &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if wait != "" {
			select {
			case <-out.seen:
			case <-time.After(time.Minute):
				_ = cmd.Process.Kill()
				t.Fatalf("creel %q does not show %q", args, wait)
			}
		}
		return in, func(s syscall.Signal) { _ = cmd.Process.Signal(s) }, func() (string, int) {
			_ = cmd.Wait()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				return out.buf.String() + errOut.String(), -int(ws.Signal())
			}
			return out.buf.String() + errOut.String(), cmd.ProcessState.ExitCode()
		}
	}
	_, send, end := start(t, "ready", "run", "-i", "--rm", "--name", "main", "--", "/bin/sh", "-c",
		`trap 'echo hup' HUP; echo ready; while read x; do echo got $x; done; echo end; exit 9`)
	send(unix.SIGKILL)
	end()
	// One that only watches, for all of the time, with Ctrl-C of its own.
	_, stop, watched := start(t, "ready", "attach", "--no-stdin", "--replay", "main")
	in, send, end := start(t, "", "attach", "main")
	if _, err := io.WriteString(in, "one\n"); err != nil {
		t.Fatal(err)
	}
	l.Eventually("the input is there", 30*time.Second, func() error { return contains(output(t, l, "main"), "got one") })
	send(unix.SIGHUP) // its terminal is gone
	if out, code := end(); code != -int(unix.SIGHUP) {
		t.Errorf("hung up: %d, %q", code, out)
	}
	in, _, end = start(t, "got one", "attach", "--replay", "main")
	_, _ = io.WriteString(in, "two\n")
	_ = in.Close() // and so is the end of the input
	out, code := end()
	if code != 9 || !strings.HasSuffix(out, "got two\nend\n") {
		t.Errorf("%d, %q", code, out)
	}
	if strings.Contains(out, "hup") {
		t.Errorf("the hang-up of one client went to the command: %q", out)
	}
	if all, code := watched(); code != 9 || !strings.HasPrefix(out, "ready\n") || strings.ReplaceAll(all, "\n", " ") != strings.ReplaceAll(out, "\n", " ") {
		t.Errorf("who watched: %d, %q; want %q", code, all, out)
	}
	stop(unix.SIGINT) // it has ended
	l.Eventually("it is removed", 30*time.Second, func() error { return noRecord(l) })

	sb := l.Spawn(api.SpawnRequest{Command: sh("trap 'echo int; exit 7' INT; echo ready; sleep 600 & wait")})
	_, send, end = start(t, "ready", "attach", "--no-stdin", "--replay", sb.ID)
	send(unix.SIGINT)
	if out, code := end(); code != -int(unix.SIGINT) {
		t.Errorf("watching, interrupted: %d, %q", code, out)
	}
	if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.State != api.StateRunning {
		t.Errorf("after the watcher's Ctrl-C: %+v, %v", got, err)
	}
	_, send, end = start(t, "ready", "attach", "--replay", sb.ID)
	send(unix.SIGINT)
	if out, code := end(); code != 7 || !strings.HasSuffix(out, "int\n") {
		t.Errorf("interrupted: %d, %q", code, out)
	}
}

// TestDetach leaves a terminal's command with Ctrl-P Ctrl-Q.
func TestDetach(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{TTY: true, Stdin: true, Command: sh("read x; echo got $x; read x; exit 3")})
	master, tty := terminal(t)
	defer tty.Close()
	if _, err := term.MakeRaw(int(tty.Fd())); err != nil { // as creel will: else the line discipline takes Ctrl-Q
		t.Fatal(err)
	}
	attach := func(keys string) (string, int) {
		cmd := l.Command(nil, "attach", sb.ID)
		cmd.Stdin = tty
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(master, keys); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		return errOut.String(), cmd.ProcessState.ExitCode()
	}
	if says, code := attach("one\r\x10\x11"); code != 0 || !strings.Contains(says, "it runs on") {
		t.Errorf("Ctrl-P Ctrl-Q: %d, %q", code, says)
	}
	if got, err := l.Inspect(t.Context(), sb.ID); err != nil || got.State != api.StateRunning {
		t.Errorf("after it: %+v, %v", got, err)
	}
	if says, code := attach("two\r"); code != 3 {
		t.Errorf("joined again: %d, %q", code, says)
	}
}
