package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/runtime"

	"golang.org/x/sys/unix"
)

// BenchmarkLaunch reports the median of each step, in milliseconds, on the
// scratch directory's file system and with containerd's parts on tmpfs.
func BenchmarkLaunch(b *testing.B) {
	for _, v := range []struct {
		name, rt string
		tmpfs    []string // which directories
		noSync   bool
	}{
		{name: "crun/disk", rt: "crun"},
		{name: "crun/state-tmpfs", rt: "crun", tmpfs: []string{"s"}},
		{name: "crun/state-tmpfs-nosync", rt: "crun", tmpfs: []string{"s"}, noSync: true},
		{name: "crun/all-tmpfs", rt: "crun", tmpfs: []string{"r", "s"}},
		{name: "runc/state-tmpfs", rt: "runc", tmpfs: []string{"s"}},
	} {
		b.Run(v.name, func(b *testing.B) {
			e := startIn(b, v.noSync, v.tmpfs...)
			importBusybox(b, e)
			took := map[string][]time.Duration{}
			n := 0
			for b.Loop() {
				n++
				e.cycle(b, fmt.Sprintf("bench-%d", n), v.rt, took)
			}
			for name, d := range took {
				slices.Sort(d)
				b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, name+"-ms")
			}
		})
	}
}

// cycle launches and removes a sandbox and adds what each step took.
func (e *env) cycle(b *testing.B, id, rt string, took map[string][]time.Duration) {
	b.Helper()
	c := e.Client()
	step := func(name string, fn func() error) {
		at := time.Now()
		if err := fn(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took[name] = append(took[name], time.Since(at))
	}
	var sb *runtime.Sandbox
	var pid int
	step("ready", func() error {
		step("create", func() (err error) {
			sb, err = c.Create(b.Context(), runtime.CreateOptions{ID: id, Image: "busybox", Runtime: rt, HostUID: hostUID, Spec: spec(id, "/bin/sleep", "1000")})
			return err
		})
		step("newtask", func() (err error) { pid, err = c.NewTask(b.Context(), sb); return err })
		step("start", func() error { return c.StartTask(b.Context(), id) })
		return nil
	})
	step("kill", func() error { return killWait(pid) })
	step("deltask", func() error { return c.DeleteTask(b.Context(), id) })
	step("delctr", func() error { return c.DeleteContainer(b.Context(), id) })
}

// BenchmarkIdle reports the memory of idle shims, in KiB each, and what their
// creation took, by the collector's settings.
func BenchmarkIdle(b *testing.B) {
	for _, shimEnv := range [][]string{{}, {"GOGC=25"}} {
		b.Run(strings.Join(append([]string{"env"}, shimEnv...), ","), func(b *testing.B) {
			e := start(b)
			importBusybox(b, e)
			if err := e.Close(); err != nil {
				b.Fatal(err)
			}
			e.cfg.ShimEnv = shimEnv
			e.up(b)
			for b.Loop() {
				e.idle(b, 20)
			}
		})
	}
}

func (e *env) idle(b *testing.B, shims int) {
	b.Helper()
	before := memory(b, e.Pid(), "Pss")
	at := time.Now()
	for i := range shims {
		e.launch(b, "idle-"+strconv.Itoa(i), "crun")
	}
	b.ReportMetric(float64(time.Since(at).Milliseconds())/float64(shims), "launch-ms")
	var pss, private int
	for i := range shims {
		p := e.shimOf(b, "idle-"+strconv.Itoa(i))
		pss += memory(b, p, "Pss")
		private += memory(b, p, "Private_Dirty")
	}
	b.ReportMetric(float64(pss)/float64(shims), "shim-pss-KiB")
	b.ReportMetric(float64(private)/float64(shims), "shim-private-KiB")
	b.ReportMetric(float64(memory(b, e.Pid(), "Pss")-before)/float64(shims), "containerd-growth-KiB")
	for i := range shims {
		if err := e.Client().Cleanup(b.Context(), "idle-"+strconv.Itoa(i)); err != nil {
			b.Fatal(err)
		}
	}
}

// memory reads a line of smaps_rollup, in KiB.
func memory(b *testing.B, pid int, field string) int {
	b.Helper()
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s", field)
	return 0
}

// killWait ends a process and waits for its end.
func killWait(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	return err
}
