package mount_test

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/mount"

	"golang.org/x/sys/unix"
)

func bind(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
}

// TestProtected gives creel's own and the host's directories under every kind
// of other name. All are asked for read-only, so that only the guard refuses.
func TestProtected(t *testing.T) {
	w := newWorld(t)
	other := filepath.Join(filepath.Dir(w.work), "other")
	logs := filepath.Join(w.state, "logs", "sandbox")
	sock := filepath.Join(filepath.Dir(w.work), "engine", "engine.sock")
	for _, d := range []string{logs, filepath.Dir(sock), filepath.Join(filepath.Dir(sock), "sub")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.stager = mount.New([]string{w.run, w.state, sock, "/nonexistent/path"})

	tests := []struct {
		name string
		dir  func(t *testing.T) string
		ok   bool
	}{
		{"run", func(*testing.T) string { return w.run }, false},
		{"state", func(*testing.T) string { return w.state }, false},
		{"in state", func(*testing.T) string { return logs }, false},
		{"contains state", func(*testing.T) string { return filepath.Dir(w.state) }, false},
		{"contains all", func(*testing.T) string { return filepath.Dir(w.run) }, false},
		{"root", func(*testing.T) string { return "/" }, false},
		{"symlink to state", func(t *testing.T) string {
			p := filepath.Join(t.TempDir(), "l")
			if err := os.Symlink(w.state, p); err != nil {
				t.Fatal(err)
			}
			return p
		}, false},
		{"state bound elsewhere", func(t *testing.T) string { bind(t, w.state, other); return other }, false},
		{"below state bound elsewhere", func(t *testing.T) string { bind(t, filepath.Dir(logs), other); return filepath.Join(other, "sandbox") }, false},
		{"inside of state bound elsewhere", func(t *testing.T) string { bind(t, logs, other); return other }, false},
		{"parent of state bound elsewhere", func(t *testing.T) string { bind(t, filepath.Dir(w.state), other); return other }, false},
		{"state's own place is a bind mount", func(t *testing.T) string {
			bind(t, other, w.state) // so that ".." of the protected path misses it
			return filepath.Dir(other)
		}, false},
		{"holds a socket", func(*testing.T) string { return filepath.Dir(sock) }, false},
		{"above a socket", func(*testing.T) string { return filepath.Dir(filepath.Dir(sock)) }, false},
		{"beside a socket", func(*testing.T) string { return filepath.Join(filepath.Dir(sock), "sub") }, true},
		{"in itself by a bind mount", func(t *testing.T) string {
			in := filepath.Join(w.state, "logs", "again")
			if err := os.MkdirAll(in, 0o755); err != nil {
				t.Fatal(err)
			}
			bind(t, filepath.Dir(in), in)
			return in
		}, false},
		{"harmless", func(*testing.T) string { return w.work }, true},
		{"harmless, bound", func(t *testing.T) string { bind(t, w.work, other); return other }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "target")
			f, err := os.Open(tt.dir(t))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r := w.request(f)
			r.ReadOnly, r.Target = true, target
			_, undo, err := w.stager.Stage(t.Context(), r)
			if err == nil {
				defer undo(t.Context())
			}
			if tt.ok && err != nil || !tt.ok && api.CodeOf(err) != api.CodeDenied {
				t.Errorf("Stage = %v; want it allowed: %t", err, tt.ok)
			}
		})
	}
}

