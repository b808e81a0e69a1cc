package main

import (
	"os/exec"
	"strings"
	"testing"
)

// What speaks with registries is a client of the daemon, and nothing of the
// daemon is in it; nor is any of it in the daemon, which is root.
func TestDependencies(t *testing.T) {
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	registries := []string{
		"github.com/google/go-containerregistry/", "github.com/docker/", "github.com/creel-sandbox/creel/pkg/imagepull",
	}
	for program, nevers := range map[string][]string{
		".": {
			"github.com/containerd/", "google.golang.org/", "go.etcd.io/", "github.com/creel-sandbox/creel/pkg/runtime",
			"github.com/creel-sandbox/creel/pkg/launcher", "github.com/creel-sandbox/creel/pkg/server", "testing",
		},
		"../creeld":     append(registries, "github.com/creel-sandbox/creel/pkg/cli"),
		"../creel-init": registries,
		"../creel-mcp":  registries,
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
