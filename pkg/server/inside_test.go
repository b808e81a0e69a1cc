package server_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"
)

// own is a server of a sandbox's own socket to which this process may connect.
func own(t *testing.T, first uint32) *daemon {
	t.Helper()
	return start(t, server.Options{Inside: &server.Inside{
		Caller: server.Caller{UID: uint32(os.Geteuid()), GID: 777, Groups: []uint32{778}, Via: "box"}, First: first, Count: 10,
	}})
}

// TestInsideRoutes: a sandbox's own socket has these routes and no others.
func TestInsideRoutes(t *testing.T) {
	var got []string
	for _, r := range server.Routes() {
		if r.Inside {
			got = append(got, r.Method+" "+strings.TrimPrefix(r.Pattern, "/v1/"))
		}
	}
	want := []string{
		"POST sandboxes", "GET sandboxes", "GET sandboxes/{ref}", "DELETE sandboxes/{ref}", "POST sandboxes/{ref}/stop", "POST sandboxes/{ref}/kill",
		"GET sandboxes/{ref}/wait", "GET sandboxes/{ref}/logs", "POST sandboxes/{ref}/exec", "GET version",
	}
	if !slices.Equal(got, want) {
		t.Errorf("routes: %q", got)
	}
	d := own(t, uint32(os.Geteuid()))
	for _, r := range server.Routes() {
		d.svc.set(func() { d.svc.calls = nil })
		path := strings.NewReplacer("{ref...}", "x", "{ref}", "x", "{name}", "x").Replace(r.Pattern)
		status, _, body := d.do(t, r.Method, path, "")
		if found := status != 404 && status != 405; found != r.Inside {
			t.Errorf("%s %s: %d %s", r.Method, path, status, body)
		}
		if c := d.svc.last(); c.Method != "" && !r.Inside {
			t.Errorf("%s %s: the service was asked %v", r.Method, path, c)
		}
	}
}

// TestInsideCaller: who asks is who the socket is for, whoever connects; that
// has to be of the sandbox's ids.
func TestInsideCaller(t *testing.T) {
	uid := uint32(os.Geteuid())
	d := own(t, uid)
	if status, _, body := d.do(t, "POST", "/v1/sandboxes", `{"agent":"a"}`); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	if c := d.svc.by; c.Via != "box" || c.GID != 777 || len(c.Groups) != 1 || c.PIDFD != nil || c.PID != 0 {
		t.Errorf("it is of %+v", c)
	}
	for _, path := range []string{"/v1/sandboxes", "/v1/sandboxes/x/exec", "/v1/sandboxes/x/kill"} {
		d.svc.set(func() { d.svc.calls = nil })
		status, _, body := d.do(t, "POST", path, `{"command":["x"]}`, "Idempotency-Key", "k")
		if c := d.svc.last(); status != 400 || !strings.Contains(body, "takes none") || c.Method != "" {
			t.Errorf("a key for %s: %d %s, asked %v", path, status, body, c)
		}
	}
	for _, first := range []uint32{uid + 1, uid - 10} { // one too many, and one too few
		d := own(t, first)
		c, err := net.Dial("unix", d.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write([]byte("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("uid %d of %d to %d is answered: %d, %v", uid, first, first+9, n, err)
		}
	}
	if _, err := server.ServeInside(&fake{}, nil, server.Inside{Caller: server.Caller{UID: 0}}, server.Options{}); err == nil {
		t.Error("a socket of no sandbox is served")
	}
}

// TestInsideTakesNoDescriptors: none becomes the daemon's, and none is sent.
func TestInsideTakesNoDescriptors(t *testing.T) {
	d := own(t, uint32(os.Geteuid()))
	dir, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	c := d.dial(t)
	if err := c.Attach(dir, dir); err != nil {
		t.Fatal(err)
	}
	body := `{"mounts":[{"fd":0,"source":"/","target":"/w"}]}`
	resp := roundTrip(t, c, fmt.Sprintf("POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	if call := d.svc.last(); resp.StatusCode != 201 || call.Method != "Spawn" || call.Args[1] != 0 {
		t.Errorf("%d, the service was asked %v", resp.StatusCode, call)
	}
	d.svc.set(func() { d.svc.session = newSession() })
	c = d.dial(t)
	body = `{"command":["x"],"io":"fds"}`
	roundTrip(t, c, fmt.Sprintf("POST /v1/sandboxes/x/exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	var exec api.ExecRequest
	d.svc.set(func() { exec = d.svc.exec })
	if exec.IO != "framed" {
		t.Errorf("the exec is %+v", exec)
	}
}

// TestInsideIsBounded: connections beyond the most wait, and requests beyond
// the rate do.
func TestInsideIsBounded(t *testing.T) {
	d := own(t, uint32(os.Geteuid()))
	var held []net.Conn
	for range 17 {
		c, err := net.Dial("unix", d.path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		held = append(held, c)
	}
	ask := func(c net.Conn, within time.Duration) error {
		_ = c.SetDeadline(time.Now().Add(within))
		if _, err := c.Write([]byte("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			return err
		}
		_, err := c.Read(make([]byte, 4096))
		return err
	}
	for i, c := range held[:16] {
		if err := ask(c, 5*time.Second); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	if err := ask(held[16], 300*time.Millisecond); err == nil {
		t.Error("one more than 16 is served")
	}
	held[0].Close()
	_ = held[16].SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := held[16].Read(make([]byte, 4096)); err != nil {
		t.Errorf("it is not served when there is room: %v", err)
	}
	began := time.Now()
	for range 150 { // 100 at once, of which 34 are used up
		if err := ask(held[1], 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 1200*time.Millisecond {
		t.Errorf("150 requests took %v", took)
	}
}

// TestInsideHangUp: who hangs up while a request waits for its turn is not told
// that the daemon stops.
func TestInsideHangUp(t *testing.T) {
	d := own(t, uint32(os.Geteuid()))
	var said []string
	for range 3 * insideBurst { // the last of them have to wait
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		got, _ := io.ReadAll(c)
		c.Close()
		if strings.Contains(string(got), "503") {
			said = append(said, string(got))
		}
	}
	if len(said) == 0 {
		t.Error("none had to wait")
	}
	for _, got := range said {
		if !strings.Contains(got, "the request was cancelled") || strings.Contains(got, "stopping") {
			t.Fatalf("told %q", got)
		}
	}
}

// insideBurst is server.insideBurst.
const insideBurst = 100

// TestServeInsideStops: stop ends what waits, and what is served no more is not
// listened for.
func TestServeInsideStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	svc := &fake{}
	stop, err := server.ServeInside(svc, l, server.Inside{Caller: server.Caller{UID: uint32(os.Geteuid()), Via: "box"}, First: uint32(os.Geteuid()), Count: 1}, server.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection is open: %v", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		t.Error("it is listened")
	}
}
