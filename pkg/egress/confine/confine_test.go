package confine_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/egress/confine"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/seccomp"
)

// confinedUID is nobody's.
const confinedUID = 0x7FF1_0000

// TestProcess: a process that is confined can do its work and nothing else.
func TestProcess(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.Landlock, kerneltest.Program("go"))
	dir, err := os.MkdirTemp("", "creel-trial-") //nolint:usetesting // t.TempDir lets only root pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	trial := filepath.Join(dir, "trial")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", trial, "./internal/trial")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := func(cred *syscall.Credential) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), trial)
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return string(out)
	}
	if said := run(&syscall.Credential{Uid: confinedUID, Gid: confinedUID}); said != "" {
		t.Error(said)
	}
	if said := run(nil); !strings.Contains(said, "does not run as root") {
		t.Errorf("as root: %q", said)
	}
}

// TestProfile: the filter can be compiled for both architectures, and allows no
// more than what sandboxes may do, but for one call.
func TestProfile(t *testing.T) {
	p, err := confine.Profile()
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		if f, err := p.Compile(arch); err != nil || len(f) == 0 {
			t.Errorf("%s: %v", arch, err)
		}
	}
	if _, err := seccomp.CheckHost(p); err != nil {
		t.Error(err)
	}
}
