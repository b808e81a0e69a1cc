package mcp

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/creel-sandbox/creel/pkg/api"
)

// toolsJSON describes the tools as the client sees them: arguments, with
// bounds that the library holds every call to before the tool runs.
//
//go:embed tools.json
var toolsJSON []byte

func (s *server) newServer() (*sdk.Server, error) {
	var list []*sdk.Tool
	if err := json.Unmarshal(toolsJSON, &list); err != nil {
		return nil, fmt.Errorf("tools.json: %w", err)
	}
	tools := map[string]*sdk.Tool{}
	for _, t := range list {
		tools[t.Name] = t
	}
	srv := sdk.NewServer(&sdk.Implementation{Name: "creel", Version: api.BuildVersion}, &sdk.ServerOptions{
		Instructions: s.instructions(),
		Capabilities: &sdk.ServerCapabilities{Tools: &sdk.ToolCapabilities{}},
	})
	srv.AddReceivingMiddleware(s.guard)
	add(srv, tools["run"], s.run)
	add(srv, tools["exec"], s.exec)
	add(srv, tools["read"], s.read)
	add(srv, tools["write"], s.write)
	add(srv, tools["list"], s.list)
	add(srv, tools["logs"], s.logs)
	add(srv, tools["stop"], s.stop)
	add(srv, tools["remove"], s.remove)
	return srv, nil
}

// add is a tool whose errors have their code in front.
func add[In, Out any](srv *sdk.Server, t *sdk.Tool, fn func(context.Context, In) (Out, error)) {
	sdk.AddTool(srv, t, func(ctx context.Context, _ *sdk.CallToolRequest, in In) (*sdk.CallToolResult, Out, error) {
		out, err := fn(ctx, in)
		return nil, out, explained(err)
	})
}

// explained is what the model is told: the class, the message, each problem
// and the hint, as the daemon gave them.
func explained(err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return fmt.Errorf("%s: %w", e.Code, err)
	}
	return err
}

// instructions tell the model what its sandboxes are.
func (s *server) instructions() string {
	var b strings.Builder
	b.WriteString("Commands run in sandboxes on this machine, as user agent, with limits on memory, processors, processes and time.")
	for _, m := range s.Spawn.Mounts {
		access := "read and write"
		switch {
		case m.ReadOnly:
			access = "read-only"
		case m.Protect:
			access += ", but git hooks, CI, editor and shell configuration in it are read-only"
		}
		fmt.Fprintf(&b, " %s (%s) is a directory of the user's, the same in every sandbox.", m.Target, access)
	}
	b.WriteString(" Everything else in a sandbox is gone when it is removed.")
	if s.Keep {
		return b.String()
	}
	b.WriteString(" All are removed when this server ends.")
	return b.String()
}

// guard bounds calls in number, ends them with the session, and bounds the
// text of errors, in which the library repeats arguments.
func (s *server) guard(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		if method != "tools/call" {
			return next(ctx, method, req)
		}
		if err := s.begin(); err != nil {
			refused := &sdk.CallToolResult{}
			refused.SetError(explained(err))
			return refused, nil
		}
		defer s.done()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		res, err := next(ctx, method, req)
		if answer, ok := res.(*sdk.CallToolResult); ok && answer != nil && answer.IsError {
			for _, c := range answer.Content {
				if text, ok := c.(*sdk.TextContent); ok {
					text.Text = clip(text.Text, maxError)
				}
			}
		}
		return res, err
	}
}
