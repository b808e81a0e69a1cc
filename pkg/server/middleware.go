package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/replay"
)

// errStopping is what requests get that outlast the daemon.
var errStopping = api.Errorf(api.CodeUnavailable, "creeld is stopping").WithHint("try again when it has started")

type requestIDKey struct{}

// requestIDHeader names the request in answers and in the log.
const requestIDHeader = "Creel-Request-Id"

// RequestID names the request that ctx is of, in answers and in the log; empty
// for a context of none.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

func newRequestID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return idEncoding.EncodeToString(b[:])
}

// answer remembers whether an answer has begun.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// outer is around every request: id, log, panics, and what is refused whatever
// the route.
func (s *Server) outer(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start, id := time.Now(), newRequestID()
		r = r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id))
		w.Header().Set(requestIDHeader, id)
		a := &answer{ResponseWriter: w}
		// The last answer on this connection may have left a deadline.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		defer s.logRequest(r, a, start)
		defer endBody(a)
		defer s.recovered(a, r)

		if s.rate != nil {
			if err := s.slowly(r); err != nil {
				s.fail(a, r, err)
				return
			}
		}
		if err := refuseBrowser(r); err != nil {
			s.fail(a, r, err)
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" || path.Clean(r.URL.Path) != r.URL.Path {
			s.noRoute(a, r, mux)
			return
		}
		mux.ServeHTTP(a, r)
	})
}

// endBody bounds how long net/http waits, after the answer, for a body that
// the handler has not read: without it a client that announces one and sends
// nothing would hold the connection for ever. net/http takes the deadline away
// before the next request.
func endBody(a *answer) {
	if a.status != http.StatusSwitchingProtocols { // that connection is not HTTP's any more
		_ = http.NewResponseController(a.ResponseWriter).SetReadDeadline(time.Now().Add(bodyTime))
	}
}

// recovered turns a panic into an internal error. http.ErrAbortHandler cuts
// the connection on purpose.
func (s *Server) recovered(a *answer, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { //nolint:errorlint // the very value is the contract
		panic(p)
	}
	s.log.LogAttrs(r.Context(), slog.LevelError, "handler panicked", slog.String("request_id", RequestID(r.Context())),
		slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
	if a.status != 0 {
		panic(http.ErrAbortHandler) // too late for a status: the client must see a broken answer
	}
	s.fail(a, r, fmt.Errorf("panic: %v", p))
}

func (s *Server) logRequest(r *http.Request, a *answer, start time.Time) {
	if !s.log.Enabled(r.Context(), slog.LevelDebug) {
		return
	}
	uid := int64(-1)
	if c, err := peer.From(r.Context()); err == nil {
		uid = int64(c.UID)
	}
	// The query is left out: it holds paths of the agent's.
	s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("request_id", RequestID(r.Context())),
		slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int64("uid", uid),
		slog.Int("status", a.status), slog.Duration("took", time.Since(start)))
}

// refuseBrowser refuses what a web page made a browser send, which reaches the
// socket where something forwards a TCP port to it. It is stricter than
// http.CrossOriginProtection: no browser has business here, of any origin or
// method. A browser cannot leave these headers out.
func refuseBrowser(r *http.Request) error {
	for _, h := range []string{"Origin", "Sec-Fetch-Site"} {
		if r.Header.Get(h) != "" {
			return api.Errorf(api.CodeDenied, "the request has a browser's header %s; this API is not for web pages", h)
		}
	}
	return nil
}

// discard takes what the mux would have said, for its status and header.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// noRoute answers for the mux, whose own answers are not JSON. A redirect to a
// cleaned path is refused as well: a path with ".." is nobody's mistake.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	d := &discard{header: http.Header{}}
	mux.ServeHTTP(d, r)
	if allow := d.header.Get("Allow"); d.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allow)
		e := api.Errorf(api.CodeInvalid, "%s is not possible on %s", r.Method, r.URL.Path).WithHint("possible: " + allow)
		e.RequestID = RequestID(r.Context())
		writeJSON(w, http.StatusMethodNotAllowed, e)
		return
	}
	s.fail(w, r, api.Errorf(api.CodeNotFound, "no such route: %s", r.URL.Path).WithHint("GET /v1/openapi.yaml lists them"))
}

