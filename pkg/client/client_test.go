package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/client/clienttest"
)

func start(tb testing.TB) (*clienttest.Daemon, *client.Client) {
	tb.Helper()
	d := clienttest.New(tb)
	c := client.New(d.Socket)
	tb.Cleanup(func() { _ = c.Close() })
	return d, c
}

func spawn(tb testing.TB, c *client.Client, req api.SpawnRequest) string {
	tb.Helper()
	res, err := c.Spawn(tb.Context(), req)
	if err != nil {
		tb.Fatal(err)
	}
	return res.Sandbox.ID
}

func TestSpawnSendsDirectories(t *testing.T) {
	d, c := start(t)
	a, b := t.TempDir(), t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(b, link); err != nil {
		t.Fatal(err)
	}
	req := api.SpawnRequest{Name: "one", Command: []string{"/bin/true"}, Mounts: []api.Mount{
		{Source: a, Target: "/a"}, {Source: link, Target: "/b", ReadOnly: true},
	}}
	spawn(t, c, req)
	reqs, dirs := d.Requests()
	if diff := cmp.Diff([][]string{{a, b}}, dirs); diff != "" {
		t.Errorf("directories received (-want +got):\n%s", diff)
	}
	for i, m := range reqs[0].Mounts {
		if m.FD == nil || *m.FD != i {
			t.Errorf("mount %d names descriptor %v, want %d", i, m.FD, i)
		}
	}
	if req.Mounts[0].FD != nil {
		t.Error("Spawn changed the caller's request")
	}
}

