// Package svid is the authority of a box's SPIFFE trust domain: it signs the
// X.509-SVIDs by which sandboxes prove who they are (SPIFFE X509-SVID
// specification; RFC 5280).
//
// It is a P-256 key in creeld's state directory, that never leaves the process.
// Certificates hold for minutes. What verifies them needs the Bundle: the
// authority, and the next one long before it signs anything.
//
// Beware: whoever has the key file, and that is root, can be any sandbox to those
// who trust the bundle.
package svid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Lifetime is how long an SVID holds.
const Lifetime = 10 * time.Minute

// An authority signs from the day on which it is switchAfter old's successor: it
// has been in the bundle for publishAfter to switchAfter by then, so a copy of the
// bundle is good for 90 days at least.
const (
	authorityLifetime = 365 * 24 * time.Hour
	publishAfter      = 180 * 24 * time.Hour
	switchAfter       = 270 * 24 * time.Hour
	early             = time.Minute // clocks of others
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrDomain is a trust domain that is none.
	ErrDomain = errors.New("not a SPIFFE trust domain")
	// ErrFile is a file that is not what Open wrote.
	ErrFile = errors.New("the authority for SVIDs cannot be read")
	// ErrKey is a public key that no SVID is made for.
	ErrKey = errors.New("an SVID is for a P-256 key")
)

// file is where the authorities are, in the directory of Open.
const file = "authority.pem"

// Authority signs. It is safe for concurrent use.
type Authority struct {
	domain spiffeid.TrustDomain
	dir    *os.Root
	now    func() time.Time

	mu            sync.Mutex
	current, next *ca // next is nil at first
}

// ca is one certificate authority.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Signed is an SVID, and what it is verified by.
type Signed struct {
	// ID is spiffe://DOMAIN/PATH.
	ID string
	// Certificate is in DER. The authority that signed it is in Bundle.
	Certificate []byte
	// Bundle are the authorities of the trust domain, in DER.
	Bundle [][]byte
	// Expires is when the certificate ends.
	Expires time.Time
}

// Open opens the authority in dir, which only root can enter, and makes what is
// not there. domain is the trust domain: a name in lower case, such as a host's;
// empty is that of the authority which is there, or else fallback. With another
// domain than before there is another authority. The error wraps ErrDomain or
// ErrFile. Close closes it.
func Open(dir, domain, fallback string, now func() time.Time) (_ *Authority, err error) {
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("authority for SVIDs: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("authority for SVIDs: %w", err)
	}
	a := &Authority{dir: root, now: now}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.Close())
		}
	}()
	if err := a.read(); err != nil {
		return nil, err
	}
	if domain == "" {
		domain = fallback
		if a.current != nil {
			domain = a.current.cert.URIs[0].Host
		}
	}
	if a.domain, err = spiffeid.TrustDomainFromString(domain); err != nil || a.domain.Name() != domain {
		return nil, fmt.Errorf("%w: %q; set identity.trust_domain in creeld.toml to a name such as box.example.com", ErrDomain, domain)
	}
	if a.current != nil && a.current.cert.URIs[0].Host != domain {
		a.current, a.next = nil, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a, a.tendLocked()
}

// Close lets go of the directory.
func (a *Authority) Close() error { return a.dir.Close() }

// Domain is the name of the trust domain.
func (a *Authority) Domain() string { return a.domain.Name() }

// ID is the SPIFFE ID of a path in the trust domain, if every segment can be one
// (SPIFFE-ID, section 2.2).
func (a *Authority) ID(segments ...string) (string, error) {
	id, err := spiffeid.FromSegments(a.domain, segments...)
	if err != nil {
		return "", fmt.Errorf("SPIFFE ID: %w", err)
	}
	return id.String(), nil
}

// Bundle are the authorities of the trust domain now, in DER.
func (a *Authority) Bundle() ([][]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.tendLocked(); err != nil {
		return nil, err
	}
	return a.bundleLocked(), nil
}

func (a *Authority) bundleLocked() [][]byte {
	b := [][]byte{a.current.cert.Raw}
	if a.next != nil {
		b = append(b, a.next.cert.Raw)
	}
	return b
}

