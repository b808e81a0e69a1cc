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
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/ownsocket"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
)

// A child has nothing that its parent does not have (pkg/admission judges), is
// of the same caller's, and ends with it. What is read of a parent to judge
// that never changes while it lives; that it lives is asked once more, with
// the lock under which the child's record is made.

// narrow fills in what a ceiling bounds and a request leaves open.
func (l *Launcher) narrow(c peer.Cred, req api.SpawnRequest) api.SpawnRequest {
	if ceiling := l.Callers.Ceiling(c); ceiling != nil {
		return ceiling.Narrow(req, l.Policy)
	}
	return req
}

// resolve is a request with nothing left open, and the sandbox that it is to
// be a child of, nil if it is to be none's.
func (l *Launcher) resolve(ctx context.Context, c peer.Cred, req api.SpawnRequest) (*admission.Admitted, *sandbox, error) {
	if req.Parent == "" {
		a, err := admission.Resolve(l.narrow(c, req), l.Policy)
		return a, nil, err
	}
	parent, err := l.findParent(c, req.Parent)
	if err == nil {
		parent, err = l.parent(c, parent.id)
	}
	if err != nil {
		return nil, nil, err
	}
	p := parent.asParent()
	full := l.narrow(c, p.Inherit(req, l.Policy))
	if req.Image == "" {
		// The name may be another image's by now.
		if digest, err := l.Runtime.Resolve(ctx, c.UID, full.Image); err != nil || digest != p.Sandbox.ImageDigest {
			full.Image = p.Sandbox.ImageDigest
		}
	}
	a, err := admission.Resolve(full, l.Policy)
	if err != nil {
		return nil, nil, err
	}
	p.Cap(a, full.Limits)
	return a, parent, nil
}

// findParent is find for a sandbox that is to have a child. Through its own
// socket a sandbox is not found, but may have one.
func (l *Launcher) findParent(c peer.Cred, ref string) (*sandbox, error) {
	if c.Via == "" || c.Via != ref {
		return l.findLaunched(c, ref)
	}
	return l.parent(c, ref)
}

// parent is the sandbox of that id if the caller may have children of it now;
// nil if the id is empty.
func (l *Launcher) parent(c peer.Cred, id string) (*sandbox, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.parentLocked(c, id)
}

func (l *Launcher) parentLocked(c peer.Cred, id string) (*sandbox, error) {
	if id == "" {
		return nil, nil
	}
	sb := l.sandboxes[id]
	switch {
	case sb == nil:
		return nil, api.Errorf(api.CodeNotFound, "no sandbox %q", id).WithHint("creel ps lists yours")
	case sb.fixed.Sandbox.Caller != api.Caller{UID: c.UID, GID: c.GID}:
		// An operator sees it. But what a child may do is its caller's to do,
		// and its files are those of that user and group.
		return nil, api.Errorf(api.CodeDenied, "sandbox %s is of another user or group", sb.id).
			WithHint("its children are for who launched it")
	case !sb.lives():
		return nil, api.Errorf(api.CodeConflict, "sandbox %s has ended, and can have no child", sb.id)
	}
	return sb, nil
}

// lives says whether a sandbox that was launched is neither ending nor ended.
func (sb *sandbox) lives() bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	state := sb.rec.Sandbox.State
	return !sb.ending && (state == api.StateRunning || state == api.StatePaused)
}

// orphan says whether it is the child of one that does not live any more.
func (sb *sandbox) orphan() bool {
	return sb.fixed.Sandbox.Parent != "" && (sb.parent == nil || !sb.parent.lives())
}

// line is a sandbox and those above it, itself first; none for nil.
func (sb *sandbox) line() []*sandbox {
	var out []*sandbox
	for ; sb != nil && len(out) <= admission.MaxDepth; sb = sb.parent {
		out = append(out, sb)
	}
	return out
}

func idsOf(line []*sandbox) []string {
	var out []string
	for _, sb := range line {
		out = append(out, sb.id)
	}
	return out
}

// asParent is what its children's requests are judged by.
func (sb *sandbox) asParent() *admission.Parent {
	return &admission.Parent{Sandbox: sb.fixed.Sandbox, Depth: len(sb.parent.line())}
}

