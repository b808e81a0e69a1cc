package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Forwarded is a connection to a server in a sandbox.
type Forwarded struct{ w *wire }

// Forward connects to a port of a sandbox's own loopback. Cancelling ctx breaks
// the connection. The caller closes it.
func (c *Client) Forward(ctx context.Context, ref string, port uint16) (*Forwarded, error) {
	r := request{path: route("sandboxes", ref, "forward"), query: url.Values{"port": {strconv.Itoa(int(port))}}}
	w, err := c.openWire(ctx, wireRequest{method: http.MethodPost, target: r.target(), upgrade: true})
	if err != nil {
		return nil, err
	}
	return &Forwarded{w}, nil
}

var _ io.ReadWriteCloser = (*Forwarded)(nil)

// Read implements io.Reader.
func (f *Forwarded) Read(p []byte) (int, error) { return f.w.r.Read(p) }

// Write implements io.Writer.
func (f *Forwarded) Write(p []byte) (int, error) { return f.w.conn.Write(p) }

// CloseWrite tells the server that nothing more comes.
func (f *Forwarded) CloseWrite() error { return f.w.conn.CloseWrite() }

// Close implements io.Closer.
func (f *Forwarded) Close() error { f.w.close(); return nil }

// AllowEgress has a running sandbox reach more than its request named.
func (c *Client) AllowEgress(ctx context.Context, ref string, rules []string) (*api.Sandbox, error) {
	var out api.Sandbox
	if err := c.post(ctx, ref, "egress", api.EgressRequest{Allow: rules}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
