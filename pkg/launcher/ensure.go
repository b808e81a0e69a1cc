package launcher

import (
	"context"
	"os"
	"sync"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// Ensure gives the caller's sandbox of that name, which it makes if there is
// none. One that is there must be what is asked for.
func (l *Launcher) Ensure(ctx context.Context, c peer.Cred, name string, req api.SpawnRequest, dirs []*os.File) (res *api.SpawnResult, made bool, err error) {
	req.Name = name
	a, err := l.admit(req)
	if err != nil {
		return nil, false, err
	}
	// Whoever comes second waits: it must not find a sandbox half made, nor be
	// refused for want of room for one that it does not need.
	release, err := l.turns.take(ctx, c.UID, "name "+name)
	if err != nil {
		return nil, false, err
	}
	defer release()
	if sb := l.named(c.UID, name); sb != nil {
		res, err = l.same(ctx, c, sb, a, dirs)
		return res, false, err
	}
	res, err = l.Launch(ctx, c, a, dirs)
	return res, true, err
}

// named is a user's sandbox of that name, nil if there is none.
func (l *Launcher) named(uid uint32, name string) *sandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sb := range l.sandboxes {
		if r := sb.identity(); r.Sandbox.Caller.UID == uid && r.Sandbox.Name == name && sb.state() != api.StateRemoving {
			return sb
		}
	}
	return nil
}

// same answers with a sandbox if it is what a asks for.
func (l *Launcher) same(ctx context.Context, c peer.Cred, sb *sandbox, a *admission.Admitted, dirs []*os.File) (*api.SpawnResult, error) {
	if err := sb.launched(); err != nil {
		return nil, err
	}
	digest, err := l.Runtime.Resolve(ctx, c.UID, a.Request.Image)
	if err != nil {
		return nil, err
	}
	want := admission.Spec{Request: a.Request, Limits: a.Limits, Digest: digest, Dirs: map[string]admission.Dir{}}
	for i, m := range a.Request.Mounts {
		if m.Volume != "" {
			continue // its name is compared
		}
		f, err := dirOf(i, m, dirs)
		if err != nil {
			return nil, err
		}
		dev, inode, err := mount.Identify(f)
		if err != nil {
			return nil, err
		}
		want.Dirs[m.Target] = admission.Dir{Dev: dev, Inode: inode}
	}
	if ps := admission.Differences(sb.resolved(), want); len(ps) > 0 {
		e := api.Errorf(api.CodeConflict, "sandbox %q is there, and is another", sb.fixed.Sandbox.Name).
			WithHint("choose another name, or remove that sandbox")
		e.Problems = ps
		return nil, e
	}
	return l.resultOf(sb)
}

// resolved is what a sandbox was made of.
func (sb *sandbox) resolved() admission.Spec {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	r := &sb.rec
	s := admission.Spec{Request: r.Request, Limits: r.Sandbox.Limits, Digest: r.Sandbox.ImageDigest, Dirs: map[string]admission.Dir{}}
	for _, m := range r.Mounts {
		if m.Volume != "" {
			continue
		}
		s.Dirs[m.Target] = admission.Dir{Dev: m.Dev, Inode: m.Inode}
	}
	return s
}

// resultOf is a spawn's answer about a sandbox that was launched before, with
// the newest evidence.
func (l *Launcher) resultOf(sb *sandbox) (*api.SpawnResult, error) {
	kept, err := l.Store.Evidence(sb.id)
	if err != nil {
		return nil, err
	}
	v := sb.view()
	if len(kept) == 0 || v.State == api.StateUnknown || v.State == api.StateRemoving {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s is being removed", sb.id).WithHint("try again in a moment")
	}
	return &api.SpawnResult{Sandbox: v, Evidence: kept[len(kept)-1]}, nil
}

// turns let one at a time do what is called the same for the same user.
type turns struct {
	mu sync.Mutex
	m  map[turn]*turnOf
}

type turn struct {
	uid  uint32
	what string
}

type turnOf struct {
	free    chan struct{} // has a value when nobody's turn it is
	waiting int           // and having
}

// take waits for the turn; call release when it is over.
func (t *turns) take(ctx context.Context, uid uint32, what string) (release func(), err error) {
	k := turn{uid, what}
	t.mu.Lock()
	o, ok := t.m[k]
	if !ok {
		o = &turnOf{free: make(chan struct{}, 1)}
		o.free <- struct{}{}
		if t.m == nil {
			t.m = map[turn]*turnOf{}
		}
		t.m[k] = o
	}
	o.waiting++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if o.waiting--; o.waiting == 0 {
			delete(t.m, k)
		}
	}
	select {
	case <-o.free:
		return func() { o.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
