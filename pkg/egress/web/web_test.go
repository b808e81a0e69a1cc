package web_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/authority"
	"github.com/creel-sandbox/creel/pkg/egress/credential"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
	"github.com/creel-sandbox/creel/pkg/egress/relay"
	"github.com/creel-sandbox/creel/pkg/egress/web"
)

// world is a sandbox's web proxy with two servers behind it, both of them
// example.com: one on port 80, one on 443.
type world struct {
	t      *testing.T
	web    *web.Web
	roots  *x509.CertPool // what the agent trusts
	plain  *httptest.Server
	secure *httptest.Server

	mu        sync.Mutex
	decisions []web.Decision
	seen      []string // requests that came to the servers
	dials     int
	handler   http.HandlerFunc
}

func (*world) Lookup(context.Context, egress.Name) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("8.8.8.8")}, nil
}

func (w *world) Dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	at, ok := map[netip.AddrPort]net.Listener{netip.MustParseAddrPort("8.8.8.8:80"): w.plain.Listener, netip.MustParseAddrPort("8.8.8.8:443"): w.secure.Listener}[to]
	if !ok {
		return nil, errors.New("nobody there")
	}
	w.mu.Lock()
	w.dials++
	w.mu.Unlock()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", at.Addr().String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (*world) Own() ([]netip.Addr, error) { return nil, nil }

func (*world) DialAgent(context.Context, string, uint16) (*net.TCPConn, error) {
	return nil, errors.New("no such agent")
}

// handle has the servers answer so.
func (w *world) handle(h http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handler = h
}

// ServeHTTP is the servers'.
func (w *world) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.seen = append(w.seen, r.Proto+" "+r.Method+" "+r.Host+r.RequestURI)
	h := w.handler
	w.mu.Unlock()
	if h != nil {
		h(out, r)
		return
	}
	fmt.Fprint(out, "hello")
}

func newWorld(t *testing.T, change func(*web.Options), rules ...egress.Rule) *world {
	t.Helper()
	w := &world{t: t}
	w.plain = httptest.NewServer(w)
	w.secure = httptest.NewUnstartedServer(w)
	w.secure.EnableHTTP2 = true
	w.secure.StartTLS()
	servers := x509.NewCertPool()
	servers.AddCert(w.secure.Certificate())
	ca, err := authority.New(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	w.roots.AppendCertsFromPEM(ca.PEM())
	p, problems := egress.Parse("the test's policy", "egress", rules)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	o := web.Options{
		Dialer: proxy.Dialer{Outside: w}, Authority: func() *authority.Authority { return ca }, Policy: func() credential.Policy { return credential.Policy{Snapshot: egress.NewSnapshot(p)} },
		Bytes: relay.NewBudget(1 << 30), Requests: relay.NewBudget(1 << 30), Tunnels: w, Roots: servers, Record: func(d web.Decision) { w.mu.Lock(); w.decisions = append(w.decisions, d); w.mu.Unlock() },
	}
	if change != nil {
		change(&o)
	}
	if w.web, err = web.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.web.Close()
		w.plain.CloseClientConnections()
		w.plain.Close()
		w.secure.CloseClientConnections()
		w.secure.Close()
	})
	return w
}

// Target is of web.Tunnels.
func (*world) Target(host string, port uint16) (proxy.Target, error) {
	n, err := egress.ParseName(host)
	return proxy.Target{Host: n, Port: port}, err
}

// Allowed lets 443 of example.com through.
func (*world) Allowed(to proxy.Target) error {
	if to.Host != "example.com" || to.Port != 443 {
		return &egress.RefusedError{By: "the test's policy", What: to.String()}
	}
	return nil
}

// Through serves as the proxy does that reads.
func (w *world) Through(ctx context.Context, c *net.TCPConn, to proxy.Target) {
	_ = w.web.Serve(ctx, c, to, egress.HTTPS)
	_ = c.Close()
}

// explicit is an agent's connection to its proxy.
func (w *world) explicit() net.Conn {
	return w.connect(func(c *net.TCPConn) { _ = w.web.ServeExplicit(context.WithoutCancel(w.t.Context()), c) })
}

