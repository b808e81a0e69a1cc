package server_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/server"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := server.Listen(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket %v, %v, want mode 0600", fi.Mode(), err)
	}
	if _, err := server.Listen(t.Context(), path, ""); err == nil || !strings.Contains(err.Error(), "another creeld has the socket") {
		t.Errorf("second Listen = %v, want a refusal", err)
	}
	if err := l.UnixListener.Close(); err != nil { // as the HTTP server does when it is shut down
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close of a listener that is shut down: %v; creeld would end with exit code 1", err)
	}
	// The stale socket is replaced, and works.
	l, err = server.Listen(t.Context(), path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 2 { // the socket and its lock
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestListenRefuses(t *testing.T) {
	listening := filepath.Join(t.TempDir(), "s")
	other, err := net.Listen("unix", listening)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	file := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	linked := filepath.Join(t.TempDir(), "s")
	if err := os.Symlink(file, linked+".lock"); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, group, want string }{
		{"somebody listens", listening, "", "somebody listens on it"},
		{"a file", file, "", "something is there that is not a socket"},
		{"a directory of everybody", filepath.Join(open, "s"), "", "can be written by others"},
		{"no directory", filepath.Join(open, "no", "s"), "", "no such file or directory"},
		{"no group", filepath.Join(t.TempDir(), "s"), "no-such-group-here", "create it with \"groupadd --system no-such-group-here\""},
		{"a link for the lock", linked, "", "too many levels of symbolic links"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := server.Listen(t.Context(), tt.path, tt.group)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Listen = %v, want %q", err, tt.want)
			}
		})
	}
	if b, err := os.ReadFile(file); string(b) != "precious" || err != nil {
		t.Errorf("the file now: %q, %v", b, err)
	}
}
