package integration_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestSecretByNode: npm installs from a registry that wants a token, and Node asks an
// interface that does, by secrets that neither has.
func TestSecretByNode(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.PackagesImage)
	const token = "npm_4711-of-the-test"
	s := lab.NewSite(t)
	tarball := nodePackage(t)
	integrity := sha512.Sum512(tarball)
	authorized := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+token {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			h(w, r)
		}
	}
	s.HandleFunc("/npm/demo", authorized(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"name":"demo","dist-tags":{"latest":"1.0.0"},"versions":{"1.0.0":{"name":"demo","version":"1.0.0","dist":{"tarball":%q,"integrity":"sha512-%s"}}}}`,
			s.URL("/npm/demo/-/demo-1.0.0.tgz"), base64.StdEncoding.EncodeToString(integrity[:]))
	}))
	s.HandleFunc("/npm/demo/-/demo-1.0.0.tgz", authorized(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tarball) }))
	s.HandleFunc("/v1/models", authorized(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"data":[{"id":"of the test"}]}`) }))
	l := lab.New(t, lab.Options{Image: kerneltest.PackagesImagePath(), Config: fmt.Sprintf("[egress]\nroots = %q\n", s.Roots)})
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	host := fmt.Sprintf("host.creel.internal:%d", s.Port)
	for name, path := range map[string]string{"registry": "/npm/**", "models": "/v1/**"} {
		if _, errOut, code := l.Creel("secret", "set", "--file", file, "--host", host, "--path", path, "--env", strings.ToUpper(name)+"_TOKEN", name); code != 0 {
			t.Fatal(errOut)
		}
	}
	out, errOut, code := l.Creel("run", "-d", "--allow", "https "+host, "--secret", "registry", "--secret", "models")
	if code != 0 {
		t.Fatal(errOut)
	}
	id := strings.TrimSpace(out)
	for _, tt := range []struct{ script, want string }{
		{"mkdir -p /tmp/a && cd /tmp/a && npm install --silent --no-audit --no-fund --no-update-notifier --registry " + s.URL("/npm/") + " demo && node -e 'console.log(require(\"demo\"))'", "of the test\n"},
		{ // with its own setting of a token, which is the placeholder
			"mkdir -p /tmp/b && cd /tmp/b && echo '//" + host + "/npm/:_authToken=${REGISTRY_TOKEN}' >.npmrc && npm install --silent --no-audit --no-fund --no-update-notifier --registry " + s.URL("/npm/") + " demo && node -e 'console.log(require(\"demo\"))'",
			"of the test\n",
		},
		{`node -e 'fetch("` + s.URL("/v1/models") + `", {headers: {Authorization: "Bearer " + process.env.MODELS_TOKEN}}).then(r => r.json()).then(j => console.log(j.data[0].id))'`, "of the test\n"},
		{`node -e 'fetch("` + s.URL("/v2/models") + `", {headers: {Authorization: "Bearer " + process.env.MODELS_TOKEN}}).then(r => console.log(r.status))'`, "403\n"},
		{"grep -rl of-the-test /tmp /home 2>/dev/null; env | grep -c of-the-test", "0\n"},
	} {
		out, errOut, _ := l.Creel("exec", id, "--", "sh", "-c", tt.script)
		if out != tt.want {
			t.Errorf("%s: got %q, %q, want %q", tt.script, out, errOut, tt.want)
		}
	}
	for _, r := range s.Requests() {
		if strings.Contains(fmt.Sprint(r.URL, r.Header), "creel_") {
			t.Errorf("a placeholder arrived: %s %v", r.URL, r.Header)
		}
	}
}

// nodePackage is the package "demo" as npm packs it.
func nodePackage(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	w := tar.NewWriter(gz)
	for name, text := range map[string]string{
		"package/package.json": `{"name":"demo","version":"1.0.0","main":"index.js"}`,
		"package/index.js":     `module.exports = "of the test"`,
	} {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))})
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
