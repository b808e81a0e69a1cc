package integration_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/creel-sandbox/creel/integration/lab"
)

const (
	pullUser   = "agent-fetcher"
	pullSecret = "correct-horse-battery"
)

// remoteRegistry is a registry on loopback that wants a password.
type remoteRegistry struct {
	t    *testing.T
	host string
	real http.Handler

	mu    sync.Mutex
	blobs int               // that were fetched
	asked int               // requests
	lies  map[string][]byte // answers by the end of a path, instead of what it has
	seen  []string          // where the secret was to be seen
	stuck string            // the end of a path whose answer has no end

	reached chan struct{} // gets one for each that is stuck
}

func newRegistry(t *testing.T) *remoteRegistry {
	t.Helper()
	r := &remoteRegistry{t: t, real: registry.New(registry.Logger(log.New(io.Discard, "", 0))), lies: map[string][]byte{}, reached: make(chan struct{}, 8)}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *remoteRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if user, password, _ := req.BasicAuth(); user != pullUser || password != pullSecret {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	stuck := r.stuck != "" && strings.HasSuffix(req.URL.Path, r.stuck)
	r.mu.Unlock()
	if stuck {
		_, _ = io.WriteString(w, "the first bytes")
		w.(http.Flusher).Flush()
		r.reached <- struct{}{}
		<-req.Context().Done()
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	if strings.Contains(req.URL.Path, "/blobs/sha256:") {
		r.blobs++
	}
	r.seen = append(r.seen, secretInProc()...)
	for end, answer := range r.lies {
		if strings.HasSuffix(req.URL.Path, end) {
			_, _ = w.Write(answer)
			return
		}
	}
	r.real.ServeHTTP(w, req)
}

// counts gives what was asked since the last time.
func (r *remoteRegistry) counts() (asked, blobs int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	asked, blobs = r.asked, r.blobs
	r.asked, r.blobs = 0, 0
	return asked, blobs
}

// lie has it answer something else; nil ends that.
func (r *remoteRegistry) lie(end string, answer []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lies[end] = answer; answer == nil {
		delete(r.lies, end)
	}
}

// secretInProc lists the processes that have the password on their line,
// plain or as it is sent.
func secretInProc() (where []string) {
	sent := base64.StdEncoding.EncodeToString([]byte(pullUser + ":" + pullSecret))
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		b, _ := os.ReadFile(l)
		if bytes.Contains(b, []byte(pullSecret)) || bytes.Contains(b, []byte(sent)) {
			where = append(where, fmt.Sprintf("%s: %q", l, b))
		}
	}
	return where
}

// put stores one thing in the registry.
func (r *remoteRegistry) put(method, path, mediaType string, body []byte) {
	r.t.Helper()
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.real.ServeHTTP(w, req)
	if w.Code/100 != 2 {
		r.t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

// push stores the image of an archive as team/tools:1, in an index with others.
func (r *remoteRegistry) push(archive []byte) (index, manifest, layer string) {
	r.t.Helper()
	const repo, tag = "team/tools", "1"
	files := map[string][]byte{}
	for t := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := t.Next()
		if err == io.EOF { //nolint:errorlint // as tar returns it
			break
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(t); err != nil {
			r.t.Fatal(err)
		}
		if digest, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			r.put("POST", "/v2/"+repo+"/blobs/uploads/?digest=sha256:"+digest, "application/octet-stream", files[h.Name])
		}
	}
	var idx struct{ Manifests []struct{ Digest string } }
	var m struct{ Layers []struct{ Digest string } }
	decode := func(b []byte, v any) {
		if err := json.Unmarshal(b, v); err != nil {
			r.t.Fatal(err)
		}
	}
	decode(files["index.json"], &idx)
	manifest = idx.Manifests[0].Digest
	raw := files["blobs/sha256/"+strings.TrimPrefix(manifest, "sha256:")]
	decode(raw, &m)
	const manifestType, indexType = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	r.put("PUT", "/v2/"+repo+"/manifests/"+manifest, manifestType, raw)
	other := []byte(`{"schemaVersion":2,"mediaType":"` + manifestType + `","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + manifest + `","size":2},"layers":[]}`)
	otherSum := sha256.Sum256(other)
	otherDigest := "sha256:" + hex.EncodeToString(otherSum[:])
	r.put("PUT", "/v2/"+repo+"/manifests/"+otherDigest, manifestType, other)
	list := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"mips64"}},
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}},
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"unknown","architecture":"unknown"}}]}`, indexType,
		manifestType, otherDigest, len(other), manifestType, manifest, len(raw), goruntime.GOARCH, manifestType, otherDigest, len(other))
	r.put("PUT", "/v2/"+repo+"/manifests/"+tag, indexType, list)
	sum := sha256.Sum256(list)
	return "sha256:" + hex.EncodeToString(sum[:]), manifest, m.Layers[0].Digest
}

// authFile writes a file as podman login does, for everybody to read.
func (r *remoteRegistry) authFile(password string) string {
	r.t.Helper()
	dir := r.t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "auth.json")
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, base64.StdEncoding.EncodeToString([]byte(pullUser+":"+password)))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// pullLab is a lab with creel-pull where an installed creel finds it.
func pullLab(t *testing.T) *lab.Lab {
	t.Helper()
	l := lab.New(t, lab.Options{})
	l.Copy("creel-pull", filepath.Join(l.Dir, "creel-pull"))
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return l
}

func tinyWithFile(t *testing.T, text string) []byte {
	t.Helper()
	return bytesOf(t, lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/pulled", Mode: 0o644}, []byte(text))
	}))
}

// TestImagePull pulls as a caller that is not root, and runs what it pulled.
func TestImagePull(t *testing.T) {
	l := pullLab(t)
	r := newRegistry(t)
	index, manifest, layer := r.push(tinyWithFile(t, "one\n"))
	auth, wrong := r.authFile(pullSecret), r.authFile("guess")
	nobody := &syscall.Credential{Uid: stranger, Gid: stranger}
	creel := func(code int, says string, args ...string) string {
		t.Helper()
		out, errOut, got := l.CreelAs(nobody, "", args...)
		if got != code || !strings.Contains(out+errOut, says) {
			t.Errorf("creel %q: exit %d, want %d with %q: %s%s", args, got, code, says, out, errOut)
		}
		if strings.Contains(out+errOut, pullSecret) {
			t.Errorf("creel %q shows the password: %s%s", args, out, errOut)
		}
		return out
	}
	ref, name := r.host+"/team/tools:1", r.host+"/team/tools"
	pull := []string{"image", "pull", "--authfile", auth}

	creel(1, "refuses the credentials from "+wrong, "image", "pull", "--authfile", wrong, ref)
	creel(1, "none were found", "image", "pull", ref)
	creel(1, "no such file", "image", "pull", "--authfile", "/nowhere", ref)
	creel(1, "has no "+name+":2", append(pull, name+":2")...)
	creel(1, "has no "+name+"@sha256:0000", append(pull, name+"@sha256:"+strings.Repeat("0", 64))...)
	creel(1, "the box has an image", append(pull, "base")...)
	creel(2, "a digest alone", append(pull, manifest)...)
	if asked, blobs := r.counts(); blobs != 0 {
		t.Errorf("%d requests, of them %d for blobs, for nothing", asked, blobs)
	}
	if list := creel(0, "base", "image", "ls"); strings.Contains(list, name) {
		t.Errorf("after pulls that failed: %s", list)
	}

	if out := creel(0, "", append(pull, ref)...); out != ref+" "+manifest+"\n" {
		t.Errorf("pull: %q", out)
	}
	if _, blobs := r.counts(); blobs != 2 {
		t.Errorf("%d blobs fetched; want its configuration and layer", blobs)
	}
	if out := creel(0, "", "run", "--rm", "--image", ref, "--", "/bin/cat", "/etc/pulled"); out != "one\n" {
		t.Errorf("what was pulled is %q", out)
	}
	creel(0, "here already", append(pull, ref)...)
	creel(0, "here already", append(pull, name+"@"+index)...)
	creel(0, "here already", append(pull, name+"@"+manifest)...)
	if _, blobs := r.counts(); blobs != 3 {
		t.Errorf("%d blobs fetched of what is here; want three configurations", blobs)
	}
	if img := imageOf(t, creel(0, "", "image", "inspect", name+"@"+index)); img.Owner != stranger || img.Digest != manifest {
		t.Errorf("by digest it is %+v", img)
	}
	if other, errOut, code := l.CreelAs(&syscall.Credential{Uid: stranger - 1, Gid: stranger - 1}, "", "image", "inspect", ref); code == 0 {
		t.Errorf("another caller sees it: %s%s", other, errOut)
	}

	// A registry that is not what it was when the digest was written down.
	creel(0, "", "image", "rm", ref, name+"@"+index, name+"@"+manifest)
	kept := len(storedBlobs(t, l))
	r.lie("/manifests/"+index, []byte(`{"schemaVersion":2}`))
	creel(1, "does not match", append(pull, name+"@"+index)...)
	r.lie("/manifests/"+index, nil)
	r.lie("/manifests/"+manifest, []byte(`{"schemaVersion":2}`))
	creel(1, "does not match", append(pull, ref)...)
	r.lie("/manifests/"+manifest, nil)
	have := tinyWithFile(t, "two\n")
	for name, lie := range map[string][]byte{"short": []byte("short"), "long": have, "same length": bytes.Repeat([]byte{'x'}, layerSize(t, tinyWithFile(t, "one\n"), layer))} {
		r.lie("/blobs/"+layer, lie)
		creel(1, "layer 1 of 1", append(pull, ref)...)
		if list := creel(0, "base", "image", "ls"); strings.Contains(list, "team/tools") {
			t.Errorf("a layer that is a lie (%s) made an image: %s", name, list)
		}
	}
	r.lie("/blobs/"+layer, nil)
	l.Eventually("nothing of the lies is in the store", 20*time.Second, func() error {
		if n := len(storedBlobs(t, l)); n != kept {
			return fmt.Errorf("%d blobs in the store, %d before them", n, kept)
		}
		return nil
	})
	if len(r.seen) > 0 {
		t.Errorf("the password is on a command line: %q", r.seen)
	}
	noSecret(t, l)
}

func layerSize(t *testing.T, archive []byte, digest string) int {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", digest, err)
		}
		if h.Name == "blobs/sha256/"+strings.TrimPrefix(digest, "sha256:") {
			return int(h.Size)
		}
	}
}

// noSecret: nothing of the daemon's has the password.
func noSecret(t *testing.T, l *lab.Lab) {
	t.Helper()
	sent := base64.StdEncoding.EncodeToString([]byte(pullUser + ":" + pullSecret))
	for _, path := range []string{l.Log, filepath.Join(l.Dir, "state", "state.db"), filepath.Join(l.Dir, "state", "containerd", "containerd.log")} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(b, []byte(pullSecret)) || bytes.Contains(b, []byte(sent)) || bytes.Contains(b, []byte(pullUser)) {
			t.Errorf("the password or the user is in %s", path)
		}
	}
}
