package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/prepared"
	"github.com/creel-sandbox/creel/pkg/stream"
)

func (s *Server) exec(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.ExecRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	if !wantsUpgrade(r) {
		if r.Header.Get("Upgrade") != "" || req.Stdin || req.TTY || req.IO != "" || req.Cols != 0 || req.Rows != 0 {
			upgradeRequired(w, r)
			return nil
		}
		return s.execOnce(w, r, c, req)
	}
	err := noOneShot(req)
	if err != nil {
		return err
	}
	if req.IO, err = framing(req.IO); err != nil {
		return err
	}
	if s.opts.Inside != nil {
		req.IO = "framed" // no descriptor passes a sandbox's own socket; a client sees that none comes
	}
	return s.session(w, r, func(ctx context.Context) (Session, error) {
		return s.svc.Exec(ctx, c, r.PathValue("ref"), req)
	})
}

// framing is how a command's streams are to travel.
func framing(io string) (string, error) {
	switch io {
	case "":
		return "framed", nil
	case "fds", "framed":
		return io, nil
	}
	return "", invalid("the request is not valid", api.Problem{Field: "io", Value: io, Want: `"fds" or "framed"`})
}

// prepare keeps a command for execPrepared. Whether it can be run at all is said
// then, but for what is wrong with the request itself.
func (s *Server) prepare(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	var req api.ExecRequest
	if err := readJSON(w, r, &req, false); err != nil {
		return err
	}
	if err := noOneShot(req); err != nil {
		return err
	}
	if req.IO != "" {
		return invalid("the request is not valid", api.Problem{Field: "io", Value: req.IO, Want: "left out: who runs it says so"})
	}
	sb, err := s.svc.Get(r.Context(), c, r.PathValue("ref"))
	if err != nil {
		return err
	}
	b, err := json.Marshal(req) // its length need not have been said
	if err != nil {
		return err
	}
	p, err := s.waiting.Put(c.UID, prepared.Exec{Sandbox: sb.ID, Request: req}, len(b)+preparedSize)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, p)
	return nil
}

// preparedSize is what a prepared command takes of memory beside its request.
const preparedSize = 4 << 10

func (s *Server) execPrepared(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	io, err := framing(q.str("io"))
	if err := errors.Join(q.done(), err); err != nil {
		return err
	}
	if !wantsUpgrade(r) {
		upgradeRequired(w, r)
		return nil
	}
	if err := readJSON(w, r, &struct{}{}, true); err != nil {
		return err
	}
	e, err := s.waiting.Take(c.UID, r.PathValue("id"))
	if err != nil {
		return err
	}
	e.Request.IO = io
	return s.session(w, r, func(ctx context.Context) (Session, error) {
		return s.svc.Exec(ctx, c, e.Sandbox, e.Request)
	})
}

func (s *Server) releasePrepared(w http.ResponseWriter, r *http.Request, c Caller) error {
	if err := parseQuery(r).done(); err != nil {
		return err
	}
	_, err := s.waiting.Take(c.UID, r.PathValue("id"))
	return answerNone(w, err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	opts := AttachOptions{
		Replay: q.flag("replay"), Stdin: q.flag("stdin"),
		Cols: uint16(q.number("cols", 0, 0, math.MaxUint16)), Rows: uint16(q.number("rows", 0, 0, math.MaxUint16)),
	}
	if err := q.done(); err != nil {
		return err
	}
	if !wantsUpgrade(r) {
		upgradeRequired(w, r)
		return nil
	}
	if err := readJSON(w, r, &struct{}{}, true); err != nil {
		return err
	}
	return s.session(w, r, func(ctx context.Context) (Session, error) {
		return s.svc.Attach(ctx, c, r.PathValue("ref"), opts)
	})
}

func wantsUpgrade(r *http.Request) bool {
	return hasToken(r.Header.Values("Connection"), "upgrade") && hasToken(r.Header.Values("Upgrade"), stream.Protocol)
}

func hasToken(values []string, want string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), want) {
				return true
			}
		}
	}
	return false
}

func upgradeRequired(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Upgrade", stream.Protocol)
	w.Header().Set("Connection", "Upgrade, close")
	e := invalid("this route speaks frames after an upgrade",
		api.Problem{Field: "Connection", Want: "Upgrade"}, api.Problem{Field: "Upgrade", Want: stream.Protocol})
	e.RequestID = RequestID(r.Context())
	writeJSON(w, http.StatusUpgradeRequired, e)
}

