package integration_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestLingeringExec leaves a process behind an exec. It may go on; when it has
// ended nothing of the exec stays, though the sandbox does.
func TestLingeringExec(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	cgroups := func() (out []string) {
		name := filepath.Base(l.Dir)
		for _, top := range []string{"/sys/fs/cgroup/*/" + name, "/sys/fs/cgroup/" + name + "/sandboxes"} {
			dirs, err := filepath.Glob(top + "/" + sb.ID + "/agent/exec-*")
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, dirs...)
		}
		return out
	}
	if out, res := l.Sh(sb.ID, "setsid sleep 5 >/dev/null 2>&1 & echo left"); out != "left\n" || res.ExitCode != 0 {
		t.Fatalf("%q, %+v", out, res)
	}
	if len(cgroups()) == 0 {
		t.Error("what the exec left behind has no cgroup")
	}
	l.Eventually("the cgroup goes when its last process has ended", time.Minute, func() error {
		if left := cgroups(); len(left) > 0 {
			return fmt.Errorf("%q", left)
		}
		return nil
	})
}
