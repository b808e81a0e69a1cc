package main

import (
	"bytes"
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
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// What the stage is of.
const (
	egressUID    = bareID - 1 // of the creel-egress
	egressCaller = firstCaller
	streamBytes  = 256 << 20
	manyNetworks = 1000
)

// wire is a creel-egress of the stage's own, and servers on the loopback.
type wire struct {
	keeper *egressproc.Keeper
	pins   string
	dir    string
	roots  *x509.CertPool // of the servers
	tls    int            // ports
	raw    int
	close  []func() error
}

// oneID is the Keeper's.
type oneID struct{}

func (oneID) Take() (uint32, error) { return egressUID, nil }
func (oneID) Release(uint32)        {}

func newWire(ctx context.Context, b *bench) (w *wire, err error) {
	w = &wire{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.end())
		}
	}()
	if w.dir, err = os.MkdirTemp(b.run, "egress-"); err != nil {
		return w, err
	}
	w.pins = filepath.Join(w.dir, "pins")
	if err := steer.Mount(w.pins); err != nil {
		return w, err
	}
	w.close = append(w.close, func() error { return unix.Unmount(w.pins, unix.MNT_DETACH) })
	root, err := w.serve(ctx)
	if err != nil {
		return w, err
	}
	w.keeper, err = egressproc.New(egressproc.Options{
		Program: filepath.Join(b.bin, "creel-egress"), Dir: filepath.Join(w.dir, "run"), TrustDir: filepath.Join(w.dir, "trust"), IDs: oneID{}, Log: slog.New(slog.DiscardHandler),
		Host: func() (link.Host, error) {
			return link.Host{Resolve: outside.ParseConfig("nameserver 127.0.0.1", ""), Roots: root}, nil
		},
		Sign: func(uint32, link.Question) link.Reply { return link.Reply{Refused: true} },
		Channel: func(context.Context, uint32, link.Question) (*net.TCPConn, error) {
			return nil, errors.New("not here")
		},
		Record: func(uint32, link.Record) {},
	})
	if err != nil {
		return w, err
	}
	return w, w.keeper.Adopt(ctx)
}

func (w *wire) end() error {
	var errs []error
	if w.keeper != nil {
		for id := range w.keeper.Held() {
			errs = append(errs, w.keeper.Remove(context.Background(), id))
		}
		pid := w.pid()
		w.keeper.Close()
		if pid > 0 {
			errs = append(errs, unix.Kill(pid, unix.SIGKILL))
		}
	}
	for _, fn := range w.close {
		errs = append(errs, fn())
	}
	return errors.Join(errs...)
}

// pid is the creel-egress's: the one process of its user.
func (w *wire) pid() int {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is a good one
	for _, d := range dirs {
		st, err := os.ReadFile(filepath.Join(d, "status"))
		if err == nil && strings.Contains(string(st), fmt.Sprintf("\nUid:\t%d\t", uint32(egressUID))) {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(d), &pid); err == nil {
				return pid
			}
		}
	}
	return 0
}

// serve starts a TLS server and a raw one, and gives the certificate of the
// first.
func (w *wire) serve(ctx context.Context) (root string, err error) {
	var lc net.ListenConfig
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{string(egress.BoxName)}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(text)
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	zeros := make([]byte, 1<<20)
	srv := &http.Server{
		ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		Handler: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/stream" {
				_, _ = io.WriteString(out, "hello")
				return
			}
			for range streamBytes / len(zeros) {
				if _, err := out.Write(zeros); err != nil {
					return
				}
			}
		}),
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	w.tls = l.Addr().(*net.TCPAddr).Port
	raw, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	w.raw = raw.Addr().(*net.TCPAddr).Port
	go func() {
		for {
			c, err := raw.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for range streamBytes / len(zeros) {
					if _, err := c.Write(zeros); err != nil {
						return
					}
				}
			}()
		}
	}()
	w.close = append(w.close, srv.Close, raw.Close)
	return string(text), nil
}

// network is a sandbox's, without a sandbox.
type network struct {
	w  *wire
	ns *netns.NS
	id string
	at netip.Addr // of the box's name
}

func (w *wire) network(ctx context.Context, id string, rules ...string) (n *network, err error) {
	n = &network{w: w, id: id}
	if n.ns, err = netns.CreateLocal(); err != nil {
		return nil, err
	}
	s, err := steer.Listen(n.ns)
	if err != nil {
		return nil, errors.Join(err, n.ns.Close())
	}
	if err := steer.Steer(ctx, n.ns, w.pins, id, s); err != nil {
		return nil, errors.Join(err, s.Close(), n.ns.Close())
	}
	return n, w.keeper.Add(ctx, egressproc.Sandbox{Caller: egressCaller, ID: id, Sockets: s, Policy: link.Policy{
		Parties: []link.Party{{By: "bench", Rules: rules}}, Range6: synthetic.NewRange6(), Limits: link.Limits{Connections: 64, Names: 16},
	}})
}

func (n *network) remove(ctx context.Context) error {
	return errors.Join(n.w.keeper.Remove(ctx, n.id), steer.Delete(n.w.pins, n.id), n.ns.Close())
}

// dial connects from inside, or, without a network, from the host.
func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		if to, err = netip.ParseAddrPort(net.JoinHostPort("127.0.0.1", port)); err != nil {
			return nil, err
		}
	}
	if n == nil {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to.String())
	}
	var fd int
	err = thread.Do(func() (err error) {
		if err := unix.Setns(int(n.ns.File().Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inside")
	defer f.Close()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: n.at.As4()}); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// resolve finds what stands for the box's name.
func (n *network) resolve(ctx context.Context) error {
	n.at = steer.ListenAddr4
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.dial(ctx, "tcp", n.at.String()+":53")
	}}
	found, err := r.LookupNetIP(ctx, "ip4", string(egress.BoxName))
	if err == nil {
		n.at = found[0]
	}
	return err
}

