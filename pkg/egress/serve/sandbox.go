package serve

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/nameserver"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
	"github.com/creel-sandbox/creel/pkg/egress/relay"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/egress/web"
	"github.com/creel-sandbox/creel/pkg/egress/workload"
)

// connIdle ends a connection over which nothing goes.
const connIdle = time.Hour

// sandbox is one that is served.
type sandbox struct {
	id  string
	tcp [2]*net.TCPListener
	udp [2]*net.UDPConn
	// policy is what decides, as one: it is never seen half changed.
	policy     atomic.Pointer[credential.Policy]
	generation uint64
	once       map[string]*atomic.Bool // whether those of link.Once were used, by id
	told       func(once string)       // of its use

	names *synthetic.Table
	dns   *nameserver.Server
	web   *web.Web
	proxy *proxy.Proxy
	who   *workload.Server

	// budget is what is left of first, which is what was left of all after before,
	// which processes before this one used.
	budget, first budget
	before        link.Spent

	over atomic.Pointer[string] // the budget that was used up first

	ctx    context.Context // ends with stop
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// snapshot makes of a policy what decides.
func (s *sandbox) snapshot(pol *link.Policy) (*credential.Policy, error) {
	all, err := parties(pol.Parties)
	if err != nil {
		return nil, err
	}
	var once []*egress.Once
	for _, o := range pol.Once {
		one, err := s.onceOf(pol.Parties, o)
		if err != nil {
			return nil, err
		}
		once = append(once, one)
	}
	secrets, err := credential.New(pol.Secrets)
	if err != nil {
		return nil, err
	}
	// Of nobody: nothing is allowed.
	return &credential.Policy{Snapshot: egress.NewSnapshot(all...).WithOnce(once...), Secrets: secrets}, nil
}

func parties(in []link.Party) (all []*egress.Policy, err error) {
	for i, party := range in {
		p, problems := egress.ParseLines(party.By, fmt.Sprintf("parties[%d].rules", i), party.Rules)
		if len(problems) > 0 {
			return nil, fmt.Errorf("a policy with %d mistakes, the first at %s", len(problems), problems[0].Field)
		}
		all = append(all, p)
	}
	return all, nil
}

// maxOnce bounds what is remembered of one sandbox.
const maxOnce = 1024

// onceOf is what lets a rule one time, over all policies that have it.
func (s *sandbox) onceOf(all []link.Party, o link.Once) (*egress.Once, error) {
	used, ok := s.once[o.ID]
	if !ok {
		if len(s.once) >= maxOnce {
			return nil, fmt.Errorf("more than %d rules for one time", maxOnce)
		}
		used = &atomic.Bool{}
		s.once[o.ID] = used
	}
	all = slices.Clone(all)
	for _, i := range o.Parties {
		if i < 0 || i >= len(all) {
			return nil, fmt.Errorf("a rule of party %d, of %d", i, len(all))
		}
		all[i].Rules = append(slices.Clone(all[i].Rules), o.Rule)
	}
	with, err := parties(all)
	if err != nil {
		return nil, err
	}
	return egress.NewOnce(used, func() { s.told(o.ID) }, with...), nil
}

// start serves a sandbox, by duplicates of its files.
func (p *Process) start(id string, pol *link.Policy, files []*os.File) (_ *sandbox, err error) {
	s := &sandbox{id: id, generation: pol.Generation, once: map[string]*atomic.Bool{}}
	s.told = func(once string) {
		p.log.put(link.Record{Time: time.Now().UnixNano(), ID: id, Kind: link.KindOnce, Allowed: true, To: once})
	}
	snap, err := s.snapshot(pol)
	if err != nil {
		return nil, err
	}
	s.policy.Store(snap)
	now := func() credential.Policy { return *s.policy.Load() }
	names := func() egress.Snapshot { return now().Snapshot }
	if s.names, err = synthetic.New(pol.Range6, pol.Limits.Names, pol.Names); err != nil {
		return nil, err
	}
	if pol.Limits.Connections < 1 || pol.Limits.Connections > 1<<16 {
		return nil, fmt.Errorf("%d connections", pol.Limits.Connections)
	}
	s.before = pol.Limits.Spent
	s.first, s.budget = newBudget(pol.Limits.Budget, s.before), newBudget(pol.Limits.Budget, s.before)
	for what, b := range s.budget.each() {
		b.OnEmpty(func() { s.over.CompareAndSwap(nil, &what); p.over(id, what) })
	}
	if s.dns, err = nameserver.New(nameserver.Options{Policy: names, Names: s.names, Record: func(d nameserver.Decision) { p.log.name(id, d) }}); err != nil {
		return nil, err
	}
	out := reach{p.outside, p.asker, id}
	if s.web, err = web.New(web.Options{
		Dialer: proxy.Dialer{Outside: out}, Authority: p.authority.Load, Policy: now, Bytes: s.budget.bytes, Requests: s.budget.requests, Tunnels: tunnels{s},
		Roots: p.rootsNow(), Record: func(d web.Decision) { p.log.request(id, d) },
	}); err != nil {
		return nil, err
	}
	s.who = workload.New(func(ctx context.Context, key []byte) (*workload.Signed, error) { return p.asker.sign(ctx, id, key) })
	if s.proxy, err = proxy.New(proxy.Options{
		Outside: out, Web: s.web, Explicit: s.web, Workload: s.who, DNS: s.dns, Names: s.names, Policy: now, Bytes: s.budget.bytes, Opened: s.budget.connections,
		Connections: pol.Limits.Connections, Idle: connIdle, Record: func(o proxy.Outcome) { p.log.connection(id, o) },
	}); err != nil {
		return nil, errors.Join(err, s.web.Close(), s.who.Close())
	}
	if err := s.serve(files); err != nil {
		return nil, errors.Join(err, s.web.Close(), s.who.Close())
	}
	if pol.Limits.Budget != (link.Spent{}) {
		s.wg.Go(func() { p.tell(s) })
	}
	return s, nil
}

// tunnels are a sandbox's connections by way of its proxy, which is made last.
type tunnels struct{ s *sandbox }

// Target implements web.Tunnels.
func (t tunnels) Target(host string, port uint16) (proxy.Target, error) {
	return t.s.proxy.Target(host, port)
}

// Allowed implements web.Tunnels.
func (t tunnels) Allowed(to proxy.Target) error { return t.s.proxy.Allowed(to) }

// Through implements web.Tunnels.
func (t tunnels) Through(ctx context.Context, c *net.TCPConn, to proxy.Target) {
	t.s.proxy.Through(ctx, c, to)
}

// budget is what a sandbox may still use.
type budget struct{ bytes, connections, requests *relay.Budget }

func newBudget(all, spent link.Spent) budget {
	left := func(all, spent int64) *relay.Budget {
		if all == 0 {
			all = endless
		}
		return relay.NewBudget(all - spent)
	}
	return budget{left(all.Bytes, spent.Bytes), left(all.Connections, spent.Connections), left(all.Requests, spent.Requests)}
}

// endless is more of anything than there is time for.
const endless = 1 << 60

func (b budget) each() map[string]*relay.Budget {
	return map[string]*relay.Budget{"bytes": b.bytes, "connections": b.connections, "requests": b.requests}
}

// spent is what was used in all.
func (s *sandbox) spent() link.Spent {
	return link.Spent{
		Bytes:       s.before.Bytes + s.first.bytes.Left() - s.budget.bytes.Left(),
		Connections: s.before.Connections + s.first.connections.Left() - s.budget.connections.Left(),
		Requests:    s.before.Requests + s.first.requests.Left() - s.budget.requests.Left(),
	}
}

func (p *Process) over(id, what string) {
	p.log.put(link.Record{Time: time.Now().UnixNano(), ID: id, Kind: link.KindOver, To: what})
}

// tellEvery is how often it is told what a sandbox has used. What is used in
// that time before a process is killed is not counted.
const tellEvery = time.Second

// tell tells what a sandbox uses until it stops.
func (p *Process) tell(s *sandbox) {
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	last := s.before
	for {
		select {
		case <-t.C:
		case <-s.ctx.Done():
			return
		}
		if what := s.over.Load(); what != nil {
			p.over(s.id, *what) // until it is heard
		}
		if now := s.spent(); now != last {
			last = now
			p.log.put(link.Record{Time: time.Now().UnixNano(), ID: s.id, Kind: link.KindSpent, Spent: &now})
		}
	}
}

func (p *Process) rootsNow() *x509.CertPool {
	if r := p.roots.Load(); r != nil {
		return r
	}
	return x509.NewCertPool() // nothing is verified by none
}

// serve begins with all four sockets, or with none.
func (s *sandbox) serve(files []*os.File) error {
	if err := s.hold(files); err != nil {
		return errors.Join(err, s.closeSockets())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ctx, s.cancel = ctx, cancel
	for i := range 2 {
		s.wg.Go(func() { s.accept(ctx, s.tcp[i]) })
		s.wg.Go(func() { _ = s.dns.ServeUDP(ctx, s.udp[i]) }) // until stop
	}
	return nil
}

// hold takes duplicates of the sockets.
func (s *sandbox) hold(files []*os.File) error {
	for i := range 2 {
		l, err := net.FileListener(files[i])
		if err != nil {
			return fmt.Errorf("socket %d: %w", i, err)
		}
		var ok bool
		if s.tcp[i], ok = l.(*net.TCPListener); !ok {
			return errors.Join(fmt.Errorf("socket %d is a %T", i, l), l.Close())
		}
		c, err := net.FilePacketConn(files[2+i])
		if err != nil {
			return fmt.Errorf("socket %d: %w", 2+i, err)
		}
		if s.udp[i], ok = c.(*net.UDPConn); !ok {
			return errors.Join(fmt.Errorf("socket %d is a %T", 2+i, c), c.Close())
		}
	}
	return nil
}

func (s *sandbox) closeSockets() error {
	var err error
	for i := range 2 {
		if s.tcp[i] != nil {
			err = errors.Join(err, s.tcp[i].Close())
		}
		if s.udp[i] != nil {
			err = errors.Join(err, s.udp[i].Close())
		}
	}
	return err
}

// sockets are duplicates of them, in the order of link.Add.
func (s *sandbox) sockets() (files []*os.File, err error) {
	for _, c := range []interface{ File() (*os.File, error) }{s.tcp[0], s.tcp[1], s.udp[0], s.udp[1]} {
		f, err := c.File()
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// accept takes connections until stop.
func (s *sandbox) accept(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				_ = c.Close()
			}
			return
		}
		if err != nil {
			// The process has too many descriptors, or the connection has gone.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		s.wg.Go(func() { s.proxy.Handle(ctx, c) })
	}
}

// change has another policy decide from now on, for connections that are made
// and requests that are asked then.
func (s *sandbox) change(pol *link.Policy) error {
	if pol.Generation <= s.generation {
		return fmt.Errorf("generation %d after %d", pol.Generation, s.generation)
	}
	snap, err := s.snapshot(pol)
	if err != nil {
		return err
	}
	s.generation = pol.Generation
	s.policy.Store(snap)
	return nil
}

// stop ends all that goes on, and waits for it.
func (s *sandbox) stop() {
	s.cancel()
	_ = errors.Join(s.closeSockets(), s.web.Close(), s.who.Close())
	s.wg.Wait()
}
