package cli_test

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cli"
	"github.com/creel-sandbox/creel/pkg/client/clienttest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"creel": func() {
			os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
	})
}

type daemonKey struct{}

// TestScripts runs testdata/*.txtar, each with a daemon of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			tb, ok := e.T().(testing.TB)
			if !ok {
				tb = t
			}
			d := clienttest.New(tb)
			e.Values[daemonKey{}] = d
			e.Setenv("CREEL_SOCKET", d.Socket)
			e.Setenv("PATH", e.Getenv("PATH")+":/usr/bin:/bin")
			e.Setenv("TZ", "UTC")
			// Built with the race detector, each creel would sleep a second at its end.
			e.Setenv("GORACE", "atexit_sleep_ms=10")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exitcode": exitCode, "requested": requested, "hostile": hostile, "refuse": refuse, "unproven": unproven,
		},
	})
}

func daemonOf(ts *testscript.TestScript) *clienttest.Daemon {
	return ts.Value(daemonKey{}).(*clienttest.Daemon)
}

// exitCode runs a command and checks its exit code: exitcode 125 creel ...
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exitcode CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// requested prints the last spawn request, as JSON, and its directories.
func requested(ts *testscript.TestScript, neg bool, args []string) {
	reqs, dirs := daemonOf(ts).Requests()
	if len(reqs) == 0 {
		if !neg {
			ts.Fatalf("nothing was requested")
		}
		return
	}
	text := describe(reqs[len(reqs)-1], dirs[len(dirs)-1])
	for _, a := range args {
		if strings.Contains(text, a) == neg {
			ts.Fatalf("the request has (or lacks) %q: %s", a, text)
		}
	}
}

// refuse makes every further spawn fail.
func refuse(ts *testscript.TestScript, _ bool, _ []string) {
	daemonOf(ts).Set(func(d *clienttest.Daemon) {
		d.Fail = &api.Error{
			Code: api.CodeInvalid, Message: "the request is not valid", Hint: "ask \x1b]0;evil\x07 nicely",
			Problems: []api.Problem{{Field: "limits.memory", Value: "9T", Want: "at most 4G"}},
		}
	})
}

// unproven makes every proof fail.
func unproven(ts *testscript.TestScript, _ bool, _ []string) {
	daemonOf(ts).Set(func(d *clienttest.Daemon) {
		d.Proof.OK = false
		d.Proof.Weaker = []string{"cgroup v1"}
		d.Proof.Controls = append(d.Proof.Controls, api.Control{Name: "seccomp.filter", Expected: "sha256:aa", Observed: "none\x1b[2J"})
	})
}

// hostile fills /bad of the sandbox with what cp must not bring out.
func hostile(ts *testscript.TestScript, _ bool, _ []string) {
	d := daemonOf(ts)
	file := func(name string) {
		f, err := d.Root.Create(name)
		if err != nil {
			ts.Fatalf("%v", err)
		}
		_, _ = f.WriteString("content of " + name)
		_ = f.Close()
	}
	for _, dir := range []string{"bad", "bad/sub"} {
		if err := d.Root.Mkdir(dir, 0o755); err != nil {
			ts.Fatalf("%v", err)
		}
	}
	file("bad/plain")
	file("bad/suid")
	file("bad/sub/inner")
	d.Set(fill)
}

func fill(d *clienttest.Daemon) {
	d.Modes = map[string]uint32{"/bad/suid": 0o4755}
	d.Listings = map[string][]api.FileInfo{
		"/bad": {
			{Name: "plain", Type: "file", Mode: 0o644},
			{Name: "suid", Type: "file", Mode: 0o6755},
			{Name: "../escape", Type: "file", Mode: 0o644},
			{Name: "..", Type: "dir", Mode: 0o755},
			{Name: "", Type: "file"},
			{Name: "a/b", Type: "file"},
			{Name: "\x1b[31mred", Type: "other"},
			{Name: "null", Type: "other", Mode: 0o666},
			{Name: "abs", Type: "symlink", Target: "/etc/passwd"},
			{Name: "up", Type: "symlink", Target: "../outside"},
			{Name: "round", Type: "symlink", Target: "sub/../../outside"},
			{Name: "fine", Type: "symlink", Target: "sub/inner"},
			{Name: "sub", Type: "dir", Mode: 0o755},
		},
		"/bad/sub": {
			{Name: "inner", Type: "file", Mode: 0o600},
			{Name: "back", Type: "symlink", Target: "../plain"},
			{Name: "toofar", Type: "symlink", Target: "../../x"},
		},
	}
}

func describe(req api.SpawnRequest, dirs []string) string {
	b, err := json.Marshal(req)
	if err != nil {
		return err.Error()
	}
	return string(b) + " " + strings.Join(dirs, " ")
}
