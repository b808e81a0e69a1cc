package cgroup_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
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
var anyVersion = kerneltest.Need{Name: "cgroup", Probe: func() error {
	return firstNil(kerneltest.CgroupV1.Probe(), kerneltest.CgroupV2.Probe())
}}

func firstNil(a, b error) error {
	if a == nil {
		return nil
	}
	return b
}

// The test binary is also what runs in the test's cgroups.
func TestMain(m *testing.M) {
	if what := os.Getenv("CREEL_CGROUP_HELPER"); what != "" {
		helper(what)
		return
	}
	os.Exit(m.Run())
}

// helper waits for a byte, so that the test can place it, then works.
func helper(what string) {
	in := bufio.NewReader(os.Stdin)
	if _, err := in.ReadByte(); err != nil {
		os.Exit(3)
	}
	what, arg, _ := strings.Cut(what, ":")
	n, _ := strconv.Atoi(arg)
	switch what {
	case "sleep":
	case "eat": // n MiB, touched
		var keep [][]byte
		for range n {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			keep = append(keep, b)
		}
		fmt.Println("ate", len(keep))
	case "fork": // n sleepers, each its own session, re-parented when this one ends
		failed := 0
		for range n {
			cmd := exec.Command("/bin/sleep", "1000")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if cmd.Start() != nil {
				failed++
			}
		}
		fmt.Println("forked", n-failed, failed)
		return
	case "detect": // says where it is and where sandboxes would be
		h, err := cgroup.Detect(cgroup.Options{Root: arg})
		if err != nil {
			fmt.Println(err)
			return
		}
		own, _ := os.ReadFile("/proc/self/cgroup")
		fmt.Println(strings.TrimSpace(string(own)), h.CgroupsPath("box"), h.Weaker())
	case "bomb":
		fmt.Println("bombing")
		cmd := exec.Command("/bin/sh", "-c", "b() { b | b & b; }; b")
		cmd.Stderr = nil
		_ = cmd.Run()
		for {
			_ = exec.Command("/bin/sh", "-c", "b() { b | b & b; }; b").Run()
		}
	}
	_, _ = io.Copy(io.Discard, in) // until it is killed, or the test has ended without
}

// proc is a helper that is waiting for its byte.
type proc struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, what string) *proc {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CREEL_CGROUP_HELPER="+what, "GOMAXPROCS=1")
	return begin(t, cmd)
}

// begin starts a command that is told what to do and ends with the test.
func begin(t *testing.T, cmd *exec.Cmd) *proc {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &proc{cmd, in, bufio.NewReader(out)}
}

func (p *proc) run(t *testing.T) {
	t.Helper()
	if _, err := p.in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

func (p *proc) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("helper said %q: %v", s, err)
	}
	return strings.TrimSpace(s)
}

var limits = cgroup.Limits{Memory: 512 << 20, Pids: 1000, CPUs: 1.5, IOWeight: 100}

// detect gives a Host under a root of the test's own.
func detect(t *testing.T) (*cgroup.Host, string) {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, anyVersion)
	root := fmt.Sprintf("/creel-test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	h, err := cgroup.Detect(cgroup.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		for _, dir := range mounts() {
			rmTree(t, dir+root)
		}
	})
	return h, root
}

// mounts are the directories of every hierarchy.
func mounts() []string {
	if kerneltest.CgroupV2.Probe() == nil {
		return []string{"/sys/fs/cgroup"}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*")
	return dirs
}

func rmTree(t *testing.T, dir string) {
	t.Helper()
	var dirs []string
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, d := range dirs {
		var err error
		for range 100 {
			if err = os.Remove(d); err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left over: %v", err)
		}
	}
}

// runtime does what the OCI runtime does: the sandbox's cgroup with its
// limits, PID 1 in it.
func runtime(t *testing.T, h *cgroup.Host, root, id string, lim cgroup.Limits) *proc {
	t.Helper()
	pid1 := start(t, "sleep")
	lim = lim.Sandbox()
	quota, period := lim.CPUQuota()
	mem := strconv.FormatInt(lim.Memory, 10)
	set := func(dir string, kv ...string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(kv); i += 2 {
			if err := os.WriteFile(filepath.Join(dir, kv[i]), []byte(kv[i+1]), 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid1.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	path := h.CgroupsPath(id)
	if h.Version() == "v2" {
		set("/sys/fs/cgroup"+path, "memory.max", mem, "memory.swap.max", "0", "pids.max", fmt.Sprint(lim.Pids),
			"cpu.max", fmt.Sprintf("%d %d", quota, period), "io.weight", fmt.Sprint(1+(lim.IOWeight-10)*9999/990))
		return pid1
	}
	if path != root+"/"+id {
		t.Errorf("CgroupsPath = %q, want %q", path, root+"/"+id)
	}
	v1 := "/sys/fs/cgroup/"
	set(v1+"memory"+path, "memory.limit_in_bytes", mem, "memory.memsw.limit_in_bytes", mem)
	set(v1+"pids"+path, "pids.max", fmt.Sprint(lim.Pids))
	set(v1+"cpu"+path, "cpu.cfs_period_us", fmt.Sprint(period), "cpu.cfs_quota_us", fmt.Sprint(quota))
	set(v1 + "cpuacct" + path)
	set(v1 + "freezer" + path)
	set(v1 + "blkio" + path)
	set(v1+"devices"+path, "devices.deny", "a")
	set(v1+"devices"+path, "devices.allow", "c 1:3 rwm")
	if err := os.MkdirAll(v1+"cpuset"+root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{root, path} {
		for _, f := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			b, err := os.ReadFile(v1 + "cpuset" + f)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(v1+"cpuset"+d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(v1+"cpuset"+d+f, b, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	set(v1 + "cpuset" + path)
	return pid1
}

// open is a started and divided sandbox, removed at the test's end.
func open(t *testing.T, lim cgroup.Limits) (*cgroup.Host, *cgroup.Sandbox, *proc) {
	t.Helper()
	h, root := detect(t)
	pid1 := runtime(t, h, root, "sandbox1", lim)
	t.Cleanup(func() {
		if err := h.RemoveAll(context.WithoutCancel(t.Context()), "sandbox1"); err != nil {
			t.Errorf("RemoveAll: %v", err)
		}
		if ids, err := h.List(); len(ids) != 0 || err != nil {
			t.Errorf("after RemoveAll List = %q, %v, want none", ids, err)
		}
	})
	s, err := h.Open("sandbox1", pid1.Process.Pid, lim)
	if err != nil {
		t.Fatal(err)
	}
	return h, s, pid1
}

// launch runs a helper in an exec of its own.
func launch(t *testing.T, s *cgroup.Sandbox, id, what string) (*cgroup.Exec, *proc) {
	t.Helper()
	e, err := s.NewExec(id)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, what)
	if err := e.Add(p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	p.run(t)
	return e, p
}

func pids(t *testing.T, e *cgroup.Exec) []int {
	t.Helper()
	p, err := e.Pids()
	if err != nil {
		t.Fatal(err)
	}
	return p
}
