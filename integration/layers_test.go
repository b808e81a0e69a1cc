package integration_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestEachLayerIsProven takes one layer of the isolation away at a time and
// sees the sandbox refused: by the proof, which names the control, or before
// that by a step that cannot work without the layer.
func TestEachLayerIsProven(t *testing.T) {
	l := lab.New(t, lab.Options{})
	req := api.SpawnRequest{Mounts: []api.Mount{
		{Source: workspace(t), Target: "/workspace", ReadOnly: true},
		{Source: workspace(t), Target: "/workspace/src", ReadOnly: true},
	}}
	countsSwap := func() error {
		sb := l.Spawn(req)
		defer l.Remove(t.Context(), sb.ID, true)
		ev, err := l.Evidence(t.Context(), sb.ID, false)
		if err != nil {
			return err
		}
		for _, c := range ev[0].Controls {
			if c.Name == "cgroup.memory.swap.max" || c.Name == "cgroup.memory.memsw.limit_in_bytes" {
				return nil
			}
		}
		return errors.New("the kernel does not count swap")
	}
	tests := []struct {
		layer   string // see pkg/weaken
		control string // not ok in the evidence, this one or below it
		step    string // that refuses it before the proof
		need    func() error
	}{
		{layer: "userns", control: "idmap.uid"},
		{layer: "pidns", step: "task"}, // the runtime cannot mount /proc of a namespace it does not own
		{layer: "ipc", control: "namespace.ipc"},
		{layer: "uts", control: "namespace.uts"},
		{layer: "cgroupns", control: "namespace.cgroup"},
		{layer: "net", control: "namespace.net"},
		{layer: "netown", control: "namespace.net"},
		{layer: "uid", control: "uid"},
		{layer: "groups", control: "groups"},
		{layer: "caps", control: "caps.bounding"},
		{layer: "nnp", control: "no_new_privs"},
		{layer: "seccomp", control: "seccomp.mode"},
		{layer: "seccomp.content", control: "seccomp.filter"},
		{layer: "execs", control: "exec_isolation", need: kerneltest.Landlock.Probe},
		{layer: "keyring", control: "keyring.session"},
		{layer: "dumpable", control: "exe.unreadable"},
		{layer: "exe", control: "exe"},
		{layer: "rlimit", control: "rlimit.nofile"},
		{layer: "oom", control: "oom_score_adj"},
		{layer: "root", control: "mount./"},
		{layer: "root.nosuid", control: "mount./"},
		{layer: "root.nodev", control: "mount./"},
		{layer: "tmp.nosuid", control: "mount./tmp"},
		{layer: "tmp.nodev", control: "mount./tmp"},
		{layer: "tmp.size", control: "mount./tmp"},
		{layer: "masked", control: "mount./proc/keys"},
		{layer: "readonly", control: "mount./proc/sys"},
		{layer: "extramount", control: "mounts.closed"},
		{layer: "shared", control: "mounts.private"},
		{layer: "memory", control: "cgroup.memory."},
		{layer: "pids", control: "cgroup.pids."},
		{layer: "cpu", control: "cgroup.cpu."},
		{layer: "swap", control: "cgroup.memory.", need: countsSwap},
		{layer: "devices", control: "cgroup.devices.list", need: kerneltest.CgroupV1.Probe},
		{layer: "cgroup", step: "start"}, // there is no cgroup of the sandbox to divide
		{layer: "mntns", step: "task"},   // the runtime has no right to mount in the one it is in
		{layer: "net.link", control: "network.links"},
		{layer: "net.route", control: "network.routes"},
		{layer: "unix_peers", control: "unix_peers", need: kerneltest.BPFLSM.Probe},
		{layer: "fd", control: "descriptors", need: kerneltest.Landlock.Probe},
		{layer: "mount.none", control: "mount./workspace"},
		{layer: "mount.other", control: "mount./workspace"},
		{layer: "mount.idmap", control: "mount./workspace"},
		{layer: "mount.nosuid", control: "mount./workspace"},
		{layer: "mount.nodev", control: "mount./workspace"},
		{layer: "mount.ro", control: "mount./workspace"},
		{layer: "mount.ro", control: "mount./workspace/src"},
		{layer: "mount.nested", control: "mount./workspace/src"},
	}
	for _, tt := range tests {
		t.Run(tt.layer, func(t *testing.T) {
			if tt.need != nil {
				kerneltest.Require(t, kerneltest.Need{Name: "layer-" + tt.layer, Probe: tt.need})
			}
			l.Fail("layer." + tt.layer + " on")
			defer l.Fail()
			res, err := l.Client.Spawn(t.Context(), req)
			if err == nil {
				t.Errorf("sandbox %s runs without it", res.Sandbox.ID)
				if err := l.Remove(t.Context(), res.Sandbox.ID, true); err != nil {
					t.Error(err)
				}
				return
			}
			switch e := asAPI(t, err); {
			case tt.step != "":
				if log := l.LogTail(3); !strings.Contains(log, `error="`+tt.step+": ") {
					t.Errorf("want step %s to refuse it, is %v:\n%s", tt.step, e, log)
				}
			case e.Code != api.CodeNotProven:
				t.Errorf("want %s, is %s: %v\n%s", api.CodeNotProven, e.Code, e, l.LogTail(3))
			default:
				refusedFor(t, e, tt.control)
			}
			l.NothingLeft()
		})
	}
	// The layers were the only reason.
	sb := l.Spawn(req)
	ev, err := l.Evidence(t.Context(), sb.ID, true)
	if err != nil || len(ev) != 2 || !ev[0].OK || !ev[1].OK {
		t.Errorf("evidence %+v, %v", ev, err)
	}
}

// refusedFor holds a refusal to its evidence: the control is in it, is not
// ok, and is named in the message.
func refusedFor(t *testing.T, e *api.Error, control string) {
	t.Helper()
	if e.Evidence == nil || e.Evidence.OK {
		t.Fatalf("no evidence, or one that is ok, with %v", e)
	}
	var failed []string
	for _, c := range e.Evidence.Controls {
		if c.OK {
			continue
		}
		failed = append(failed, c.Name)
		if !strings.Contains(e.Message, c.Name) {
			t.Errorf("control %s is not ok and not in the message %q", c.Name, e.Message)
		}
	}
	for _, f := range failed {
		if f == control || strings.HasSuffix(control, ".") && strings.HasPrefix(f, control) {
			return
		}
	}
	t.Errorf("refused for %q, not for %s", failed, control)
}
