package server_test

import (
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"

	"github.com/google/go-cmp/cmp"
)

func TestEnsure(t *testing.T) {
	d := start(t, server.Options{})
	for _, tt := range []struct {
		target, body string
		status       int
		want         string // part of the answer
	}{
		{"/v1/sandboxes/box", `{"agent":"new"}`, 201, `"name":"box"`},
		{"/v1/sandboxes/box", `{"name":"box"}`, 200, `"name":"box"`},
		{"/v1/sandboxes/box", `{"name":"other"}`, 400, "the name in the path"},
		{"/v1/sandboxes/box", ``, 400, "not announced as JSON"},
		{"/v1/sandboxes/box?x=1", `{}`, 400, "no such parameter"},
		{"/v1/sandboxes/box", `{"x":1}`, 400, "no such field"},
	} {
		status, _, body := d.do(t, "PUT", tt.target, tt.body)
		if status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("PUT %s %s: %d %s", tt.target, tt.body, status, body)
		}
	}
	want := call{"Ensure", []any{"box", api.SpawnRequest{Name: "box"}, 0}}
	if diff := cmp.Diff(want, d.svc.last()); diff != "" {
		t.Errorf("call (-want +got):\n%s", diff)
	}
}

func TestIdempotencyKey(t *testing.T) {
	d := start(t, server.Options{})
	for _, key := range []string{"once", "again", strings.Repeat("~", 255)} {
		status, header, body := d.do(t, "POST", "/v1/sandboxes", `{"agent":"a"}`, "Idempotency-Key", key)
		if status != 201 || (header.Get("Creel-Replayed") == "true") != (key == "again") {
			t.Errorf("%q: %d %v %s", key, status, header, body)
		}
		want := call{"SpawnOnce", []any{key, api.SpawnRequest{Agent: "a"}, 0}}
		if diff := cmp.Diff(want, d.svc.last()); diff != "" {
			t.Errorf("call (-want +got):\n%s", diff)
		}
	}
	d.svc.set(func() { d.svc.calls = nil })
	for _, key := range []string{"", "a b", "\u00e9", strings.Repeat("a", 256), "a\r\nIdempotency-Key: b"} {
		c := d.dial(t)
		resp := roundTrip(t, c, "POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nIdempotency-Key: "+key+"\r\n\r\n{}")
		if resp.StatusCode != 400 {
			t.Errorf("%q: %d", key, resp.StatusCode)
		}
	}
	if c := d.svc.last(); c.Method != "" {
		t.Errorf("the service was asked: %v", c)
	}
}

// TestOnceRoutes: what would do something twice is done once under a key, and
// every other route refuses one.
func TestOnceRoutes(t *testing.T) {
	d := start(t, server.Options{})
	for _, tt := range []struct{ method, target, body, called string }{
		{"POST", "/v1/sandboxes/box/kill", `{"signal":"HUP"}`, "Kill"},
		{"POST", "/v1/sandboxes/box/files/mkdir?path=/a", "", "Mkdir"},
		{"POST", "/v1/sandboxes/box/files/rename?from=/a&to=/b", "", "RenameFile"},
		{"POST", "/v1/volumes", `{"name":"v","agent":"a"}`, "CreateVolume"},
		{"POST", "/v1/sandboxes/box/exec", `{"command":["x"]}`, "Exec"},
	} {
		oneShot(d, "out", "")
		d.svc.set(func() { d.svc.calls = nil })
		first, _, body := d.do(t, tt.method, tt.target, tt.body, "Idempotency-Key", "k")
		again, header, body2 := d.do(t, tt.method, tt.target, tt.body, "Idempotency-Key", "k")
		if first/100 != 2 || again != first || body2 != body || header.Get("Creel-Replayed") != "true" {
			t.Errorf("%s: %d %q, then %d %q, %v", tt.target, first, body, again, body2, header)
		}
		d.svc.set(func() {
			if len(d.svc.calls) != 1 || d.svc.calls[0].Method != tt.called {
				t.Errorf("%s: the service was asked %v", tt.target, d.svc.calls)
			}
		})
		if status, _, text := d.do(t, tt.method, tt.target, tt.body+" ", "Idempotency-Key", "k", "Content-Type", "application/json"); status != 409 || !strings.Contains(text, "another request") {
			t.Errorf("%s: another body: %d %s", tt.target, status, text)
		}
	}
	// What was refused did nothing, and can be tried again.
	d.svc.set(func() { d.svc.err = api.Errorf(api.CodeExhausted, "full") })
	if status, _, _ := d.do(t, "POST", "/v1/volumes", `{"name":"w","agent":"a"}`, "Idempotency-Key", "w"); status != 429 {
		t.Errorf("a full box: %d", status)
	}
	d.svc.set(func() { d.svc.err = nil })
	if status, header, _ := d.do(t, "POST", "/v1/volumes", `{"name":"w","agent":"a"}`, "Idempotency-Key", "w"); status != 201 || header.Get("Creel-Replayed") != "" {
		t.Errorf("when there is room: %d %v", status, header)
	}
	// Of what is unavailable nobody knows, unless the service does: an intent
	// that could not be recorded.
	for _, tt := range []struct {
		key   string
		err   error
		later int
	}{
		{"x", api.Errorf(api.CodeUnavailable, "it hangs"), 409},
		{"y", server.Undone(api.Errorf(api.CodeUnavailable, "not recorded")), 201},
	} {
		d.svc.set(func() { d.svc.err = tt.err })
		if status, _, text := d.do(t, "POST", "/v1/volumes", `{"name":"w","agent":"a"}`, "Idempotency-Key", tt.key); status != 503 || !strings.Contains(text, `"code":"unavailable"`) {
			t.Errorf("%v: %d %s", tt.err, status, text)
		}
		d.svc.set(func() { d.svc.err = nil })
		if status, _, text := d.do(t, "POST", "/v1/volumes", `{"name":"w","agent":"a"}`, "Idempotency-Key", tt.key); status != tt.later {
			t.Errorf("%v, and again: %d %s", tt.err, status, text)
		}
	}
	d.svc.set(func() { d.svc.calls = nil })
	for _, rt := range server.Routes() {
		if rt.Once {
			continue
		}
		target := strings.NewReplacer("{ref}", "box", "{ref...}", "box", "{name}", "box").Replace(rt.Pattern)
		status, _, text := d.do(t, rt.Method, target, "", "Idempotency-Key", "k")
		if status != 400 || !strings.Contains(text, "Idempotency-Key") {
			t.Errorf("%s %s: %d %s", rt.Method, target, status, text)
		}
	}
	status, _, text := d.do(t, "POST", "/v1/sandboxes/box/exec", `{"command":["x"]}`, "Idempotency-Key", "s", "Connection", "Upgrade", "Upgrade", "creel-stream")
	if status != 400 || !strings.Contains(text, "Idempotency-Key") {
		t.Errorf("a stream: %d %s", status, text)
	}
	if c := d.svc.last(); c.Method != "" {
		t.Errorf("the service was asked: %v", c)
	}
}
