// Package server is creeld's HTTP API on its Unix socket: routes, peer
// credentials, limits on callers, and the mapping of errors to HTTP.
//
// It holds no state of sandboxes and takes no decision about them: a request
// is decoded strictly, given to a Service with the caller that the kernel
// named, and the answer is encoded. docs/api.md describes the wire;
// pkg/api/openapi.yaml is held against the route table by a test.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/prepared"
	"github.com/creel-sandbox/creel/pkg/replay"
)

// Options are what a Server needs beside its Service. Zero fields have the
// defaults of DefaultOptions.
type Options struct {
	// Log gets failures and, at debug, every request.
	Log *slog.Logger
	// MaxConns is how many connections one uid may have at once.
	MaxConns int
	// MaxStreams is how many of its requests may be of the kind that lasts:
	// exec, attach, logs, events, wait, files and imports. Less than MaxConns,
	// so that a caller whose streams are used up can still stop a sandbox.
	MaxStreams int
	// MaxTotalConns is how many connections all uids may have together.
	MaxTotalConns int
	// Callers are whom the server knows; everybody when nil.
	Callers Callers
	// MaxOutput is how many bytes of output the one-shot execs of one uid that
	// run at the same time may ask for; all uids together may have four times
	// as many.
	MaxOutput int
	// HeaderTime is how long a client may take to send a request's header.
	HeaderTime time.Duration
	// IdleTime is how long a connection may be without a request.
	IdleTime time.Duration
	// StallTime is how long a client may neither send the next bytes of a
	// streamed body nor read the next bytes of a streamed answer. It does not
	// hold for exec and attach.
	StallTime time.Duration
	// Inside, where it is not nil, makes it a server of one sandbox's own socket.
	Inside *Inside
}

// Callers say who a caller is. pkg/policy implements it.
type Callers interface {
	// Known says whether a caller may use routes that are not for anyone.
	Known(c Caller) bool
	// Connections is how many it may have at once, below MaxConns; 0 is no
	// bound of its own.
	Connections(c Caller) int
}

// everybody is known, and bounded by MaxConns alone.
type everybody struct{}

func (everybody) Known(Caller) bool      { return true }
func (everybody) Connections(Caller) int { return 0 }

// DefaultOptions are the limits when nothing else is configured.
func DefaultOptions() Options {
	return Options{
		Log: slog.New(slog.DiscardHandler), MaxConns: 256, MaxStreams: 192, MaxTotalConns: 2048, MaxOutput: 64 << 20,
		HeaderTime: 10 * time.Second, IdleTime: 2 * time.Minute, StallTime: 10 * time.Minute,
	}
}

func (o Options) withDefaults() Options {
	d := DefaultOptions()
	if o.Log == nil {
		o.Log = d.Log
	}
	if o.Callers == nil {
		o.Callers = everybody{}
	}
	for _, v := range []struct{ have, def *int }{{&o.MaxConns, &d.MaxConns}, {&o.MaxStreams, &d.MaxStreams}, {&o.MaxTotalConns, &d.MaxTotalConns}, {&o.MaxOutput, &d.MaxOutput}} {
		if *v.have <= 0 {
			*v.have = *v.def
		}
	}
	for _, v := range []struct{ have, def *time.Duration }{{&o.HeaderTime, &d.HeaderTime}, {&o.IdleTime, &d.IdleTime}, {&o.StallTime, &d.StallTime}} {
		if *v.have <= 0 {
			*v.have = *v.def
		}
	}
	return o
}

// maxHeader is the most bytes of a request's header; net/http adds 4 KiB.
const maxHeader = 16 << 10

// Server serves the API.
type Server struct {
	svc     Service
	opts    Options
	log     *slog.Logger
	mux     *http.ServeMux
	http    *http.Server
	conns   *counter
	streams *counter
	outputs *counter // bytes that one-shot execs may keep
	hangups *hangups
	replays *replay.Keys
	waiting *prepared.Execs
	rate    *rate.Limiter // of an inside server's connections and requests; else nil

	// stop is closed when the daemon stops: sessions and event streams end.
	stop     chan struct{}
	stopOnce sync.Once
	sessions sync.WaitGroup
}

// New makes a server of svc.
func New(svc Service, opts Options) (*Server, error) {
	opts = opts.withDefaults()
	h, err := newHangups()
	if err != nil {
		return nil, err
	}
	s := &Server{
		svc: svc, opts: opts, log: opts.Log, mux: http.NewServeMux(), hangups: h, replays: replay.New(replay.DefaultLimits()), waiting: prepared.New(prepared.DefaultLimits()),
		conns: newCounter(opts.MaxConns, opts.MaxTotalConns), streams: newCounter(opts.MaxStreams, opts.MaxTotalConns),
		outputs: newCounter(opts.MaxOutput, 4*opts.MaxOutput),
		stop:    make(chan struct{}),
	}
	if opts.Inside != nil {
		s.rate = rate.NewLimiter(insidePerSecond, insideBurst)
	}
	for _, rt := range routes {
		if opts.Inside != nil && !rt.Inside {
			continue
		}
		s.mux.Handle(rt.Method+" "+rt.Pattern, s.handler(rt))
	}
	s.http = &http.Server{
		Handler:           s.outer(s.mux),
		ReadHeaderTimeout: opts.HeaderTime,
		IdleTimeout:       opts.IdleTime,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(opts.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if opts.Inside != nil {
				return fdconn.ConnContext(peer.NewContext(ctx, opts.Inside.Caller), c)
			}
			return fdconn.ConnContext(peer.ConnContext(ctx, c), c)
		},
	}
	return s, nil
}

// Serve answers on l until Shutdown, and then returns nil.
func (s *Server) Serve(l *net.UnixListener) error {
	var in net.Listener = &capListener{Listener: fdconn.Listen(l), conns: s.conns, most: s.opts.Callers.Connections, log: s.log}
	if s.opts.Inside != nil {
		in = newInsideListener(l, s)
	}
	err := s.http.Serve(in)
	select {
	case <-s.stop:
		if errors.Is(err, net.ErrClosed) { // the listener saw it before net/http was told
			return nil
		}
	default:
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Shutdown stops listening, ends sessions and event streams with an error
// frame or event of class unavailable, and waits for other requests until ctx
// ends; then it cuts them off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopOnce.Do(func() { close(s.stop) })
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("stop serving: %w", err), s.http.Close())
	}
	done := make(chan struct{})
	go func() { s.sessions.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("stop serving: sessions have not ended: %w", ctx.Err()))
	}
	return errors.Join(err, s.hangups.Close())
}

// untilStop is ctx that also ends when the daemon stops.
func (s *Server) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-s.stop:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}
