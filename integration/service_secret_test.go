package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
)

// encryptKey is the command that docs/egress.md has to give the key to systemd.
const encryptKey = "systemd-creds encrypt --name=creel-secrets-key /var/lib/creel/secrets/key /etc/credstore.encrypted/creel-secrets-key"

// TestEncryptKey: the command that TestServiceSecretKey uses is the documents'.
func TestEncryptKey(t *testing.T) {
	if !strings.Contains(read(t, "../docs/egress.md"), "\n"+encryptKey+"\n") {
		t.Errorf("docs/egress.md has another command than %s", encryptKey)
	}
}

// TestServiceSecretKey: the key of secrets can be systemd's to keep, as docs/egress.md
// says: sealed to the machine, given to the service at each start, and no file of
// creel's. Without it what was sealed is not used.
func TestServiceSecretKey(t *testing.T) {
	const key, credstore = "/var/lib/creel/secrets/key", "/etc/credstore.encrypted"
	const dropIn = "/run/systemd/system/creeld.service.d"
	s := newService(t)
	original, err := os.ReadFile(key)
	if err == nil {
		err = os.MkdirAll(credstore, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	restart := func() {
		t.Helper()
		s.systemctl("restart", unit)
		s.eventually("it answers", func() error { _, err := s.Version(t.Context()); return err })
	}
	t.Cleanup(func() {
		if err := errors.Join(os.RemoveAll(credstore+"/creel-secrets-key"), os.WriteFile(key, original, 0o600)); err != nil {
			t.Error(err)
		}
		s.systemctl("restart", unit)
	})
	ctx := context.WithoutCancel(t.Context())
	set := func(name string) error {
		_, err := s.SetSecret(ctx, name, api.SecretRequest{Rule: "https api.example.com", Place: api.SecretPlace{Kind: api.PlaceBearer}, Value: "a value of the test"})
		t.Cleanup(func() { _ = s.RemoveSecret(ctx, name) })
		return err
	}
	if err := set("before"); err != nil {
		t.Fatal(err)
	}
	if !s.delegated() { // as the unit's file says: this systemd is older than ImportCredential (254)
		text := "[Service]\nLoadCredentialEncrypted=creel-secrets-key:" + credstore + "/creel-secrets-key\n"
		if err := errors.Join(os.MkdirAll(dropIn, 0o755), os.WriteFile(dropIn+"/secret.conf", []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		s.systemctl("daemon-reload")
		t.Cleanup(func() { _ = os.RemoveAll(dropIn); s.systemctl("daemon-reload") })
	}
	words := strings.Fields(encryptKey)
	if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", encryptKey, err, out)
	}
	usable := func(name string) error {
		d, err := s.Explain(ctx, api.SpawnRequest{Image: "tiny", Network: "policy", Egress: []string{"api.example.com"}, Secrets: []string{name}})
		if err == nil && !d.Allowed {
			err = fmt.Errorf("%+v", d)
		}
		return err
	}
	for range 2 { // the second time in the namespace of the first
		restart()
		if err := os.Remove(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := usable("before"); err != nil {
			t.Errorf("with the key from systemd: %v", err)
		}
	}
	if err := set("after"); err != nil {
		t.Error(err)
	}
	restart()
	if err := errors.Join(usable("before"), usable("after")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a key in creel's own directory: %v", err)
	}

	if err := errors.Join(os.Remove(credstore+"/creel-secrets-key"), os.RemoveAll(dropIn)); err != nil {
		t.Fatal(err)
	}
	s.systemctl("daemon-reload")
	restart()
	for _, name := range []string{"before", "after"} {
		if err := usable(name); err == nil {
			t.Errorf("without its key %s is used", name)
		} else if !strings.Contains(fmt.Sprint(err), "another key") {
			t.Errorf("without its key: %v", err)
		}
	}
}
