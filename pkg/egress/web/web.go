// Package web reads the requests of one sandbox where its policy asks for it,
// and passes on those that are allowed.
//
// A request is parsed once, by net/http, and written anew: whatever else could
// have been read out of the agent's bytes, the server gets what was judged, with
// one framing. Where TLS is opened up, both ends are TLS: the agent sees a
// certificate of an authority that only its sandbox trusts, and the server's is
// verified here against the system's roots.
//
// Nothing is followed, kept or changed: a redirect is the agent's to follow,
// with a request that is judged as any other.
package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/authority"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
	"github.com/creel-sandbox/creel/pkg/egress/handed"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
	"github.com/creel-sandbox/creel/pkg/egress/relay"
)

// Bounds of what is read.
const (
	maxHeader         = 64 << 10  // of a request, in bytes
	maxResponseHeader = 256 << 10 // of a response
	headerTimeout     = 15 * time.Second
	handshakeTimeout  = 10 * time.Second
	idleTimeout       = 2 * time.Minute // between two requests
	maxToHost         = 64              // connections to one host at a time
)

// Options are of one sandbox. All but Roots are required.
type Options struct {
	Dialer    proxy.Dialer
	Authority func() *authority.Authority
	// Policy is the snapshot that holds now. It is asked once for a request.
	Policy func() credential.Policy
	// Bytes is what goes to servers and comes from them, TLS and all.
	Bytes *relay.Budget
	// Tunnels are what clients that speak to a proxy are given.
	Tunnels Tunnels
	// Requests is how many may be let through in the sandbox's life.
	Requests *relay.Budget
	// Roots are what servers are verified by; nil for the system's.
	Roots *x509.CertPool
	// Record is told of each request, once it was decided on.
	Record func(Decision)
}

// Decision is what was decided on a request.
type Decision struct {
	Time time.Time
	To   proxy.Target
	// Scheme is http or https, where that is known.
	Scheme string
	Method string
	// Path is as it was sent, without its query.
	Path  string
	Rules []string
	// Secrets are those that it was sent with.
	Secrets []string
	// Err is why it was refused; nil if it was let through.
	Err error
}

// Errors of this package, to be tested with errors.Is.
var (
	// ErrNotTheHost is a request for another host than the connection is to.
	ErrNotTheHost = errors.New("the request is for another host than the connection")
	// ErrRequests is a sandbox that has made as many requests as it may.
	ErrRequests = errors.New("the budget of requests is used up")
	// ErrForm is a request that no server needs and some read in other ways.
	ErrForm = errors.New("the request has a form that is not passed on")
)

// Web serves a sandbox's connections. Use New.
type Web struct {
	opts  Options
	http  *http.Server
	up    *http.Transport
	proxy *httputil.ReverseProxy
	conns *handed.Listener
}

var _ proxy.Web = (*Web)(nil)

// New makes a Web and starts it. Close ends it.
func New(o Options) (*Web, error) {
	if o.Dialer.Outside == nil || o.Authority == nil || o.Policy == nil || o.Bytes == nil || o.Requests == nil || o.Tunnels == nil || o.Record == nil {
		return nil, errors.New("a web proxy without all of its options")
	}
	w := &Web{opts: o, conns: handed.New()}
	quiet := log.New(discard{}, "", 0) // what agents do wrong is theirs to know
	w.up = &http.Transport{
		Proxy: nil, DialContext: w.dial, DisableCompression: true, ForceAttemptHTTP2: true,
		TLSClientConfig:     &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: handshakeTimeout, IdleConnTimeout: idleTimeout, MaxConnsPerHost: maxToHost, MaxIdleConnsPerHost: 4,
		MaxResponseHeaderBytes: maxResponseHeader, ExpectContinueTimeout: time.Second,
	}
	w.proxy = &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: w.up, ModifyResponse: mask, FlushInterval: -1, ErrorHandler: broken, ErrorLog: quiet,
	}
	w.http = &http.Server{
		Handler: w, DisableGeneralOptionsHandler: true, ErrorLog: quiet, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, whose(c))
		},
		TLSConfig: inside(),
	}
	go func() { _ = w.http.Serve(w.conns) }()
	return w, nil
}

// Close ends all connections.
func (w *Web) Close() error {
	err := w.http.Close()
	w.up.CloseIdleConnections()
	return err
}

