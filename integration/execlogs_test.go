package integration_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/logs"
)

// logOf is what is kept of one exec.
func logOf(t *testing.T, l *lab.Lab, sb, exec string) string {
	t.Helper()
	var out bytes.Buffer
	if err := l.Logs(t.Context(), sb, client.LogOptions{Tail: -1, Exec: exec}, &out, &out); err != nil {
		t.Fatalf("log of %s: %v", exec, err)
	}
	return out.String()
}

// TestExecLogs keeps what each of several commands at one time wrote apart, to
// the byte, in each way in which a client can have it, and after the end.
func TestExecLogs(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: sh("echo from main; exec sleep 1000")})
	const binary = `head -c 300000 /dev/urandom | tee /tmp/f$N; echo $N >&2`
	var wg sync.WaitGroup
	var mu sync.Mutex
	want := map[string]string{}
	for n := range 6 {
		wg.Go(func() {
			var out, errOut bytes.Buffer
			res, err := l.Exec(deadline(t), sb.ID, api.ExecRequest{
				Command: sh(binary), Env: map[string]string{"N": fmt.Sprint(n)}, IO: modes[n%2],
			}, client.Stdio{Out: &out, Err: &errOut})
			if err != nil || res.ExitCode != 0 || out.Len() != 300000 {
				t.Errorf("%+v, %v, %d bytes", res, err, out.Len())
			}
			mu.Lock()
			defer mu.Unlock()
			want[res.ID] = out.String() + errOut.String()
		})
	}
	wg.Wait()
	once, err := l.ExecOnce(deadline(t), sb.ID, api.ExecRequest{Command: sh("printf 12345678"), MaxOutput: 3})
	if err != nil || once.Stdout != "123" {
		t.Fatalf("%+v, %v", once, err)
	}
	want[once.ID] = "12345678" // also what the answer has no room for
	check := func(when string) {
		t.Helper()
		all := map[string]string{}
		err := l.AllLogs(t.Context(), sb.ID, client.LogOptions{Tail: -1}, func(o client.Output) error {
			all[o.Exec] += string(o.Data)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if all["main"] != "from main\n" || len(all) != len(want)+1 {
			t.Errorf("%s: %d sources, main %q", when, len(all), all["main"])
		}
		for id, text := range want {
			var out, errOut bytes.Buffer
			if err := l.Logs(t.Context(), sb.ID, client.LogOptions{Tail: -1, Exec: id}, &out, &errOut); err != nil {
				t.Fatal(err)
			}
			if got := out.String() + errOut.String(); got != text || len(all[id]) != len(text) {
				t.Errorf("%s: the log of %s has %d bytes, in all logs %d; want %d", when, id, len(got), len(all[id]), len(text))
			}
		}
		if got := output(t, l, sb.ID); got != "from main\n" {
			t.Errorf("%s: without exec the log is %q", when, got)
		}
	}
	check("running")
	l.Kill()
	l.Start()
	check("after a crash")
	if _, err := l.Client.Stop(t.Context(), sb.ID, nil); err != nil {
		t.Fatal(err)
	}
	check("ended")
}

// TestExecLogTerminal keeps a terminal's output, and shows control characters
// only to who asks for that command alone.
func TestExecLogTerminal(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: sh("echo plain; exec sleep 1000")})
	l.Eventually("the main command's word", 10*time.Second, func() error { return contains(output(t, l, sb.ID), "plain") })
	if out, _, code := l.Creel("logs", sb.ID); out != "plain\n" || code != 0 {
		t.Errorf("one source: %q, %d", out, code)
	}
	var out bytes.Buffer
	forged := `printf '\033[1Amain         | forged\n'`
	res, err := l.Exec(deadline(t), sb.ID, api.ExecRequest{Command: sh(forged), TTY: true}, client.Stdio{Out: &out})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	text, _, code := l.Creel("logs", sb.ID)
	want := "main         | plain\n" + res.ID + ` | \x1b[1Amain         | forged` + "\n"
	if text != want || code != 0 {
		t.Errorf("two sources: %q, want %q", text, want)
	}
	raw, _, _ := l.Creel("logs", "--exec", res.ID, sb.ID)
	if raw != out.String() || !strings.Contains(raw, "\x1b[1A") {
		t.Errorf("alone: %q, want %q", raw, out.String())
	}
	if tail, _, _ := l.Creel("logs", "--tail", "1", sb.ID); tail != strings.SplitAfter(want, "\n")[1] {
		t.Errorf("tail: %q", tail)
	}
}

