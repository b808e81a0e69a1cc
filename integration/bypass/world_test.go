// Package bypass_test tries to get round the policy of a network, from inside,
// in an internet that it makes itself: namespaces, and servers in them.
//
// What serves is the real creel-egress, in the namespace of a box with one wire
// to that internet. Each attempt has a name and the result that it must have.
package bypass_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// Addresses of the internet. Those that are public belong to nobody here: the
// namespaces have no way out.
const (
	boxAddr  = "10.77.0.2"   // the box's own
	boxPub   = "45.45.45.45" // its public one
	resolver = "9.9.9.9"
	goodAddr = "45.0.0.10"
	good6    = "2a00:1234::10"
	evilAddr = "45.0.0.66"
	metadata = "169.254.169.254"
	lanAddr  = "192.168.50.1"
)

// world is a sandbox's namespace, the box's, and the internet.
type world struct {
	t             *testing.T
	ns            *netns.NS // the sandbox's
	box, internet *os.File
	keeper        *egressproc.Keeper
	dir, pins     string
	policy        link.Policy
	roots         *x509.CertPool
	rootsPEM      string // the same

	mu      sync.Mutex
	names   map[string][]string // what the resolver says
	asked   []string            // of the resolver
	arrived []string            // connections and requests, at servers
	records []link.Record
}

// in runs fn on a thread in a network namespace.
func in(ns *os.File, fn func() error) error {
	return thread.Do(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

func (w *world) saw(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.arrived = append(w.arrived, what)
}

// forget is all that arrived until now.
func (w *world) forget() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.arrived
	w.arrived = nil
	return out
}

// listen has a server on all addresses of a namespace.
func (w *world) listen(ns *os.File, port int, serve func(net.Conn)) {
	w.t.Helper()
	var l net.Listener
	if err := in(ns, func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
}

// web is a server that says what it was asked, on both ends of TLS.
func (w *world) web(where string, ns *os.File) {
	w.t.Helper()
	cert := w.certificate("good.example", "*.good.example", "other.example", "opened.example", "alike.example")
	h := http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		at := r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()
		w.saw(fmt.Sprintf("%s %s %s %s%s", where, at, r.Method, r.Host, r.RequestURI))
		if r.Header.Get("Upgrade") == "websocket" {
			if c, _, err := http.NewResponseController(out).Hijack(); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nframes")
				_ = c.Close()
			}
			return
		}
		b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		fmt.Fprintf(out, "served %s %s %d\n", r.Method, r.RequestURI, len(b))
	})
	for port, tlsOn := range map[int]bool{80: false, 8080: false, 443: true, 8443: true} {
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
		if tlsOn {
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		}
		var l net.Listener
		if err := in(ns, func() (err error) {
			l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
			return err
		}); err != nil {
			w.t.Fatal(err)
		}
		go func() {
			if tlsOn {
				_ = srv.ServeTLS(l, "", "")
			} else {
				_ = srv.Serve(l)
			}
		}()
		w.t.Cleanup(func() { srv.Close() })
	}
	for _, port := range []int{22, 53, 853, 3128, 5432} {
		w.listen(ns, port, func(c net.Conn) {
			w.saw(fmt.Sprintf("%s %s raw", where, c.LocalAddr()))
			_, _ = io.WriteString(c, "raw\n")
		})
	}
}

func (w *world) certificate(names ...string) tls.Certificate {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	w.roots.AppendCertsFromPEM(text)
	w.rootsPEM += string(text)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dns is the resolver outside. A list of "a|b" is answered with its parts in
// turn, one an answer.
func (w *world) dns() {
	w.t.Helper()
	var c net.PacketConn
	if err := in(w.internet, func() (err error) {
		c, err = net.ListenPacket("udp", resolver+":53")
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
			m.Response, m.Additionals = true, nil
			w.mu.Lock()
			w.asked = append(w.asked, name)
			addrs, ok := w.names[name]
			if len(addrs) == 1 && strings.Contains(addrs[0], "|") && q.Type == dnsmessage.TypeA {
				first, rest, _ := strings.Cut(addrs[0], "|")
				w.names[name] = []string{rest + "|" + first}
				addrs = []string{first}
			}
			w.mu.Unlock()
			if !ok {
				m.RCode = dnsmessage.RCodeNameError
			}
			for _, a := range addrs {
				ip, err := netip.ParseAddr(a)
				switch {
				case err != nil:
				case ip.Is4() && q.Type == dnsmessage.TypeA:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AResource{A: ip.As4()}})
				case ip.Is6() && q.Type == dnsmessage.TypeAAAA:
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}})
				}
			}
			if reply, err := m.Pack(); err == nil {
				_, _ = c.WriteTo(reply, from)
			}
		}
	}()
}

// ids gives one range.
type ids struct{}

const hostUID = 0x7FE0_0000

func (ids) Take() (uint32, error) { return hostUID, nil }
func (ids) Release(uint32)        {}

