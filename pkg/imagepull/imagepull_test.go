package imagepull_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/image"
	"github.com/creel-sandbox/creel/pkg/imagepull"
)

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
	arch         = "amd64"
)

type obj = map[string]any

// fake is a registry that answers what a test has put there, true or not.
type fake struct {
	host string

	mu      sync.Mutex
	answers map[string]http.HandlerFunc
	asked   []string
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{answers: map[string]http.HandlerFunc{}}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	f.host = strings.TrimPrefix(srv.URL, "http://")
	f.answers["/v2/"] = func(http.ResponseWriter, *http.Request) {}
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.URL.Path)
	answer := f.answers[r.URL.Path]
	f.mu.Unlock()
	if answer == nil {
		http.NotFound(w, r)
		return
	}
	answer(w, r)
}

func (f *fake) blobs() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.asked {
		if strings.Contains(p, "/blobs/") {
			n++
		}
	}
	return n
}

func text(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// blob puts bytes there and gives a descriptor of them.
func (f *fake) blob(mediaType string, b []byte) obj {
	f.answers["/v2/x/blobs/"+digest(b)] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
	return obj{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
}

func (f *fake) manifest(ref, mediaType string, b []byte) obj {
	f.answers["/v2/x/manifests/"+ref] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaType)
		_, _ = w.Write(b)
	}
	return obj{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
}

// good is a manifest of an image that is all there.
func (f *fake) good() obj {
	layer := []byte("a layer, for whoever does not unpack it")
	cfg := text(obj{"architecture": arch, "os": "linux", "rootfs": obj{"type": "layers", "diff_ids": []string{digest(layer), digest(layer)}}})
	l := f.blob(typeLayer, layer)
	return obj{"schemaVersion": 2, "mediaType": typeManifest, "config": f.blob(typeConfig, cfg), "layers": []obj{l, l}}
}

func (f *fake) open(t *testing.T, ref string) (*imagepull.Image, error) {
	t.Helper()
	t.Setenv("REGISTRY_AUTH_FILE", "")
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	img, err := imagepull.Open(t.Context(), imagepull.Options{Ref: f.host + "/x" + ref, Arch: arch})
	if err == nil {
		t.Cleanup(img.Close)
	}
	return img, err
}

// blobStore is an import's store in memory.
type blobStore map[string][]byte

func (s blobStore) Put(_ context.Context, r io.Reader, size int64) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, size))
	if err == nil && int64(len(b)) != size {
		err = io.ErrUnexpectedEOF
	}
	s[digest(b)] = b
	return digest(b), err
}

func (s blobStore) Open(_ context.Context, d string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s[d])), nil
}

