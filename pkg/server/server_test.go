package server_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/server"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// daemon is a running server over a real Unix socket.
type daemon struct {
	svc    *fake
	srv    *server.Server
	path   string
	log    *logBuffer
	client *http.Client
}

func start(t *testing.T, opts server.Options) *daemon {
	t.Helper()
	dir := t.TempDir()
	if len(dir) > 80 { // sockaddr_un has 108 bytes
		var err error
		if dir, err = os.MkdirTemp("", "creel"); err != nil { //nolint:usetesting // that one is too long
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	d := &daemon{svc: &fake{}, path: filepath.Join(dir, "s"), log: &logBuffer{}}
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(d.log, nil))
	}
	l, err := server.Listen(t.Context(), d.path, "")
	if err != nil {
		t.Fatal(err)
	}
	d.srv, err = server.New(d.svc, opts)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.srv.Serve(l.UnixListener) }()
	d.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.path)
	}}}
	t.Cleanup(func() {
		d.client.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 5*time.Second)
		defer cancel()
		if err := d.srv.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		l.Close()
	})
	return d
}

// do sends a request and returns the status and body.
func (d *daemon) do(t *testing.T, method, target, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://creel"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := d.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// dial is a raw connection that carries descriptors.
func (d *daemon) dial(t *testing.T) *fdconn.Conn {
	t.Helper()
	uc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	c := fdconn.Client(uc)
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoutes(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.files = []string{"a", "b"}
	})
	tests := []struct {
		method, target, body string
		status               int
		want                 call
		answer               string // part of it
	}{
		{"POST", "/v1/sandboxes", `{"name":"n"}`, 201, call{"Spawn", []any{api.SpawnRequest{Name: "n"}, 0}}, `"id":"s1"`},
		{"GET", "/v1/sandboxes", "", 200, call{"List", []any{server.ListOptions{}}}, "[]"},
		{"GET", "/v1/sandboxes?all=1&label=a=b&label=c=d=e&state=paused&state=stopped&agent=x&image=i&image=j", "", 200, call{"List", []any{server.ListOptions{
			All: true, Labels: map[string]string{"a": "b", "c": "d=e"}, States: []api.State{api.StatePaused, api.StateStopped}, Agents: []string{"x"}, Images: []string{"i", "j"},
		}}}, "[]"},
		{"GET", "/v1/sandboxes/box/top", "", 200, call{"Top", []any{"box"}}, `"id":"box"`},
		{"GET", "/v1/sandboxes/box/execs?label=a=b", "", 200, call{"Execs", []any{"box", map[string]string{"a": "b"}}}, "[]"},
		{"GET", "/v1/sandboxes/box", "", 200, call{"Get", []any{"box"}}, `"id":"box"`},
		{"DELETE", "/v1/sandboxes/box?force=true", "", 204, call{"Remove", []any{"box", true}}, ""},
		{"POST", "/v1/sandboxes/box/stop", "", 200, call{"Stop", []any{"box", 10 * time.Second}}, `"id":"box"`},
		{"POST", "/v1/sandboxes/box/stop", `{"grace":"0s"}`, 200, call{"Stop", []any{"box", time.Duration(0)}}, ""},
		{"POST", "/v1/sandboxes/box/kill", "", 204, call{"Kill", []any{"box", unix.SIGKILL}}, ""},
		{"POST", "/v1/sandboxes/box/kill", `{"signal":"term"}`, 204, call{"Kill", []any{"box", unix.SIGTERM}}, ""},
		{"POST", "/v1/sandboxes/box/kill", `{"signal":"10"}`, 204, call{"Kill", []any{"box", unix.SIGUSR1}}, ""},
		{"POST", "/v1/sandboxes/box/pause", "", 204, call{"Pause", []any{"box"}}, ""},
		{"POST", "/v1/sandboxes/box/resume", "{}", 204, call{"Resume", []any{"box"}}, ""},
		{"GET", "/v1/sandboxes/box/wait", "", 200, call{"Wait", []any{"box"}}, `"exit_code":3`},
		{"GET", "/v1/sandboxes/box/stats", "", 200, call{"Stats", []any{"box"}}, `"id":"box"`},
		{"GET", "/v1/sandboxes/box/evidence?fresh=true", "", 200, call{"Evidence", []any{"box", true}}, `[{"sandbox":"box"`},
		{"GET", "/v1/sandboxes/box/logs?tail=5&follow=0", "", 200, call{"Logs", []any{"box", false, 5, true}}, "\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x03err"},
		{"GET", "/v1/sandboxes/box/logs?exec=all", "", 200, call{"Logs", []any{"box", false, -1, true}}, "\x01\x00\x00\x00\x00\x00\x00\x03out\x09\x00\x00\x00\x00\x00\x00\x05exec1\x02\x00\x00\x00\x00\x00\x00\x03err"},
		{"GET", "/v1/sandboxes/box/logs?since=10m", "", 200, call{"Logs", []any{"box", false, -1, false}}, "out"},
		{"GET", "/v1/sandboxes/box/files?path=/a%20b", "", 200, call{"ReadFile", []any{"box", "/a b"}}, "content"},
		{"PUT", "/v1/sandboxes/box/files?path=/f&mode=755", "bytes", 204, call{"WriteFile", []any{"box", "/f", server.WriteOptions{Mode: 0o755}}}, ""},
		{"PUT", "/v1/sandboxes/box/files?path=/f&parents=true&exclusive=true", "bytes", 204, call{"WriteFile", []any{"box", "/f", server.WriteOptions{Mode: 0o644, KeepMode: true, Parents: true, Exclusive: true}}}, ""},
		{"POST", "/v1/sandboxes/box/prepare", `{"command":["true"],"kill_tree":true}`, 201, call{"Get", []any{"box"}}, `"expires":"`},
		{"DELETE", "/v1/sandboxes/box/files?path=/f&recursive=1", "", 204, call{"RemoveFile", []any{"box", "/f", true}}, ""},
		{"GET", "/v1/sandboxes/box/files/list?path=/&limit=2", "", 200, call{"ListDir", []any{"box", "/", 2}}, "\n{\"truncated\":true}\n"},
		{"GET", "/v1/sandboxes/box/files/stat?path=/f", "", 200, call{"StatFile", []any{"box", "/f"}}, `"name":"/f"`},
		{"POST", "/v1/sandboxes/box/files/mkdir?path=/d&parents=true", "", 204, call{"Mkdir", []any{"box", "/d", true}}, ""},
		{"POST", "/v1/sandboxes/box/files/rename?from=/a&to=/b", "", 204, call{"RenameFile", []any{"box", "/a", "/b"}}, ""},
		{"GET", "/v1/sandboxes/x/diff?limit=7", "", 200, call{"Diff", []any{"x", 7}}, `"rootfs":"ephemeral"`},
		{"GET", "/v1/system/df", "", 200, call{"DiskUsage", nil}, `"rows":[]`},
		{"POST", "/v1/system/prune", `{"images":true,"until":"7d"}`, 200, call{"Prune", []any{api.PruneRequest{Images: true, Until: api.Duration(168 * time.Hour)}}}, `"items":[]`},
		{"POST", "/v1/sandboxes/a/commit", `{"image":"tools:1"}`, 201, call{"Commit", []any{"a", "tools:1"}}, `"ref":"tools:1"`},
		{"GET", "/v1/images", "", 200, call{"Images", nil}, `[{"ref":"base"`},
		{"POST", "/v1/images?ref=x", "archive", 201, call{"ImportImage", []any{"x", int64(7)}}, `"size":7`},
		{"GET", "/v1/images/local/base:1", "", 200, call{"Image", []any{"local/base:1"}}, `"ref":"local/base:1"`},
		{"PUT", "/v1/images/local/base:1", `{"source":"base"}`, 200, call{"TagImage", []any{"base", "local/base:1"}}, `"ref":"local/base:1"`},
		{"GET", "/v1/archives/local/base:1", "", 200, call{"SaveImage", []any{"local/base:1"}}, "archive of local/base:1"},
		{"DELETE", "/v1/images/local/base:1", "", 204, call{"RemoveImage", []any{"local/base:1"}}, ""},
		{"GET", "/v1/agents", "", 200, call{"Agents", nil}, `[{"id":"a1"`},
		{"GET", "/v1/agents/coder", "", 200, call{"Agent", []any{"coder"}}, `"name":"coder"`},
		{"GET", "/v1/approvals?sandbox=a&all=true", "", 200, call{"Approvals", []any{"a", true}}, `"id":"a.1"`},
		{"POST", "/v1/approvals/a.1", `{"allow":true,"for":"once"}`, 200, call{"DecideApproval", []any{"a.1", api.ApprovalDecision{Allow: true, For: api.ForOnce}}}, `"id":"a.1"`},
		{"POST", "/v1/agents/coder/forget-egress", `{"rules":["a.example"]}`, 200, call{"ForgetEgress", []any{"coder", []string{"a.example"}}}, `"name":"coder"`},
		{"POST", "/v1/agents/coder/revoke", "", 200, call{"RevokeAgent", []any{"coder"}}, `"state":"revoked"`},
		{"POST", "/v1/agents/coder/expire", `{"at":"2026-01-02T03:04:05Z"}`, 200, call{"ExpireAgent", []any{"coder", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}, `"name":"coder"`},
		{"POST", "/v1/agents/coder/expire", `{"never":true}`, 200, call{"ExpireAgent", []any{"coder", time.Time{}}}, `"name":"coder"`},
		{"POST", "/v1/agents/coder/restore", "", 200, call{"RestoreAgent", []any{"coder"}}, `"state":"active"`},
		{"GET", "/v1/volumes", "", 200, call{"Volumes", nil}, `[{"name":"work"`},
		{"POST", "/v1/volumes", `{"name":"work","agent":"a","size":"32M"}`, 201, call{"CreateVolume", []any{api.VolumeRequest{Name: "work", Agent: "a", Size: 32 << 20}}}, `"size":33554432`},
		{"GET", "/v1/volumes/work", "", 200, call{"Volume", []any{"work"}}, `"name":"work"`},
		{"POST", "/v1/sandboxes/a/egress", `{"allow":["a.example"]}`, 200, call{"AllowEgress", []any{"a", []string{"a.example"}}}, `"id":"a"`},
		{"GET", "/v1/secrets", "", 200, call{"Secrets", nil}, `[{"name":"key"`},
		{"PUT", "/v1/secrets/key", `{"value":"v","rule":"example.com"}`, 200, call{"SetSecret", []any{"key", api.SecretRequest{Value: "v", Rule: "example.com"}}}, `"rule":"example.com"`},
		{"DELETE", "/v1/secrets/key", "", 204, call{"RemoveSecret", []any{"key"}}, ""},
		{"DELETE", "/v1/volumes/work", "", 204, call{"RemoveVolume", []any{"work"}}, ""},
		{"GET", "/v1/profiles", "", 200, call{"Profiles", nil}, "[]"},
		{"GET", "/v1/profiles/strict", "", 200, call{"Profile", []any{"strict"}}, `"name":"strict"`},
		{"POST", "/v1/profiles/check", "version = 1", 204, call{"CheckProfile", []any{"version = 1"}}, ""},
		{"GET", "/v1/audit?kind=fact&agent=a&caller=5&since=10m", "", 200, call{"AuditLog", []any{"fact", "a", false, false}}, `{"kind":"fact"}`},
		{"GET", "/v1/audit?caller=-1", "", 400, call{}, "caller"},
		{"GET", "/v1/audit/head", "", 200, call{"AuditHead", nil}, "line"},
		{"GET", "/v1/key", "", 200, call{"PublicKey", nil}, "pem"},
		{"GET", "/v1/trust-bundle", "", 200, call{"TrustBundle", nil}, "trust_domain"},
		{"GET", "/v1/doctor?user=alice&dir=/w", "", 200, call{"Doctor", []any{"alice", "/w"}}, "checks"},
		{"GET", "/v1/version", "", 200, call{}, `"api":"v1"`},
		{"GET", "/v1/openapi.yaml", "", 200, call{}, "openapi: "},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.target, func(t *testing.T) {
			d.svc.mu.Lock()
			d.svc.calls = nil
			d.svc.mu.Unlock()
			status, header, body := d.do(t, tt.method, tt.target, tt.body)
			if status != tt.status || !strings.Contains(body, tt.answer) {
				t.Errorf("answer %d %q, want %d with %q", status, body, tt.status, tt.answer)
			}
			if diff := cmp.Diff(tt.want, d.svc.last()); diff != "" {
				t.Errorf("call (-want +got):\n%s", diff)
			}
			if len(header.Get("Creel-Request-Id")) != 16 {
				t.Errorf("request id %q", header.Get("Creel-Request-Id"))
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	d := start(t, server.Options{})
	tests := []struct {
		name, method, target, body string
		header                     []string
		status                     int
		message                    string // of api.Error.Error
	}{
		{
			name: "everything at once", method: "POST", target: "/v1/sandboxes", status: 400,
			body: `{"Name":"x","cmd":["a"],"tty":"yes","env":{"A":1},"limits":{"memory":"lots","pids":1.5},"mounts":[{"source":"/a","target":"/b","fd":"0"}],"tty":true,"labels":null,"timeout":"-1s","image":"a\u0000b"}`,
			message: `the request is not valid: tty: given once; it is here twice; Name: no such field; it is written "name"; ` +
				`cmd: no such field; there are agent, attach, command, egress, env, home, image, labels, limits, logs, mounts, name, network, parent, profile, remove, rootfs, runtime, secrets, socket, stdin, timeout, trace, tty, workdir; ` +
				`tty = "\"yes\"": true or false; env.A = "1": a string; limits.memory = "\"lots\"": "lots" is not a size; write bytes or a number with K, M, G or T; limits.pids = "1.5": a whole number; ` +
				`mounts[0].fd = "\"0\"": a whole number; labels = "null": a value; leave the field out instead; timeout = "\"-1s\"": "-1s" is not a duration; write a number with ms, s, m, h or d; image = "\"a\\u0000b\"": a string without NUL`,
		},
		{
			name: "what is required", method: "POST", target: "/v1/sandboxes", body: `{"mounts":[{"fd":0}]}`, status: 400,
			message: "the request is not valid: mounts[0].target: given; it is required",
		},
		{
			name: "not JSON", method: "POST", target: "/v1/sandboxes", body: "{\n \"name\": x}", status: 400,
			message: "the body is not JSON: line 2, column 10: invalid character 'x' looking for beginning of value",
		},
		{
			name: "trailing data", method: "POST", target: "/v1/sandboxes", body: `{} {}`, status: 400,
			message: "the body is not JSON: line 1, column 4: invalid character '{' after top-level value",
		},
		{name: "an array", method: "POST", target: "/v1/sandboxes", body: `[]`, status: 400, message: `the request is not valid: body = "[]": an object`},
		{
			name: "nothing", method: "POST", target: "/v1/sandboxes", header: []string{"Content-Type", "application/json"}, status: 400,
			message: "the body is not JSON: line 1, column 1: unexpected end of JSON input",
		},
		{
			name: "form", method: "POST", target: "/v1/sandboxes", body: `{}`, header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 400,
			message: `the body is not announced as JSON: Content-Type = "application/x-www-form-urlencoded": application/json`,
		},
		{name: "not UTF-8", method: "POST", target: "/v1/sandboxes", body: "{\"name\":\"\xff\"}", status: 400, message: "the body is not UTF-8"},
		{name: "large", method: "POST", target: "/v1/sandboxes", body: `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, status: 413, message: "the body is larger than 1M"},
		{
			name: "query", method: "GET", target: "/v1/sandboxes?al=1&state=gone&all=maybe&all=1&label=x&agent=a&agent=b", status: 400,
			message: `the query is not valid: al: no such parameter; there are after, agent, all, image, label, limit, state; all: given once; all = "maybe": true or false; label = "x": name=value; state = "gone": creating, running, paused, stopping, stopped, removing or unknown`,
		},
		{name: "no query here", method: "GET", target: "/v1/version?x=1", status: 400, message: "the query is not valid: x: no such parameter; this route has none"},
		{name: "relative path", method: "GET", target: "/v1/sandboxes/a/files?path=etc", status: 400, message: `the query is not valid: path = "etc": an absolute path in the sandbox`},
		{name: "no path", method: "GET", target: "/v1/sandboxes/a/files", status: 400, message: `the query is not valid: path: an absolute path in the sandbox`},
		{name: "set-user-ID", method: "PUT", target: "/v1/sandboxes/a/files?path=/x&mode=4755", status: 400, message: `the query is not valid: mode = "4755": permission bits in octal, such as 644; set-ID and sticky bits are not possible`},
		{name: "signal", method: "POST", target: "/v1/sandboxes/a/kill", body: `{"signal":"NOPE"}`, status: 400, message: `the request is not valid: signal = "NOPE": a name such as "TERM" or a number from 1 to 64`},
		{name: "grace", method: "POST", target: "/v1/sandboxes/a/stop", body: `{"grace":"2h"}`, status: 400, message: `the request is not valid: grace = "2h0m0s": at most 1h0m0s`},
		{name: "an expiry says when", method: "POST", target: "/v1/agents/a/expire", body: `{}`, status: 400, message: "the request is not valid: want at, a time, or never: one of the two"},
		{name: "and that once", method: "POST", target: "/v1/agents/a/expire", body: `{"never":true,"at":"2026-01-02T03:04:05Z"}`, status: 400, message: "the request is not valid: want at, a time, or never: one of the two"},
		{name: "pause takes nothing", method: "POST", target: "/v1/sandboxes/a/pause", body: `{"x":1}`, status: 400, message: `the request is not valid: x: no such field; this request has none`},
		{name: "route", method: "GET", target: "/v1/nope", status: 404, message: "no such route: /v1/nope; GET /v1/openapi.yaml lists them"},
		{name: "path to clean", method: "GET", target: "/v1/images/../version", status: 404, message: "no such route: /v1/images/../version; GET /v1/openapi.yaml lists them"},
		{name: "method", method: "PATCH", target: "/v1/sandboxes", status: 405, message: "PATCH is not possible on /v1/sandboxes; possible: GET, HEAD, POST"},
		{name: "browser", method: "GET", target: "/v1/version", header: []string{"Origin", "http://evil.example"}, status: 403, message: "the request has a browser's header Origin; this API is not for web pages"},
		{name: "browser fetch", method: "POST", target: "/v1/sandboxes", body: "{}", header: []string{"Sec-Fetch-Site", "same-origin"}, status: 403, message: "the request has a browser's header Sec-Fetch-Site; this API is not for web pages"},
		{name: "exec without upgrade", method: "POST", target: "/v1/sandboxes/a/exec", body: `{"command":["x"],"stdin":true}`, status: 426, message: "this route speaks frames after an upgrade: Connection: Upgrade; Upgrade: creel-stream"},
		{name: "event number", method: "GET", target: "/v1/events?after=x", status: 400, message: `the query is not valid: after = "x": the number of an event`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, header, body := d.do(t, tt.method, tt.target, tt.body, tt.header...)
			var e api.Error
			dec := json.NewDecoder(strings.NewReader(body))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&e); err != nil {
				t.Fatalf("body %q: %v", body, err)
			}
			if diff := cmp.Diff(tt.message, e.Error()); status != tt.status || diff != "" {
				t.Errorf("status %d, want %d; message (-want +got):\n%s", status, tt.status, diff)
			}
			if e.RequestID == "" || e.RequestID != header.Get("Creel-Request-Id") {
				t.Errorf("request id %q in the body, %q in the header", e.RequestID, header.Get("Creel-Request-Id"))
			}
			if c := d.svc.last(); c.Method != "" {
				t.Errorf("the service was asked: %v", c)
			}
		})
	}
}

func TestErrorClasses(t *testing.T) {
	d := start(t, server.Options{})
	tests := []struct {
		err    error
		status int
		code   api.Code
		text   string
	}{
		{fmt.Errorf("launch: %w", api.Errorf(api.CodeNotFound, "no sandbox %q", "x").WithHint("creel ps")), 404, api.CodeNotFound, `no sandbox "x"; creel ps`},
		{api.Errorf(api.CodeInvalid, "i"), 400, api.CodeInvalid, "i"},
		{api.Errorf(api.CodeDenied, "d"), 403, api.CodeDenied, "d"},
		{api.Errorf(api.CodeConflict, "c"), 409, api.CodeConflict, "c"},
		{api.Errorf(api.CodeTooLarge, "t"), 413, api.CodeTooLarge, "t"},
		{api.Errorf(api.CodeExhausted, "e"), 429, api.CodeExhausted, "e"},
		{api.Errorf(api.CodeNotProven, "n"), 422, api.CodeNotProven, "n"},
		{api.Errorf(api.CodeUnavailable, "u"), 503, api.CodeUnavailable, "u"},
		{api.Errorf(api.CodeUnsupportedHost, "h"), 501, api.CodeUnsupportedHost, "h"},
		{errors.New("open /secret/path: denied"), 500, api.CodeInternal, "creeld could not do it; the daemon's log has the reason under this request id"},
		{api.Errorf(api.CodeInternal, "a secret"), 500, api.CodeInternal, "creeld could not do it; the daemon's log has the reason under this request id"},
	}
	for _, tt := range tests {
		t.Run(string(tt.code), func(t *testing.T) {
			d.log.Reset()
			d.svc.set(func() {
				d.svc.err = tt.err
			})
			status, _, body := d.do(t, "GET", "/v1/sandboxes/x", "")
			var e api.Error
			if err := json.Unmarshal([]byte(body), &e); err != nil {
				t.Fatal(err)
			}
			if status != tt.status || e.Code != tt.code || e.Error() != tt.text {
				t.Errorf("answer %d %s %q, want %d %s %q", status, e.Code, e.Error(), tt.status, tt.code, tt.text)
			}
			logged := strings.Contains(d.log.String(), tt.err.Error()) && strings.Contains(d.log.String(), e.RequestID)
			if logged != (tt.code == api.CodeInternal) {
				t.Errorf("log: %q", d.log.String())
			}
		})
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.spawn = func([]*os.File) error { panic("boom") }
	})
	status, _, body := d.do(t, "POST", "/v1/sandboxes", "{}")
	if status != 500 || !strings.Contains(body, `"internal"`) || strings.Contains(body, "boom") {
		t.Errorf("answer %d %s", status, body)
	}
	if !strings.Contains(d.log.String(), "boom") || !strings.Contains(d.log.String(), "stack=") {
		t.Errorf("log %q", d.log.String())
	}
}

func TestSpawnGetsDirectories(t *testing.T) {
	d := start(t, server.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mark"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := make(chan []string, 1)
	d.svc.set(func() {
		d.svc.spawn = func(dirs []*os.File) error {
			var names []string
			for _, f := range dirs {
				es, err := f.ReadDir(-1)
				if err != nil {
					return err
				}
				names = append(names, es[0].Name())
			}
			seen <- names
			return nil
		}
	})
	f, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := d.dial(t)
	if err := c.Attach(f); err != nil {
		t.Fatal(err)
	}
	resp := roundTrip(t, c, "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	if resp.StatusCode != 201 || !resp.Close {
		t.Errorf("status %d, close %v, want 201 and a connection that ends", resp.StatusCode, resp.Close)
	}
	if diff := cmp.Diff([]string{"mark"}, <-seen); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}

	// What is no directory is refused before the service is asked.
	file, err := os.Open(filepath.Join(dir, "mark"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	d.svc.set(func() {
		d.svc.calls = nil
	})
	c = d.dial(t)
	if err := c.Attach(f, file); err != nil {
		t.Fatal(err)
	}
	resp = roundTrip(t, c, "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 400 || !strings.Contains(string(b), "descriptor 1: not a directory; open it with O_DIRECTORY") {
		t.Errorf("answer %d %s", resp.StatusCode, b)
	}
	if c := d.svc.last(); c.Method != "" {
		t.Errorf("the service was asked: %v", c)
	}
}

// roundTrip writes raw bytes and reads an HTTP answer.
func roundTrip(t *testing.T, c net.Conn, raw string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestHungUpClientCancels(t *testing.T) {
	d := start(t, server.Options{})
	began, ended := make(chan struct{}), make(chan error, 1)
	d.svc.set(func() {
		d.svc.wait = func(ctx context.Context) error {
			close(began)
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}
	})
	c := d.dial(t)
	if _, err := io.WriteString(c, "GET /v1/sandboxes/x/wait HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	c.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ctx.Err() = %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the context lives on")
	}
}

func TestListErrorInTheMiddle(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.files, d.svc.err = []string{"a"}, api.Errorf(api.CodeConflict, "the sandbox has ended")
	})
	status, _, body := d.do(t, "GET", "/v1/sandboxes/x/files/list?path=/", "")
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if status != 200 || len(lines) != 2 || !strings.HasPrefix(lines[1], `{"error":{"code":"conflict"`) {
		t.Errorf("answer %d %q", status, body)
	}
}

func TestReadFileBreaksVisibly(t *testing.T) {
	d := start(t, server.Options{})
	r, w := io.Pipe()
	d.svc.set(func() {
		d.svc.content = r
	})
	go func() {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 8192))
		w.CloseWithError(errors.New("the sandbox died"))
	}()
	resp, err := d.client.Get("http://creel/v1/sandboxes/x/files?path=/f")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("reading a broken-off file: %v, want unexpected EOF", err)
	}
}
