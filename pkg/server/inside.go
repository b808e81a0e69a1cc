package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// Inside says whose a sandbox's own socket is. Nothing of it comes from the
// peer: the socket is who asks.
type Inside struct {
	// Caller is who every request is of; its Via is the sandbox.
	Caller Caller
	// First and Count are the host uids that may connect: the sandbox's.
	First, Count uint32
}

// Bounds of each sandbox's own socket. They are its own, and nothing of what
// its caller has at creeld's.
const (
	insideConns     = 16
	insideStreams   = 12
	insideOutput    = 8 << 20 // bytes, see Options.MaxOutput
	insidePerSecond = 50      // connections and requests together
	insideBurst     = 100
	// insideStop is how long requests may take to end when the socket goes.
	insideStop = 2 * time.Second
)

// ServeInside answers on a sandbox's own socket, with the routes that are
// marked for it, until stop. stop closes l and all connections, and returns
// when no request is being answered any more, or insideStop has passed.
func ServeInside(svc Service, l *net.UnixListener, in Inside, opts Options) (stop func(), err error) {
	if in.Caller.Via == "" {
		return nil, errors.New("a socket of no sandbox") // its caller would see all
	}
	opts.Inside, opts.MaxConns, opts.MaxStreams, opts.MaxTotalConns, opts.MaxOutput = &in, insideConns, insideStreams, insideConns, insideOutput
	s, err := New(svc, opts)
	if err != nil {
		return nil, err
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), insideStop)
		defer cancel()
		err := s.Shutdown(ctx)
		_ = l.Close() // where Serve had not come to it
		if serr := <-served; !errors.Is(serr, net.ErrClosed) {
			err = errors.Join(err, serr)
		}
		if err != nil {
			s.log.Warn("a sandbox's own socket", slog.String("sandbox", in.Caller.Via), slog.Any("error", err))
		}
	}, nil
}

// slowly lets no more requests through than insidePerSecond. The others wait:
// to refuse them is work as well.
func (s *Server) slowly(r *http.Request) error {
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	return stopped(ctx, s.rate.Wait(ctx))
}

// inside is nil if a request may come through a sandbox's own socket.
func inside(r *http.Request) error {
	if len(r.Header.Values("Idempotency-Key")) > 0 {
		// Keys are the caller's, who may have given this one to another request.
		return invalid("the request is not valid", api.Problem{Field: "Idempotency-Key", Want: "left out: a sandbox's own socket takes none"})
	}
	return nil
}

// insideListener takes no more connections than are served, and none too fast:
// others wait in the kernel, and in the sandbox. Turning them away would be work
// for the host that the sandbox does not pay for.
type insideListener struct {
	*net.UnixListener
	s      *Server
	places chan struct{}
	// ctx ends when the server stops.
	ctx    context.Context
	cancel context.CancelFunc
}

func newInsideListener(l *net.UnixListener, s *Server) *insideListener {
	ctx, cancel := s.untilStop(context.Background())
	return &insideListener{l, s, make(chan struct{}, insideConns), ctx, cancel}
}

// Close implements net.Listener.
func (l *insideListener) Close() error {
	l.cancel()
	return l.UnixListener.Close()
}

// Accept implements net.Listener.
func (l *insideListener) Accept() (net.Conn, error) {
	for {
		select {
		case l.places <- struct{}{}:
		case <-l.ctx.Done():
			return nil, net.ErrClosed
		}
		c, err := l.next()
		if err != nil {
			<-l.places
			return nil, err
		}
		in := l.s.opts.Inside
		if who, err := peer.IDs(c); err != nil || who.UID-in.First >= in.Count { // below First it wraps
			l.s.log.Warn("connection refused: not of the sandbox whose socket it is", slog.String("sandbox", in.Caller.Via), slog.Uint64("uid", uint64(who.UID)))
			_ = c.Close()
			<-l.places
			continue
		}
		c.OnClose(func() { <-l.places })
		return c, nil
	}
}

func (l *insideListener) next() (*fdconn.Conn, error) {
	if err := l.s.rate.Wait(l.ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", net.ErrClosed, err)
	}
	uc, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return fdconn.Deaf(uc), nil
}
