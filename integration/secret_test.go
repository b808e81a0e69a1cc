package integration_test

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestSecret: tools in a sandbox use a credential that is nowhere in it, and goes
// nowhere but where it is bound to; also after what of creel there is was killed.
func TestSecret(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage, kerneltest.Program("git"))
	const token, other = "tok-4711-of-the-test", "tok-0815-of-the-test"
	s := lab.NewSite(t)
	s.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "said %q\n", r.Header.Get("Authorization"))
	})
	s.HandleFunc("/other", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "said %q\n", r.Header.Get("Authorization"))
	})
	files := http.StripPrefix("/git/", http.FileServer(http.Dir(repository(t))))
	s.HandleFunc("/git/", func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != token && password != other {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	})
	s.HandleFunc("/sdk/v1/chat", func(w http.ResponseWriter, r *http.Request) {
		if key := r.Header.Get("X-Api-Key"); key != token && key != other {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for word := range strings.FieldsSeq(string(body)) {
			fmt.Fprintf(w, "data: %s\n\n", word)
			w.(http.Flusher).Flush()
		}
	})
	index := http.StripPrefix("/simple/", http.FileServerFS(packageIndex(t)))
	s.HandleFunc("/simple/", func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != token && password != other {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		index.ServeHTTP(w, r)
	})
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath(), Config: fmt.Sprintf("[egress]\nroots = %q\n", s.Roots)})
	file := filepath.Join(t.TempDir(), "token")
	set := func(value string, args ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, errOut, code := l.Creel(append([]string{"secret", "set", "--file", file}, args...)...); code != 0 {
			t.Fatal(errOut)
		}
	}
	host := fmt.Sprintf("host.creel.internal:%d", s.Port)
	api := []string{"--host", host, "--path", "/v1/**", "--env", "API_KEY", "--agent", "default", "api"}
	set(token, api...)
	set(token, "--host", host, "--path", "/git/**", "--basic", "x-access-token", "forge")
	set(token, "--host", host, "--path", "/simple/**", "--basic", "__token__", "index")
	set(token, "--host", host, "--path", "/sdk/**", "--header", "X-Api-Key", "--env", "SDK_API_KEY", "sdk")
	out, errOut, code := l.Creel("run", "-d", "--name", "user", "--allow", "https "+host, "--secret", "api", "--secret", "forge", "--secret", "index", "--secret", "sdk")
	if code != 0 {
		t.Fatal(errOut)
	}
	id := strings.TrimSpace(out)
	inside := func(script string) string {
		t.Helper()
		out, errOut, _ := l.Creel("exec", id, "--", "sh", "-c", script)
		return out + errOut
	}
	masked := strings.Repeat("*", len(token))
	works := func(when, token string) {
		t.Helper()
		for _, tt := range []struct{ script, want string }{
			{`curl -sS ` + s.URL("/v1/a"), `said "Bearer ` + masked + `"`},
			{`curl -sS -H "Authorization: Bearer $API_KEY" ` + s.URL("/v1/a"), `said "Bearer ` + masked + `"`},
			{`python3 -c 'import os; from pip._vendor import requests as r; print(r.get("` + s.URL("/v1/a") + `", headers={"Authorization": "Bearer " + os.environ["API_KEY"]}).text)'`, `said "Bearer ` + masked + `"`},
			{`rm -rf /tmp/r; git clone -q ` + s.URL("/git/r.git") + ` /tmp/r && git -C /tmp/r log --format=%s`, "of the test"},
			{`rm -rf /tmp/w; pip --disable-pip-version-check download -q --no-deps -d /tmp/w -i ` + s.URL("/simple/") + ` demo 2>&1; ls /tmp/w`, "demo-1.0-py3-none-any.whl\n"},
			{`python3 -c '` + sdkScript + `' ` + s.URL("/sdk"), "['one', 'two', 'three']\n"},
			{`curl -sS ` + s.URL("/other"), `said ""`},
			{`curl -sS -H "Authorization: Bearer $API_KEY" ` + s.URL("/other"), "creel: the request has the placeholder of a secret that does not go there: api"},
			{`curl -sS ` + s.URL("/other?key=") + `$API_KEY`, "creel: the request has the placeholder of a secret that does not go there: api"},
		} {
			if got := inside(tt.script); !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s: %s: got %q, want %q", when, tt.script, got, tt.want)
			}
		}
		sent := 0
		for _, r := range s.Requests() {
			said := r.Header.Get("Authorization")
			if strings.Contains(r.RequestURI+fmt.Sprint(r.Header), "creel_") {
				t.Errorf("%s: a placeholder arrived: %s %v", when, r.URL, r.Header)
			}
			if said == "Bearer "+token {
				sent++
			}
		}
		if sent != 3 {
			t.Errorf("%s: the token arrived %d times", when, sent)
		}
	}
	works("at first", token)
	l.KillProcess(lab.Egress, id)
	works("after its creel-egress was killed", token)
	set(other, api...)
	set(other, "--host", host, "--path", "/simple/**", "--basic", "__token__", "index")
	works("after it was set again", other)
	l.Kill()
	l.KillProcess(lab.Egress, id)
	l.Start()
	works("after both were killed", other)

	// It is nowhere inside, and in nothing that creel keeps but what is sealed.
	if got := inside(`cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -c t[o]k-; env | grep -c ^API_KEY=creel_; grep -rl t[o]k- /run /tmp /etc /home 2>/dev/null`); got != "0\n1\n" {
		t.Errorf("inside: %q", got)
	}
	for _, v := range []string{token, other} {
		found, _ := exec.CommandContext(t.Context(), "grep", "-rlaFs", v, l.Dir).Output() // it cannot read all there is
		if len(found) > 0 {
			t.Errorf("%s is in %s", v, found)
		}
	}
	if _, errOut, code := l.Creel("exec", id, "--", "/bin/true", "x="+token); code != 0 { // its own caller gives it away
		t.Error(errOut)
	}
	awaitAudit(t, l, "the command without the secret", func(r map[string]any) bool {
		if strings.Contains(fmt.Sprint(r["command"]), token) {
			t.Errorf("the audit log has a secret: %v", r)
		}
		return strings.Contains(fmt.Sprint(r["command"]), "x=[secret forge]")
	})
	if out, _, _ := l.Creel("agent", "show", "default", "--json"); !strings.Contains(out, `"secrets"`) {
		t.Errorf("what the agent used: %s", out)
	}
	out, errOut, code = l.Creel("secret", "ls", "--json")
	if code != 0 || strings.Contains(out, "tok-") || !strings.Contains(out, `"uses":`) {
		t.Errorf("%s%s", out, errOut)
	}
	awaitAudit(t, l, "a use", func(r map[string]any) bool {
		detail, _ := r["detail"].(map[string]any)
		return r["action"] == "secret.used" && detail["secret"] == "api" && detail["to"] == host && r["sandbox"] == id
	})
	verifyAudit(t, l)

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--secret", "none"}, `no secret "none"`},
		{[]string{"--secret", "api", "--agent", "another"}, "is not for the agent another"},
		{[]string{"--secret", "api", "--allow", "example.com"}, "which no https rule of the network reaches"},
		{[]string{"--secret", "api", "--network", "none"}, "secrets"},
		{[]string{"--secret", "api", "--secret", "api"}, "once"},
	} {
		args := append([]string{"run", "-d"}, tt.args...)
		if !strings.Contains(fmt.Sprint(tt.args), "--allow") && !strings.Contains(fmt.Sprint(tt.args), "--network") {
			args = append(args, "--allow", host)
		}
		if out, errOut, code := l.Creel(args...); code == 0 || !strings.Contains(errOut, tt.want) {
			t.Errorf("%v: %s%s", tt.args, out, errOut)
		}
	}
	if _, errOut, code := l.Creel("secret", "rm", "api"); code != 0 {
		t.Error(errOut)
	}
	if got := inside(`curl -sS ` + s.URL("/v1/a")); got != "said \"\"\n" {
		t.Errorf("after it was removed: %q", got)
	}
}

