// Package client is the Go client of creeld's API.
//
// One Client serves one socket and is safe for concurrent use. Every method
// takes a context; cancelling it ends the request, and for Exec ends the
// command (a lost client's exec is killed by the daemon). What the daemon
// refuses comes back as *api.Error, so that api.CodeOf tells the class.
//
// Directories are given to a sandbox by descriptor: Spawn opens each mount's
// source in the calling process and sends it, so a caller can only share what
// it can itself reach.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// DefaultSocket is where creeld listens unless its configuration says otherwise.
const DefaultSocket = "/run/creel/creel.sock"

// maxAnswer bounds one JSON answer of the daemon, so that a confused peer
// cannot fill the caller's memory. The largest real one, evidence of a
// sandbox with many mounts, is under a mebibyte.
const maxAnswer = 64 << 20

// Client talks to one creeld.
type Client struct {
	socket string

	// The HTTP stack is only built when a request needs it: exec, the path
	// that must be fast, writes its own upgrade request.
	once sync.Once
	http *http.Client
}

// New returns a client of the daemon at the socket. An empty path means the
// environment's CREEL_SOCKET, else DefaultSocket. It does not connect.
func New(socket string) *Client {
	if socket == "" {
		socket = os.Getenv("CREEL_SOCKET")
	}
	if socket == "" {
		socket = DefaultSocket
	}
	return &Client{socket: socket}
}

// Socket is the path this client connects to.
func (c *Client) Socket() string { return c.socket }

// Close drops idle connections.
func (c *Client) Close() error {
	c.httpClient().CloseIdleConnections()
	return nil
}

func (c *Client) httpClient() *http.Client {
	c.once.Do(func() {
		c.http = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return c.dial(ctx)
			},
			MaxIdleConns:    4,
			IdleConnTimeout: 30 * time.Second,
			// The peer is this machine's kernel away: nothing to gain from gzip.
			DisableCompression: true,
		}}
	})
	return c.http
}

// route is a path under /v1 with each element escaped.
func route(elems ...string) string {
	var b strings.Builder
	b.WriteString("/v1")
	for _, e := range elems {
		b.WriteString("/" + url.PathEscape(e))
	}
	return b.String()
}

// request describes one call.
type request struct {
	method string
	path   string // from route
	query  url.Values
	in     any       // sent as JSON when not nil
	body   io.Reader // sent as it is when in is nil
	size   int64     // of body, -1 when unknown
	next   *string   // gets the cursor of a list
}

func (r request) target() string {
	if len(r.query) == 0 {
		return r.path
	}
	return r.path + "?" + r.query.Encode()
}

// do sends r and returns the answer's body when its status is 2xx.
func (c *Client) do(ctx context.Context, r request) (io.ReadCloser, error) {
	body, size := r.body, r.size
	if r.in != nil {
		b, err := json.Marshal(r.in)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		body, size = bytes.NewReader(b), int64(len(b))
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://creel"+r.target(), body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", "application/json")
		if r.in == nil {
			req.Header.Set("Content-Type", "application/octet-stream")
		}
	}
	resp, err := c.httpClient().Do(req)
	if err != nil {
		return nil, requestError(ctx, err)
	}
	if resp.StatusCode/100 != 2 {
		defer func() { _ = resp.Body.Close() }()
		return nil, decodeError(resp)
	}
	if r.next != nil {
		*r.next = resp.Header.Get("Creel-Next")
	}
	return resp.Body, nil
}

// Page asks for a part of a list. The zero value asks for all of it.
type Page struct {
	// Limit is the most items, 1 to 1000; 0 is no limit.
	Limit int
	// After is what the page before gave as next; empty for the first.
	After string
}

func (p Page) set(q url.Values) {
	if p.Limit > 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	if p.After != "" {
		q.Set("after", p.After)
	}
}

// requestError drops net/http's `Post "http://creel/v1/...":` prefix, which
// tells a person nothing, and keeps a cancelled context recognisable.
func requestError(ctx context.Context, err error) error {
	if apiErr, ok := errors.AsType[*api.Error](err); ok {
		return apiErr
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return brokeOff(err)
}

// decodeError reads the body of an answer that is not 2xx.
func decodeError(resp *http.Response) error {
	// A daemon that turns a connection away does not read the request; the
	// reset that follows its answer does not make a whole answer less so.
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var e api.Error
	if json.Unmarshal(b, &e) != nil || e.Code == "" {
		return api.Errorf(codeOfStatus(resp.StatusCode), "the daemon answered %s without an explanation", resp.Status).
			WithHint("is the socket creeld's?")
	}
	return &e
}

func codeOfStatus(status int) api.Code {
	switch status {
	case http.StatusBadRequest:
		return api.CodeInvalid
	case http.StatusForbidden:
		return api.CodeDenied
	case http.StatusNotFound:
		return api.CodeNotFound
	case http.StatusConflict:
		return api.CodeConflict
	case http.StatusRequestEntityTooLarge:
		return api.CodeTooLarge
	case http.StatusTooManyRequests:
		return api.CodeExhausted
	case http.StatusServiceUnavailable:
		return api.CodeUnavailable
	}
	return api.CodeInternal
}

// call sends r and decodes the JSON answer into out, unless out is nil.
func (c *Client) call(ctx context.Context, r request, out any) error {
	body, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if out == nil {
		// Reading to the end lets the connection be used again.
		_, err = io.Copy(io.Discard, io.LimitReader(body, maxAnswer))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(out); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("decode the daemon's answer to %s: %w", r.path, err)
	}
	return nil
}
