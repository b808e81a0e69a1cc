package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/secrets"
)

// secretsKey is what the key that seals secrets is called among the credentials
// that systemd gives a service (systemd.exec(5)). Without it the key is a file
// beside them.
const secretsKey = "creel-secrets-key"

func (d *daemon) openSecrets() error {
	dir := filepath.Join(d.cfg.StateDir, "secrets")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := secrets.Key(os.Getenv("CREDENTIALS_DIRECTORY"), secretsKey, filepath.Join(dir, "key"))
	if err != nil {
		return err
	}
	if d.secrets, err = secrets.Open(dir, key); err != nil {
		return err
	}
	d.onClose(d.secrets.Close)
	for _, err := range d.secrets.Damaged() {
		d.log.Error("a secret cannot be used; set it again, or remove it", slog.Any("error", err))
	}
	return nil
}

// secretOwner is whose the secrets are that a caller sets: an operator's are the box's.
func (s *service) secretOwner(c peer.Cred) secrets.Owner {
	if s.d.callers.Operator(c) {
		return secrets.Owner{Box: true}
	}
	return secrets.Owner{UID: c.UID}
}

// SetSecret implements server.Actions. It is in force when it returns.
func (s *service) SetSecret(ctx context.Context, c peer.Cred, name string, req api.SecretRequest) (*api.Secret, error) {
	ref := secrets.Ref{Owner: s.secretOwner(c), Name: name}
	out, err := s.d.secrets.Set(ref, api.Caller{UID: c.UID, GID: c.GID}, req)
	if err != nil {
		return nil, err
	}
	return out, s.SecretChanged(ctx, ref)
}

// Secrets implements server.Actions: the caller's own, and those of the box's that
// it may use.
func (s *service) Secrets(_ context.Context, c peer.Cred) ([]api.Secret, error) {
	all := s.d.secrets.List(c.UID)
	ceiling := s.d.callers.Ceiling(c)
	if ceiling == nil {
		return all, nil
	}
	out := []api.Secret{}
	for _, one := range all {
		ref := secrets.Ref{Owner: secrets.Owner{UID: c.UID, Box: one.Box}, Name: one.Name}
		if !one.Box || secrets.Allowed(ceiling.Secrets, ref) {
			out = append(out, one)
		}
	}
	return out, nil
}

// RemoveSecret implements server.Actions. No request goes out with it when it
// returns.
func (s *service) RemoveSecret(ctx context.Context, c peer.Cred, name string) error {
	ref := secrets.Ref{Owner: s.secretOwner(c), Name: name}
	if err := s.d.secrets.Remove(ref); err != nil {
		return err
	}
	return s.SecretChanged(ctx, ref)
}
