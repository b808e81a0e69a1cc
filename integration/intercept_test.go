package integration_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// repository is a directory with a bare git repository that any web server can
// serve.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"init", "-q", "-b", "main", "work"},
		{"-C", "work", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-q", "--allow-empty", "-m", "of the test"},
		{"clone", "-q", "--bare", "work", "r.git"},
		{"-C", "r.git", "update-server-info"},
	} {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	return dir
}

// TestIntercept: of a server's requests those go out that a rule names, by the
// tools that agents use, and the agent is told what was refused.
func TestIntercept(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage, kerneltest.Program("git"))
	s := lab.NewSite(t)
	s.HandleFunc("/public/hello", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello by HTTP/%d\n", r.ProtoMajor) })
	s.HandleFunc("/public/echo", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	s.Handle("/public/git/", http.StripPrefix("/public/git/", http.FileServer(http.Dir(repository(t)))))
	s.HandleFunc("/private", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "secret") })
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath(), Config: fmt.Sprintf("[egress]\nroots = %q\n", s.Roots)})
	out, errOut, code := l.Creel("run", "-d", "--name", "web", "--allow", fmt.Sprintf("https host.creel.internal:%d GET,HEAD /public/**", s.Port))
	if code != 0 {
		t.Fatal(errOut)
	}
	id := strings.TrimSpace(out)
	inside := func(script string) string {
		t.Helper()
		out, errOut, _ := l.Creel("exec", id, "--", "sh", "-c", script)
		return out + errOut
	}
	works := func(when string) {
		t.Helper()
		for _, tt := range []struct{ script, want string }{
			{"curl -sS " + s.URL("/public/hello"), "hello by HTTP/2"},
			{"curl -sS --http1.1 " + s.URL("/public/hello"), "hello by HTTP/"},
			{"python3 -c 'import urllib.request as u; print(u.urlopen(\"" + s.URL("/public/hello") + "\").read().decode())'", "hello by HTTP/"},
			{"curl -sS -x http://127.0.0.1:3128 " + s.URL("/public/hello"), "hello by HTTP/"},
			{"curl -sS -x http://127.0.0.1:3128 https://example.com/", "curl: (56) "},
			{"curl -sS " + s.URL("/private"), "creel: GET " + s.URL("/private") + " is not allowed by the request"},
			{"curl -sS -d x " + s.URL("/public/echo"), "creel: POST "},
			{"rm -rf /tmp/r; git clone -q " + s.URL("/public/git/r.git") + " /tmp/r && git -C /tmp/r log --format=%s", "of the test"},
			{"python3 -c 'from pip._vendor import requests as r; print(r.get(\"" + s.URL("/public/hello") + "\").text)'", "hello by HTTP/"},
			{"env -u CURL_CA_BUNDLE -u SSL_CERT_FILE curl -sS " + s.URL("/public/hello"), "curl: (60) "}, // by none but its own store
		} {
			if got := inside(tt.script); !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s: %s: got %q, want %q", when, tt.script, got, tt.want)
			}
		}
	}
	works("at first")
	for _, r := range s.Requests() {
		if r.Method != http.MethodGet && r.Method != http.MethodHead || !strings.HasPrefix(r.URL.Path, "/public/") {
			t.Errorf("arrived: %s %s", r.Method, r.URL)
		}
	}
	l.KillProcess(lab.Egress, id)
	works("after its creel-egress was killed")
	l.Kill()
	l.KillProcess(lab.Egress, id)
	l.Start()
	works("after both were killed")
	awaitAudit(t, l, "the refused request", func(r map[string]any) bool {
		detail, _ := r["detail"].(map[string]any)
		return r["action"] == "egress.denied" && detail["what"] == "request" && r["sandbox"] == id
	})
	if out, errOut, code := l.Creel("egress", "log", id); code != 0 || !strings.Contains(out, "allowed host.creel.internal:") || !strings.Contains(out, "denied  host.creel.internal:") {
		t.Errorf("its log: %s%s", out, errOut)
	}
	host := fmt.Sprintf("host.creel.internal:%d", s.Port)
	for path, want := range map[string]int{"/public/x": 0, "/private": 1} {
		if out, errOut, code := l.Creel("egress", "explain", id, host, "GET", path); code != want {
			t.Errorf("explain %s: %d: %s%s", path, code, out, errOut)
		}
	}
	serves := `python3 -c 'import socket, threading
for at in (("127.0.0.1", 80), ("0.0.0.0", 22), ("::1", 443), ("127.0.0.1", 53)):
    l = socket.create_server(at, family=socket.AF_INET6 if ":" in at[0] else socket.AF_INET)
    threading.Thread(target=lambda: l.accept()[0].sendall(b"served ")).start()
    print(socket.create_connection(("127.0.0.1" if at[0] == "0.0.0.0" else at[0], at[1]), 5).recv(9).decode(), end="")'`
	if got := inside(serves); got != strings.Repeat("served ", 4) {
		t.Errorf("its own servers on low ports: %q", got)
	}
	if got := inside("for f in ca.pem ca.jks; do echo x 2>/dev/null >/run/creel-trust/$f || echo no; done"); got != "no\nno\n" {
		t.Errorf("its trust store can be written: %q", got)
	}
	if _, errOut, code := l.Creel("evidence", id); code != 0 {
		t.Error(errOut)
	}
}

