// Package outside is the host's network as creel-egress uses it: it resolves
// names, connects to addresses, and knows which addresses are the host's own.
//
// It opens no file, for its process may not. What the host's /etc/resolv.conf
// and /etc/hosts say comes from the daemon, as Config.
package outside

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// Config is how the host resolves names.
type Config struct {
	// Servers are asked in this order.
	Servers []netip.Addr `json:"servers"`
	// Hosts are the addresses of names that no server is asked for.
	Hosts map[egress.Name][]netip.Addr `json:"hosts,omitempty"`
}

// Bounds of a Config.
const (
	maxServers = 3 // resolv.conf(5), MAXNS
	maxHosts   = 4096
)

// ParseConfig reads resolv.conf(5) and hosts(5). Of the former only the servers
// count: names are never completed. What cannot be read in either is passed over,
// as the host's own resolver does. Without a server it is one on loopback.
func ParseConfig(resolv, hosts string) Config {
	c := Config{Hosts: map[egress.Name][]netip.Addr{}}
	for line := range lines(resolv) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" && len(c.Servers) < maxServers {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				c.Servers = append(c.Servers, a)
			}
		}
	}
	if len(c.Servers) == 0 {
		c.Servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	for line := range lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, text := range f[1:] {
			if n, err := egress.ParseName(text); err == nil && (len(c.Hosts) < maxHosts || c.Hosts[n] != nil) {
				c.Hosts[n] = append(c.Hosts[n], a.Unmap())
			}
		}
	}
	return c
}

func lines(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for sc := bufio.NewScanner(strings.NewReader(s)); sc.Scan(); {
			if line := sc.Text(); !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") && !yield(line) {
				return
			}
		}
	}
}

// Host is the host's network. Use New.
type Host struct {
	config   atomic.Pointer[Config]
	resolver net.Resolver
	dialer   net.Dialer
}

// New makes a Host that resolves as c says, until Configure.
func New(c Config) *Host {
	h := &Host{}
	h.Configure(c)
	h.resolver = net.Resolver{PreferGo: true, StrictErrors: true, Dial: h.dialServer}
	return h
}

// Configure has names resolved in another way from now on.
func (h *Host) Configure(c Config) { h.config.Store(&c) }

// lookupTimeout bounds a lookup, with all its tries.
const lookupTimeout = 15 * time.Second

// Lookup implements proxy.Outside. A name that does not exist is an error.
func (h *Host) Lookup(ctx context.Context, host egress.Name) ([]netip.Addr, error) {
	if found := h.config.Load().Hosts[host]; len(found) > 0 {
		return slices.Clone(found), nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	// The dot has no search list be tried. A's and AAAA's are both there, in the
	// order of RFC 6724.
	found, err := h.resolver.LookupNetIP(ctx, "ip", string(host)+".")
	if err != nil {
		if dns, ok := errors.AsType[*net.DNSError](err); ok {
			return nil, fmt.Errorf("resolve %s: %s", host, dns.Err) // without the server's address
		}
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, nil
}

// dialServer connects to one of the host's name servers. Which one the resolver
// asks for is of net's built-in list of two, since it can read no file: the
// first stands for ours, and the second for the others in turn.
func (h *Host) dialServer(ctx context.Context, network, address string) (net.Conn, error) {
	servers := h.config.Load().Servers
	at := servers[0]
	if strings.HasPrefix(address, "[") && len(servers) > 1 {
		at = servers[1+int(time.Now().UnixNano()/int64(time.Second))%(len(servers)-1)]
	}
	return h.dialer.DialContext(ctx, network, netip.AddrPortFrom(at, 53).String())
}

// Dial implements proxy.Outside.
func (h *Host) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := h.dialer.DialContext(ctx, "tcp", to.String()) // an address: nothing is resolved
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a connection that is a %T", c), c.Close())
	}
	return tcp, nil
}

// Own implements proxy.Outside.
func (h *Host) Own() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var own []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, fmt.Errorf("address %s: %w", a, err)
		}
		own = append(own, p.Addr().Unmap())
	}
	return own, nil
}