// TestExplicit: a client that speaks to a proxy gets what one that connects gets.
func TestExplicit(t *testing.T) {
	w := newWorld(t, nil,
		egress.Rule{Host: "example.com", Methods: []string{"GET"}, Paths: []string{"/public/**"}},
		egress.Rule{Host: "example.com", Protocol: "http", Methods: []string{"GET"}, Paths: []string{"/public/**"}})
	c := w.client(false)
	tr := c.Transport.(*http.Transport)
	tr.DialContext = func(context.Context, string, string) (net.Conn, error) { return w.explicit(), nil }
	tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:3128"})
	for _, tt := range []struct {
		method, to string
		status     int
		body       string
	}{
		{"GET", "https://example.com/public/a?b=c", 200, "hello"},
		{"GET", "http://example.com/public/a?b=c", 200, "hello"},
		{"GET", "http://EXAMPLE.com:80/public/a", 200, "hello"},
		{"GET", "http://example.com/private", 403, "creel: "},
		{"GET", "http://evil.example/public/a", 403, "creel: "},
		{"GET", "http://example.com:8080/public/a", 403, "creel: "},
		{"GET", "http://127.0.0.1/public/a", 403, "creel: "},
	} {
		status, body, _ := ask(t, c, tt.method, tt.to, nil)
		if status != tt.status || !strings.HasPrefix(body, tt.body) {
			t.Errorf("%s %s: %d %q", tt.method, tt.to, status, body)
		}
	}
	if last, n := w.lastSeen(); n != 3 || last != "HTTP/1.1 GET EXAMPLE.com:80/public/a" {
		t.Errorf("arrived: %d, %q", n, last)
	}
	for said, want := range map[string]string{
		"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\nearly":                                    "",
		"CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n":                                          "HTTP/1.1 403 ",
		"CONNECT evil.example:443 HTTP/1.1\r\nHost: example.com\r\n\r\n":                              "HTTP/1.1 403 ",
		"CONNECT example.com HTTP/1.1\r\nHost: x\r\n\r\n":                                             "HTTP/1.1 403 ",
		"CONNECT example.com:0443 HTTP/1.1\r\nHost: x\r\n\r\n":                                        "HTTP/1.1 403 ",
		"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n":                                         "HTTP/1.1 200 Connection established",
		"GET https://example.com/public/a HTTP/1.1\r\nHost: example.com\r\n\r\n":                      "HTTP/1.1 403 ",
		"GET /public/a HTTP/1.1\r\nHost: example.com\r\n\r\n":                                         "HTTP/1.1 403 ",
		"GET http://a@example.com/public/a HTTP/1.1\r\nHost: x\r\n\r\n":                               "HTTP/1.1 403 ",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                                                            "HTTP/1.1 ",
		"GET http://example.com/public/a HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n": "HTTP/1.1 200 OK",
	} {
		in := w.explicit()
		if _, err := io.WriteString(in, said); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 200)
		n, _ := in.Read(got) // a reset is nothing
		if !strings.HasPrefix(string(got[:n]), want) || want == "" && n > 0 {
			t.Errorf("%q: %q", said, got[:n])
		}
		in.Close()
	}
	if last, n := w.lastSeen(); n != 4 || last != "HTTP/1.1 GET example.com/public/a" {
		t.Errorf("arrived: %d, %q", n, last)
	}
}

// conn is an agent's connection to example.com.
func (w *world) conn(port uint16) net.Conn {
	kinds := map[uint16]egress.Kinds{80: egress.HTTP, 443: egress.HTTPS}[port]
	return w.connect(func(c *net.TCPConn) {
		_ = w.web.Serve(context.WithoutCancel(w.t.Context()), c, proxy.Target{Host: "example.com", Port: port}, kinds)
	})
}

// connect is one end of a connection whose other end is served.
func (w *world) connect(serve func(*net.TCPConn)) net.Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Error(err)
		return nil
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		w.t.Error(err)
		return nil
	}
	w.t.Cleanup(func() { c.Close() })
	s, err := l.Accept()
	if err != nil {
		w.t.Error(err)
		return nil
	}
	go func() {
		serve(s.(*net.TCPConn))
		_ = s.Close()
	}()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

// client is an agent's, with the version of HTTP that is asked for.
func (w *world) client(h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			if strings.HasSuffix(addr, ":443") {
				return w.conn(443), nil
			}
			return w.conn(80), nil
		},
		TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: h2, DisableCompression: true,
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (w *world) lastSeen() (string, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) == 0 {
		return "", 0
	}
	return w.seen[len(w.seen)-1], len(w.seen)
}