// TestExecLogLost kills a client, and a daemon, while a command writes: what it
// wrote is in the log without a hole, whether or not the client got it.
func TestExecLogLost(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	const count = `i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done; echo all > /tmp/all`
	for _, mode := range modes {
		for _, who := range []string{"client", "daemon"} {
			t.Run(mode+"/"+who, func(t *testing.T) {
				p, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{Command: sh(count), IO: mode})
				if err != nil {
					t.Fatal(err)
				}
				last := untilFull(t, l, sb.ID, p.ID()) // its client reads nothing
				if who == "daemon" {
					l.Kill()
					l.Start()
				}
				_ = p.Close()
				l.Eventually("its end", 20*time.Second, func() error {
					execs, err := l.Execs(t.Context(), sb.ID, nil)
					if err == nil && execs[len(execs)-1].Reason != api.ReasonLost {
						err = errors.New("runs")
					}
					return err
				})
				var got string
				l.Eventually("the rest", 20*time.Second, func() error {
					if got = logOf(t, l, sb.ID, p.ID()); len(got) <= last {
						return fmt.Errorf("%d bytes, of which %d were there before", len(got), last)
					}
					return nil
				})
				var whole strings.Builder
				for i := 0; whole.Len() < len(got); i++ {
					fmt.Fprintln(&whole, i)
				}
				if !strings.HasPrefix(whole.String(), got) {
					t.Errorf("the log of %d bytes has a hole", len(got))
				}
			})
		}
	}
}

