package integration_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestForward: a server in a sandbox is reached by who forwards it and by nobody
// else, until the sandbox ends.
func TestForward(t *testing.T) {
	kerneltest.Require(t, kerneltest.BaseImage, kerneltest.Curl)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath()})
	out, errOut, code := l.Creel("run", "-d", "--name", "server", "--", "sh", "-c", "mkdir /tmp/w; echo hello >/tmp/w/a; cd /tmp/w; exec python3 -m http.server --bind 127.0.0.1 80")
	if code != 0 {
		t.Fatal(errOut)
	}
	id := strings.TrimSpace(out)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	start := func(args ...string) (said string, ended <-chan error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(l.Bin, "creel"), append([]string{"--socket", l.Socket, "forward"}, args...)...)
		cmd.Dir = dir
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		line := make([]byte, 300)
		n, _ := stderr.Read(line)
		go func() { _, _ = io.Copy(io.Discard, stderr); done <- cmd.Wait() }()
		t.Cleanup(func() { _ = cmd.Process.Signal(unix.SIGTERM) })
		return string(line[:n]), done
	}
	_, socketEnds := start(id, "web.sock:80")
	sock := filepath.Join(dir, "web.sock")
	st, err := os.Stat(sock)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	bySocket := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", sock) }}}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		resp, err := bySocket.Get("http://x/a")
		if err == nil {
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) == "hello\n" {
				break
			}
		}
		if time.Now().After(end) {
			t.Fatalf("by the socket: %v", err)
		}
	}
	said, portEnds := start("server", "0:80")
	at, _, _ := strings.Cut(said, " ")
	get := func(cred *syscall.Credential) string {
		cmd := exec.CommandContext(t.Context(), "curl", "-sS", "-m", "20", "http://"+at+"/a")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if got := get(nil); got != "hello\n" {
		t.Errorf("by the port: %q", got)
	}
	if got := get(&syscall.Credential{Uid: 61234, Gid: 61234}); strings.Contains(got, "hello") {
		t.Errorf("another user: %q", got)
	}
	open, _ := start("--any-user", id, "0:80")
	at, _, _ = strings.Cut(open, " ")
	if got := get(&syscall.Credential{Uid: 61234, Gid: 61234}); got != "hello\n" {
		t.Errorf("another user, who may: %q", got)
	}
	// What nobody serves is an error, and another's sandbox is nobody's.
	if c, err := l.Forward(t.Context(), id, 81); err == nil {
		c.Close()
		t.Error("a port that nobody serves")
	}
	if _, errOut, code := l.CreelAs(&syscall.Credential{Uid: 61234, Gid: 61234}, "", "forward", id, "0:80"); code == 0 || strings.Contains(errOut, "is port") {
		t.Errorf("another's sandbox: %d %s", code, errOut)
	}
	if _, errOut, code := l.Creel("rm", "-f", id); code != 0 {
		t.Fatal(errOut)
	}
	for name, done := range map[string]<-chan error{"socket": socketEnds, "port": portEnds} {
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("%s: it goes on after its sandbox", name)
		}
	}
	if _, err := os.Stat(sock); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	awaitAudit(t, l, "a connection", func(r map[string]any) bool {
		asked, _ := r["asked"].(map[string]any)
		return r["action"] == "sandbox.forward" && fmt.Sprint(asked["port"]) == "80"
	})
}
