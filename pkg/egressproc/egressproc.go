// Package egressproc runs a creel-egress for each caller whose sandboxes have a
// network, and hands it their sockets.
//
// The processes outlive the daemon, and go on serving. The next one finds them by
// the names of their sockets, and has back what they hold. One that ends is
// started again and gets the same sockets: until then connections wait in them.
//
// Nothing that a process says is believed about who may reach what. It can give
// sockets back, which are compared with those that the kernel has, and records.
package egressproc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/steer"
)

// IDs gives ranges of host ids, of which a process has the first.
type IDs interface {
	Take() (uint32, error)
	Release(first uint32)
}

// Options are a Keeper's parts. All are required.
type Options struct {
	// Program is creel-egress.
	Program string
	// Dir is for sockets and last words. Only root can enter it, and it is lost
	// at reboot.
	Dir string
	// TrustDir is for the trust stores of the callers' sandboxes. It is lost at
	// reboot as well.
	TrustDir string
	IDs      IDs
	// Host is what the processes are to know of the host now. They are told within
	// a quarter of a minute. Its Authority is the Keeper's to fill in.
	Host func() (link.Host, error)
	// Record is told what the process of a caller decided. It is called by one
	// goroutine for each. A process can say anything of any sandbox.
	Record func(caller uint32, r link.Record)
	// Sign has who a sandbox is be signed, for the process of a caller, which can
	// ask for any.
	Sign func(caller uint32, q link.Question) link.Reply
	// Channel connects one of a caller's sandboxes to a server of an agent's, as
	// the process asks.
	Channel func(ctx context.Context, caller uint32, q link.Question) (*net.TCPConn, error)
	Log     *slog.Logger
}

// Sandbox is one that is to be served.
type Sandbox struct {
	// Caller is the uid whose process serves it.
	Caller uint32
	ID     string
	// Sockets are the Keeper's from Add on.
	Sockets *steer.Sockets
	// Policy's names are added to, as the sandbox looks them up.
	Policy link.Policy
}

// Keeper keeps the processes. It is safe for concurrent use.
type Keeper struct {
	opts   Options
	build  string
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	procs map[uint32]*process // by caller
}

// New makes a Keeper. Adopt is to be called before Add.
func New(o Options) (*Keeper, error) {
	if o.Program == "" || o.Dir == "" || o.TrustDir == "" || o.IDs == nil || o.Host == nil || o.Record == nil || o.Sign == nil || o.Channel == nil || o.Log == nil {
		return nil, errors.New("a keeper of creel-egress without all of its options")
	}
	f, err := os.Open(o.Program)
	if err != nil {
		return nil, fmt.Errorf("creel-egress: %w; install creel again", err)
	}
	build, err := link.BuildOf(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("creel-egress: %w", err)
	}
	if err := errors.Join(os.MkdirAll(o.Dir, 0o700), os.Chmod(o.Dir, 0o700)); err != nil {
		return nil, fmt.Errorf("creel-egress: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Keeper{opts: o, build: build, ctx: ctx, cancel: cancel, procs: map[uint32]*process{}}, nil
}

// socketName is "CALLER-UID.sock": whose the process is, and as whom it runs.
var socketName = regexp.MustCompile(`^([0-9]{1,10})-([0-9]{1,10})\.sock$`)

// InUse are the first ids of the ranges that processes in dir have, for the
// pool, before there is a Keeper.
func InUse(dir string) ([]uint32, error) {
	var in []uint32
	err := each(dir, func(_, uid uint32) error { in = append(in, uid); return nil })
	return in, err
}

func each(dir string, fn func(caller, uid uint32) error) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("creel-egress: %w", err)
	}
	for _, e := range entries {
		m := socketName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		caller, err1 := strconv.ParseUint(m[1], 10, 32)
		uid, err2 := strconv.ParseUint(m[2], 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("creel-egress: %s: %w", e.Name(), err)
		}
		if err := fn(uint32(caller), uint32(uid)); err != nil {
			return err
		}
	}
	return nil
}