func TestKinds(t *testing.T) {
	w := newWorld(t)
	mnt := func(fstype, data string) string {
		p := filepath.Join(t.TempDir(), "m")
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(fstype, p, fstype, 0, data); err != nil {
			t.Fatalf("mount %s: %v", fstype, err)
		}
		t.Cleanup(func() { unix.Unmount(p, unix.MNT_DETACH) })
		return p
	}
	file := filepath.Join(w.work, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	lower := t.TempDir()
	gone := filepath.Join(w.work, "gone")
	if err := os.Mkdir(gone, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, gone)
	goneFD := openDir(t, gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		dir  *os.File
		want api.Code // none: allowed
	}{
		{"file", openDir(t, file), api.CodeInvalid},
		{"removed directory", goneFD, api.CodeInvalid},
		{"proc", openDir(t, "/proc/self"), api.CodeUnsupportedHost},
		{"proc fresh", openDir(t, mnt("proc", "")), api.CodeUnsupportedHost},
		{"sysfs", openDir(t, "/sys/kernel"), api.CodeUnsupportedHost},
		{"devtmpfs", openDir(t, "/dev"), api.CodeUnsupportedHost},
		{"devpts", openDir(t, mnt("devpts", "")), api.CodeUnsupportedHost},
		{"overlay", openDir(t, mnt("overlay", "lowerdir="+lower+":"+t.TempDir())), api.CodeUnsupportedHost},
		{"tmpfs", openDir(t, mnt("tmpfs", "")), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := w.request(tt.dir)
			r.ReadOnly = true
			st, undo, err := w.stager.Stage(t.Context(), r)
			if err == nil {
				defer undo(t.Context())
				if st.FSType != "tmpfs" {
					t.Errorf("FSType = %q", st.FSType)
				}
			}
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || api.CodeOf(err) != tt.want) {
				t.Errorf("Stage = %v; want %q", err, tt.want)
			}
		})
	}
	t.Run("socket", func(t *testing.T) {
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(p[1])
		f := os.NewFile(uintptr(p[0]), "socket")
		defer f.Close()
		if _, _, err := w.stager.Stage(t.Context(), w.request(f)); err == nil {
			t.Error("a socket was staged")
		}
	})
	t.Run("id-mapped already", func(t *testing.T) {
		_, undo, err := w.stager.Stage(t.Context(), w.request(openDir(t, w.work)))
		if err != nil {
			t.Fatal(err)
		}
		defer undo(t.Context())
		// A plain stager: the other one refuses its run directory first.
		r := w.request(openDir(t, w.target()))
		r.Target, r.ReadOnly = filepath.Join(t.TempDir(), "x"), true
		if _, _, err := mount.New(nil).Stage(t.Context(), r); api.CodeOf(err) != api.CodeUnsupportedHost {
			t.Errorf("Stage of an id-mapped mount = %v, want unsupported_host", err)
		}
	})
}

// peer starts a process in a mount namespace of its own, as root or with the
// caller's uid in a user namespace, that binds from at to (and, nested, a
// tmpfs below it), and gives a descriptor of path in it.
func peer(t *testing.T, unprivileged bool, script []string, path string) (dir, ns *os.File) {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperPeer$")
	cmd.Env = append(os.Environ(), "CREEL_TEST_PEER="+strings.Join(script, "\n"))
	// No Pdeathsig: it fires when the thread that forked ends, and package
	// thread ends threads. The peer ends with its stdin.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if unprivileged {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: callerUID, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: callerGID, Size: 1}}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("peer said %q, %v", line, err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	ns = os.NewFile(uintptr(pidfd), "pidfd")
	t.Cleanup(func() { ns.Close() })
	return openDir(t, fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, path)), ns
}