// awaitSpent waits until it is kept what some requests of TestBudget used.
func awaitSpent(t *testing.T, l *lab.Lab, id, budget string, times int) {
	t.Helper()
	what, _, _ := strings.Cut(budget, ",")
	want := int64(times)
	if what == "bytes" {
		want *= 300_000
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var spent map[string]int64
		text, err := os.ReadFile(filepath.Join(l.Dir, "run", "sandboxes", id, "egress-spent"))
		if err == nil && json.Unmarshal(text, &spent) == nil && spent[what] >= want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not kept within 20 s: %s, %v", text, err)
		}
	}
}

// TestBudget: what a sandbox may use of its network is counted over whatever is
// killed, and ends it when it is used up, with a reason that says so.
func TestBudget(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage)
	s := lab.NewSite(t)
	s.HandleFunc("/a", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })
	s.HandleFunc("/much", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 300_000)) })
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath(), Config: fmt.Sprintf("[egress]\nroots = %q\n", s.Roots)})
	opened, passed := fmt.Sprintf("https host.creel.internal:%d GET /**", s.Port), fmt.Sprintf("tls host.creel.internal:%d", s.Port)
	for _, tt := range []struct {
		name, rule, flag string
		most             string
		path             string
		works            int // times before it is used up
	}{
		{"requests", opened, "--egress-requests", "5", "/a", 5},
		{"connections", passed, "--egress-connections", "5", "/a", 5},
		{"bytes", passed, "--egress-bytes", "2M", "/much", 6},
		{"bytes, opened up", opened, "--egress-bytes", "2M", "/much", 6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, errOut, code := l.Creel("run", "-d", "--allow", tt.rule, tt.flag, tt.most)
			if code != 0 {
				t.Fatal(errOut)
			}
			id := strings.TrimSpace(out)
			ask := func() (string, int) {
				out, errOut, code := l.Creel("exec", id, "--", "curl", "-ksS", "-o", "/dev/null", "-w", "%{http_code}", s.URL(tt.path))
				return out + errOut, code
			}
			for i := range tt.works {
				switch i {
				case 1:
					awaitSpent(t, l, id, tt.name, i)
					l.KillProcess(lab.Egress, id)
				case 2:
					awaitSpent(t, l, id, tt.name, i)
					l.Kill()
					l.KillProcess(lab.Egress, id)
					l.Start()
				}
				if out, code := ask(); code != 0 || out != "200" {
					t.Fatalf("time %d: %d %s", i, code, out)
				}
			}
			if out, code := ask(); code == 0 && out == "200" {
				t.Errorf("once more: %d %s", code, out)
			}
			var sb *api.Sandbox
			for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
				var err error
				if sb, err = l.Inspect(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				if sb.State == api.StateStopped || time.Now().After(end) {
					break
				}
			}
			what, _, _ := strings.Cut(tt.name, ",")
			if sb.State != api.StateStopped || sb.Reason != api.ReasonEgress || sb.LimitsHit["egress_"+what] != 1 {
				t.Errorf("%s, %s, %v", sb.State, sb.Reason, sb.LimitsHit)
			}
		})
	}
}
