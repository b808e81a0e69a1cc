// Package proxy takes the connections of one sandbox to where its policy lets
// them go.
//
// What a connection is to is its local address, for every address is local
// where it was accepted (package steer): a synthetic address is a name, which is
// resolved here and now, and the address that was checked is the one that is
// dialled. Nothing that the agent sends is taken for where it wants to go; the
// name in a ClientHello must be that name, and is refused if it is not.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/clienthello"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
	"github.com/creel-sandbox/creel/pkg/egress/relay"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
)

// Web serves the connections whose requests have to be read. It closes c.
type Web interface {
	Serve(ctx context.Context, c *net.TCPConn, to Target, kinds egress.Kinds) error
}

// Explicit serves the connections of clients that know that they speak to a
// proxy. It closes c.
type Explicit interface {
	ServeExplicit(ctx context.Context, c *net.TCPConn) error
}

// Workload serves the connections of clients that ask who the sandbox is. It closes
// c.
type Workload interface {
	ServeWorkload(ctx context.Context, c *net.TCPConn) error
}

// DNS serves the connections to the sandbox's resolver. It does not close them.
type DNS interface {
	ServeTCP(ctx context.Context, c net.Conn) error
}

// Options are of one sandbox. All are required.
type Options struct {
	Outside Outside
	Web     Web
	// Explicit gets the connections to ExplicitAddr.
	Explicit Explicit
	// Workload gets the connections to WorkloadAddr.
	Workload Workload
	// DNS gets the connections to port 53 of every address that stands for no
	// name, and that the policy does not allow: as it gets all datagrams.
	DNS   DNS
	Names *synthetic.Table
	// Policy is the snapshot that holds now. It is asked once for a connection.
	Policy func() credential.Policy
	// Bytes is the budget of all connections together.
	Bytes *relay.Budget
	// Opened is how many connections may be let through in the sandbox's life.
	Opened *relay.Budget
	// Connections is how many there may be at one time.
	Connections int
	// Idle ends a connection over which nothing goes.
	Idle time.Duration
	// Record is told how each connection ended, once.
	Record func(Outcome)
}

// Target is where a connection goes: a name, or an address that none stands
// for.
type Target struct {
	Host egress.Name
	Addr netip.Addr // of a target without a name
	Port uint16
}

// String is "host:port".
func (t Target) String() string {
	if t.Host != "" {
		return fmt.Sprintf("%s:%d", t.Host, t.Port)
	}
	return netip.AddrPortFrom(t.Addr, t.Port).String()
}

// Outcome is what became of a connection.
type Outcome struct {
	Began time.Time
	To    Target
	// Rules allowed it, one for each party of the policy.
	Rules []string
	// Dialled is the address outside, if it came to that.
	Dialled netip.AddrPort
	Moved   relay.Moved
	// Err is why it was refused or broke; nil for one that ended by itself. It
	// is an *egress.RefusedError where the policy refused.
	Err error
}

// Errors of this package, to be tested with errors.Is.
var (
	// ErrConnections is a sandbox with as many connections as it may have.
	ErrConnections = errors.New("the sandbox has as many connections as it may")
	// ErrOpened is a sandbox that has made as many connections as it may.
	ErrOpened = errors.New("the budget of connections is used up")
	// ErrNotTheName is a TLS client that asks for another name than it is
	// connected to, or hides which.
	ErrNotTheName = errors.New("the TLS client does not ask for the name it connected to")
	// ErrUnreachable is a target that no allowed address of answers.
	ErrUnreachable = errors.New("no address answers")
)

// dnsPort is where resolvers are asked (RFC 1035, section 4.2).
const dnsPort = 53

// ExplicitAddr is where a connection is to a proxy: the one address of loopback
// from which package steer has them come here.
var ExplicitAddr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 3128)

// WorkloadAddr is where a connection is to the Workload API.
var WorkloadAddr = netip.AddrPortFrom(ExplicitAddr.Addr(), 3129)

// helloTimeout is how long a ClientHello may take.
const helloTimeout = 10 * time.Second

// Proxy takes connections. Use New.
type Proxy struct {
	opts   Options
	places chan struct{}
}

// New makes a proxy.
func New(o Options) (*Proxy, error) {
	if o.Outside == nil || o.Web == nil || o.Explicit == nil || o.Workload == nil || o.DNS == nil || o.Names == nil || o.Policy == nil || o.Bytes == nil || o.Opened == nil || o.Record == nil || o.Connections < 1 || o.Idle <= 0 {
		return nil, errors.New("a proxy without all of its options")
	}
	return &Proxy{o, make(chan struct{}, o.Connections)}, nil
}

