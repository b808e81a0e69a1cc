package cli_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cli"
)

// TestMCP is what the flags come to, and which there are not.
func TestMCP(t *testing.T) {
	base := cli.MCPOptions{Timeout: 10 * time.Minute, Sandboxes: 8}
	full := cli.MCPOptions{
		Timeout: time.Minute, Sandboxes: 2, Keep: true, All: true,
		Spawn: api.SpawnRequest{
			Image: "dev", Profile: "strict", Env: map[string]string{"A": "b"}, Labels: map[string]string{"k": "v"},
			Mounts: []api.Mount{{Source: "/a", Target: "/b", ReadOnly: true}}, Limits: api.Limits{Memory: 1 << 30},
		},
	}
	tests := []struct {
		line string
		want cli.MCPOptions
		code int
		says string
	}{
		{line: "mcp", want: base},
		{line: "mcp -v /a:/b:ro --image dev --profile strict -e A=b --label k=v --memory 1G --timeout 1m --sandboxes 2 --keep --all", want: full},
		{line: "mcp --name x", code: 2, says: "unknown flag: --name"},
		{line: "mcp -d", code: 2, says: "unknown shorthand"},
		{line: "mcp -f request.json", code: 2, says: "unknown shorthand"},
		{line: "mcp bash", code: 2, says: "usage: creel mcp"},
		{line: "mcp -v /a", code: 2, says: "SRC:DST"},
		{line: "mcp --sandboxes 0", code: 2, says: "1 to 64"},
		{line: "mcp --sandboxes 65 --timeout 0s", code: 2, says: "1s to 24h"},
		{line: "ps", code: 2, says: `unknown verb "ps"`},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			var got cli.MCPOptions
			var out, errOut bytes.Buffer
			code := cli.MainMCP(t.Context(), strings.Fields(tt.line), cli.Stdio{Out: &out, Err: &errOut}, func(_ context.Context, o cli.MCPOptions) error {
				got = o
				return nil
			})
			if code != tt.code || !strings.Contains(errOut.String(), tt.says) || out.Len() > 0 {
				t.Errorf("code %d, %q and %q; want %d, %q", code, out.String(), errOut.String(), tt.code, tt.says)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(cli.MCPOptions{}, "Client")); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
	var errOut bytes.Buffer
	code := cli.MainMCP(t.Context(), []string{"mcp"}, cli.Stdio{Err: &errOut}, func(context.Context, cli.MCPOptions) error {
		return errors.New("broken")
	})
	if code != 1 || !strings.Contains(errOut.String(), "broken") {
		t.Errorf("a session that fails: %d, %q", code, errOut.String())
	}
	// creel itself has no server, and the test has none beside it.
	errOut.Reset()
	if code := cli.Main(t.Context(), []string{"mcp"}, cli.Stdio{Err: &errOut}); code != 1 || !strings.Contains(errOut.String(), "install creel again") {
		t.Errorf("without creel-mcp: %d, %q", code, errOut.String())
	}
}
