package proctree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const boot = 1000 * time.Second

func statLine(name string) string {
	return "4242 (" + name + ") S 17 1 1 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 99000 1000000 256 18446744073709551615 1 1"
}

func TestParseStat(t *testing.T) {
	for _, name := range []string{"sh", "a) R 1 (b", "new\nline", ")", "", "\x1b[2J"} {
		f, err := parseStat(statLine(name), boot)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if f.Comm != name || f.ppid != 17 || f.State != "S" || f.CPUSeconds != 2 || f.Threads != 3 || f.MemoryBytes != 256*int64(os.Getpagesize()) {
			t.Errorf("%q: %+v", name, f)
		}
		if age := time.Since(f.Started); age < 9*time.Second || age > 11*time.Second {
			t.Errorf("%q: started %v ago, want 10 s", name, age)
		}
	}
	if f, err := parseStat(statLine("bad \xff"), boot); err != nil || f.Comm != "bad \ufffd" {
		t.Errorf("a name that is no UTF-8: %q, %v", f.Comm, err)
	}
	for _, bad := range []string{"", "1", "1 (a", "1 a) S", "1 (a) S 1 2", strings.Replace(statLine("a"), " 17 ", " x ", 1), strings.Replace(statLine("a"), ") S", ") SS", 1)} {
		if f, err := parseStat(bad, boot); err == nil {
			t.Errorf("%q is read as %+v", bad, f)
		}
	}
}

func TestParseNSPid(t *testing.T) {
	for text, want := range map[string]int{
		"Name:\tx\nNSpid:\t4242\t7\n":             7,
		"NSpid:\t4242\t7\t1\n":                    7, // in a namespace below the sandbox's
		"Name:\ta\\nNSpid:\t1\t2\nNSpid:\t9\t8\n": 8, // the kernel escapes line ends
		"NSpid:\t4242\n":                          0,
		"NSpid:\tx\ty\n":                          0,
		"Name:\tx\n":                              0,
		"":                                        0,
	} {
		got, err := parseNSPid(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q is %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestSplitArgs(t *testing.T) {
	for text, want := range map[string][]string{
		"":                  nil,
		"\x00":              nil,
		"sh\x00-c\x00x\x00": {"sh", "-c", "x"},
		"a\x00\x00":         {"a", ""},
		"cut":               {"cut"},
		"bad \xff\x00":      {"bad \ufffd"},
	} {
		if diff := cmp.Diff(want, splitArgs([]byte(text))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(statLine("a"), "NSpid:\t1\t2\n")
	f.Fuzz(func(_ *testing.T, stat, status string) {
		_, _ = parseStat(stat, boot)
		_, _ = parseNSPid(status)
		_ = splitArgs([]byte(stat))
	})
}

// sleeper is a process of the test's own.
func sleeper(t *testing.T, args ...string) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sleep", append([]string{"1000"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// Start returns when execve has closed its pipe, a moment before the
	// arguments are where /proc shows them.
	for {
		if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid)); err != nil || len(text) > 0 {
			return cmd.Process.Pid
		}
		time.Sleep(time.Millisecond)
	}
}

// A process of the test has no pid namespace of its own, which is refused;
// the whole way is tested with sandboxes, in integration.
func TestOutsideNamespace(t *testing.T) {
	pid := sleeper(t)
	g := Group{Pids: func() ([]int, error) { return []int{pid}, nil }}
	if got, _, err := New().Read(t.Context(), []Group{g}, 10); err == nil || !strings.Contains(err.Error(), "no pid namespace") {
		t.Errorf("a process of the host is shown: %+v, %v", got, err)
	}
}

// A number that is another process's by the time it is held, or that ended,
// is passed over.
func TestRecycled(t *testing.T) {
	pid := sleeper(t)
	asked := 0
	g := Group{Pids: func() ([]int, error) {
		if asked++; asked == 1 {
			return []int{pid, 1 << 30}, nil
		}
		return nil, nil
	}}
	got, more, err := New().Read(t.Context(), []Group{g}, 10)
	if err != nil || len(got) != 0 || got == nil || more {
		t.Errorf("Read = %+v, %v, %v, want an empty list", got, more, err)
	}
	if asked != 2 {
		t.Errorf("the group was asked %d times, want before and after", asked)
	}
}

func TestGroupFails(t *testing.T) {
	failure := errors.New("gone wrong")
	asked := 0
	g := Group{Pids: func() ([]int, error) {
		if asked++; asked == 1 {
			return []int{os.Getpid()}, nil
		}
		return nil, failure
	}}
	if _, _, err := New().Read(t.Context(), []Group{g}, 10); !errors.Is(err, failure) {
		t.Errorf("Read = %v, want %v", err, failure)
	}
}

func held(t *testing.T) []proc {
	t.Helper()
	p, err := open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return []proc{p}
}

// TestHang has arguments that cannot be read: others do without after the
// time, and the goroutines that hang are bounded.
func TestHang(t *testing.T) {
	r := New()
	release := make(chan struct{})
	var mu sync.Mutex
	hung := 0
	r.args = func(proc) ([]string, bool, error) {
		mu.Lock()
		hung++
		mu.Unlock()
		<-release
		return []string{"late"}, false, nil
	}
	set := func(int, []string, bool) { t.Error("arguments that came late are used") }
	for range stuck + 3 {
		r.readArgs(held(t), time.Now().Add(20*time.Millisecond), set)
	}
	mu.Lock()
	if hung != stuck {
		t.Errorf("%d reads hang, want %d at most", hung, stuck)
	}
	mu.Unlock()
	close(release)
	for range stuck { // all of them let go
		r.stuck <- struct{}{}
	}
	for range stuck {
		<-r.stuck
	}
	r.args = proc.args
	var args []string
	r.readArgs(held(t), time.Now().Add(10*time.Second), func(_ int, a []string, _ bool) { args = a })
	if len(args) == 0 || args[0] != os.Args[0][:min(len(os.Args[0]), maxArgs)] {
		t.Errorf("arguments = %q", args)
	}
}

func TestArgsBounded(t *testing.T) {
	p, err := open(sleeper(t, strings.Repeat("1", 4000)))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	args, cut, err := p.args()
	if err != nil || !cut || len(strings.Join(args, " ")) != maxArgs {
		t.Errorf("%d arguments of %d bytes, %v, %v", len(args), len(strings.Join(args, " ")), cut, err)
	}
}

func TestReaders(t *testing.T) {
	r := New()
	for range readers {
		r.readers <- struct{}{}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("hung up")
	cancel(why)
	if _, _, err := r.Read(ctx, nil, 10); !errors.Is(err, why) {
		t.Errorf("Read with no place = %v", err)
	}
}

func TestInSandbox(t *testing.T) {
	f := func(pid, ppid, inner int, exec string) found {
		out := found{pid: pid, ppid: ppid}
		out.PID, out.Exec = inner, exec
		return out
	}
	var got [][2]int
	for _, p := range inSandbox([]found{f(100, 7, 1, ""), f(300, 200, 5, "main"), f(200, 100, 9, "main"), f(50, 400, 2, "b")}) {
		got = append(got, [2]int{p.PID, p.PPID})
	}
	if diff := cmp.Diff([][2]int{{1, 0}, {5, 9}, {9, 1}, {2, 0}}, got); diff != "" {
		t.Errorf("pids and parents (-want +got):\n%s", diff)
	}
}