// ask makes a request and gives the status and the body.
func ask(t *testing.T, c *http.Client, method, to string, body io.Reader, headers ...string) (int, string, http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, to, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Add(k, v)
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, string(b) + err.Error(), resp.Header
	}
	return resp.StatusCode, string(b), resp.Header
}

func rules() []egress.Rule {
	return []egress.Rule{
		{Host: "example.com", Methods: []string{"GET", "POST"}, Paths: []string{"/v1/**"}},
		{Host: "example.com", Protocol: "http"},
	}
}

func TestRequests(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprint("h2 ", h2), func(t *testing.T) {
			w := newWorld(t, nil, rules()...)
			c := w.client(h2)
			for _, tt := range []struct {
				method, to string
				headers    []string
				status     int
				seen       string // as the server saw it, or what the refusal says
			}{
				{"GET", "https://example.com/v1/models?a=b;c&d=%zz", nil, 200, "HTTP/2.0 GET example.com/v1/models?a=b;c&d=%zz"},
				{"POST", "https://example.com/v1/chat%20x/%61", nil, 200, "HTTP/2.0 POST example.com/v1/chat%20x/%61"},
				{"GET", "http://example.com/any%2Fthing//x/%2e%2e/y", nil, 200, "HTTP/1.1 GET example.com/any%2Fthing//x/%2e%2e/y"},
				{"PROPFIND", "http://example.com/", nil, 200, "HTTP/1.1 PROPFIND example.com/"},
				{"GET", "https://example.com/v1/x", []string{"Host: example.com:443"}, 200, "HTTP/2.0 GET example.com:443/v1/x"},
				{"GET", "https://example.com/v1/x", []string{"Host: EXAMPLE.com"}, 200, "HTTP/2.0 GET EXAMPLE.com/v1/x"},
				{"DELETE", "https://example.com/v1/models", nil, 403, "creel: DELETE https://example.com:443/v1/models is not allowed by the test's policy; a rule there that allows it: --allow \"https example.com:443 DELETE /v1/models\""},
				{"GET", "https://example.com/v2/models", nil, 403, "creel: GET https://example.com:443/v2/models is not allowed by the test's policy"},
				{"GET", "https://example.com/v1/../v2", nil, 403, "is not allowed"},
				{"GET", "https://example.com/v1/%2e%2e/v2", nil, 403, "is not allowed"},
				{"GET", "https://example.com/v1/..%2fv2", nil, 403, "is not allowed"},
				{"GET", "https://example.com/v1//x", nil, 403, "is not allowed"},
				{"GET", "https://example.com/v1;x/../v2", nil, 403, "is not allowed"},
				{"GET", "https://example.com/v1/x", []string{"Host: evil.example"}, 403, "another host than the connection"},
				{"GET", "https://example.com/v1/x", []string{"Host: example.com:80"}, 403, "another host than the connection"},
				{"GET", "https://example.com/v1/x", []string{"Host: example.com."}, 403, "another host than the connection"},
				{"GET", "https://example.com/v1/x", []string{"Host: 8.8.8.8"}, 403, "another host than the connection"},
				{"OPTIONS", "http://example.com", []string{"Upgrade: h2c", "Connection: Upgrade"}, 403, "upgrade"},
			} {
				if h2 && len(tt.headers) > 1 && strings.HasPrefix(tt.to, "https") {
					continue
				}
				_, before := w.lastSeen()
				status, body, h := ask(t, c, tt.method, tt.to, nil, tt.headers...)
				seen, n := w.lastSeen()
				switch {
				case status != tt.status:
					t.Errorf("%s %s: %d %s", tt.method, tt.to, status, body)
				case status == 200 && (seen != tt.seen || n != before+1 || body != "hello"):
					t.Errorf("%s %s: %s; the server saw %q", tt.method, tt.to, body, seen)
				case status == 403 && (!strings.Contains(body, tt.seen) || strings.Count(body, "\n") != 1 || n != before || h.Get("Creel-Refused") != "true"):
					t.Errorf("%s %s: %q; the server saw %d more", tt.method, tt.to, body, n-before)
				}
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if d := w.decisions[0]; d.Method != "GET" || d.Path != "/v1/models" || d.To.String() != "example.com:443" || len(d.Rules) != 1 || d.Err != nil {
				t.Errorf("recorded: %+v", d)
			}
			if w.dials > 4 {
				t.Errorf("%d connections", w.dials)
			}
		})
	}
}

