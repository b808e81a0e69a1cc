package integration_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestIdentity: a server outside knows each sandbox by its certificate, whatever of
// creel was killed before, and nobody by another's.
func TestIdentity(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock, kerneltest.BaseImage, kerneltest.Go)
	web := lab.NewSite(t)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath(), Config: "[identity]\ntrust_domain = \"box.example.com\"\n"})
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "svidclient"), "./svidclient")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	roots, err := os.ReadFile(web.Roots)
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "roots.pem"), roots, 0o644), os.Chmod(dir, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}

	// The server is told nothing but the bundle.
	text, errOut, code := l.Creel("identity", "bundle")
	if code != 0 {
		t.Fatal(errOut)
	}
	bundle, err := x509bundle.Parse(spiffeid.RequireTrustDomainFromString("box.example.com"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	port := mutual(t, web, bundle)

	ids := map[string]string{}
	for _, name := range []string{"first", "second"} {
		out, errOut, code := l.Creel("run", "-d", "--name", name, "--agent", "agent-"+name, "--allow", fmt.Sprintf("tls host.creel.internal:%d", port), "-v", dir+":/opt/svid:ro")
		if code != 0 {
			t.Fatal(errOut)
		}
		ids[name] = strings.TrimSpace(out)
	}
	spiffe := func(name string) string {
		return fmt.Sprintf("spiffe://box.example.com/caller/root/agent/agent-%s/%s", name, ids[name])
	}
	proves := func(when string) {
		t.Helper()
		for name, id := range ids {
			out, errOut, code := l.Creel("exec", id, "--", "/opt/svid/svidclient", fmt.Sprintf("https://host.creel.internal:%d/", port), "/opt/svid/roots.pem")
			if want := "you are " + spiffe(name) + "\n"; out != want || code != 0 {
				t.Errorf("%s: %s: got %q, %q, want %q", when, name, out, errOut, want)
			}
			// By curl, with what plain HTTP gives.
			out, errOut, code = l.Creel("exec", id, "--", "sh", "-c", fmt.Sprintf(`cd /tmp && curl -sS -H 'workload.spiffe.io: true' -o me.pem http://127.0.0.1:3129/v1/svid.pem && curl -sS --cacert /opt/svid/roots.pem --cert me.pem https://host.creel.internal:%d/`, port))
			if want := "you are " + spiffe(name) + "\n"; out != want || code != 0 {
				t.Errorf("%s: %s by curl: got %q, %q, want %q", when, name, out, errOut, want)
			}
		}
	}
	proves("at first")
	l.KillProcess(lab.Egress, ids["first"])
	proves("after its creel-egress was killed")
	l.Kill()
	l.KillProcess(lab.Egress, ids["first"])
	l.Start()
	proves("after both were killed")

	// Who has no certificate of a sandbox's is nobody, and the one of another box
	// is none.
	if out, _, code := l.Creel("exec", ids["first"], "--", "curl", "-sS", "--cacert", "/opt/svid/roots.pem", fmt.Sprintf("https://host.creel.internal:%d/", port)); code == 0 {
		t.Errorf("without a certificate: %q", out)
	}
	if out, _, _ := l.Creel("exec", ids["first"], "--", "curl", "-sS", "http://127.0.0.1:3129/v1/svid"); !strings.Contains(out, "workload.spiffe.io: true") || strings.Contains(out, "KEY") {
		t.Errorf("without the header: %q", out)
	}
	out, _, _ := l.Creel("inspect", ids["first"])
	var shown struct{ Identity string }
	if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.Identity != spiffe("first") {
		t.Errorf("inspect: %q, %v", shown.Identity, err)
	}
	// A sandbox that reaches nothing has none.
	out, errOut, _ = l.Creel("run", "--rm", "--", "sh", "-c", "echo \"[$SPIFFE_ENDPOINT_SOCKET]\"; curl -sS -m 5 -H 'workload.spiffe.io: true' http://127.0.0.1:3129/v1/svid")
	if !strings.HasPrefix(out, "[]\n") || !strings.Contains(out+errOut, "curl: (7)") {
		t.Errorf("without a network: %q %q", out, errOut)
	}
	awaitAudit(t, l, "that it was issued", func(r map[string]any) bool {
		detail, _ := r["detail"].(map[string]any)
		return r["action"] == "identity.issued" && detail["spiffe_id"] == spiffe("second") && r["sandbox"] == ids["second"]
	})
	verifyAudit(t, l)

	// What an agent that is revoked had, it has no more.
	if _, errOut, code := l.Creel("agent", "revoke", "agent-first"); code != 0 {
		t.Fatal(errOut)
	}
	if out, errOut, code := l.Creel("run", "--rm", "--agent", "agent-first", "--allow", "a.example.com", "--", "true"); code == 0 {
		t.Errorf("a revoked agent ran: %q %q", out, errOut)
	}
}

// mutual serves who has a certificate of the bundle's, and tells each who it is, at
// the port that is given.
func mutual(t *testing.T, web *lab.Site, bundle *x509bundle.Bundle) int {
	t.Helper()
	cfg := tlsconfig.MTLSWebServerConfig(&web.Certificate, bundle, tlsconfig.AuthorizeAny())
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "you are %s\n", r.TLS.PeerCertificates[0].URIs[0])
	})}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.Serve(ln) }()
	return ln.Addr().(*net.TCPAddr).Port
}