// Serve implements proxy.Web: it returns when the connection has ended.
func (w *Web) Serve(ctx context.Context, c *net.TCPConn, to proxy.Target, kinds egress.Kinds) error {
	if to.Host == "" {
		return fmt.Errorf("%w: %s has no name", ErrNotTheHost, to)
	}
	_ = c.SetReadDeadline(time.Now().Add(headerTimeout))
	first, err := peek(c)
	if err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Time{})
	const handshake = 22 // a TLS record's type
	in := &conn{Conn: handed.NewConn(c), to: to, kind: egress.HTTP}
	var serve net.Conn = in
	switch {
	case first == handshake && kinds&egress.HTTPS != 0:
		in.kind = egress.HTTPS
		serve = tls.Server(in, w.tls(to.Host))
	case first != handshake && kinds&egress.HTTP != 0:
	default:
		return &egress.RefusedError{By: "the protocol that is allowed there", What: "what was sent to " + to.String()}
	}
	return w.conns.Serve(ctx, serve, in.Conn)
}

// inside is what agents are spoken to with. That h2 is among its protocols has
// net/http speak it on the connections that chose it.
func inside() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
}

// tls has a client see a certificate for the name it connected to, if that is
// whom it asks for.
func (w *Web) tls(host egress.Name) *tls.Config {
	cfg := inside()
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if n, err := egress.ParseName(h.ServerName); err != nil || n != host {
			return nil, fmt.Errorf("%w: it asks for %.100q; connected to %s", proxy.ErrNotTheName, h.ServerName, host)
		}
		return w.opts.Authority().Certificate(host)
	}
	return cfg
}

// ServeHTTP serves one request.
func (w *Web) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		http.Error(out, "creel: a connection of nobody's", http.StatusInternalServerError)
		return
	}
	if c.explicit {
		w.proxied(out, r, c)
		return
	}
	w.judge(out, r, c)
}

// judge judges one request that came by a connection, and passes it on.
func (w *Web) judge(out http.ResponseWriter, r *http.Request, c *conn) {
	pol := w.opts.Policy()
	d := Decision{Time: time.Now(), To: c.to, Scheme: scheme(c.kind), Method: r.Method}
	d.Path, _, _ = strings.Cut(r.RequestURI, "?")
	var g egress.Grant
	if d.Err = form(r, c.to); d.Err == nil {
		path, err := egress.ParsePath(d.Path)
		if err != nil {
			path = "" // rules without paths still allow it
		}
		g, d.Err = pol.Request(c.kind, c.to.Host, c.to.Port, r.Method, path)
		d.Rules = g.Rules
		if d.Err == nil {
			d.Secrets, d.Err = pol.Secrets.Apply(r, c.kind, c.to.Host, c.to.Port, path)
		}
	}
	if d.Err == nil && !g.Take() {
		d.Err = &egress.RefusedError{By: "what was allowed once, and is used", What: d.Method + " " + d.To.String() + d.Path}
	}
	if d.Err == nil && !w.opts.Requests.Spend(1) {
		d.Err = ErrRequests
	}
	w.opts.Record(d)
	if d.Err != nil {
		refuse(out, d, c.kind)
		return
	}
	// A server may answer before it has all of the request, or before it is known
	// here that it has: HTTP/1 is else taken to be finished with asking then. (For
	// HTTP/2 it is so anyway, and this an error.)
	_ = http.NewResponseController(out).EnableFullDuplex()
	out.Header()["Content-Type"] = nil // if the server says none, there is none
	r = r.WithContext(context.WithValue(r.Context(), policyKey{}, pol))
	w.proxy.ServeHTTP(&early{out, pol.Secrets, c.to}, r)
}

// policyKey is where a request's context has what it was judged by.
type policyKey struct{}

// mask is done to each response.
func mask(resp *http.Response) error {
	c, ok := resp.Request.Context().Value(connKey{}).(*conn)
	pol, judged := resp.Request.Context().Value(policyKey{}).(credential.Policy)
	if !ok || !judged {
		return errors.New("a response of no connection")
	}
	return pol.Secrets.Mask(resp, c.to.Host, c.to.Port)
}

// early masks what comes before a response (RFC 9110, section 15.2), which nobody
// else sees on its way.
type early struct {
	http.ResponseWriter
	secrets *credential.Set
	to      proxy.Target
}

