package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"

	"github.com/google/go-cmp/cmp"
)

// fields are what an error is about.
func fields(e *api.Error) (out []string) {
	for _, p := range e.Problems {
		out = append(out, p.Field)
	}
	return out
}

// TestEnsure: the same request gives the same sandbox, another is told what
// is different.
func TestEnsure(t *testing.T) {
	// No room for a second one: who comes second must not need any.
	l := lab.New(t, lab.Options{Config: "[limits.max]\nsandboxes_per_user = 1\n"})
	ctx := deadline(t)
	dir := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	req := api.SpawnRequest{
		Name: "one", Command: []string{"/bin/sleep", "1000"}, Env: map[string]string{"TOKEN": "secret"}, Labels: map[string]string{"k": "v"},
		Mounts: []api.Mount{{Source: filepath.Join(dir, "a"), Target: "/work", ReadOnly: true}}, Limits: api.Limits{Memory: 64 << 20},
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	made, ids := 0, map[string]int{}
	for range 100 {
		wg.Go(func() {
			res, isNew, err := client.New(l.Socket).Ensure(ctx, req)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			ids[res.Sandbox.ID]++
			if isNew {
				made++
			}
			if res.Sandbox.State != api.StateRunning || !res.Evidence.OK || res.Evidence.Sandbox != res.Sandbox.ID {
				t.Errorf("%+v with evidence of %s", res.Sandbox, res.Evidence.Sandbox)
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 || made != 1 {
		t.Fatalf("sandboxes %v, %d made", ids, made)
	}
	same := func(when string, change func(r *api.SpawnRequest)) {
		t.Helper()
		r := req
		change(&r)
		if res, isNew, err := l.Ensure(ctx, r); err != nil || isNew || ids[res.Sandbox.ID] == 0 {
			t.Errorf("%s: new %t, %v", when, isNew, err)
		}
	}
	same("defaults said aloud", func(r *api.SpawnRequest) {
		r.Profile, r.Agent, r.Network, r.Image = "default", "default", "none", "base:latest"
	})
	same("another path", func(r *api.SpawnRequest) {
		r.Mounts = []api.Mount{{Source: filepath.Join(dir, "link"), Target: "/work", ReadOnly: true}}
	})
	l.Kill()
	l.Start()
	same("after a crash", func(*api.SpawnRequest) {})

	other := req
	other.Command, other.Env, other.Limits.Memory = []string{"/bin/sleep", "1001"}, map[string]string{"TOKEN": "guess"}, 65<<20
	other.Mounts = []api.Mount{{Source: filepath.Join(dir, "b"), Target: "/work", ReadOnly: true}}
	_, _, err := l.Ensure(ctx, other)
	e := asAPI(t, err)
	if diff := cmp.Diff([]string{"command", "env.TOKEN", "limits.memory", "limits.tmp", "limits.shm_size", "mounts./work.source"}, fields(e)); e.Code != api.CodeConflict || diff != "" {
		t.Errorf("another: %v; fields (-want +got):\n%s", e, diff)
	}
	if strings.Contains(e.Error(), "secret") || e.Problems[0].Have != `["/bin/sleep","1000"]` || e.Problems[0].Want != `["/bin/sleep","1001"]` {
		t.Errorf("problems %+v", e.Problems)
	}
	if err := l.Client.Kill(ctx, "one", "KILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Wait(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if res, isNew, err := l.Ensure(ctx, req); err != nil || isNew || res.Sandbox.State != api.StateStopped {
		t.Errorf("when it has ended: new %t, %v", isNew, err)
	}
	if err := l.Remove(ctx, "one", false); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := l.Creel("run", "-d", "--ensure", "--name", "one")
	again, _, _ := l.Creel("run", "-d", "--ensure", "--name", "one")
	if code != 0 || out == "" || out != again {
		t.Errorf("creel run --ensure: %d %q %q, again %q", code, out, stderr, again)
	}
	if _, stderr, code := l.Creel("run", "-d", "--ensure", "--name", "one", "--label", "a=b"); code != 125 || !strings.Contains(stderr, "labels.a: none, not \"b\"") {
		t.Errorf("creel run --ensure of another: %d %q", code, stderr)
	}
}

// TestEnsureRefused is what is no name, or not this caller's.
func TestEnsureRefused(t *testing.T) {
	l := forUsers(t)
	sb := l.Spawn(api.SpawnRequest{Name: "roots"})
	for _, tt := range []struct {
		name, body string
		want       int
	}{
		{"Capital", "{}", 400},
		{"a%2Fb", "{}", 400},
		{strings.Repeat("a", 64), "{}", 400},
		{"one", `{"name":"two"}`, 400},
		{"one", `{"privileged":true}`, 400},
		{"one?x=1", `{}`, 400},
		{"one", `{"mounts":[{"source":"/","fd":0,"target":"/w"}]}`, 400},
		{"one", `{"image":"none-such"}`, 404},
		{"roots", `{}`, 200},
		{sb.ID, `{}`, 201}, // a name that looks like an id is a name
	} {
		req := strings.Replace(post("/v1/sandboxes/"+tt.name, "application/json", tt.body), "POST", "PUT", 1)
		if got := dialRaw(t, l).send(req).status(); got != tt.want {
			t.Errorf("PUT %s %s: %d, want %d", tt.name, tt.body, got, tt.want)
		}
	}
	asStranger(t, func() {
		// The name is free for another caller, and neither learns of the other.
		status, body := ask(t, l, http.MethodPut, "/v1/sandboxes/roots", `{"labels":{"mine":"yes"}}`)
		if status != http.StatusCreated || strings.Contains(body, sb.ID) {
			t.Errorf("another caller's: %d %s", status, body)
		}
	})
	if res, isNew, err := l.Ensure(t.Context(), api.SpawnRequest{Name: "roots"}); err != nil || isNew || res.Sandbox.ID != sb.ID {
		t.Errorf("root's own: new %t, %+v, %v", isNew, res, err)
	}
}

// TestEnsureWhileItFails: a first one that fails, or whose client goes away,
// makes way for the next.
func TestEnsureWhileItFails(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Fail("launch.prove error")
	if _, _, err := l.Ensure(t.Context(), api.SpawnRequest{Name: "one"}); api.CodeOf(err) != api.CodeInternal {
		t.Errorf("at a failpoint: %v", err)
	}
	l.Fail()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, _, err := client.New(l.Socket).Ensure(ctx, api.SpawnRequest{Name: "one"})
		first <- err
	}()
	l.Eventually("it is being made", 20*time.Second, func() error {
		all, err := l.List(t.Context(), client.ListOptions{All: true})
		if err == nil && len(all) == 0 {
			err = errors.New("not yet")
		}
		return err
	})
	bound := deadline(t)
	second := make(chan error, 1)
	go func() {
		res, _, err := client.New(l.Socket).Ensure(bound, api.SpawnRequest{Name: "one"})
		if err == nil && res.Sandbox.State != api.StateRunning {
			err = fmt.Errorf("%+v", res.Sandbox)
		}
		second <- err
	}()
	cancel()
	if err := <-first; err != nil && !errors.Is(err, context.Canceled) { // it may have been faster
		t.Errorf("the first: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the second: %v", err)
	}
	if all, err := l.List(t.Context(), client.ListOptions{All: true}); err != nil || len(all) != 1 {
		t.Errorf("%d sandboxes, %v", len(all), err)
	}
}

// TestSpawnOnce: a request that comes again makes nothing, whatever happened
// to its sandbox since.
func TestSpawnOnce(t *testing.T) {
	l := forUsers(t)
	ctx := deadline(t)
	req := api.SpawnRequest{Command: []string{"/bin/sh", "-c", "exit 3"}, Labels: map[string]string{"a": "1", "b": "2"}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	made, ids := 0, map[string]int{}
	for range 40 {
		wg.Go(func() {
			res, isNew, err := client.New(l.Socket).SpawnOnce(ctx, "job-1", req)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			ids[res.Sandbox.ID]++
			if isNew {
				made++
			}
		})
	}
	wg.Wait()
	if len(ids) != 1 || made != 1 {
		t.Fatalf("sandboxes %v, %d made", ids, made)
	}
	other := req
	other.Labels = nil
	_, _, err := l.SpawnOnce(ctx, "job-1", other)
	if e := asAPI(t, err); e.Code != api.CodeConflict || len(e.Problems) != 1 || e.Problems[0].Field != "Idempotency-Key" {
		t.Errorf("another request with the key: %v", e)
	}
	if _, isNew, err := l.SpawnOnce(ctx, "job-2", req); err != nil || !isNew {
		t.Errorf("another key: new %t, %v", isNew, err)
	}
	asStranger(t, func() {
		body := `{"command":["/bin/true"]}`
		head := "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nIdempotency-Key: job-1\r\n"
		if got := dialRaw(t, l).send(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)).status(); got != http.StatusCreated {
			t.Errorf("another caller's: %d", got)
		}
	})
	l.Kill()
	l.Start()
	res, isNew, err := l.SpawnOnce(ctx, "job-1", req)
	if err != nil || isNew || ids[res.Sandbox.ID] == 0 {
		t.Fatalf("to the next daemon: new %t, %v", isNew, err)
	}
	if _, err := l.Wait(ctx, res.Sandbox.ID); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(ctx, res.Sandbox.ID, false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.SpawnOnce(ctx, "job-1", req); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "has been removed") {
		t.Errorf("when it has been removed: %v", err)
	}
	// What failed was not done, so it can be asked for again.
	l.Fail("launch.prove error")
	if _, _, err := l.SpawnOnce(ctx, "job-3", req); err == nil {
		t.Error("no error at a failpoint")
	}
	l.Fail("launch.prove kill")
	if _, _, err := l.SpawnOnce(ctx, "job-3", req); err == nil {
		t.Error("no error of a daemon that was killed")
	}
	died(t, l) // and starts the next
	if _, isNew, err := l.SpawnOnce(ctx, "job-3", req); err != nil || !isNew {
		t.Errorf("after failures: new %t, %v", isNew, err)
	}
}

// TestExecKey: a command with a key runs once, whoever repeats the request,
// and also when its client has gone meanwhile.
func TestExecKey(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	send := func(key, script string) *raw {
		body := fmt.Sprintf(`{"command":["/bin/sh","-c",%q]}`, script)
		return dialRaw(t, l).send(fmt.Sprintf("POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s", sb.ID, key, len(body), body))
	}
	const script = "echo x >>/tmp/a; exec wc -l </tmp/a"
	var wg sync.WaitGroup
	for range 8 {
		r := send("k", script)
		wg.Go(func() {
			if got := r.status(); got != http.StatusOK {
				t.Errorf("a request: %d", got)
			}
		})
	}
	wg.Wait()
	if out, _ := l.Sh(sb.ID, "cat /tmp/a"); out != "x\n" {
		t.Errorf("the command wrote %q", out)
	}
	if got := send("k", "true").status(); got != http.StatusConflict {
		t.Errorf("another command with the key: %d", got)
	}
	const long = "echo y >>/tmp/b; exec sleep 1000"
	r := send("lost", long)
	l.Eventually("it has begun", time.Minute, func() error {
		if out, _ := l.Sh(sb.ID, "cat /tmp/b"); out != "y\n" {
			return fmt.Errorf("it wrote %q", out)
		}
		return nil
	})
	r.conn.Close()
	if got := send("lost", long).status(); got != http.StatusConflict {
		t.Errorf("a repeat after the client has gone: %d", got)
	}
	if out, _ := l.Sh(sb.ID, "cat /tmp/b"); out != "y\n" {
		t.Errorf("then it has written %q", out)
	}
}
