package integration_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// modes are the two ways an exec's bytes travel.
var modes = []string{client.IOFDs, client.IOFramed}

// TestExec is what commands see and what their callers learn, both ways.
func TestExec(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Env: map[string]string{"GIVEN": "at spawn", "BOTH": "at spawn"}})
	plain := "BOTH=at spawn\nGIVEN=at spawn\nHOME=/home/agent\nLANG=C.UTF-8\nLOGNAME=agent\n" +
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nSHELL=/bin/bash\nUSER=agent\n"
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	tests := []struct {
		name   string
		req    api.ExecRequest
		stdin  string
		out    string
		code   int
		signal unix.Signal
		reason api.Reason // exited when empty
		failed string     // part of Error
	}{
		{name: "success", req: api.ExecRequest{Command: sh("echo out; echo err >&2")}, out: "out\n|err\n"},
		{name: "its own code", req: api.ExecRequest{Command: sh("exit 7")}, code: 7},
		{name: "codes that creel uses too", req: api.ExecRequest{Command: sh("exit 125")}, code: 125},
		{name: "SIGTERM", req: api.ExecRequest{Command: sh("kill -TERM $$")}, code: 143, signal: unix.SIGTERM},
		{name: "SIGKILL by itself", req: api.ExecRequest{Command: sh("kill -KILL $$")}, code: 137, signal: unix.SIGKILL},
		{name: "not found", req: api.ExecRequest{Command: []string{"/bin/nothing"}}, code: 127, failed: "no such file"},
		{name: "not in PATH", req: api.ExecRequest{Command: []string{"nothing"}}, code: 127, failed: "no such file"},
		{name: "found in PATH", req: api.ExecRequest{Command: []string{"echo", "hi"}}, out: "hi\n|"},
		{name: "not executable", req: api.ExecRequest{Command: []string{"/etc/passwd"}}, code: 126, failed: "permission denied"},
		{name: "a directory", req: api.ExecRequest{Command: []string{"/etc"}}, code: 126, failed: "permission denied"},
		{name: "time limit", req: api.ExecRequest{Command: sh("echo before; sleep 100"), Timeout: api.Duration(300 * time.Millisecond)}, out: "before\n|", code: 124, signal: unix.SIGKILL, reason: api.ReasonTimeout},
		{name: "environment", req: api.ExecRequest{Command: sh("env -u PWD -u SHLVL | sort")}, out: plain + "|"},
		{name: "environment added", req: api.ExecRequest{Command: sh("echo $BOTH $MORE"), Env: map[string]string{"BOTH": "now", "MORE": "x y"}}, out: "now x y\n|"},
		{name: "home", req: api.ExecRequest{Command: sh("pwd")}, out: "/home/agent\n|"},
		{name: "workdir", req: api.ExecRequest{Command: sh("pwd"), Workdir: "/var/tmp"}, out: "/var/tmp\n|"},
		{name: "stdin", req: api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true}, stdin: "a\x00b\xff\n", out: "a\x00b\xff\n|"},
		{name: "empty stdin", req: api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true}, out: "|"},
		{name: "no stdin is at its end", req: api.ExecRequest{Command: []string{"/bin/cat"}}, out: "|"},
		{name: "stdin that nobody reads", req: api.ExecRequest{Command: []string{"/bin/true"}, Stdin: true}, stdin: strings.Repeat("x", 1<<20), out: "|"},
		{name: "only pipes", req: api.ExecRequest{Command: sh("cd /proc/self/fd; for f in *; do readlink $f; done | cut -d: -f1 | sort -u"), Stdin: true}, out: "pipe\n|"},
		{name: "umask", req: api.ExecRequest{Command: sh("umask")}, out: "0022\n|"},
		{name: "signals are not blocked", req: api.ExecRequest{Command: sh("grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f2")}, out: "0000000000000000\n0000000000000000\n|"},
	}
	for _, mode := range modes {
		for _, tt := range tests {
			t.Run(mode+"/"+tt.name, func(t *testing.T) {
				req := tt.req
				req.IO = mode
				var out, errOut bytes.Buffer
				io := client.Stdio{Out: &out, Err: &errOut}
				if req.Stdin {
					io.In = strings.NewReader(tt.stdin)
				}
				res, err := l.Exec(deadline(t), sb.ID, req, io)
				if err != nil {
					t.Fatal(err)
				}
				want := api.ExecResult{ID: res.ID, ExitCode: tt.code, Signal: int(tt.signal), Reason: tt.reason, Error: res.Error, Took: res.Took}
				if want.Reason == "" {
					want.Reason = api.ReasonExited
				}
				if fmt.Sprint(res) != fmt.Sprint(want) || res.ID == "" || !strings.Contains(res.Error, tt.failed) || (tt.failed == "") != (res.Error == "") {
					t.Errorf("result %+v, want %+v with error %q", res, want, tt.failed)
				}
				if got := out.String() + "|" + errOut.String(); tt.out != "" && got != tt.out {
					t.Errorf("output %q, want %q", got, tt.out)
				}
			})
		}
	}
}