// session starts what the client asked for, takes the connection out of HTTP
// and speaks frames on it until the end.
func (s *Server) session(w http.ResponseWriter, r *http.Request, start func(context.Context) (Session, error)) error {
	s.sessions.Add(1) // before the hijack: until then Shutdown waits for the request
	defer s.sessions.Done()
	sess, err := start(r.Context())
	if err != nil {
		return err
	}
	defer func() { _ = sess.Close() }()
	fc, from, err := switchProtocols(w, r)
	if err != nil || fc == nil {
		return err
	}
	defer func() { _ = fc.Close() }()
	// net/http cancels the request's context at the end of what it reads from,
	// which is before what came with it has reached the command.
	newSession(s, sess, fc, from).run(context.WithoutCancel(r.Context()))
	return nil
}

// switchProtocols takes the connection out of HTTP, and tells the client so. It is
// nil if the client has gone.
func switchProtocols(w http.ResponseWriter, r *http.Request) (*fdconn.Conn, *bufio.Reader, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the connection: %w", err)
	}
	if a, ok := w.(*answer); ok {
		a.status = http.StatusSwitchingProtocols
	}
	fc, ok := conn.(*fdconn.Conn)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("take over the connection: it is a %T", conn)
	}
	const head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + stream.Protocol + "\r\nConnection: Upgrade\r\n" + requestIDHeader + ": "
	if _, err := fc.Write([]byte(head + RequestID(r.Context()) + "\r\n\r\n")); err != nil {
		_ = fc.Close()
		return nil, nil, nil //nolint:nilerr,nilnil // the client has gone; closing is all there is to do
	}
	return fc, buf.Reader, nil
}

// forward connects the client with a server in the sandbox: after the upgrade
// there are bytes and no frames.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, c Caller) error {
	q := parseQuery(r)
	port := q.number("port", 0, 1, math.MaxUint16)
	if err := q.done(); err != nil {
		return err
	}
	if port == 0 {
		return invalid("the request is not valid", api.Problem{Field: "port", Want: "1 to 65535"})
	}
	if !wantsUpgrade(r) {
		upgradeRequired(w, r)
		return nil
	}
	if err := readJSON(w, r, &struct{}{}, true); err != nil {
		return err
	}
	s.sessions.Add(1)
	defer s.sessions.Done()
	up, err := s.svc.Forward(r.Context(), c, r.PathValue("ref"), uint16(port))
	if err != nil {
		return err
	}
	defer func() { _ = up.Close() }()
	fc, from, err := switchProtocols(w, r)
	if err != nil || fc == nil {
		return err
	}
	defer func() { _ = fc.Close() }()
	stop := make(chan struct{})
	go func() {
		select {
		case <-s.stop:
			_, _ = up.Close(), fc.Close()
		case <-stop:
		}
	}()
	defer close(stop)
	both(fc, from, up)
	return nil
}

// A connection over which nothing goes ends: soon if its client has said that
// nothing more comes, for it may have gone.
const (
	forwardIdle = time.Hour
	forwardHalf = 2 * time.Minute
)

// both passes bytes on, each way until its end, and returns after both, or when
// one breaks or nothing goes over either for too long.
func both(client *fdconn.Conn, from *bufio.Reader, up Tunnel) {
	var wg sync.WaitGroup
	var once sync.Once
	var half atomic.Bool
	broken := func() { once.Do(func() { _, _ = up.Close(), client.Close() }) }
	touch := func() {
		at := time.Now().Add(forwardIdle)
		if half.Load() {
			at = time.Now().Add(forwardHalf)
		}
		_, _ = client.SetDeadline(at), up.SetDeadline(at)
	}
	one := func(dst io.Writer, src io.Reader, end func() error) {
		wg.Go(func() {
			touch()
			b := make([]byte, 64<<10)
			for {
				n, err := src.Read(b)
				if n > 0 {
					touch()
					if _, err := dst.Write(b[:n]); err != nil {
						broken()
						return
					}
				}
				if errors.Is(err, io.EOF) {
					_ = end()
					return
				}
				if err != nil {
					broken()
					return
				}
			}
		})
	}
	one(up, from, func() error { half.Store(true); touch(); return up.CloseWrite() })
	one(client, up, client.CloseWrite)
	wg.Wait()
}