// sdkScript is what libraries of model APIs do: an object with a base address and a
// key out of the environment, and an answer that comes in events.
const sdkScript = `
import os, sys
from pip._vendor import requests
class Client:
    def __init__(self, base, key=None):
        self.base, self.session = base, requests.Session()
        self.session.headers["X-Api-Key"] = key or os.environ["SDK_API_KEY"]
    def chat(self, text):
        with self.session.post(self.base + "/v1/chat", data=text, stream=True, timeout=20) as r:
            r.raise_for_status()
            for line in r.iter_lines(decode_unicode=True):
                if line.startswith("data: "):
                    yield line[6:]
print(list(Client(sys.argv[1]).chat("one two three")))
`

// packageIndex is a simple repository (PEP 503) with one wheel.
func packageIndex(t *testing.T) fs.FS {
	t.Helper()
	var wheel bytes.Buffer
	w := zip.NewWriter(&wheel)
	for name, text := range map[string]string{
		"demo.py":                     "word = 'of the test'\n",
		"demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
		"demo-1.0.dist-info/WHEEL":    "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
		"demo-1.0.dist-info/RECORD":   "demo.py,,\ndemo-1.0.dist-info/METADATA,,\ndemo-1.0.dist-info/WHEEL,,\ndemo-1.0.dist-info/RECORD,,\n",
	} {
		f, err := w.Create(name)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return fstest.MapFS{
		"demo/index.html":                {Data: []byte(`<!DOCTYPE html><html><body><a href="demo-1.0-py3-none-any.whl">demo-1.0-py3-none-any.whl</a></body></html>`)},
		"demo/demo-1.0-py3-none-any.whl": {Data: wheel.Bytes()},
	}
}
