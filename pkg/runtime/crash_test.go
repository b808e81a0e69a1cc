package runtime_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/runtime"

	"golang.org/x/sys/unix"
)

// launch runs a sandbox that sleeps and returns its PID 1.
func (e *env) launch(tb testing.TB, id, rt string) int {
	tb.Helper()
	c := e.Client()
	sb, err := c.Create(tb.Context(), runtime.CreateOptions{
		ID: id, Image: "busybox", Runtime: rt, HostUID: hostUID,
		Spec: spec(id, "/bin/sleep", "1000"), Labels: map[string]string{"creel/test": id},
	})
	if err != nil {
		tb.Fatal(err)
	}
	pid, err := c.NewTask(tb.Context(), sb)
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.StartTask(tb.Context(), id); err != nil {
		tb.Fatal(err)
	}
	return pid
}

// shimOf finds the shim of a sandbox in the process table.
func (e *env) shimOf(tb testing.TB, id string) int {
	tb.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	for _, d := range dirs {
		b, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		if s := string(b); strings.Contains(s, "-id\x00"+id+"\x00") && strings.Contains(s, e.cfg.Address()) {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(d), &pid); err == nil {
				return pid
			}
		}
	}
	tb.Fatalf("no shim of %s", id)
	return 0
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// eventually waits for a condition that another process brings about.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	tb.Fatalf("not in 15 s: %s", what)
}

