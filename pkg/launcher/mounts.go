package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/share"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/verify"
	"github.com/creel-sandbox/creel/pkg/volume"
	"github.com/creel-sandbox/creel/pkg/weaken"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// stageMounts turns the caller's directory descriptors and volumes into
// id-mapped trees below the sandbox's directory.
func (s *launch) stageMounts(ctx context.Context) error {
	mounts := volume.Mounts(s.Request)
	if len(mounts) == 0 {
		return nil
	}
	if len(s.sb.fixed.Volumes) > 0 {
		s.did("volumes")
	}
	s.did("mounts")
	base := filepath.Join(s.l.dir(s.id), "mnt")
	if err := os.Mkdir(base, 0o700); err != nil {
		return err
	}
	agent := s.sb.fixed.Sandbox.HostUID + spec.AgentUID
	users, err := idmap.ForCaller(ctx, s.caller.UID, s.caller.GID, agent, agent, s.sb.fixed.Groups)
	if err != nil {
		return err
	}
	defer users.Close()
	var all []store.Mount
	for i, m := range mounts {
		var rec store.Mount
		staged := filepath.Join(base, fmt.Sprint(i))
		if m.Volume != "" {
			if rec, err = s.stageVolume(ctx, m, staged); err != nil {
				return fmt.Errorf("volume %s: %w", m.Volume, err)
			}
		} else if rec, err = s.stageDir(ctx, i, staged, users); err != nil {
			return err
		}
		all = append(all, rec)
	}
	if err := s.claim(ctx, all); err != nil {
		return err
	}
	through, err := s.protect(all)
	if err != nil {
		return err
	}
	return errors.Join(nest(all, through), failpoint.Hit("launch.nested"))
}

// nest puts mounts whose targets are in one another together.
func nest(ms []store.Mount, through map[int][]uint64) error {
	if failpoint.On("layer.mount.nested") {
		return nil
	}
	places := make([]mount.Place, len(ms))
	for i, m := range ms {
		places[i] = mount.Place{Staged: m.Staged, Target: m.Target, Through: through[i]}
	}
	return mount.Nest(places)
}

// stageDir shows the caller's directory of the request's mount i.
func (s *launch) stageDir(ctx context.Context, i int, staged string, users *os.File) (store.Mount, error) {
	m := s.Request.Mounts[i]
	dir, err := dirOf(i, m, s.dirs)
	if err != nil {
		return store.Mount{}, err
	}
	agent := s.sb.fixed.Sandbox.HostUID + spec.AgentUID
	tree, _, err := s.l.mounts.Stage(ctx, mount.Request{
		Dir: dir, Namespaces: s.namespaces(), Host: s.l.HostMounts, UserNS: users,
		Target: staged, ReadOnly: m.ReadOnly,
		CallerUID: s.caller.UID, CallerGID: s.caller.GID, AgentUID: agent, AgentGID: agent, Groups: s.sb.fixed.Groups,
	})
	if err != nil {
		return store.Mount{}, fmt.Errorf("mount %s: %w", m.Source, err)
	}
	if err := weaken.Mount(staged, m.Source); err != nil {
		return store.Mount{}, err
	}
	return store.Mount{Staged: staged, Target: m.Target, Dev: tree.Dev, Inode: tree.Inode, ReadOnly: m.ReadOnly, Own: m.Own, Protect: m.Protect}, nil
}

// openPaths opens what the request's mounts name by path alone, as the caller
// would, and gives them descriptors as if the caller had sent them; done closes
// these. Everything after knows descriptors only.
func (l *Launcher) openPaths(ctx context.Context, c peer.Cred, req api.SpawnRequest, dirs []*os.File) (_ api.SpawnRequest, _ []*os.File, done func(), err error) {
	if c.Via != "" {
		req, err = inside(c, req)
		return req, nil, func() {}, err
	}
	sent := len(dirs)
	dirs = slices.Clip(dirs)
	closeOpened := func() {
		for _, f := range dirs[sent:] {
			_ = f.Close()
		}
	}
	if !l.MountPaths || len(req.Mounts) > admission.MaxMounts {
		return req, dirs, closeOpened, nil // admission refuses it
	}
	defer func() {
		if err != nil {
			closeOpened()
		}
	}()
	req.Mounts = slices.Clone(req.Mounts)
	for i, m := range req.Mounts {
		if m.FD != nil || m.Volume != "" || m.Source == "" {
			continue
		}
		f, err := c.OpenDir(ctx, m.Source)
		if err != nil {
			return req, nil, nil, fmt.Errorf("mounts[%d].source: %w", i, err)
		}
		n := len(dirs)
		dirs, req.Mounts[i].FD = append(dirs, f), &n
	}
	return req, dirs, closeOpened, nil
}

