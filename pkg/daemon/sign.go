package daemon

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/svid"
)

// sign implements launcher.Options.Sign with the box's key.
func (d *daemon) sign(s api.EvidenceStatement) (*api.Envelope, error) {
	v := d.versions
	s.Creel, s.Kernel, s.Containerd = api.BuildVersion, v.Kernel, v.Containerd
	s.Runtime += " " + map[string]string{"crun": v.Crun, "runc": v.Runc}[s.Runtime]
	payload, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	e := d.key.Seal(api.EvidenceType, payload)
	return &e, nil
}

// openIdentities opens the authority that signs who sandboxes are.
func (d *daemon) openIdentities() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	d.identities, err = svid.Open(filepath.Join(d.cfg.StateDir, "identity"), d.cfg.Identity.TrustDomain, strings.ToLower(host), time.Now)
	if err != nil {
		return err
	}
	d.onClose(d.identities.Close)
	return nil
}

// TrustBundle is what sandboxes' SVIDs are verified with. Everybody may have it.
func (s *service) TrustBundle(context.Context, peer.Cred) (*api.TrustBundle, error) {
	ders, err := s.d.identities.Bundle()
	if err != nil {
		return nil, err
	}
	var text []byte
	for _, der := range ders {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return &api.TrustBundle{TrustDomain: s.d.identities.Domain(), PEM: string(text)}, nil
}

// PublicKey is the key that the box signs with. Everybody may have it.
func (s *service) PublicKey(context.Context, peer.Cred) (*api.PublicKey, error) {
	public := s.d.key.Public()
	return &api.PublicKey{ID: public.ID(), PEM: string(public.PEM())}, nil
}
