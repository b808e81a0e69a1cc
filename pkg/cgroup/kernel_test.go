package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// anyVersion is a host whose cgroups a test can use.
func TestOpen(t *testing.T) {
	h, s, pid1 := open(t, limits)
	if ids, err := h.List(); !slices.Equal(ids, []string{"sandbox1"}) || err != nil {
		t.Errorf("List = %q, %v", ids, err)
	}
	names := map[string]bool{}
	for _, c := range s.Controls() {
		names[c.Name] = true
		if c.Name == "cgroup.devices" && c.Observed != "0 attached" {
			t.Errorf("device programs: %q", c.Observed)
		}
		if !c.OK && c.Name != "cgroup.devices" { // no runtime attached a program in this test
			t.Errorf("control %s: expected %q, observed %q", c.Name, c.Expected, c.Observed)
		}
	}
	if !names["cgroup.pids.max"] || !names["cgroup.agent.pids.max"] || len(names) < 8 {
		t.Errorf("controls are %v", names)
	}
	st, err := s.Stats()
	if err != nil || st.MemoryLimit != limits.Memory || st.PidsLimit != limits.Pids || st.ID != "sandbox1" {
		t.Errorf("Stats = %+v, %v", st, err)
	}
	again, err := h.Reopen("sandbox1", pid1.Process.Pid, limits)
	if err != nil || len(again.Controls()) != len(s.Controls()) {
		t.Errorf("Reopen: %v", err)
	}
	if _, err := h.Reopen("sandbox2", 1, limits); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Reopen of nothing: %v, want ErrNotExist", err)
	}
	if err := h.RemoveAll(t.Context(), "sandbox1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stats(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stats of what was removed: %v, want ErrNotExist", err)
	}
}