// dirOf is the descriptor that came for the mount with number i.
func dirOf(i int, m api.Mount, dirs []*os.File) (*os.File, error) {
	if m.FD == nil || *m.FD < 0 || *m.FD >= len(dirs) {
		e := api.Errorf(api.CodeInvalid, "the request has 1 problem(s)")
		e.Problems = []api.Problem{{Field: fmt.Sprintf("mounts[%d].fd", i), Want: fmt.Sprintf("one of the %d descriptors sent with the request", len(dirs))}}
		if m.FD != nil {
			e.Problems[0].Value = fmt.Sprint(*m.FD)
		}
		return nil, e
	}
	return dirs[*m.FD], nil
}

// namespaces are where a caller's descriptors may be: its own mount
// namespace, and the host's.
func (s *launch) namespaces() []*os.File {
	if s.caller.PIDFD == nil {
		return []*os.File{s.l.HostMounts}
	}
	return []*os.File{s.caller.PIDFD, s.l.HostMounts}
}

// claim puts the staged mounts on record, unless one is a directory that
// another agent can write and this one could, too, and no grant of the
// operator's lets them: through it the two would reach each other. Directories count as one when the one is in the other, as
// their file system has it now; what a caller moves later is not looked at.
// A read-only mount claims nothing and is refused nothing, but for one that is to
// be a sandbox's own: nobody else has that at all.
func (s *launch) claim(ctx context.Context, ms []store.Mount) error {
	grants, err := s.grants(ctx, ms)
	if err != nil {
		return err
	}
	defer closeGrants(grants)
	timeout := time.NewTimer(killTimeout)
	defer timeout.Stop()
	for {
		holder, i, err := s.tryClaim(ms, grants)
		if holder == nil || err != nil {
			return err
		}
		if ended(holder.state()) {
			// Its clean-up goes on after the answer to who ended it.
			select {
			case <-holder.gone:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-timeout.C:
			}
		}
		by, grant := "a sandbox of another user's", "the operator can let agents share a directory ([[share]])"
		if r := holder.identity(); s.l.mayUse(s.caller, holder) {
			by = fmt.Sprintf("sandbox %s (%s) of agent %s", r.Sandbox.Name, holder.id, r.Sandbox.Agent)
			grant = fmt.Sprintf("or have the operator grant it: [[share]] path = %q, agents = [%q, %q]",
				s.Request.Mounts[i].Source, agentOf(&r.Sandbox), agentOf(&s.sb.fixed.Sandbox))
		}
		if ms[i].Own || !claims(ms[i]) || holder.owns(ms[i].Staged) {
			return api.Errorf(api.CodeConflict, "%s, or a directory in it or above it, is mounted in %s, and in one of the two it is to be nobody else's", s.Request.Mounts[i].Source, by).
				WithHint("use another directory, or wait until that sandbox has ended")
		}
		return api.Errorf(api.CodeConflict, "%s, or a directory in it or above it, is writable in %s", s.Request.Mounts[i].Source, by).
			WithHint("mount it read-only, use another directory, or wait until that sandbox has ended; " + grant)
	}
}

