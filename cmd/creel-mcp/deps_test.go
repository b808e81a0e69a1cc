package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The server is a client of the daemon, and nothing of the daemon is in it;
// nor is anything of the protocol in the daemon, which is root.
func TestDependencies(t *testing.T) {
	const protocol = "github.com/modelcontextprotocol/"
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	for program, nevers := range map[string][]string{
		".": {
			"github.com/containerd/", "google.golang.org/", "go.etcd.io/", "github.com/creel-sandbox/creel/pkg/runtime",
			"github.com/creel-sandbox/creel/pkg/launcher", "github.com/creel-sandbox/creel/pkg/server", "testing",
		},
		"../creeld":     {protocol, "github.com/google/jsonschema-go/", "github.com/segmentio/", "github.com/creel-sandbox/creel/pkg/mcp", "github.com/creel-sandbox/creel/pkg/cli"},
		"../creel-init": {protocol, "github.com/creel-sandbox/creel/pkg/mcp"},
	} {
		out, err := exec.CommandContext(t.Context(), tool, "list", "-deps", program).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", program, err)
		}
		for dep := range strings.Lines(string(out)) {
			dep = strings.TrimSpace(dep)
			for _, never := range nevers {
				if dep == never || strings.HasSuffix(never, "/") && strings.HasPrefix(dep, never) {
					t.Errorf("%s links %s", program, dep)
				}
			}
		}
	}
}
