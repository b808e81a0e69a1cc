package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
	"github.com/creel-sandbox/creel/pkg/egress/relay"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// world is a sandbox's network namespace, its proxy, and an internet of the
// test's own: names with addresses, and addresses behind which servers on
// loopback are.
type world struct {
	t     *testing.T
	ns    *netns.NS
	names *synthetic.Table
	opts  proxy.Options

	mu       sync.Mutex
	policy   egress.Snapshot
	records  map[egress.Name][]netip.Addr
	servers  map[netip.AddrPort]string
	agents   map[string]string
	lookups  []egress.Name
	dialled  []netip.AddrPort
	outcomes chan proxy.Outcome
	asWeb    chan string
}

func (w *world) Lookup(_ context.Context, n egress.Name) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lookups = append(w.lookups, n)
	if a, ok := w.records[n]; ok {
		return a, nil
	}
	return nil, errors.New("no such host")
}

func (w *world) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, to)
	at, ok := w.servers[to]
	w.mu.Unlock()
	if !ok {
		return nil, syscall.ECONNREFUSED
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (*world) Own() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("1.2.3.4")}, nil }

func (w *world) DialAgent(ctx context.Context, agent string, port uint16) (*net.TCPConn, error) {
	w.mu.Lock()
	at, ok := w.agents[fmt.Sprint(agent, ":", port)]
	w.mu.Unlock()
	if !ok {
		return nil, errors.New("no such agent")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (*world) ServeExplicit(_ context.Context, c *net.TCPConn) error { return c.Close() }

func (w *world) ServeWorkload(_ context.Context, c *net.TCPConn) error {
	w.asWeb <- "who " + c.LocalAddr().String()
	return c.Close()
}

func (w *world) Serve(_ context.Context, c *net.TCPConn, to proxy.Target, kinds egress.Kinds) error {
	w.asWeb <- fmt.Sprint(to, " ", kinds)
	return c.Close()
}

// ServeTCP is for proxy.DNS.
func (w *world) ServeTCP(_ context.Context, c net.Conn) error {
	w.asWeb <- "dns " + c.LocalAddr().String()
	return nil
}

// newWorld runs a proxy. Rules are of one policy.
func newWorld(t *testing.T, change func(*proxy.Options), rules ...egress.Rule) *world {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root)
	names, err := synthetic.New(synthetic.NewRange6(), 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, names: names, records: map[egress.Name][]netip.Addr{}, servers: map[netip.AddrPort]string{}, outcomes: make(chan proxy.Outcome, 100), asWeb: make(chan string, 100),
	}
	w.allow(rules...)
	w.opts = proxy.Options{
		Outside: w, Web: w, Explicit: w, Workload: w, DNS: w, Names: names, Bytes: relay.NewBudget(1 << 30), Opened: relay.NewBudget(1 << 30), Connections: 10, Idle: time.Minute,
		Policy: func() credential.Policy {
			w.mu.Lock()
			defer w.mu.Unlock()
			return credential.Policy{Snapshot: w.policy}
		},
		Record: func(o proxy.Outcome) { w.outcomes <- o },
	}
	if change != nil {
		change(&w.opts)
	}
	p, err := proxy.New(w.opts)
	if err != nil {
		t.Fatal(err)
	}
	if w.ns, err = netns.CreateLocal(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ns.Close() })
	s, err := steer.Listen(w.ns)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := steer.Steer(t.Context(), w.ns, dir, "proxytest", s); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, f := range []*os.File{s.TCP4, s.TCP6} {
		l, err := net.FileListener(f)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { p.Handle(t.Context(), c.(*net.TCPConn)) })
			}
		})
		t.Cleanup(func() { l.Close() })
	}
	t.Cleanup(func() { s.Close() })
	return w
}

