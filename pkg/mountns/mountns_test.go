package mountns_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/mountns"

	"golang.org/x/sys/unix"
)

const (
	helperEnv = "CREEL_TEST_MOUNTNS_RUN"
	mountEnv  = "CREEL_TEST_MOUNTNS_MOUNT" // the helper mounts a tmpfs here
	unpinEnv  = "CREEL_TEST_MOUNTNS_UNPIN"
	stayEnv   = "CREEL_TEST_MOUNTNS_STAY" // the helper calls Stay, in a namespace of the test's
)

// TestMain lets the test binary be the program that enters.
func TestMain(m *testing.M) {
	if dir := os.Getenv(helperEnv); dir != "" {
		if err := helper(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// facts is what the helper sees after Enter.
type facts struct {
	Own, Host uint64
	Args      []string
	Dir       string
	Env       string // the variable that carries the descriptor
	Unified   bool
	CloExec   bool
	Mounts    []string // mount points below the run directory
}

func helper(dir string) error {
	enter := mountns.Enter
	if os.Getenv(stayEnv) != "" {
		enter = mountns.Stay
	}
	if err := enter(dir); err != nil {
		return err
	}
	if p := os.Getenv(mountEnv); p != "" {
		if err := unix.Mount("creel-test", p, "tmpfs", 0, "size=64k"); err != nil {
			return err
		}
	}
	var f facts
	var err error
	if f.Own, err = inode("/proc/self/ns/mnt"); err != nil {
		return err
	}
	if f.Host, err = mountns.HostInode(); err != nil {
		return err
	}
	flags, err := unix.FcntlInt(mountns.Host().Fd(), unix.F_GETFD, 0)
	if err != nil {
		return err
	}
	f.CloExec = flags&unix.FD_CLOEXEC != 0
	f.Args = os.Args
	f.Dir, _ = os.Getwd()
	f.Env = os.Getenv("CREEL_HOST_MNTNS_FD")
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		p := strings.ReplaceAll(strings.Fields(line)[4], `\040`, " ")
		f.Unified = f.Unified || p == "/sys/fs/cgroup/unified"
		if strings.HasPrefix(p, dir) {
			f.Mounts = append(f.Mounts, p)
		}
	}
	if os.Getenv(unpinEnv) != "" {
		if err := mountns.Unpin(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err
}

func run(t *testing.T, dir string, env ...string) facts {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "one", "two words")
	cmd.Env = append(os.Environ(), append(env, helperEnv+"="+dir)...)
	cmd.Dir = "/usr"
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helper: %v: %s", err, stderr.String())
	}
	var f facts
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatalf("helper said %q: %v", out, err)
	}
	return f
}

func mountTable(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// runDir is a directory whose pin is taken away when the test ends.
func runDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run dir") // a blank is escaped in mountinfo
	t.Cleanup(func() {
		if err := mountns.Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestEnter(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	before := mountTable(t)
	own, err := inode("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	dir := runDir(t)

	first := run(t, dir)
	if first.Own == own || first.Host != own {
		t.Errorf("own namespace %d, host's %d; want another than %d, and %d", first.Own, first.Host, own, own)
	}
	if got := strings.Join(first.Args, "|"); !strings.HasSuffix(got, "|one|two words") {
		t.Errorf("arguments after the exec: %q", got)
	}
	if first.Dir != "/usr" {
		t.Errorf("working directory %q, want /usr", first.Dir)
	}
	if first.Env != "" || !first.CloExec {
		t.Errorf("the host's descriptor leaks to children: env %q, close-on-exec %v", first.Env, first.CloExec)
	}
	pin, err := inode(filepath.Join(dir, "mnt", "ns"))
	if err != nil || pin != first.Own {
		t.Errorf("pin is namespace %d (%v), want %d", pin, err, first.Own)
	}

	// A restart joins the same namespace and sees what was mounted there.
	staged := filepath.Join(dir, "staged")
	if err := os.Mkdir(staged, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, dir, mountEnv+"="+staged)
	again := run(t, dir)
	if again.Own != first.Own || again.Host != own {
		t.Errorf("restart: namespace %d of host %d, want %d of %d", again.Own, again.Host, first.Own, own)
	}
	if !strings.Contains(strings.Join(again.Mounts, "\n"), "staged") {
		t.Errorf("restart does not see the staged mount: %q", again.Mounts)
	}
	if strings.Contains(mountTable(t), "staged") {
		t.Error("a mount made inside propagated to the host")
	}

	if err := mountns.Unpin(dir); err != nil {
		t.Fatal(err)
	}
	if after := mountTable(t); after != before {
		t.Errorf("the host's mounts changed:\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestEnterHidesHybridCgroup(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.CgroupV1)
	if f := run(t, runDir(t)); f.Unified {
		t.Error("cgroup2 is still mounted inside; crun would refuse to run")
	}
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err != nil {
		t.Errorf("the host lost its cgroup2 mount: %v", err)
	}
}

func TestEnterAfterInterruptedPin(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := runDir(t)
	if err := os.MkdirAll(filepath.Join(dir, "mnt"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mnt", "ns"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := run(t, dir)
	if pin, err := inode(filepath.Join(dir, "mnt", "ns")); err != nil || pin != f.Own {
		t.Errorf("pin is namespace %d (%v), want %d", pin, err, f.Own)
	}
}

func TestUnpinFromInside(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := runDir(t)
	run(t, dir, unpinEnv+"=1")
	if _, err := os.Stat(dir); err == nil {
		t.Error("the run directory is still there")
	}
	if strings.Contains(mountTable(t), "run\\040dir") {
		t.Error("the pin's mount point is still mounted on the host")
	}
}

func TestEnterRefusesForgedMarker(t *testing.T) {
	for _, v := range []string{"", "x", "0", "99999"} {
		t.Setenv("CREEL_HOST_MNTNS_FD", v)
		if err := mountns.Enter(t.TempDir()); err == nil {
			t.Errorf("CREEL_HOST_MNTNS_FD=%q was believed", v)
		}
	}
}

// TestStay stays where it was started, with the run directory a private mount,
// also the second time.
func TestStay(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := filepath.Join(t.TempDir(), "run")
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	cmd.Env = append(os.Environ(), helperEnv+"="+dir, stayEnv+"=1")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var f facts
	if err := json.Unmarshal(out, &f); err != nil {
		t.Fatal(err)
	}
	if f.Own != f.Host || !f.CloExec || len(f.Mounts) != 1 || f.Mounts[0] != dir {
		t.Errorf("%+v, want its own namespace as the host's and %s mounted once", f, dir)
	}
	if host, err := inode("/proc/self/ns/mnt"); err != nil || f.Own == host {
		t.Errorf("the helper was in the test's own namespace, %v", err)
	}
}

// TestSame tells a process of this namespace from one of another.
func TestSame(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	if same, err := mountns.Same(os.Getpid()); err != nil || !same {
		t.Errorf("this process: %v, %v", same, err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if same, err := mountns.Same(cmd.Process.Pid); err != nil || same {
		t.Errorf("a process of another namespace: %v, %v", same, err)
	}
	if _, err := mountns.Same(1 << 30); err == nil {
		t.Error("no process: no error")
	}
}
