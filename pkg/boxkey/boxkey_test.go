package boxkey_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/boxkey"
)

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	k, made, err := boxkey.Load(path)
	if err != nil || !made {
		t.Fatalf("first Load: made %v, error %v", made, err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Fatalf("mode %v, error %v, want 0600", st.Mode(), err)
	}
	again, made, err := boxkey.Load(path)
	if err != nil || made || again.ID() != k.ID() {
		t.Fatalf("second Load: made %v, id %s after %s, error %v", made, again.ID(), k.ID(), err)
	}
	public, err := boxkey.ParsePublic(k.Public().PEM())
	if err != nil || public.ID() != k.ID() {
		t.Fatalf("public key %s after PEM, want %s; error %v", public.ID(), k.ID(), err)
	}
	if !public.Verify([]byte("m"), again.Sign([]byte("m"))) || public.Verify([]byte("n"), again.Sign([]byte("m"))) {
		t.Error("the public key does not tell its signature")
	}
	if (boxkey.Public{}).Verify([]byte("m"), again.Sign([]byte("m"))) {
		t.Error("no key verifies")
	}
}

func TestLoadRefuses(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "key")
	if _, _, err := boxkey.Load(whole); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		make func(path string) error
		want error
	}{
		{"others can read it", func(p string) error { return os.WriteFile(p, text, 0o640) }, boxkey.ErrUnsafe},
		{"link", func(p string) error { return os.Symlink(whole, p) }, boxkey.ErrUnsafe},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, boxkey.ErrUnsafe},
		{"empty", func(p string) error { return os.WriteFile(p, nil, 0o600) }, boxkey.ErrBadKey},
		{"cut", func(p string) error { return os.WriteFile(p, text[:len(text)/2], 0o600) }, boxkey.ErrBadKey},
		{"two", func(p string) error { return os.WriteFile(p, append(bytes.Clone(text), text...), 0o600) }, boxkey.ErrBadKey},
		{"long", func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), 1<<16), 0o600) }, boxkey.ErrBadKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "key")
			if err := tt.make(p); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(p)
			if _, _, err := boxkey.Load(p); !errors.Is(err, tt.want) {
				t.Errorf("Load error = %v, want %v", err, tt.want)
			}
			if after, _ := os.ReadFile(p); !bytes.Equal(before, after) {
				t.Error("Load changed a key that was there")
			}
		})
	}
}

func TestParsePublicRefuses(t *testing.T) {
	k := boxkey.New([32]byte{1})
	good := string(k.Public().PEM())
	for name, text := range map[string]string{
		"empty": "", "text": "hello", "trailing": good + "x", "two": good + good,
		"other block": strings.ReplaceAll(good, "PUBLIC", "PRIVATE"), "cut": good[:len(good)-40],
	} {
		if _, err := boxkey.ParsePublic([]byte(text)); !errors.Is(err, boxkey.ErrBadKey) {
			t.Errorf("%s: error %v, want ErrBadKey", name, err)
		}
	}
}

func TestEnvelope(t *testing.T) {
	k, other := boxkey.New([32]byte{1}), boxkey.New([32]byte{2})
	env := k.Seal("text/x", []byte("payload"))
	got, err := k.Public().Open("text/x", env)
	if err != nil || string(got) != "payload" {
		t.Fatalf("Open = %q, %v", got, err)
	}
	changed := func(fn func(*api.Envelope)) api.Envelope {
		e := k.Seal("text/x", []byte("payload"))
		fn(&e)
		return e
	}
	tests := []struct {
		name string
		key  *boxkey.Key
		kind string
		env  api.Envelope
	}{
		{"another key", other, "text/x", env},
		{"another type asked", k, "text/y", env},
		{"another type in it", k, "text/y", changed(func(e *api.Envelope) { e.PayloadType = "text/y" })},
		{"payload", k, "text/x", changed(func(e *api.Envelope) { e.Payload = base64.StdEncoding.EncodeToString([]byte("Payload")) })},
		{"payload is no base64", k, "text/x", changed(func(e *api.Envelope) { e.Payload += "!" })},
		{"no signature", k, "text/x", changed(func(e *api.Envelope) { e.Signatures = nil })},
		{"id alone", k, "text/x", changed(func(e *api.Envelope) { e.Signatures[0].Sig = "" })},
	}
	for _, tt := range tests {
		if p, err := tt.key.Public().Open(tt.kind, tt.env); !errors.Is(err, boxkey.ErrSignature) || p != nil {
			t.Errorf("%s: Open = %q, %v, want ErrSignature", tt.name, p, err)
		}
	}
	// The test vector of the DSSE document's pre-authentication encoding.
	if !k.Public().Verify([]byte("DSSEv1 29 http://example.com/HelloWorld 11 hello world"), sig(t, k.Seal("http://example.com/HelloWorld", []byte("hello world")))) {
		t.Error("the encoding is not DSSE's")
	}
}

func sig(t *testing.T, e api.Envelope) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
