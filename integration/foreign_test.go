package integration_test

import (
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestExistingContainerd runs proven sandboxes through a containerd that was
// there before creeld: with host directories and a writable root, which its
// shims see because creeld stays in its mount namespace, and across a kill of
// creeld.
func TestExistingContainerd(t *testing.T) {
	l := lab.New(t, lab.Options{Foreign: true})
	sb := l.Spawn(everything(t, l))
	const look = "cat /workspace/src/precious /home/agent/kept"
	if out, res := l.Sh(sb.ID, "echo kept >/home/agent/kept; "+look); res.ExitCode != 0 || out != "the user's\nkept\n" {
		t.Errorf("exec: %q, %+v", out, res)
	}
	ev, err := l.Evidence(t.Context(), sb.ID, false)
	if err != nil || len(ev) == 0 || !ev[0].OK {
		t.Errorf("evidence: %+v, %v", ev, err)
	}
	l.Kill()
	l.Start()
	if out, res := l.Sh(sb.ID, look); out != "the user's\nkept\n" {
		t.Errorf("after a kill of creeld: %q, %+v", out, res)
	}
}

// TestBlindContainerd refuses, with a containerd in a mount namespace of its
// own, what that one could not see, and runs the rest.
func TestBlindContainerd(t *testing.T) {
	l := lab.New(t, lab.Options{Foreign: true, Blind: true})
	sb := l.Spawn(api.SpawnRequest{})
	if out, res := l.Sh(sb.ID, "echo seen"); res.ExitCode != 0 || out != "seen\n" {
		t.Errorf("exec: %q, %+v", out, res)
	}
	for _, req := range []api.SpawnRequest{{Rootfs: "ephemeral"}, everything(t, l)} {
		if _, err := l.Client.Spawn(t.Context(), req); api.CodeOf(err) != api.CodeUnsupportedHost {
			t.Errorf("spawn %+v: %v", req, err)
		}
	}
}
