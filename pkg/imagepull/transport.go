package imagepull

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// stallTime is how long a registry may send nothing that it was asked for.
	stallTime = time.Minute
	// maxHeader bounds an answer's header.
	maxHeader = 256 << 10
	// maxRequests bounds one pull: each layer of an image, asked for thrice
	// and redirected twice, is 1143. A registry may redirect for ever.
	maxRequests = 2000
)

var (
	errPlainHTTP = errors.New("plain HTTP is only spoken with this machine itself")
	errTooLarge  = errors.New("the answer is too large")
	errStalled   = fmt.Errorf("the registry sent nothing for %s", stallTime)
	errRequests  = fmt.Errorf("the registry had it ask more than %d times", maxRequests)
)

// roundTripper is what every request of a pull goes through, wherever it was
// redirected to.
type roundTripper struct {
	inner http.RoundTripper
	// plain allows HTTP to any host; plainLocal to this machine's own.
	plain, plainLocal bool
	// most bounds the body of an answer: first that of metadata, then that of
	// the layer that is being read.
	most     atomic.Int64
	requests atomic.Int64
	stall    time.Duration
}

func newTransport(registry string, skipTLSVerify bool) *roundTripper {
	t := &roundTripper{
		inner: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{InsecureSkipVerify: skipTLSVerify}, //nolint:gosec // the caller asked for it by --tls-verify=false
			TLSHandshakeTimeout:    30 * time.Second,
			ResponseHeaderTimeout:  stallTime,
			IdleConnTimeout:        stallTime,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // a few packed bytes must not become many
			MaxResponseHeaderBytes: maxHeader,
		},
		plain: skipTLSVerify, plainLocal: isLoopback(hostOf(registry)), stall: stallTime,
	}
	t.most.Store(maxJSON)
	return t
}

func (t *roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if !t.allowed(req.URL) {
		return nil, fmt.Errorf("%s: %w", req.URL.Host, errPlainHTTP)
	}
	if t.requests.Add(1) > maxRequests {
		return nil, errRequests
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.inner.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	b := &body{inner: resp.Body, ctx: ctx, cancel: cancel, stall: t.stall, left: t.most.Load()}
	if resp.ContentLength > b.left {
		_ = b.Close()
		return nil, errTooLarge
	}
	resp.Body = b
	return resp, nil
}

// allowed: the library would also speak HTTP with private addresses, and so
// give credentials away to whoever is on that network.
func (t *roundTripper) allowed(u *url.URL) bool {
	return u.Scheme == "https" || t.plain || t.plainLocal && isLoopback(u.Hostname())
}

// body is an answer's body that is bounded in bytes and that does not stall.
type body struct {
	inner  io.ReadCloser
	ctx    context.Context //nolint:containedctx // the request's own, for its cause
	cancel context.CancelCauseFunc
	stall  time.Duration
	left   int64
}

func (b *body) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	// One byte more than allowed, to tell the end from too much.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	// Only the wait for the registry counts, not that for who takes the bytes.
	timer := time.AfterFunc(b.stall, func() { b.cancel(errStalled) })
	n, err := b.inner.Read(p)
	timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.ctx), errStalled) {
		err = errStalled
	}
	if b.left -= int64(n); b.left < 0 {
		return n - 1, errTooLarge
	}
	return n, err
}

func (b *body) Close() error {
	defer b.cancel(nil)
	return b.inner.Close()
}

// hostOf is the host of a registry's name.
func hostOf(registry string) string {
	return (&url.URL{Host: registry}).Hostname()
}

// isLoopback reports whether a host is this machine by what it is called. A
// name below "localhost" may be anybody's, as resolvers go.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