// Sign makes an SVID of an ID of this trust domain for a public key, as a
// SubjectPublicKeyInfo in DER.
func (a *Authority) Sign(id string, publicKey []byte) (*Signed, error) {
	parsed, err := spiffeid.FromString(id)
	if err != nil || !parsed.MemberOf(a.domain) || parsed.Path() == "" {
		return nil, fmt.Errorf("%w: %q is no ID in %s", ErrDomain, id, a.domain)
	}
	if len(publicKey) > 1024 {
		return nil, fmt.Errorf("%w: %d bytes", ErrKey, len(publicKey))
	}
	parsedKey, err := x509.ParsePKIXPublicKey(publicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	key, ok := parsedKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, ErrKey
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.tendLocked(); err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.now()
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"creel"}}, URIs: []*url.URL{parsed.URL()},
		NotBefore: now.Add(-early), NotAfter: now.Add(Lifetime), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.current.cert, key, a.current.key)
	if err != nil {
		return nil, fmt.Errorf("SVID: %w", err)
	}
	return &Signed{ID: id, Certificate: der, Bundle: a.bundleLocked(), Expires: tmpl.NotAfter}, nil
}

// tendLocked has the authorities be there that there have to be by now. What is not
// in the file signs nothing, and what is there is not given up for that.
func (a *Authority) tendLocked() (err error) {
	now, current, next := a.now(), a.current, a.next
	age := func(c *ca) time.Duration { return now.Sub(c.cert.NotBefore.Add(early)) }
	if next != nil && (age(current) >= switchAfter || age(next) >= switchAfter) {
		current, next = next, nil
	}
	if current == nil || age(current) >= switchAfter {
		if current, err = a.make(now); err != nil {
			return err
		}
	}
	if next == nil && age(current) >= publishAfter {
		if next, err = a.make(now); err != nil {
			return err
		}
	}
	if current == a.current && next == a.next {
		return nil
	}
	if err := a.write(current, next); err != nil {
		return fmt.Errorf("authority for SVIDs: %w", err)
	}
	a.current, a.next = current, next
	return nil
}

func (a *Authority) make(now time.Time) (*ca, error) {
	key, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	serial, err2 := newSerial()
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("authority for SVIDs: %w", err)
	}
	everyIPv4 := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	everyIPv6 := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{"creel"}, CommonName: "creel SVIDs " + serial.Text(36)},
		URIs: []*url.URL{a.domain.ID().URL()}, NotBefore: now.Add(-early), NotAfter: now.Add(authorityLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// Who trusts it for SPIFFE IDs is not to be told by it who a web server is
		// (RFC 5280, section 4.2.1.10): no address, and no name.
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{"invalid"}, ExcludedIPRanges: []*net.IPNet{everyIPv4, everyIPv6},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("authority for SVIDs: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("authority for SVIDs: %w", err)
	}
	return &ca{cert: cert, key: key}, nil
}

// The types of the file's blocks (RFC 7468; RFC 5915).
const (
	certType = "CERTIFICATE"
	keyType  = "EC PRIVATE KEY"
)

func (a *Authority) read() error {
	b, err := a.dir.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFile, err)
	}
	for _, to := range []**ca{&a.current, &a.next} {
		if len(bytes.TrimSpace(b)) == 0 && a.current != nil {
			return nil
		}
		certBlock, rest := pem.Decode(b)
		keyBlock, rest := pem.Decode(rest)
		if certBlock == nil || keyBlock == nil || certBlock.Type != certType || keyBlock.Type != keyType {
			return fmt.Errorf("%w: %s has no certificate with its key; move it away for a new one", ErrFile, file)
		}
		cert, err1 := x509.ParseCertificate(certBlock.Bytes)
		key, err2 := x509.ParseECPrivateKey(keyBlock.Bytes)
		if err := errors.Join(err1, err2); err != nil || len(cert.URIs) != 1 || !key.PublicKey.Equal(cert.PublicKey) {
			return fmt.Errorf("%w: %s is damaged; move it away for a new one", ErrFile, file)
		}
		*to, b = &ca{cert: cert, key: key}, rest
	}
	if len(bytes.TrimSpace(b)) > 0 {
		return fmt.Errorf("%w: %s has more than two authorities", ErrFile, file)
	}
	return nil
}

// write makes the file whole or not at all, and durable.
func (a *Authority) write(authorities ...*ca) error {
	var all bytes.Buffer
	for _, c := range authorities {
		if c == nil {
			continue
		}
		der, err := x509.MarshalECPrivateKey(c.key)
		if err != nil {
			return err
		}
		all.Write(pem.EncodeToMemory(&pem.Block{Type: certType, Bytes: c.cert.Raw}))
		all.Write(pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: der}))
	}
	const tmp = file + ".new"
	f, err := a.dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(all.Bytes())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := a.dir.Rename(tmp, file); err != nil {
		return err
	}
	d, err := a.dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func newSerial() (*big.Int, error) {
	const bits = 127 // positive, and in 20 octets (RFC 5280, section 4.1.2.2)
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), bits))
}
