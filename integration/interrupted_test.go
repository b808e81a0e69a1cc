package integration_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestStoppedWhileStarting stops a daemon that is still taking sandboxes over,
// as "systemctl restart" twice does. They are the next one's.
func TestStoppedWhileStarting(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	l.Kill()
	// A PID 1 that does not answer keeps the daemon waiting for it.
	if err := unix.Kill(sb.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l.Begin()
	started := time.Now()
	l.Eventually("the daemon asks PID 1", 20*time.Second, func() error {
		// It does so within a moment of having its containerd.
		if l.ContainerdPID() == 0 || time.Since(started) < 3*time.Second {
			return errors.New("not yet")
		}
		return nil
	})
	l.Stop()
	if last := l.LogTail(1); !strings.Contains(last, "stopped while it started") {
		t.Errorf("the last it said: %s", last)
	}
	if err := unix.Kill(sb.PID, unix.SIGCONT); err != nil {
		t.Fatalf("PID 1 of the sandbox: %v", err)
	}
	l.Start()
	now, err := l.Inspect(t.Context(), sb.ID)
	if err != nil || now.State != api.StateRunning || now.PID != sb.PID {
		t.Fatalf("the sandbox is %+v, %v", now, err)
	}
	if out, res := l.Sh(sb.ID, "echo here"); out != "here\n" || res.ExitCode != 0 {
		t.Errorf("exec: %q, %+v", out, res)
	}
}