// raw sends bytes to port 80 and reads what comes, until nothing more does.
func (w *world) raw(text string) string {
	c := w.conn(80)
	defer c.Close()
	_, _ = io.WriteString(c, text)
	var all []byte
	b := make([]byte, 4096)
	for {
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if err != nil {
			return string(all)
		}
	}
}

// TestSmuggling: whatever framing is claimed, the server sees the requests that
// were judged and no other.
func TestSmuggling(t *testing.T) {
	inner := "GET /secret HTTP/1.1\r\nHost: example.com\r\n\r\n"
	host := "Host: example.com\r\n"
	for name, text := range map[string]string{
		"CL and TE":          "POST /ok HTTP/1.1\r\n" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"TE and CL":          "POST /ok HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n0\r\n\r\n" + inner,
		"two CL":             "POST /ok HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"CL with a plus":     "POST /ok HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello" + inner,
		"TE obfuscated":      "POST /ok HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
		"TE with a tab":      "POST /ok HTTP/1.1\r\n" + host + "Transfer-Encoding:\tchunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + inner,
		"two TE":             "POST /ok HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner,
		"space before colon": "POST /ok HTTP/1.1\r\n" + host + "Content-Length : 5\r\n\r\nhello" + inner,
		"folded":             "POST /ok HTTP/1.1\r\n" + host + "X: a\r\n Content-Length: 5\r\n\r\n" + inner,
		"bare LF":            "POST /ok HTTP/1.1\nHost: example.com\nContent-Length: 0\n\n" + inner,
		"NUL in a header":    "GET /ok HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n" + inner,
		"two hosts":          "GET /ok HTTP/1.1\r\n" + host + "Host: evil.example\r\n\r\n" + inner,
		"absolute form":      "GET http://example.com/ok HTTP/1.1\r\n" + host + "\r\n" + inner,
		"absolute to others": "GET http://evil.example/ok HTTP/1.1\r\n" + host + "\r\n" + inner,
		"two slashes":        "GET //evil.example/ok HTTP/1.1\r\n" + host + "\r\n" + inner,
		"no host":            "GET /ok HTTP/1.1\r\n\r\n" + inner,
		"HTTP/1.0":           "GET /ok HTTP/1.0\r\n\r\n" + inner,
		"HTTP/0.9":           "GET /ok\r\n" + inner,
		"CONNECT":            "CONNECT example.com:443 HTTP/1.1\r\n" + host + "\r\n" + inner,
		"PRI":                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + inner,
		"h2c":                "GET /ok HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + inner,
		"two upgrades":       "GET /ok HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n\r\n" + inner,
		"chunk size":         "POST /ok HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n" + inner,
		"chunk overflow":     "POST /ok HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n" + inner,
		"pipelined":          "GET /ok HTTP/1.1\r\n" + host + "\r\n" + inner,
		"expect":             "POST /ok HTTP/1.1\r\n" + host + "Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello" + inner,
		"large header":       "GET /ok HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 100_000) + "\r\n\r\n" + inner,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, egress.Rule{Host: "example.com", Protocol: "http", Methods: []string{"GET", "POST"}, Paths: []string{"/ok"}})
			w.handle(func(out http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				fmt.Fprintf(out, "body %q", b)
			})
			if said := w.raw(text); strings.Contains(said, "GET /secret HTTP") {
				t.Errorf("heard %q", said)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.seen) > 1 || len(w.seen) == 1 && !strings.HasSuffix(w.seen[0], " example.com/ok") || len(w.seen) == 0 && (name == "pipelined" || name == "expect") {
				t.Errorf("the server saw %q", w.seen)
			}
		})
	}
}

