package runtime_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gort "runtime"

	"github.com/creel-sandbox/creel/pkg/image"
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
				Spec: spec(id, "/bin/sleep", "1000"),
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

// TestEphemeralRoot gives the sandbox a writable root on a file system of its
// own: what it writes is there and nowhere else, and ends at its size.
func TestEphemeralRoot(t *testing.T) {
	e := start(t)
	c := e.Client()
	for name, layers := range map[string][][]byte{
		"one":   {busyboxLayer(t)},
		"three": {busyboxLayer(t), layer(t, dirs("a")...), layer(t, dirs("b")...)},
	} {
		if _, err := c.Import(t.Context(), 0, bytes.NewReader(archive(t, name, layers...)), name, image.DefaultLimits); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"one", "three"} {
		for _, rt := range []string{"crun", "runc"} {
			t.Run(name+"/"+rt, func(t *testing.T) {
				disk := filepath.Join(e.cfg.State, "disk-"+name+rt)
				if err := os.Mkdir(disk, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := unix.Mount("disk", disk, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m"); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := errors.Join(unix.Unmount(disk, 0), os.Remove(disk)); err != nil {
						t.Error(err)
					}
				}()
				id := "eph-" + name + "-" + rt
				s := spec(id, "/bin/sh", "-c", "cat /bin/busybox > /big; echo $? > /dev/full-code; touch /etc/done; exec sleep 1000")
				s.Root.Readonly = false
				s.Process.User.UID, s.Process.User.GID = 0, 0
				sb, err := c.Create(t.Context(), runtime.CreateOptions{ID: id, Image: name, Runtime: rt, HostUID: hostUID, Spec: s, Upper: disk})
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
				root := fmt.Sprintf("/proc/%d/root", pid)
				var code []byte
				eventually(t, "the sandbox has written", func() bool {
					code, err = os.ReadFile(root + "/dev/full-code")
					return err == nil && len(code) > 0
				})
				if strings.TrimSpace(string(code)) == "0" {
					t.Error("two megabytes fit on a disk of one")
				}
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(disk, "upper", "big"), &st); err != nil || st.Uid != hostUID || st.Size > 1<<20 {
					t.Errorf("upper file: owner %d, %d bytes, %v", st.Uid, st.Size, err)
				}
				if err := unix.Stat(root+"/bin/busybox", &st); err != nil || st.Uid != hostUID {
					t.Errorf("image file: owner %d, %v; want %d", st.Uid, err, hostUID)
				}
				if err := c.Cleanup(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				e.nothing(t)
			})
		}
	}
}