func (w *world) allow(rules ...egress.Rule) {
	w.t.Helper()
	p, problems := egress.Parse("the test's policy", "egress", rules)
	if len(problems) > 0 {
		w.t.Fatal(problems)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy = egress.NewSnapshot(p)
}

// host has a name resolve to addresses, and gives its synthetic ones.
func (w *world) host(n egress.Name, addrs ...string) (v4, v6 netip.Addr) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range addrs {
		w.records[n] = append(w.records[n], netip.MustParseAddr(a))
	}
	v4, v6, _, err := w.names.Bind(n)
	if err != nil {
		w.t.Fatal(err)
	}
	return v4, v6
}

// forget has no name resolve any more.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.records)
}

// did is what the proxy asked of the world.
func (w *world) did() (lookups []egress.Name, dialled []netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lookups), slices.Clone(w.dialled)
}

// serve has a server on loopback stand for an address, and says what it hears.
func (w *world) serve(at string, fn func(net.Conn)) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); fn(c) }()
		}
	}()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[netip.MustParseAddrPort(at)] = l.Addr().String()
}

func greet(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// dial connects from inside.
func (w *world) dial(a netip.Addr, port uint16) (net.Conn, error) {
	var c net.Conn
	err := thread.Do(func() error {
		if err := unix.Setns(int(w.ns.File().Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err := unix.Socket(map[bool]int{true: unix.AF_INET, false: unix.AF_INET6}[a.Is4()], unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var sa unix.Sockaddr
		if a.Is4() {
			sa = &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}
		} else {
			sa = &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
		}
		f := os.NewFile(uintptr(fd), "inside")
		defer f.Close()
		if err := unix.Connect(fd, sa); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// get is all that is heard from a target, and what became of it.
func (w *world) get(a netip.Addr, port uint16) (string, proxy.Outcome) {
	w.t.Helper()
	c, err := w.dial(a, port)
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	_ = c.Close()
	o := w.outcome()
	if (err == nil) != (o.Err == nil) {
		w.t.Errorf("%s: inside %v, outside %v", o.To, err, o.Err)
	}
	return string(b), o
}

func (w *world) outcome() proxy.Outcome {
	w.t.Helper()
	select {
	case o := <-w.outcomes:
		return o
	case <-time.After(20 * time.Second):
		w.t.Fatal("the connection goes on")
		return proxy.Outcome{}
	}
}

func tcp(host string, ports ...uint16) egress.Rule {
	return egress.Rule{Host: host, Protocol: "tcp", Ports: ports}
}

func TestRaw(t *testing.T) {
	w := newWorld(t, nil, tcp("a.example", 22), tcp("six.example", 22), tcp("gone.example", 22), tcp("host.creel.internal", 9999), egress.Rule{CIDR: "10.1.0.0/16", Ports: []uint16{22}})
	w.serve("8.8.8.8:22", greet("eight"))
	w.serve("[2606:4700::1]:22", greet("six"))
	w.serve("10.1.0.7:22", greet("lan"))
	w.serve("127.0.0.1:9999", greet("box"))
	a4, a6 := w.host("a.example", "8.8.8.8")
	for _, a := range []netip.Addr{a4, a6} {
		if got, o := w.get(a, 22); got != "eight" || o.To.String() != "a.example:22" || o.Dialled.String() != "8.8.8.8:22" || o.Moved.In != 5 || len(o.Rules) != 1 {
			t.Errorf("%q, %+v", got, o)
		}
	}
	six, _ := w.host("six.example", "9.9.9.9", "2606:4700::1") // the first does not answer
	if got, o := w.get(six, 22); got != "six" || o.Dialled.String() != "[2606:4700::1]:22" {
		t.Errorf("%q, %+v", got, o)
	}
	if got, o := w.get(netip.MustParseAddr("10.1.0.7"), 22); got != "lan" || o.To.String() != "10.1.0.7:22" {
		t.Errorf("%q, %+v", got, o)
	}
	box, _ := w.host(egress.BoxName)
	if got, o := w.get(box, 9999); got != "box" || o.Err != nil {
		t.Errorf("%q, %+v", got, o)
	}
	gone, _ := w.host("gone.example", "9.9.9.9")
	if got, o := w.get(gone, 22); got != "" || !errors.Is(o.Err, proxy.ErrUnreachable) {
		t.Errorf("%q, %+v", got, o)
	}
}

// TestAgents: an agent's name is connected to by whom it is for, and no resolver is
// asked.
func TestAgents(t *testing.T) {
	w := newWorld(t, nil, tcp("db.agent.creel.internal", 5432), tcp("gone.agent.creel.internal", 5432))
	w.serve("10.9.9.9:1", greet("the database"))
	w.agents = map[string]string{"db:5432": w.servers[netip.MustParseAddrPort("10.9.9.9:1")]}
	db, _ := w.host("db.agent.creel.internal")
	if got, o := w.get(db, 5432); got != "the database" || o.To.String() != "db.agent.creel.internal:5432" || o.Err != nil {
		t.Errorf("%q, %+v", got, o)
	}
	if got, o := w.get(db, 5433); got != "" || o.Err == nil {
		t.Errorf("another port: %q, %+v", got, o)
	}
	gone, _ := w.host("gone.agent.creel.internal")
	if got, o := w.get(gone, 5432); got != "" || !errors.Is(o.Err, proxy.ErrUnreachable) {
		t.Errorf("%q, %+v", got, o)
	}
	if lookups, dialled := w.did(); len(lookups) > 0 || len(dialled) > 0 {
		t.Errorf("looked up %v, dialled %v", lookups, dialled)
	}
}

// TestRefused: nothing is resolved and nothing dialled for what the policy does
// not allow, by whatever address.
func TestRefused(t *testing.T) {
	w := newWorld(t, nil, tcp("a.example", 22), egress.Rule{CIDR: "10.1.0.0/16", Ports: []uint16{22}})
	a, a6 := w.host("a.example", "8.8.8.8")
	b, _ := w.host("b.example", "8.8.4.4")
	box, _ := w.host(egress.BoxName)
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(a, 23), netip.AddrPortFrom(a6, 443), netip.AddrPortFrom(b, 22), netip.AddrPortFrom(box, 22),
		netip.MustParseAddrPort("8.8.8.8:22"), netip.MustParseAddrPort("10.1.0.7:23"), netip.MustParseAddrPort("10.2.0.7:22"), netip.MustParseAddrPort("169.254.169.254:80"),
		netip.MustParseAddrPort("198.18.0.1:1"), netip.MustParseAddrPort("198.18.200.1:22"), netip.MustParseAddrPort("[2001:2::1]:1"), netip.MustParseAddrPort("[fd00::1]:22"),
		netip.MustParseAddrPort("[64:ff9b::a01:7]:22"),
	} {
		got, o := w.get(to.Addr(), to.Port())
		if _, ok := errors.AsType[*egress.RefusedError](o.Err); got != "" || !ok {
			t.Errorf("%s: %q, %+v", to, got, o)
		}
	}
	if lookups, dialled := w.did(); len(lookups) > 0 || len(dialled) > 0 {
		t.Errorf("looked up %v, dialled %v", lookups, dialled)
	}
}

// TestResolver: a connection to port 53 of any address without a name is the
// resolver's, but where the policy has it go there.
func TestResolver(t *testing.T) {
	w := newWorld(t, nil, egress.Rule{CIDR: "10.1.0.0/16", Ports: []uint16{53}}, tcp("a.example", 22))
	w.serve("10.1.0.7:53", greet("another's"))
	a, _ := w.host("a.example", "8.8.8.8")
	for _, to := range []string{"198.18.0.1:53", "8.8.8.8:53", "[2001:2::1]:53", "[2001:4860:4860::8888]:53"} {
		at := netip.MustParseAddrPort(to)
		if got, o := w.get(at.Addr(), at.Port()); got != "" || o.Err != nil {
			t.Errorf("%s: %q, %+v", to, got, o)
		}
		if got := <-w.asWeb; got != "dns "+to {
			t.Errorf("%s: %s", to, got)
		}
	}
	if got, o := w.get(netip.MustParseAddr("10.1.0.7"), 53); got != "another's" || o.Err != nil {
		t.Errorf("a resolver that is allowed: %q, %+v", got, o)
	}
	if got, o := w.get(a, 53); got != "" || o.Err == nil || len(w.asWeb) > 0 {
		t.Errorf("port 53 of a name: %q, %+v", got, o)
	}
}

// TestRebinding: what a name points at is judged each time, and only what was
// judged is dialled.
func TestRebinding(t *testing.T) {
	w := newWorld(t, nil, tcp("r.example", 22))
	for _, addr := range []string{"127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fd00::1", "fe80::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "0.0.0.0", "224.0.0.1", "1.2.3.4", "198.18.1.0"} {
		w.forget()
		r, _ := w.host("r.example", addr)
		if got, o := w.get(r, 22); got != "" || !errors.Is(o.Err, proxy.ErrUnreachable) {
			t.Errorf("%s: %q, %+v", addr, got, o)
		}
		if _, dialled := w.did(); len(dialled) > 0 {
			t.Fatalf("%s: dialled %v", addr, dialled)
		}
	}
	w.serve("8.8.8.8:22", greet("good"))
	w.forget()
	r, _ := w.host("r.example", "127.0.0.1", "8.8.8.8", "10.0.0.1")
	before, _ := w.did()
	got, o := w.get(r, 22)
	if lookups, dialled := w.did(); got != "good" || len(dialled) != 1 || len(lookups) != len(before)+1 {
		t.Errorf("%q, %+v; dialled %v, %d lookups", got, o, dialled, len(lookups)-len(before))
	}
}

// web is an HTTPS server that stands for an address, and what trusts it.
func web(t *testing.T, w *world, at string) *x509.CertPool {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) { fmt.Fprint(out, "hello ", r.Host) }))
	t.Cleanup(srv.Close)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[netip.MustParseAddrPort(at)] = srv.Listener.Addr().String()
	pool := x509.NewCertPool()
	pool.AddCert(srv.Certificate())
	return pool
}

func TestTLS(t *testing.T) {
	w := newWorld(t, nil, egress.Rule{Host: "example.com"}, egress.Rule{Host: "other.example"})
	roots := web(t, w, "8.8.8.8:443") // httptest's certificate is for example.com
	a, _ := w.host("example.com", "8.8.8.8")
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return w.dial(a, 443) },
	}}
	resp, err := client.Get("https://example.com/")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	client.CloseIdleConnections()
	if o := w.outcome(); err != nil || string(b) != "hello example.com" || o.Err != nil || o.Moved.Out < 200 || o.Moved.In < 1000 {
		t.Errorf("%q, %v, %+v", b, err, o)
	}

	_, before := w.did()
	for name, cfg := range map[string]*tls.Config{
		"another name that is allowed": {ServerName: "other.example"},
		"a name that is not":           {ServerName: "evil.example"},
		"no name":                      {ServerName: "8.8.8.8"},
		"a name below it":              {ServerName: "a.example.com"},
		"a name that is none":          {ServerName: "exa_mple.com"},
	} {
		c, err := w.dial(a, 443)
		if err != nil {
			t.Fatal(err)
		}
		cfg.RootCAs = roots
		err = tls.Client(c, cfg).Handshake()
		c.Close()
		if o := w.outcome(); err == nil || !errors.Is(o.Err, proxy.ErrNotTheName) {
			t.Errorf("%s: %v, %+v", name, err, o)
		}
	}
	for _, said := range []string{"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "SSH-2.0-x\r\n", "\x16\x03\x01"} {
		c, err := w.dial(a, 443)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, said)
		_ = c.(*net.TCPConn).CloseWrite()
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("%q: %q", said, b)
		}
		if o := w.outcome(); o.Err == nil {
			t.Errorf("%q: %+v", said, o)
		}
	}
	if _, dialled := w.did(); len(dialled) != len(before) {
		t.Errorf("dialled %v", dialled[len(before):])
	}
}

