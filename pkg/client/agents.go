package client

import (
	"context"
	"net/http"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Agents lists the caller's agents; an operator's are everybody's.
func (c *Client) Agents(ctx context.Context) ([]api.Agent, error) {
	var out []api.Agent
	err := c.call(ctx, request{method: http.MethodGet, path: route("agents")}, &out)
	return out, err
}

// Agent returns one of them, by name or id.
func (c *Client) Agent(ctx context.Context, ref string) (*api.Agent, error) {
	return c.agent(ctx, request{method: http.MethodGet, path: route("agents", ref)})
}

// RevokeAgent ends an agent's sandboxes, and lets it have no more.
func (c *Client) RevokeAgent(ctx context.Context, ref string) (*api.Agent, error) {
	return c.agent(ctx, request{method: http.MethodPost, path: route("agents", ref, "revoke")})
}

// RestoreAgent takes that back.
func (c *Client) RestoreAgent(ctx context.Context, ref string) (*api.Agent, error) {
	return c.agent(ctx, request{method: http.MethodPost, path: route("agents", ref, "restore")})
}

// ExpireAgent sets until when an agent may run.
func (c *Client) ExpireAgent(ctx context.Context, ref string, req api.ExpireRequest) (*api.Agent, error) {
	return c.agent(ctx, request{method: http.MethodPost, path: route("agents", ref, "expire"), in: req})
}

func (c *Client) agent(ctx context.Context, r request) (*api.Agent, error) {
	var out api.Agent
	if err := c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return &out, nil
}
