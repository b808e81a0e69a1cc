// Package server is creeld's HTTP API on its Unix socket: routes, peer
// credentials, limits on callers, and the mapping of errors to HTTP.
//
// It holds no state of sandboxes and takes no decision about them: a request
// is decoded strictly, given to a Service with the caller that the kernel
// named, and the answer is encoded. docs/api.md describes the wire;
// pkg/api/openapi.yaml is held against the route table by a test.
package server
