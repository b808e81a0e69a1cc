package verify_test

import (
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/pkg/verify"
	"github.com/creel-sandbox/creel/profiles"
)

const (
	hostUID  = 0x78000000
	ownFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
)

// sandbox is a change of the good plan and of what is expected of it.
type sandbox struct {
	change  func(*plan)
	flags   uintptr // instead of ownFlags
	hostNet bool
	ids     int
}

// launch starts the sandbox and returns what a good one is expected to be.
func launch(t *testing.T, s sandbox) verify.Expect {
	t.Helper()
	profile, err := seccomp.Load(profiles.FS, "default")
	if err != nil {
		t.Fatal(err)
	}
	filter, err := profile.Compile(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // the range's ids must pass
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	p := plan{Root: filepath.Join(dir, "root"), Init: filepath.Join(dir, "init"), Filter: filter.Bytes()}
	if err := os.Mkdir(p.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(p.Root, hostUID, hostUID); err != nil {
		t.Fatal(err)
	}
	if s.change != nil {
		s.change(&p)
	}
	copySelf(t, p.Init, p.Dumpable)
	if s.flags == 0 {
		s.flags = ownFlags
	}
	if s.ids == 0 {
		s.ids = 65536
	}
	host, err := verify.Namespaces(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	exe := fileID(t, p.Init)
	e := verify.Expect{
		ID: "test", Why: "spawn",
		HostNS: host, OwnNS: map[string]uint64{},
		HostUID: hostUID, AgentUID: 1000, AgentGID: 1000, Setgroups: "allow",
		Filter:  filter.Bytes(),
		Rlimits: map[string]verify.Rlimit{"nofile": {Soft: 1024, Hard: 1024}},
		Mounts: []verify.Mount{
			{Target: "/", FSType: "tmpfs", Flags: []string{"ro", "nosuid", "nodev"}, Size: 1 << 20, Inodes: 64},
			{Target: "/init", Flags: []string{"ro", "nosuid", "nodev"}, File: exe},
			{Target: "/null", Device: unix.Mkdev(1, 3)},
			{Target: "/tmp", FSType: "tmpfs", Source: "tmp", Flags: []string{"nosuid", "nodev", "noexec"}, Writable: true, Size: 65536},
		},
		ClosedMounts: true,
		OOMScoreAdj:  321,
		FDs: []verify.FD{
			{Num: 0, Target: "/dev/null"},
			{Num: 1, Target: "/dev/null"},
			{Num: 2, Target: "/dev/null"},
			{Num: -1, Target: "anon_inode:[eventpoll]"},
			{Num: -1, Target: "anon_inode:[eventfd]"},
		},
		Exe:   exe,
		Alone: true,
	}
	inNetNS(t, s.hostNet, func() {
		own, err := verify.Namespaces(unix.Gettid())
		if err != nil {
			t.Fatal(err)
		}
		e.OwnNS["net"] = own["net"]
		e.PID, e.PIDFD = start(t, p, s.flags, hostUID, s.ids)
	})
	if s.hostNet {
		e.OwnNS = nil
	}
	e.Procs = []int{e.PID}
	if e.StartTime, err = verify.StartTime(e.PID); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/"+strconv.Itoa(e.PID)+"/oom_score_adj", []byte("321"), 0); err != nil {
		t.Fatal(err)
	}
	return e
}

// inNetNS runs fn on a thread with a fresh network namespace, owned as that
// of the daemon is by the initial user namespace.
func inNetNS(t *testing.T, host bool, fn func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends
		var err error
		if !host {
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			func() {
				defer func() { done <- err }()
				fn()
			}()
			return
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// static is this test's program without C libraries, which the small root
// does not have: itself, or built anew when it has them (go test -race).
var static = sync.OnceValues(func() ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f, err := elf.Open(self)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return os.ReadFile(self)
	}
	tool, err := exec.LookPath("go")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "verify")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "static")
	build := exec.CommandContext(context.Background(), tool, "test", "-c", "-o", out, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	return os.ReadFile(out)
})

// copySelf makes the private copy of the program; as creel-init's it cannot
// be read, unless the process is to be dumpable.
func copySelf(t *testing.T, dst string, readable bool) {
	t.Helper()
	text, err := static()
	if err != nil {
		t.Fatal(err)
	}
	mode := os.FileMode(0o111)
	if readable {
		mode = 0o755
	}
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func fileID(t *testing.T, path string) verify.FileID {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return verify.FileID{Dev: st.Dev, Ino: st.Ino}
}

func failed(ev api.Evidence) []string {
	var out []string
	for _, c := range verify.Failed(ev.Controls) {
		out = append(out, c.Name)
	}
	slices.Sort(out)
	return out
}

func TestGoodSandbox(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	e := launch(t, sandbox{})
	ev := verify.Read(t.Context(), e)
	for _, c := range ev.Controls {
		t.Logf("%-24s ok=%t expected %q observed %q", c.Name, c.OK, c.Expected, c.Observed)
	}
	if !ev.OK || len(ev.Controls) < 40 {
		t.Errorf("evidence of a good sandbox: ok %t, %d controls, not ok %v", ev.OK, len(ev.Controls), failed(ev))
	}
	if ev.Sandbox != "test" || ev.Why != "spawn" || time.Since(ev.Taken) > time.Minute {
		t.Errorf("evidence is of %q, why %q, taken %v", ev.Sandbox, ev.Why, ev.Taken)
	}
	// It can be taken again, and leaves PID 1 running.
	best := time.Hour
	for range 20 {
		from := time.Now()
		if ev := verify.Read(t.Context(), e); !ev.OK {
			t.Fatalf("taken again, not ok: %v", failed(ev))
		}
		best = min(best, time.Since(from))
	}
	t.Logf("best of 20: %v", best)
	if best > 10*time.Millisecond {
		t.Errorf("reading takes %v at best", best)
	}
}

// TestBrokenLayers takes away one layer at a time. Exactly its controls fail.
func TestBrokenLayers(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	tests := []struct {
		name    string
		sandbox sandbox
		want    []string
	}{
		{"no_new_privs missing", sandbox{change: func(p *plan) { p.NoNNP = true }}, []string{"no_new_privs"}},
		{"a capability in the bounding set", sandbox{change: func(p *plan) { p.KeepCap = true }}, []string{"caps.bounding"}},
		{"wrong id map", sandbox{ids: 65535}, []string{"idmap.gid", "idmap.uid"}},
		{"no filter", sandbox{change: func(p *plan) { p.NoFilter = true }}, []string{"seccomp.filter", "seccomp.filters", "seccomp.mode"}},
		{"one instruction differs", sandbox{change: func(p *plan) { p.Filter[len(p.Filter)-4]++ }}, []string{"seccomp.filter"}},
		{"shorter filter", sandbox{change: func(p *plan) { p.Filter = []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f} }}, []string{"seccomp.filter"}},
		{"second filter", sandbox{change: func(p *plan) { p.SecondOne = true }}, []string{"seccomp.filter", "seccomp.filters"}},
		{"writable root", sandbox{change: func(p *plan) { p.WritableAll = true }}, []string{"mount./"}},
		{"tmp executable", sandbox{change: func(p *plan) { p.WritableTmp = true }}, []string{"mount./tmp"}},
		{"extra mount", sandbox{change: func(p *plan) { p.ExtraMount = true }}, []string{"mounts.closed"}},
		{"shared mount", sandbox{change: func(p *plan) { p.Shared = true }}, []string{"mounts.private"}},
		{"dumpable", sandbox{change: func(p *plan) { p.Dumpable = true }}, []string{"dumpable"}},
		{"extra descriptor", sandbox{change: func(p *plan) { p.ExtraFD = true }}, []string{"descriptors"}},
		{"extra group", sandbox{change: func(p *plan) { p.ExtraGroup = true }}, []string{"groups"}},
		{"other uid", sandbox{change: func(p *plan) { p.OtherUID = true }}, []string{"uid"}},
		{"other limit", sandbox{change: func(p *plan) { p.OpenFiles = 512 }}, []string{"rlimit.nofile"}},
		{"host's pid namespace", sandbox{flags: ownFlags &^ unix.CLONE_NEWPID}, []string{"namespace.pid", "namespace.pid.owner", "process.pid1"}},
		{"host's ipc namespace", sandbox{flags: ownFlags &^ unix.CLONE_NEWIPC}, []string{"namespace.ipc", "namespace.ipc.owner"}},
		{"host's uts namespace", sandbox{flags: ownFlags &^ unix.CLONE_NEWUTS}, []string{"namespace.uts", "namespace.uts.owner"}},
		{"host's cgroup namespace", sandbox{flags: ownFlags &^ unix.CLONE_NEWCGROUP}, []string{"namespace.cgroup", "namespace.cgroup.owner"}},
		{"host's network", sandbox{hostNet: true}, []string{"namespace.net"}},
		{"agent owns the network", sandbox{flags: ownFlags | unix.CLONE_NEWNET}, []string{"namespace.net", "namespace.net.owner"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := launch(t, tt.sandbox)
			ev := verify.Read(t.Context(), e)
			if diff := cmp.Diff(tt.want, failed(ev)); diff != "" || ev.OK {
				t.Errorf("not ok (-want +got), evidence ok %t:\n%s", ev.OK, diff)
			}
		})
	}
}

// TestDevices binds other things where the null device should be. What the
// host's /dev is made of does not matter, and neither does what is in it under
// that name.
func TestDevices(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // the range's ids must pass
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	node := func(name string, mode uint32, major, minor uint32) string {
		path := filepath.Join(dir, name, "null")
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mknod(path, mode, int(unix.Mkdev(major, minor))); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name string
		null string
		want []string
	}{
		{"null in a plain directory", node("plain", unix.S_IFCHR|0o666, 1, 3), nil},
		{"zero", "/dev/zero", []string{"mount./null"}},
		{"kmsg called null", node("kmsg", unix.S_IFCHR|0o666, 1, 11), []string{"mount./null"}},
		{"a disk of the same numbers", node("disk", unix.S_IFBLK|0o666, 1, 3), []string{"mount./null"}},
		{"a file", node("file", unix.S_IFREG|0o666, 0, 0), []string{"mount./null"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ev := verify.Read(t.Context(), launch(t, sandbox{change: func(p *plan) { p.Null = tt.null }}))
			if diff := cmp.Diff(tt.want, failed(ev)); diff != "" {
				t.Errorf("not ok (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSeenAgain: at a later proof every namespace and the label are those of
// the first.
func TestSeenAgain(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	e := launch(t, sandbox{})
	own, err := verify.Namespaces(e.PID)
	if err != nil {
		t.Fatal(err)
	}
	e.OwnNS = own
	if e.Label, err = verify.Label(e.PID); err != nil || e.Label == "" {
		t.Fatalf("label %q, %v", e.Label, err)
	}
	if ev := verify.Read(t.Context(), e); !ev.OK {
		t.Errorf("not ok: %v", failed(ev))
	}
	for name := range own {
		e.OwnNS = maps.Clone(own)
		e.OwnNS[name]++
		if diff := cmp.Diff([]string{"namespace." + name}, failed(verify.Read(t.Context(), e))); diff != "" {
			t.Errorf("with another %s namespace, not ok (-want +got):\n%s", name, diff)
		}
	}
}

// TestOtherExpectations holds a good sandbox against what it is not.
func TestOtherExpectations(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	good := launch(t, sandbox{})
	other, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	tests := []struct {
		name   string
		change func(*verify.Expect)
		want   []string
	}{
		{"other range", func(e *verify.Expect) { e.HostUID += 65536 }, []string{"gid", "idmap.gid", "idmap.uid", "uid"}},
		{"setgroups", func(e *verify.Expect) { e.Setgroups = "deny" }, []string{"idmap.setgroups"}},
		{"other network", func(e *verify.Expect) { e.OwnNS = map[string]uint64{"net": 1} }, []string{"namespace.net"}},
		{"host namespaces not known", func(e *verify.Expect) {
			e.HostNS = maps.Clone(e.HostNS)
			delete(e.HostNS, "mnt")
		}, []string{"namespace.mnt"}},
		{"other owner", func(e *verify.Expect) { e.UserNSOwner = 5 }, []string{"namespace.user.owner"}},
		{"no filter expected", func(e *verify.Expect) { e.Filter = nil }, []string{"seccomp.filter"}},
		{"other program", func(e *verify.Expect) { e.Exe.Ino++ }, []string{"exe"}},
		{"oom score", func(e *verify.Expect) { e.OOMScoreAdj = 0 }, []string{"oom_score_adj"}},
		{"descriptor missing", func(e *verify.Expect) { e.FDs = append(slices.Clone(e.FDs), verify.FD{Num: 100, Target: "socket:"}) }, []string{"descriptors"}},
		{"mount missing", func(e *verify.Expect) { e.Mounts = append(slices.Clone(e.Mounts), verify.Mount{Target: "/workspace"}) }, []string{"mount./workspace"}},
		{"mount size", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[3].Size++ }, []string{"mount./tmp"}},
		{"mount of another file", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[1].File.Ino++ }, []string{"mount./init"}},
		{"mount on another device", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[1].File.Dev++ }, []string{"mount./init"}},
		{"mount of another device", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[2].Device++ }, []string{"mount./null"}},
		{"mount that is no device", func(e *verify.Expect) {
			e.Mounts = slices.Clone(e.Mounts)
			e.Mounts[1].Device = unix.Mkdev(1, 3)
		}, []string{"mount./init"}},
		{"mount writable", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[1].Writable = true }, []string{"mount./init"}},
		{"mount root", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[3].Root = "/null" }, []string{"mount./tmp"}},
		{"mount source", func(e *verify.Expect) { e.Mounts = slices.Clone(e.Mounts); e.Mounts[3].Source = "x" }, []string{"mount./tmp"}},
		{"label", func(e *verify.Expect) { e.Label = "creel-agent (enforce)" }, []string{"lsm.label"}},
		{"unknown limit", func(e *verify.Expect) { e.Rlimits = map[string]verify.Rlimit{"nosuch": {}} }, []string{"rlimit.nosuch"}},
		{"not alone", func(e *verify.Expect) { e.Procs = append(e.Procs, 7) }, []string{"process.alone"}},
		{"not in its cgroup", func(e *verify.Expect) { e.Procs = nil }, []string{"process.alone"}},
		{"other start", func(e *verify.Expect) { e.StartTime++ }, []string{"process.start"}},
		{"pidfd of another", func(e *verify.Expect) { e.PIDFD = other }, []string{"process.pidfd"}},
		{"no pidfd", func(e *verify.Expect) { e.PIDFD = -1 }, []string{"process.pidfd"}},
		{"not a pidfd", func(e *verify.Expect) { e.PIDFD = 0 }, []string{"process.pidfd"}},
		{"failed elsewhere", func(e *verify.Expect) { e.Extra = []api.Control{{Name: "cgroup.pids"}} }, []string{"cgroup.pids"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := good
			tt.change(&e)
			ev := verify.Read(t.Context(), e)
			if diff := cmp.Diff(tt.want, failed(ev)); diff != "" || ev.OK {
				t.Errorf("not ok (-want +got), evidence ok %t:\n%s", ev.OK, diff)
			}
		})
	}
}

// TestUnreadable: when nothing can be read, no control is ok and none is
// missing.
func TestUnreadable(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	e := launch(t, sandbox{})
	whole := len(verify.Read(t.Context(), e).Controls)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(name string, ev api.Evidence, good int) {
		t.Helper()
		ok := len(ev.Controls) - len(verify.Failed(ev.Controls))
		if ev.OK || ok > good || len(ev.Controls) < whole-len(e.Rlimits)-len(e.Mounts) {
			t.Errorf("%s: ok %t, %d of %d controls ok, %d when alive", name, ev.OK, ok, len(ev.Controls), whole)
		}
	}
	check("caller gone", verify.Read(gone, e), 1)
	if err := unix.PidfdSendSignal(e.PIDFD, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(e.PIDFD), Events: unix.POLLIN}}, 5000); err != nil {
		t.Fatal(err)
	}
	ev := verify.Read(t.Context(), e) // a zombie: some files still tell
	if ev.OK || !slices.Contains(failed(ev), "seccomp.filter") || !slices.Contains(failed(ev), "exe") {
		t.Errorf("dead PID 1: ok %t, not ok %v", ev.OK, failed(ev))
	}
	none := e
	none.PID = 0
	check("no pid", verify.Read(t.Context(), none), 1)
}