// WriteHeader implements http.ResponseWriter.
func (e *early) WriteHeader(status int) {
	if status < http.StatusOK {
		e.secrets.MaskHeader(e.Header(), e.to.Host, e.to.Port)
	}
	e.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (e *early) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// form is nil for a request of the one form that is passed on (RFC 9112,
// section 3.2; RFC 9113, section 8.3.1), for the host of the connection.
func form(r *http.Request, to proxy.Target) error {
	if r.Method == http.MethodConnect || !strings.HasPrefix(r.RequestURI, "/") {
		return fmt.Errorf("%w: not a path on this host", ErrForm)
	}
	host, port, found := strings.Cut(r.Host, ":")
	name, err := egress.ParseName(host)
	if err != nil || name != to.Host || found && port != fmt.Sprint(to.Port) {
		return fmt.Errorf("%w: for %.100q, and connected to %s", ErrNotTheHost, r.Host, to)
	}
	// By any other protocol there would be requests that nobody reads.
	if up := r.Header.Values("Upgrade"); len(up) > 1 || len(up) == 1 && !strings.EqualFold(up[0], "websocket") {
		return fmt.Errorf("%w: an upgrade to something other than websocket", ErrForm)
	}
	return nil
}

// refuse says no, in one line: who does, and by which rule it would be allowed.
func refuse(out http.ResponseWriter, d Decision, kind egress.Kinds) {
	err := d.Err
	if no, ok := errors.AsType[*egress.RefusedError](err); ok && d.To.Host != "" && kind != 0 {
		err = fmt.Errorf("%w; a rule there that allows it: --allow %q", no, fix(d, kind))
	}
	out.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out.Header().Set("Creel-Refused", "true")
	out.WriteHeader(http.StatusForbidden)
	_, _ = io.WriteString(out, "creel: "+oneLine(err)+"\n")
}

// plain are paths and methods that are safe in what somebody may copy to a shell:
// an agent chose them.
var plain = regexp.MustCompile(`^[A-Za-z0-9/_.~-]{1,200}$`)

// fix is a rule that allows a request.
func fix(d Decision, kind egress.Kinds) string {
	protocol := scheme(kind)
	if !plain.MatchString(d.Method) || !plain.MatchString(d.Path) {
		return fmt.Sprintf("%s %s", protocol, d.To)
	}
	return fmt.Sprintf("%s %s %s %s", protocol, d.To, d.Method, d.Path)
}

// scheme is that of requests on a connection that is treated as kind.
func scheme(kind egress.Kinds) string {
	if kind == egress.HTTP {
		return "http"
	}
	return "https"
}

// oneLine is an error without what could be taken for another line.
func oneLine(err error) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, err.Error())
}

// rewrite has a request that was judged go to where it was judged to go.
func rewrite(pr *httputil.ProxyRequest) {
	c := pr.In.Context().Value(connKey{}).(*conn) //nolint:forcetypeassert // ServeHTTP has looked
	pr.Out.URL.Scheme = scheme(c.kind)
	pr.Out.URL.Host = c.to.String()
	pr.Out.Host = pr.In.Host
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery // as it came: nobody judges it
	if _, ok := pr.Out.Header["User-Agent"]; !ok {
		pr.Out.Header.Set("User-Agent", "") // none, and not Go's
	}
}

// broken is the answer where the server gave none.
func broken(out http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusBadGateway
	if errors.Is(err, relay.ErrBudget) {
		status = http.StatusForbidden
	}
	text := oneLine(err)
	c, ok := r.Context().Value(connKey{}).(*conn)
	if pol, judged := r.Context().Value(policyKey{}).(credential.Policy); ok && judged {
		text = pol.Secrets.MaskText(text, c.to.Host, c.to.Port) // it may quote the server
	}
	http.Error(out, "creel: "+text, status)
}

// dial connects to the server of a request that was judged.
func (w *Web) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return nil, errors.New("a request of no connection")
	}
	up, _, err := w.opts.Dialer.Dial(ctx, w.opts.Policy().Snapshot, c.to)
	if err != nil {
		return nil, err
	}
	return &counted{up, w.opts.Bytes}, nil
}

// counted is a connection whose bytes are of a budget. (A *net.TCPConn in the
// place of the net.Conn would have ReadFrom, which nobody counts.)
type counted struct {
	net.Conn
	bytes *relay.Budget
}

// Read implements net.Conn.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.bytes.Spend(int64(n)) {
		return 0, relay.ErrBudget
	}
	return n, err
}

// Write implements net.Conn.
func (c *counted) Write(b []byte) (int, error) {
	if !c.bytes.Spend(int64(len(b))) {
		return 0, relay.ErrBudget
	}
	return c.Conn.Write(b)
}

// discard is a log's writer.
type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