// Handle serves a connection that was accepted, and closes it. What is refused
// gets a reset.
func (p *Proxy) Handle(ctx context.Context, c *net.TCPConn) {
	out := Outcome{Began: time.Now()}
	told := false // by who serves it
	defer func() {
		if out.Err != nil {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
		if !told {
			p.opts.Record(out)
		}
	}()
	select {
	case p.places <- struct{}{}:
		defer func() { <-p.places }()
	default:
		out.Err = ErrConnections
		return
	}
	if out.Err = reusable(c); out.Err != nil {
		return
	}
	if out.To, out.Err = p.target(c); out.Err != nil {
		return
	}
	switch netip.AddrPortFrom(out.To.Addr, out.To.Port) {
	case ExplicitAddr:
		out.Err, told = p.opts.Explicit.ServeExplicit(ctx, c), true
		return
	case WorkloadAddr:
		out.Err, told = p.opts.Workload.ServeWorkload(ctx, c), true
		return
	}
	out.Err = p.serve(ctx, c, &out)
}

// Through serves a connection whose client asked for a target, and was told that
// it has it. It closes c, and counts for the place of the connection it came by.
func (p *Proxy) Through(ctx context.Context, c *net.TCPConn, to Target) {
	out := Outcome{Began: time.Now(), To: to}
	defer func() {
		if out.Err != nil {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
		p.opts.Record(out)
	}()
	out.Err = p.serve(ctx, c, &out)
}

// Target is what a client that asks for a host means: its name, or the address
// that stands for one.
func (p *Proxy) Target(host string, port uint16) (Target, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		t := Target{Addr: a.Unmap(), Port: port}
		if n, ok := p.opts.Names.Name(t.Addr); ok {
			return Target{Host: n, Port: port}, nil
		}
		return t, nil
	}
	n, err := egress.ParseName(host)
	return Target{Host: n, Port: port}, err
}

// Allowed is nil if a connection to a target would be let through.
func (p *Proxy) Allowed(to Target) error {
	_, err := connect(p.opts.Policy(), to)
	return err
}

// reusable has a connection not keep the agent from listening on its port, see
// package steer.
func reusable(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, set)
}

// target is where a connection was made to.
func (p *Proxy) target(c *net.TCPConn) (Target, error) {
	at, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return Target{}, err
	}
	t := Target{Addr: at.Addr().Unmap(), Port: at.Port()}
	if n, ok := p.opts.Names.Name(t.Addr); ok {
		return Target{Host: n, Port: t.Port}, nil
	}
	return t, nil
}

func (p *Proxy) serve(ctx context.Context, c *net.TCPConn, out *Outcome) error {
	policy := p.opts.Policy()
	grant, err := connect(policy, out.To)
	if err != nil {
		if out.To.Host == "" && out.To.Port == dnsPort {
			return p.opts.DNS.ServeTCP(ctx, c)
		}
		return err
	}
	out.Rules = grant.Rules
	if !p.opts.Opened.Spend(1) {
		return ErrOpened
	}
	var first []byte
	switch {
	case grant.Kinds&egress.Raw != 0:
	case grant.Kinds&egress.TLS != 0 && grant.Kinds&egress.HTTP == 0:
		if first, err = hello(c, out.To.Host); err != nil {
			return err
		}
	default:
		return p.opts.Web.Serve(ctx, c, out.To, grant.Kinds) // by which each request is one
	}
	if !grant.Take() {
		return &egress.RefusedError{By: "what was allowed once, and is used", What: "a connection to " + out.To.String()}
	}
	up, at, err := Dialer{p.opts.Outside}.Dial(ctx, policy.Snapshot, out.To)
	if err != nil {
		return err
	}
	out.Dialled = at
	if len(first) > 0 {
		if !p.opts.Bytes.Spend(int64(len(first))) {
			return errors.Join(relay.ErrBudget, up.Close())
		}
		if _, err := up.Write(first); err != nil {
			return errors.Join(err, up.Close())
		}
	}
	out.Moved, err = relay.Run(ctx, c, up, relay.Limits{Budget: p.opts.Bytes, Idle: p.opts.Idle})
	out.Moved.Out += int64(len(first))
	return err
}

func connect(policy credential.Policy, to Target) (egress.Grant, error) {
	if to.Host != "" {
		return policy.Connect(to.Host, to.Port)
	}
	return policy.ConnectAddr(to.Addr, to.Port)
}

// hello reads what a TLS client says, which must be the name.
func hello(c *net.TCPConn, host egress.Name) ([]byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	h, err := clienthello.Read(c)
	if err != nil {
		return nil, err
	}
	name, err := egress.ParseName(h.Name)
	switch {
	case h.ECH:
		return nil, fmt.Errorf("%w: it hides it (ECH); connected to %s", ErrNotTheName, host)
	case h.Name == "":
		return nil, fmt.Errorf("%w: it asks for none; connected to %s", ErrNotTheName, host)
	case err != nil || name != host:
		return nil, fmt.Errorf("%w: it asks for %.100q; connected to %s", ErrNotTheName, h.Name, host)
	}
	return h.Raw, nil
}