// nothing fails the test if anything is left of any sandbox.
func (e *env) nothing(tb testing.TB) {
	tb.Helper()
	found, err := e.Client().List(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	if len(found) > 0 {
		tb.Errorf("left: %+v", found)
	}
	left, err := e.Client().Leftovers(tb.Context(), func(string) bool { return false })
	if err != nil || len(left) > 0 {
		tb.Errorf("leftovers: %q (%v)", left, err)
	}
	for _, d := range []string{"s", "oci/creel", "containerd/io.containerd.runtime.v2.task/creel", "tmp"} {
		entries, _ := os.ReadDir(filepath.Join(e.cfg.State, d))
		for _, de := range entries {
			tb.Errorf("left: %s/%s", d, de.Name())
		}
	}
	entries, _ := os.ReadDir(filepath.Join(e.cfg.Root, "containerd/io.containerd.runtime.v2.task/creel"))
	for _, de := range entries {
		tb.Errorf("left below root: %s", de.Name())
	}
}

func TestCleanupAfterKill(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	kill := func(t *testing.T, pid int, sig syscall.Signal) {
		t.Helper()
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	containerd := func(t *testing.T) {
		old := e.Pid()
		kill(t, old, unix.SIGKILL)
		eventually(t, "containerd runs again", func() bool { p := e.Pid(); return p != 0 && p != old })
	}
	tests := []struct {
		name string
		do   func(t *testing.T, id string, pid int)
	}{
		{"nothing", func(*testing.T, string, int) {}},
		{"init", func(t *testing.T, _ string, pid int) { kill(t, pid, unix.SIGKILL) }},
		{"shim", func(t *testing.T, id string, _ int) { kill(t, e.shimOf(t, id), unix.SIGKILL) }},
		{"hung shim", func(t *testing.T, id string, _ int) { kill(t, e.shimOf(t, id), unix.SIGSTOP) }},
		{"containerd", func(t *testing.T, _ string, _ int) { containerd(t) }},
		{"containerd and shim", func(t *testing.T, id string, _ int) {
			shim := e.shimOf(t, id)
			kill(t, e.Pid(), unix.SIGSTOP)
			kill(t, shim, unix.SIGKILL)
			containerd(t)
		}},
	}
	for _, rt := range []string{"crun", "runc"} {
		for i, tt := range tests {
			t.Run(rt+"/"+tt.name, func(t *testing.T) {
				id := fmt.Sprintf("kill-%s-%d", rt, i)
				pid := e.launch(t, id, rt)
				tt.do(t, id, pid)
				if err := e.Client().Cleanup(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				eventually(t, "PID 1 ends", func() bool { return !alive(pid) })
				e.nothing(t)
				if err := e.Client().Cleanup(t.Context(), id); err != nil {
					t.Errorf("again: %v", err)
				}
				if left := mountsBelow(t, e.cfg.State); len(left) > 0 {
					t.Errorf("mounts left: %q", left)
				}
			})
		}
	}
}

// TestCleanupHalfMade removes what each step of a launch leaves when the
// daemon dies right after it.
func TestCleanupHalfMade(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	c := e.Client()
	opts := func(id string) runtime.CreateOptions {
		return runtime.CreateOptions{ID: id, Image: "busybox", Runtime: "crun", HostUID: hostUID, Spec: spec(id, "/bin/sleep", "1000")}
	}
	if _, err := c.Create(t.Context(), opts("half-1")); err != nil {
		t.Fatal(err)
	}
	sb, err := c.Create(t.Context(), opts("half-2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NewTask(t.Context(), sb); err != nil { // created, not started
		t.Fatal(err)
	}
	sb, err = c.Create(t.Context(), opts("half-3"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Millisecond)
	defer cancel()
	if _, err := c.NewTask(ctx, sb); err == nil {
		t.Log("the task was made in time") // either way it goes
	}
	for _, id := range []string{"half-1", "half-2", "half-3"} {
		if err := c.Cleanup(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	e.nothing(t)
}

func TestCreateRefused(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	tests := []struct {
		name   string
		change func(*runtime.CreateOptions)
		code   api.Code
	}{
		{"annotation", func(o *runtime.CreateOptions) {
			o.Spec.Annotations = map[string]string{"io.containerd.runc.v2.group": "x"}
		}, api.CodeInternal},
		{"foreign label", func(o *runtime.CreateOptions) {
			o.Labels = map[string]string{"containerd.io/restart.loguri": "binary:///bin/sh"}
		}, api.CodeInternal},
		{"root's range", func(o *runtime.CreateOptions) { o.HostUID = 0 }, api.CodeInternal},
		{"climbing id", func(o *runtime.CreateOptions) { o.ID = "../x" }, api.CodeInternal},
		{"missing image", func(o *runtime.CreateOptions) { o.Image = "nothere" }, api.CodeNotFound},
		{"unknown runtime", func(o *runtime.CreateOptions) { o.Runtime = "kata" }, api.CodeInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := runtime.CreateOptions{ID: "refused", Image: "busybox", Runtime: "crun", HostUID: hostUID, Spec: spec("refused", "/bin/sh")}
			tt.change(&o)
			if _, err := e.Client().Create(t.Context(), o); api.CodeOf(err) != tt.code {
				t.Errorf("error %v is %s, want %s", err, api.CodeOf(err), tt.code)
			}
			e.nothing(t)
		})
	}
}

func TestSupervise(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	first := e.Pid()
	pid := e.launch(t, "survivor", "crun")

	if _, err := runtime.Start(t.Context(), e.cfg); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second supervisor: %v", err)
	}

	// The daemon goes and comes back: the same containerd.
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e.up(t)
	if e.Pid() != first {
		t.Errorf("containerd %d after the daemon's restart, want %d", e.Pid(), first)
	}

	// containerd dies: calls fail with a class, then work again.
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd runs again", func() bool { p := e.Pid(); return p != 0 && p != first })
	if got, err := e.Client().Pid(t.Context(), "survivor"); err != nil || got != pid {
		t.Errorf("sandbox has PID 1 %d (%v), want %d", got, err, pid)
	}

	// Another configuration: another containerd, the same sandbox.
	second := e.Pid()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	e.cfg.NoSync = true
	e.up(t)
	if e.Pid() == second || alive(second) {
		t.Errorf("containerd %d still runs with the old configuration", second)
	}
	if got, err := e.Client().Pid(t.Context(), "survivor"); err != nil || got != pid || !alive(pid) {
		t.Errorf("sandbox has PID 1 %d (%v), want %d", got, err, pid)
	}
	if err := e.Client().Cleanup(t.Context(), "survivor"); err != nil {
		t.Fatal(err)
	}
	e.nothing(t)
}

func TestUnavailable(t *testing.T) {
	c, err := runtime.Connect(runtime.Options{Address: filepath.Join(t.TempDir(), "none.sock"), Bin: "/nonexistent", State: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Version(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("version: %v (%s), want unavailable", err, api.CodeOf(err))
	}
	if err := c.Cleanup(t.Context(), "x"); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("cleanup: %v (%s), want unavailable", err, api.CodeOf(err))
	}
}

func TestSocketIsPrivate(t *testing.T) {
	e := start(t)
	for _, p := range []string{e.cfg.Address(), e.cfg.Address() + ".ttrpc"} {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
	}
	for _, p := range []string{e.cfg.Root, filepath.Join(e.cfg.State, "s")} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want 0700", p, fi.Mode(), err)
		}
	}
}
