package truststore_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress/authority"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/truststore"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	a, err1 := authority.New(time.Now)
	b, err2 := authority.New(time.Now)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	roots := "# a comment\n" + string(a.PEM()) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	for range 2 { // and again
		if err := truststore.Write(dir, roots, b.DER()); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if want := string(a.PEM()) + string(b.PEM()); string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 2 {
		t.Error(names, err)
	}
	for _, n := range names {
		if st, err := os.Stat(n); err != nil || st.Mode().Perm() != 0o444 {
			t.Errorf("%s: %v, %v", n, st.Mode(), err)
		}
	}
	if err := truststore.Write(filepath.Join(dir, "none"), roots); err == nil {
		t.Error("a directory that is not there is written to")
	}
	if err := truststore.Write(dir, strings.Repeat("x", 9<<20)); err == nil {
		t.Error("9 MiB are taken")
	}
}

// TestJava: Java's own tool reads the store.
func TestJava(t *testing.T) {
	kerneltest.Require(t, kerneltest.Java)
	dir := t.TempDir()
	a, err := authority.New(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if err := truststore.Write(dir, "", a.DER()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "keytool", "-exportcert", "-rfc", "-alias", "creel-0", "-keystore", filepath.Join(dir, "ca.jks"), "-storepass", "changeit").CombinedOutput()
	b, _ := pem.Decode(out)
	if err != nil || b == nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := x509.ParseCertificate(b.Bytes); err != nil || string(b.Bytes) != string(a.DER()) {
		t.Errorf("not the certificate: %v", err)
	}
}

func TestEnv(t *testing.T) {
	env := truststore.Env("/run/x")
	for _, name := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS"} {
		if env[name] != "/run/x/ca.pem" {
			t.Errorf("%s=%s", name, env[name])
		}
	}
	if !strings.Contains(env["JAVA_TOOL_OPTIONS"], "trustStore=/run/x/ca.jks ") {
		t.Errorf("%s", env["JAVA_TOOL_OPTIONS"])
	}
}
