package egressproc

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress/authority"
	"github.com/creel-sandbox/creel/pkg/truststore"
)

// A caller's second authority is in the trust store for publishAfter before it
// takes the place of the first, which is then switchAfter old: a program that
// reads the store once has it for at least so long.
const (
	publishAfter = 10 * 24 * time.Hour
	switchAfter  = 20 * 24 * time.Hour
)

// trust is what TLS is opened up with, for one caller.
type trust struct {
	current, next *authority.Authority // next is nil at first
	roots         string               // of the store that was written
	secret        []byte               // of current
}

// TrustDir is the directory of a caller's trust store, for as long as its process
// has sandboxes. It is replaced file by file.
func (k *Keeper) TrustDir(caller uint32) string {
	return filepath.Join(k.opts.TrustDir, fmt.Sprint(caller))
}

// trusted has the caller's authorities be there, in use at the right time, and in
// its trust store with roots. It gives the one to use, as of authority.Secret.
func (p *process) trusted(roots string, now func() time.Time) (_ []byte, err error) {
	defer func() {
		if err != nil {
			p.trust = nil // what is in memory may not be in the files: they are read again
		}
	}()
	t := p.trust
	if t == nil {
		if t, err = p.readTrust(now); err != nil {
			return nil, err
		}
	}
	changed, err := t.tend(now)
	if err != nil {
		return nil, err
	}
	if p.trust != nil && !changed && t.roots == roots {
		return t.secret, nil
	}
	if t.secret, err = t.current.Secret(); err != nil {
		return nil, err
	}
	if changed {
		if err := p.writeTrust(t); err != nil {
			return nil, err
		}
	}
	dir := p.k.TrustDir(p.caller)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
		return nil, err
	}
	ders := [][]byte{t.current.DER()}
	if t.next != nil {
		ders = append(ders, t.next.DER())
	}
	if err := truststore.Write(dir, roots, ders...); err != nil {
		return nil, err
	}
	t.roots = roots
	p.trust = t
	return t.secret, nil
}

// tend makes what there has to be by now, and says whether it made anything.
func (t *trust) tend(now func() time.Time) (changed bool, err error) {
	if t.current == nil {
		if t.current, err = authority.New(now); err != nil {
			return false, err
		}
		changed = true
	}
	if t.next != nil && t.current.Age() >= switchAfter {
		t.current, t.next, changed = t.next, nil, true
	}
	if t.next == nil && t.current.Age() >= publishAfter {
		if t.next, err = authority.New(now); err != nil {
			return false, err
		}
		changed = true
	}
	return changed, nil
}

// secrets is where a caller's authorities are kept over a restart of the daemon.
func (p *process) secrets() string { return fmt.Sprintf("%d.ca", p.caller) }

// readTrust reads them; there are none if there is no file, or one that nobody can
// read any more.
func (p *process) readTrust(now func() time.Time) (*trust, error) {
	dir, err := os.OpenRoot(p.k.opts.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	b, err := dir.ReadFile(p.secrets())
	if errors.Is(err, fs.ErrNotExist) {
		return &trust{}, nil
	}
	if err != nil {
		return nil, err
	}
	t := &trust{}
	for _, to := range []**authority.Authority{&t.current, &t.next} {
		_, rest := pem.Decode(b)
		_, rest = pem.Decode(rest)
		one := b[:len(b)-len(rest)]
		if b = rest; len(one) == 0 {
			break
		}
		a, err := authority.Parse(one, now)
		if err != nil || a.Age() >= authority.Lifetime {
			return &trust{}, nil //nolint:nilerr // others are made, which those who trust these do not
		}
		*to = a
	}
	return t, nil
}

func (p *process) writeTrust(t *trust) error {
	var all bytes.Buffer
	for _, a := range []*authority.Authority{t.current, t.next} {
		if a == nil {
			continue
		}
		secret, err := a.Secret()
		if err != nil {
			return err
		}
		all.Write(secret)
	}
	dir, err := os.OpenRoot(p.k.opts.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	tmp := p.secrets() + ".new"
	if err := dir.WriteFile(tmp, all.Bytes(), 0o600); err != nil {
		return err
	}
	return dir.Rename(tmp, p.secrets())
}

// forgetTrust takes the caller's authorities and its store away, when no sandbox
// is left that trusts them.
func (p *process) forgetTrust() error {
	dir, err := os.OpenRoot(p.k.opts.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Remove(p.secrets()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(p.k.TrustDir(p.caller))
}