// tryClaim puts the mounts on record, or finds who holds the directory of the
// i-th. One launch does so at a time, so of two that want the same one is first.
func (s *launch) tryClaim(ms []store.Mount, grants []grant) (holder *sandbox, i int, err error) {
	s.l.claimMu.Lock()
	defer s.l.claimMu.Unlock()
	own := s.sb.fixed.Sandbox
	for _, sb := range s.l.all() {
		r := sb.identity().Sandbox
		if sb == s.sb || sb.isGone() {
			continue
		}
		same := r.Caller.UID == own.Caller.UID && r.Agent == own.Agent
		sb.mu.Lock()
		held := sb.rec.Mounts
		sb.mu.Unlock()
		for i, m := range ms {
			for _, h := range held {
				exclusive := (m.Own || h.Own) && m.Volume == "" && h.Volume == ""
				if !exclusive && (same || !claims(m) || !claims(h)) {
					continue
				}
				related, err := mount.Related(m.Staged, h.Staged)
				if related && err == nil && !exclusive {
					related, err = ungranted(grants, i, agentOf(&r), h)
				}
				if err != nil {
					return nil, 0, err
				}
				if related {
					return sb, i, nil
				}
			}
		}
	}
	s.sb.amend(func(r *store.Record) {
		r.Mounts = ms
		for _, g := range grants {
			for _, i := range g.mounts {
				r.Sandbox.Shares = append(r.Sandbox.Shares, api.Share{Target: ms[i].Target, Path: g.Path, With: g.Others(agentOf(&own))})
			}
		}
	})
	return nil, 0, nil
}

// owns says whether a staged directory is related to one that is the sandbox's own.
func (sb *sandbox) owns(staged string) bool {
	sb.mu.Lock()
	held := slices.Clone(sb.rec.Mounts)
	sb.mu.Unlock()
	return slices.ContainsFunc(held, func(h store.Mount) bool {
		related, err := mount.Related(staged, h.Staged)
		return h.Own && (related || err != nil)
	})
}

// claims says whether a mount is a directory that the agent can write. A
// volume has its own agent.
func claims(m store.Mount) bool { return !m.ReadOnly && m.Volume == "" }

// stageVolume shows a volume below the sandbox's directory. Of the image only
// the kernel's own ext4 ever reads or writes a byte: the sandbox gets a clone
// of the mount, and neither the file nor its loop device.
func (s *launch) stageVolume(ctx context.Context, m api.Mount, staged string) (store.Mount, error) {
	uses := s.sb.fixed.Volumes
	use := uses[slices.IndexFunc(uses, func(u store.VolumeUse) bool { return u.Name == m.Volume })] // as the intent has it
	dir, device, err := s.l.volumes.Open(use)
	if err != nil {
		return store.Mount{}, err
	}
	defer dir.Close()
	first := s.sb.fixed.Sandbox.HostUID
	ids := []idmap.Map{{ID: 0, Host: first, Count: spec.RangeSize}}
	users, err := idmap.UserNS(ctx, ids, ids)
	if err != nil {
		return store.Mount{}, err
	}
	defer users.Close()
	_, err = mount.StageVolume(ctx, mount.Volume{Dir: dir, Target: staged, ReadOnly: m.ReadOnly, First: first, UserNS: users})
	if err != nil {
		return store.Mount{}, err
	}
	s.l.volumes.Touch(s.caller.UID, use)
	return store.Mount{Staged: staged, Target: m.Target, ReadOnly: m.ReadOnly, Volume: use.ID, Device: device}, nil
}

// releaseVolumes unmounts the volumes that only this sandbox used.
func (l *Launcher) releaseVolumes(id string) error {
	l.mu.Lock()
	sb := l.sandboxes[id]
	l.mu.Unlock()
	if sb == nil {
		return nil // what no record knows used none that a record knows: see volume.Settle
	}
	return l.volumes.Release(id, sb.fixed.Sandbox.Caller.UID, sb.fixed.Volumes)
}

