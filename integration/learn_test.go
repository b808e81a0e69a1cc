package integration_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestLearn: what a sandbox did whose profile observes is a policy, by which
// another does the same and no more.
func TestLearn(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "said", r.URL.Path) }))
	defer web.Close()
	at := strings.Replace(strings.TrimPrefix(web.URL, "http://"), "127.0.0.1", "host.creel.internal", 1)
	port := greeter(t, "raw")
	raw := fmt.Sprintf("host.creel.internal:%d", port)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath()})
	text, _, _ := l.Creel("profile", "show", "default")
	for old, now := range map[string]string{
		`name = "default"`:             `name = "watched"`,
		`network = ["none", "policy"]`: fmt.Sprintf("network = [\"policy\"]\nobserve = true\negress = [\"*\", \"http %s\", \"tcp %s\"]", at, raw),
	} {
		if !strings.Contains(text, old) {
			t.Fatalf("no %s in the profile", old)
		}
		text = strings.Replace(text, old, now, 1)
	}
	file := filepath.Join(l.Dir, "profiles", "watched.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	l.Stop()
	l.Start()
	start := func(args ...string) string {
		t.Helper()
		out, errOut, code := l.Creel(append([]string{"run", "-d"}, args...)...)
		if code != 0 {
			t.Fatal(errOut)
		}
		return strings.TrimSpace(out)
	}
	curl := func(id, path string) string {
		out, errOut, _ := l.Creel("exec", id, "--", "curl", "-sS", "http://"+at+path)
		return out + errOut
	}
	connect := func(id string) string {
		out, errOut, _ := l.Creel("exec", id, "--", "python3", "-c", connectScript, "host.creel.internal", fmt.Sprint(port))
		return out + errOut
	}
	watched := start("--profile", "watched", "--name", "watched")
	if out, _, _ := l.Creel("inspect", watched); !strings.Contains(out, `"observe": true`) {
		t.Errorf("it is not told that it observes: %s", out)
	}
	for path, want := range map[string]string{"/one": "said /one\n", "/two": "said /two\n"} {
		if got := curl(watched, path); got != want {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := connect(watched); got != "heard raw\n" {
		t.Errorf("raw: %q", got)
	}
	curl(watched, "/one")
	if out, errOut, code := l.Creel("exec", watched, "--", "curl", "-sS", "-m", "5", "http://10.255.255.1/"); code == 0 {
		t.Errorf("an address that nobody lets: %s%s", out, errOut)
	}
	want := fmt.Sprintf("rules = [\n  \"http %s GET /one,/two\",\n  \"tcp %s\",\n]\n", at, raw)
	var learned string
	l.Eventually("all of it is on record", 20*time.Second, func() error {
		out, errOut, _ := l.Creel("egress", "learn", "watched")
		if learned = out; !strings.Contains(out, want) || !strings.Contains(out, "10.255.255.1:80") {
			return fmt.Errorf("learned %s%s", out, errOut)
		}
		return nil
	})

	// As a preset it lets another do the same, and no more.
	config := t.TempDir()
	dir := filepath.Join(config, "creel", "egress")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "watched.toml"), []byte(learned), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := l.Command(nil, "run", "-d", "--allow", "@watched")
	cmd.Env = append(cmd.Environ(), "XDG_CONFIG_HOME="+config)
	said, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	narrow := strings.TrimSpace(string(said))
	for path, want := range map[string]string{"/one": "said /one\n", "/two": "said /two\n", "/three": "creel: GET http://" + at + "/three is not allowed by the request"} {
		if got := curl(narrow, path); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := connect(narrow); got != "heard raw\n" {
		t.Errorf("raw: %q", got)
	}

	// Every name is for a profile that observes, and such a one is no default.
	for _, args := range [][]string{{"run", "--allow", "*", "--", "true"}, {"egress", "allow", narrow, "http *"}} {
		if _, errOut, code := l.Creel(args...); code == 0 || !strings.Contains(errOut, "every name is for profiles that observe") {
			t.Errorf("%v: %d %s", args, code, errOut)
		}
	}
	dropIn := filepath.Join(l.Dir, "config.d")
	if err := errors.Join(os.MkdirAll(dropIn, 0o755), os.WriteFile(filepath.Join(dropIn, "p.toml"), []byte("default_profile = \"watched\"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	l.Stop()
	l.Begin()
	<-l.Exited()
	if log := l.LogTail(3); !strings.Contains(log, "default_profile: profile watched observes") {
		t.Errorf("it started, or for another reason not:\n%s", log)
	}
	if err := os.Remove(filepath.Join(dropIn, "p.toml")); err != nil {
		t.Fatal(err)
	}
	l.Start()
}
