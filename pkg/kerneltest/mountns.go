package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Child is in the environment of a test binary that stays in the mount
// namespace where it was started.
const Child = "CREEL_TEST_CHILD=1"

// InMountNamespace is a TestMain: it runs the tests in a mount namespace of
// their own, which takes every mount they make with it. Tests of an ordinary
// user cannot mount and run as they are.
func InMountNamespace(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("CREEL_TEST_CHILD") != "" {
		os.Exit(m.Run())
	}
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...) //nolint:gosec // it is this test itself
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), Child)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
