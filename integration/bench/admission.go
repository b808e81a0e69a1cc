package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/store"
)

// What the store of the admission's host holds: of callers uids from
// firstCaller on, each with its share of the agents and of the sandboxes.
const (
	pastSandboxes = 10_000
	pastAgents    = 1000
	pastCallers   = 10
	firstCaller   = 0x7D00_0000
	boundCaller   = firstCaller + 1 // whose ceiling bounds images
)

// crowdedConfig keeps all of the past, sets every total, and gives every caller
// the ceiling that comes with creel, but for one: what images that one may have
// depends on whose they are.
var crowdedConfig = fmt.Sprintf(`[retention]
age = "0s"
per_user = 0
all = 0
log_bytes = "0"
evidence = 0
[limits.max]
sandboxes_per_user = 64
kept_per_user = 32768
memory = "1T"
cpus = 1024.0
pids = 1000000
disk = "1T"
[[caller]]
match = "default"
[[caller]]
match = "uid:%d"
images = ["box"]
`, boundCaller)

// decided are the steps of a launch that are its admission: the request is
// resolved and held against the ceiling and what the box has left; the rate is
// counted and a place is free; the sandbox is counted, if the totals have room,
// for an agent that may run. Its commits, of the intent to the audit log and of
// the record, are not among them.
var decided = []string{"admission", "queue", "totals"}

// admissionStage has callers with ceilings spawn on a host with a past, and
// root, who has no ceiling, on one without, in turn. The times are the
// launches' own, by their traces: they are what admission adds to a spawn, and
// nothing of the way there and back. Of two whole spawns the difference would
// be lost between them, and POST /v1/explain does more than a spawn's admission
// does: it looks the image up and writes each rule into its answer.
func (b *bench) admissionStage(ctx context.Context) (err error) {
	h, err := newHost(ctx, b.options, setup{first: crowdedID, last: lastOfAll, config: crowdedConfig, fill: fillStore})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.importImage(ctx, b.image); err != nil {
		return err
	}
	run, err := h.callers(b.options)
	if err != nil {
		return err
	}
	var took, bound, base []float64
	for i := range warm + b.n {
		for _, s := range []struct {
			host  *host
			spawn func() (*api.SpawnResult, error)
			list  *[]float64
		}{
			{h, func() (*api.SpawnResult, error) { return run(ctx, firstCaller) }, &took},
			{h, func() (*api.SpawnResult, error) { return run(ctx, boundCaller) }, &bound},
			{b.host, func() (*api.SpawnResult, error) { return b.Spawn(ctx, b.request()) }, &base},
		} {
			res, err := s.spawn()
			if err != nil {
				return err
			}
			ms, err := decision(res.Trace)
			if err := errors.Join(err, s.host.Remove(ctx, res.Sandbox.ID, true), s.host.settled(ctx, res.Sandbox.ID)); err != nil {
				return err
			}
			if i >= warm {
				*s.list = append(*s.list, ms)
			}
		}
	}
	kept, err := h.List(ctx, client.ListOptions{All: true})
	if err == nil && len(kept) != pastSandboxes {
		err = fmt.Errorf("the host has %d past sandboxes, want %d", len(kept), pastSandboxes)
	}
	if err != nil {
		return err
	}
	const baseline = "the same steps for root, with an empty store"
	b.report.add("admission", "ms", took, baseline, base, target{most: 1})
	b.report.add("admission.images", "ms", bound, baseline, base, target{})
	return nil
}

// decision is how long a launch's admission took, in ms, by its trace.
func decision(trace []api.Step) (sum float64, err error) {
	for _, name := range decided {
		i := slices.IndexFunc(trace, func(s api.Step) bool { return s.Name == name })
		if i < 0 {
			return 0, fmt.Errorf("the trace has no step %q", name)
		}
		sum += trace[i].Took
	}
	return sum, nil
}

// callers gives a function that spawns as one of the callers, of an agent that
// it has. The program is a copy, because the directory it is in may be closed to
// others.
func (h *host) callers(o options) (func(ctx context.Context, uid uint32) (*api.SpawnResult, error), error) {
	program, err := os.ReadFile(filepath.Join(o.bin, "creel"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(h.run, "creel")
	//nolint:gosec // for every caller, as the socket is
	if err := errors.Join(os.WriteFile(path, program, 0o700), os.Chmod(path, 0o755), os.Chmod(h.socket, 0o666)); err != nil {
		return nil, err
	}
	return func(ctx context.Context, uid uint32) (*api.SpawnResult, error) {
		cmd := exec.CommandContext(ctx, path, "--json", "run", "-d", "--trace", "--image", imageName, "--runtime", o.runtime, "--agent", agentOf(int(uid-firstCaller)), "--", "/bin/sleep", "86400")
		cmd.Env = []string{"CREEL_SOCKET=" + h.socket, "HOME=/"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: firstCaller}}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("creel run: %w: %s", err, stderr.Bytes())
		}
		res := &api.SpawnResult{}
		return res, json.Unmarshal(out, res)
	}, nil
}

// agentOf is the name of the agent that the sandbox of that number is of.
func agentOf(i int) string { return fmt.Sprintf("agent-%d", i%pastAgents) }

// fillStore makes a state file with a past: sandboxes that have ended and been
// cleaned up, and their agents.
func fillStore(path string) (err error) {
	s, err := store.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	began := time.Now().Add(-time.Hour).UTC()
	return s.Update(func(t *store.Tx) error {
		for i := range pastSandboxes {
			who := api.Caller{UID: firstCaller + uint32(i%pastCallers), GID: firstCaller}
			if i < pastAgents {
				a := api.Agent{ID: fmt.Sprintf("past%012d", i), Name: agentOf(i), Caller: who, State: "active", Created: began, LastUsed: began, Spawns: pastSandboxes / pastAgents}
				if err := t.PutAgent(a); err != nil {
					return err
				}
			}
			exit := 0
			req := api.SpawnRequest{Agent: agentOf(i), Image: imageName, Profile: "default", Runtime: "crun", Command: []string{"/bin/true"}}
			err := t.PutSandbox(store.Record{Request: req, Clean: true, Sandbox: api.Sandbox{
				ID: fmt.Sprintf("past%016d", i), Name: fmt.Sprintf("past-%d", i), Agent: req.Agent, AgentID: fmt.Sprintf("past%012d", i%pastAgents),
				Profile: "default", Image: imageName, Runtime: "crun", Rootfs: "readonly", Network: "none", Command: req.Command,
				State: api.StateStopped, Reason: api.ReasonExited, ExitCode: &exit,
				Limits: api.Limits{Memory: 512 << 20, CPUs: 2, Pids: 256}, Caller: who, HostUID: crowdedID, Created: began, Started: began, Ended: began,
			}})
			if err != nil {
				return err
			}
		}
		return nil
	})
}
