package integration_test

import (
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestExistingContainerd runs proven sandboxes through a containerd that was
// there before creeld, and refuses what that one could not see.
func TestExistingContainerd(t *testing.T) {
	l := lab.New(t, lab.Options{Foreign: true})
	sb := l.Spawn(api.SpawnRequest{})
	if out, res := l.Sh(sb.ID, "echo seen"); res.ExitCode != 0 || out != "seen\n" {
		t.Errorf("exec: %q, %+v", out, res)
	}
	ev, err := l.Evidence(t.Context(), sb.ID, false)
	if err != nil || len(ev) == 0 || !ev[0].OK {
		t.Errorf("evidence: %+v, %v", ev, err)
	}
	_, err = l.Client.Spawn(t.Context(), api.SpawnRequest{Rootfs: "ephemeral"})
	if api.CodeOf(err) != api.CodeUnsupportedHost {
		t.Errorf("a writable root: %v", err)
	}
}