// TestHeaders: what is between two ends stays there, and nothing is added.
func TestHeaders(t *testing.T) {
	w := newWorld(t, nil, rules()...)
	var got http.Header
	w.handle(func(out http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		out.Header().Set("Connection", "X-Hop")
		out.Header().Set("X-Hop", "1")
		out.Header().Set("Location", "https://elsewhere.example/")
		out.Header()["Content-Type"] = nil
		out.Header().Set("Set-Cookie", "a=b")
		out.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(out, "<html>")
	})
	status, body, h := ask(t, w.client(false), "GET", "http://example.com/v1/x", nil, "Connection: X-Own", "X-Own: 1", "Proxy-Authorization: secret", "Keep-Alive: 5", "X-Kept: yes", "Authorization: Bearer t", "X-Forwarded-For: 1.1.1.1", "Accept-Encoding: br")
	if status != 302 || body != "<html>" || h.Get("X-Hop") != "" || h.Get("Location") != "https://elsewhere.example/" || h.Get("Set-Cookie") != "a=b" || len(h.Values("Content-Type")) > 0 {
		t.Errorf("%d %q %v", status, body, h)
	}
	for _, gone := range []string{"X-Own", "Proxy-Authorization", "Keep-Alive", "Connection"} {
		if v := got.Values(gone); len(v) > 0 {
			t.Errorf("%s: %q", gone, v)
		}
	}
	for k, want := range map[string]string{"X-Kept": "yes", "Authorization": "Bearer t", "Accept-Encoding": "br", "User-Agent": "Go-http-client/1.1"} {
		if got.Get(k) != want {
			t.Errorf("%s: %q", k, got.Get(k))
		}
	}
	if said := w.raw("GET /x HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(said, "HTTP/1.1 302") {
		t.Error(said)
	}
	if ua, ok := got["User-Agent"]; ok {
		t.Errorf("User-Agent: %q", ua)
	}
}

// TestStreams: bytes go when they come, both ways, and arrive as they are.
func TestStreams(t *testing.T) {
	for _, to := range []string{"http://example.com/v1/x", "https://example.com/v1/x"} {
		for _, h2 := range []bool{false, true} {
			w := newWorld(t, nil, rules()...)
			go1 := make(chan struct{})
			w.handle(func(out http.ResponseWriter, _ *http.Request) {
				out.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(out, "data: 1\n\n")
				out.(http.Flusher).Flush()
				<-go1
				fmt.Fprint(out, "data: 2\n\n")
			})
			resp, err := w.client(h2).Get(to)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 9)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "data: 1\n\n" {
				t.Errorf("%q, %v", b, err)
			}
			close(go1)
			rest, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(rest) != "data: 2\n\n" {
				t.Errorf("%q", rest)
			}

			const size = 30_000_001
			noise := make([]byte, size)
			src := rand.NewChaCha8([32]byte{1})
			_, _ = src.Read(noise)
			var up [32]byte
			w.handle(func(out http.ResponseWriter, r *http.Request) {
				sum := sha256.New()
				if n, err := io.Copy(sum, r.Body); err != nil {
					t.Errorf("server: body %d, %v", n, err)
				}
				up = [32]byte(sum.Sum(nil))
				if n, err := out.Write(noise); err != nil {
					t.Errorf("server: wrote %d, %v", n, err)
				}
			})
			status, body, _ := ask(t, w.client(h2), "POST", to, bytes.NewReader(noise))
			if status != 200 || up != sha256.Sum256(noise) || sha256.Sum256([]byte(body)) != up {
				t.Errorf("%s h2 %v: %d, %d bytes, %q", to, h2, status, len(body), body[max(0, len(body)-100):])
			}
		}
	}
}

// TestBothWays: a server that answers before it was told all still is told the
// rest.
func TestBothWays(t *testing.T) {
	w := newWorld(t, nil, rules()...)
	w.handle(func(out http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(out)
		_ = rc.EnableFullDuplex()
		b := make([]byte, 3)
		for {
			if _, err := io.ReadFull(r.Body, b); err != nil {
				return
			}
			_, _ = out.Write(b)
			_ = rc.Flush()
		}
	})
	c := w.conn(80)
	var got string
	hear := func(word string) {
		t.Helper()
		for b := make([]byte, 1024); !strings.Contains(got, word); {
			n, err := c.Read(b)
			got += string(b[:n])
			if err != nil {
				t.Fatalf("%q, %v", got, err)
			}
		}
	}
	fmt.Fprint(c, "POST /v1/x HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n")
	for _, word := range []string{"one", "two", "six"} {
		fmt.Fprintf(c, "3\r\n%s\r\n", word)
		hear(word)
	}
	fmt.Fprint(c, "0\r\n\r\n")
	hear("\r\n0\r\n\r\n")
}

