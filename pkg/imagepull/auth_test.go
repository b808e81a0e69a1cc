package imagepull_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/imagepull"
)

func authFile(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestCredentials is which entry of a file counts for a repository.
func TestCredentials(t *testing.T) {
	entry := func(user string) string { return fmt.Sprintf(`{"auth":%q}`, b64(user+":pw")) }
	for _, tt := range []struct {
		name, file, registry, path string
		user                       string // of the entry; empty for none
		want                       string // of the error
	}{
		{"a registry", `{"auths":{"r.test":` + entry("a") + `}}`, "r.test", "x", "a", ""},
		{"another registry", `{"auths":{"r.test":` + entry("a") + `}}`, "r.test:5000", "x", "", ""},
		{"a port", `{"auths":{"r.test":` + entry("a") + `,"r.test:5000":` + entry("b") + `}}`, "r.test:5000", "x", "b", ""},
		{"the most specific", `{"auths":{"r.test":` + entry("a") + `,"r.test/team":` + entry("b") + `,"r.test/team/x":` + entry("c") + `}}`, "r.test", "team/x", "c", ""},
		{"a beginning of the path", `{"auths":{"r.test":` + entry("a") + `,"r.test/team":` + entry("b") + `}}`, "r.test", "team/y/z", "b", ""},
		{"not half a name", `{"auths":{"r.test/tea":` + entry("a") + `}}`, "r.test", "team/y", "", ""},
		{"docker's Docker Hub", `{"auths":{"https://index.docker.io/v1/":` + entry("a") + `}}`, "docker.io", "library/debian", "a", ""},
		{"podman's Docker Hub", `{"auths":{"docker.io":` + entry("a") + `}}`, "docker.io", "library/debian", "a", ""},
		{"a part of Docker Hub", `{"auths":{"docker.io":` + entry("a") + `,"docker.io/team":` + entry("b") + `}}`, "docker.io", "team/x", "b", ""},
		{"with a scheme", `{"auths":{"https://r.test":` + entry("a") + `}}`, "r.test", "x", "a", ""},
		{"with a scheme and a path", `{"auths":{"http://r.test/v2/":` + entry("a") + `}}`, "r.test", "x", "a", ""},
		{"without padding", `{"auths":{"r.test":{"auth":"` + strings.TrimRight(b64("ab:pw"), "=") + `"}}}`, "r.test", "x", "ab", ""},
		{"with zeros behind it", `{"auths":{"r.test":{"auth":"` + b64("a:pw\x00\x00") + `"}}}`, "r.test", "x", "a", ""},
		{"in plain", `{"auths":{"r.test":{"username":"a","password":"pw"}}}`, "r.test", "x", "a", ""},
		{"nothing", `{}`, "r.test", "x", "", ""},
		{"an entry for show", `{"auths":{"r.test":{}}}`, "r.test", "x", "", ""},
		{"more than is known", `{"auths":{"r.test":` + entry("a") + `},"psFormat":"x","proxies":{}}`, "r.test", "x", "a", ""},
		{"another's entry is broken", `{"auths":{"r.test":` + entry("a") + `,"s.test":{"auth":"%%"}}}`, "r.test", "x", "a", ""},
		{"no base64", `{"auths":{"r.test":{"auth":"%%secret%%"}}}`, "r.test", "x", "", `auths["r.test"]`},
		{"no colon", `{"auths":{"r.test":{"auth":"` + b64("secret") + `"}}}`, "r.test", "x", "", "NAME:PASSWORD"},
		{"no JSON", `secret: yes`, "r.test", "x", "", "byte 1"},
		{"a list", `{"auths":["secret"]}`, "r.test", "x", "", "not in the form"},
		{"too large", strings.Repeat(" ", 1<<20) + "{}", "r.test", "x", "", "larger than"},
		{"a helper by a path", `{"credHelpers":{"r.test":"../../bin/secret"}}`, "r.test", "x", "", "letters, digits"},
		{"a helper that is not there", `{"credsStore":"nowhere"}`, "r.test", "x", "", "docker-credential-nowhere"},
		{"a helper for another registry", `{"credHelpers":{"s.test":"nowhere"},"auths":{"r.test":` + entry("a") + `}}`, "r.test", "x", "a", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := authFile(t, tt.file)
			c, err := imagepull.Credentials(t.Context(), tt.registry, tt.path, file)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), b64("secret")) {
				t.Errorf("the error tells: %v", err)
			}
			want := imagepull.Cred{}
			if tt.user != "" {
				want = imagepull.Cred{Username: tt.user, Password: "pw", Source: file}
			}
			if c != want {
				t.Errorf("got user %q password %q source %q, want %q", c.Username, c.Password, c.Source, tt.user)
			}
		})
	}
	c := imagepull.Cred{Username: "u", Password: "hunter2", IdentityToken: "hunter2", RegistryToken: "hunter2", Source: "f"}
	if s := fmt.Sprintf("%v %+v %#v %s", c, c, c, &c); strings.Contains(s, "hunter2") {
		t.Errorf("printed: %s", s)
	}
}

