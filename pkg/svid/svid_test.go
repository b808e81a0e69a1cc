package svid_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/creel-sandbox/creel/pkg/svid"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func open(t *testing.T, dir, domain string, c *clock) *svid.Authority {
	t.Helper()
	a, err := svid.Open(dir, domain, "box.example.com", c.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a
}

func publicKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// verified is the ID that SPIFFE's own library takes a certificate for, by a
// bundle.
func verified(t *testing.T, cert []byte, bundle [][]byte, at time.Time) (string, error) {
	t.Helper()
	b := x509bundle.New(spiffeid.RequireTrustDomainFromString("box.example.com"))
	for _, der := range bundle {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		b.AddX509Authority(c)
	}
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify([]*x509.Certificate{c}, b, x509svid.WithTime(at))
	return id.String(), err
}

func TestSign(t *testing.T) {
	c := &clock{time.Now()}
	a := open(t, t.TempDir(), "", c)
	id, err := a.ID("caller", "erin", "agent", "coder", "abc")
	if err != nil || id != "spiffe://box.example.com/caller/erin/agent/coder/abc" {
		t.Fatal(id, err)
	}
	s, err := a.Sign(id, publicKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := verified(t, s.Certificate, s.Bundle, c.t); err != nil || got != id {
		t.Errorf("verified as %q: %v", got, err)
	}
	if got, err := verified(t, s.Certificate, s.Bundle, c.t.Add(svid.Lifetime+time.Second)); err == nil {
		t.Errorf("when it has expired it is %q", got)
	}
}

func TestSignRefuses(t *testing.T) {
	a := open(t, t.TempDir(), "", &clock{time.Now()})
	good := publicKey(t)
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edDER, err := x509.MarshalPKIXPublicKey(ed)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384DER, err := x509.MarshalPKIXPublicKey(p384.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, id string
		key      []byte
		want     error
	}{
		{"another domain", "spiffe://other.example.com/a", good, svid.ErrDomain},
		{"the domain itself", "spiffe://box.example.com", good, svid.ErrDomain},
		{"no ID", "https://box.example.com/a", good, svid.ErrDomain},
		{"dots", "spiffe://box.example.com/a/../b", good, svid.ErrDomain},
		{"no key", "spiffe://box.example.com/a", nil, svid.ErrKey},
		{"Ed25519", "spiffe://box.example.com/a", edDER, svid.ErrKey},
		{"P-384", "spiffe://box.example.com/a", p384DER, svid.ErrKey},
		{"too long", "spiffe://box.example.com/a", make([]byte, 1<<20), svid.ErrKey},
	} {
		if _, err := a.Sign(tt.id, tt.key); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	for _, segment := range []string{"", "..", "a/b", "ä", "a b", "a\x00"} {
		if id, err := a.ID("caller", segment); err == nil {
			t.Errorf("segment %q: %s", segment, id)
		}
	}
}

// The same authority signs after a restart, and others take its place such that a
// copy of the bundle is good for 90 days, whenever it was taken.
func TestRotates(t *testing.T) {
	const day = 24 * time.Hour
	c, dir := &clock{time.Now()}, t.TempDir()
	type copied struct {
		at     time.Time
		bundle [][]byte
	}
	var copies []copied
	seen := map[string]bool{}
	for range 100 {
		a := open(t, dir, "", c)
		s, err := a.Sign("spiffe://box.example.com/a", publicKey(t))
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(s.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		seen[cert.Issuer.String()] = true
		for _, old := range copies {
			if c.t.Sub(old.at) > 90*day {
				continue
			}
			if _, err := verified(t, s.Certificate, old.bundle, c.t); err != nil {
				t.Fatalf("by a bundle that is %s old: %v", c.t.Sub(old.at), err)
			}
		}
		copies = append(copies, copied{c.t, s.Bundle})
		c.t = c.t.Add(10 * day)
	}
	if len(seen) < 3 {
		t.Errorf("in 1,000 days there were %d authorities", len(seen))
	}
	c.t = c.t.Add(3000 * day) // it was off
	a := open(t, dir, "", c)
	s, err := a.Sign("spiffe://box.example.com/a", publicKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verified(t, s.Certificate, s.Bundle, c.t); err != nil {
		t.Error(err)
	}
}

// TestNotWritten: an authority whose successor cannot be kept signs nothing until it
// can, and is the same one then.
func TestNotWritten(t *testing.T) {
	c, dir := &clock{time.Now()}, t.TempDir()
	a := open(t, dir, "", c)
	before, err := a.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(dir, "authority.pem.new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, days := range []time.Duration{200, 300} {
		c.t = time.Now().Add(days * 24 * time.Hour)
		if _, err := a.Sign("spiffe://box.example.com/a", publicKey(t)); err == nil {
			t.Errorf("after %d days it signed by what is in no file", days)
		}
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	c.t = time.Now().Add(200 * 24 * time.Hour)
	s, err := a.Sign("spiffe://box.example.com/a", publicKey(t))
	if err != nil || string(s.Bundle[0]) != string(before[0]) || len(s.Bundle) != 2 {
		t.Errorf("%d authorities, another first one; %v", len(s.Bundle), err)
	}
}

func TestDomain(t *testing.T) {
	c, dir := &clock{time.Now()}, t.TempDir()
	if _, err := svid.Open(t.TempDir(), "No Domain", "", c.now); !errors.Is(err, svid.ErrDomain) {
		t.Error(err)
	}
	if _, err := svid.Open(t.TempDir(), "", "UPPER", c.now); !errors.Is(err, svid.ErrDomain) {
		t.Error(err)
	}
	first, err := open(t, dir, "", c).Bundle()
	if err != nil {
		t.Fatal(err)
	}
	// A host that is called something else now keeps its trust domain.
	a, err := svid.Open(dir, "", "renamed", c.now)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if b, err := a.Bundle(); err != nil || string(b[0]) != string(first[0]) || a.Domain() != "box.example.com" {
		t.Error(a.Domain(), err)
	}
	other := open(t, dir, "other.example.com", c)
	if b, err := other.Bundle(); err != nil || string(b[0]) == string(first[0]) || other.Domain() != "other.example.com" {
		t.Error(other.Domain(), err)
	}
}

func TestDamaged(t *testing.T) {
	c, dir := &clock{time.Now()}, t.TempDir()
	open(t, dir, "", c)
	path := filepath.Join(dir, "authority.pem")
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st, err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{nil, whole[:len(whole)/2], append(whole[:100:100], whole[120:]...), append(append(append([]byte{}, whole...), whole...), whole...)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := svid.Open(dir, "", "box.example.com", c.now); !errors.Is(err, svid.ErrFile) {
			t.Errorf("of %d bytes: %v", len(b), err)
		}
	}
}

// The authority is for SPIFFE IDs: what it would sign for a web server's name is
// not believed.
func TestVouchesForNoServer(t *testing.T) {
	dir := t.TempDir()
	bundle, err := open(t, dir, "", &clock{time.Now()}).Bundle()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(bundle[0])
	if err != nil {
		t.Fatal(err)
	}
	key := authorityKey(t, filepath.Join(dir, "authority.pem"))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(5), Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"bank.example.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "bank.example.com", Roots: roots}); err == nil {
		t.Error("it was believed")
	}
}

func authorityKey(t *testing.T, path string) *ecdsa.PrivateKey {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest := pem.Decode(b)
	block, _ := pem.Decode(rest)
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