// TestArchive: what is pulled is what an import reads, and its bounds are the
// import's. A layer that is there twice is fetched once.
func TestArchive(t *testing.T) {
	f := newFake(t)
	raw := text(f.good())
	f.manifest("latest", typeManifest, raw)
	img, err := f.open(t, "")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := img.Archive(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	got, err := image.ReadArchive(t.Context(), bytes.NewReader(out.Bytes()), arch, image.DefaultLimits, blobStore{})
	if err != nil {
		t.Fatal(err)
	}
	if got.ManifestDigest != digest(raw) || got.ManifestDigest != img.Digest || len(got.Layers) != 2 || img.Ref != f.host+"/x:latest" {
		t.Errorf("pulled %+v, read %+v", img, got)
	}
	if n := f.blobs(); n != 2 {
		t.Errorf("%d blobs were asked for; want the configuration and one layer", n)
	}
	if out.Len() < int(img.Size) || out.Len() > int(img.Size)+8<<10 {
		t.Errorf("%d bytes announced, %d written", img.Size, out.Len())
	}
	bounds := []int64{imagepull.MaxJSON, imagepull.MaxLayers, imagepull.MaxBytes}
	lim := image.DefaultLimits
	if diff := cmp.Diff([]int64{lim.JSON, int64(lim.Layers), lim.Archive}, bounds); diff != "" {
		t.Errorf("bounds, those of an import (-) and of a pull (+):\n%s", diff)
	}
}

// TestRefused: what metadata says is checked before a layer is asked for.
func TestRefused(t *testing.T) {
	set := func(path string, v any) func(*fake, obj) []byte {
		return func(_ *fake, m obj) []byte {
			at := m
			keys := strings.Split(path, ".")
			for _, k := range keys[:len(keys)-1] {
				at = at[k].(obj)
			}
			at[keys[len(keys)-1]] = v
			return text(m)
		}
	}
	layer := func(v obj) func(*fake, obj) []byte {
		return func(_ *fake, m obj) []byte {
			l := obj{"mediaType": typeLayer, "digest": digest([]byte("other")), "size": 5}
			maps.Copy(l, v)
			m["layers"] = append(m["layers"].([]obj), l)
			return text(m)
		}
	}
	for _, tt := range []struct {
		name string
		do   func(*fake, obj) []byte
		want string
	}{
		{"no JSON", func(*fake, obj) []byte { return []byte("<html>") }, "manifest:"},
		{"empty", func(*fake, obj) []byte { return []byte("{}") }, "configuration of media type"},
		{"nothing in it", set("layers", []obj{}), "0 layers"},
		{"too many layers", func(_ *fake, m obj) []byte {
			l := m["layers"].([]obj)
			for range 127 {
				l = append(l, l[0])
			}
			m["layers"] = l
			return text(m)
		}, "129 layers"},
		{"a manifest without an end", func(_ *fake, m obj) []byte { return append(text(m), bytes.Repeat([]byte{' '}, 5<<20)...) }, "too large"},
		{"a chart", set("config.mediaType", "application/vnd.cncf.helm.config.v1+json"), "is it an image?"},
		{"of another type than its own word", set("mediaType", "application/vnd.evil"), "is it an image?"},
		{"a huge configuration", set("config.size", 5<<20), "at most"},
		{"a negative configuration", set("config.size", -1), "at most"},
		{"a huge layer", layer(obj{"size": 17 << 30}), "more than 17179869184 bytes"},
		{"a negative layer", layer(obj{"size": -5}), "more than"},
		{"a foreign layer", layer(obj{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}), "media type"},
		{"a layer from elsewhere", layer(obj{"urls": []string{"http://169.254.169.254/"}}), "from elsewhere"},
		{"a configuration from elsewhere", set("config.urls", []string{"https://evil.test/"}), "from elsewhere"},
		{"a layer of two sizes", func(_ *fake, m obj) []byte {
			l := m["layers"].([]obj)
			m["layers"] = append(l, obj{"mediaType": typeLayer, "digest": l[0]["digest"], "size": 1})
			return text(m)
		}, "two sizes"},
		{"a digest of another kind", layer(obj{"digest": "sha512:" + strings.Repeat("a", 128)}), "SHA-256"},
		{"no digest", layer(obj{"digest": "sha256:../../../etc"}), "manifest:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.manifest("latest", typeManifest, tt.do(f, f.good()))
			_, err := f.open(t, "")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if n := f.blobs(); n > 0 {
				t.Errorf("%d blobs were asked for: %q", n, f.asked)
			}
		})
	}
}

// TestIndex finds the image for a processor, by way of several indexes.
func TestIndex(t *testing.T) {
	f := newFake(t)
	good := text(f.good())
	at := func(d obj, os, arch string) obj {
		d["platform"] = obj{"os": os, "architecture": arch}
		return d
	}
	ref := f.manifest(digest(good), typeManifest, good)
	index := func(name string, ms ...obj) obj {
		b := text(obj{"schemaVersion": 2, "mediaType": typeIndex, "manifests": ms})
		f.manifest(digest(b), typeIndex, b)
		return f.manifest(name, typeIndex, b)
	}
	missing := obj{"mediaType": typeManifest, "digest": digest([]byte("missing")), "size": 7}
	inner := index("inner", at(missing, "windows", arch), at(missing, "unknown", "unknown"), at(ref, "linux", arch))
	outer := index("outer", inner)
	index("deeper", index("deep", outer))
	index("none", at(missing, "linux", "s390x"))
	index("many", make([]obj, 65)...)
	wrong := f.good()
	cfg := text(obj{"architecture": "s390x", "os": "linux"})
	wrong["config"] = f.blob(typeConfig, cfg)
	f.manifest("wrong", typeManifest, text(wrong))
	for _, tt := range []struct{ ref, want string }{
		{":inner", ""},
		{":outer", ""},
		{"@" + outer["digest"].(string), ""},
		{":deep", ""},
		{":deeper", "nested deeper than 4"},
		{":none", "not for linux/amd64"},
		{":many", "index"},
		{":wrong", `for "linux"/"s390x"`},
	} {
		img, err := f.open(t, tt.ref)
		switch {
		case tt.want != "":
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: error %v, want one with %q", tt.ref, err, tt.want)
			}
		case err != nil || img.Digest != digest(good):
			t.Errorf("%s: %+v, %v", tt.ref, img, err)
		}
	}
}

