package daemon

import (
	"context"
	"fmt"
	"io"
	"os/user"
	"runtime"
	"sync"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/launcher"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/profile"
	creelruntime "github.com/creel-sandbox/creel/pkg/runtime"
	"github.com/creel-sandbox/creel/pkg/server"
)

// service is the whole API: sandboxes are the launcher's, images the
// runtime's, and the rest is about the box.
type service struct {
	*launcher.Launcher
	rt      *creelruntime.Client
	d       *daemon
	imports imports
	naming  sync.Mutex
}

var _ server.Actions = (*service)(nil)

// owner is whose images a caller's are: an operator's are the box's.
func (s *service) owner(c peer.Cred) uint32 {
	if s.Callers.Operator(c) {
		return 0
	}
	return c.UID
}

// Images lists what the caller may use: its own, and the box's.
func (s *service) Images(ctx context.Context, c peer.Cred) ([]api.Image, error) {
	return s.rt.Images(ctx, s.owner(c))
}

// Image is one of them.
func (s *service) Image(ctx context.Context, c peer.Cred, ref string) (*api.Image, error) {
	img, err := s.rt.Image(ctx, s.owner(c), ref)
	if err != nil {
		return nil, err
	}
	return &img, nil
}

// ImportImage takes an archive. What an operator imports is everybody's; anybody
// else's is that caller's alone, so that no caller starts from what another
// has put under a name.
func (s *service) ImportImage(ctx context.Context, c peer.Cred, ref string, r io.Reader) (*api.Image, error) {
	limits, end, err := s.newImage(ctx, c)
	if err != nil {
		return nil, err
	}
	defer end()
	img, err := s.rt.Import(ctx, s.owner(c), &roomyReader{r: r, room: s.RoomOnDisk}, ref, limits)
	if err != nil {
		return nil, boundBy(limits, err)
	}
	return &img, nil
}

// TagImage gives an image one more name, which is the caller's. One at a time,
// so that what is counted first is what there is.
func (s *service) TagImage(ctx context.Context, c peer.Cred, source, ref string) (*api.Image, error) {
	s.naming.Lock()
	defer s.naming.Unlock()
	if _, err := s.roomForImage(ctx, c); err != nil {
		return nil, err
	}
	img, err := s.rt.Tag(ctx, s.owner(c), source, ref)
	if err != nil {
		return nil, err
	}
	return &img, nil
}

// SaveImage writes an archive of what the caller may use.
func (s *service) SaveImage(ctx context.Context, c peer.Cred, ref string, w io.Writer) error {
	if err := s.imports.begin(c.UID, maxImports); err != nil {
		return err
	}
	defer s.imports.end(c.UID)
	return s.rt.Save(ctx, s.owner(c), ref, w)
}

// RemoveImage forgets a reference of the caller's.
func (s *service) RemoveImage(ctx context.Context, c peer.Cred, ref string) error {
	return s.rt.RemoveImage(ctx, s.owner(c), ref)
}

// Agents are the caller's, an operator's everybody's.
func (s *service) Agents(_ context.Context, c peer.Cred) ([]api.Agent, error) {
	return s.ListAgents(c), nil
}

// Agent is one of them.
func (s *service) Agent(_ context.Context, c peer.Cred, ref string) (*api.Agent, error) {
	return s.FindAgent(c, ref)
}

// Profiles are the daemon's.
func (s *service) Profiles(context.Context, peer.Cred) ([]api.Profile, error) {
	out := []api.Profile{}
	for _, name := range s.Policy.Profiles.Names() {
		out = append(out, profileOf(s.Policy.Profiles[name]))
	}
	return out, nil
}

// Profile is one of them.
func (s *service) Profile(_ context.Context, _ peer.Cred, name string) (*api.Profile, error) {
	p, err := s.Policy.Profiles.Get(name)
	if err != nil {
		return nil, api.Errorf(api.CodeNotFound, "%w", err)
	}
	out := profileOf(p)
	return &out, nil
}

// CheckProfile says what is wrong with a profile.
func (s *service) CheckProfile(_ context.Context, _ peer.Cred, toml []byte) error {
	if _, err := profile.Parse(toml); err != nil {
		return api.Errorf(api.CodeInvalid, "%w", err)
	}
	return nil
}

func profileOf(p *profile.Profile) api.Profile {
	return api.Profile{Name: p.Name, Description: p.Description, Source: p.Source, TOML: p.Text}
}

// Version names the daemon and what it drives.
func (s *service) Version(context.Context) api.Version {
	v := s.d.versions
	name := s.d.cfg.Runtime.Default
	have := map[string]string{"crun": v.Crun, "runc": v.Runc}[name]
	return api.Version{
		Creel: api.BuildVersion, API: "v1", Go: runtime.Version(), Kernel: v.Kernel,
		Containerd: v.Containerd, Runtime: name, RuntimeVer: have, Cgroup: s.d.cgroups.Version(),
		Policy: s.d.reloads.number(),
	}
}

// Doctor checks the host. A caller may ask about itself only; an operator about all.
func (s *service) Doctor(ctx context.Context, c peer.Cred, user, dir string) (*api.Doctor, error) {
	operator := s.Callers.Operator(c)
	if !operator && user != "" {
		if err := isSelf(c.UID, user); err != nil {
			return nil, err
		}
	}
	if !operator && dir != "" && user == "" {
		user = fmt.Sprint(c.UID)
	}
	leftovers, err := s.Leftovers(ctx)
	if err != nil {
		return nil, err
	}
	stray, err := s.StrayVolumes()
	if err != nil {
		return nil, err
	}
	for _, id := range stray {
		leftovers = append(leftovers, "volume "+id)
	}
	in := inputs(s.d.cfg, s.d.versions)
	in.User, in.Workspace, in.Leftovers = user, dir, leftovers
	in.More = append(in.More, s.d.reloads.check(operator), peersCheck(s.d.noPeers))
	in.CgroupVersion, in.CgroupWeaker = s.d.cgroups.Version(), s.d.cgroups.Weaker()
	out := doctor.Run(ctx, in)
	return &out, nil
}

// isSelf refuses a caller that asks about somebody else: the answer would
// tell what that user can reach.
func isSelf(uid uint32, name string) error {
	own := fmt.Sprint(uid)
	if name == own {
		return nil
	}
	if u, err := user.Lookup(name); err == nil && u.Uid == own {
		return nil
	}
	return api.Errorf(api.CodeDenied, "only an operator may ask about another user than itself")
}