// TestWebSocket: an upgrade that is allowed is a connection from then on.
func TestWebSocket(t *testing.T) {
	w := newWorld(t, nil, rules()...)
	w.handle(func(out http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			t.Errorf("headers %v", r.Header)
		}
		c, buf, err := out.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, buf)
	})
	for _, port := range []uint16{80, 443} {
		c := w.conn(port)
		if port == 443 {
			c = tls.Client(c, &tls.Config{RootCAs: w.roots, ServerName: "example.com"})
		}
		fmt.Fprint(c, "GET /v1/ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n")
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%d: %+v, %v", port, resp, err)
		}
		for _, word := range []string{"one", "two"} {
			_, _ = io.WriteString(c, word)
			b := make([]byte, 3)
			if _, err := io.ReadFull(r, b); err != nil || string(b) != word {
				t.Errorf("%d: %q, %v", port, b, err)
			}
		}
		c.Close()
	}
}

// TestServers: who cannot show that they are the host get no request.
func TestServers(t *testing.T) {
	w := newWorld(t, func(o *web.Options) { o.Roots = x509.NewCertPool() }, rules()...)
	status, body, _ := ask(t, w.client(true), "GET", "https://example.com/v1/x", nil, "Authorization: Bearer t")
	if _, n := w.lastSeen(); status != 502 || !strings.Contains(body, "certificate") || n > 0 {
		t.Errorf("%d %q; %d requests", status, body, n)
	}
	w = newWorld(t, nil, rules()...)
	w.plain.Close()
	if status, body, _ := ask(t, w.client(true), "GET", "http://example.com/v1/x", nil); status != 502 || strings.Count(body, "\n") != 1 {
		t.Errorf("%d %q", status, body)
	}
}

// TestClients: who does not ask for the host by TLS, or speaks something else,
// is not served.
func TestClients(t *testing.T) {
	w := newWorld(t, nil, rules()...)
	for _, name := range []string{"evil.example", "a.example.com", ""} {
		c := tls.Client(w.conn(443), &tls.Config{RootCAs: w.roots, ServerName: name, InsecureSkipVerify: name == ""})
		if err := c.HandshakeContext(t.Context()); err == nil {
			t.Errorf("a client that asks for %q is served", name)
		}
	}
	for port, text := range map[uint16]string{443: "GET /v1/x HTTP/1.1\r\nHost: example.com\r\n\r\n", 80: "\x16\x03\x01\x00\x05hello"} {
		c := w.conn(port)
		_, _ = io.WriteString(c, text)
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("%d: %q", port, b)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) > 0 || w.dials > 0 {
		t.Errorf("%d requests, %d connections", len(w.seen), w.dials)
	}
}

func TestBudget(t *testing.T) {
	w := newWorld(t, func(o *web.Options) { o.Bytes = relay.NewBudget(100_000) }, rules()...)
	w.handle(func(out http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = out.Write(make([]byte, 1000))
	})
	c := w.client(false)
	if status, body, _ := ask(t, c, "GET", "http://example.com/", nil); status != 200 || len(body) != 1000 {
		t.Fatalf("%d, %d bytes", status, len(body))
	}
	if status, body, _ := ask(t, c, "POST", "http://example.com/", bytes.NewReader(make([]byte, 200_000))); status == 200 {
		t.Errorf("%d %q", status, body)
	}
	w.handle(func(out http.ResponseWriter, _ *http.Request) { _, _ = out.Write(make([]byte, 200_000)) })
	if status, body, _ := ask(t, c, "GET", "http://example.com/", nil); status == 200 && len(body) >= 200_000 {
		t.Errorf("%d, %d bytes", status, len(body))
	}
}

// TestEnvironment: a proxy that the environment names is not used.
func TestEnvironment(t *testing.T) {
	used := make(chan struct{}, 1)
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { used <- struct{}{} }))
	defer other.Close()
	for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"} {
		t.Setenv(v, other.URL)
	}
	w := newWorld(t, nil, rules()...)
	if u, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: "example.com"}}); err != nil || u == nil {
		t.Skip("the environment was read before")
	}
	if status, _, _ := ask(t, w.client(true), "GET", "https://example.com/v1/x", nil); status != 200 || len(used) > 0 {
		t.Errorf("%d", status)
	}
}

func TestNew(t *testing.T) {
	if _, err := web.New(web.Options{}); err == nil {
		t.Error("made of nothing")
	}
}

