// Package serve is creel-egress: it serves the sockets of one caller's sandboxes,
// as creeld orders.
//
// It goes on without creeld. What it decided is told to whom asks (link.Log), and
// kept a while for it.
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

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/authority"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
)

// maxSandboxes is how many one process serves.
const maxSandboxes = 4096

// alone is how long a process without creeld and without sandboxes stays.
const alone = 30 * time.Second

// Process is a creel-egress. Use New.
type Process struct {
	build     string
	outside   *outside.Host
	authority atomic.Pointer[authority.Authority]
	roots     atomic.Pointer[x509.CertPool]
	log       *records
	asker     *asker

	mu        sync.Mutex
	known     bool // what the host is
	sandboxes map[string]*sandbox
	conns     int // of creeld
	idle      time.Time
}

// New makes a process that serves nothing yet. build is link.BuildOf its program.
func New(build string) *Process {
	return &Process{build: build, outside: outside.New(outside.ParseConfig("", "")), log: newRecords(), asker: newAsker(), sandboxes: map[string]*sandbox{}, idle: time.Now()}
}

// Run takes orders from who connects to l, until l is closed, or until there is
// nothing to do any more. All sandboxes are given up then.
func (p *Process) Run(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer p.removeAll()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	wg.Go(func() { p.watch(ctx, cancel) })
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			cancel()
			return err
		}
		if err := root(c); err != nil {
			_ = c.Close()
			continue
		}
		wg.Go(func() { p.obey(ctx, c) })
	}
}

// root is nil if root is who connected: nobody else can enter the directory.
func root(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var who *unix.Ucred
	var said error
	if err := raw.Control(func(fd uintptr) { who, said = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if said != nil {
		return said
	}
	if who.Uid != 0 {
		return fmt.Errorf("uid %d gives no orders", who.Uid)
	}
	return nil
}

// watch ends a process that nobody needs.
func (p *Process) watch(ctx context.Context, end func()) {
	t := time.NewTicker(alone / 6)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if p.unused() {
			end()
			return
		}
	}
}

func (p *Process) unused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns > 0 || len(p.sandboxes) > 0 {
		p.idle = time.Now()
	}
	return time.Since(p.idle) >= alone
}

// obey takes orders, in turn, until creeld hangs up.
func (p *Process) obey(ctx context.Context, uc *net.UnixConn) {
	p.count(1)
	defer p.count(-1)
	c := link.NewConn(uc)
	stop := context.AfterFunc(ctx, func() { _ = uc.Close() })
	defer stop()
	defer uc.Close()
	for {
		var o link.Order
		files, err := c.Receive(&o)
		if err != nil {
			return // whatever it is that cannot be read, nothing of it is done
		}
		if o.Op == link.Log {
			closeAll(files)
			p.log.send(ctx, c)
			return
		}
		if o.Op == link.Ask {
			closeAll(files)
			p.asker.use(c)
			return
		}
		a, back := p.do(o, files)
		err = c.Send(a, back...)
		closeAll(back)
		if err != nil {
			return
		}
	}
}

func (p *Process) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns += n
	p.idle = time.Now()
}

// do carries out one order. files are its own to close.
func (p *Process) do(o link.Order, files []*os.File) (link.Answer, []*os.File) {
	var a link.Answer
	var back []*os.File
	err := errOrder
	switch o.Op {
	case link.Hello:
		a.Version, a.Build, err = link.Version, p.build, p.host(files)
	case link.Add:
		err = p.add(o.ID, files)
	case link.Change:
		err = p.change(o.ID, files)
	case link.Remove:
		closeAll(files)
		p.remove(o.ID)
		err = nil
	case link.List:
		closeAll(files)
		a.IDs, err = p.ids(), nil
	case link.Sockets:
		closeAll(files)
		back, err = p.sockets(o.ID)
	default:
		closeAll(files)
	}
	if err != nil {
		return link.Answer{Error: clip(err.Error())}, nil
	}
	return a, back
}

// Errors that are answered.
var (
	errOrder   = errors.New("an order that is not understood")
	errUnknown = errors.New("no such sandbox")
	errKnown   = errors.New("the sandbox is there already")
	errHost    = errors.New("nothing is known of the host yet")
)

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// document takes the one document of an order.
func document(files []*os.File, v any) error {
	defer closeAll(files)
	if len(files) != 1 {
		return errOrder
	}
	return link.ReadDocument(files[0], v)
}

// host takes what there is to know of the host.
func (p *Process) host(files []*os.File) error {
	if len(files) == 0 {
		return nil
	}
	var h link.Host
	if err := document(files, &h); err != nil {
		return err
	}
	if len(h.Resolve.Servers) == 0 {
		return errors.New("a host without a name server")
	}
	auth, err := authority.Parse(h.Authority, time.Now)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(h.Roots)) // none: no server is verified
	p.outside.Configure(h.Resolve)
	p.roots.Store(roots)
	p.authority.Store(auth)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known = true
	return nil
}

func (p *Process) add(id string, files []*os.File) error {
	if len(files) != link.MaxFiles {
		closeAll(files)
		return errOrder
	}
	var pol link.Policy
	defer closeAll(files[1:])
	if err := document(files[:1], &pol); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch _, there := p.sandboxes[id]; {
	case there:
		return errKnown
	case !p.known:
		return errHost
	case id == "" || len(id) > 64 || len(p.sandboxes) >= maxSandboxes:
		return errOrder
	}
	s, err := p.start(id, &pol, files[1:])
	if err != nil {
		return err
	}
	p.sandboxes[id] = s
	return nil
}

func (p *Process) change(id string, files []*os.File) error {
	var pol link.Policy
	if err := document(files, &pol); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.sandboxes[id]
	if !ok {
		return errUnknown
	}
	return s.change(&pol)
}

// remove gives a sandbox up. One that is not there is success.
func (p *Process) remove(id string) {
	p.mu.Lock()
	s, ok := p.sandboxes[id]
	delete(p.sandboxes, id)
	p.mu.Unlock()
	if ok {
		s.stop()
	}
}

func (p *Process) removeAll() {
	for _, id := range p.ids() {
		p.remove(id)
	}
}

func (p *Process) ids() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	ids := []string{}
	for id := range p.sandboxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// sockets are a sandbox's, and a document of its names before them.
func (p *Process) sockets(id string) ([]*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.sandboxes[id]
	if !ok {
		return nil, errUnknown
	}
	names, err := link.Document("names", s.names.Names())
	if err != nil {
		return nil, err
	}
	files, err := s.sockets()
	if err != nil {
		return nil, errors.Join(err, names.Close())
	}
	return append([]*os.File{names}, files...), nil
}
