package web

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/handed"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
)

// Tunnels are the connections that clients of a proxy ask for.
type Tunnels interface {
	// Target is what a client means by a host.
	Target(host string, port uint16) (proxy.Target, error)
	// Allowed is nil if a connection there would be let through.
	Allowed(to proxy.Target) error
	// Through serves c as a connection to there, and closes it.
	Through(ctx context.Context, c *net.TCPConn, to proxy.Target)
}

var _ proxy.Explicit = (*Web)(nil)

// ServeExplicit implements proxy.Explicit: what comes is HTTP for a proxy (RFC
// 9112, section 3.2.2). A CONNECT is a connection like one that is made, and a
// request for http:// is judged like one that is sent there. It returns when the
// connection has ended.
func (w *Web) ServeExplicit(ctx context.Context, c *net.TCPConn) error {
	in := &conn{Conn: handed.NewConn(c), explicit: true, ctx: ctx}
	return w.conns.Serve(ctx, in, in.Conn)
}

// proxied serves one request to the proxy.
func (w *Web) proxied(out http.ResponseWriter, r *http.Request, c *conn) {
	if r.Method == http.MethodConnect {
		w.connect(out, r, c)
		return
	}
	d := Decision{Time: time.Now(), Method: r.Method}
	if r.URL.Scheme != "http" || r.URL.Host == "" || r.URL.User != nil {
		d.Err = fmt.Errorf("%w: a proxy is asked for http://HOST/PATH, or by CONNECT", ErrForm)
	} else {
		d.To, d.Err = w.targetOf(r.URL.Host, "80")
	}
	if d.Err == nil && d.To.Host == "" {
		d.Err = fmt.Errorf("%w: %s has no name", ErrNotTheHost, d.To)
	}
	if d.Err != nil {
		w.opts.Record(d)
		refuse(out, d, 0)
		return
	}
	// From here on it is as if it had come by a connection to there. For the host
	// in the header net/http has put the one in the target, as it is to be.
	r.RequestURI = r.URL.RequestURI()
	to := &conn{Conn: c.Conn, to: d.To, kind: egress.HTTP}
	w.judge(out, r.WithContext(context.WithValue(r.Context(), connKey{}, to)), to)
}

func (w *Web) targetOf(hostport, port string) (proxy.Target, error) {
	host := hostport
	if h, p, err := net.SplitHostPort(hostport); err == nil {
		host, port = h, p
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return proxy.Target{}, fmt.Errorf("%w: %.20q is no port", ErrForm, port)
	}
	to, err := w.opts.Tunnels.Target(strings.Trim(host, "[]"), uint16(n))
	if err != nil {
		return proxy.Target{}, fmt.Errorf("%w: %.100q: %w", ErrForm, host, err)
	}
	return to, nil
}

// errEarly is a client that did not wait.
var errEarly = errors.New("the client sent more before it was told that it may")

// connect serves a CONNECT (RFC 9110, section 9.3.6).
func (w *Web) connect(out http.ResponseWriter, r *http.Request, c *conn) {
	d := Decision{Time: time.Now(), Method: r.Method}
	d.To, d.Err = w.targetOf(r.RequestURI, "")
	if d.Err == nil {
		d.Err = w.opts.Tunnels.Allowed(d.To)
	}
	if d.Err != nil {
		w.opts.Record(d)
		refuse(out, d, egress.HTTPS)
		return
	}
	_, buf, err := http.NewResponseController(out).Hijack()
	if err != nil {
		http.Error(out, "creel: "+oneLine(err), http.StatusInternalServerError)
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Time{})
	if buf.Reader.Buffered() > 0 {
		d.Err = errEarly // as every client waits, and what is here would be read twice
		w.opts.Record(d)
		_ = c.SetLinger(0)
		return
	}
	if _, err := c.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		return
	}
	w.opts.Tunnels.Through(c.ctx, c.TCPConn, d.To)
}