// TestSecrets: a request goes out with what the agent does not have, and comes
// back without it, by both versions of HTTP.
func TestSecrets(t *testing.T) {
	const value, stand = "the-value-of-the-secret", "creel_0123456789abcdef"
	secrets, err := credential.New([]credential.Secret{{Name: "key", Rule: "example.com GET,POST /v1/**", Place: api.SecretPlace{Kind: api.PlaceBearer}, Value: value, Placeholder: stand}})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *web.Options) {
		snapshot := o.Policy().Snapshot
		o.Policy = func() credential.Policy { return credential.Policy{Snapshot: snapshot, Secrets: secrets} }
	}, egress.Rule{Host: "example.com", Protocol: "https"}, egress.Rule{Host: "example.com", Protocol: "http"})
	w.handle(func(out http.ResponseWriter, r *http.Request) {
		said := r.Header.Get("Authorization")
		out.Header().Set("Link", said)
		out.WriteHeader(http.StatusEarlyHints)
		out.Header().Set("X-Said", said)
		if r.URL.Path == "/v1/away" {
			http.Redirect(out, r, "https://evil.example/?"+said, http.StatusFound)
			return
		}
		fmt.Fprintf(out, "said %q, coding %q", said, r.Header.Get("Accept-Encoding"))
	})
	masked := strings.Repeat("*", len(value))
	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		var early []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			early = append(early, h.Get("Link"))
			return nil
		}})
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://example.com/v1/a", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", "gzip, br")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := `said "Bearer ` + masked + `", coding ""`; err != nil || string(body) != want || resp.Header.Get("X-Said") != "Bearer "+masked {
			t.Errorf("%q, %v, %v", body, resp.Header, err)
		}
		if len(early) != 1 || early[0] != "Bearer "+masked {
			t.Errorf("early hints: %q", early)
		}
		for _, tt := range []struct {
			to, header string
			status     int
			body       string
		}{
			{"https://example.com/v2/a", "", 200, `said "", coding ""`},
			{"https://example.com/v1/a", "Authorization: Bearer " + stand, 200, `said "Bearer ` + masked + `", coding ""`},
			{"https://example.com/v2/a", "Authorization: Bearer " + stand, 403, "creel: the request has the placeholder of a secret that does not go there: key\n"},
			{"http://example.com/v1/a", "", 200, `said "", coding ""`},
			{"http://example.com/v1/a", "Authorization: Bearer " + stand, 403, "creel: the request has the placeholder of a secret that does not go there: key\n"},
			{"https://example.com/v1/away", "", 302, ""},
		} {
			var headers []string
			if tt.header != "" {
				headers = []string{tt.header}
			}
			status, body, got := ask(t, c, http.MethodGet, tt.to, nil, headers...)
			if status != tt.status || tt.body != "" && body != tt.body || strings.Contains(fmt.Sprint(got)+body, value) {
				t.Errorf("%s with %q: %d %q %v", tt.to, tt.header, status, body, got)
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	used := 0
	for _, d := range w.decisions {
		if strings.Contains(fmt.Sprint(d), value) {
			t.Errorf("a decision has the value: %+v", d)
		}
		used += len(d.Secrets)
	}
	if used != 6 {
		t.Errorf("used %d times", used)
	}
}

// TestBrokenServer: what is told of an answer that is none does not tell a secret
// that is in it.
func TestBrokenServer(t *testing.T) {
	const value = "the-value-of-the-secret"
	secrets, err := credential.New([]credential.Secret{{Name: "key", Rule: "example.com", Place: api.SecretPlace{Kind: api.PlaceBearer}, Value: value, Placeholder: "creel_0123456789abcdef"}})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *web.Options) {
		snapshot := o.Policy().Snapshot
		o.Policy = func() credential.Policy { return credential.Policy{Snapshot: snapshot, Secrets: secrets} }
	}, egress.Rule{Host: "example.com"})
	w.secure.EnableHTTP2 = false
	w.handle(func(out http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			out.Header().Set("Content-Encoding", "br "+r.Header.Get("Authorization"))
			return
		}
		c, _, err := http.NewResponseController(out).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(c, r.Header.Get("Authorization")+"\r\n\r\n")
		c.Close()
	})
	status, body, _ := ask(t, w.client(false), http.MethodGet, "https://example.com/", nil)
	if status != http.StatusBadGateway || strings.Contains(strings.ToLower(body), value) || body == "" {
		t.Errorf("%d %q", status, body)
	}
}