// TestLies: a digest is what was asked for, to the last byte.
func TestLies(t *testing.T) {
	lie := func(b []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", typeManifest)
			w.(http.Flusher).Flush() // no length in front
			_, _ = w.Write(b)
		}
	}
	for _, tt := range []struct {
		name, path string
		change     func([]byte) []byte
		want       string
	}{
		{"another manifest", "manifests", func(b []byte) []byte { return append(b, ' ') }, "does not match"},
		{"a configuration with one bit changed", "config", flip, "verifying"},
		{"a shorter configuration", "config", func(b []byte) []byte { return b[1:] }, "verifying"},
		{"a layer with one bit changed", "layer", flip, "layer 1 of 1"},
		{"a shorter layer", "layer", func(b []byte) []byte { return b[1:] }, "layer 1 of 1"},
		// Its first bytes are what was asked for; the others are not read.
		{"a longer layer", "layer", func(b []byte) []byte { return append(b, 'x') }, ""},
		{"a layer without an end", "layer", func(b []byte) []byte { return append(b, make([]byte, 64<<20)...) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			m := f.good()
			raw := text(m)
			f.manifest(digest(raw), typeManifest, raw)
			path := "/v2/x/manifests/" + digest(raw)
			switch tt.path {
			case "config":
				path = "/v2/x/blobs/" + m["config"].(obj)["digest"].(string)
			case "layer":
				path = "/v2/x/blobs/" + m["layers"].([]obj)[0]["digest"].(string)
			}
			w := httptest.NewRecorder()
			f.answers[path](w, nil)
			f.answers[path] = lie(tt.change(w.Body.Bytes()))
			img, err := f.open(t, "@"+digest(raw))
			var out bytes.Buffer
			if err == nil {
				err = img.Archive(t.Context(), &out)
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			if _, rerr := image.ReadArchive(t.Context(), &out, arch, image.DefaultLimits, blobStore{}); (rerr == nil) != (tt.want == "") {
				t.Errorf("what was written, as an import reads it: %v", rerr)
			}
		})
	}
}

func flip(b []byte) []byte {
	b[len(b)/2] ^= 1
	return b
}

// TestLeadAstray: a registry does not lead the caller to plain HTTP elsewhere,
// round in circles, or away without an explanation.
func TestLeadAstray(t *testing.T) {
	to := func(url string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", url)
			w.WriteHeader(http.StatusTemporaryRedirect)
		}
	}
	status := func(code int, header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if header != "" {
				w.Header().Set("WWW-Authenticate", header)
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	const path = "/v2/x/manifests/latest"
	for _, tt := range []struct {
		name, path string
		answer     http.HandlerFunc
		code       api.Code
		want       string
	}{
		{"plain HTTP elsewhere", path, to("http://registry.invalid/?X-Signature=very-secret"), api.CodeUnavailable, "plain HTTP"},
		{"plain HTTP below localhost", path, to("http://x.localhost/"), api.CodeUnavailable, "plain HTTP"},
		{"a cloud's metadata", path, to("http://169.254.169.254/latest"), api.CodeUnavailable, "denied"},
		{"a file", path, to("file:///etc/passwd"), api.CodeUnavailable, "plain HTTP"},
		{"in circles", path, to(path), api.CodeUnavailable, "ask more than"},
		{"not there", path, nil, api.CodeNotFound, "has no"},
		{"private", path, status(401, "", ""), api.CodeDenied, "none were found"},
		{"too often", path, status(429, "", `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`), api.CodeExhausted, "slow down"},
		{"tokens from elsewhere", "/v2/", status(401, `Bearer realm="http://169.254.169.254/token"`, ""), api.CodeUnavailable, "private or link-local"},
		{"a long story", path, status(418, "", strings.Repeat("tea ", 10000)), api.CodeUnavailable, "bytes)"},
		{"codes for a terminal", path, status(418, "", "\x1b[2J\x1b]0;x\a"), api.CodeUnavailable, "418"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.answers[tt.path] = tt.answer
			_, err := f.open(t, "")
			if err == nil || api.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 900 {
				t.Errorf("%s: %v; want %s with %q", api.CodeOf(err), err, tt.code, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "very-secret") {
				t.Errorf("a signed address is told: %v", err)
			}
		})
	}
}

// TestCancel: a pull that is not wanted any more ends, and says why.
func TestCancel(t *testing.T) {
	f := newFake(t)
	m := f.good()
	f.manifest("latest", typeManifest, text(m))
	reached := make(chan struct{})
	layer := "/v2/x/blobs/" + m["layers"].([]obj)[0]["digest"].(string)
	f.answers[layer] = func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "a")
		w.(http.Flusher).Flush()
		close(reached)
		<-r.Context().Done()
	}
	img, err := f.open(t, "")
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-reached
		cancel(stop)
	}()
	if err := img.Archive(ctx, io.Discard); !errors.Is(err, stop) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestWriteFails: who does not take the archive is not the registry's fault.
