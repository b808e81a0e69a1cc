package client

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
)

func TestMembershipHint(t *testing.T) {
	tests := []struct {
		name string
		m    membership
		want string
	}{
		{name: "not a member", m: membership{user: "ann", group: "creel", gid: 990, process: []int{1000}, registered: []string{"1000"}}, want: "usermod -aG creel ann"},
		{name: "member since this login", m: membership{user: "ann", group: "creel", gid: 990, process: []int{1000}, registered: []string{"1000", "990"}}, want: "newgrp creel"},
		{name: "member, mode wrong", m: membership{user: "ann", group: "creel", gid: 990, process: []int{1000, 990}, registered: []string{"1000", "990"}}, want: "chmod 0660"},
		{name: "root's alone", m: membership{user: "ann", group: "root", gid: 0, process: []int{1000}, registered: []string{"1000"}}, want: "use sudo"},
		{name: "groups unknown", m: membership{user: "ann", group: "creel", gid: 990}, want: "usermod -aG creel ann"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := membershipHint(tt.m); !strings.Contains(got, tt.want) {
				t.Errorf("hint = %q, want it to say %q", got, tt.want)
			}
		})
	}
}

func TestConnectErrors(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for name, socket := range map[string]string{"nothing there": filepath.Join(dir, "none"), "nobody listens": stale} {
		_, err := New(socket).Version(t.Context())
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeUnavailable || !strings.Contains(e.Hint, "start creeld") {
			t.Errorf("%s: error = %v, want unavailable with how to start it", name, err)
		}
		if !strings.Contains(e.Message, socket) {
			t.Errorf("%s: message %q does not name the socket", name, e.Message)
		}
		_, err = New(socket).StartExec(t.Context(), "x", api.ExecRequest{})
		if api.CodeOf(err) != api.CodeUnavailable {
			t.Errorf("%s: exec error = %v, want unavailable", name, err)
		}
	}
}

func TestDeniedSocket(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root is refused by no mode; the hint's parts are tested above.
		if h := deniedHint(t.TempDir()); h == "" {
			t.Error("no hint")
		}
		return
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	_, err = New(path).Version(t.Context())
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeDenied || e.Hint == "" {
		t.Errorf("error = %v, want denied with a hint", err)
	}
}

// A peer that is not creeld, or breaks off, gives an error and no hang.
func TestStrangePeers(t *testing.T) {
	tests := map[string]struct {
		answer string
		want   api.Code
	}{
		"closes at once":     {"", api.CodeUnavailable},
		"not HTTP":           {"220 mail.example ESMTP\r\n", api.CodeInternal},
		"HTML error":         {"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\n<a>x\n", api.CodeNotFound},
		"no upgrade":         {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", api.CodeInternal},
		"head without end":   {"HTTP/1.1 101 Switching Protocols\r\n" + strings.Repeat("A: b\r\n", 10000), api.CodeInternal},
		"cut after upgrade":  {"HTTP/1.1 101 Switching Protocols\r\n\r\n", api.CodeUnavailable},
		"cut within a frame": {"HTTP/1.1 101 Switching Protocols\r\n\r\n\x07\x00\x00\x00\x00\x00\x00\x09{", api.CodeUnavailable},
		"exit before start":  {"HTTP/1.1 101 Switching Protocols\r\n\r\n\x05\x00\x00\x00\x00\x00\x00\x02{}", api.CodeInternal},
		"fds without any":    {"HTTP/1.1 101 Switching Protocols\r\n\r\n\x08\x00\x00\x00\x00\x00\x00\x01\x02", api.CodeInternal},
		"huge frame":         {"HTTP/1.1 101 Switching Protocols\r\n\r\n\x01\x00\x00\x00\xff\xff\xff\xff", api.CodeInternal},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := New(peer(t, tt.answer))
			p, err := c.StartExec(t.Context(), "x", api.ExecRequest{Command: []string{"a"}})
			if err == nil {
				_ = p.Close()
				t.Fatal("StartExec succeeded")
			}
			if got := api.CodeOf(err); got != tt.want {
				t.Errorf("StartExec error = %v of class %s, want %s", err, got, tt.want)
			}
		})
	}
}

// peer answers every connection with the same bytes.
func peer(t *testing.T, answer string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "creel") //nolint:usetesting // a socket's path has 108 bytes, and TempDir's can be longer
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			_, _ = c.Read(buf)
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	return path
}

func TestCodeOfStatus(t *testing.T) {
	for status, want := range map[int]api.Code{
		http.StatusBadRequest: api.CodeInvalid, http.StatusForbidden: api.CodeDenied, http.StatusNotFound: api.CodeNotFound,
		http.StatusConflict: api.CodeConflict, http.StatusTooManyRequests: api.CodeExhausted, http.StatusBadGateway: api.CodeInternal,
	} {
		if got := codeOfStatus(status); got != want {
			t.Errorf("codeOfStatus(%d) = %s, want %s", status, got, want)
		}
	}
}

func FuzzReadList(f *testing.F) {
	f.Add([]byte(`{"name":"a","type":"file"}` + "\n" + `{"truncated":false}` + "\n"))
	f.Add([]byte(`{"error":{"code":"not_found","message":"x"}}`))
	f.Add([]byte("{}\n{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_, err := readList(strings.NewReader(string(b)), func(api.FileInfo) error { n++; return nil })
		if err == nil && !strings.Contains(strings.ToLower(string(b)), "truncated") {
			t.Error("a list without its last line passed for a whole one")
		}
		if n > 1+strings.Count(string(b), "\n") {
			t.Error("more entries than lines")
		}
	})
}

func FuzzReadSSE(f *testing.F) {
	f.Add([]byte("id: 1\nevent: a\ndata: {\"seq\":1}\n\n"))
	f.Add([]byte(": keep\n\ndata:{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		_ = readSSE(t.Context(), strings.NewReader(string(b)), func(api.Event) error { n++; return nil })
		if n > strings.Count(string(b), "data:") {
			t.Error("more events than data lines")
		}
	})
}