// usersOf are the sandboxes that use a volume or may still have it mounted, by
// name. A record lists its volumes from the intent on.
func (l *Launcher) usersOf(id string) []volume.User {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []volume.User
	for _, sb := range l.sandboxes {
		if sb.isGone() {
			continue
		}
		r := sb.identity()
		i := slices.IndexFunc(r.Volumes, func(u store.VolumeUse) bool { return u.ID == id })
		if i < 0 {
			continue
		}
		u := volume.User{VolumeUse: api.VolumeUse{Sandbox: sb.id, Name: r.Sandbox.Name, Agent: r.Sandbox.Agent, ReadOnly: r.Volumes[i].ReadOnly}}
		if ended(sb.state()) {
			u.Gone = sb.gone
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b volume.User) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// grant is one of the operator's that a launch has a use for.
type grant struct {
	share.Grant
	dir    *os.File // what its path is now
	mounts []int    // the launch's mounts that are it, or in it
}

// grants are those that name the sandbox's agent and hold a directory that it
// mounts with write access. One whose directory cannot be opened grants
// nothing.
func (s *launch) grants(ctx context.Context, ms []store.Mount) (_ []grant, err error) {
	var out []grant
	defer func() {
		if err != nil {
			closeGrants(out)
		}
	}()
	for _, g := range s.l.Shares {
		if !g.Names(agentOf(&s.sb.fixed.Sandbox)) || !slices.ContainsFunc(ms, claims) {
			continue
		}
		dir, err := mount.OpenGranted(g.Path)
		if err != nil {
			s.l.log.WarnContext(ctx, "a directory of [[share]] is not shared", slog.String("path", g.Path), slog.Any("error", err))
			continue
		}
		out = append(out, grant{Grant: g, dir: dir})
		for i, m := range ms {
			if !claims(m) {
				continue
			}
			in, err := mount.Holds(dir, m.Staged)
			if err != nil {
				return nil, err
			}
			if in {
				last := &out[len(out)-1]
				last.mounts = append(last.mounts, i)
			}
		}
	}
	return out, nil
}

func closeGrants(gs []grant) {
	for _, g := range gs {
		_ = g.dir.Close()
	}
}

// ungranted says whether no grant lets another agent's sandbox, which holds h,
// share the launch's i-th mount. Both directories must be the granted one or
// in it: a writer of one above would reach more than was granted.
func ungranted(gs []grant, i int, other share.Agent, h store.Mount) (bool, error) {
	for _, g := range gs {
		if !g.Names(other) || !slices.Contains(g.mounts, i) {
			continue
		}
		in, err := mount.Holds(g.dir, h.Staged)
		if in || err != nil {
			return false, err
		}
	}
	return true, nil
}

func agentOf(sb *api.Sandbox) share.Agent { return share.Agent{UID: sb.Caller.UID, Name: sb.Agent} }

// specOf is the resolved sandbox of a record: at the launch and, for the
// proof, ever after. The network namespace's path is the launch's alone.
func (l *Launcher) specOf(r *store.Record) spec.Sandbox {
	ro := r.Sandbox.Rootfs == "readonly"
	s := spec.Sandbox{
		ID: r.Sandbox.ID, HostUID: r.Sandbox.HostUID, Profile: r.Sandbox.Profile, Runtime: r.Sandbox.Runtime,
		CgroupsPath: r.CgroupsPath, InitSource: filepath.Join(l.dir(r.Sandbox.ID), "init"),
		Hostname: r.Sandbox.Name, Limits: r.Sandbox.Limits, ReadonlyRoot: ro,
		User: r.Sandbox.User, Capabilities: r.Sandbox.Capabilities,
		Tmpfs:       spec.TmpfsOf(r.Sandbox.Limits, ro, r.Sandbox.Home == "persistent"),
		CgroupMount: l.Cgroups.Version() == "v2",
		SwapLimit:   l.Cgroups.LimitsSwap(),
		IOWeight:    l.Cgroups.WeighsIO(),
	}
	if r.Sandbox.Socket {
		s.SocketSource = l.socketDir(r.Sandbox.ID)
	}
	if reaches(&r.Sandbox) {
		s.ResolvConf = l.resolvConf(r.Sandbox.ID)
	}
	if opened(&r.Sandbox) {
		s.TrustSource = l.trustDir(&r.Sandbox)
	}
	for _, m := range r.Mounts {
		s.Mounts = append(s.Mounts, spec.Mount{Source: m.Staged, Target: m.Target, ReadOnly: m.ReadOnly, Tree: m.Protect})
	}
	return s
}

// devices are what the OCI spec gives every container
// (runtime-spec, config-linux.md, "Default Devices"); in a user namespace the
// runtimes bind the host's. The numbers are the kernel's
// (Documentation/admin-guide/devices.txt).
var devices = []struct {
	path string
	dev  uint64
}{
	{"/dev/null", devNull},
	{"/dev/zero", unix.Mkdev(1, 5)},
	{"/dev/full", unix.Mkdev(1, 7)},
	{"/dev/random", unix.Mkdev(1, 8)},
	{"/dev/urandom", unix.Mkdev(1, 9)},
	{"/dev/tty", unix.Mkdev(5, 0)},
}

// devNull is bound over masked files as well: unix.Mkdev(1, 3).
const devNull = 1<<8 | 3

// expectedMounts is the whole mount table of a sandbox: what the spec asks
// for, and what the runtime adds to keep the OCI spec's promises. files are what
// is mounted of the sandbox's own directory, by target.
func expectedMounts(sb *sandbox, files map[string]verify.FileID) []verify.Mount {
	sb.mu.Lock()
	rec := sb.rec
	sb.mu.Unlock()
	s := spec.Build(sb.l.specOf(&rec))
	root := verify.Mount{Target: "/", FSType: "overlay", Flags: []string{"nosuid", "nodev"}, Writable: !s.Root.Readonly}
	if s.Root.Readonly {
		root.Flags = append(root.Flags, "ro")
	}
	ms := []verify.Mount{root}
	files = maps.Clone(files)
	for _, m := range rec.Mounts {
		files[m.Target] = verify.FileID{Dev: m.Dev, Ino: m.Inode}
	}
	for _, m := range s.Mounts {
		v := expectedMount(m, sb.l.Cgroups.Version())
		v.File = files[m.Destination]
		ms = append(ms, v)
	}
	for _, m := range rec.Mounts {
		if !slices.ContainsFunc(s.Mounts, func(o specs.Mount) bool { return o.Destination == m.Target }) {
			// In another's tree: the runtime does nothing to it, and it is as staged.
			v := expectedMount(spec.Bind(spec.Mount{Target: m.Target, ReadOnly: m.ReadOnly}), "")
			v.File = files[m.Target]
			ms = append(ms, v)
		}
		if m.Volume == "" {
			continue
		}
		// The whole of that volume, by its device.
		i := slices.IndexFunc(ms, func(v verify.Mount) bool { return v.Target == m.Target })
		ms[i].FSType, ms[i].Source, ms[i].Root, ms[i].Writable = "ext4", m.Device, "/", !m.ReadOnly
	}
	for _, p := range rec.Protected {
		v := verify.Mount{Target: p.Target, Flags: []string{"nosuid", "nodev"}, Writable: !p.ReadOnly, File: verify.FileID{Dev: p.Dev, Ino: p.Inode}}
		if p.ReadOnly {
			v.Flags = append(v.Flags, "ro")
		}
		if !p.Empty {
			v.Flags = append(v.Flags, "idmapped")
		}
		ms = append(ms, v)
	}
	for _, d := range devices {
		ms = append(ms, verify.Mount{Target: d.path, Device: d.dev})
	}
	for _, p := range s.Linux.MaskedPaths {
		// The sandbox's /proc has what the host's kernel has.
		switch st, err := os.Stat(p); {
		case err != nil:
		case st.IsDir():
			ms = append(ms, verify.Mount{Target: p, FSType: "tmpfs", Flags: []string{"ro"}})
		default:
			ms = append(ms, verify.Mount{Target: p, Device: devNull})
		}
	}
	for _, p := range s.Linux.ReadonlyPaths {
		if _, err := os.Stat(p); err == nil {
			ms = append(ms, verify.Mount{Target: p, FSType: "proc", Flags: []string{"ro", "nosuid", "nodev", "noexec"}})
		}
	}
	return ms
}

func expectedMount(m specs.Mount, cgroupVersion string) verify.Mount {
	v := verify.Mount{Target: m.Destination}
	switch {
	case m.Type == "cgroup" && cgroupVersion == "v2":
		v.FSType = "cgroup2" // the spec has one name for both
	case m.Type != "bind":
		v.FSType = m.Type
	}
	for _, o := range m.Options {
		key, val, _ := strings.Cut(o, "=")
		n, _ := strconv.ParseUint(val, 10, 64) // spec.Build wrote it
		switch key {
		case "ro", "nosuid", "nodev", "noexec":
			v.Flags = append(v.Flags, key)
		case "size":
			v.Size = n
		case "nr_inodes":
			v.Inodes = n
		}
	}
	own := []string{spec.InitPath, spec.SocketDir, spec.ResolvConf, spec.TrustDir}
	if m.Type == "bind" && !slices.Contains(own, m.Destination) {
		v.Flags = append(v.Flags, "idmapped")
	}
	return v
}