// Adopt takes over the processes of the daemon before. One that is of another
// build, or does not answer, is ended; its sandboxes are to be added again, with
// new sockets, as are those that Held does not have.
func (k *Keeper) Adopt(ctx context.Context) error {
	return each(k.opts.Dir, func(caller, uid uint32) error {
		p := k.newProcess(caller, uid)
		k.mu.Lock()
		twice := k.procs[caller] != nil
		k.mu.Unlock()
		var err error
		if twice {
			err = errors.New("there is another one of this caller")
		} else {
			err = p.adopt(ctx)
		}
		if err == nil {
			k.mu.Lock()
			k.procs[caller] = p
			k.mu.Unlock()
			k.watch(p)
			k.opts.Log.InfoContext(ctx, "creel-egress adopted", slog.Uint64("caller", uint64(caller)), slog.Int("sandboxes", len(p.sandboxes)))
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		k.opts.Log.WarnContext(ctx, "creel-egress cannot be adopted and is ended", slog.Uint64("caller", uint64(caller)), slog.Any("error", err))
		return p.end()
	})
}

// Held are the sandboxes whose sockets Adopt got back, by id.
func (k *Keeper) Held() map[string]uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]uint32{}
	for caller, p := range k.procs {
		for _, id := range p.ids() {
			out[id] = caller
		}
	}
	return out
}

// Add has a sandbox served. It takes a moment if its caller's process has to be
// started. The sockets are closed if it fails.
func (k *Keeper) Add(ctx context.Context, s Sandbox) error {
	err := k.add(ctx, s)
	if err != nil {
		return errors.Join(fmt.Errorf("creel-egress: %w", err), s.Sockets.Close())
	}
	return nil
}

func (k *Keeper) add(ctx context.Context, s Sandbox) error {
	for {
		p, err := k.of(s.Caller)
		if err != nil {
			return err
		}
		err = p.add(ctx, s)
		if !errors.Is(err, errOver) {
			return err
		}
		// It was about to end since nobody needed it, and makes room for another.
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-k.ctx.Done():
			return err
		}
	}
}

// of is a caller's process, which may not run yet.
func (k *Keeper) of(caller uint32) (*process, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.procs[caller]; p != nil {
		return p, nil
	}
	if k.ctx.Err() != nil {
		return nil, errOver
	}
	uid, err := k.opts.IDs.Take()
	if err != nil {
		return nil, api.Errorf(api.CodeExhausted, "%w", err)
	}
	p := k.newProcess(caller, uid)
	k.procs[caller] = p
	k.watch(p)
	return p, nil
}

// watch keeps a process running until it is over.
func (k *Keeper) watch(p *process) {
	k.wg.Go(func() {
		if p.keep(k.ctx) {
			k.mu.Lock()
			delete(k.procs, p.caller)
			k.mu.Unlock()
			if err := errors.Join(p.end(), p.forgetTrust()); err != nil {
				k.opts.Log.Error("creel-egress cannot be ended; its ids are not used again", slog.Uint64("caller", uint64(p.caller)), slog.Any("error", err))
			}
		}
	})
}

// find is the process that serves a sandbox.
func (k *Keeper) find(id string) *process {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.procs {
		if p.has(id) {
			return p
		}
	}
	return nil
}

// Remove ends all that a sandbox has, and its sockets. Nothing there is success.
func (k *Keeper) Remove(ctx context.Context, id string) error {
	p := k.find(id)
	if p == nil {
		return nil
	}
	if err := p.remove(ctx, id); err != nil {
		return fmt.Errorf("creel-egress: %s: %w", id, err)
	}
	return nil
}

// Resume has a sandbox that Adopt found be decided on by pol, and be served
// again if its process is lost.
func (k *Keeper) Resume(ctx context.Context, id string, pol link.Policy) error {
	p := k.find(id)
	if p == nil {
		return api.Errorf(api.CodeNotFound, "sandbox %s is not served", id)
	}
	if err := p.resume(ctx, id, pol); err != nil {
		return fmt.Errorf("creel-egress: %s: %w", id, err)
	}
	return nil
}

// Change has other rules decide for a sandbox. All else of its policy stays.
func (k *Keeper) Change(ctx context.Context, id string, parties []link.Party) error {
	p := k.find(id)
	if p == nil {
		return api.Errorf(api.CodeNotFound, "sandbox %s is not served", id)
	}
	if err := p.change(ctx, id, parties); err != nil {
		return fmt.Errorf("creel-egress: %s: %w", id, err)
	}
	return nil
}

// With calls fn with a sandbox's sockets, which fn is not to close, and what its
// process is. It says whether the sandbox is served.
func (k *Keeper) With(id string, fn func(s *steer.Sockets, process api.Control)) bool {
	p := k.find(id)
	if p == nil {
		return false
	}
	return p.with(id, fn)
}

// Names are those that a sandbox was told of.
func (k *Keeper) Names(id string) []egress.Name {
	p := k.find(id)
	if p == nil {
		return nil
	}
	return p.names(id)
}

// Close leaves the processes running, for the next daemon.
func (k *Keeper) Close() {
	k.cancel()
	k.wg.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.procs {
		p.letGo()
	}
}

// orderTimeout bounds one order.
const orderTimeout = 10 * time.Second