// client is one of HTTP from there, with its connections kept or not.
func (n *network) client(kept bool) *http.Client {
	roots := n.trusts()
	return &http.Client{Transport: &http.Transport{DialContext: n.dial, DisableKeepAlives: !kept, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
}

// trusts are the roots of a client there: the store that sandboxes have.
func (n *network) trusts() *x509.CertPool {
	if n == nil {
		return nil
	}
	pool := x509.NewCertPool()
	if text, err := os.ReadFile(filepath.Join(n.w.keeper.TrustDir(egressCaller), "ca.pem")); err == nil {
		pool.AppendCertsFromPEM(text)
	}
	return pool
}

func (w *wire) url(path string) string {
	return fmt.Sprintf("https://%s:%d%s", egress.BoxName, w.tls, path)
}

// get reads all of an answer, and says how long it took, in ms.
func get(ctx context.Context, c *http.Client, url string, bytes int64) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n != bytes) {
		err = fmt.Errorf("%s: %s, %d bytes", url, resp.Status, n)
	}
	return ms(time.Since(began)), err
}

// egressStage measures what the way out by creel-egress costs: beside the same
// servers asked by the host itself, in turn.
func (b *bench) egressStage(ctx context.Context) (err error) {
	w, err := newWire(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.end()) }()
	if err := b.networks(ctx, w); err != nil {
		return err
	}
	passed, err := w.network(ctx, "benchpassed", fmt.Sprintf("tls %s:%d", egress.BoxName, w.tls), fmt.Sprintf("tcp %s:%d", egress.BoxName, w.raw))
	if err != nil {
		return err
	}
	opened, err := w.network(ctx, "benchopened", fmt.Sprintf("https %s:%d GET /**", egress.BoxName, w.tls))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, passed.remove(ctx), opened.remove(ctx)) }()
	if err := errors.Join(passed.resolve(ctx), opened.resolve(ctx)); err != nil {
		return err
	}
	host := func(kept bool) *http.Client {
		c := (*network)(nil).client(kept)
		c.Transport.(*http.Transport).TLSClientConfig.RootCAs = w.roots
		return c
	}
	const few = 10 // streams are long
	for _, m := range []struct {
		name         string
		creel, other func() (float64, error)
		n            int
		baseline     string
		target       target
	}{
		{"egress_connect", w.asks(ctx, passed.client(false), "/", 5), w.asks(ctx, host(false), "/", 5), b.n, "the same request from the host", target{more: 1}},
		{"egress_intercept", w.asks(ctx, opened.client(true), "/", 5), w.asks(ctx, host(true), "/", 5), b.n, "the same on a kept connection from the host", target{more: 3}},
		{"egress_stream", passed.drain(ctx), (*network)(nil).drainFrom(ctx, w.raw), few, "256 MiB over loopback", target{ratio: 2.5}},
		{"egress_stream_intercept", w.asks(ctx, opened.client(true), "/stream", streamBytes), w.asks(ctx, host(true), "/stream", streamBytes), few, "256 MiB by TLS from the host", target{ratio: 4}},
	} {
		var took, base []float64
		for i := range warm + m.n {
			t, err := m.creel()
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			d, err := m.other()
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			if i >= warm {
				took, base = append(took, t), append(base, d)
			}
		}
		b.report.add(m.name, "ms", took, m.baseline, base, m.target)
	}
	return nil
}

func (w *wire) asks(ctx context.Context, c *http.Client, path string, bytes int64) func() (float64, error) {
	return func() (float64, error) { return get(ctx, c, w.url(path), bytes) }
}

// drain reads the raw server's stream.
func (n *network) drain(ctx context.Context) func() (float64, error) {
	return n.drainFrom(ctx, n.w.raw)
}

func (n *network) drainFrom(ctx context.Context, port int) func() (float64, error) {
	return func() (float64, error) {
		began := time.Now()
		c, err := n.dial(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return 0, err
		}
		defer c.Close()
		got, err := io.Copy(io.Discard, c)
		if err == nil && got != streamBytes {
			err = fmt.Errorf("%d bytes", got)
		}
		return ms(time.Since(began)), err
	}
}

// networks measures making and removing one, and has a process serve a thousand.
func (b *bench) networks(ctx context.Context, w *wire) error {
	first, err := w.network(ctx, "benchfirst", "example.com") // the process runs from here on
	if err != nil {
		return err
	}
	var took []float64
	for i := range warm + b.n {
		began := time.Now()
		n, err := w.network(ctx, "benchone", "example.com")
		if err != nil {
			return err
		}
		if err := n.remove(ctx); err != nil {
			return err
		}
		if i >= warm {
			took = append(took, ms(time.Since(began)))
		}
	}
	b.report.add("network_make_remove", "ms", took, "", nil, target{most: 5})
	many := []*network{first}
	for i := range manyNetworks - 1 {
		n, err := w.network(ctx, fmt.Sprintf("bench%d", i), "example.com")
		if err != nil {
			return err
		}
		many = append(many, n)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid()))
	if err != nil {
		return err
	}
	_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
	var kib float64
	if _, err := fmt.Sscan(string(rest), &kib); err != nil {
		return err
	}
	b.report.add("egress_rss_1000", "MB", []float64{kib / 1000}, "", nil, target{most: 150})
	for _, n := range many {
		if err := n.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}