// deadline is a context for what must not hang.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestExecCarriesBytes sends 10 MiB through a command both ways.
func TestExecCarriesBytes(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	data := make([]byte, 10<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			var out bytes.Buffer
			began := time.Now()
			res, err := l.Exec(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true, IO: mode}, client.Stdio{In: bytes.NewReader(data), Out: &out})
			if err != nil || res.ExitCode != 0 {
				t.Fatalf("%+v, %v", res, err)
			}
			if !bytes.Equal(out.Bytes(), data) {
				t.Errorf("%d bytes came back, not the %d sent", out.Len(), len(data))
			}
			t.Logf("%d MiB there and back in %v", len(data)>>20, time.Since(began))
		})
	}
}

// TestExecTerminal has a terminal of its own, with a size that follows.
func TestExecTerminal(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			p, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{
				Command: []string{"/bin/sh", "-c", `tty; stty size; echo $TERM; while [ "$(stty size)" != "50 120" ]; do usleep 10000; done; stty size; read line; echo "got $line"; exit 5`},
				TTY:     true, Stdin: true, Cols: 100, Rows: 40, IO: mode,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.Resize(120, 50); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			in, typed := io.Pipe()
			go func() { _, _ = io.WriteString(typed, "hello\n") }()
			res, err := p.Run(client.Stdio{In: in, Out: &out})
			_ = typed.Close()
			if err != nil || res.ExitCode != 5 {
				t.Fatalf("%+v, %v: %q", res, err, out.String())
			}
			got := strings.ReplaceAll(out.String(), "\r\n", "\n")
			for _, want := range []string{"/dev/pts/", "\nxterm-256color\n", "\n50 120\n", "\ngot hello\n"} {
				if !strings.Contains(got, want) {
					t.Errorf("%q is not in the output %q", want, got)
				}
			}
		})
	}
}

// manyExecs is how many commands TestExecConcurrent runs at once.
const manyExecs = 50

// TestExecConcurrent keeps the streams and results of many apart.
func TestExecConcurrent(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	ctx := deadline(t)
	errs := make([]error, manyExecs)
	var wg sync.WaitGroup
	for i := range manyExecs {
		wg.Go(func() {
			var out bytes.Buffer
			res, err := l.Exec(ctx, sb.ID, api.ExecRequest{
				Command: []string{"/bin/sh", "-c", fmt.Sprintf("cat; echo %d; exit %d", i, i)}, Stdin: true, IO: modes[i%2],
			}, client.Stdio{In: strings.NewReader(fmt.Sprintln("in", i)), Out: &out})
			if want := fmt.Sprintf("in %d\n%d\n", i, i); err == nil && (res.ExitCode != i || out.String() != want) {
				err = fmt.Errorf("exec %d: code %d, output %q", i, res.ExitCode, out.String())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	onlyInit(t, l, sb.ID)
}

// TestMainEnds tells a main command that a signal ended from one that exited
// with a code as high, also to the next daemon's clients.
func TestMainEnds(t *testing.T) {
	l := lab.New(t, lab.Options{})
	for _, tt := range []struct {
		script       string
		timeout      time.Duration
		code, signal int
	}{
		{script: "exit 143", code: 143},
		{script: "exit 255", code: 255},
		{script: "kill -TERM $$; sleep 60", code: 143, signal: 15},
		{script: "sleep 600", timeout: 100 * time.Millisecond, code: 124, signal: 9},
	} {
		sb := l.Spawn(api.SpawnRequest{Command: sh(tt.script), Timeout: api.Duration(tt.timeout)})
		attach := func() api.ExecResult {
			p, err := l.Attach(deadline(t), sb.ID, client.AttachOptions{Replay: true})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			res, err := p.Run(client.Stdio{})
			if err != nil {
				t.Error(err)
			}
			return res
		}
		res := attach()
		if res.ExitCode != tt.code || res.Signal != tt.signal {
			t.Errorf("%q: %+v, want %d, signal %d", tt.script, res, tt.code, tt.signal)
		}
		if tt.signal == 15 {
			l.Kill()
			l.Start()
			if again := attach(); again.ExitCode != res.ExitCode || again.Signal != res.Signal {
				t.Errorf("after a restart %+v, before %+v", again, res)
			}
		}
	}
}
