package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestServiceRestart ends the daemon in each way while a sandbox runs and
// writes. The sandbox goes on, the next daemon takes it over and proves it
// again, and no line of its output is lost.
func TestServiceRestart(t *testing.T) {
	s := newService(t)
	sb := s.spawn(api.SpawnRequest{Name: "survivor", Network: "policy", Egress: []string{"tcp host.creel.internal:9"}, Command: []string{
		"/bin/sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); usleep 300000; done",
	}}).Sandbox
	// What serves its network is not as safe from the OOM killer as the unit.
	found := 0
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range comms {
		if comm, err := os.ReadFile(f); err != nil || string(comm) != "creel-egress\n" {
			continue
		}
		found++
		if adj, err := os.ReadFile(filepath.Join(filepath.Dir(f), "oom_score_adj")); err != nil || string(adj) != "0\n" {
			t.Errorf("creel-egress's OOM score is adjusted by %s, %v", adj, err)
		}
	}
	if found == 0 {
		t.Error("no creel-egress runs")
	}
	for _, tt := range []struct {
		name string
		end  func(*service)
	}{
		{"restart", func(s *service) { s.systemctl("restart", unit) }},
		{"stop and start", func(s *service) {
			s.systemctl("stop", unit)
			if got := s.property(unit, "Result"); got != "success" {
				s.t.Errorf("stopped, the unit's result is %s", got)
			}
			if err := unix.Kill(sb.PID, 0); err != nil {
				s.t.Fatalf("with the service stopped, PID 1: %v", err)
			}
			s.systemctl("start", unit)
		}},
		{"kill", (*service).crash},
		{"kill again", (*service).crash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &service{s.Client, t}
			before := s.mainPID()
			tt.end(s)
			if now := s.mainPID(); now == before || now == 0 {
				t.Fatalf("the daemon is pid %d, was %d", now, before)
			}
			s.adopted(sb)
		})
	}
	if t.Failed() {
		return
	}
	// Two sandboxes and a daemon that was started beside them.
	other := s.spawn(api.SpawnRequest{Name: "newcomer"}).Sandbox
	if out, res := s.sh(other.ID, "echo here"); out != "here\n" || res.ExitCode != 0 {
		t.Errorf("exec in a new sandbox: %q, %+v", out, res)
	}
}

// crash kills the daemon and waits until systemd has started another.
func (s *service) crash() {
	s.t.Helper()
	pid := s.mainPID()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("systemd starts creeld again", func() error {
		if now := s.mainPID(); now == pid || now == 0 {
			return fmt.Errorf("main pid %d", now)
		}
		if got := s.property(unit, "ActiveState"); got != "active" {
			return errors.New(got)
		}
		return nil
	})
}

// adopted wants the sandbox as it was: the same process, running, proven
// again, usable, with all it wrote.
func (s *service) adopted(was api.Sandbox) {
	s.t.Helper()
	now, err := s.Inspect(s.t.Context(), was.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	if now.State != api.StateRunning || now.PID != was.PID || now.Problem != "" {
		s.t.Fatalf("is %s, pid %d, %q; was running, pid %d", now.State, now.PID, now.Problem, was.PID)
	}
	evs, err := s.Evidence(s.t.Context(), was.ID, false)
	if err != nil {
		s.t.Fatal(err)
	}
	last := evs[len(evs)-1]
	if last.Why != "reconcile" {
		last = evs[0]
	}
	if last.Why != "reconcile" || !last.OK {
		s.t.Errorf("evidence of why %q, ok %v: %s", last.Why, last.OK, failed(last))
	}
	if out, res := s.sh(was.ID, "echo $((6*7))"); out != "42\n" || res.ExitCode != 0 {
		s.t.Errorf("exec: %q, %+v", out, res)
	}
	seen := s.lines(was.ID)
	s.eventually("the main command writes on, and it is kept", func() error {
		if n := s.lines(was.ID); n <= seen {
			return fmt.Errorf("%d lines, as before", n)
		}
		return nil
	})
}

// lines counts the main command's lines, of which none may be missing.
func (s *service) lines(id string) int {
	s.t.Helper()
	var out bytes.Buffer
	if err := s.Logs(s.t.Context(), id, client.LogOptions{Tail: -1}, &out, io.Discard); err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(out.String()) {
		if line != fmt.Sprintf("line %d\n", n) && strings.HasSuffix(line, "\n") {
			s.t.Fatalf("line %d of the output is %q", n, line)
		}
		n++
	}
	return n
}

func failed(ev api.Evidence) string {
	var out []string
	for _, c := range ev.Controls {
		if !c.OK {
			out = append(out, fmt.Sprintf("%s: want %s, is %s", c.Name, c.Expected, c.Observed))
		}
	}
	return strings.Join(out, "; ")
}
