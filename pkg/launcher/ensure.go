package launcher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/store"
)

// Ensure gives the caller's sandbox of that name, which it makes if there is
// none. One that is there must be what is asked for.
func (l *Launcher) Ensure(ctx context.Context, c peer.Cred, name string, req api.SpawnRequest, dirs []*os.File) (res *api.SpawnResult, made bool, err error) {
	req.Name = name
	req, dirs, done, err := l.openPaths(ctx, c, req, dirs)
	if err != nil {
		return nil, false, err
	}
	defer done()
	t := newTrace()
	a, err := l.admit(ctx, c, req, dirs)
	if err != nil {
		return nil, false, err
	}
	t.end("admission", t.start)
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
	res, err = l.Launch(ctx, c, a, dirs, nil, t)
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
	if s.Request.Home == "" {
		s.Request.Home = "ephemeral" // made by a daemon that knew no other
	}
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

// SpawnOnce is Spawn for a request that may come again: of those that a caller
// gives the same key, one makes a sandbox, and the others get its answer.
func (l *Launcher) SpawnOnce(ctx context.Context, c peer.Cred, name string, req api.SpawnRequest, dirs []*os.File) (res *api.SpawnResult, made bool, err error) {
	req, dirs, done, err := l.openPaths(ctx, c, req, dirs)
	if err != nil {
		return nil, false, err
	}
	defer done()
	t := newTrace()
	a, err := l.admit(ctx, c, req, dirs)
	if err != nil {
		return nil, false, err
	}
	t.end("admission", t.start)
	key, err := keyOf(name, req, dirs)
	if err != nil {
		return nil, false, err
	}
	release, err := l.turns.take(ctx, c.UID, "key "+name)
	if err != nil {
		return nil, false, err
	}
	defer release()
	now := time.Now()
	if k, ok := l.keys.find(c.UID, name, now); ok {
		res, err = l.again(k, key)
		return res, false, err
	}
	if !l.keys.room(c.UID, now) {
		return nil, false, api.Errorf(api.CodeExhausted, "%d keys of this user are in use, the most there may be", maxKeys).
			WithHint("a key is in use for " + keyLife.String())
	}
	if res, err = l.Launch(ctx, c, a, dirs, key, t); err != nil {
		return nil, false, err
	}
	l.keys.add(c.UID, spentKey{*key, res.Sandbox.ID, res.Sandbox.Created.Add(keyLife)})
	return res, true, nil
}

// again answers to a key that was used before.
func (l *Launcher) again(k spentKey, key *store.SpawnKey) (*api.SpawnResult, error) {
	if k.Digest != key.Digest {
		e := api.Errorf(api.CodeConflict, "the key was given to another request").WithHint("use a new key for each request, and the same only to repeat it")
		e.Problems = []api.Problem{{Field: "Idempotency-Key", Value: key.Key, Want: "a key that is not in use, or the request that it was used for"}}
		return nil, e
	}
	l.mu.Lock()
	sb, ok := l.sandboxes[k.id]
	l.mu.Unlock()
	if !ok || sb.state() == api.StateRemoving {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s, which this request made, has been removed", k.id).
			WithHint("use a new key to have another")
	}
	return l.resultOf(sb)
}

// keyOf is a key with what the request is: its fields, in the form that they
// are sent again, and the directories that came with it.
func keyOf(name string, req api.SpawnRequest, dirs []*os.File) (*store.SpawnKey, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	_, _ = h.Write(b) // never fails, see hash.Hash
	for _, f := range dirs {
		dev, inode, err := mount.Identify(f)
		if err != nil {
			return nil, err
		}
		_, _ = fmt.Fprintf(h, "\n%d %d", dev, inode)
	}
	return &store.SpawnKey{Key: name, Digest: hex.EncodeToString(h.Sum(nil))}, nil
}

// Bounds of keys.
const (
	keyLife = 10 * time.Minute // for which a key stands for its request
	maxKeys = 1024             // of one user
)

// spentKey is a key and the sandbox that was made for it.
type spentKey struct {
	store.SpawnKey
	id    string
	until time.Time
}

// spentKeys are the keys in use. They outlive their sandboxes, because one that
// was removed when its job was done must not be made again by a request that
// comes late. A restarted daemon knows those of sandboxes that are kept.
type spentKeys struct {
	mu sync.Mutex
	m  map[uint32]map[string]spentKey
}

func (r *spentKeys) find(uid uint32, key string, now time.Time) (spentKey, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.m[uid][key]
	return k, ok && now.Before(k.until)
}

// room says whether a user may have one more, and forgets whose time is over.
func (r *spentKeys) room(uid uint32, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, keys := range r.m {
		maps.DeleteFunc(keys, func(_ string, k spentKey) bool { return !now.Before(k.until) })
		if len(keys) == 0 {
			delete(r.m, uid)
		}
	}
	return len(r.m[uid]) < maxKeys
}

func (r *spentKeys) add(uid uint32, k spentKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = map[uint32]map[string]spentKey{}
	}
	if r.m[uid] == nil {
		r.m[uid] = map[string]spentKey{}
	}
	r.m[uid][k.Key] = k
}

// restore takes the key of a sandbox that an earlier daemon launched.
func (r *spentKeys) restore(rec *store.Record, now time.Time) {
	until := rec.Sandbox.Created.Add(keyLife)
	if rec.Key != nil && rec.Sandbox.State != api.StateCreating && rec.Sandbox.State != api.StateUnknown && now.Before(until) {
		r.add(rec.Sandbox.Caller.UID, spentKey{*rec.Key, rec.Sandbox.ID, until})
	}
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
