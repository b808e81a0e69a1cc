package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Site is an HTTPS server on the box's loopback, which host.creel.internal is.
type Site struct {
	*http.ServeMux
	Port  int
	Roots string // a file, for egress.roots
	// Certificate is what it shows, signed by itself.
	Certificate tls.Certificate

	mu   sync.Mutex
	seen []*http.Request
}

// NewSite starts one that lives as long as the test.
func NewSite(t *testing.T) *Site {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the test's own"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"host.creel.internal"}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := &Site{ServeMux: http.NewServeMux(), Roots: filepath.Join(t.TempDir(), "roots.pem"), Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}}
	var text bytes.Buffer
	if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Roots, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Port = l.Addr().(*net.TCPAddr).Port
	srv := &http.Server{
		ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{s.Certificate}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.seen = append(s.seen, r.Clone(t.Context()))
			s.mu.Unlock()
			s.ServeHTTP(w, r)
		}),
	}
	t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.ServeTLS(l, "", "") }()
	return s
}

// Requests are those that came since the last call.
func (s *Site) Requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// URL is that of a path, as a sandbox names it.
func (s *Site) URL(path string) string {
	return fmt.Sprintf("https://host.creel.internal:%d%s", s.Port, path)
}
