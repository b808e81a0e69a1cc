package launcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/logs"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
	"github.com/creel-sandbox/creel/pkg/proctree"
	"github.com/creel-sandbox/creel/pkg/rootfs"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/volume"
)

// Spawn admits a request and launches it.
func (l *Launcher) Spawn(ctx context.Context, c peer.Cred, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, error) {
	req, dirs, done, err := l.openPaths(ctx, c, req, dirs)
	if err != nil {
		return nil, err
	}
	defer done()
	t := newTrace()
	a, err := l.admit(ctx, c, req, dirs)
	if err != nil {
		return nil, err
	}
	t.end("admission", t.start)
	res, err := l.Launch(ctx, c, a, dirs, nil, t)
	return shownResult(c, res, err)
}

// admit is the request with nothing left open, if the caller may have it at
// all. Whether its totals have room is asked when the record is made.
func (l *Launcher) admit(ctx context.Context, c peer.Cred, req api.SpawnRequest, dirs []*os.File) (*admission.Admitted, error) {
	a, parent, err := l.resolve(ctx, c, req)
	if err != nil {
		return nil, err
	}
	rules, err := l.judge(ctx, c, a, parent, dirs)
	if err != nil {
		return nil, err
	}
	box, err := l.Callers.Box()
	if err != nil {
		return nil, err
	}
	if err := admission.Refusal(append(rules, box...)); err != nil {
		return nil, err
	}
	if err := errors.Join(l.hostCan(a), l.roomForLayer(a)); err != nil {
		return nil, err
	}
	if parent != nil {
		// It is not idle, and one that was paused for that is woken.
		return a, parent.active(ctx)
	}
	return a, nil
}

// hostCan is nil if this host can do what is asked for.
func (l *Launcher) hostCan(a *admission.Admitted) error {
	mounts := len(volume.Mounts(a.Request)) > 0
	if l.BlindRuntime && (mounts || a.Request.Rootfs == "ephemeral") {
		return api.Errorf(api.CodeUnsupportedHost, "mounts and writable roots need a containerd that sees what creeld mounts; the one configured is in another mount namespace").
			WithHint("have the operator leave containerd.address empty, or run that containerd in the host's mount namespace")
	}
	if l.Egress == nil && a.Request.Network == admission.PolicyNetwork {
		return api.Errorf(api.CodeUnsupportedHost, "no network on this host: %w", l.NoEgress)
	}
	if l.Peers == nil && a.Profile.UnixPeers != "preferred" && mounts {
		return api.Errorf(api.CodeUnsupportedHost, "profile %s mounts nothing on this host: a Unix socket in it would connect the sandbox with processes outside, and %w", a.Profile.Name, l.NoPeers).
			WithHint("boot with bpf in lsm=, copy files in with creel cp, or use a profile with unix_peers = \"preferred\"")
	}
	return nil
}

// judge holds a request against the caller's ceiling and the parent, if it has
// one, but for their totals, and refuses a revoked agent, for which nothing is to be made: no home either.
// Whoever is revoked later is refused where the record is made.
func (l *Launcher) judge(ctx context.Context, c peer.Cred, a *admission.Admitted, parent *sandbox, dirs []*os.File) ([]api.Rule, error) {
	if err := l.Agents.Check(c.UID, a.Request.Agent, time.Now()); err != nil {
		return nil, err
	}
	refs, err := l.secretsOf(c, a, parent)
	if err != nil {
		return nil, err
	}
	q := policy.Question{
		Secrets: refs,
		Caller:  c, Admitted: a, Host: l.HostMounts, Dirs: make([]*os.File, len(a.Request.Mounts)),
		Names: func(ctx context.Context) ([]string, error) { return l.Runtime.Names(ctx, c.UID, a.Request.Image) },
	}
	for i, m := range a.Request.Mounts {
		if m.Volume != "" {
			continue
		}
		dir, err := dirOf(i, m, dirs)
		if err != nil {
			return nil, err
		}
		q.Dirs[i] = dir
	}
	rules, err := l.Callers.Judge(ctx, q)
	if err != nil || parent == nil {
		return rules, err
	}
	birth, err := l.judgeBirth(ctx, c, parent, a, dirs)
	return append(rules, birth...), err
}

