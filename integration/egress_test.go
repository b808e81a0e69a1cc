package integration_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// greeter is a service on the box's loopback.
func greeter(t *testing.T, text string) uint16 {
	t.Helper()
	s, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, text)
			c.Close()
		}
	}()
	return netip.MustParseAddrPort(s.Addr().String()).Port()
}

// connectScript says what it hears from each HOST and PORT.
const connectScript = `
import socket, sys
for host, port in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        s = socket.create_connection((host, int(port)), 20)
        got = b""
        while True:
            more = s.recv(4096)
            if not more: break
            got += more
        print("heard", got.decode())
    except OSError as e:
        print(type(e).__name__, e.errno, e.strerror)
`

// TestEgress: a sandbox reaches what is allowed and nothing else, whatever of
// creel is killed meanwhile.
func TestEgress(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath()})
	port, other := greeter(t, "the box"), greeter(t, "not for you")
	out, errOut, code := l.Creel("run", "-d", "--allow", fmt.Sprintf("tcp host.creel.internal:%d", port), "--name", "net")
	if code != 0 {
		t.Fatal(errOut)
	}
	id := strings.TrimSpace(out)
	targets := []struct {
		host string
		port uint16
		want string
	}{
		{"host.creel.internal", port, "heard the box"},
		{"host.creel.internal", other, "ConnectionResetError "},
		{"example.com", 443, "gaierror -2 "},
		{"169.254.169.254", 80, "ConnectionResetError "},
		{"127.0.0.1", port, "ConnectionRefusedError "},
	}
	reaches := func(when string) {
		t.Helper()
		args := []string{"exec", id, "--", "python3", "-c", connectScript}
		for _, tt := range targets {
			args = append(args, tt.host, fmt.Sprint(tt.port))
		}
		out, errOut, code := l.Creel(args...)
		got := strings.Split(strings.TrimSpace(out), "\n")
		if code != 0 || len(got) != len(targets) {
			t.Fatalf("%s: %s%s", when, out, errOut)
		}
		for i, tt := range targets {
			if !strings.HasPrefix(got[i], tt.want) {
				t.Errorf("%s: %s:%d: %s", when, tt.host, tt.port, got[i])
			}
		}
	}
	reaches("at first")
	// More can be allowed while it runs, and is listed until it is.
	two := greeter(t, "more")
	host := fmt.Sprintf("host.creel.internal:%d", two)
	ask := func() string {
		out, errOut, _ := l.Creel("exec", id, "--", "python3", "-c", connectScript, "host.creel.internal", fmt.Sprint(two))
		return out + errOut
	}
	if got := ask(); !strings.HasPrefix(got, "ConnectionResetError ") {
		t.Errorf("before it was allowed: %s", got)
	}
	awaitAudit(t, l, "refused", func(r map[string]any) bool {
		detail, _ := r["detail"].(map[string]any)
		return r["action"] == "egress.denied" && detail["to"] == host
	})
	if out, errOut, code := l.Creel("egress", "pending", id); code != 0 || !strings.Contains(out, `"tcp `+host+`"`) {
		t.Errorf("pending: %s%s", out, errOut)
	}
	if _, errOut, code := l.Creel("egress", "allow", id, "https "+host+" GET /x"); code == 0 || !strings.Contains(errOut, "not opened up") {
		t.Errorf("a rule that opens TLS up: %s", errOut)
	}
	if _, errOut, code := l.Creel("egress", "allow", id, "tcp "+host); code != 0 {
		t.Error(errOut)
	}
	if got := ask(); !strings.HasPrefix(got, "heard more") {
		t.Errorf("after it was allowed: %s", got)
	}
	if out, _, _ := l.Creel("egress", "pending", id); strings.Contains(out, host) {
		t.Errorf("pending: %s", out)
	}
	defer func() {
		if got := ask(); !strings.HasPrefix(got, "heard more") {
			t.Errorf("at the end: %s", got)
		}
	}()
	l.KillProcess(lab.Egress, id)
	reaches("after its creel-egress was killed")
	l.Kill()
	l.Start()
	reaches("after creeld was killed")
	l.Kill()
	l.KillProcess(lab.Egress, id)
	l.Start()
	reaches("after both were killed")
	for _, want := range []map[string]string{
		{"type": "egress.allowed", "to": fmt.Sprintf("host.creel.internal:%d", port), "what": "connection"},
		{"type": "egress.denied", "to": fmt.Sprintf("host.creel.internal:%d", other), "what": "connection", "by": "the request"},
		{"type": "egress.denied", "to": "example.com", "what": "name", "by": "the request"},
		{"type": "egress.denied", "to": "169.254.169.254:80", "what": "connection", "by": "the request"},
	} {
		r := awaitAudit(t, l, fmt.Sprint(want), func(r map[string]any) bool {
			detail, _ := r["detail"].(map[string]any)
			for k, v := range want {
				if k != "type" && detail[k] != v || k == "type" && r["action"] != v {
					return false
				}
			}
			return r["sandbox"] == id
		})
		if r["kind"] != "fact" {
			t.Errorf("%v", r)
		}
	}
	verifyAudit(t, l)
}
