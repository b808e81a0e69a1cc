package server_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/server"

	"github.com/google/go-cmp/cmp"
)

// oneShot has the next exec be a command that writes out and errOut, and ends.
func oneShot(d *daemon, out, errOut string) *fakeSession {
	s := newSession()
	d.svc.set(func() { d.svc.session = s })
	go func() {
		_, _ = io.WriteString(s.out, out)
		s.out.Close()
		_, _ = io.WriteString(s.err, errOut)
		s.err.Close()
		s.exit <- api.ExecResult{ID: s.id, ExitCode: 3, Reason: api.ReasonExited}
	}()
	return s
}

func TestExecOnce(t *testing.T) {
	const most = `"max_output":8`
	tests := []struct {
		name, body, out, errOut string
		want                    api.ExecOutput
	}{
		{name: "text", out: "hi\n", errOut: "<é>\u2028\x00", want: api.ExecOutput{Stdout: "hi\n", Stderr: "<é>\u2028\x00"}},
		{name: "nothing"},
		{name: "not text", out: "a\xffb\xfe", want: api.ExecOutput{Stdout: "a\ufffdb\ufffd", StdoutBase64: base64.StdEncoding.EncodeToString([]byte("a\xffb\xfe"))}},
		{name: "half a character", out: "a\xe2\x82", want: api.ExecOutput{Stdout: "a\ufffd\ufffd", StdoutBase64: "YeKC"}},
		{name: "as much as is kept", body: most, out: "12345678", want: api.ExecOutput{Stdout: "12345678"}},
		{name: "more", body: most, out: "123456789", errOut: "err", want: api.ExecOutput{Stdout: "12345678", Stderr: "err", Truncated: true}},
		{name: "much more", body: most, errOut: strings.Repeat("x", 3<<20), want: api.ExecOutput{Stderr: "xxxxxxxx", Truncated: true}},
		{name: "cut in a character", body: most, out: "1234567é", want: api.ExecOutput{Stdout: "1234567", Truncated: true}},
		{name: "cut in what is no character", body: most, out: "1234567\xff\xff", want: api.ExecOutput{Stdout: "1234567\ufffd", StdoutBase64: "MTIzNDU2N/8=", Truncated: true}},
		{name: "characters at the borders of pieces", out: strings.Repeat("€", 40_000), want: api.ExecOutput{Stdout: strings.Repeat("€", 40_000)}},
		{name: "continuation bytes alone", out: strings.Repeat("\x80", 40_000), want: api.ExecOutput{
			Stdout: strings.Repeat("\ufffd", 40_000), StdoutBase64: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0x80}, 40_000)),
		}},
	}
	d := start(t, server.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := oneShot(d, tt.out, tt.errOut)
			body := `{"command":["x"]}`
			if tt.body != "" {
				body = `{"command":["x"],` + tt.body + `}`
			}
			status, header, answer := d.do(t, "POST", "/v1/sandboxes/box/exec", body)
			var got api.ExecOutput
			dec := json.NewDecoder(strings.NewReader(answer))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&got); err != nil || status != http.StatusOK || header.Get("Content-Type") != "application/json" {
				t.Fatalf("answer %d %v %.200s: %v", status, header, answer, err)
			}
			tt.want.ExecResult = api.ExecResult{ID: s.id, ExitCode: 3, Reason: api.ReasonExited}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			<-s.closed
			d.svc.set(func() {
				if d.svc.exec.IO != "framed" || d.svc.exec.MaxOutput != 0 || d.svc.exec.Stdin {
					t.Errorf("the service was asked for %+v", d.svc.exec)
				}
			})
		})
	}
}

func TestExecOnceInput(t *testing.T) {
	d := start(t, server.Options{})
	for body, want := range map[string]string{
		`"input":"héllo\n"`:                  "héllo\n",
		`"input_base64":"AP8K"`:              "\x00\xff\n",
		`"timeout":"1s","input":"","env":{}`: "",
	} {
		s := newSession()
		d.svc.set(func() { d.svc.session = s })
		read := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(s.in)
			read <- string(b)
			s.out.Close()
			s.err.Close()
			s.exit <- api.ExecResult{Reason: api.ReasonTimeout}
		}()
		status, _, answer := d.do(t, "POST", "/v1/sandboxes/box/exec", `{"command":["x"],`+body+`}`)
		if got := <-read; got != want || status != http.StatusOK || !strings.Contains(answer, `"timed_out":true`) {
			t.Errorf("%s: input %q, answer %d %s", body, got, status, answer)
		}
		d.svc.set(func() {
			if d.svc.exec.Stdin != (want != "") || d.svc.exec.Input+d.svc.exec.InputBase64 != "" {
				t.Errorf("the service was asked for %+v", d.svc.exec)
			}
		})
	}
}

