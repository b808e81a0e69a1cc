package runtime_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gort "runtime"

	"github.com/creel-sandbox/creel/pkg/runtime"

	"golang.org/x/sys/unix"
)

const (
	goarch  = gort.GOARCH
	hostUID = 0x7800_0000
)

func TestTaskLife(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	for _, rt := range []string{"crun", "runc"} {
		t.Run(rt, func(t *testing.T) {
			c := e.Client()
			id := "life-" + rt
			sb, err := c.Create(t.Context(), runtime.CreateOptions{
				ID: id, Image: "busybox", Runtime: rt, HostUID: hostUID,
				Spec: spec(id, hostUID, "/bin/sleep", "1000"),
			})
			if err != nil {
				t.Fatal(err)
			}
			pid, err := c.NewTask(t.Context(), sb)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.StartTask(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			status, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "status"))
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprint("Uid:\t", hostUID+1000)
			if !strings.Contains(string(status), want) {
				t.Errorf("status of PID 1 has no %q:\n%s", want, status)
			}
			// The image's files are root's inside: id-mapped, not root's outside.
			var st unix.Stat_t
			if err := unix.Stat(fmt.Sprintf("/proc/%d/root/bin/busybox", pid), &st); err != nil || st.Uid != hostUID {
				t.Errorf("owner of the image's file is %d (%v), want %d", st.Uid, err, hostUID)
			}
			if err := c.DeleteTask(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if err := c.DeleteContainer(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			// Again: nothing there is success.
			if err := c.DeleteTask(t.Context(), id); err != nil {
				t.Error(err)
			}
			if err := c.DeleteContainer(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestSpeed(t *testing.T) {
	e := start(t)
	importBusybox(t, e)
	c := e.Client()
	took := map[string][]time.Duration{}
	step := func(name string, fn func() error) {
		t.Helper()
		at := time.Now()
		if err := fn(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		took[name] = append(took[name], time.Since(at))
	}
	for i := range 22 {
		id := fmt.Sprintf("speed-%d", i)
		var sb *runtime.Sandbox
		var pid int
		all := time.Now()
		step("create", func() (err error) {
			sb, err = c.Create(t.Context(), runtime.CreateOptions{ID: id, Image: "busybox", Runtime: "crun", HostUID: hostUID, Spec: spec(id, hostUID, "/bin/sleep", "1000")})
			return err
		})
		step("newtask", func() (err error) { pid, err = c.NewTask(t.Context(), sb); return err })
		step("start", func() error { return c.StartTask(t.Context(), id) })
		took["ready"] = append(took["ready"], time.Since(all))
		step("kill+wait", func() error {
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
		})
		step("deltask", func() error { return c.DeleteTask(t.Context(), id) })
		step("delctr", func() error { return c.DeleteContainer(t.Context(), id) })
	}
	for _, n := range []string{"create", "newtask", "start", "ready", "kill+wait", "deltask", "delctr"} {
		t.Logf("%-10s p50 %v p90 %v", n, pct(took[n], 50), pct(took[n], 90))
	}
}

func pct(d []time.Duration, p int) time.Duration {
	s := bytes.Clone(nil)
	_ = s
	x := append([]time.Duration(nil), d...)
	for i := range x {
		for j := i; j > 0 && x[j] < x[j-1]; j-- {
			x[j], x[j-1] = x[j-1], x[j]
		}
	}
	return x[len(x)*p/100].Round(10 * time.Microsecond)
}