// Explain says what a spawn would be answered now, rule by rule, and has no
// effect.
func (l *Launcher) Explain(ctx context.Context, c peer.Cred, req api.SpawnRequest, dirs []*os.File) (*api.Decision, error) {
	req, dirs, done, err := l.openPaths(ctx, c, req, dirs)
	if err != nil {
		return nil, err
	}
	defer done()
	d := &api.Decision{Allowed: true, Ceiling: l.Callers.Name(c), Rules: []api.Rule{}}
	a, parent, err := l.resolve(ctx, c, req)
	if err == nil {
		d.Rules, err = l.rules(ctx, c, a, parent, dirs)
	}
	if err != nil {
		why, err := admission.Explained(err)
		if err != nil {
			return nil, err
		}
		d.Rules = append(d.Rules, why...)
	}
	for _, r := range d.Rules {
		d.Allowed = d.Allowed && r.OK
	}
	return d, nil
}

// rules are all that Spawn asks, in its order. It stops, with what there is, at
// what leaves nothing to ask further.
func (l *Launcher) rules(ctx context.Context, c peer.Cred, a *admission.Admitted, parent *sandbox, dirs []*os.File) ([]api.Rule, error) {
	all, err := l.judge(ctx, c, a, parent, dirs)
	if err != nil {
		return all, err
	}
	box, err := l.Callers.Box()
	if err != nil {
		return all, err
	}
	room, err := l.roomNow(c, parent.line(), admission.SumOf(a.Request.Rootfs == "ephemeral", a.Limits))
	if err != nil {
		return all, err
	}
	all = slices.Concat(all, l.Callers.Rate(c), room, box)
	if err := l.hostCan(a); err != nil {
		return all, err
	}
	if err := l.roomForLayer(a); err != nil {
		return all, err
	}
	if _, err := l.Runtime.Resolve(ctx, c.UID, a.Request.Image); err != nil {
		return all, err
	}
	named := a.Request
	named.Home = "" // a spawn makes that one
	return all, l.volumes.Use(c.UID, named, func([]store.VolumeUse) error { return nil })
}

// roomForLayer is nil if the disk has room for what the sandbox may write.
func (l *Launcher) roomForLayer(a *admission.Admitted) error {
	layer := rootfs.Options{Limit: a.Limits.Disk, Memory: a.Limits.Memory}
	if a.Request.Rootfs == "ephemeral" && layer.OnDisk() || a.Request.Home == "persistent" {
		return l.RoomOnDisk()
	}
	return nil
}

// List is the caller's sandboxes, newest first.
func (l *Launcher) List(ctx context.Context, c peer.Cred, o server.ListOptions) ([]api.Sandbox, error) {
	out := []api.Sandbox{}
	for _, sb := range l.all() {
		if !l.mayUse(c, sb) {
			continue
		}
		v := shown(c, sb.view())
		if wanted(v, o) {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b api.Sandbox) int { return b.Created.Compare(a.Created) })
	l.markMoved(ctx, out)
	return out, nil
}

// movedTime is how long containerd may take to say what names stand for now;
// a list does not wait for one that is down.
const movedTime = 2 * time.Second

// markMoved says of each sandbox whether the name of its image is another's by
// now: each name is asked for once, as the sandbox's caller.
func (l *Launcher) markMoved(ctx context.Context, list []api.Sandbox) {
	ctx, cancel := context.WithTimeout(ctx, movedTime)
	defer cancel()
	type name struct {
		uid uint32
		ref string
	}
	now := map[name]string{}
	for i := range list {
		v := &list[i]
		n := name{v.Caller.UID, v.Image}
		if strings.HasPrefix(v.Image, "sha256:") {
			continue
		}
		digest, asked := now[n]
		if !asked {
			var err error
			digest, err = l.Runtime.Resolve(ctx, n.uid, n.ref)
			if err != nil && api.CodeOf(err) != api.CodeNotFound {
				return // not known now, of any
			}
			now[n] = digest
		}
		v.ImageMoved = digest != v.ImageDigest
	}
}

func wanted(v api.Sandbox, o server.ListOptions) bool {
	switch {
	case v.State == api.StateRemoving:
		return false
	case len(o.States) > 0 && !slices.Contains(o.States, v.State):
		return false
	case len(o.States) == 0 && !o.All && ended(v.State):
		return false
	case len(o.Agents) > 0 && !slices.Contains(o.Agents, v.Agent):
		return false
	case len(o.Images) > 0 && !slices.Contains(o.Images, v.Image) && !slices.Contains(o.Images, v.ImageDigest):
		return false
	}
	return hasLabels(v.Labels, o.Labels)
}