// TestStopped: a stopped PID 1 is read as well, and stays stopped.
func TestStopped(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	e := launch(t, sandbox{})
	if err := unix.PidfdSendSignal(e.PIDFD, unix.SIGSTOP, nil, 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if ev := verify.Read(t.Context(), e); !ev.OK {
			t.Errorf("evidence of a stopped sandbox: not ok %v", failed(ev))
		}
	}
	// Detaching wakes it up for as long as it takes to stop again.
	var stat []byte
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); runtime.Gosched() {
		var err error
		if stat, err = os.ReadFile("/proc/" + strconv.Itoa(e.PID) + "/stat"); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(stat), ") T ") {
			return
		}
	}
	t.Errorf("stopped PID 1 runs after it was read: %s", stat)
}

func TestFromProbe(t *testing.T) {
	got := verify.FromProbe([]verify.Probe{
		{Name: "mount", Want: []unix.Errno{unix.EPERM, unix.ENOSYS}, Got: unix.ENOSYS},
		{Name: "bpf", Want: []unix.Errno{unix.ENOSYS}, Got: unix.EPERM},
		{Name: "ptrace", Want: []unix.Errno{unix.EPERM}},
		{Name: "nothing wanted"},
	})
	want := []api.Control{
		{Name: "probe.mount", Expected: "EPERM or ENOSYS", Observed: "ENOSYS", OK: true},
		{Name: "probe.bpf", Expected: "ENOSYS", Observed: "EPERM"},
		{Name: "probe.ptrace", Expected: "EPERM", Observed: "success"},
		{Name: "probe.nothing wanted", Observed: "success"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("FromProbe (-want +got):\n%s", diff)
	}
	if verify.AllOK(nil) {
		t.Error("no control at all counts as ok")
	}
}