// untilFull waits until a command sleeps because its pipe is full, and returns
// how much of what it wrote is in the log by then.
func untilFull(t *testing.T, l *lab.Lab, sb, exec string) int {
	t.Helper()
	last, same := -1, 0
	l.Eventually("the command to be stopped", 30*time.Second, func() error {
		top, err := l.Top(t.Context(), sb)
		if err != nil {
			return err
		}
		for _, p := range top.Processes {
			if p.Exec == exec && p.State != "S" {
				same = 0
				return errors.New("it runs")
			}
		}
		n := len(logOf(t, l, sb, exec))
		if same++; n == 0 || n != last {
			last, same = n, 0
		}
		if same < 5 {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	return last
}

// TestExecLogBrokenPipe has a command find out that its client reads no more.
func TestExecLogBrokenPipe(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	res, err := l.Exec(deadline(t), sb.ID, api.ExecRequest{Command: sh("yes; exit 7"), IO: "fds"}, client.Stdio{Out: refuses{}})
	if !errors.Is(err, errRefused) || res.ExitCode != 7 {
		t.Errorf("%+v, %v", res, err)
	}
}

var errRefused = errors.New("no more")

// refuses is an output that takes nothing.
type refuses struct{}

func (refuses) Write([]byte) (int, error) { return 0, errRefused }

// TestExecLogFlood writes many times what is kept: the client gets all of it,
// the disk has no more than the limit, and the main command's output stays.
func TestExecLogFlood(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[logs]\nmax_bytes = '2M'\n"})
	sb := l.Spawn(api.SpawnRequest{Command: sh("echo stays; exec sleep 1000")})
	for _, mode := range modes {
		sum := sha256.New()
		n := &counter64{w: sum}
		res, err := l.Exec(deadline(t), sb.ID, api.ExecRequest{Command: sh("seq 1 3000000"), IO: mode}, client.Stdio{Out: n})
		if err != nil || res.ExitCode != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		want := sha256.New()
		for i := 1; i <= 3000000; i++ {
			fmt.Fprintln(want, i)
		}
		if !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
			t.Errorf("%s: %d bytes came, and not the right ones", mode, n.n)
		}
		used, err := logs.Usage(filepath.Join(l.StateDir(), "logs", sb.ID))
		if err != nil || used > 2<<20+256<<10 {
			t.Errorf("%s: %d bytes on disk, %v", mode, used, err)
		}
		got := logOf(t, l, sb.ID, res.ID)
		if !strings.HasSuffix(got, "\n2999999\n3000000\n") || !strings.HasPrefix(got, "creel: ") {
			t.Errorf("%s: the log does not end with the end, or does not tell what is gone", mode)
		}
	}
	if got := output(t, l, sb.ID); got != "stays\n" {
		t.Errorf("the main command's log is %q", got)
	}
}

type counter64 struct {
	w io.Writer
	n int64
}

func (c *counter64) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}

// TestNoLogs leaves no byte of output on the disk, and says so.
func TestNoLogs(t *testing.T) {
	l := lab.New(t, lab.Options{})
	const secret = "never-on-a-disk"
	script := sh("echo never-on-a-$0disk; echo never-on-a-$0disk >&2; exec sleep 1000")
	script[0] = "/bin/sh"
	none := l.Spawn(api.SpawnRequest{Command: append(script, ""), Logs: "none"})
	kept := l.Spawn(api.SpawnRequest{})
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	p, err := l.Attach(ctx, none.ID, client.AttachOptions{Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	saw := make(chan struct{})
	go func() { _, _ = p.Run(client.Stdio{Out: &until{want: secret, found: saw}}) }()
	select {
	case <-saw:
	case <-ctx.Done():
		t.Fatal("the attached client got nothing")
	}
	_ = p.Close()
	for _, c := range []struct{ id, logs string }{{none.ID, ""}, {kept.ID, "none"}} {
		for _, mode := range modes {
			var out bytes.Buffer
			res, err := l.Exec(deadline(t), c.id, api.ExecRequest{Command: append(sh("echo never-on-a-$0disk"), ""), IO: mode, Logs: c.logs}, client.Stdio{Out: &out})
			if err != nil || out.String() != secret+"\n" {
				t.Errorf("%+v, %v: %q", res, err, out.String())
			}
		}
		execs, err := l.Execs(t.Context(), c.id, nil)
		if err != nil || len(execs) != 2 || execs[0].Logs != "none" || execs[1].Logs != "none" {
			t.Errorf("%+v, %v", execs, err)
		}
	}
	if got, err := l.Inspect(t.Context(), none.ID); err != nil || got.Logs != "none" {
		t.Errorf("%+v, %v", got, err)
	}
	if ev, err := l.Evidence(t.Context(), none.ID, false); err != nil || !strings.Contains(strings.Join(ev[0].Weaker, "\n"), "logs: nothing") {
		t.Errorf("evidence %+v, %v", ev, err)
	}
	// A short command's output, more than is held in memory, reaches its client.
	for _, flags := range [][]string{{"--rm"}, {}} {
		args := append(append([]string{"run", "--logs", "none"}, flags...), "--", "/bin/sh", "-c", "seq 1 100000; echo never-on-a-$0disk", "")
		out, errOut, code := l.Creel(args...)
		if code != 0 || !strings.HasPrefix(out, "1\n2\n") || !strings.HasSuffix(out, "\n100000\n"+secret+"\n") || len(out) != 588895+len(secret)+1 {
			t.Errorf("run %v: %d bytes, %q, %d", flags, len(out), errOut, code)
		}
	}
	l.Kill()
	l.Start()
	if out, res := l.Sh(none.ID, "echo still here"); out != "still here\n" || res.ExitCode != 0 {
		t.Errorf("after a crash: %q, %+v", out, res)
	}
	err = l.Logs(t.Context(), none.ID, client.LogOptions{Tail: -1}, io.Discard, io.Discard)
	if api.CodeOf(err) != api.CodeConflict {
		t.Errorf("logs: %v", err)
	}
	err = filepath.WalkDir(l.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.Contains(path, "containerd") {
			return nil //nolint:nilerr // gone meanwhile, or the image
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(secret)) {
			t.Errorf("%s has it", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestExecLogForged tries, from inside, to write into another command's log:
// by its descriptors, and by what PID 1 holds.
func TestExecLogForged(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	victim, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{Command: sh("echo $$; exec sleep 1000")})
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	l.Eventually("the victim's word", 10*time.Second, func() error { return contains(logOf(t, l, sb.ID, victim.ID()), "\n") })
	before := logOf(t, l, sb.ID, victim.ID())
	pid := strings.TrimSpace(before)
	_, _ = l.Sh(sb.ID, `for p in `+pid+` 1; do for f in /proc/$p/fd/* $(seq -f /proc/$p/fd/%g 0 200); do echo forged > $f; done; done 2>/dev/null`)
	if after := logOf(t, l, sb.ID, victim.ID()); after != before {
		t.Errorf("the victim's log is %q, and was %q", after, before)
	}
	for _, bad := range []string{"../main", "x", strings.Repeat("a", 13), "MAIN"} {
		err := l.Logs(t.Context(), sb.ID, client.LogOptions{Tail: -1, Exec: bad}, io.Discard, io.Discard)
		if api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("exec %q: %v", bad, err)
		}
	}
}
