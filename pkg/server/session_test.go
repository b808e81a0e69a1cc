package server_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/stream"

	"github.com/google/go-cmp/cmp"
)

// upgrade starts an exec and returns the client's end of its frames.
func upgrade(t *testing.T, d *daemon, body string) (*stream.Conn, *fdconn.Conn) {
	t.Helper()
	c := d.dial(t)
	_, err := fmt.Fprintf(c, "POST /v1/sandboxes/box/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "creel-stream" {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("answer %d %s", resp.StatusCode, b)
	}
	return stream.NewConn(c, br), c
}

// next reads a frame, as "type payload".
func next(t *testing.T, c *stream.Conn) string {
	t.Helper()
	f, err := c.Next()
	if err != nil {
		t.Fatalf("next frame: %v", err)
	}
	return f.Type.String() + " " + string(f.Payload)
}

func TestFramedExec(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.session = newSession()
	})
	c, _ := upgrade(t, d, `{"command":["cat"],"stdin":true}`)
	if got := next(t, c); got != `started {"id":"abcdefghijkl"}` {
		t.Fatalf("first frame %s", got)
	}
	d.svc.set(func() {
		if d.svc.exec.IO != "framed" {
			t.Errorf("io %q given to the service, want framed", d.svc.exec.IO)
		}
	})
	// Input arrives in order, and its end too.
	for _, f := range []stream.Frame{
		{Type: stream.Resize, Payload: stream.EncodeResize(100, 40)},
		{Type: stream.Stdin, Payload: []byte("one ")},
		{Type: stream.Stdin, Payload: []byte("two")},
		{Type: stream.Stdin},
		{Type: stream.Signal, Payload: []byte{15}},
	} {
		if err := c.Write(f.Type, f.Payload); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := io.ReadAll(d.svc.session.in); string(b) != "one two" || err != nil {
		t.Errorf("input %q, %v", b, err)
	}
	if diff := cmp.Diff([]string{"resize 100x40", "signal 15"}, []string{<-d.svc.session.notes, <-d.svc.session.notes}); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	fmt.Fprint(d.svc.session.out, "to stdout")
	if got := next(t, c); got != "stdout to stdout" {
		t.Errorf("frame %s", got)
	}
	fmt.Fprint(d.svc.session.err, "to stderr")
	if got := next(t, c); got != "stderr to stderr" {
		t.Errorf("frame %s", got)
	}
	// The exit comes after the last output, and is the last.
	d.svc.session.exit <- api.ExecResult{ID: "abcdefghijkl", ExitCode: 7, Reason: api.ReasonExited}
	go func() {
		fmt.Fprint(d.svc.session.out, "late")
		d.svc.session.out.Close()
		d.svc.session.err.Close()
	}()
	if got := next(t, c); got != "stdout late" {
		t.Errorf("frame %s", got)
	}
	if got := next(t, c); got != `exit {"id":"abcdefghijkl","exit_code":7,"reason":"exited","took":"0s"}` {
		t.Errorf("frame %s", got)
	}
	if f, err := c.Next(); !stream.Gone(err) {
		t.Errorf("after the exit: %v, %v", f, err)
	}
	<-d.svc.session.closed
}

// TestExitDoesNotWaitForBackground: something else holds the output open.
func TestExitDoesNotWaitForBackground(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.session = newSession()
	})
	c, _ := upgrade(t, d, `{"command":["daemon"]}`)
	next(t, c)
	d.svc.session.exit <- api.ExecResult{Reason: api.ReasonExited}
	begin := time.Now()
	if got := next(t, c); !strings.HasPrefix(got, "exit ") {
		t.Errorf("frame %s", got)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("the exit took %v", took)
	}
}

