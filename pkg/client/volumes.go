package client

import (
	"context"
	"net/http"

	"github.com/creel-sandbox/creel/pkg/api"
)

// CreateVolume makes a volume of one agent's.
func (c *Client) CreateVolume(ctx context.Context, req api.VolumeRequest) (*api.Volume, error) {
	var out api.Volume
	if err := c.call(ctx, request{method: http.MethodPost, path: route("volumes"), in: req}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Volumes lists the caller's volumes.
func (c *Client) Volumes(ctx context.Context) ([]api.Volume, error) {
	var out []api.Volume
	err := c.call(ctx, request{method: http.MethodGet, path: route("volumes")}, &out)
	return out, err
}

// Volume returns one of them.
func (c *Client) Volume(ctx context.Context, name string) (*api.Volume, error) {
	var out api.Volume
	if err := c.call(ctx, request{method: http.MethodGet, path: route("volumes", name)}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// RemoveVolume removes a volume that no sandbox uses, with all that is in it.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: route("volumes", name)}, nil)
}

// SetSecret gives a secret a value, new or in place of what it had.
func (c *Client) SetSecret(ctx context.Context, name string, req api.SecretRequest) (*api.Secret, error) {
	var out api.Secret
	if err := c.call(ctx, request{method: http.MethodPut, path: route("secrets", name), in: req}, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Secrets lists the caller's own and those of the box's that it may use, without
// their values.
func (c *Client) Secrets(ctx context.Context) ([]api.Secret, error) {
	var out []api.Secret
	err := c.call(ctx, request{method: http.MethodGet, path: route("secrets")}, &out)
	return out, err
}

// RemoveSecret forgets one. No request goes out with it when it returns.
func (c *Client) RemoveSecret(ctx context.Context, name string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: route("secrets", name)}, nil)
}
