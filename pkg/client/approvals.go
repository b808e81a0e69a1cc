package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Approvals returns what waits for somebody to let it, of all sandboxes or of one;
// with all, what was decided as well.
func (c *Client) Approvals(ctx context.Context, ref string, all bool) ([]api.Approval, error) {
	q := url.Values{}
	if ref != "" {
		q.Set("sandbox", ref)
	}
	if all {
		q.Set("all", "true")
	}
	var out []api.Approval
	if err := c.call(ctx, request{method: http.MethodGet, path: route("approvals"), query: q}, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// DecideApproval answers one.
func (c *Client) DecideApproval(ctx context.Context, id string, d api.ApprovalDecision) (*api.Approval, error) {
	var out api.Approval
	if err := c.call(ctx, request{method: http.MethodPost, path: route("approvals", id), in: d}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// ForgetEgress takes back rules that were let for an agent, or all without any.
func (c *Client) ForgetEgress(ctx context.Context, ref string, rules []string) (*api.Agent, error) {
	return c.agent(ctx, request{method: http.MethodPost, path: route("agents", ref, "forget-egress"), in: api.ForgetRequest{Rules: rules}})
}