// hasLabels says whether all of want are there.
func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Get is one sandbox.
func (l *Launcher) Get(ctx context.Context, c peer.Cred, ref string) (*api.Sandbox, error) {
	sb, err := l.find(c, ref)
	if err != nil {
		return nil, err
	}
	one := []api.Sandbox{shown(c, sb.view())}
	l.markMoved(ctx, one)
	return &one[0], nil
}

// Stop ends a sandbox and says how it ended.
func (l *Launcher) Stop(ctx context.Context, c peer.Cred, ref string, grace time.Duration) (*api.WaitResult, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	if err := sb.stop(ctx, grace); err != nil {
		return nil, err
	}
	return sb.result(), nil
}

// Kill sends a signal to the main command; SIGKILL ends the sandbox.
func (l *Launcher) Kill(_ context.Context, c peer.Cred, ref string, sig syscall.Signal) error {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return err
	}
	return sb.kill(sig)
}

// Pause freezes the agent's processes.
func (l *Launcher) Pause(ctx context.Context, c peer.Cred, ref string) error {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return err
	}
	return sb.pause(ctx, "")
}

// Resume lets them go on.
func (l *Launcher) Resume(ctx context.Context, c peer.Cred, ref string) error {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return err
	}
	return sb.resume(ctx)
}

// Remove forgets an ended sandbox.
func (l *Launcher) Remove(ctx context.Context, c peer.Cred, ref string, force bool) error {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return err
	}
	return sb.remove(ctx, force)
}