// TestExitLingers: a client that is still sending input when its command ends
// can go on until it has read the exit, but not for ever.
func TestExitLingers(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.session = newSession()
	})
	c, conn := upgrade(t, d, `{"command":["true"],"stdin":true}`)
	next(t, c)
	d.svc.session.out.Close()
	d.svc.session.err.Close()
	d.svc.session.exit <- api.ExecResult{Reason: api.ReasonExited}
	<-d.svc.session.closed // the exit is sent
	for range 64 {
		if err := c.Write(stream.Stdin, make([]byte, stream.MaxPayload)); err != nil {
			t.Fatalf("input after the end: %v", err)
		}
	}
	if got := next(t, c); !strings.HasPrefix(got, "exit ") {
		t.Errorf("frame %s", got)
	}
	if _, err := c.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the exit: %v", err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	for {
		if err := c.Write(stream.Stdin, make([]byte, stream.MaxPayload)); err != nil {
			if !stream.Gone(err) {
				t.Errorf("a client that stays: %v", err)
			}
			return
		}
	}
}

// TestInputBeforeHangUp: what a client sent reaches the command also if it hangs
// up at once, as one does that types and leaves; a command that does not take
// it holds up nothing.
func TestInputBeforeHangUp(t *testing.T) {
	d := start(t, server.Options{})
	send := func(typed string) *fakeSession {
		t.Helper()
		sess := newSession()
		d.svc.set(func() { d.svc.session = sess })
		c, conn := upgrade(t, d, `{"command":["cat"],"stdin":true}`)
		next(t, c)
		if err := errors.Join(c.Write(stream.Stdin, []byte(typed)), conn.Close()); err != nil {
			t.Fatal(err)
		}
		return sess
	}
	for range 50 {
		sess := send("typed")
		got := make([]byte, 5)
		if _, err := io.ReadFull(sess.in, got); string(got) != "typed" || err != nil {
			t.Fatalf("the command gets %q, %v", got, err)
		}
		<-sess.closed
	}
	sess := send("not taken")
	select {
	case <-sess.closed:
	case <-time.After(10 * time.Second):
		t.Error("the session goes on without its client")
	}
}

// TestSlowReaderGetsAll: the command has ended long before the client reads.
func TestSlowReaderGetsAll(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.session = newSession()
	})
	c, _ := upgrade(t, d, `{"command":["flood"]}`)
	next(t, c)
	const size = 4 << 20
	go func() {
		_, _ = io.Copy(d.svc.session.out, io.LimitReader(zeros{}, size))
		d.svc.session.out.Close()
		d.svc.session.err.Close()
	}()
	d.svc.session.exit <- api.ExecResult{Reason: api.ReasonExited}
	time.Sleep(300 * time.Millisecond) // longer than a silent pipe is waited for
	got := 0
	for {
		f, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == stream.Exit {
			break
		}
		got += len(f.Payload)
	}
	if got != size {
		t.Errorf("%d bytes arrived before the exit, want %d", got, size)
	}
}

func TestFDsExec(t *testing.T) {
	d := start(t, server.Options{})
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inR.Close()
	defer outW.Close()
	s := &fakeSession{id: "e", files: []*os.File{inW, outR}, exit: make(chan api.ExecResult, 1), closed: make(chan struct{}), notes: make(chan string, 1)}
	d.svc.set(func() {
		d.svc.session = s
	})
	c, _ := upgrade(t, d, `{"command":["x"],"stdin":true,"io":"fds"}`)
	f, err := c.Next()
	if err != nil || f.Type != stream.FDs {
		t.Fatalf("first frame %v, %v", f, err)
	}
	files, err := c.RecvFDs(f)
	if err != nil || len(files) != 2 {
		t.Fatalf("RecvFDs = %v, %v", files, err)
	}
	if got := next(t, c); got != `started {"id":"e"}` {
		t.Errorf("second frame %s", got)
	}
	fmt.Fprint(files[0], "in")
	files[0].Close()
	// End of file comes only if the server has closed its own copies.
	if b, err := io.ReadAll(inR); string(b) != "in" || err != nil {
		t.Errorf("input %q, %v", b, err)
	}
	fmt.Fprint(outW, "out")
	got := make([]byte, 3)
	if _, err := io.ReadFull(files[1], got); err != nil || string(got) != "out" {
		t.Errorf("output %q, %v", got, err)
	}
	files[1].Close()
	if err := c.Write(stream.Signal, []byte{2}); err != nil {
		t.Fatal(err)
	}
	if got := <-s.notes; got != "signal 2" {
		t.Errorf("%s", got)
	}
	s.exit <- api.ExecResult{ID: "e", Reason: api.ReasonExited}
	if got := next(t, c); !strings.HasPrefix(got, "exit ") {
		t.Errorf("frame %s", got)
	}
	<-s.closed
}