func TestExecOnceRefused(t *testing.T) {
	d := start(t, server.Options{})
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "creel-stream"}
	for _, tt := range []struct {
		body   string
		header []string
		status int
		want   string
	}{
		{body: `"tty":true`, status: 426},
		{body: `"io":"framed"`, status: 426},
		{body: `"cols":80`, status: 426},
		{body: `"env":{}`, header: []string{"Connection", "Upgrade", "Upgrade", "websocket"}, status: 426},
		{body: `"input":"a","input_base64":"YQ=="`, status: 400, want: "input_base64: left out; input is given"},
		{body: `"input_base64":"YQ"`, status: 400, want: "standard base64"},
		{body: `"input_base64":"YR=="`, status: 400, want: "standard base64"},
		{body: `"input":"\u0000"`, status: 400, want: "without NUL"},
		{body: `"max_output":"5M"`, status: 400, want: `max_output = \"5M\": at most 4M`},
		{body: `"max_output":-1`, status: 400, want: "not a size"},
		{body: `"max_output":1152921504606846976`, status: 400, want: "at most 4M"},
		{body: `"input":"a"`, header: upgrade, status: 400, want: "only an exec without an upgrade"},
		{body: `"max_output":1`, header: upgrade, status: 400, want: "only an exec without an upgrade"},
	} {
		status, _, answer := d.do(t, "POST", "/v1/sandboxes/box/exec", `{"command":["x"],`+tt.body+`}`, tt.header...)
		var e api.Error
		if err := json.Unmarshal([]byte(answer), &e); err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(tt.want, `\"`, `"`); status != tt.status || !strings.Contains(e.Error(), want) {
			t.Errorf("%s: %d %s, want %d %s", tt.body, status, answer, tt.status, want)
		}
	}
	if c := d.svc.last(); c.Method != "" {
		t.Errorf("the service was asked: %v", c)
	}
}

// TestExecOnceClientGone: whatever the client does to its connection, the
// session is closed, and with it the command.
func TestExecOnceClientGone(t *testing.T) {
	for name, leave := range map[string]func(c *fdconn.Conn){
		"close":      func(c *fdconn.Conn) { c.Close() },
		"half close": func(c *fdconn.Conn) { _ = c.CloseWrite() },
		"more bytes, then close": func(c *fdconn.Conn) {
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n")
			c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, server.Options{})
			s := newSession()
			d.svc.set(func() { d.svc.session = s })
			c := d.dial(t)
			const body = `{"command":["x"],"input":"never read"}`
			fmt.Fprintf(c, "POST /v1/sandboxes/box/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			fmt.Fprint(s.out, "it runs") // returns when it was read
			leave(c)
			select {
			case <-s.closed:
			case <-time.After(10 * time.Second):
				t.Fatal("the session is still open")
			}
		})
	}
}

// TestExecOnceBackground: what the command left behind holds the output open,
// silent or not.
func TestExecOnceBackground(t *testing.T) {
	d := start(t, server.Options{})
	for _, flood := range []bool{false, true} {
		s := newSession()
		d.svc.set(func() { d.svc.session = s })
		go func() {
			fmt.Fprint(s.out, "done\n")
			s.exit <- api.ExecResult{Reason: api.ReasonExited}
			for flood {
				if _, err := s.out.Write(bytes.Repeat([]byte("y\n"), 4096)); err != nil {
					return
				}
			}
		}()
		status, _, answer := d.do(t, "POST", "/v1/sandboxes/box/exec", `{"command":["x"],"max_output":5}`)
		if status != http.StatusOK || !strings.Contains(answer, `"stdout":"done\n"`) {
			t.Errorf("flood %t: answer %d %s", flood, status, answer)
		}
	}
}

// TestExecOnceBudget: what all of a caller's may keep is counted before it is
// there, and given back.
func TestExecOnceBudget(t *testing.T) {
	d := start(t, server.Options{MaxOutput: 1 << 20})
	const body = `{"command":["x"],"max_output":"512K"}`
	s := newSession()
	d.svc.set(func() { d.svc.session = s })
	first := make(chan int, 1)
	go func() {
		resp, err := d.client.Post("http://creel/v1/sandboxes/box/exec", "application/json", strings.NewReader(body))
		if err != nil {
			first <- 0
			return
		}
		resp.Body.Close()
		first <- resp.StatusCode
	}()
	fmt.Fprint(s.out, "it runs")
	status, header, answer := d.do(t, "POST", "/v1/sandboxes/box/exec", `{"command":["x"],"max_output":1}`)
	if status != http.StatusTooManyRequests || header.Get("Retry-After") == "" || !strings.Contains(answer, "may have 1M of output") {
		t.Errorf("answer %d %v %s", status, header, answer)
	}
	s.out.Close()
	s.err.Close()
	s.exit <- api.ExecResult{Reason: api.ReasonExited}
	if got := <-first; got != http.StatusOK {
		t.Errorf("the first: %d", got)
	}
	oneShot(d, "", "")
	if status, _, answer := d.do(t, "POST", "/v1/sandboxes/box/exec", body); status != http.StatusOK {
		t.Errorf("when it has ended: %d %s", status, answer)
	}
}

func TestExecOnceShutdown(t *testing.T) {
	d := start(t, server.Options{})
	s := newSession()
	d.svc.set(func() { d.svc.session = s })
	answer := make(chan string, 1)
	go func() {
		resp, err := d.client.Post("http://creel/v1/sandboxes/box/exec", "application/json", strings.NewReader(`{"command":["x"]}`))
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answer <- resp.Status + string(b)
	}()
	fmt.Fprint(s.out, "it runs")
	if err := d.srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if got := <-answer; !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "creeld is stopping") {
		t.Errorf("answer %s", got)
	}
	<-s.closed
}