// Wait returns when the sandbox has ended.
func (l *Launcher) Wait(ctx context.Context, c peer.Cred, ref string) (*api.WaitResult, error) {
	sb, err := l.find(c, ref)
	if err != nil {
		return nil, err
	}
	select {
	case <-sb.done:
		return sb.result(), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (sb *sandbox) result() *api.WaitResult {
	v := sb.view()
	r := &api.WaitResult{ID: v.ID, State: v.State, Reason: v.Reason, LimitsHit: v.LimitsHit}
	if v.ExitCode != nil {
		r.ExitCode = *v.ExitCode
	}
	return r
}

// Exec starts a command.
func (l *Launcher) Exec(ctx context.Context, c peer.Cred, ref string, req api.ExecRequest) (server.Session, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	if err := l.Callers.Exec(c); err != nil {
		return nil, err
	}
	if ps := insideLabels(req.Labels); c.Via != "" && len(ps) > 0 {
		return nil, invalid(ps)
	}
	s, err := sb.exec(ctx, req)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Attach joins the main command.
func (l *Launcher) Attach(ctx context.Context, c peer.Cred, ref string, o server.AttachOptions) (server.Session, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	a, err := sb.attach(ctx, o)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Logs reads what is kept of the output.
func (l *Launcher) Logs(ctx context.Context, c peer.Cred, ref string, o server.LogOptions, emit func(server.Output) error) error {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return err
	}
	of, source, err := sb.logsOf(o.Exec)
	if err != nil {
		return err
	}
	follow := o.Follow && !ended(sb.state())
	if follow {
		sb.client(1)
		defer sb.client(-1)
	}
	opts := logs.ReadOptions{Follow: follow, Tail: max(o.Tail, 0), Since: o.Since, Source: source}
	if o.Tail == 0 && opts.Since.IsZero() {
		opts.Since = time.Now() // no line of what is kept
	}
	return logs.Read(ctx, of, opts, func(p logs.Piece) error {
		out := server.Output{Exec: p.Source, Stdout: p.Stream == logs.Stdout, At: p.At, Data: p.Data}
		if p.Source == "" && p.Stream != logs.Lost {
			out.Exec = mainID
		}
		return emit(out)
	})
}

// Stats is what a sandbox uses now.
func (l *Launcher) Stats(_ context.Context, c peer.Cred, ref string) (*api.Stats, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	if ended(sb.state()) {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	st, err := sb.cg.Stats()
	if errors.Is(err, fs.ErrNotExist) { // since its state was looked at
		return nil, api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	if err != nil {
		return nil, err
	}
	st.Name = sb.view().Name
	return &st, nil
}

// maxProcesses is how many processes of a sandbox are shown.
const maxProcesses = 1000

// Top is the processes of a sandbox. Which exec one came from its cgroup says,
// whatever it was re-parented to since.
func (l *Launcher) Top(ctx context.Context, c peer.Cred, ref string) (*api.Top, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	if ended(sb.state()) {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	groups := []proctree.Group{{Pids: sb.cg.Init}}
	execs := sb.cg.Execs()
	if i := slices.Index(execs, mainID); i > 0 {
		execs = slices.Insert(slices.Delete(execs, i, i+1), 0, mainID)
	}
	for _, id := range execs {
		cg, err := sb.cg.Exec(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just ended
		}
		if err != nil {
			return nil, err
		}
		groups = append(groups, proctree.Group{Exec: id, Pids: cg.Pids})
	}
	top := &api.Top{ID: sb.id, Name: sb.view().Name, Read: time.Now()}
	top.Processes, top.Truncated, err = l.procs.Read(ctx, groups, maxProcesses)
	return top, err
}

// Execs are the execs of a sandbox that run or are kept, by their start.
func (l *Launcher) Execs(_ context.Context, c peer.Cred, ref string, labels map[string]string) ([]api.Exec, error) {
	sb, err := l.find(c, ref)
	if err != nil {
		return nil, err
	}
	// Memory first: what ends between the two reads is then still in it.
	now := map[string]api.Exec{}
	sb.mu.Lock()
	for _, s := range sb.execs {
		if s.ready && !s.internal {
			now[s.id] = s.view()
		}
	}
	for _, s := range sb.unkept {
		now[s.id] = s.view()
	}
	sb.mu.Unlock()
	kept, err := l.Store.Execs(sb.id)
	if err != nil {
		return nil, err
	}
	all := []api.Exec{}
	for _, e := range kept {
		if _, newer := now[e.ID]; !newer {
			all = append(all, e)
		}
	}
	all = slices.AppendSeq(all, maps.Values(now))
	all = slices.DeleteFunc(all, func(e api.Exec) bool { return !hasLabels(e.Labels, labels) })
	for i := range all {
		if all[i].Command == nil {
			all[i].Command = []string{} // written by a creel that did not keep it
		}
	}
	slices.SortStableFunc(all, func(a, b api.Exec) int { return a.Started.Compare(b.Started) })
	return all, nil
}

// Events gives the events that the caller may see.
func (l *Launcher) Events(ctx context.Context, c peer.Cred, after uint64, emit func(api.Event) error) error {
	own := fmt.Sprint(c.UID)
	return l.Bus.Follow(ctx, after, func(e api.Event) error {
		if e.Fields[events.CallerField] != own && !l.Callers.Operator(c) { // asked each time: a stream outlives a reload
			return nil
		}
		return emit(e)
	})
}

// Evidence is what was proven of a sandbox, newest first.
func (l *Launcher) Evidence(ctx context.Context, c peer.Cred, ref string, fresh bool) ([]api.Evidence, error) {
	sb, err := l.find(c, ref)
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := sb.launched(); err != nil {
			return nil, err
		}
		if ended(sb.state()) {
			return nil, api.Errorf(api.CodeConflict, "sandbox %s has ended; its evidence is kept, and cannot be taken again", sb.id)
		}
		if err := sb.proveAgain(ctx, "request"); err != nil {
			return nil, err
		}
	}
	kept, err := l.Store.Evidence(sb.id)
	if err != nil {
		return nil, err
	}
	slices.Reverse(kept)
	return kept, nil
}

// CreateVolume makes a volume.
func (l *Launcher) CreateVolume(ctx context.Context, c peer.Cred, req api.VolumeRequest) (*api.Volume, error) {
	// Formatting is work for the host as a launch is.
	select {
	case l.launches <- struct{}{}:
		defer func() { <-l.launches }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return l.volumes.Create(ctx, c, req)
}

// Volumes are the caller's, by name.
func (l *Launcher) Volumes(_ context.Context, c peer.Cred) ([]api.Volume, error) {
	return l.volumes.List(c)
}

// Volume is one of them.
func (l *Launcher) Volume(_ context.Context, c peer.Cred, name string) (*api.Volume, error) {
	return l.volumes.Get(c, name)
}

// RemoveVolume removes a volume that no sandbox uses.
func (l *Launcher) RemoveVolume(ctx context.Context, c peer.Cred, name string) error {
	return l.volumes.Remove(ctx, c, name)
}

// StrayVolumes are the ids of volumes that no record knows.
func (l *Launcher) StrayVolumes() ([]string, error) { return l.volumes.Strays() }