// TestLostClient: whatever the session is busy with, a client that goes away
// ends it at once.
func TestLostClient(t *testing.T) {
	tests := []struct {
		name string
		busy func(t *testing.T, s *fakeSession, c *stream.Conn, fc *fdconn.Conn)
	}{
		{"idle", func(*testing.T, *fakeSession, *stream.Conn, *fdconn.Conn) {}},
		{"writing to a client that does not read", func(t *testing.T, s *fakeSession, _ *stream.Conn, _ *fdconn.Conn) {
			full := make(chan struct{})
			go func() {
				for range 100 {
					if _, err := s.out.Write(make([]byte, 32<<10)); err != nil {
						return
					}
				}
				close(full)
			}()
			select {
			case <-full:
				t.Error("the socket took 3 MiB")
			case <-time.After(100 * time.Millisecond):
			}
		}},
		{"command that does not read its input", func(t *testing.T, _ *fakeSession, c *stream.Conn, fc *fdconn.Conn) {
			_ = fc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			var err error
			for range 200 {
				if err = c.Write(stream.Stdin, make([]byte, 32<<10)); err != nil {
					break
				}
			}
			if err == nil {
				t.Error("the socket took 6 MiB")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := start(t, server.Options{})
			d.svc.set(func() {
				d.svc.session = newSession()
			})
			c, fc := upgrade(t, d, `{"command":["x"],"stdin":true}`)
			next(t, c)
			tt.busy(t, d.svc.session, c, fc)
			begin := time.Now()
			fc.Close()
			select {
			case <-d.svc.session.closed:
				if took := time.Since(begin); took > 50*time.Millisecond {
					t.Errorf("Close was called %v after the client went", took)
				}
			case <-time.After(5 * time.Second):
				t.Error("Close was not called")
			}
		})
	}
}

func TestProtocolErrorsEndTheSession(t *testing.T) {
	tests := []struct {
		name, send, body string
		noStdin          bool
		want             string
	}{
		{name: "a server's frame", send: "\x01\x00\x00\x00\x00\x00\x00\x00", want: "stream protocol error: a client does not send stdout frames"},
		{name: "garbage", send: "GET / HTTP/1.1\r\n\r\n", want: "stream protocol error: bytes 1 to 3 of the header 474554202f204854 are not zero"},
		{name: "signal 0", send: "\x04\x00\x00\x00\x00\x00\x00\x01\x00", want: "stream protocol error: 00 is not a signal between 1 and 64"},
		{name: "input without stdin", noStdin: true, send: "\x00\x00\x00\x00\x00\x00\x00\x01x", want: "stream protocol error: input for a command whose input is not open here"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := start(t, server.Options{})
			d.svc.set(func() {
				d.svc.session = newSession()
			})
			if tt.noStdin {
				d.svc.set(func() {
					d.svc.session = &fakeSession{exit: make(chan api.ExecResult), closed: make(chan struct{})}
				})
			}
			c, fc := upgrade(t, d, `{"command":["x"]}`)
			next(t, c)
			if _, err := io.WriteString(fc, tt.send); err != nil {
				t.Fatal(err)
			}
			f, err := c.Next()
			if err != nil || f.Type != stream.Error {
				t.Fatalf("frame %v, %v", f, err)
			}
			var e api.Error
			if err := json.Unmarshal(f.Payload, &e); err != nil || e.Code != api.CodeInvalid || e.Message != tt.want {
				t.Errorf("error %+v, %v, want %s", e, err, tt.want)
			}
			<-d.svc.session.closed
		})
	}
}

