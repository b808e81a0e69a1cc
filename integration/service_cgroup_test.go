package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// control reads a file of a sandbox's cgroup.
func (s *service) control(id, file string) string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.root(), id, file))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// TestServiceLimits reads the limits of a sandbox back from the unit's own
// part of the cgroup tree, and finds them all in the proof.
func TestServiceLimits(t *testing.T) {
	s := newService(t)
	res := s.spawn(api.SpawnRequest{Limits: api.Limits{Memory: 128 << 20, Pids: 50, CPUs: 0.5, Tmp: 32 << 20}})
	id := res.Sandbox.ID
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", res.Sandbox.PID))
	if err != nil {
		t.Fatal(err)
	}
	if want := "0::" + strings.TrimPrefix(s.root(), cgroupTop) + "/" + id + "/init"; strings.TrimSpace(string(own)) != want {
		t.Errorf("PID 1 is in %q, want %q", own, want)
	}
	for file, want := range map[string]string{
		"memory.max": "142606336", // and the reserve of PID 1
		"pids.max":   "82", "cpu.max": "50000 100000", "memory.swap.max": "0",
		"agent/memory.max": "134217728", "agent/pids.max": "50", "agent/memory.swap.max": "0",
	} {
		if got := s.control(id, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if !res.Evidence.OK {
		t.Errorf("evidence: %s", failed(res.Evidence))
	}
	observed := map[string]string{}
	for _, c := range res.Evidence.Controls {
		observed[c.Name] = c.Observed
	}
	for name, want := range map[string]string{
		"cgroup.member.unified": id + "/init", "cgroup.devices": "1 attached",
		"cgroup.agent.memory.max": "134217728", "cgroup.agent.pids.max": "50", "cgroup.cpu.max": "50000 100000",
		"lsm.label": "unconfined", // AppArmor is active here, without a profile of creel's
	} {
		if got, ok := observed[name]; !ok || !strings.Contains(got, want) {
			t.Errorf("control %s: observed %q, want %q in it", name, got, want)
		}
	}
	for _, w := range res.Evidence.Weaker {
		t.Logf("weaker: %s", w)
		if strings.Contains(w, "v1") {
			t.Errorf("weaker as on cgroup v1: %s", w)
		}
	}
}

// TestServiceOOM: an exec that is out of memory ends as a whole, because its
// cgroup is one group to the OOM killer; its neighbour and PID 1 go on.
func TestServiceOOM(t *testing.T) {
	s := newService(t)
	sb := s.spawn(api.SpawnRequest{Limits: api.Limits{Memory: 64 << 20, Tmp: 8 << 20}}).Sandbox
	neighbour, err := s.StartExec(t.Context(), sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "600"}})
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Close()
	hungry, err := s.StartExec(t.Context(), sb.ID, api.ExecRequest{Command: []string{
		"/bin/sh", "-c", "sleep 600 & sleep 600 & read go && dd if=/dev/zero of=/dev/null bs=200M count=1",
	}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.control(sb.ID, "agent/exec-"+hungry.ID()+"/memory.oom.group"); got != "1" {
		t.Errorf("memory.oom.group is %q", got)
	}
	res, err := hungry.Run(client.Stdio{In: strings.NewReader("go\n"), Out: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if res.Reason != api.ReasonOOM || res.ExitCode != 137 {
		t.Errorf("result %+v, want reason oom and exit code 137", res)
	}
	if got := s.control(sb.ID, "agent/exec-"+neighbour.ID()+"/cgroup.procs"); len(strings.Fields(got)) != 1 {
		t.Errorf("the neighbour's processes are %q, want its command", got)
	}
	if now, err := s.Inspect(t.Context(), sb.ID); err != nil || now.State != api.StateRunning {
		t.Errorf("the sandbox is %+v, %v", now, err)
	}
}

// TestServiceKillsTree: a client that goes away takes all its exec started
// with it, daemonised or not, and nothing else.
func TestServiceKillsTree(t *testing.T) {
	s := newService(t)
	sb := s.spawn(api.SpawnRequest{}).Sandbox
	neighbour, err := s.StartExec(t.Context(), sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "600"}})
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, err := s.StartExec(ctx, sb.ID, api.ExecRequest{Command: []string{
		"/bin/sh", "-c", "(setsid sh -c 'sleep 601 & sleep 602' &) ; sleep 603 & exec sleep 604",
	}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.root(), sb.ID, "agent", "exec-"+p.ID())
	if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil {
		t.Fatal(err)
	}
	s.eventually("the tree has grown", func() error {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if n := len(strings.Fields(string(procs))); err == nil && n < 4 {
			err = fmt.Errorf("%d processes", n)
		}
		return err
	})
	cancel()
	p.Close()
	began := time.Now()
	s.eventually("the exec's cgroup is gone", func() error {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("it has processes %q (%v)", procs, err) //nolint:errorlint // it may be nil
	})
	t.Logf("gone %s after its client", time.Since(began))
	if got := s.control(sb.ID, "agent/exec-"+neighbour.ID()+"/cgroup.procs"); len(strings.Fields(got)) != 1 {
		t.Errorf("the neighbour's processes are %q, want its command", got)
	}
}
