// Package secrets keeps the credentials that sandboxes use and never see.
//
// Each is a file of root's with all but its value open, and the value sealed with
// a key that is not in the same place where systemd has it (systemd-creds(1)),
// and to the file's name, so that no value can be put in another's place. Nobody
// reads one back: it goes to the creel-egress of who uses it, and nowhere else.
package secrets

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
)

// Bounds of what is kept.
const (
	maxOfOne  = 256 // secrets of one caller, or of the box
	maxAgents = 64
	maxFile   = 64 << 10
)

// keySize is of the sealing key, in bytes: AES-256.
const keySize = 32

// Owner is whose a secret is: a caller's, or the box's.
type Owner struct {
	UID uint32
	Box bool
}

func (o Owner) prefix() string {
	if o.Box {
		return "box"
	}
	return fmt.Sprint(o.UID)
}

// Ref names a secret.
type Ref struct {
	Owner Owner  `json:"owner"`
	Name  string `json:"name"`
}

// Store keeps them. It is safe for concurrent use.
type Store struct {
	dir  *os.Root
	aead cipher.AEAD
	mark []byte // of placeholders

	mu      sync.Mutex
	all     map[Ref]*entry
	damaged map[Ref]error // of what is there and cannot be used
}

type entry struct {
	Secret api.Secret `json:"secret"`
	Sealed []byte     `json:"sealed"`
}

// Open opens the secrets in dir, which it makes. key is of Key.
func Open(dir string, key []byte) (*Store, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("secrets: a key of %d bytes, want %d", len(key), keySize)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	block, err := aes.NewCipher(derive(key, "seal"))
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	s := &Store{mark: derive(key, "placeholder"), all: map[Ref]*entry{}, damaged: map[Ref]error{}}
	if s.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	if s.dir, err = os.OpenRoot(dir); err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("secrets: %w", err), s.dir.Close())
	}
	return s, nil
}

// Close closes it.
func (s *Store) Close() error { return s.dir.Close() }

func derive(key []byte, what string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("creel secrets " + what))
	return h.Sum(nil)
}

// Key is the key in the file that systemd gave the daemon under name, in its
// directory credentials (systemd.exec(5), CREDENTIALS), or else in the file at
// path, which is made if it is not there. Either is 64 hexadecimal digits.
func Key(credentials, name, file string) ([]byte, error) {
	if credentials != "" {
		b, err := os.ReadFile(path.Join(credentials, name))
		if err == nil {
			return parseKey(b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("key of secrets: %w", err)
		}
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return newKey(file)
	}
	if err != nil {
		return nil, fmt.Errorf("key of secrets: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key of secrets: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key of secrets: others can read %s; set new secrets, and chmod 600 it", file)
	}
	b := make([]byte, 4*keySize)
	n, _ := f.Read(b)
	return parseKey(b[:n])
}

func parseKey(b []byte) ([]byte, error) {
	key, err := hex.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("key of secrets: want %d hexadecimal digits", 2*keySize)
	}
	return key, nil
}

func newKey(file string) ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it never fails
	dir, err := os.OpenRoot(path.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("key of secrets: %w", err)
	}
	defer dir.Close()
	if err := write(dir, path.Base(file), []byte(hex.EncodeToString(key)+"\n")); err != nil {
		return nil, fmt.Errorf("key of secrets: %w", err)
	}
	return key, nil
}

// write has a file be there as a whole, on disk, for root alone.
func write(dir *os.Root, name string, b []byte) error {
	tmp := name + ".new"
	if err := dir.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, dir.Remove(tmp))
	}
	if err := dir.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir has what was done to names in dir be on disk.
func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// NameRE is what a secret may be called.
var NameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// envRE is what a variable may be called.
var envRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

var fileRE = regexp.MustCompile(`^(box|[0-9]{1,10})\.([a-z0-9][a-z0-9-]{0,62})\.json$`)

func (r Ref) file() string { return r.Owner.prefix() + "." + r.Name + ".json" }

func (s *Store) load() error {
	d, err := s.dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		m := fileRE.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		r := Ref{Name: m[2]}
		if r.Owner.Box = m[1] == "box"; !r.Owner.Box {
			if _, err := fmt.Sscan(m[1], &r.Owner.UID); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		e, err := s.read(name)
		if err == nil {
			_, err = s.open(r, e)
		}
		if err != nil {
			s.damaged[r] = err
			continue
		}
		s.all[r] = e
	}
	return nil
}

// Damaged are the errors of the files that Open could not use. Nobody uses such a
// secret until it is set again or removed.
func (s *Store) Damaged() (all []error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, err := range s.damaged {
		all = append(all, fmt.Errorf("secret %s of %s: %w", r.Name, r.Owner.prefix(), err))
	}
	return all
}

