package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// Outside is what is needed of the host. Its methods are safe for
// concurrent use.
type Outside interface {
	// Lookup resolves a name to addresses of both families, in the order they
	// are to be tried.
	Lookup(ctx context.Context, host egress.Name) ([]netip.Addr, error)
	// Dial connects to an address and resolves nothing.
	Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error)
	// DialAgent connects to a server in the sandbox of an agent of the same
	// caller's.
	DialAgent(ctx context.Context, agent string, port uint16) (*net.TCPConn, error)
	// Own are the host's own addresses now.
	Own() ([]netip.Addr, error)
}

// Dialer connects to targets.
type Dialer struct{ Outside }

// How long a connection may take.
const (
	dialTimeout = 10 * time.Second // for each address
	allTimeout  = 30 * time.Second // for resolving and all of them
)

// Dial connects to a target by an address that the policy lets be dialled, and
// says by which. That the target itself is allowed was found before. The error is
// ErrUnreachable where no address may be dialled or none answers.
func (d Dialer) Dial(ctx context.Context, policy egress.Snapshot, to Target) (*net.TCPConn, netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, allTimeout)
	defer cancel()
	if agent, ok := to.Host.Agent(); ok {
		c, err := d.DialAgent(ctx, agent, to.Port)
		if err != nil {
			return nil, netip.AddrPort{}, fmt.Errorf("%w: %s: %w", ErrUnreachable, to, err)
		}
		return c, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port), nil
	}
	addrs, err := d.addrs(ctx, policy, to)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	var errs []error
	for _, a := range addrs {
		at := netip.AddrPortFrom(a, to.Port)
		c, err := d.one(ctx, at)
		if err == nil {
			return c, at, nil
		}
		errs = append(errs, err)
	}
	return nil, netip.AddrPort{}, fmt.Errorf("%w: %s: %w", ErrUnreachable, to, errors.Join(errs...))
}

func (d Dialer) one(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return d.Outside.Dial(ctx, to)
}

// addrs are the target's addresses that may be dialled: at least one.
func (d Dialer) addrs(ctx context.Context, policy egress.Snapshot, to Target) ([]netip.Addr, error) {
	if to.Host == egress.BoxName {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	found := []netip.Addr{to.Addr}
	if to.Host != "" {
		var err error
		if found, err = d.Lookup(ctx, to.Host); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		}
	}
	own, err := d.Own()
	if err != nil {
		return nil, fmt.Errorf("the host's own addresses: %w", err) // nothing can be checked
	}
	var good []netip.Addr
	var refused []error
	for _, a := range found {
		if err := policy.Dial(a, to.Port, own); err != nil {
			refused = append(refused, err)
			continue
		}
		good = append(good, a)
	}
	if len(good) == 0 {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, to, errors.Join(refused...))
	}
	return good, nil
}