// handler is around every route: the caller, the count of its streams, what
// becomes of an error.
func (s *Server) handler(rt Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := peer.From(r.Context())
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if !rt.Anyone && !s.opts.Callers.Known(c) {
			s.fail(w, r, nobody(c))
			return
		}
		if s.opts.Inside != nil {
			if err := inside(r); err != nil {
				s.finish(w, r, err)
				return
			}
		}
		if rt.Stream {
			most := s.opts.MaxStreams
			if conns := s.opts.Callers.Connections(c); conns > 0 {
				most = min(most, conns-1) // one is left to stop a sandbox with
			}
			if !s.streams.takeOf(c.UID, 1, most) {
				s.fail(w, r, api.Errorf(api.CodeExhausted, "too many streams of this user: %d", most).
					WithHint("end some, or raise server.max_streams"))
				return
			}
			defer s.streams.give(c.UID, 1)
		}
		if err := s.once(rt, w, r, c); err != nil {
			s.finish(w, r, err)
		}
	})
}

// once calls the route's handler, or answers as it did when the request came
// before under its Idempotency-Key.
func (s *Server) once(rt Route, w http.ResponseWriter, r *http.Request, c Caller) error {
	key, err := idempotencyKey(r)
	switch {
	case err != nil:
		return err
	case key == "" || isSpawn(rt):
		return rt.handle(s, w, r, c)
	case !rt.Once || r.Header.Get("Upgrade") != "":
		return invalid("the request is not valid", api.Problem{Field: "Idempotency-Key", Want: "left out: " +
			"this request can be repeated without it, or is a stream; docs/api.md lists those that take a key"})
	}
	body, err := readBody(w, r, maxJSON)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	req := replay.Request{UID: c.UID, Path: r.URL.EscapedPath(), Key: key, Body: sha256.Sum256(append([]byte(r.URL.RawQuery+"\n"), body...))}
	ctx, cancel := s.untilStop(r.Context())
	defer cancel()
	return s.replays.Serve(ctx, w, req, nothingDone, func(w http.ResponseWriter) error { return rt.handle(s, w, r, c) })
}

func isSpawn(rt Route) bool { return rt.Method == http.MethodPost && rt.Pattern == "/v1/sandboxes" }

// begunError is of a request whose effect has begun.
type begunError struct{ error }

func (e begunError) Unwrap() error { return e.error }

// Undone marks an error of a Service's that came before any effect, whatever its
// class: the request may come again under the same Idempotency-Key, and is then
// done.
func Undone(err error) error { return undoneError{err} }

type undoneError struct{ error }

func (e undoneError) Unwrap() error { return e.error }

// nothingDone says of a request's error that it came before any effect: the
// classes of what is refused, and what is marked. Of others nobody knows.
func nothingDone(err error) bool {
	if _, begun := errors.AsType[begunError](err); begun {
		return false
	}
	if _, undone := errors.AsType[undoneError](err); undone {
		return true
	}
	switch api.CodeOf(err) {
	case api.CodeInvalid, api.CodeDenied, api.CodeNotFound, api.CodeConflict, api.CodeTooLarge, api.CodeExhausted, api.CodeUnsupportedHost:
		return true
	case api.CodeNotProven, api.CodeUnavailable, api.CodeInternal:
	}
	return false
}

// nobody is what a caller is told for whom the configuration has nothing.
func nobody(c Caller) error {
	return api.Errorf(api.CodeDenied, "no [[caller]] of creeld's configuration is for uid %d, gid %d", c.UID, c.GID).
		WithHint("have the operator add one; who has just joined a group has it from the next login on")
}

// finish reports a handler's error, if the answer has not begun. If it has,
// the connection is cut, so that the client cannot take a part for the whole.
func (s *Server) finish(w http.ResponseWriter, r *http.Request, err error) {
	if a, ok := w.(*answer); ok && a.status != 0 {
		e := s.public(r.Context(), err) // logs what is internal
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "answer broken off", slog.String("request_id", e.RequestID), slog.String("code", string(e.Code)))
		panic(http.ErrAbortHandler)
	}
	if !strings.EqualFold(w.Header().Get("Connection"), "close") && r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // a body may be left unread
	}
	s.fail(w, r, err)
}