func (s *Store) read(name string) (*entry, error) {
	st, err := s.dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, errors.New("no file of a secret")
	}
	b, err := s.dir.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var e entry
	return &e, json.Unmarshal(b, &e)
}

// bound is what a value is sealed to: nothing of it can be changed without the
// value being lost.
func (r Ref) bound(e *entry) ([]byte, error) {
	open := e.Secret
	open.Uses, open.LastUsed = 0, time.Time{}
	return json.Marshal(struct {
		Ref
		Secret api.Secret `json:"secret"`
	}{r, open})
}

func (s *Store) open(r Ref, e *entry) (string, error) {
	n := s.aead.NonceSize()
	if len(e.Sealed) < n {
		return "", errors.New("it is not sealed")
	}
	with, err := r.bound(e)
	if err != nil {
		return "", err
	}
	v, err := s.aead.Open(nil, e.Sealed[:n], e.Sealed[n:], with)
	if err != nil {
		return "", errors.New("it was sealed with another key, or changed")
	}
	return string(v), nil
}

// Check says all that is wrong with a request to set a secret.
func Check(name string, req *api.SecretRequest) error {
	var ps []api.Problem
	bad := func(field, value, want string) {
		ps = append(ps, api.Problem{Field: field, Value: value, Want: want})
	}
	if !NameRE.MatchString(name) {
		bad("name", name[:min(len(name), 100)], "1 to 63 of [a-z0-9-], starting with a letter or digit")
	}
	if err := credential.CheckValue(req.Value); err != nil {
		bad("value", "", fmt.Sprintf("one line of printable ASCII, %d to %d bytes", credential.MinValue, credential.MaxValue))
	}
	req.Place.Kind = cmp.Or(req.Place.Kind, api.PlaceBearer)
	if err := credential.CheckPlace(req.Place); err != nil {
		bad("place", req.Place.Kind, `"bearer", or "header", "basic" or "query" with a name: it is `+err.Error())
	}
	if pol, err := credential.ParseRule(req.Rule); err != nil {
		bad("rule", req.Rule[:min(len(req.Rule), 200)], "HOST[:PORT,...] [METHOD,...] [PATH,...]: it is "+err.Error())
	} else {
		req.Rule = pol.Texts()[0]
	}
	if req.Env != "" && !envRE.MatchString(req.Env) {
		bad("env", req.Env[:min(len(req.Env), 100)], "a variable's name")
	}
	if len(req.Agents) > maxAgents {
		bad("agents", fmt.Sprint(len(req.Agents)), fmt.Sprintf("%d at most", maxAgents))
	}
	for _, a := range req.Agents {
		if _, err := path.Match(a, ""); err != nil || a == "" || len(a) > 100 {
			bad("agents", a[:min(len(a), 100)], `a pattern such as "team-*"`)
		}
	}
	if len(ps) > 0 {
		e := api.Errorf(api.CodeInvalid, "the secret cannot be set")
		e.Problems = ps
		return e
	}
	return nil
}

// Set gives a secret a value and what it is bound to, new or in place of what it
// had. It is on disk when Set returns.
func (s *Store) Set(r Ref, caller api.Caller, req api.SecretRequest) (*api.Secret, error) {
	if err := Check(r.Name, &req); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.all[r]
	if old == nil {
		n := 0
		for have := range s.all {
			if have.Owner == r.Owner {
				n++
			}
		}
		if n >= maxOfOne {
			return nil, api.Errorf(api.CodeExhausted, "there are %d secrets already", n).WithHint("remove one: creel secret rm NAME")
		}
	}
	e := &entry{Secret: api.Secret{
		Name: r.Name, Box: r.Owner.Box, Rule: req.Rule, Place: req.Place, Env: req.Env, Agents: slices.Clone(req.Agents), Caller: caller, Set: time.Now().UTC().Truncate(time.Second),
	}}
	with, err := r.bound(e)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce)
	e.Sealed = s.aead.Seal(nonce, nonce, []byte(req.Value), with)
	text, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if err := write(s.dir, r.file(), text); err != nil {
		return nil, fmt.Errorf("secret %s: %w", r.Name, err)
	}
	if old != nil {
		e.Secret.Uses, e.Secret.LastUsed = old.Secret.Uses, old.Secret.LastUsed
	}
	s.all[r] = e
	delete(s.damaged, r)
	out := e.Secret
	return &out, nil
}

// Remove forgets a secret.
func (s *Store) Remove(r Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[r] == nil && s.damaged[r] == nil {
		return unknown(r.Name)
	}
	if err := errors.Join(s.dir.Remove(r.file()), syncDir(s.dir)); err != nil {
		return fmt.Errorf("secret %s: %w", r.Name, err)
	}
	delete(s.all, r)
	delete(s.damaged, r)
	return nil
}

