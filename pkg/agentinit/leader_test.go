package agentinit_test

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// leaderEnv has this program go on without its main thread, for leaderless.
const leaderEnv = "CREEL_AGENTINIT_LEADERLESS"

const leaderless = 300 * time.Millisecond

func init() {
	if os.Getenv(leaderEnv) != "" {
		runtime.LockOSThread() // so that the main goroutine has the main thread
	}
}

// loseLeader ends the main thread, and the process later.
func loseLeader() {
	go func() {
		time.Sleep(leaderless)
		os.Exit(0)
	}()
	_, _, _ = syscall.Syscall(unix.SYS_EXIT, 0, 0, 0)
}

// TestTakeWithoutMainThread: a process whose main thread has ended has not, for
// its program may be about to be another one: the runtime's last step.
func TestTakeWithoutMainThread(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	pidfd := -1
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), leaderEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	defer func() { _, _ = cmd.Wait(), unix.Close(pidfd) }()
	_, err := agentinit.Take(deadline(t), pidfd)
	if !errors.Is(err, agentinit.ErrGone) || time.Since(began) < leaderless {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}
