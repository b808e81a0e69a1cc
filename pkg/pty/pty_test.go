package pty_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/pty"

	"golang.org/x/sys/unix"
)

const hostUID = 0x78000000

// sandbox starts a process in user and mount namespaces of its own whose root
// is laid out by steps, and gives its pid.
func sandbox(tb testing.TB, steps ...string) int {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root)
	root := tb.TempDir()
	for p := root; p != os.TempDir(); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.Chown(root, hostUID, hostUID); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperSandbox$")
	cmd.Env = []string{"CREEL_TEST_ROOT=" + root, "CREEL_TEST_STEPS=" + strings.Join(steps, "\n")}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostUID, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostUID, Size: 65536}},
		Credential:  &syscall.Credential{},
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		tb.Fatalf("the sandbox said %q, %v", line, err)
	}
	return cmd.Process.Pid
}

// TestHelperSandbox is that process.
func TestHelperSandbox(t *testing.T) {
	root := os.Getenv("CREEL_TEST_ROOT")
	if root == "" {
		t.Skip("only run by sandbox")
	}
	for step := range strings.SplitSeq(os.Getenv("CREEL_TEST_STEPS"), "\n") {
		f := strings.Fields(step)
		var err error
		switch f[0] {
		case "dir":
			err = os.MkdirAll(root+f[1], 0o755)
		case "devpts":
			err = unix.Mount("devpts", root+f[1], "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
		case "tmpfs":
			err = unix.Mount("tmpfs", root+f[1], "tmpfs", 0, "")
		case "link":
			err = os.Symlink(f[2], root+f[1])
		case "file":
			err = os.WriteFile(root+f[1], nil, 0o666)
		case "fifo":
			err = unix.Mkfifo(root+f[1], 0o666)
		case "bind": // from the host's /dev
			if err = os.WriteFile(root+f[1], nil, 0o666); err == nil {
				err = unix.Mount(f[2], root+f[1], "", unix.MS_BIND, "")
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", step, err)
		}
	}
	if err := unix.Chroot(root); err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
}

func TestOpen(t *testing.T) {
	pid := sandbox(t, "dir /dev/pts", "devpts /dev/pts")
	for i := range 2 {
		master, slave, err := pty.Open(pid, hostUID+1000, hostUID+1001)
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		defer slave.Close()

		var st, seen unix.Stat_t
		if err := unix.Fstat(int(slave.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != hostUID+1000 || st.Gid != hostUID+1001 || st.Mode&0o7777 != 0o620 {
			t.Errorf("slave is %d:%d %o", st.Uid, st.Gid, st.Mode&0o7777)
		}
		// It is the one that the sandbox sees, counted in its own instance.
		if err := unix.Stat(fmt.Sprintf("/proc/%d/root/dev/pts/%d", pid, i), &seen); err != nil || seen.Ino != st.Ino || seen.Dev != st.Dev {
			t.Errorf("terminal %d of the sandbox is another: %v", i, err)
		}
		for _, f := range []*os.File{master, slave} {
			flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s is inherited: %d, %v", f.Name(), flags, err)
			}
		}

		if _, err := slave.WriteString("out"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, err := master.Read(buf); string(buf[:n]) != "out" || err != nil {
			t.Errorf("master read %q, %v", buf[:n], err)
		}
		if _, err := master.WriteString("in\n"); err != nil {
			t.Fatal(err)
		}
		if n, err := slave.Read(buf); string(buf[:n]) != "in\n" || err != nil {
			t.Errorf("slave read %q, %v", buf[:n], err)
		}
		if err := pty.Resize(master, 100, 30); err != nil {
			t.Fatal(err)
		}
		if ws, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ); err != nil || ws.Col != 100 || ws.Row != 30 {
			t.Errorf("size = %+v, %v", ws, err)
		}
	}
}

// TestMasterHasDeadlines: the master stays non-blocking, so that a read of it
// can be given up.
func TestMasterHasDeadlines(t *testing.T) {
	pid := sandbox(t, "dir /dev/pts", "devpts /dev/pts")
	master, slave, err := pty.Open(pid, hostUID, hostUID)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	if err := pty.Resize(master, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := master.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := master.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read = %v, want the deadline", err)
	}
}

func TestHostile(t *testing.T) {
	tests := []struct {
		name  string
		steps []string
	}{
		{"no /dev", []string{"dir /etc"}},
		{"/dev is a link to the host's", []string{"dir /real/pts", "devpts /real/pts", "link /dev /real"}},
		{"/dev/pts is a link", []string{"dir /dev", "dir /real", "devpts /real", "link /dev/pts /real"}},
		{"link out of the root", []string{"dir /dev", "link /dev/pts ../../../../../../../dev/pts"}},
		{"ptmx is a link", []string{"dir /dev/pts", "dir /real", "devpts /real", "link /dev/pts/ptmx /real/ptmx"}},
		{"ptmx is a file", []string{"dir /dev/pts", "file /dev/pts/ptmx"}},
		{"ptmx is a fifo", []string{"dir /dev/pts", "fifo /dev/pts/ptmx"}},
		{"tmpfs", []string{"dir /dev/pts", "tmpfs /dev/pts", "file /dev/pts/ptmx"}},
		{"another device", []string{"dir /dev/pts", "bind /dev/pts/ptmx /dev/zero"}},
		{"the host's /dev/ptmx", []string{"dir /dev/pts", "bind /dev/pts/ptmx /dev/ptmx"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.name, "host's /dev/ptmx") {
				kerneltest.Require(t, kerneltest.TerminalDevice)
			}
			master, slave, err := pty.Open(sandbox(t, tt.steps...), hostUID+1000, hostUID+1000)
			if !errors.Is(err, pty.ErrNotPTY) {
				t.Errorf("Open = %v, want ErrNotPTY", err)
			}
			if err == nil {
				master.Close()
				slave.Close()
			}
		})
	}
	if _, _, err := pty.Open(1<<30, 0, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open for no process = %v", err)
	}
}

func BenchmarkOpen(b *testing.B) {
	pid := sandbox(b, "dir /dev/pts", "devpts /dev/pts")
	for b.Loop() {
		m, s, err := pty.Open(pid, hostUID, hostUID)
		if err != nil {
			b.Fatal(err)
		}
		m.Close()
		s.Close()
	}
}
