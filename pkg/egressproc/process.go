package egressproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/steer"
)

// How long things take.
const (
	startTimeout = 20 * time.Second // until a process answers
	healthEvery  = 15 * time.Second
	idleMost     = time.Minute // a process without sandboxes
	minBackoff   = 50 * time.Millisecond
	maxBackoff   = 10 * time.Second
)

// errOver is a process that is about to end, since nobody needed it.
var errOver = errors.New("it is ending")

// process is one caller's creel-egress, or the place of one that does not run.
type process struct {
	k           *Keeper
	caller, uid uint32
	path        string // of its socket

	mu        sync.Mutex
	over      bool
	conn      *link.Conn // for orders; nil while none runs
	running   *running
	told      sync.WaitGroup // who reads records
	sandboxes map[string]*served
	idleSince time.Time
	trust     *trust        // nil before it was read
	kick      chan struct{} // has one when it was lost
}

// served is a sandbox. Its policy is not known between Adopt and Resume.
type served struct {
	sockets *steer.Sockets
	policy  *link.Policy
	names   []egress.Name
	spent   link.Spent
	added   bool // the process that runs has it
}

func (k *Keeper) newProcess(caller, uid uint32) *process {
	return &process{
		k: k, caller: caller, uid: uid, path: fmt.Sprintf("%d-%d.sock", caller, uid),
		sandboxes: map[string]*served{}, idleSince: time.Now(), kick: make(chan struct{}, 1),
	}
}

func (p *process) log() *slog.Logger {
	return p.k.opts.Log.With(slog.Uint64("caller", uint64(p.caller)))
}

// keep starts the process again when it is lost. It says whether it is over:
// nobody needs it; else the daemon is stopping.
func (p *process) keep(ctx context.Context) (over bool) {
	wait := minBackoff
	next := time.Now().Add(healthEvery)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-p.kick:
		case <-time.After(max(time.Until(next), minBackoff)):
		}
		p.mu.Lock()
		if len(p.sandboxes) == 0 && time.Since(p.idleSince) >= idleMost {
			p.over = true
			p.mu.Unlock()
			return true
		}
		err := p.tendLocked(ctx)
		p.mu.Unlock()
		next = time.Now().Add(healthEvery)
		if err == nil {
			wait = minBackoff
			continue
		}
		p.log().ErrorContext(ctx, "creel-egress does not run; nothing gets out", slog.Any("error", err), slog.Duration("retry_in", wait))
		select {
		case <-p.kick: // by this very error
		default:
		}
		next = time.Now().Add(wait)
		wait = min(2*wait, maxBackoff)
	}
}

// tendLocked has a process that is needed run, and answer.
func (p *process) tendLocked(ctx context.Context) error {
	if p.conn == nil {
		if len(p.sandboxes) == 0 {
			return nil
		}
		return p.ensureLocked(ctx)
	}
	return p.helloLocked(ctx)
}

// ensureLocked has a process run that serves all sandboxes whose policies are
// known.
func (p *process) ensureLocked(ctx context.Context) error {
	if p.over {
		return errOver
	}
	if p.conn != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	r, c, err := p.spawn(ctx)
	if err != nil {
		return err
	}
	p.running, p.conn = r, c
	if err := p.introduceLocked(ctx); err != nil {
		p.loseLocked()
		return err
	}
	p.log().InfoContext(ctx, "creel-egress started", slog.Int("pid", r.pid), slog.Int("sandboxes", len(p.sandboxes)))
	return nil
}

func (p *process) introduceLocked(ctx context.Context) error {
	if err := p.helloLocked(ctx); err != nil {
		return err
	}
	if c := p.running.control(p.uid); !c.OK {
		return fmt.Errorf("creel-egress is not confined: want %s, is %s", c.Expected, c.Observed)
	}
	if err := p.answerLocked(ctx); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(p.sandboxes)) {
		if err := p.addLocked(ctx, id); err != nil {
			return fmt.Errorf("sandbox %s: %w", id, err)
		}
	}
	return p.listenLocked(ctx)
}

// helloLocked has the process say what it is, and tells it of the host what it
// does not know yet.
func (p *process) helloLocked(ctx context.Context) error {
	h, err := p.k.opts.Host()
	if err != nil {
		return err
	}
	if h.Authority, err = p.trusted(h.Roots, time.Now); err != nil {
		return err
	}
	var docs []*os.File
	if p.running.host == nil || !reflect.DeepEqual(*p.running.host, h) {
		doc, err := link.Document("host", h)
		if err != nil {
			return err
		}
		defer doc.Close()
		docs = []*os.File{doc}
	}
	a, _, err := p.orderLocked(ctx, link.Order{Op: link.Hello}, docs...)
	switch {
	case err != nil:
		return err
	case a.Version != link.Version:
		return fmt.Errorf("creel-egress has version %d of the link, want %d", a.Version, link.Version)
	case a.Build != p.k.build:
		return fmt.Errorf("creel-egress is %s, want %s", a.Build, p.k.build)
	}
	p.running.host = &h
	return nil
}