// A limit that was changed behind our back is seen.
func TestControlsSeeDrift(t *testing.T) {
	h, s, _ := open(t, limits)
	dir := "/sys/fs/cgroup" + h.CgroupsPath("sandbox1")
	initDir := dir + "/init"
	if h.Version() == "v1" {
		dir = "/sys/fs/cgroup/pids" + h.CgroupsPath("sandbox1")
		initDir = dir
	}
	stranger := start(t, "sleep")
	if err := os.WriteFile(dir+"/agent/pids.max", []byte("max"), 0); err != nil {
		t.Fatal(err)
	}
	bad := 0
	for _, c := range s.Controls() {
		if c.Name == "cgroup.agent.pids.max" && !c.OK && c.Observed == "max" {
			bad++
		}
	}
	if bad != 1 {
		t.Errorf("lifted agent limit not seen: %+v", s.Controls())
	}
	if err := os.WriteFile(initDir+"/cgroup.procs", []byte(strconv.Itoa(stranger.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Pending(); !slices.Equal(p, []int{stranger.Process.Pid}) || err != nil {
		t.Errorf("Pending = %v, %v, want the stranger %d", p, err, stranger.Process.Pid)
	}
}

func TestKill500(t *testing.T) {
	h, s, pid1 := open(t, limits)
	began := time.Now()
	e, p := launch(t, s, "many", "fork:500")
	neighbour, _ := launch(t, s, "other", "sleep")
	if got := p.line(t); got != "forked 500 0" {
		t.Fatalf("helper: %s", got)
	}
	_ = p.Wait() // its 500 children are orphans in sessions of their own now
	if n := len(pids(t, e)); n != 500 {
		t.Fatalf("%d processes in the exec, want 500", n)
	}
	spawned := time.Since(began)
	began = time.Now()
	if err := e.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("%s: killed 500 in %v, started in %v", h.Version(), took, spawned)
	// 100 ms on a quiet machine. A busy or emulated one is as slow in starting them.
	if took > max(100*time.Millisecond, spawned/2) {
		t.Errorf("kill took %v", took)
	}
	if n := len(pids(t, e)); n != 0 {
		t.Errorf("%d processes left", n)
	}
	if err := e.Remove(); err != nil {
		t.Error(err)
	}
	if len(pids(t, neighbour)) != 1 || pid1.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("the kill hit a neighbour or PID 1")
	}
	if got := s.Execs(); !slices.Equal(got, []string{"other"}) {
		t.Errorf("Execs = %q", got)
	}
}

func TestKillForkBomb(t *testing.T) {
	lim := limits
	lim.Pids = 200
	_, s, pid1 := open(t, lim)
	e, p := launch(t, s, "bomb", "bomb")
	p.line(t)
	waitFor(t, "the bomb to meet its limit", func() bool { return e.Hits()["pids"] > 0 })
	if p, err := s.Pending(); len(p) != 0 || err != nil {
		t.Errorf("Pending = %v, %v", p, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	n := len(pids(t, e))
	began := time.Now()
	if err := e.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed the bomb, of %d processes, in %v", n, time.Since(began))
	if err := e.Remove(); err != nil {
		t.Error(err)
	}
	if s.Hits()["pids"] == 0 {
		t.Error("the refused forks of a removed exec are forgotten")
	}
	if pid1.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("PID 1 died of a fork bomb")
	}
}

func TestOOM(t *testing.T) {
	lim := limits
	lim.Memory = 64 << 20
	_, s, pid1 := open(t, lim)
	told := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := s.WatchOOM(ctx, func(id string) { told <- id }); err != nil {
		t.Fatal(err)
	}
	small, _ := launch(t, s, "small", "sleep")
	// The bystander shares the exec that goes over: it ends with it.
	e, p := launch(t, s, "big", "eat:200")
	_ = p.Wait()
	select {
	case id := <-told:
		if id != "big" {
			t.Errorf("told of exec %q", id)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no OOM was told of")
	}
	waitFor(t, "the exec to end", func() bool { return len(pids(t, e)) == 0 })
	if e.OOMKills() < 1 || e.Hits()["memory"] < 1 {
		t.Errorf("OOMKills = %d, Hits = %v", e.OOMKills(), e.Hits())
	}
	if small.OOMKills() != 0 || len(pids(t, small)) != 1 {
		t.Error("the neighbour was hit")
	}
	if pid1.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("PID 1 was hit")
	}
	if err := e.Remove(); err != nil {
		t.Error(err)
	}
	if s.Hits()["memory"] < 1 {
		t.Error("the OOM kill of a removed exec is forgotten")
	}
}

// A bystander of the process that went over ends with it: an exec ends whole.
func TestOOMEndsTheWholeExec(t *testing.T) {
	lim := limits
	lim.Memory = 64 << 20
	_, s, _ := open(t, lim)
	if err := s.WatchOOM(t.Context(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	e, _ := launch(t, s, "both", "sleep")
	eater := start(t, "eat:200")
	if err := e.Add(eater.Process.Pid); err != nil {
		t.Fatal(err)
	}
	eater.run(t)
	waitFor(t, "both to end", func() bool { return len(pids(t, e)) == 0 })
	if e.OOMKills() < 1 {
		t.Error("the exec ended without an OOM kill")
	}
}

func TestFreeze(t *testing.T) {
	_, s, _ := open(t, limits)
	e, p := launch(t, s, "one", "fork:20")
	other, _ := launch(t, s, "two", "sleep")
	p.line(t)
	_ = p.Wait()
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	pid := pids(t, e)[0]
	waitFor(t, "the agent to stop", func() bool { return strings.Contains("DS", state(t, pid)) })
	// An exec of a paused sandbox can be killed alone.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := e.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if len(pids(t, e)) != 0 || len(pids(t, other)) != 1 {
		t.Error("the kill left something or hit the neighbour")
	}
	if err := s.Thaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(ctx); err != nil { // the whole, while paused
		t.Fatal(err)
	}
	if len(pids(t, other)) != 0 {
		t.Error("a paused exec outlived the sandbox")
	}
}

func state(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return after[:1]
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 15 s for %s", what)
		}
	}
}

// What a crash left is found and ended by name alone.
func TestRemoveAllOfAStranger(t *testing.T) {
	h, root := detect(t)
	p := runtime(t, h, root, "half-made", limits)
	if err := h.RemoveAll(t.Context(), "half-made"); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err == nil {
		t.Error("its process was not killed")
	}
	if err := h.RemoveAll(t.Context(), "half-made"); err != nil {
		t.Errorf("a second time: %v", err)
	}
	for _, bad := range []string{"", "..", "a/b", "A", "-x"} {
		if h.RemoveAll(t.Context(), bad) == nil {
			t.Errorf("id %q is accepted", bad)
		}
	}
}

func BenchmarkExec(b *testing.B) {
	t := &testing.T{}
	kerneltest.Require(b, kerneltest.Root, anyVersion)
	h, err := cgroup.Detect(cgroup.Options{Root: fmt.Sprintf("/creel-test-bench-%d", os.Getpid())})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	pid1 := runtime(t, h, fmt.Sprintf("/creel-test-bench-%d", os.Getpid()), "sandbox1", limits)
	defer func() {
		_ = h.RemoveAll(b.Context(), "sandbox1")
		for _, dir := range mounts() {
			rmTree(t, dir+fmt.Sprintf("/creel-test-bench-%d", os.Getpid()))
		}
	}()
	s, err := h.Open("sandbox1", pid1.Process.Pid, limits)
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		b.StopTimer()
		cmd := exec.Command("/bin/sleep", "100")
		_ = cmd.Start()
		b.StartTimer()
		e, err := s.NewExec(strconv.Itoa(i))
		if err == nil {
			err = e.Add(cmd.Process.Pid)
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = e.Remove()
		b.StartTimer()
	}
}

// TestEntrances: a process moves itself into an exec, where there is a file
// for it, and Has tells it from one that is in some hierarchies only.
func TestEntrances(t *testing.T) {
	h, root := detect(t)
	pid1 := runtime(t, h, root, "enter", limits)
	s, err := h.Open("enter", pid1.Process.Pid, limits)
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.NewExec("e")
	if err != nil {
		t.Fatal(err)
	}
	files, err := e.Entrances()
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"v1": 3, "v2": 0}[h.Version()]; len(files) != want {
		t.Fatalf("%d entrances on %s, want %d", len(files), h.Version(), want)
	}
	if h.Version() == "v2" {
		return
	}
	cmd := exec.Command("/bin/sh", "-c", "read x; echo 0 >&3; echo in; read x; echo 0 >&4; echo 0 >&5; echo in; exec sleep 1000")
	cmd.ExtraFiles = files
	sh := begin(t, cmd)
	for i, want := range []bool{false, false, true} {
		if i > 0 {
			if _, err := io.WriteString(sh.in, "\n"); err != nil {
				t.Fatal(err)
			}
			if l, err := sh.out.ReadString('\n'); err != nil || l != "in\n" {
				t.Fatalf("the shell said %q, %v", l, err)
			}
		}
		if got, err := e.Has(cmd.Process.Pid); err != nil || got != want {
			t.Errorf("after %d files: Has = %v, %v, want %v", i, got, err, want)
		}
	}
	for _, f := range files {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := e.Kill(t.Context()); err != nil {
		t.Error(err)
	}
}