// TestHelperPeer is that process.
func TestHelperPeer(t *testing.T) {
	script := os.Getenv("CREEL_TEST_PEER")
	if script == "" {
		t.Skip("only run by peer")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(script, "\n") {
		f := strings.Fields(line)
		var err error
		switch f[0] {
		case "bind":
			err = unix.Mount(f[1], f[2], "", unix.MS_BIND, "")
		case "tmpfs":
			err = unix.Mount("tmpfs", f[1], "tmpfs", 0, "")
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
}

func TestPeerNamespace(t *testing.T) {
	w := newWorld(t)
	view := filepath.Join(filepath.Dir(w.work), "view")
	if err := os.Mkdir(view, 0o755); err != nil {
		t.Fatal(err)
	}
	nested := filepath.Join(w.work, "nested")
	if err := os.Mkdir(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, nested)
	if err := os.Chmod(w.work, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, unprivileged := range []bool{false, true} {
		t.Run(fmt.Sprintf("unprivileged=%t", unprivileged), func(t *testing.T) {
			dir, ns := peer(t, unprivileged, []string{"bind " + w.work + " " + view}, view)
			r := w.request(dir)
			if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeInvalid {
				t.Errorf("without the peer's namespace: %v, want invalid_argument", err)
			}
			host, err := os.Open("/proc/thread-self/ns/mnt")
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			for _, order := range [][]*os.File{{ns, host}, {host, ns}} {
				r.Namespaces = order
				_, undo, err := w.stager.Stage(t.Context(), r)
				if err != nil {
					t.Fatalf("from the peer's namespace: %v", err)
				}
				err = as(agentUID, agentGID, func() error { return os.WriteFile(filepath.Join(w.target(), "from-peer"), nil, 0o644) })
				if err != nil {
					t.Errorf("the agent cannot write: %v", err)
				}
				if st := stat(t, filepath.Join(w.work, "from-peer")); st.Uid != callerUID {
					t.Errorf("the new file belongs to %d", st.Uid)
				}
				if err := undo(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
		t.Run(fmt.Sprintf("protected, unprivileged=%t", unprivileged), func(t *testing.T) {
			dir, ns := peer(t, unprivileged, []string{"bind " + filepath.Join(w.state, "logs") + " " + view}, view)
			r := w.request(dir)
			r.ReadOnly, r.Namespaces = true, []*os.File{ns}
			if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeDenied {
				t.Errorf("creel's state, bound in the caller's namespace = %v, want permission_denied", err)
			}
		})
	}
	t.Run("file system of a user namespace", func(t *testing.T) {
		dir, ns := peer(t, true, []string{"tmpfs " + view}, view)
		r := w.request(dir)
		r.ReadOnly, r.Namespaces = true, []*os.File{ns}
		if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeUnsupportedHost {
			t.Errorf("a tmpfs of the caller's own user namespace = %v, want unsupported_host", err)
		}
	})
	t.Run("nested mount", func(t *testing.T) {
		dir, ns := peer(t, false, []string{"tmpfs " + nested}, w.work)
		r := w.request(dir)
		r.Namespaces = []*os.File{ns}
		if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeDenied || !strings.Contains(err.Error(), nested) {
			t.Errorf("a directory with a mount that hides something from its caller = %v, want permission_denied", err)
		}
	})
	t.Run("locked mount", func(t *testing.T) {
		// Made before the peer's less privileged namespace, hence locked there.
		if err := unix.Mount("tmpfs", nested, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(nested, unix.MNT_DETACH)
		dir, ns := peer(t, true, []string{"none"}, w.work)
		r := w.request(dir)
		r.Namespaces = []*os.File{ns}
		if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeDenied {
			t.Errorf("a directory with a locked mount = %v, want permission_denied", err)
		}
	})
	t.Run("ended peer", func(t *testing.T) {
		cmd := exec.Command("/bin/true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		ns := os.NewFile(uintptr(pidfd), "pidfd")
		defer ns.Close()
		cmd.Wait()
		r := w.request(openDir(t, w.work))
		r.Namespaces = []*os.File{ns}
		if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("with a pidfd of a process that ended = %v, want invalid_argument", err)
		}
		host, err := os.Open("/proc/thread-self/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		r.Namespaces = []*os.File{ns, host}
		if _, undo, err := w.stager.Stage(t.Context(), r); err != nil {
			t.Errorf("the host's namespace was not tried after it: %v", err)
		} else {
			undo(t.Context())
		}
	})
}

// chmodUp lets the peer's uid through the test's temporary directories.
func chmodUp(tb testing.TB, path string) {
	tb.Helper()
	for p := filepath.Dir(path); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
}