// TestCredentialFiles is where is looked, in what order.
func TestCredentialFiles(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"} {
		t.Setenv(v, "")
	}
	t.Setenv("HOME", filepath.Join(dir, "home"))
	put := func(path string) string {
		t.Helper()
		p := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(`{"auths":{"r.test":{"auth":"`+b64("u:pw")+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	from := func(explicit, want string) {
		t.Helper()
		c, err := imagepull.Credentials(t.Context(), "r.test", "x", explicit)
		if err != nil || c.Source != want {
			t.Errorf("from %q, %v; want %q", c.Source, err, want)
		}
	}
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "run"))
	from("", "")
	from("", "")
	docker := put("home/.docker/config.json")
	from("", docker)
	podman := put("home/.config/containers/auth.json")
	from("", podman)
	run := put("run/containers/auth.json")
	from("", run)
	if err := os.WriteFile(run, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	from("", podman) // the first that has an entry
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("DOCKER_CONFIG", filepath.Join(dir, "docker"))
	from("", "")
	from("", "")
	moved := put("docker/config.json")
	from("", moved)
	t.Setenv("REGISTRY_AUTH_FILE", put("named.json"))
	from("", filepath.Join(dir, "named.json"))
	from(run, "") // and then nowhere else
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(dir, "gone"))
	for _, explicit := range []string{"", filepath.Join(dir, "gone too")} {
		if _, err := imagepull.Credentials(t.Context(), "r.test", "x", explicit); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file that was named and is not there: %v", err)
		}
	}
}

