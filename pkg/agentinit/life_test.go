package agentinit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
)

// shEnv is the environment of the tests' shells.
var shEnv = []string{"PATH=/usr/bin:/bin", "HOME=" + home}

// quiet starts and releases a script whose stdio is /dev/null.
func (s *sandbox) quiet(tb testing.TB, id, script string) {
	tb.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer null.Close()
	p := agentinit.Process{ID: id, Argv: []string{"sh", "-c", script}, Env: shEnv}
	if _, err := s.Start(deadline(tb), p, []*os.File{null, null, null}); err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Release(deadline(tb), id); err != nil {
		tb.Fatal(err)
	}
}

func (s *sandbox) wait(tb testing.TB, id string) int {
	tb.Helper()
	st, err := s.Wait(deadline(tb), id)
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Ack(deadline(tb), id); err != nil {
		tb.Fatal(err)
	}
	return st.ExitCode()
}

// eventually waits for something that only the kernel's work delays.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	tb.Fatalf("%s: not within 20 s", what)
}

func TestSignals(t *testing.T) {
	s := running(t)
	t.Log("what a runtime sends to PID 1 reaches the main command")
	r, w := pipe(t)
	p := agentinit.Process{ID: "main", Argv: []string{"sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.02; done"}, Env: shEnv}
	if _, err := s.Start(deadline(t), p, []*os.File{r, w, w}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Release(deadline(t), "main"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	if err := unix.PidfdSendSignal(s.pidfd, unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	if code := s.wait(t, "main"); code != 7 {
		t.Errorf("main exited with %d", code)
	}

	t.Log("a storm from inside, of every signal, does not hurt PID 1")
	res := s.sh(t, "for i in $(seq 200); do for s in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 34 40 64; do kill -$s 1; done; done; echo done")
	if res.out != "done\n" {
		t.Errorf("storm: %+v", res)
	}
	if res := s.sh(t, "echo alive"); res.out != "alive\n" {
		t.Errorf("after the storm: %+v", res)
	}

	s.quiet(t, "sig", "exec sleep 60")
	if err := s.Signal(deadline(t), "sig", int(unix.SIGINT)); err != nil {
		t.Fatal(err)
	}
	if code := s.wait(t, "sig"); code != 130 {
		t.Errorf("exit code %d", code)
	}
}

func TestReaping(t *testing.T) {
	s := running(t)
	if r := s.sh(t, "for i in $(seq 300); do (sleep 0.05 &) ; done; echo made"); r.out != "made\n" {
		t.Fatal(r)
	}
	eventually(t, "all orphans reaped", func() bool {
		return len(children(t, s.cmd.Process.Pid)) == 0
	})
}

// children are the pids, of this namespace, whose parent is pid.
func children(tb testing.TB, pid int) []int {
	tb.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		tb.Fatalf("tasks of %d: %q, %v", pid, tasks, err)
	}
	var out []int
	for _, path := range tasks {
		b, _ := os.ReadFile(path) // a thread may end
		for f := range strings.FieldsSeq(string(b)) {
			var n int
			if _, err := fmt.Sscan(f, &n); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

func openFDs(tb testing.TB, pid int) []string {
	tb.Helper()
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for _, e := range es {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name()))
		out = append(out, e.Name()+" "+link)
	}
	return out
}

func TestManyExecs(t *testing.T) {
	s := running(t)
	n := 2000
	if testing.Short() {
		n = 200
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t)
	run := func(i int) {
		id := fmt.Sprintf("n%d", i)
		p := agentinit.Process{ID: id, Argv: []string{"true"}, Env: shEnv}
		if i%10 == 9 {
			p.Argv[0] = "no-such-command"
		}
		if _, err := s.Start(ctx, p, []*os.File{null, null, null}); err != nil {
			t.Fatal(err)
		}
		if i%10 == 8 {
			if err := s.Cancel(ctx, id); err != nil {
				t.Fatal(err)
			}
			return
		}
		_, _ = s.Release(ctx, id)
		_, _ = s.Wait(ctx, id)
		if err := s.Ack(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		run(i)
	}
	pid := s.cmd.Process.Pid
	want := agentinit.Descriptors(landlock)
	for _, fd := range openFDs(t, pid) {
		var n int
		var link string
		if _, err := fmt.Sscan(fd, &n, &link); err != nil {
			t.Fatal(err)
		}
		if target, ok := want[n]; !ok || !strings.HasPrefix(link, target) {
			t.Errorf("descriptor %s of PID 1 is not in Descriptors", fd)
		}
		delete(want, n)
	}
	if len(want) != 0 {
		t.Errorf("descriptors missing in PID 1: %v", want)
	}
	fds, mine := openFDs(t, pid), len(openFDs(t, os.Getpid()))
	for i := 50; i < n; i++ {
		run(i)
	}
	if got := openFDs(t, pid); !slices.Equal(got, fds) {
		t.Errorf("descriptors of PID 1:\n%q\nbefore:\n%q", got, fds)
	}
	if got := len(openFDs(t, os.Getpid())); got > mine+1 {
		t.Errorf("%d descriptors here, %d before", got, mine)
	}
	if kb := pss(t, pid); kb > 6<<10 {
		t.Errorf("PSS after %d execs: %d KiB", n, kb)
	}
	live, finished, err := s.Resume(ctx)
	if err != nil || len(live)+len(finished) != 0 {
		t.Errorf("left: %v, %v, %v", live, finished, err)
	}
}

func pss(tb testing.TB, pid int) (kb int) {
	tb.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nPss:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		tb.Fatal(err)
	}
	return kb
}

// TestResume: a daemon that was killed takes the channel again and finds
// what runs, what waits, what has ended, and the output it did not read.
func TestResume(t *testing.T) {
	s := running(t)
	ctx := deadline(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	outR, out := pipe(t)
	p := agentinit.Process{ID: "kept", Argv: []string{"sh", "-c", "echo before; read x; echo after; exit 3"}, Env: shEnv, KeepFDs: 2}
	in, inW := pipe(t)
	if _, err := s.Start(ctx, p, []*os.File{in, out, null, outR, inW}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{in, out, outR, inW} {
		_ = f.Close() // as if this process had been killed
	}
	stamp, err := s.Release(ctx, "kept")
	if err != nil {
		t.Fatal(err)
	}
	waiting := agentinit.Process{ID: "waiting", Argv: []string{"true"}, Env: shEnv}
	if _, err := s.Start(ctx, waiting, []*os.File{null, null, null}); err != nil {
		t.Fatal(err)
	}
	s.quiet(t, "ended", "exit 9")
	if _, err := s.Wait(ctx, "ended"); err != nil {
		t.Fatal(err)
	}
	nobody := agentinit.Process{ID: "nobody", Argv: []string{"no-such"}, Env: shEnv}
	if _, err := s.Start(ctx, nobody, []*os.File{null, null, null}); err != nil {
		t.Fatal(err)
	}
	_, _ = s.Release(ctx, "nobody")
	s.quiet(t, "later", "sleep 0.2; exit 4") // ends while there is no daemon
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(ctx, "later"); !errors.Is(err, agentinit.ErrGone) {
		t.Errorf("Wait on a closed host: %v", err)
	}
	pid := s.cmd.Process.Pid
	eventually(t, "later ends", func() bool { return len(children(t, pid)) == 2 })

	hello := s.take(t)
	if !hello.Ready || !hello.Gone {
		t.Errorf("hello = %+v", hello)
	}
	live, finished, err := s.Resume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	var kept agentinit.Live
	for _, l := range live {
		states[l.ID] = fmt.Sprint("live ", l.Released)
		if l.ID == "kept" {
			kept = l
		}
		host, err := agentinit.MatchNSPid(children(t, pid), l.NSPid)
		if err != nil || host <= 1 {
			t.Errorf("%s: MatchNSPid = %d, %v", l.ID, host, err)
		}
	}
	for _, f := range finished {
		states[f.ID] = fmt.Sprint("finished ", f.Status.ExitCode(), " ", f.Err)
		if f.Err != nil {
			states[f.ID] = "failed " + f.Err.Error()
		}
	}
	want := map[string]string{
		"kept": "live true", "waiting": "live false", "ended": "finished 9 <nil>",
		"later": "finished 4 <nil>", "nobody": "failed exec: no such file or directory",
	}
	if fmt.Sprint(states) != fmt.Sprint(want) {
		t.Errorf("states %v\nwant   %v", states, want)
	}
	if kept.Stamp != stamp || len(kept.KeepFDs) != 2 {
		t.Fatalf("kept = %+v, stamp %d", kept, stamp)
	}
	var got [2]*os.File
	for i, n := range kept.KeepFDs {
		fd, err := unix.PidfdGetfd(s.pidfd, n, 0)
		if err != nil {
			t.Fatal(err)
		}
		got[i] = os.NewFile(uintptr(fd), "kept")
		defer got[i].Close()
	}
	if _, err := got[1].WriteString("x\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Release(ctx, "waiting"); err != nil {
		t.Error(err)
	}
	for id, code := range map[string]int{"kept": 3, "waiting": 0, "ended": 9, "later": 4} {
		if c := s.wait(t, id); c != code {
			t.Errorf("%s: code %d, want %d", id, c, code)
		}
	}
	var ee *agentinit.ExecError
	if _, err := s.Wait(ctx, "nobody"); !errors.As(err, &ee) {
		t.Errorf("Wait(nobody) = %v", err)
	}
	b, err := io.ReadAll(got[0])
	if err != nil || string(b) != "before\nafter\n" {
		t.Errorf("output %q, %v", b, err)
	}
}

// TestTakeAgain floods the channel with answers that nobody reads.
func TestTakeAgain(t *testing.T) {
	s := running(t)
	for round := range 3 {
		ctx, cancel := context.WithCancel(deadline(t))
		for i := range 200 {
			id := fmt.Sprintf("r%d-%d", round, i)
			s.quiet(t, id, "exit 0")
		}
		cancel()
		_ = ctx
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s.take(t)
		live, finished, err := s.Resume(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range live {
			s.wait(t, l.ID)
		}
		for _, f := range finished {
			s.wait(t, f.ID)
		}
		if len(live)+len(finished) != 200 {
			t.Errorf("round %d: %d live, %d finished", round, len(live), len(finished))
		}
	}
}

func TestTTY(t *testing.T) {
	s := running(t)
	master, slave := openPty(t)
	p := agentinit.Process{ID: "tty", Argv: []string{"sh", "-c", "tty >/dev/null && stty size </dev/tty && read x && echo got $x"}, Env: shEnv, TTY: true, Cols: 81, Rows: 25}
	if _, err := s.Start(deadline(t), p, []*os.File{slave}); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	if _, err := s.Release(deadline(t), "tty"); err != nil {
		t.Fatal(err)
	}
	if _, err := master.WriteString("word\n"); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(master) // ends with EIO
	if !strings.Contains(string(out), "25 81\r\n") || !strings.Contains(string(out), "got word\r\n") {
		t.Errorf("output %q", out)
	}
	if code := s.wait(t, "tty"); code != 0 {
		t.Errorf("code %d", code)
	}
	t.Log("a pipe cannot be a controlling terminal")
	r, w := pipe(t)
	defer w.Close()
	p.ID = "no-tty"
	if _, err := s.Start(deadline(t), p, []*os.File{r}); err != nil {
		t.Fatal(err)
	}
	var e *agentinit.ExecError
	if _, err := s.Release(deadline(t), p.ID); !errors.As(err, &e) || e.Stage != agentinit.StageTTY || !errors.Is(err, unix.ENOTTY) {
		t.Errorf("Release = %v", err)
	}
}

func openPty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	if err := os.Chown(path, hostBase+agentUID, hostBase+agentUID); err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	return master, slave
}

func TestTakeGone(t *testing.T) {
	var pidfd int
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := agentinit.Take(ctx, pidfd); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Take of a process that is no creel-init: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if _, err := agentinit.Take(t.Context(), pidfd); !errors.Is(err, agentinit.ErrGone) {
		t.Errorf("Take of a dead process: %v", err)
	}
}