func TestSpawnReportsEverySource(t *testing.T) {
	d, c := start(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := c.Spawn(t.Context(), api.SpawnRequest{Mounts: []api.Mount{
		{Source: file, Target: "/a"},
		{Source: filepath.Join(file, "x"), Target: "/b"},
		{Source: "", Target: "/c"},
		{Source: t.TempDir(), Target: "/d"},
	}})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeInvalid || len(e.Problems) != 3 {
		t.Fatalf("Spawn error = %v, want one with three problems", err)
	}
	if e.Problems[0].Field != "mounts[0].source" || !strings.Contains(e.Problems[0].Want, "directory") {
		t.Errorf("problem = %v", e.Problems[0])
	}
	if reqs, _ := d.Requests(); len(reqs) != 0 {
		t.Error("a request was sent all the same")
	}
}

func TestSpawnErrorIsTyped(t *testing.T) {
	d, c := start(t)
	d.Set(func(d *clienttest.Daemon) {
		d.Fail = &api.Error{Code: api.CodeNotProven, Message: "not proven", Evidence: &api.Evidence{Controls: []api.Control{{Name: "x"}}}}
	})
	_, err := c.Spawn(t.Context(), api.SpawnRequest{})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeNotProven || e.Evidence == nil || e.Evidence.Controls[0].Name != "x" {
		t.Fatalf("Spawn error = %#v, want the daemon's with its evidence", err)
	}
}

func TestExec(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	tests := []struct {
		name          string
		req           api.ExecRequest
		in            string
		out, err      string
		code          int
		reason        api.Reason
		onlyFramedOut bool
	}{
		{name: "true", req: api.ExecRequest{Command: []string{"/bin/true"}}, reason: api.ReasonExited},
		{name: "both streams", req: api.ExecRequest{Command: []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 7"}}, out: "out\n", err: "err\n", code: 7, reason: api.ReasonExited},
		{name: "stdin to its end", req: api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true}, in: strings.Repeat("a line\n", 50000), out: strings.Repeat("a line\n", 50000), reason: api.ReasonExited},
		{name: "stdin not given", req: api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true}, reason: api.ReasonExited},
		{name: "stdin not read", req: api.ExecRequest{Command: []string{"/bin/true"}, Stdin: true}, in: strings.Repeat("x", 1<<20), reason: api.ReasonExited},
		{name: "environment", req: api.ExecRequest{Command: []string{"/bin/sh", "-c", "echo $A"}, Env: map[string]string{"A": "b c"}}, out: "b c\n", reason: api.ReasonExited},
		{name: "not found", req: api.ExecRequest{Command: []string{"/does/not/exist"}}, code: 127, reason: api.ReasonExited},
		{name: "timeout", req: api.ExecRequest{Command: []string{"/bin/sleep", "100"}, Timeout: api.Duration(50 * time.Millisecond)}, code: 124, reason: api.ReasonTimeout},
		{name: "killed", req: api.ExecRequest{Command: []string{"/bin/sh", "-c", "kill -9 $$"}}, code: 137, reason: api.ReasonExited},
	}
	for _, tt := range tests {
		for _, mode := range []string{client.IOFDs, client.IOFramed} {
			t.Run(tt.name+"/"+mode, func(t *testing.T) {
				req := tt.req
				req.IO = mode
				var out, errOut bytes.Buffer
				stdio := client.Stdio{Out: &out, Err: &errOut}
				if tt.in != "" {
					stdio.In = strings.NewReader(tt.in)
				}
				res, err := c.Exec(t.Context(), id, req, stdio)
				if err != nil {
					t.Fatal(err)
				}
				if res.ExitCode != tt.code || res.Reason != tt.reason {
					t.Errorf("result = %+v, want code %d, reason %s", res, tt.code, tt.reason)
				}
				if out.String() != tt.out || errOut.String() != tt.err {
					t.Errorf("output = %.60q and %.60q (%d bytes), want %.60q and %.60q", out.String(), errOut.String(), out.Len(), tt.out, tt.err)
				}
			})
		}
	}
}

// A process that a command leaves behind holds the pipes open; what the
// command wrote arrives all the same, and the client does not wait.
func TestExecDoesNotWaitForWhatIsLeftBehind(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	var out bytes.Buffer
	req := api.ExecRequest{Command: []string{"/bin/sh", "-c", "setsid sleep 20 & head -c 60000 /dev/zero"}}
	started := time.Now()
	res, err := c.Exec(t.Context(), id, req, client.Stdio{Out: &out})
	if err != nil || res.ExitCode != 0 {
		t.Fatalf("Exec = %+v, %v", res, err)
	}
	if out.Len() != 60000 {
		t.Errorf("%d bytes of output, want 60000", out.Len())
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestExecOnce(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	out, err := c.ExecOnce(t.Context(), id, api.ExecRequest{Command: []string{"/bin/sh", "-c", "cat; echo err >&2; exit 3"}, Input: "12345", MaxOutput: 4})
	if err != nil {
		t.Fatal(err)
	}
	if out.ExitCode != 3 || out.Stdout != "1234" || out.Stderr != "err\n" || !out.Truncated {
		t.Errorf("answer %+v", out)
	}
	_, err = c.ExecOnce(t.Context(), id, api.ExecRequest{Command: []string{"/bin/true"}, TTY: true})
	if api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("with a terminal: %v", err)
	}
}

func TestExecTerminal(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	for _, mode := range []string{client.IOFDs, client.IOFramed} {
		t.Run(mode, func(t *testing.T) {
			r, w := io.Pipe()
			defer w.Close()
			p, err := c.StartExec(t.Context(), id, api.ExecRequest{
				Command: []string{"/bin/sh", "-c", `tty >/dev/null && stty size && read x && stty size && echo "got $x"`},
				TTY:     true, Stdin: true, Cols: 80, Rows: 24, IO: mode,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			out := &waitFor{want: "24 80", found: make(chan struct{})}
			go func() {
				<-out.found
				if err := p.Resize(100, 30); err != nil {
					t.Error(err)
				}
				// The size and the input take two ways, so ask again until it is there.
				_, _ = io.WriteString(w, "hello\n")
			}()
			res, err := p.Run(client.Stdio{In: r, Out: out})
			if err != nil || res.ExitCode != 0 {
				t.Fatalf("Run = %+v, %v; output %q", res, err, out.String())
			}
			if !strings.Contains(out.String(), "got hello") {
				t.Errorf("output %q has no answer", out.String())
			}
		})
	}
}

// waitFor is a buffer that tells when a text has been written to it.
type waitFor struct {
	bytes.Buffer
	want  string
	found chan struct{}
	once  bool
}

func (w *waitFor) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if !w.once && strings.Contains(w.String(), w.want) {
		w.once = true
		close(w.found)
	}
	return n, err
}

func TestExecSignal(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	p, err := c.StartExec(t.Context(), id, api.ExecRequest{Command: []string{"/bin/sleep", "100"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	res, err := p.Run(client.Stdio{})
	if err != nil || res.ExitCode != 128+15 {
		t.Errorf("Run = %+v, %v, want exit code 143", res, err)
	}
}

func TestExecEndsWithItsContext(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	p, err := c.StartExec(ctx, id, api.ExecRequest{Command: []string{"/bin/sleep", "100"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	cancel(why)
	if _, err := p.Run(client.Stdio{}); !errors.Is(err, why) {
		t.Errorf("Run error = %v, want %v", err, why)
	}
}

func TestExecErrors(t *testing.T) {
	_, c := start(t)
	if _, err := c.Exec(t.Context(), "nobody", api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{}); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("Exec error = %v, want not found", err)
	}
	id := spawn(t, c, api.SpawnRequest{})
	_, err := c.Exec(t.Context(), id, api.ExecRequest{Command: []string{"/bin/true"}, IO: "telepathy"}, client.Stdio{})
	if api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("Exec error = %v, want invalid", err)
	}
}

func TestExecStopsWhenOutputCannotBeWritten(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	r, w := io.Pipe()
	_ = r.CloseWithError(errors.New("reader gone"))
	for _, mode := range []string{client.IOFDs, client.IOFramed} {
		_, err := c.Exec(t.Context(), id, api.ExecRequest{Command: []string{"/usr/bin/yes"}, IO: mode}, client.Stdio{Out: w})
		if err == nil || !strings.Contains(err.Error(), "reader gone") {
			t.Errorf("%s: Exec error = %v, want the writer's", mode, err)
		}
	}
}

func TestAttachReplaysAndWaits(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{Command: []string{"/bin/sh", "-c", "echo first; read x; echo got $x; exit 3"}, Stdin: true})
	p, err := c.Attach(t.Context(), id, client.AttachOptions{Replay: true, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var out bytes.Buffer
	res, err := p.Run(client.Stdio{In: strings.NewReader("x\n"), Out: &out})
	if err != nil || res.ExitCode != 3 || out.String() != "first\ngot x\n" {
		t.Errorf("Run = %+v, %v, output %q", res, err, out.String())
	}
}

func TestFiles(t *testing.T) {
	_, c := start(t)
	id := spawn(t, c, api.SpawnRequest{})
	ctx := t.Context()
	for name, size := range map[string]int64{"known": 5, "unknown": -1} {
		if err := c.WriteFile(ctx, id, "/"+name, client.WriteOptions{Mode: 0o640}, strings.NewReader("hello"), size); err != nil {
			t.Fatalf("WriteFile %s: %v", name, err)
		}
	}
	if err := c.WriteFile(ctx, id, "/empty", client.WriteOptions{Mode: 0o600}, strings.NewReader(""), 0); err != nil {
		t.Fatal(err)
	}
	body, err := c.ReadFile(ctx, id, "/known")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(body); err != nil || string(b) != "hello" {
		t.Errorf("content = %q, %v", b, err)
	}
	_ = body.Close()
	if err := errors.Join(c.Mkdir(ctx, id, "/d/e", true), c.RenameFile(ctx, id, "/unknown", "/d/é #?%2f"), c.RemoveFile(ctx, id, "/empty", false)); err != nil {
		t.Fatal(err)
	}
	fi, err := c.StatFile(ctx, id, "/d/é #?%2f")
	if err != nil || fi.Size != 5 || fi.Mode != 0o640 {
		t.Errorf("StatFile = %+v, %v", fi, err)
	}
	var names []string
	truncated, err := c.ListDir(ctx, id, "/", 0, func(fi api.FileInfo) error { names = append(names, fi.Name); return nil })
	if err != nil || truncated || len(names) != 2 {
		t.Errorf("ListDir = %v, %v, %v", names, truncated, err)
	}
	truncated, err = c.ListDir(ctx, id, "/", 1, func(api.FileInfo) error { return nil })
	if err != nil || !truncated {
		t.Errorf("ListDir of one = %v, %v, want truncated", truncated, err)
	}
	stop := errors.New("stop")
	if _, err := c.ListDir(ctx, id, "/", 0, func(api.FileInfo) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("ListDir error = %v, want the callback's", err)
	}
	if _, err := c.ReadFile(ctx, id, "/nothing"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("ReadFile error = %v, want not found", err)
	}
}

func TestEvents(t *testing.T) {
	_, c := start(t)
	stop := errors.New("stop")
	err := c.Events(t.Context(), 0, func(ev api.Event) error {
		if ev.Seq != 1 || ev.Type != "sandbox.started" || ev.Fields["command"] != "a\x1b[31mb c" {
			t.Errorf("event = %+v", ev)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Errorf("Events error = %v, want the callback's", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Events(ctx, 1, func(api.Event) error { t.Error("an old event came"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Events error = %v, want the deadline", err)
	}
}

func TestBox(t *testing.T) {
	_, c := start(t)
	ctx := t.Context()
	img, err := c.ImportImage(ctx, "example.org/a/b:1", strings.NewReader("archive"))
	if err != nil || img.Size != 7 {
		t.Fatalf("ImportImage = %+v, %v", img, err)
	}
	if img, err := c.Image(ctx, "example.org/a/b:1"); err != nil || img.Ref != "example.org/a/b:1" {
		t.Errorf("Image = %+v, %v", img, err)
	}
	if img, err := c.TagImage(ctx, "example.org/a/b:1", "example.org/a/b:2"); err != nil || img.Ref != "example.org/a/b:2" {
		t.Errorf("TagImage = %+v, %v", img, err)
	}
	if r, err := c.SaveImage(ctx, "example.org/a/b:1"); err != nil {
		t.Error(err)
	} else {
		if b, err := io.ReadAll(r); err != nil || string(b) != "archive of example.org/a/b:1" {
			t.Errorf("SaveImage = %q, %v", b, err)
		}
		r.Close()
	}
	if err := c.RemoveImage(ctx, "example.org/a/b:1"); err != nil {
		t.Error(err)
	}
	if list, err := c.Images(ctx); err != nil || len(list) != 2 {
		t.Errorf("Images = %v, %v", list, err)
	}
	if err := c.CheckProfile(ctx, []byte("version = 2")); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("CheckProfile error = %v, want invalid", err)
	}
	if p, err := c.Profile(ctx, "default"); err != nil || p.TOML == "" {
		t.Errorf("Profile = %+v, %v", p, err)
	}
	if v, err := c.Version(ctx); err != nil || v.API != "v1" {
		t.Errorf("Version = %+v, %v", v, err)
	}
}

func BenchmarkExec(b *testing.B) {
	_, c := start(b)
	id := spawn(b, c, api.SpawnRequest{})
	for b.Loop() {
		if res, err := c.Exec(b.Context(), id, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{}); err != nil || res.ExitCode != 0 {
			b.Fatal(res, err)
		}
	}
}
