package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestExecOnce is a command from start to end in one request.
func TestExecOnce(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Limits: api.Limits{Pids: 20}})
	ctx := deadline(t)
	exited := api.ExecResult{Reason: api.ReasonExited}
	tests := []struct {
		name string
		req  api.ExecRequest
		want api.ExecOutput
	}{
		{"both outputs", api.ExecRequest{Command: sh("echo out; echo err >&2; exit 7")}, api.ExecOutput{ExecResult: api.ExecResult{ExitCode: 7, Reason: api.ReasonExited}, Stdout: "out\n", Stderr: "err\n"}},
		{"environment and directory", api.ExecRequest{Command: sh("echo $A; pwd"), Env: map[string]string{"A": "b"}, Workdir: "/var/tmp"}, api.ExecOutput{ExecResult: exited, Stdout: "b\n/var/tmp\n"}},
		{"input", api.ExecRequest{Command: []string{"/bin/cat"}, Input: "grüße"}, api.ExecOutput{ExecResult: exited, Stdout: "grüße"}},
		{"bytes", api.ExecRequest{Command: []string{"/bin/cat"}, InputBase64: "AP8="}, api.ExecOutput{ExecResult: exited, Stdout: "\x00\ufffd", StdoutBase64: "AP8="}},
		{"input that nobody reads", api.ExecRequest{Command: []string{"/bin/true"}, Input: strings.Repeat("x", 900<<10)}, api.ExecOutput{ExecResult: exited}},
		{"no input is at its end", api.ExecRequest{Command: []string{"/bin/cat"}}, api.ExecOutput{ExecResult: exited}},
		{"not found", api.ExecRequest{Command: []string{"/bin/nothing"}}, api.ExecOutput{ExecResult: api.ExecResult{ExitCode: 127, Reason: api.ReasonExited, Error: "no such file"}}},
		{"a flood", api.ExecRequest{Command: sh("yes | head -c 20000000; yes >&2"), MaxOutput: 3, Timeout: api.Duration(2 * time.Second)}, api.ExecOutput{
			ExecResult: api.ExecResult{ExitCode: 124, Signal: 9, Reason: api.ReasonTimeout}, Stdout: "y\ny", Stderr: "y\ny", Truncated: true, TimedOut: true,
		}},
		{"left behind", api.ExecRequest{Command: sh("sleep 1000 & echo done")}, api.ExecOutput{ExecResult: exited, Stdout: "done\n"}},
		{"left behind and loud", api.ExecRequest{Command: sh("yes & echo done >&2")}, api.ExecOutput{ExecResult: exited, Stderr: "done\n", Truncated: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := l.ExecOnce(ctx, sb.ID, tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if tt.name == "left behind and loud" {
				got.Stdout = "" // as much of it as came
			}
			if tt.want.Error != "" && strings.Contains(got.Error, tt.want.Error) {
				got.Error = tt.want.Error // in more words
			}
			if diff := cmp.Diff(&tt.want, got, cmpopts.IgnoreFields(api.ExecResult{}, "ID", "Took")); diff != "" {
				t.Errorf("answer (-want +got):\n%.2000s", diff)
			}
		})
	}
	t.Run("limit", func(t *testing.T) {
		got, err := l.ExecOnce(ctx, sb.ID, api.ExecRequest{Command: sh("i=0; while [ $i -lt 30 ]; do sleep 3 & i=$((i+1)); done; wait")})
		if err != nil || got.LimitsHit["pids"] == 0 {
			t.Errorf("answer %+v, %v", got, err)
		}
	})
	t.Run("mistakes", func(t *testing.T) {
		_, err := l.ExecOnce(ctx, sb.ID, api.ExecRequest{Command: []string{""}, Env: map[string]string{"a b": ""}, Workdir: "tmp"})
		if e := asAPI(t, err); e.Code != api.CodeInvalid || len(e.Problems) != 3 {
			t.Errorf("error %+v", e)
		}
	})
	t.Run("paused", func(t *testing.T) {
		if _, stderr, code := l.Creel("pause", sb.ID); code != 0 {
			t.Fatal(stderr)
		}
		if _, err := l.ExecOnce(ctx, sb.ID, api.ExecRequest{Command: sh("true")}); api.CodeOf(err) != api.CodeConflict {
			t.Errorf("in a paused sandbox: %v", err)
		}
	})
	serves(t, l, l.Spawn(api.SpawnRequest{}).ID)
}

// TestExecOnceLost: the connection is the client. Whoever loses it, all that
// the command started ends, re-parented or not.
func TestExecOnceLost(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	const body = `{"command":["/bin/sh","-c","setsid sh -c 'sleep 777 & sleep 777' & touch /tmp/up; exec sleep 777"]}`
	req := post("/v1/sandboxes/"+sb.ID+"/exec", "application/json", body)
	running := func(want bool) func() error {
		return func() error {
			out, err := l.ExecOnce(t.Context(), sb.ID, api.ExecRequest{Command: sh("ls /tmp/up 2>/dev/null; ps")})
			if err != nil {
				return err
			}
			if up := strings.Contains(out.Stdout, "/tmp/up") && strings.Count(out.Stdout, "sleep 777") >= 3; want && !up || !want && strings.Contains(out.Stdout, "777") {
				return fmt.Errorf("want them running: %t\n%s", want, out.Stdout)
			}
			return nil
		}
	}
	for name, lose := range map[string]func(r *raw){
		"closed":           func(r *raw) { _ = r.conn.Close() },
		"half closed":      func(r *raw) { _ = r.conn.CloseWrite() },
		"after pipelining": func(r *raw) { r.send("GET /v1/version HTTP/1.1\r\nHost: c\r\n\r\n"); _ = r.conn.Close() },
		"creeld killed":    func(*raw) { l.Kill(); l.Start() },
	} {
		t.Run(name, func(t *testing.T) {
			r := dialRaw(t, l).send(req)
			l.Eventually("it runs", 20*time.Second, running(true))
			lose(r)
			l.Eventually("it has ended", 20*time.Second, running(false))
		})
	}
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := l.ExecOnce(ctx, sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "777"}})
			failed <- err
		}()
		l.Eventually("it runs", 20*time.Second, func() error {
			if out, _ := l.Sh(sb.ID, "ps"); !strings.Contains(out, "sleep 777") {
				return errors.New(out)
			}
			return nil
		})
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		l.Eventually("it has ended", 20*time.Second, running(false))
	})
	v, err := l.Inspect(t.Context(), sb.ID)
	if err != nil || v.Execs != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if status := dialRaw(t, l).send(req[:len(req)-1] + "]").status(); status != http.StatusBadRequest {
		t.Errorf("a broken body: %d", status)
	}
}
