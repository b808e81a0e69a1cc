// Package boxkey is the key a box signs its records with: Ed25519 (RFC 8032),
// made at creeld's first start and kept in its state directory.
//
// Load the private key with Load; a verifier elsewhere needs only the public
// one, as PEM, and ParsePublic. Seal and Open put a signature around a payload
// in a DSSE envelope.
//
// Beware: whoever can read the key file can sign anything as this box, and
// that is root. A signature says that what is signed has not been changed
// since by anybody else.
package boxkey

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrBadKey is a file that is not the key that was expected.
	ErrBadKey = errors.New("not an Ed25519 key in PEM")
	// ErrUnsafe is a key file that somebody else can read or write.
	ErrUnsafe = errors.New("unsafe key file")
	// ErrSignature is a signature that is not the key's.
	ErrSignature = errors.New("the signature is not of this key")
)

// maxPEM bounds a key file, in bytes.
const maxPEM = 4096

const (
	privateBlock = "PRIVATE KEY" // PKCS #8, RFC 5958
	publicBlock  = "PUBLIC KEY"  // SubjectPublicKeyInfo, RFC 8410
)

// Key signs. It is safe for concurrent use.
type Key struct {
	private ed25519.PrivateKey
	public  Public
}

// Public checks signatures.
type Public struct {
	key ed25519.PublicKey
	id  string
}

func newPublic(k ed25519.PublicKey) Public {
	sum := sha256.Sum256(k)
	return Public{key: k, id: hex.EncodeToString(sum[:8])}
}

// New is the key of a 32-byte seed.
func New(seed [ed25519.SeedSize]byte) *Key {
	private := ed25519.NewKeyFromSeed(seed[:])
	return &Key{private: private, public: newPublic(ed25519.PublicKey(private[ed25519.SeedSize:]))}
}

// ID names the key: the first 8 bytes of the SHA-256 of the 32-byte public
// key, as 16 hexadecimal digits.
func (k *Key) ID() string { return k.public.id }

// Public is the key's public half.
func (k *Key) Public() Public { return k.public }

// Sign signs msg, which must begin with words that no other use of this key
// begins with.
func (k *Key) Sign(msg []byte) []byte { return ed25519.Sign(k.private, msg) }

// ID names the key, as [Key.ID].
func (p Public) ID() string { return p.id }

// Verify says whether sig is the key's signature of msg.
func (p Public) Verify(msg, sig []byte) bool {
	return len(p.key) == ed25519.PublicKeySize && ed25519.Verify(p.key, msg, sig)
}

// PEM is the key as a SubjectPublicKeyInfo, which openssl pkey -pubin reads.
func (p Public) PEM() []byte {
	der, err := x509.MarshalPKIXPublicKey(p.key)
	if err != nil {
		panic(err) // an Ed25519 key always encodes
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der})
}

// ParsePublic reads what PEM wrote, and nothing beside it. The error wraps
// ErrBadKey.
func ParsePublic(text []byte) (Public, error) {
	der, err := block(text, publicBlock)
	if err != nil {
		return Public{}, err
	}
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return Public{}, fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	public, ok := k.(ed25519.PublicKey)
	if !ok {
		return Public{}, fmt.Errorf("%w: it is %T", ErrBadKey, k)
	}
	return newPublic(public), nil
}

func block(text []byte, kind string) ([]byte, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrBadKey, maxPEM)
	}
	b, rest := pem.Decode(text)
	if b == nil || b.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: want one block %s", ErrBadKey, kind)
	}
	return b.Bytes, nil
}

// Load reads the key at path, and makes it if there is no such file. made says
// that it did. A file that is not the process's own, is a link, or can be read
// by others is refused with ErrUnsafe; one that is not a key with ErrBadKey.
func Load(path string) (k *Key, made bool, err error) {
	k, err = read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, false, err
	}
	var seed [ed25519.SeedSize]byte
	_, _ = rand.Read(seed[:]) // never fails, see crypto/rand
	k = New(seed)
	return k, true, k.write(path)
}

func read(path string) (*Key, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link", ErrUnsafe, path)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int64(st.Uid) != int64(os.Geteuid()) || st.Mode&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o and belongs to uid %d; whoever could read it can sign as this box: take it for stolen, move it away, and restart creeld for a new one",
			ErrUnsafe, path, st.Mode&0o7777, st.Uid)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return nil, err
	}
	der, err := block(text, privateBlock)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrBadKey, err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: %w: it is %T", path, ErrBadKey, parsed)
	}
	return New([ed25519.SeedSize]byte(private.Seed())), nil
}

// write makes the file whole or not at all, and durable: a key that signed
// something and is then gone would make that unverifiable.
func (k *Key) write(path string) error {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return err
	}
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der}))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// Never over a key that is there.
	if err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: next, New: path, Err: err}
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