func unknown(name string) error {
	return api.Errorf(api.CodeNotFound, "no secret %q", name[:min(len(name), 100)]).WithHint("\"creel secret ls\" lists them")
}

// List are a caller's own and the box's, by name.
func (s *Store) List(uid uint32) []api.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []api.Secret{}
	for r, e := range s.all {
		if r.Owner.Box || r.Owner.UID == uid {
			out = append(out, e.Secret)
		}
	}
	slices.SortFunc(out, func(a, b api.Secret) int {
		if c := cmp.Compare(a.Name, b.Name); c != 0 || a.Box == b.Box {
			return c
		}
		if a.Box {
			return 1
		}
		return -1
	})
	return out
}

// Find is the secret that a caller means by a name: its own, or else the box's.
func (s *Store) Find(uid uint32, name string) (Ref, api.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range []Owner{{UID: uid}, {Box: true}} {
		if e := s.all[Ref{o, name}]; e != nil {
			return Ref{o, name}, e.Secret, nil
		}
		if err := s.damaged[Ref{o, name}]; err != nil {
			return Ref{}, api.Secret{}, api.Errorf(api.CodeConflict, "secret %s cannot be used: %w", name, err).WithHint("set it again, or remove it")
		}
	}
	return Ref{}, api.Secret{}, unknown(name)
}

// Use is a secret for a sandbox. It is false for one that is not there any more,
// or whose agents it is not for any more.
func (s *Store) Use(r Ref, sandbox, agent string) (c credential.Secret, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.all[r]
	if e == nil || !For(e.Secret, agent) {
		return c, false
	}
	v, err := s.open(r, e)
	if err != nil {
		return c, false
	}
	return credential.Secret{Name: r.Name, Rule: e.Secret.Rule, Place: e.Secret.Place, Value: v, Placeholder: s.placeholder(r, sandbox)}, true
}

// Env is the variable of a secret, and what a sandbox has in it.
func (s *Store) Env(r Ref, sandbox string) (name, placeholder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[r]; e != nil {
		name = e.Secret.Env
	}
	return name, s.placeholder(r, sandbox)
}

// placeholder is a secret's in one sandbox: always the same, and like no other's.
func (s *Store) placeholder(r Ref, sandbox string) string {
	h := hmac.New(sha256.New, s.mark)
	fmt.Fprintf(h, "%s %s", sandbox, r.file())
	return "creel_" + hex.EncodeToString(h.Sum(nil)[:20])
}

// For says whether a secret is for an agent.
func For(s api.Secret, agent string) bool {
	return len(s.Agents) == 0 || slices.ContainsFunc(s.Agents, func(p string) bool {
		ok, err := path.Match(p, agent)
		return ok && err == nil
	})
}

// Reached is nil if a network lets requests be made that a secret goes with.
func Reached(reach egress.Snapshot, s api.Secret) error {
	r, err := egress.ParseText(s.Rule)
	if err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	bound, err := credential.ParseRule(s.Rule)
	if err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	host, err := egress.ParseName(r.Host)
	if err != nil {
		return fmt.Errorf("secret %s: %w", s.Name, err)
	}
	ports := r.Ports
	if len(ports) == 0 {
		ports = []uint16{443}
	}
	both := egress.NewSnapshot(bound)
	for _, port := range ports {
		g, err := reach.Connect(host, port)
		if _, berr := both.Connect(host, port); err == nil && berr == nil && g.Kinds&egress.HTTPS != 0 {
			return nil
		}
	}
	return api.Errorf(api.CodeInvalid, "the secret %s is for %s, which no https rule of the network reaches", s.Name, s.Rule).
		WithHint(fmt.Sprintf("allow it: --allow %q", s.Rule))
}

// Hide is a text without the values of what a uid set itself. Those of others are
// left: to see one go would tell that it was guessed.
func (s *Store) Hide(uid uint32, text string) string {
	if len(text) < credential.MinValue {
		return text
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, e := range s.all {
		if e.Secret.Caller.UID != uid {
			continue
		}
		if v, err := s.open(r, e); err == nil {
			text = strings.ReplaceAll(text, v, "[secret "+r.Name+"]")
		}
	}
	return text
}

// Used counts a use.
func (s *Store) Used(r Ref, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.all[r]; e != nil {
		e.Secret.Uses++
		if at.After(e.Secret.LastUsed) {
			e.Secret.LastUsed = at.UTC()
		}
	}
}

// Allowed says whether a ceiling's list has a secret: "own" is all that the caller
// set, and anything else a pattern of names of the box's.
func Allowed(list []string, r Ref) bool {
	if !r.Owner.Box {
		return slices.Contains(list, "own")
	}
	return slices.ContainsFunc(list, func(p string) bool {
		ok, err := path.Match(p, r.Name)
		return ok && err == nil && !strings.EqualFold(p, "own")
	})
}