// groups are those of a caller's that a child of sb has; all for nil, which is
// the parent of a sandbox that is no child.
func (sb *sandbox) groups(caller []uint32) []uint32 {
	if sb == nil {
		return caller
	}
	return slices.DeleteFunc(slices.Clone(caller), func(g uint32) bool { return !slices.Contains(sb.fixed.Groups, g) })
}

// sameImage is nil if that is still the image of the parent, which it was when
// the request was judged.
func (sb *sandbox) sameImage(digest string) error {
	if sb == nil || sb.fixed.Sandbox.ImageDigest == digest {
		return nil
	}
	return api.Errorf(api.CodeConflict, "the image's name is another's since a moment ago").WithHint("leave out the image: a child has its parent's")
}

// keepBusy notes that a child of the sandbox runs: it is not idle.
func (sb *sandbox) keepBusy(now time.Time) {
	if sb == nil {
		return
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	sb.busy = now
}

// judgeBirth holds a request against the sandbox it is to be a child of.
func (l *Launcher) judgeBirth(ctx context.Context, c peer.Cred, parent *sandbox, a *admission.Admitted, dirs []*os.File) ([]api.Rule, error) {
	digest, err := l.Runtime.Resolve(ctx, c.UID, a.Request.Image)
	if err != nil {
		return nil, err
	}
	b := admission.Birth{Digest: digest, Weaker: l.weaker(parent, a)}
	if b.Mounts, err = parent.access(a.Request.Mounts, dirs); err != nil {
		return nil, err
	}
	return parent.asParent().Judge(a, b), nil
}

// weaker are the guards of the parent that a child would have less of.
func (l *Launcher) weaker(parent *sandbox, a *admission.Admitted) (out []string) {
	parent.mu.Lock()
	filter, isolated, guarded := parent.rec.FilterDigest, parent.rec.Isolated, parent.rec.UnixPeers
	parent.mu.Unlock()
	if name := a.Profile.Seccomp; l.Filters[name].Digest() != filter && !l.within(name, filter) {
		out = append(out, "seccomp "+name)
	}
	if isolated && landlock() != nil {
		out = append(out, agentinit.Isolation)
	}
	if guarded && l.Peers == nil {
		out = append(out, unixpeers.Control)
	}
	return out
}

// within says whether the filter of that name allows nothing that the one with
// a digest does not. Of one that an earlier daemon installed, and whose profile
// has changed, that is not known.
func (l *Launcher) within(name, digest string) bool {
	for other, f := range l.Filters {
		if f.Digest() == digest && l.Seccomp[name] != nil && l.Seccomp[other] != nil {
			return seccomp.Within(l.Seccomp[name], l.Seccomp[other])
		}
	}
	return false
}

// access is what the parent has of each mount that a request for a child asks
// for.
func (sb *sandbox) access(asked []api.Mount, dirs []*os.File) ([]admission.Access, error) {
	sb.mu.Lock()
	has := slices.Clone(sb.rec.Mounts)
	sb.mu.Unlock()
	ids := make([]store.Mount, len(asked)) // of what is asked for
	for i, m := range asked {
		ids[i] = store.Mount{Target: m.Target, Own: m.Own}
		if m.Volume != "" {
			for _, u := range sb.fixed.Volumes {
				if u.Name == m.Volume {
					ids[i].Volume = u.ID
				}
			}
			continue
		}
		dir, err := dirOf(i, m, dirs)
		if err != nil {
			return nil, err
		}
		if ids[i].Dev, ids[i].Inode, err = mount.Identify(dir); err != nil {
			return nil, err
		}
	}
	out := make([]admission.Access, len(asked))
	for i, m := range asked {
		if m.Own { // tryClaim sees to it that it is nobody else's
			out[i] = admission.WriteAccess
			continue
		}
		for _, h := range has {
			is, readOnly := h.Volume != "" && h.Volume == ids[i].Volume, h.ReadOnly
			if h.Volume == "" && m.Volume == "" {
				dir, err := dirOf(i, m, dirs)
				if err != nil {
					return nil, err
				}
				if is, readOnly, err = mount.Shows(h.Staged, dir); err != nil {
					return nil, err
				}
			}
			if !is || !covers(h, has, ids[i], ids) {
				continue
			}
			out[i] = max(out[i], accessBy(h, readOnly, ids[i]))
		}
	}
	return out, nil
}

// accessBy is what one of a parent's mounts lets its child have of a directory that
// it shows. What is protected is known by its place in the whole.
func accessBy(h store.Mount, readOnly bool, asked store.Mount) admission.Access {
	switch {
	case readOnly, h.Protect && (asked.Dev != h.Dev || asked.Inode != h.Inode):
		return admission.ReadAccess
	case h.Protect:
		return admission.ProtectedAccess
	}
	return admission.WriteAccess
}

// covers says whether a child that asks for what the parent has as its mount h
// does not see what other mounts of the parent's hide there: it asks for all
// of h, and for each of those in the same place, or has its own there.
func covers(h store.Mount, has []store.Mount, asked store.Mount, all []store.Mount) bool {
	for _, inner := range has {
		place, in := strings.CutPrefix(inner.Target, h.Target+"/")
		if !in {
			continue
		}
		same := func(a, b store.Mount) bool { return a.Volume == b.Volume && a.Dev == b.Dev && a.Inode == b.Inode }
		there := func(m store.Mount) bool {
			return m.Target == asked.Target+"/"+place && (m.Own || same(m, store.Mount{Volume: inner.Volume, Dev: inner.Dev, Inode: inner.Inode}))
		}
		if h.Volume == "" && (asked.Dev != h.Dev || asked.Inode != h.Inode) || !slices.ContainsFunc(all, there) {
			return false
		}
	}
	return true
}

// familyRules hold what a child would be besides its relatives against each of
// those above it.
func familyRules(line []*sandbox, families []admission.Sum, want admission.Sum) (out []api.Rule) {
	for i, sb := range line {
		out = append(out, admission.Family(&sb.fixed.Sandbox, i+1, families[i], want)...)
	}
	return out
}

// endChildren ends the children of a sandbox that is ending, and waits for
// them: nobody is told that it has ended while they run. None is added
// meanwhile. While sandboxes are being taken over it does nothing: then the
// first tick ends those whose parents have ended.
func (sb *sandbox) endChildren() {
	if !sb.l.watching.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(sb.l.ctx, killTimeout) // what a stopping daemon leaves, the next one ends
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		left := sb.children()
		if len(left) == 0 {
			return
		}
		for _, c := range left {
			if c.launched() == nil { // else its launch ends it, or this when that is done
				c.end(api.ReasonParent, nil)
			}
		}
		select {
		case <-left[0].done:
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

// children are those of a sandbox that have not ended.
func (sb *sandbox) children() (out []*sandbox) {
	for _, c := range sb.l.all() {
		if c.parent == sb && !ended(c.state()) {
			out = append(out, c)
		}
	}
	return out
}

// A sandbox may have a socket of its own (pkg/ownsocket), which the daemon
// serves with a part of the API. Whatever comes through it is of the sandbox's
// caller, and for the sandbox's descendants alone: see mayUse, which every
// look-up asks.

// inside is a request that came through a sandbox's own socket, if it asks for
// nothing that could tell of, or take from, what else its caller has.
func inside(c peer.Cred, req api.SpawnRequest) (api.SpawnRequest, error) {
	var ps []api.Problem
	if req.Name != "" {
		ps = append(ps, api.Problem{Field: "name", Value: req.Name, Want: "left out: names are the caller's; labels tell children apart"})
	}
	ps = append(ps, insideLabels(req.Labels)...)
	if req.Image != "" {
		ps = append(ps, api.Problem{Field: "image", Value: req.Image, Want: "left out: a child has its parent's"})
	}
	for i, m := range req.Mounts {
		if m.Volume == "" || m.FD != nil || m.Source != "" {
			ps = append(ps, api.Problem{Field: fmt.Sprintf("mounts[%d]", i), Value: m.Source, Want: "a volume that the parent has: directories cannot be mounted from inside a sandbox"})
		}
	}
	if len(ps) > 0 {
		return req, invalid(ps)
	}
	if req.Parent == "" {
		req.Parent = c.Via
	}
	return req, nil
}

func invalid(ps []api.Problem) error {
	e := api.Errorf(api.CodeInvalid, "the request has %d problem(s)", len(ps))
	e.Problems = ps
	return e
}

// insideLabels finds what is wrong with labels that were given inside. The
// caller finds its own by their labels, and the agent must not be able to have
// something of its own found among them.
func insideLabels(labels map[string]string) (ps []api.Problem) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(k, api.InsideLabel) {
			ps = append(ps, api.Problem{Field: "labels", Value: k, Want: "names that begin with " + api.InsideLabel + ": others are the caller's"})
		}
	}
	return ps
}

// shown is what a caller sees of a sandbox: from inside one nothing of the host.
func shown(c peer.Cred, v api.Sandbox) api.Sandbox {
	if c.Via != "" {
		v.PID, v.Problem = 0, ""
	}
	return v
}

// shownResult is shown for what a launch gave. The evidence tells of the host;
// that all of it was ok says the answer itself.
func shownResult(c peer.Cred, res *api.SpawnResult, err error) (*api.SpawnResult, error) {
	if c.Via == "" {
		return res, err
	}
	if e, ok := errors.AsType[*api.Error](err); ok && e.Evidence != nil {
		return nil, api.Errorf(e.Code, "isolation not proven").WithHint("who launched this sandbox can see why")
	}
	if res != nil {
		res.Sandbox = shown(c, res.Sandbox)
		res.Evidence.Controls, res.Evidence.Weaker, res.Evidence.Signed = []api.Control{}, nil, nil
	}
	return res, err
}

// keptRules bound how many ended descendants a sandbox leaves by its own
// socket: they count for what its caller may keep.
func keptRules(c peer.Cred, line []*sandbox, families []admission.Sum) (out []api.Rule) {
	for i, sb := range line {
		if sb.id == c.Via {
			out = append(out, api.Rule{
				Rule: "socket.kept", Asked: fmt.Sprintf("%d descendants have ended and are kept", families[i].Kept), Allowed: fmt.Sprintf("fewer than %d", admission.MaxDescendants),
				OK: families[i].Kept < admission.MaxDescendants, Total: true, Fix: "remove some that have ended",
			})
		}
	}
	return out
}

// socketDir is the directory of a sandbox's own socket.
func (l *Launcher) socketDir(id string) string { return filepath.Join(l.dir(id), "socket") }

// listen makes the sandbox's own socket, if it was granted one. Nothing is
// answered yet.
func (sb *sandbox) listen(ns *netns.NS) error {
	if !sb.fixed.Sandbox.Socket {
		return nil
	}
	listener, err := ownsocket.Listen(ns.File(), sb.l.socketDir(sb.id), sb.hostUser())
	sb.hold(func() { sb.listener = listener })
	return err
}

// serve answers on the sandbox's own socket, if it has one, from when it runs.
func (sb *sandbox) serve() {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.listener == nil || sb.unserve != nil || sb.ending || !sb.l.watching.Load() {
		return
	}
	v := &sb.fixed.Sandbox
	stop, err := sb.l.Serve(sb.listener, server.Inside{
		Caller: peer.Cred{UID: v.Caller.UID, GID: v.Caller.GID, Groups: sb.fixed.Groups, Method: peer.MethodNone, Via: sb.id},
		First:  v.HostUID, Count: spec.RangeSize,
	})
	if err != nil {
		sb.l.log.Error("a sandbox's own socket is not answered", slog.String("sandbox", sb.id), slog.Any("error", err))
		return
	}
	sb.unserve = stop
}

// closeSocket stops answering and listening.
func (sb *sandbox) closeSocket() {
	sb.mu.Lock()
	listener, stop := sb.listener, sb.unserve
	sb.listener, sb.unserve = nil, nil
	sb.mu.Unlock()
	if stop != nil {
		stop()
	}
	if listener != nil {
		_ = listener.Close()
	}
}

// removeSocket is the undo of listen.
func (l *Launcher) removeSocket(id string) error {
	l.mu.Lock()
	sb := l.sandboxes[id]
	l.mu.Unlock()
	if sb != nil {
		sb.closeSocket()
	}
	return removeDir(l.socketDir(id))
}
