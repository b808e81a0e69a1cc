// Package mcp serves sandboxes to a language model: a server of the Model
// Context Protocol on a pair of streams, over pkg/client.
//
// The model at the other end is hostile. What decides about isolation
// (mounts, image, profile, limits, network) is in Options, from who started
// the server, and no tool has an argument for it. Arguments are closed schemas
// with bounds (tools.json), answers are bounded, and a tool reaches the
// sandboxes of this server only. These are removed when it ends.
package mcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// Label is on every sandbox that a server launched; its value is the server's
// own, other for each.
const Label = "creel.mcp"

const (
	maxCalls = 16          // under way at once
	maxFrame = 8 << 20     // bytes of one message to the server: the largest write, every byte escaped
	maxError = 4 << 10     // bytes of a tool's error
	maxSpawn = time.Minute // for a launch

	waitCalls  = 10 * time.Second // for calls under way when the session ends
	waitClient = 2 * time.Second  // for a client that does not read, then
	waitRemove = 30 * time.Second // for the removal of what is left
)

// Options are what the operator decides.
type Options struct {
	Client *client.Client

	// Spawn is what every sandbox is launched with. Command, Stdin, Remove and
	// Timeout are set for each. The sources of its mounts are opened once.
	Spawn api.SpawnRequest

	// Timeout is the longest that a tool waits for a command, which is then ended.
	Timeout time.Duration

	// Sandboxes is how many there may be at once, ended ones included.
	Sandboxes int

	// Keep leaves the sandboxes when the server ends.
	Keep bool

	// All lets the tools reach every sandbox of the caller, not only the server's.
	All bool
}

// server is one session.
type server struct {
	Options
	id   string          // value of Label
	dirs []*os.File      // sources of the mounts
	ctx  context.Context //nolint:containedctx // the session's, which ends every call

	mu    sync.Mutex
	ended bool
	calls sync.WaitGroup
	under int // calls under way

	launches sync.Mutex
	starting int  // launches under way
	launched bool // there was one
}

// Serve answers on in and out until in ends, out breaks, or parent ends, and then
// removes the sandboxes it launched. The error is what broke the session, or
// what could not be removed; an end is none.
func Serve(parent context.Context, o Options, in io.Reader, out io.Writer) error {
	dirs, err := client.OpenSources(o.Spawn.Mounts)
	if err != nil {
		return err
	}
	defer func() {
		for _, d := range dirs {
			_ = d.Close()
		}
	}()
	ctx, end := context.WithCancelCause(parent)
	defer end(nil)
	s := &server{Options: o, id: strings.ToLower(rand.Text()), dirs: dirs, ctx: ctx}
	srv, err := s.newServer()
	if err != nil {
		return err
	}
	session := make(chan error, 1)
	go func() {
		session <- srv.Run(ctx, &sdk.IOTransport{Reader: reader{in, end}, Writer: writer{out, end}, MaxLineLength: maxFrame})
	}()
	select {
	case err = <-session:
	case <-ctx.Done():
		// A client that has stopped reading must not keep the sandboxes alive.
		select {
		case err = <-session:
		case <-time.After(waitClient):
		}
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx) // the session's own error only follows from it
	}
	end(nil)
	if parent.Err() != nil || errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, s.cleanUp(context.WithoutCancel(ctx)))
}

// reader and writer tell the server of the end of the session themselves: the
// protocol's library waits for calls under way first.
type reader struct {
	io.Reader
	end context.CancelCauseFunc
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil {
		r.end(err)
	}
	return n, err
}

// Close leaves the stream to whom it belongs.
func (r reader) Close() error { return nil }

type writer struct {
	io.Writer
	end context.CancelCauseFunc
}

func (w writer) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.end(fmt.Errorf("write to the client: %w", err))
	}
	return n, err
}

// Close leaves the stream to whom it belongs.
func (w writer) Close() error { return nil }

// begin is the start of a call, unless there are too many or the session is over.
func (s *server) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return errors.New("the server is ending")
	case s.under >= maxCalls:
		return api.Errorf(api.CodeExhausted, "%d calls are under way, the most at once", maxCalls).WithHint("wait for one of them to end")
	}
	s.under++
	s.calls.Add(1)
	return nil
}

func (s *server) done() {
	s.mu.Lock()
	s.under--
	s.mu.Unlock()
	s.calls.Done()
}

// cleanUp removes the server's sandboxes. It goes by their label, so that it
// finds one whose launch nobody waited for, and tries again while the daemon
// is away: it may be starting anew.
func (s *server) cleanUp(ctx context.Context) error {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	quiet := make(chan struct{})
	go func() { s.calls.Wait(); close(quiet) }()
	select {
	case <-quiet:
	case <-time.After(waitCalls):
	}
	s.launches.Lock()
	launched := s.launched
	s.launches.Unlock()
	if s.Keep || !launched {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, waitRemove)
	defer cancel()
	for {
		left, err := s.mine(ctx)
		if err == nil && len(left) == 0 {
			return nil
		}
		for _, sb := range left {
			if rerr := s.Client.Remove(ctx, sb.ID, true); rerr != nil && api.CodeOf(rerr) != api.CodeNotFound {
				err = errors.Join(err, fmt.Errorf("remove sandbox %s: %w", sb.ID, rerr))
			}
		}
		if err == nil {
			continue // look whether that was all
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sandboxes with label %s=%s may be left: %w", Label, s.id, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// mine are the server's sandboxes, those that have ended included.
func (s *server) mine(ctx context.Context) ([]api.Sandbox, error) {
	return s.Client.List(ctx, client.ListOptions{All: true, Labels: map[string]string{Label: s.id}})
}
