package auditlog

import (
	"context"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// ImportImage implements server.Service.
func (s *service) ImportImage(ctx context.Context, c peer.Cred, ref string, r io.Reader) (img *api.Image, err error) {
	a := s.r.begin(ctx, c, "image.import", "", ref)
	err = s.working(ctx, a, func() error {
		in := &counter{ReadCloser: io.NopCloser(r)}
		img, err = s.Actions.ImportImage(ctx, c, ref, in)
		a.copied(in.n)
		a.image(img)
		return err
	})
	return img, err
}

// image is what came of it.
func (a *action) image(img *api.Image) {
	if img != nil {
		a.Object = img.Ref
		digest(&a.Entry, "image", img.Digest)
	}
}

// TagImage implements server.Service.
func (s *service) TagImage(ctx context.Context, c peer.Cred, source, ref string) (img *api.Image, err error) {
	a := s.r.begin(ctx, c, "image.tag", "", ref)
	a.Asked = map[string]string{"source": source}
	err = s.working(ctx, a, func() error {
		img, err = s.Actions.TagImage(ctx, c, source, ref)
		a.image(img)
		return err
	})
	return img, err
}

// Commit implements server.Service.
func (s *service) Commit(ctx context.Context, c peer.Cred, ref, name string) (img *api.Image, err error) {
	a := s.r.begin(ctx, c, "image.commit", ref, name)
	err = s.working(ctx, a, func() error {
		img, err = s.Actions.Commit(ctx, c, ref, name)
		a.image(img)
		return err
	})
	return img, err
}

// RemoveImage implements server.Service.
func (s *service) RemoveImage(ctx context.Context, c peer.Cred, ref string) error {
	a := s.r.begin(ctx, c, "image.remove", "", ref)
	a.keep(ctx)
	return a.done(s.Actions.RemoveImage(ctx, c, ref))
}

// SaveImage implements server.Service.
func (s *service) SaveImage(ctx context.Context, c peer.Cred, ref string, w io.Writer) error {
	a := s.r.begin(ctx, c, "image.save", "", ref)
	if err := a.queue(ctx); err != nil {
		return a.done(err)
	}
	return a.done(s.Actions.SaveImage(ctx, c, ref, w))
}

// CreateVolume implements server.Service.
func (s *service) CreateVolume(ctx context.Context, c peer.Cred, req api.VolumeRequest) (v *api.Volume, err error) {
	a := s.r.begin(ctx, c, "volume.create", "", req.Name)
	a.Agent, a.Asked = req.Agent, asked(req)
	err = s.working(ctx, a, func() error {
		v, err = s.Actions.CreateVolume(ctx, c, req)
		return err
	})
	return v, err
}

// RemoveVolume implements server.Service.
func (s *service) RemoveVolume(ctx context.Context, c peer.Cred, name string) error {
	a := s.r.begin(ctx, c, "volume.remove", "", name)
	a.keep(ctx)
	return a.done(s.Actions.RemoveVolume(ctx, c, name))
}

// SetSecret implements server.Service. The value is in no record.
func (s *service) SetSecret(ctx context.Context, c peer.Cred, name string, req api.SecretRequest) (out *api.Secret, err error) {
	a := s.r.begin(ctx, c, "secret.set", "", name)
	a.Asked = map[string]string{
		"rule": req.Rule, "place": strings.TrimSpace(req.Place.Kind + " " + req.Place.Name), "env": req.Env, "agents": strings.Join(req.Agents, ", "),
	}
	err = s.working(ctx, a, func() error {
		out, err = s.Actions.SetSecret(ctx, c, name, req)
		return err
	})
	return out, err
}

// RemoveSecret implements server.Service.
func (s *service) RemoveSecret(ctx context.Context, c peer.Cred, name string) error {
	a := s.r.begin(ctx, c, "secret.remove", "", name)
	a.keep(ctx)
	return a.done(s.Actions.RemoveSecret(ctx, c, name))
}

// RevokeAgent implements server.Service.
func (s *service) RevokeAgent(ctx context.Context, c peer.Cred, ref string) (*api.Agent, error) {
	a := s.r.begin(ctx, c, "agent.revoke", "", ref)
	a.keep(ctx)
	agent, err := s.Actions.RevokeAgent(ctx, c, ref)
	a.agent(agent)
	return agent, a.done(err)
}

// ExpireAgent implements server.Service.
func (s *service) ExpireAgent(ctx context.Context, c peer.Cred, ref string, at time.Time) (agent *api.Agent, err error) {
	a := s.r.begin(ctx, c, "agent.expire", "", ref)
	a.Asked = map[string]string{"at": "never"}
	if !at.IsZero() {
		a.Asked["at"] = at.UTC().Format(time.RFC3339)
	}
	err = s.working(ctx, a, func() error {
		agent, err = s.Actions.ExpireAgent(ctx, c, ref, at)
		a.agent(agent)
		return err
	})
	return agent, err
}

// RestoreAgent implements server.Service.
func (s *service) RestoreAgent(ctx context.Context, c peer.Cred, ref string) (agent *api.Agent, err error) {
	a := s.r.begin(ctx, c, "agent.restore", "", ref)
	err = s.working(ctx, a, func() error {
		agent, err = s.Actions.RestoreAgent(ctx, c, ref)
		a.agent(agent)
		return err
	})
	return agent, err
}

// agent is whom it was done to.
func (a *action) agent(g *api.Agent) {
	if g != nil {
		a.Agent, a.Object = g.Name, g.ID
	}
}

// Prune implements server.Service. One that only says what it would do is not
// recorded.
func (s *service) Prune(ctx context.Context, c peer.Cred, req api.PruneRequest) (res *api.PruneResult, err error) {
	if req.DryRun {
		return s.Actions.Prune(ctx, c, req)
	}
	a := s.r.begin(ctx, c, "system.prune", "", "")
	a.Asked = asked(req)
	a.keep(ctx)
	res, err = s.Actions.Prune(ctx, c, req)
	if res != nil {
		a.Detail = map[string]string{"items": strconv.Itoa(len(res.Items)), "bytes": strconv.FormatInt(res.Bytes, 10)}
	}
	return res, a.done(err)
}
