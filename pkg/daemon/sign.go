package daemon

import (
	"context"
	"encoding/json"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
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

// PublicKey is the key that the box signs with. Everybody may have it.
func (s *service) PublicKey(context.Context, peer.Cred) (*api.PublicKey, error) {
	public := s.d.key.Public()
	return &api.PublicKey{ID: public.ID(), PEM: string(public.PEM())}, nil
}
