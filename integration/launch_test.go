// Package integration_test runs creel as it is: a real daemon, a real containerd
// and real sandboxes, attacked from all sides. Nothing is faked.
package integration_test

import (
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

func TestLaunch(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "first"})
	out, res := l.Sh(sb.ID, "id -u; pwd; echo $HOME")
	if res.ExitCode != 0 || strings.Join(strings.Fields(out), " ") != "1000 /home/agent /home/agent" {
		t.Errorf("output %q, result %+v", out, res)
	}
	out, errOut, code := l.Creel("run", "--rm", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
	if out != "out\n" || !strings.Contains(errOut, "err\n") || code != 7 {
		t.Errorf("run: %q, %q, %d", out, errOut, code)
	}
}
