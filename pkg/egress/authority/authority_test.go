package authority_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/authority"
)

func newAt(t *testing.T, at *time.Time) (*authority.Authority, *x509.CertPool) {
	t.Helper()
	a, err := authority.New(func() time.Time { return *at })
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("not PEM")
	}
	return a, pool
}

func TestCertificate(t *testing.T) {
	now := time.Now()
	a, pool := newAt(t, &now)
	long := egress.Name(strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + ".example.com")
	for _, n := range []egress.Name{"api.example.com", "xn--bcher-kva.example", long} {
		c, err := a.Certificate(n)
		if err != nil {
			t.Fatal(err)
		}
		opts := x509.VerifyOptions{Roots: pool, DNSName: string(n), CurrentTime: now}
		if _, err := c.Leaf.Verify(opts); err != nil {
			t.Errorf("%s: %v", n, err)
		}
		for what, change := range map[string]func(*x509.VerifyOptions){
			"another name": func(o *x509.VerifyOptions) { o.DNSName = "a." + string(n) },
			"a client":     func(o *x509.VerifyOptions) { o.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
			"code":         func(o *x509.VerifyOptions) { o.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} },
			"two days on":  func(o *x509.VerifyOptions) { o.CurrentTime = now.Add(48 * time.Hour) },
			"nobody's":     func(o *x509.VerifyOptions) { o.Roots = x509.NewCertPool() },
		} {
			o := opts
			change(&o)
			if _, err := c.Leaf.Verify(o); err == nil {
				t.Errorf("%s is good for %s", n, what)
			}
		}
		if again, err := a.Certificate(n); err != nil || again != c {
			t.Errorf("%s is made twice, %v", n, err)
		}
	}
	for _, n := range []egress.Name{"", "127.0.0.1", "A.example.com", "*.example.com", "localhost", "a.example.com\x00.evil.example"} {
		if c, err := a.Certificate(n); err == nil {
			t.Errorf("%q has %v", n, c.Leaf.DNSNames)
		}
	}
}

func TestAges(t *testing.T) {
	now := time.Now()
	a, pool := newAt(t, &now)
	first, err := a.Certificate("a.example")
	if err != nil {
		t.Fatal(err)
	}
	if a.Age().Truncate(time.Second) != 0 {
		t.Errorf("a new one is %v old", a.Age())
	}
	for range 2 * 30 {
		now = now.Add(12*time.Hour - time.Minute)
		c, err := a.Certificate("a.example")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "a.example", CurrentTime: now}); err != nil {
			t.Errorf("%v on: %v", now.Sub(first.Leaf.NotBefore), err)
		}
		if age := now.Sub(first.Leaf.NotBefore) - 5*time.Minute; (a.Age() - age).Abs() > time.Minute {
			t.Errorf("%v on it is %v old", age, a.Age())
		}
	}
	now = now.Add(24 * time.Hour)
	if c, err := a.Certificate("a.example"); err == nil {
		t.Errorf("it has expired, and yet there is one until %v", c.Leaf.NotAfter)
	}
}

// TestParse: a Secret is the same authority, and nothing else is one.
func TestParse(t *testing.T) {
	now := time.Now()
	a, pool := newAt(t, &now)
	secret, err := a.Secret()
	if err != nil {
		t.Fatal(err)
	}
	b, err := authority.Parse(secret, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	c, err := b.Certificate("a.example")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "a.example", CurrentTime: now}); err != nil {
		t.Error(err)
	}
	other, _ := newAt(t, &now)
	theirs, err := other.Secret()
	if err != nil {
		t.Fatal(err)
	}
	_, key := pem.Decode(theirs)
	for name, bad := range map[string][]byte{
		"nothing": nil, "no key": a.PEM(), "no certificate": key, "twice": append(bytes.Clone(secret), theirs...),
		"another's key": append(a.PEM(), key...), "cut": secret[:len(secret)-40], "no PEM": []byte("x"),
	} {
		if _, err := authority.Parse(bad, time.Now); err == nil {
			t.Errorf("%s is one", name)
		}
	}
}

// TestOnlyNames: it cannot sign for an address, nor make another authority.
func TestOnlyNames(t *testing.T) {
	now := time.Now()
	a, _ := newAt(t, &now)
	b, _ := pem.Decode(a.PEM())
	cert, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.IsCA || !cert.MaxPathLenZero || cert.KeyUsage != x509.KeyUsageCertSign || len(cert.ExcludedIPRanges) != 2 || bytes.Contains(a.PEM(), []byte("PRIVATE")) {
		t.Errorf("%+v", cert)
	}
	other, _ := newAt(t, &now)
	if bytes.Equal(a.PEM(), other.PEM()) {
		t.Error("two are the same")
	}
}

// TestOpenSSL: what most programs verify by takes the certificates.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl")
	}
	now := time.Now()
	a, _ := newAt(t, &now)
	c, err := a.Certificate("api.example.com")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca, leaf := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "leaf.pem")
	for path, b := range map[string][]byte{ca: a.PEM(), leaf: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for host, good := range map[string]bool{"api.example.com": true, "example.com": false} {
		out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", host, "-CAfile", ca, leaf).CombinedOutput()
		if (err == nil) != good {
			t.Errorf("%s: %v: %s", host, err, out)
		}
	}
}

func TestMany(t *testing.T) {
	now := time.Now()
	a, pool := newAt(t, &now)
	for i := range 1100 {
		c, err := a.Certificate(egress.Name(fmt.Sprintf("n%d.example", i)))
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now}); err != nil {
				t.Error(err)
			}
		}
	}
}
