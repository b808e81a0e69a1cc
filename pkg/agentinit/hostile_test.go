package agentinit_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
)

// noPrlimit is a filter that allows everything but prlimit64(2) on another
// pid than 0, which it answers with EPERM.
func noPrlimit() []byte {
	return filter(
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // nr
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_PRLIMIT64, Jf: 3},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}, // args[0]
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
}

// filter is a program as Setup wants it.
func filter(prog ...unix.SockFilter) []byte {
	var b []byte
	for _, i := range prog {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

func filtered(t *testing.T, limits ...agentinit.Rlimit) *sandbox {
	t.Helper()
	s := newSandbox(t, nil)
	s.take(t)
	setup := agentinit.Setup{Filter: noPrlimit(), Rlimits: limits}
	if err := errors.Join(s.Setup(deadline(t), setup), s.Go(deadline(t))); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAgainstPID1 is what an agent tries on PID 1, and on another exec that
// waits: they have its own uid.
func TestAgainstPID1(t *testing.T) {
	s := filtered(t)
	ctx := deadline(t)
	secretR, secretW := pipe(t)
	defer secretR.Close()
	defer secretW.Close()
	p := agentinit.Process{ID: "waiting", Argv: []string{"true"}, Env: []string{"SECRET=1"}, KeepFDs: 1}
	waiting, err := s.Start(ctx, p, []*os.File{secretR, secretW, secretW, secretR})
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{1, waiting} {
		for _, script := range []string{
			"cat /proc/$1/environ", "cat /proc/$1/maps", "ls /proc/$1/fd", "ls /proc/$1/fdinfo", "ls /proc/$1/root/", "ls /proc/$1/cwd/",
			": < /proc/$1/mem", ": > /proc/$1/mem", ": > /proc/$1/oom_score_adj", "cat /proc/$1/auxv", "cat /proc/$1/syscall", "cat /proc/$1/stack",
			"cat /proc/$1/task/$1/mem", "ls /proc/$1/map_files", "readlink /proc/$1/exe", "cat /proc/$1/io",
			"prlimit --pid $1 --nofile=3:3", "cat < /proc/$1/fd/100", "cat < /proc/$1/fd/0", "nsenter -t $1 -p true",
		} {
			r := s.sh(t, script, strconv.Itoa(pid))
			if r.status.ExitCode() == 0 || r.out != "" {
				t.Errorf("%s with pid %d: code %d, out %.60q", script, pid, r.status.ExitCode(), r.out)
			}
		}
	}
	if r := s.sh(t, "kill -9 1; kill -19 1; kill -11 1; echo lived"); r.out != "lived\n" {
		t.Errorf("kill: %+v", r)
	}

	t.Log("pidfd_getfd of the channel, and ptrace, in Python")
	py := fmt.Sprintf(`
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in (1, %d):
    fd = os.pidfd_open(pid)
    for n in (0, 1, 3, 100, 101):
        assert libc.syscall(438, fd, n, 0) == -1, ("pidfd_getfd", pid, n)
    for req in (16, 0x4206):
        assert libc.ptrace(req, pid, 0, 0) == -1, ("ptrace", pid, req)
print("refused")`, waiting)
	r := s.exec(t, agentinit.Process{Argv: []string{"python3", "-c", py}, Env: shEnv}, "")
	if r.fail == nil && r.out != "refused\n" {
		t.Errorf("python: %+v", r)
	}

	t.Log("an exec that waits is killed by the agent")
	if r := s.sh(t, "kill -9 $1", strconv.Itoa(waiting)); r.status.ExitCode() != 0 {
		t.Errorf("kill: %+v", r)
	}
	var e *agentinit.ExecError
	if _, err := s.Release(ctx, "waiting"); !errors.As(err, &e) || e.Stage != agentinit.StageKilled {
		t.Errorf("Release = %v", err)
	}
	if err := s.Ack(ctx, "waiting"); err != nil {
		t.Error(err)
	}
}

// TestFilter: the filter and the limits are those of every child.
func TestFilter(t *testing.T) {
	s := filtered(t, agentinit.Rlimit{Resource: unix.RLIMIT_CORE}, agentinit.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: 256, Hard: 512})
	r := s.sh(t, "ulimit -c; ulimit -Sn; ulimit -Hn; while read -r k v; do case $k in Seccomp:|NoNewPrivs:|CapBnd:|CapEff:) echo $k $v;; esac; done </proc/self/status")
	if want := "0\n256\n512\nCapEff: 0000000000000000\n"; !strings.HasPrefix(r.out, want) || !strings.Contains(r.out, "NoNewPrivs: 1\nSeccomp: 2\n") {
		t.Errorf("%q, want %q", r.out, want)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", s.cmd.Process.Pid, th.Name()))
		if err == nil && !strings.Contains(string(b), "Seccomp:\t2\n") {
			t.Errorf("thread %s has no filter", th.Name())
		}
	}
	s = newSandbox(t, nil)
	s.take(t)
	up := agentinit.Rlimit{Resource: unix.RLIMIT_NOFILE, Soft: 1, Hard: unix.RLIM_INFINITY}
	if err := s.Setup(deadline(t), agentinit.Setup{Rlimits: []agentinit.Rlimit{up}}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("raising a limit: %v", err)
	}
	if err := s.Setup(deadline(t), agentinit.Setup{Filter: make([]byte, 8)}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a filter that is none: %v", err)
	}
}

// TestForkBomb: with no process to be had, a start fails and says so.
func TestForkBomb(t *testing.T) {
	s := filtered(t, agentinit.Rlimit{Resource: unix.RLIMIT_NPROC, Soft: 24, Hard: 24})
	s.quiet(t, "bomb", "while :; do sleep 5 & done 2>/dev/null; wait")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var waiting []string
	eventually(t, "fork is refused", func() bool {
		id := fmt.Sprintf("f%d", len(waiting))
		p := agentinit.Process{ID: id, Argv: []string{"true"}, Env: shEnv}
		_, err := s.Start(deadline(t), p, []*os.File{null, null, null})
		if e, ok := errors.AsType[*agentinit.ExecError](err); ok {
			if e.Stage != agentinit.StageFork || !errors.Is(err, unix.EAGAIN) {
				t.Errorf("Start = %v", err)
			}
			return true
		}
		if err != nil {
			t.Fatal(err)
		}
		// It waits and so keeps its place: the shell ends at the first fork
		// that is refused to itself, and leaves room.
		waiting = append(waiting, id)
		return false
	})
	for _, id := range waiting {
		if err := s.Cancel(deadline(t), id); err != nil {
			t.Error(err)
		}
	}
	if err := s.Err(); err != nil {
		t.Errorf("PID 1: %v", err)
	}
}

// TestProbe: without a filter the probe says what is missing, with the
// kernel's own refusals it says what is not.
func TestProbe(t *testing.T) {
	s := newSandbox(t, nil)
	hello := s.take(t)
	t.Logf("keyring %q", hello.Keyring)
	rows, err := s.Probe(deadline(t), agentinit.ProbeOptions{ReadonlyRoot: true, NoRoute: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 60 {
		t.Errorf("%d rows", len(rows))
	}
	ok := map[string]bool{}
	for _, r := range rows {
		if _, twice := ok[r.Name]; twice || r.Name == "" {
			t.Errorf("row %q twice or without name", r.Name)
		}
		ok[r.Name] = r.OK()
	}
	for _, name := range []string{"setuid 0", "setresuid 0", "route to 1.1.1.1", "write /proc/1/mem", "write /proc/sys/kernel/core_pattern"} {
		if !ok[name] {
			t.Errorf("%s: not ok, which the kernel alone refuses", name)
		}
	}
	for _, name := range []string{"io_uring_setup", "fchmod set-user-id", "ioctl TIOCSTI", "prlimit64 pid 1", "socket mptcp", "unshare user"} {
		if ok[name] {
			t.Errorf("%s: ok, without a filter", name)
		}
	}
	for _, r := range rows {
		t.Logf("%-32s want %-28v got %v", r.Name, r.Want, r.Got)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
}