// addLocked has the process serve one sandbox that it does not.
func (p *process) addLocked(ctx context.Context, id string) error {
	s := p.sandboxes[id]
	if s.added || s.policy == nil {
		return nil
	}
	s.policy.Names = slices.Clone(s.names)
	s.policy.Limits.Spent = s.spent
	doc, err := link.Document("policy", s.policy)
	if err != nil {
		return err
	}
	defer doc.Close()
	k := s.sockets
	if _, _, err := p.orderLocked(ctx, link.Order{Op: link.Add, ID: id}, doc, k.TCP4, k.TCP6, k.UDP4, k.UDP6); err != nil {
		return err
	}
	s.added = true
	return nil
}

func (s *served) mostNames() int {
	if s.policy == nil {
		return 0
	}
	return s.policy.Limits.Names
}

// lost is called when a process does not tell any more.
func (p *process) lost(r *running) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != r || p.k.ctx.Err() != nil {
		return // it is known, or is left to the next daemon
	}
	p.log().Error("creel-egress lost; nothing gets out until it runs again", slog.Int("pid", r.pid), slog.String("last_words", p.lastWords()))
	p.loseLocked()
}

// loseLocked ends the process that runs, if one does.
func (p *process) loseLocked() {
	if p.running == nil {
		return
	}
	_ = p.conn.Close()
	p.running.hangUp()
	if err := p.running.kill(); err != nil {
		p.log().Error("creel-egress cannot be ended", slog.Int("pid", p.running.pid), slog.Any("error", err))
	}
	p.running, p.conn = nil, nil
	for _, s := range p.sandboxes {
		s.added = false
	}
	select {
	case p.kick <- struct{}{}: // keep starts it again at once
	default:
	}
}

// orderLocked has one order carried out. After an error of the connection the
// process is given up: nobody knows what it did.
func (p *process) orderLocked(ctx context.Context, o link.Order, files ...*os.File) (a link.Answer, back []*os.File, err error) {
	if p.conn == nil {
		return a, nil, errors.New("creel-egress does not run")
	}
	deadline := time.Now().Add(orderTimeout)
	if at, ok := ctx.Deadline(); ok && at.Before(deadline) {
		deadline = at
	}
	err = p.conn.Net().SetDeadline(deadline)
	if err == nil {
		err = p.conn.Send(o, files...)
	}
	if err == nil {
		back, err = p.conn.Receive(&a)
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended")
		}
		p.loseLocked()
		return a, nil, fmt.Errorf("%s: %w", o.Op, err)
	}
	if a.Error != "" {
		closeAll(back)
		return a, nil, fmt.Errorf("%s: creel-egress says: %.200q", o.Op, a.Error)
	}
	return a, back, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// add has a new sandbox served.
func (p *process) add(ctx context.Context, s Sandbox) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return errOver
	}
	if p.sandboxes[s.ID] != nil {
		return api.Errorf(api.CodeConflict, "sandbox %s is served already", s.ID)
	}
	pol := s.Policy
	pol.Generation = next(0)
	p.sandboxes[s.ID] = &served{sockets: s.Sockets, policy: &pol, names: slices.Clone(pol.Names), spent: pol.Limits.Spent}
	err := p.ensureLocked(ctx) // with it, if the process was started for it
	if err == nil {
		err = p.addLocked(ctx, s.ID)
	}
	if err != nil {
		delete(p.sandboxes, s.ID)
		p.idleSince = time.Now()
	}
	return err
}

// next is a generation after another, and after those of daemons before.
func next(after uint64) uint64 { return max(after+1, uint64(time.Now().UnixNano())) }

// resume has a sandbox that was adopted be decided on by what the daemon has on
// record.
func (p *process) resume(ctx context.Context, id string, pol link.Policy) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sandboxes[id]
	if s == nil {
		return api.Errorf(api.CodeNotFound, "sandbox %s is not served", id)
	}
	pol.Generation = next(0)
	s.policy = &pol
	s.spent = most(s.spent, pol.Limits.Spent)
	if !s.added {
		return errors.Join(p.ensureLocked(ctx), p.addLocked(ctx, id))
	}
	return p.tellLocked(ctx, id)
}

// tellLocked has the process decide by the policy of a sandbox that it has.
func (p *process) tellLocked(ctx context.Context, id string) error {
	doc, err := link.Document("policy", p.sandboxes[id].policy)
	if err != nil {
		return err
	}
	defer doc.Close()
	_, _, err = p.orderLocked(ctx, link.Order{Op: link.Change, ID: id}, doc)
	return err
}

