package integration_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestLimitsThatEnd names what ended a sandbox, in the answer of wait, on
// record and in the event.
func TestLimitsThatEnd(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	second := api.Duration(time.Second)
	for _, tt := range []struct {
		name   string
		req    api.SpawnRequest
		reason api.Reason
		code   int
	}{
		{"exit", api.SpawnRequest{Command: sh("exit 3")}, api.ReasonExited, 3},
		{"signal", api.SpawnRequest{Command: sh("kill -TERM $$")}, api.ReasonExited, 143},
		{"memory", api.SpawnRequest{Command: sh("exec " + eat), Limits: api.Limits{Memory: 48 << 20}}, api.ReasonOOM, 137},
		{"memory of a child", api.SpawnRequest{Command: sh("(" + eat + "); sleep 1000"), Limits: api.Limits{Memory: 48 << 20}}, api.ReasonOOM, 137},
		{"output", api.SpawnRequest{Command: sh("yes"), Limits: api.Limits{OutputRate: 1 << 20}}, api.ReasonOutput, 137},
		{"ttl", api.SpawnRequest{Command: sh("sleep 1000"), Limits: api.Limits{TTL: second}}, api.ReasonTTL, 137},
		{"ttl without a command", api.SpawnRequest{Limits: api.Limits{TTL: second}}, api.ReasonTTL, 137},
		{"time limit", api.SpawnRequest{Command: sh("trap '' TERM; sleep 1000"), Timeout: second}, api.ReasonTimeout, 124},
		{"idle", api.SpawnRequest{Command: sh("sleep 1000"), Limits: api.Limits{Idle: second, OnIdle: "stop"}}, api.ReasonIdle, 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			sb := l.Spawn(tt.req)
			res, err := l.Wait(deadline(t), sb.ID)
			if err != nil || res.State != api.StateStopped || res.Reason != tt.reason || res.ExitCode != tt.code {
				t.Errorf("after %v: %+v, %v", time.Since(began), res, err)
			}
			got, err := l.Inspect(t.Context(), sb.ID)
			if err != nil || got.Reason != tt.reason || got.ExitCode == nil || *got.ExitCode != tt.code {
				t.Errorf("inspect: %+v, %v", got, err)
			}
			if e := event(t, l, sb.ID, "sandbox.stopped", nil); e.Fields["reason"] != string(tt.reason) {
				t.Errorf("event: %+v", e)
			}
		})
	}
}

// TestIdleIsPaused stops the clock of a sandbox nobody uses, and no work that
// goes on; the next command wakes it.
func TestIdleIsPaused(t *testing.T) {
	l := lab.New(t, lab.Options{})
	idle := api.Limits{Idle: api.Duration(time.Second), OnIdle: "pause"}
	works := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sh", "-c", "while :; do :; done"}, Limits: idle})
	used := l.Spawn(api.SpawnRequest{Limits: idle})
	client, err := l.StartExec(deadline(t), used.ID, api.ExecRequest{Command: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	waits := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sleep", "1000"}, Limits: idle})
	for range 2 {
		l.Eventually("the sandbox is paused", 30*time.Second, func() error {
			got, err := l.Inspect(t.Context(), waits.ID)
			if err == nil && got.State != api.StatePaused {
				err = fmt.Errorf("it is %s", got.State)
			}
			return err
		})
		if out, res := l.Sh(waits.ID, "echo awake"); out != "awake\n" || res.ExitCode != 0 {
			t.Errorf("%q, %+v", out, res)
		}
		state(t, l, waits.ID, api.StateRunning)
	}
	if e := event(t, l, waits.ID, "sandbox.paused", nil); e.Fields["idle"] != "true" {
		t.Errorf("event: %+v", e)
	}
	state(t, l, works.ID, api.StateRunning)
	state(t, l, used.ID, api.StateRunning)
}

func state(t *testing.T, l *lab.Lab, id string, want api.State) {
	t.Helper()
	if got, err := l.Inspect(t.Context(), id); err != nil || got.State != want {
		t.Errorf("%s is %s, want %s: %v", id, got.State, want, err)
	}
}
