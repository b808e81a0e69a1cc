// Package authority is the certificate authority by which TLS connections are
// opened up, where a policy needs their requests to be read.
//
// Each caller has its own, which that caller's sandboxes alone trust. creeld makes
// it, so that a creel-egress that is started again has the same one.
//
// Beware: whoever has the key can be any server to those sandboxes, and to
// nobody else.
package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// How long certificates hold. See package egressproc for when an Authority takes
// the place of another.
const (
	Lifetime     = 30 * 24 * time.Hour
	leafLifetime = 24 * time.Hour
	early        = 5 * time.Minute // a sandbox's clock is the host's
)

// maxLeaves bounds the certificates that are kept.
const maxLeaves = 1024

// Authority makes certificates. It is safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	leaf *ecdsa.PrivateKey // of all of its certificates
	now  func() time.Time

	mu     sync.Mutex
	leaves map[egress.Name]*tls.Certificate
}

// New makes an authority. now is time.Now but in tests.
func New(now func() time.Time) (*Authority, error) {
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leaf, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	serial, err3 := newSerial()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	everyIPv4 := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	everyIPv6 := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"creel"}, CommonName: "creel egress " + serial.Text(36)},
		NotBefore: now().Add(-early), NotAfter: now().Add(Lifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// For names alone (RFC 5280, section 4.2.1.10).
		PermittedDNSDomainsCritical: true, ExcludedIPRanges: []*net.IPNet{everyIPv4, everyIPv6},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return &Authority{cert: cert, key: key, leaf: leaf, now: now, leaves: map[egress.Name]*tls.Certificate{}}, nil
}

// Parse is an authority of what Secret gave.
func Parse(secret []byte, now func() time.Time) (*Authority, error) {
	certBlock, rest := pem.Decode(secret)
	keyBlock, rest := pem.Decode(rest)
	if certBlock == nil || keyBlock == nil || certBlock.Type != certType || keyBlock.Type != keyType || len(rest) > 0 {
		return nil, errors.New("certificate authority: not a certificate and its key")
	}
	cert, err1 := x509.ParseCertificate(certBlock.Bytes)
	key, err2 := x509.ParseECPrivateKey(keyBlock.Bytes)
	leaf, err3 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("certificate authority: the key is another's")
	}
	return &Authority{cert: cert, key: key, leaf: leaf, now: now, leaves: map[egress.Name]*tls.Certificate{}}, nil
}

// The types of what Secret has, as PEM (RFC 7468; RFC 5915).
const (
	certType = "CERTIFICATE"
	keyType  = "EC PRIVATE KEY"
)

// PEM is the certificate that sandboxes are to trust.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certType, Bytes: a.cert.Raw})
}

// DER is the same certificate.
func (a *Authority) DER() []byte { return a.cert.Raw }

// Secret is all of it, with its key, for Parse.
func (a *Authority) Secret() ([]byte, error) {
	key, err := x509.MarshalECPrivateKey(a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return append(a.PEM(), pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: key})...), nil
}

// Age is how long it has been there.
func (a *Authority) Age() time.Duration { return a.now().Sub(a.cert.NotBefore.Add(early)) }

// Certificate is one for a name.
func (a *Authority) Certificate(n egress.Name) (*tls.Certificate, error) {
	if canonical, err := egress.ParseName(string(n)); err != nil || canonical != n {
		return nil, fmt.Errorf("certificate for %q: not a host's name", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.leaves[n]; ok && a.now().Before(c.Leaf.NotAfter.Add(-leafLifetime/2)) {
		return c, nil
	}
	c, err := a.makeLocked(n)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", n, err)
	}
	if len(a.leaves) >= maxLeaves {
		clear(a.leaves) // they are made in less time than a handshake takes
	}
	a.leaves[n] = c
	return c, nil
}

func (a *Authority) makeLocked(n egress.Name) (*tls.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.now()
	end := now.Add(leafLifetime)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	if !end.After(now) {
		return nil, errors.New("the authority has expired")
	}
	tmpl := &x509.Certificate{
		// No common name: it has a bound of 64 bytes, and nobody looks at it.
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"creel"}},
		DNSNames: []string{string(n)}, NotBefore: now.Add(-early), NotAfter: end, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, a.leaf.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leaf, Leaf: leaf}, nil
}

func newSerial() (*big.Int, error) {
	const bits = 127 // positive, and in 20 octets (RFC 5280, section 4.1.2.2)
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), bits))
}