// TestEmptyInputFrameNeedsNoStdin: a client that says "no input" at once.
func TestEmptyInputFrameNeedsNoStdin(t *testing.T) {
	d := start(t, server.Options{})
	s := &fakeSession{exit: make(chan api.ExecResult), closed: make(chan struct{})}
	d.svc.set(func() {
		d.svc.session = s
	})
	c, _ := upgrade(t, d, `{"command":["x"]}`)
	next(t, c)
	if err := c.Write(stream.Stdin, nil); err != nil {
		t.Fatal(err)
	}
	s.exit <- api.ExecResult{Reason: api.ReasonExited}
	if got := next(t, c); !strings.HasPrefix(got, "exit ") {
		t.Errorf("frame %s", got)
	}
}

func TestShutdownTellsSessions(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.session = newSession()
	})
	c, _ := upgrade(t, d, `{"command":["x"]}`)
	next(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := d.srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	f, err := c.Next()
	if err != nil || f.Type != stream.Error || !bytes.Contains(f.Payload, []byte(`"unavailable"`)) {
		t.Errorf("frame %v %s, %v", f.Type, f.Payload, err)
	}
	<-d.svc.session.closed
}

func TestExecErrorIsPlainHTTP(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.err = api.Errorf(api.CodeConflict, "it is paused")
	})
	status, _, body := d.do(t, "POST", "/v1/sandboxes/x/exec", `{"command":["a"]}`, "Connection", "Upgrade", "Upgrade", "creel-stream")
	if status != 409 || !strings.Contains(body, "it is paused") {
		t.Errorf("answer %d %s", status, body)
	}
}

// TestForward: bytes go both ways, each end is passed on, and what does not connect
// is an answer.
func TestForward(t *testing.T) {
	d := start(t, server.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	forward := func(fn func() (*net.TCPConn, error)) {
		d.svc.mu.Lock()
		defer d.svc.mu.Unlock()
		d.svc.forward = fn
	}
	forward(func() (*net.TCPConn, error) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, err := io.ReadAll(c)
				if err == nil {
					_, _ = c.Write(bytes.ToUpper(b))
				}
			}()
		}
	}()
	c := d.dial(t)
	defer c.Close()
	text := strings.Repeat("hello ", 100_000)
	const head = "POST /v1/sandboxes/a/forward?port=80 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\nContent-Length: 0\r\n\r\n"
	go func() {
		_, _ = io.WriteString(c, head+text) // with its first bytes
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	answer, body, _ := strings.Cut(string(got), "\r\n\r\n")
	if !strings.HasPrefix(answer, "HTTP/1.1 101 ") || body != strings.ToUpper(text) {
		t.Errorf("%q, and %d bytes", answer, len(body))
	}
	forward(func() (*net.TCPConn, error) { return nil, api.Errorf(api.CodeUnavailable, "nobody listens") })
	for target, want := range map[string]string{
		"/v1/sandboxes/a/forward?port=80": "HTTP/1.1 503 ", "/v1/sandboxes/a/forward?port=0": "HTTP/1.1 400 ", "/v1/sandboxes/a/forward": "HTTP/1.1 400 ", "/v1/sandboxes/a/forward?port=65536": "HTTP/1.1 400 ",
	} {
		c := d.dial(t)
		_, _ = io.WriteString(c, strings.Replace(head, "/v1/sandboxes/a/forward?port=80", target, 1))
		b := make([]byte, len(want))
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", target, b, err)
		}
		c.Close()
	}
}

func TestAttachOptions(t *testing.T) {
	d := start(t, server.Options{})
	d.svc.set(func() {
		d.svc.session = newSession()
	})
	c := d.dial(t)
	resp := roundTrip(t, c, "POST /v1/sandboxes/box/attach?replay=true&stdin=1&cols=80&rows=24 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\nContent-Length: 0\r\n\r\n")
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d", resp.StatusCode)
	}
	want := call{"Attach", []any{"box", server.AttachOptions{Replay: true, Stdin: true, Cols: 80, Rows: 24}}}
	if diff := cmp.Diff(want, d.svc.last()); diff != "" {
		t.Errorf("call (-want +got):\n%s", diff)
	}
}
