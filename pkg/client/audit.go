package client

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/creel-sandbox/creel/pkg/api"
)

// AuditOptions select lines of the audit log; see docs/audit.md for a line.
type AuditOptions struct {
	// Since and Until are times as RFC 3339, or how long ago such as "10m".
	Since, Until                 string
	Kind, Action, Agent, Sandbox string
	Caller                       *uint32
	// Follow goes on with what comes.
	Follow bool
	// All is the whole log as it is in its files, for root.
	All bool
}

func (o AuditOptions) query() url.Values {
	q := url.Values{}
	for k, v := range map[string]string{"since": o.Since, "until": o.Until, "kind": o.Kind, "action": o.Action, "agent": o.Agent, "sandbox": o.Sandbox} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if o.Caller != nil {
		q.Set("caller", strconv.FormatUint(uint64(*o.Caller), 10))
	}
	for k, v := range map[string]bool{"follow": o.Follow, "all": o.All} {
		if v {
			q.Set(k, "true")
		}
	}
	return q
}

// maxAuditLine is more than the daemon writes, in bytes.
const maxAuditLine = 256 << 10

// AuditLog gives lines of the audit log to emit, each a JSON object; line is
// valid during the call only.
func (c *Client) AuditLog(ctx context.Context, o AuditOptions, emit func(line []byte) error) error {
	body, err := c.do(ctx, request{method: http.MethodGet, path: route("audit"), query: o.query()})
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	in := bufio.NewScanner(body)
	in.Buffer(make([]byte, 0, 64<<10), maxAuditLine)
	for in.Scan() {
		if err := emit(in.Bytes()); err != nil {
			return err
		}
	}
	return readError(ctx, in.Err())
}

// ExportAudit copies the whole audit log to w. It is for root.
func (c *Client) ExportAudit(ctx context.Context, w io.Writer) error {
	body, err := c.do(ctx, request{method: http.MethodGet, path: route("audit"), query: AuditOptions{All: true}.query()})
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	_, err = io.Copy(w, body)
	return readError(ctx, err)
}

// AuditHead returns the audit log's last signed head. It is for root.
func (c *Client) AuditHead(ctx context.Context) (*api.AuditHead, error) {
	var out api.AuditHead
	if err := c.call(ctx, request{method: http.MethodGet, path: route("audit", "head")}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
