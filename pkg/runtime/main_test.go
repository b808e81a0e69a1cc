package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/creel-sandbox/creel/pkg/mountns"
)

const scratchEnv = "CREEL_TEST_RUNTIME_DIR"

// scratch is a short directory (socket paths are limited to 107 bytes) on
// which the private mount namespace of this test binary is pinned.
var scratch string

// TestMain runs the tests where creeld runs: in a private mount namespace.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // what needs root is skipped by name
	}
	scratch = os.Getenv(scratchEnv)
	if scratch == "" {
		dir, err := os.MkdirTemp("/tmp", "creel-rt-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		if err := os.Chmod(dir, 0o711); err != nil { // runc walks through it as the sandbox's root
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(scratchEnv, dir)
		scratch = dir
	}
	if err := mountns.Enter(filepath.Join(scratch, "run")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := mountns.Unpin(filepath.Join(scratch, "run")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := os.RemoveAll(scratch); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
