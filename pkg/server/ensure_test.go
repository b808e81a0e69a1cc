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
