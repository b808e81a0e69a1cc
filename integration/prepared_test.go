package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestPrepared: what is run under an id is told to nobody on the host, runs once,
// and ends with the program that runs it, with all that it started and nothing else.
func TestPrepared(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	prepare := func(t *testing.T, req api.ExecRequest) string {
		t.Helper()
		p, err := l.PrepareExec(t.Context(), sb.ID, req)
		if err != nil {
			t.Fatal(err)
		}
		return p.ID
	}
	// relay runs one as a gateway would, with this environment and no other.
	relay := func(id string) (*exec.Cmd, *syncBuffer, *syncBuffer) {
		cmd := l.Command(nil, "exec", "-i", "--prepared", id)
		var out, errs syncBuffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		return cmd, &out, &errs
	}
	said := func(b *syncBuffer) error {
		if b.String() == "" {
			return errors.New("nothing was said")
		}
		return nil
	}
	code := func(err error) int {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			return e.ExitCode()
		}
		return 0
	}

	t.Run("streams", func(t *testing.T) {
		id := prepare(t, api.ExecRequest{Command: []string{"/bin/sh", "-c", `cat; echo "$WORD" >&2; exit 3`}, Env: map[string]string{"WORD": "hidden-word"}, Stdin: true})
		cmd, out, errs := relay(id)
		cmd.Stdin = strings.NewReader("input\n")
		err := cmd.Run()
		if code(err) != 3 || out.String() != "input\n" || errs.String() != "hidden-word\n" {
			t.Fatalf("%v, %q, %q", err, out.String(), errs.String())
		}
		cmd, _, errs = relay(id)
		if err := cmd.Run(); code(err) != 125 || !strings.Contains(errs.String(), "no command is prepared under this id") {
			t.Fatalf("again: %v, %q", err, errs.String())
		}
	})

	t.Run("released", func(t *testing.T) {
		id := prepare(t, api.ExecRequest{Command: []string{"true"}})
		if err := l.ReleasePrepared(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := l.ReleasePrepared(t.Context(), id); api.CodeOf(err) != api.CodeNotFound {
			t.Fatal(err)
		}
		cmd, _, _ := relay(id)
		if err := cmd.Run(); code(err) != 125 {
			t.Fatal(err)
		}
	})

	t.Run("told nobody", func(t *testing.T) {
		id := prepare(t, api.ExecRequest{Command: []string{"/bin/sh", "-c", "echo up; sleep 60 # hidden-word"}, Env: map[string]string{"A": "hidden-word"}, Stdin: true})
		cmd, out, _ := relay(id)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		l.Eventually("the command runs", 10*time.Second, func() error { return said(out) })
		for _, f := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, f))
			if err != nil || bytes.Contains(b, []byte("hidden-word")) {
				t.Errorf("%s: %q, %v", f, b, err)
			}
		}
	})

	// A shell that ignores the signal, a child of its own, and one that has left
	// its session.
	const tree = `trap 'echo asked' TERM; sleep 300 & setsid sleep 300 & echo up; while :; do sleep 1; done`
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			other := prepare(t, api.ExecRequest{Command: []string{"/bin/sh", "-c", "echo up; exec sleep 200"}, Stdin: true, KillTree: true})
			keep, keptOut, _ := relay(other)
			if err := keep.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = keep.Process.Kill(); _ = keep.Wait() }()
			cmd, out, _ := relay(prepare(t, api.ExecRequest{Command: []string{"/bin/sh", "-c", tree}, Stdin: true, KillTree: true}))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			l.Eventually("the command runs", 10*time.Second, func() error { return errors.Join(said(out), said(keptOut)) })
			began := time.Now()
			_ = cmd.Process.Signal(sig)
			_ = cmd.Wait()
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the relay took %s to end", took)
			}
			l.Eventually("all of it has ended", 5*time.Second, func() error {
				if n := runningWith(t, l.Client, sb.ID, "300"); n > 0 {
					return fmt.Errorf("%d run", n)
				}
				return nil
			})
			if n := runningWith(t, l.Client, sb.ID, "200"); n != 1 {
				t.Errorf("%d of another command's processes, not 1", n)
			}
		})
	}

	t.Run("ends by itself", func(t *testing.T) {
		cmd, _, _ := relay(prepare(t, api.ExecRequest{Command: []string{"/bin/sh", "-c", "sleep 100 >/dev/null 2>&1 & exit 0"}, Stdin: true, KillTree: true}))
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if n := runningWith(t, l.Client, sb.ID, "100"); n != 1 {
			t.Errorf("%d of what it left behind, not 1", n)
		}
	})
}

// runningWith is how many processes of a sandbox have word as their last argument.
func runningWith(t *testing.T, c *client.Client, ref, word string) (n int) {
	t.Helper()
	top, err := c.Top(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range top.Processes {
		if len(p.Args) > 0 && p.Args[len(p.Args)-1] == word {
			n++
		}
	}
	return n
}

// syncBuffer is a buffer that is read while a command writes it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