// TestHelper runs credential helpers: what they are told, and what becomes of
// what they say.
func TestHelper(t *testing.T) {
	bin := t.TempDir()
	script := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	script("good", `[ "$*" = get ] || exit 9; read -r host; printf '{"ServerURL":"%s","Username":"%s","Secret":"pw"}' "$host" "$host"`)
	script("token", `printf '{"Username":"<token>","Secret":"pw"}'`)
	script("none", `echo credentials not found in native keychain; exit 1`)
	script("broken", `echo secret; echo secret >&2; exit 3`)
	script("chatty", `printf 'secret{'`)
	script("endless", `while :; do echo secretsecretsecretsecretsecretsecretsecretsecret; done`)
	entry := `"auths":{"r.test":{"auth":"` + b64("file:pw") + `"}}`
	for _, tt := range []struct {
		file, registry string
		want           imagepull.Cred
		fails          string
	}{
		{`{"credsStore":"good"}`, "r.test", imagepull.Cred{Username: "r.test", Password: "pw"}, ""},
		{`{"credsStore":"good"}`, "docker.io", imagepull.Cred{Username: "https://index.docker.io/v1/", Password: "pw"}, ""},
		{`{"credsStore":"token"}`, "r.test", imagepull.Cred{IdentityToken: "pw"}, ""},
		{`{"credsStore":"good",` + entry + `}`, "r.test", imagepull.Cred{Username: "file", Password: "pw"}, ""},
		{`{"credHelpers":{"r.test":"good"},` + entry + `}`, "r.test", imagepull.Cred{Username: "r.test", Password: "pw"}, ""},
		{`{"credHelpers":{"r.test":"none"},` + entry + `}`, "r.test", imagepull.Cred{Username: "file", Password: "pw"}, ""},
		{`{"credHelpers":{"r.test":""},` + entry + `}`, "r.test", imagepull.Cred{Username: "file", Password: "pw"}, ""},
		{`{"credsStore":"none"}`, "r.test", imagepull.Cred{}, ""},
		{`{"credsStore":"broken"}`, "r.test", imagepull.Cred{}, "docker-credential-broken: exit status 3"},
		{`{"credsStore":"chatty"}`, "r.test", imagepull.Cred{}, "did not answer"},
		{`{"credsStore":"endless"}`, "r.test", imagepull.Cred{}, "more than 65536 bytes"},
		{`{"credHelpers":{"r.test":"broken"},` + entry + `}`, "r.test", imagepull.Cred{}, "exit status 3"},
	} {
		f, err := imagepull.ParseAuthFile("f", []byte(tt.file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.Find(t.Context(), tt.registry, "x")
		if got != tt.want || (err == nil) != (tt.fails == "") || err != nil && (!strings.Contains(err.Error(), tt.fails) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: user %q, %v; want %q, %q", tt.file, got.Username, err, tt.want.Username, tt.fails)
		}
	}
}

// FuzzAuthFile: no file breaks the reading of it, none has a program run that
// is not called docker-credential-…, and no mistake in one tells what is in it.
func FuzzAuthFile(f *testing.F) {
	const marker = "hunter2hunter2"
	for _, s := range []string{
		`{"auths":{"r.test":{"auth":"` + b64("u:"+marker) + `"}}}`,
		`{"auths":{"https://r.test/v1/":{"username":"u","password":"` + marker + `"}}}`,
		`{"auths":{"r.test/team/x":{"identitytoken":"` + marker + `"}},"credsStore":"","credHelpers":{"r.test":""}}`,
		`{"auths":{"r.test":"` + marker + `"}}`, `{"auths":{"r.test":{"auth":"` + marker + `"`, `{"auths":{"/":{},"":{}}}`, `[]`, ``,
	} {
		f.Add([]byte(s), "r.test", "team/x")
	}
	f.Add([]byte(`{}`), "a/", "/")
	f.Setenv("PATH", f.TempDir())
	f.Fuzz(func(t *testing.T, b []byte, registry, path string) {
		file, err := imagepull.ParseAuthFile("f", b)
		if err == nil {
			_, err = file.Find(t.Context(), registry, path)
		}
		if err != nil && strings.Contains(err.Error(), marker) && !strings.Contains(registry+path, marker) && !keyHas(b, marker) {
			t.Errorf("the error tells: %v", err)
		}
	})
}

// keyHas reports whether the marker is in a place that is no secret: a key or
// the name of a helper, which errors do tell.
func keyHas(b []byte, marker string) bool {
	s := string(b)
	return strings.Contains(s, marker) && (strings.Contains(s, "cred") || strings.Contains(s, marker+`":`))
}

// TestStall: a registry that sends nothing more is not waited for for ever.
func TestStall(t *testing.T) {
	if err := imagepull.Stalled(time.Millisecond); !errors.Is(err, imagepull.ErrStalled) {
		t.Errorf("nothing came: %v", err)
	}
}

// TestParse: a name is read as the daemon reads it, and plain HTTP is this
// machine's alone.
func TestParse(t *testing.T) {
	sum := strings.Repeat("a", 64)
	for _, tt := range []struct{ ref, full, asked string }{
		{"debian", "docker.io/library/debian:latest", "index.docker.io/library/debian latest https"},
		{"team/x:1", "docker.io/team/x:1", "index.docker.io/team/x 1 https"},
		{"r.test/x", "r.test/x:latest", "r.test/x latest https"},
		{"r.test:5000/a/b/c:1", "r.test:5000/a/b/c:1", "r.test:5000/a/b/c 1 https"},
		{"r.test/x@sha256:" + sum, "r.test/x@sha256:" + sum, "r.test/x sha256:" + sum + " https"},
		{"r.test/x:1@sha256:" + sum, "r.test/x:1@sha256:" + sum, "r.test/x sha256:" + sum + " https"},
		{"localhost/x", "localhost/x:latest", "localhost/x latest http"},
		{"localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x latest http"},
		{"[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x latest http"},
		{"127.1.2.3:5000/x", "127.1.2.3:5000/x:latest", "127.1.2.3:5000/x latest http"},
		{"", "", ""},
		{"sha256:" + sum, "", ""},
		{"R.test/X", "", ""},
		{"r.test/x y", "", ""},
		{"../x", "", ""},
		{"r.test/x@sha256:0", "", ""},
		{"r.test/x@sha512:" + sum + sum, "", ""},
		{strings.Repeat("a/", 600) + "x", "", ""},
		{"http://r.test/x", "", ""},
		{"r.test/x?y", "", ""},
		{"-x", "", ""},
	} {
		full, asked, err := imagepull.Parse(tt.ref)
		if diff := cmp.Diff([2]string{tt.full, tt.asked}, [2]string{full, asked}); diff != "" || (err == nil) != (tt.full != "") {
			t.Errorf("%q: %v\n%s", tt.ref, err, diff)
		}
	}
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST": true, "127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"10.0.0.1": false, "192.168.1.1": false, "x.localhost": false, "127.0.0.1.evil.test": false, "localhost.": false, "0.0.0.0": false, "": false, "127.1": false,
	} {
		if got := imagepull.IsLoopback(host); got != want {
			t.Errorf("%q is loopback: %v", host, got)
		}
	}
}