// TestWeb: what has to be read is given on, unread, and nothing is dialled.
func TestWeb(t *testing.T) {
	w := newWorld(t, nil, egress.Rule{Host: "read.example", Methods: []string{"GET"}}, egress.Rule{Host: "plain.example", Protocol: "http"}, egress.Rule{Host: "both.example", Ports: []uint16{80}}, egress.Rule{Host: "both.example", Protocol: "http"})
	for name, want := range map[egress.Name]string{"read.example": "read.example:443 8", "plain.example": "plain.example:80 4", "both.example": "both.example:80 14"} {
		a, _ := w.host(name, "8.8.8.8")
		port := uint16(80)
		if name == "read.example" {
			port = 443
		}
		if _, o := w.get(a, port); o.Err != nil {
			t.Errorf("%s: %+v", name, o)
		}
		if got := <-w.asWeb; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if lookups, dialled := w.did(); len(lookups) > 0 || len(dialled) > 0 {
		t.Errorf("looked up %v, dialled %v", lookups, dialled)
	}
}

func TestBounds(t *testing.T) {
	hold := make(chan struct{})
	t.Run("connections", func(t *testing.T) {
		w := newWorld(t, func(o *proxy.Options) { o.Connections = 2 }, tcp("a.example", 22))
		w.serve("8.8.8.8:22", func(c net.Conn) { _, _ = io.WriteString(c, "x"); <-hold })
		a, _ := w.host("a.example", "8.8.8.8")
		var held []net.Conn
		for range 2 {
			c, err := w.dial(a, 22)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			held = append(held, c)
		}
		if _, o := w.get(a, 22); !errors.Is(o.Err, proxy.ErrConnections) {
			t.Errorf("%+v", o)
		}
		close(hold)
		for _, c := range held {
			_ = c.Close()
			if o := w.outcome(); o.Err != nil {
				t.Errorf("%+v", o)
			}
		}
		if got, o := w.get(a, 22); got != "x" {
			t.Errorf("afterwards: %q, %+v", got, o)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		w := newWorld(t, func(o *proxy.Options) { o.Bytes = relay.NewBudget(1000) }, tcp("a.example", 22), egress.Rule{Host: "example.com"})
		w.serve("8.8.8.8:22", greet(strings.Repeat("x", 2000)))
		a, _ := w.host("a.example", "8.8.8.8")
		if _, o := w.get(a, 22); !errors.Is(o.Err, relay.ErrBudget) || o.Moved.In != 1000 {
			t.Errorf("%+v", o)
		}
		web(t, w, "8.8.8.8:443")
		e, _ := w.host("example.com", "8.8.8.8")
		c, err := w.dial(e, 443)
		if err != nil {
			t.Fatal(err)
		}
		if err := tls.Client(c, &tls.Config{ServerName: "example.com"}).Handshake(); err == nil {
			t.Error("there were bytes for a ClientHello")
		}
		if o := w.outcome(); !errors.Is(o.Err, relay.ErrBudget) || o.Moved.Out != 0 {
			t.Errorf("%+v", o)
		}
	})
	t.Run("policy that changed", func(t *testing.T) {
		w := newWorld(t, nil, tcp("a.example", 22))
		w.serve("8.8.8.8:22", greet("x"))
		a, _ := w.host("a.example", "8.8.8.8")
		if got, o := w.get(a, 22); got != "x" {
			t.Errorf("%q, %+v", got, o)
		}
		w.allow()
		if got, o := w.get(a, 22); got != "" || o.Err == nil {
			t.Errorf("%q, %+v", got, o)
		}
	})
}

func TestNew(t *testing.T) {
	if _, err := proxy.New(proxy.Options{Connections: 1, Idle: time.Second}); err == nil {
		t.Error("made without a policy")
	}
}