// newWorld is a sandbox with a policy in that internet.
func newWorld(t *testing.T, names map[string][]string, rules ...string) *world {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, kerneltest.Landlock, kerneltest.Bin)
	w := &world{t: t, names: names, roots: x509.NewCertPool(), box: own(t), internet: namespace(t)}
	w.wire()
	w.web("internet", w.internet)
	w.web("box", w.box)
	w.dns()
	var err error
	if w.ns, err = netns.CreateLocal(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ns.Close() })
	w.dir = t.TempDir()
	w.daemon()
	t.Cleanup(func() {
		_ = w.keeper.Remove(context.WithoutCancel(t.Context()), "bypass")
		w.keeper.Close()
		w.end()
	})
	pins := t.TempDir()
	w.pins = pins
	if err := steer.Mount(pins); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(pins, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := steer.Listen(w.ns)
	if err != nil {
		t.Fatal(err)
	}
	if err := steer.Steer(t.Context(), w.ns, pins, "bypass", s); err != nil {
		t.Fatal(err)
	}
	w.policy = link.Policy{
		Parties: []link.Party{{By: "the test's policy", Rules: rules}}, Range6: synthetic.NewRange6(),
		Limits: link.Limits{Connections: 64, Names: 100},
	}
	if err := w.keeper.Add(t.Context(), egressproc.Sandbox{Caller: 54321, ID: "bypass", Sockets: s, Policy: w.policy}); err != nil {
		t.Fatal(err)
	}
	return w
}

// dial connects from the sandbox to an address.
func (w *world) dial(network string, to netip.AddrPort) (c net.Conn, err error) {
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	err = in(w.ns.File(), func() error {
		family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
		if to.Addr().Is4() {
			family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
		}
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
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
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// query asks the sandbox's resolver, and says what the answer is.
func (w *world) query(name string, typ dnsmessage.Type) (addrs []netip.Addr, rcode string) {
	w.t.Helper()
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, "unwritable"
	}
	q, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: n, Type: typ, Class: dnsmessage.ClassINET}}}).Pack()
	if err != nil {
		return nil, "unwritable"
	}
	return w.ask(q)
}

func (w *world) ask(q []byte) (addrs []netip.Addr, rcode string) {
	w.t.Helper()
	c, err := w.dial("udp", netip.MustParseAddrPort("198.18.0.1:53"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(q); err != nil {
		return nil, err.Error()
	}
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 2048)
	k, err := c.Read(b)
	if err != nil {
		return nil, "no answer"
	}
	var m dnsmessage.Message
	if err := m.Unpack(b[:k]); err != nil {
		return nil, "broken: " + err.Error()
	}
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			addrs = append(addrs, netip.AddrFrom4(r.A))
		case *dnsmessage.AAAAResource:
			addrs = append(addrs, netip.AddrFrom16(r.AAAA))
		default:
			return nil, fmt.Sprintf("a %T", r)
		}
	}
	return addrs, strings.TrimPrefix(m.RCode.String(), "RCode")
}

// addr is the first address that a name is given.
func (w *world) addr(name string) netip.Addr {
	w.t.Helper()
	got, rcode := w.query(name+".", dnsmessage.TypeA)
	if len(got) != 1 {
		w.t.Fatalf("%s: %v %s", name, got, rcode)
	}
	return got[0]
}

// say connects, sends and gives all that is heard: "reset" or "refused" where
// that is how it ends, and "closed" where nothing comes.
func (w *world) say(to netip.AddrPort, text string) string {
	w.t.Helper()
	c, err := w.dial("tcp", to)
	if err != nil {
		return why(err)
	}
	defer c.Close()
	if text != "" {
		_, _ = io.WriteString(c, text)
	}
	got, err := io.ReadAll(c)
	if err != nil && len(got) == 0 {
		return why(err)
	}
	if len(got) == 0 {
		return "closed"
	}
	return string(got)
}

// sayAll is say, and tells that nothing more comes.
func (w *world) sayAll(to netip.AddrPort, text string) string {
	w.t.Helper()
	c, err := w.dial("tcp", to)
	if err != nil {
		return why(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, text)
	if half, ok := c.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
	got, err := io.ReadAll(c)
	if err != nil && len(got) == 0 {
		return why(err)
	}
	return "heard " + string(got)
}

func why(err error) string {
	switch {
	case errors.Is(err, unix.ECONNRESET):
		return "reset"
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EACCES):
		return "unreachable"
	}
	return err.Error()
}

// handshake does a TLS handshake with a name, and a request.
func (w *world) handshake(to netip.AddrPort, cfg *tls.Config, request string) string {
	w.t.Helper()
	c, err := w.dial("tcp", to)
	if err != nil {
		return why(err)
	}
	defer c.Close()
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(w.t.Context()); err != nil {
		return why(err)
	}
	_, _ = io.WriteString(t, request)
	got, err := io.ReadAll(t)
	if err != nil && len(got) == 0 {
		return why(err)
	}
	return string(got)
}
