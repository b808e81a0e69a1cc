package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/stream"

	"github.com/google/go-cmp/cmp"
)

func TestBigBodies(t *testing.T) {
	d := start(t, server.Options{})
	const size = 32 << 20
	req, err := http.NewRequestWithContext(t.Context(), "POST", "http://creel/v1/images?ref=big", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var img api.Image
	if err := json.NewDecoder(resp.Body).Decode(&img); err != nil || img.Size != size {
		t.Errorf("imported %d bytes, %v, want %d", img.Size, err, size)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestConnectionCap(t *testing.T) {
	d := start(t, server.Options{MaxConns: 3})
	var held []*fdconn.Conn
	for range 3 {
		c := d.dial(t)
		if resp := roundTrip(t, c, "GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"); resp.StatusCode != 200 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		held = append(held, c)
	}
	over := d.dial(t)
	resp, err := http.ReadResponse(bufio.NewReader(over), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e api.Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || resp.StatusCode != 429 || e.Code != api.CodeExhausted {
		t.Errorf("answer %d %+v, %v", resp.StatusCode, e, err)
	}
	held[0].Close()
	within(t, 5*time.Second, "a closed connection makes room", func() bool {
		c := d.dial(t)
		defer c.Close()
		_, _ = io.WriteString(c, "GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
}

func TestStreamCapLeavesRoom(t *testing.T) {
	d := start(t, server.Options{MaxStreams: 1})
	began := make(chan struct{})
	d.svc.set(func() {
		d.svc.wait = func(ctx context.Context) error { close(began); <-ctx.Done(); return ctx.Err() }
	})
	c := d.dial(t)
	if _, err := io.WriteString(c, "GET /v1/sandboxes/x/wait HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	if status, _, body := d.do(t, "GET", "/v1/sandboxes/y/wait", ""); status != 429 {
		t.Errorf("second stream: %d %s", status, body)
	}
	if status, _, body := d.do(t, "POST", "/v1/sandboxes/x/kill", ""); status != 204 {
		t.Errorf("kill while streams are used up: %d %s", status, body)
	}
}

func TestSlowHeader(t *testing.T) {
	d := start(t, server.Options{HeaderTime: 50 * time.Millisecond})
	c := d.dial(t)
	if _, err := io.WriteString(c, "GET /v1/version HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Fatal(err)
	}
}

func TestStalledReaderIsCut(t *testing.T) {
	d := start(t, server.Options{StallTime: 50 * time.Millisecond})
	closed := make(chan struct{})
	d.svc.set(func() {
		d.svc.content = closeNotify{zeros{}, closed}
	})
	c := d.dial(t)
	if _, err := io.WriteString(c, "GET /v1/sandboxes/x/files?path=/f HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select { // the client never reads
	case <-closed:
	case <-time.After(5 * time.Second):
		t.Error("the file is still open")
	}
}

type closeNotify struct {
	io.Reader
	c chan struct{}
}

func (c closeNotify) Close() error { close(c.c); return nil }

func TestEvents(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.events = []api.Event{{Seq: 1, Type: "a"}, {Seq: 2, Type: "b"}, {Seq: 3, Type: "c", Name: "x\ny"}}
	})
	read := func(target, last string, lines int) string {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://creel"+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			req.Header.Set("Last-Event-ID", last)
		}
		resp, err := d.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
			t.Errorf("Content-Type %q", ct)
		}
		var got strings.Builder
		sc := bufio.NewScanner(resp.Body)
		for range lines {
			if !sc.Scan() {
				t.Fatal("the stream ended")
			}
			if !strings.HasPrefix(sc.Text(), "data:") || strings.Contains(sc.Text(), "x\\ny") {
				got.WriteString(sc.Text() + "\n")
			}
		}
		return got.String()
	}
	third := "id: 3\nevent: c\n" + `data: {"seq":3,"time":"0001-01-01T00:00:00Z","type":"c","name":"x\ny"}` + "\n\n"
	if got, want := read("/v1/events", "", 12), "id: 1\nevent: a\n\nid: 2\nevent: b\n\n"+third; got != want {
		t.Errorf("all: %q, want %q", got, want)
	}
	if got, want := read("/v1/events?after=1", "", 8), "id: 2\nevent: b\n\n"+third; got != want {
		t.Errorf("after 1: %q, want %q", got, want)
	}
	if got := read("/v1/events?after=1", "2", 4); got != third {
		t.Errorf("Last-Event-ID wins: %q, want %q", got, third)
	}
}

func TestLogsBreakOffWithAnErrorFrame(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.wait = func(context.Context) error { return api.Errorf(api.CodeConflict, "gone") }
	})
	_, header, body := d.do(t, "GET", "/v1/sandboxes/x/logs?follow=true", "")
	if ct := header.Get("Content-Type"); ct != stream.ContentType {
		t.Errorf("Content-Type %q", ct)
	}
	r := stream.NewReader(strings.NewReader(body))
	var types []stream.Type
	for f, err := r.Next(); err == nil; f, err = r.Next() {
		types = append(types, f.Type)
	}
	if diff := cmp.Diff([]stream.Type{stream.Stdout, stream.Stderr, stream.Error}, types); diff != "" {
		t.Errorf("frames (-want +got):\n%s", diff)
	}
}

// within polls cond, which depends on another goroutine.
func within(t *testing.T, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Errorf("%s: not within %v", what, d)
}