func (p *process) change(ctx context.Context, id string, parties []link.Party) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sandboxes[id]
	if s == nil || s.policy == nil {
		return api.Errorf(api.CodeNotFound, "sandbox %s is not served", id)
	}
	pol := *s.policy
	pol.Parties, pol.Generation = parties, next(pol.Generation)
	before := s.policy
	s.policy = &pol
	if !s.added {
		return nil // the process gets it with the sandbox
	}
	if err := p.tellLocked(ctx, id); err != nil {
		if s.added { // it was refused
			s.policy = before
		}
		return err
	}
	return nil
}

func (p *process) remove(ctx context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sandboxes[id]
	if s == nil {
		return nil
	}
	if s.added {
		if _, _, err := p.orderLocked(ctx, link.Order{Op: link.Remove, ID: id}); err != nil && p.conn != nil {
			return err
		}
	}
	delete(p.sandboxes, id)
	p.idleSince = time.Now()
	return s.sockets.Close()
}

func (p *process) has(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sandboxes[id] != nil
}

func (p *process) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.sandboxes))
}

func (p *process) names(id string) []egress.Name {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.sandboxes[id]; s != nil {
		return slices.Clone(s.names)
	}
	return nil
}

// with is Keeper.With.
func (p *process) with(id string, fn func(*steer.Sockets, api.Control)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sandboxes[id]
	if s == nil {
		return false
	}
	c := api.Control{Name: controlName, Expected: confined(p.uid), Observed: "none runs; nothing gets out"}
	if p.running != nil {
		c = p.running.control(p.uid)
	}
	fn(s.sockets, c)
	return true
}

// adopt takes over a process of the daemon before, with all of its sandboxes.
func (p *process) adopt(ctx context.Context) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	c, pid, err := p.dial(ctx)
	if err != nil {
		return err
	}
	r, err := hold(pid)
	if err != nil {
		return errors.Join(err, c.Close())
	}
	p.running, p.conn = r, c
	defer func() {
		if err != nil {
			p.loseLocked()
			for id, s := range p.sandboxes {
				_ = s.sockets.Close()
				delete(p.sandboxes, id)
			}
		}
	}()
	if err := p.helloLocked(ctx); err != nil {
		return err
	}
	if c := r.control(p.uid); !c.OK {
		return fmt.Errorf("it is not confined: want %s, is %s", c.Expected, c.Observed)
	}
	a, _, err := p.orderLocked(ctx, link.Order{Op: link.List})
	if err != nil {
		return err
	}
	for _, id := range a.IDs {
		if err := p.takeBackLocked(ctx, id); err != nil {
			return err
		}
	}
	return errors.Join(p.listenLocked(ctx), p.answerLocked(ctx))
}

// takeBackLocked has the process hand over a sandbox's sockets and its names.
func (p *process) takeBackLocked(ctx context.Context, id string) error {
	_, back, err := p.orderLocked(ctx, link.Order{Op: link.Sockets, ID: id})
	if err != nil {
		return err
	}
	if len(back) != link.MaxFiles {
		closeAll(back)
		return fmt.Errorf("sandbox %s: %d descriptors", id, len(back))
	}
	defer back[0].Close()
	s := &served{sockets: &steer.Sockets{TCP4: back[1], TCP6: back[2], UDP4: back[3], UDP6: back[4]}, added: true}
	p.sandboxes[id] = s
	var names []egress.Name
	if err := link.ReadDocument(back[0], &names); err != nil {
		return fmt.Errorf("sandbox %s: %w", id, err)
	}
	for _, n := range names {
		if c, err := egress.ParseName(string(n)); err != nil || c != n || slices.Contains(s.names, n) {
			return fmt.Errorf("sandbox %s: a name that is none", id)
		}
		s.names = append(s.names, n)
	}
	return nil
}

// end ends what there is of the process, and frees its ids.
func (p *process) end() error {
	p.mu.Lock()
	p.over = true
	p.loseLocked()
	p.mu.Unlock()
	p.told.Wait()
	if err := endAll(p.uid); err != nil {
		return err
	}
	dir, err := os.OpenRoot(p.k.opts.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, name := range []string{p.words(), p.path} {
		if err := dir.Remove(name); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	p.k.opts.IDs.Release(p.uid)
	return nil
}

// letGo hangs up. The process goes on.
func (p *process) letGo() {
	p.mu.Lock()
	if p.running != nil {
		_ = p.conn.Close()
		p.running.hangUp()
		p.running.close()
		p.running, p.conn = nil, nil
	}
	for _, s := range p.sandboxes {
		_ = s.sockets.Close()
	}
	p.over = true
	p.mu.Unlock()
	p.told.Wait()
}