func TestWriteFails(t *testing.T) {
	f := newFake(t)
	f.manifest("latest", typeManifest, text(f.good()))
	full := errors.New("full")
	for most := range 6 {
		img, err := f.open(t, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := img.Archive(t.Context(), &failing{left: most << 9, err: full}); !errors.Is(err, full) || strings.Contains(err.Error(), "registry") {
			t.Errorf("after %d bytes: %v", most<<9, err)
		}
	}
}

type failing struct {
	left int
	err  error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, f.err
	}
	return len(p), nil
}

// TestTLS: a certificate is checked unless the caller said not to.
func TestTLS(t *testing.T) {
	f := newFake(t)
	f.manifest("latest", typeManifest, text(f.good()))
	srv := httptest.NewTLSServer(f)
	t.Cleanup(srv.Close)
	f.host = strings.TrimPrefix(srv.URL, "https://")
	_, err := f.open(t, "")
	var e *api.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, "SSL_CERT_FILE") {
		t.Errorf("an unknown certificate: %v", err)
	}
	img, err := imagepull.Open(t.Context(), imagepull.Options{Ref: f.host + "/x", Arch: arch, SkipTLSVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	img.Close()
}

// TestBearer: a password goes to who issues tokens, and the token to the
// registry alone.
func TestBearer(t *testing.T) {
	f := newFake(t)
	m := f.good()
	f.manifest("latest", typeManifest, text(m))
	plain := f.answers
	f.answers = map[string]http.HandlerFunc{}
	elsewhere := newFake(t)
	check := func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer token-1" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, f.host))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, r)
		}
	}
	for p, h := range plain {
		f.answers[p] = check(h)
	}
	layer := "/v2/x/blobs/" + m["layers"].([]obj)[0]["digest"].(string)
	var leaked []string
	elsewhere.answers["/layer"] = func(w http.ResponseWriter, r *http.Request) {
		leaked = append(leaked, r.Header.Get("Authorization"))
		plain[layer](w, r)
	}
	f.answers[layer] = check(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://localhost:"+elsewhere.host[strings.LastIndexByte(elsewhere.host, ':')+1:]+"/layer", http.StatusTemporaryRedirect)
	})
	answer := `{"token":"token-1"}`
	f.answers["/token"] = func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "pw" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, answer)
	}
	file := authFile(t, fmt.Sprintf(`{"auths":{%q:{"username":"me","password":"pw"}}}`, f.host))
	open := func() (*imagepull.Image, error) {
		return imagepull.Open(t.Context(), imagepull.Options{Ref: f.host + "/x", Arch: arch, AuthFile: file})
	}
	img, err := open()
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if err := img.Archive(t.Context(), io.Discard); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{""}, leaked); diff != "" {
		t.Errorf("what a registry redirects to is told:\n%s", diff)
	}
	answer = `{"refresh_token":"very-secret"}`
	if _, err := open(); err == nil || strings.Contains(err.Error(), "very-secret") {
		t.Errorf("no token: %v", err)
	}
}
