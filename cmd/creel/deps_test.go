package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The command line starts for every exec, so what it links is what an exec
// waits for; and a client has no business with containerd.
func TestDependencies(t *testing.T) {
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), tool, "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		for _, never := range []string{
			"github.com/containerd/", "google.golang.org/", "go.etcd.io/", "github.com/creel-sandbox/creel/pkg/runtime",
			"github.com/creel-sandbox/creel/pkg/launcher", "github.com/creel-sandbox/creel/pkg/server", "testing",
			"github.com/modelcontextprotocol/", "github.com/creel-sandbox/creel/pkg/mcp",
			"github.com/google/go-containerregistry/", "github.com/docker/", "github.com/creel-sandbox/creel/pkg/imagepull",
		} {
			if dep == never || strings.HasSuffix(never, "/") && strings.HasPrefix(dep, never) {
				t.Errorf("creel links %s", dep)
			}
		}
	}
}
