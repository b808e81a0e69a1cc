package peer_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/peer"

	"golang.org/x/sys/unix"
)

// Ids that nobody has.
const (
	gatewayUID   = 424242
	gatewayGroup = 454545
	otherUID     = 424243
)

func TestMain(m *testing.M) {
	if how := os.Getenv("CREEL_TEST_GATEWAY"); how != "" {
		if err := gateway(how); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	kerneltest.InMountNamespace(m)
}

// gateway is a process that arranges its own view of the host, as systemd and
// container engines do, becomes an ordinary user, and connects. TOP is where
// the test's directories are.
func gateway(how string) error {
	top := os.Getenv("TOP")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	home, tmp := filepath.Join(top, "home"), filepath.Join(top, "tmp")
	var err error
	groups := []int{gatewayGroup}
	switch how {
	case "plain", "root":
	case "dropped groups":
		groups = nil
	case "ProtectHome": // systemd.exec(5): ProtectHome=tmpfs
		err = unix.Mount("tmpfs", home, "tmpfs", unix.MS_RDONLY, "mode=755")
	case "PrivateTmp":
		err = unix.Mount(filepath.Join(top, "private"), tmp, "", unix.MS_BIND, "")
	case "chroot":
		err = errors.Join(unix.Chroot(filepath.Join(top, "image")), unix.Chdir("/"))
	case "container", "rootless container":
		image := filepath.Join(top, "image")
		err = errors.Join(
			unix.Mount(image, image, "", unix.MS_BIND, ""),
			unix.Chdir(image), unix.PivotRoot(".", "."), unix.Unmount(".", unix.MNT_DETACH), unix.Chdir("/"),
		)
	}
	if err != nil {
		return err
	}
	if how != "root" && how != "rootless container" { // which is root in its user namespace
		if err := errors.Join(syscall.Setgroups(groups), syscall.Setgid(gatewayUID), syscall.Setuid(gatewayUID)); err != nil {
			return err
		}
	}
	if err := unix.Connect(3, &unix.SockaddrUnix{Name: "@" + os.Getenv("SOCKET")}); err != nil {
		return err
	}
	_, err = io.ReadAll(os.Stdin) // until the test ends it
	return err
}

// as starts a gateway and returns what the daemon knows of it, and how it is ended.
func as(t *testing.T, top, how string) (peer.Cred, func()) {
	t.Helper()
	kerneltest.Require(t, kerneltest.PeerPIDFD)
	name := fmt.Sprintf("creel-peer-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name()+how, "/", "-"))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(fd), "socket")
	defer socket.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "CREEL_TEST_GATEWAY="+how, "TOP="+top, "SOCKET="+name)
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{socket}
	flags := uintptr(unix.CLONE_NEWNS)
	if how == "container" || how == "rootless container" {
		flags |= unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if how == "rootless container" {
		// As newuidmap(1) does: the user, and of its subordinate ids one.
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: gatewayUID, Size: 1}, {ContainerID: 1, HostID: otherUID, Size: 1}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := func() { stdin.Close(); _ = cmd.Wait() }
	t.Cleanup(end)
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	cred, err := peer.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	if cred.Method != peer.MethodPeerPIDFD {
		t.Fatalf("the method is %s", cred.Method)
	}
	t.Cleanup(func() { cred.PIDFD.Close() })
	return cred, end
}

// places are directories as a host has them.
func places(t *testing.T) string {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root)
	top, err := os.MkdirTemp("", "peer-") //nolint:usetesting // t.TempDir lets only root pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	for _, d := range []struct {
		path     string
		uid, gid int
		mode     os.FileMode
	}{
		{"", 0, 0, 0o755},
		{"home", 0, 0, 0o755},
		{"home/own", gatewayUID, gatewayUID, 0o700},
		{"home/own/sub", gatewayUID, gatewayUID, 0o755},
		{"home/other", otherUID, otherUID, 0o700},
		{"home/other/open", gatewayUID, gatewayUID, 0o777},
		{"home/group", 0, gatewayGroup, 0o750},
		{"home/group/work", gatewayUID, gatewayUID, 0o755},
		{"tmp", 0, 0, 0o777},
		{"tmp/work", gatewayUID, gatewayUID, 0o755},
		{"private", 0, 0, 0o777},
		{"private/work", gatewayUID, gatewayUID, 0o755},
		{"image", 0, 0, 0o755},
		{"image/work", gatewayUID, gatewayUID, 0o755},
		{"image/other", otherUID, otherUID, 0o700},
		{"image/other/open", gatewayUID, gatewayUID, 0o777},
		{"image" + top, 0, 0, 0o755},
	} {
		p := filepath.Join(top, d.path)
		if err := errors.Join(os.MkdirAll(p, 0o755), os.Chown(p, d.uid, d.gid), os.Chmod(p, d.mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "home/own/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"link": "sub", "way": "../own", "out": "../other"} {
		if err := os.Symlink(to, filepath.Join(top, "home/own", link)); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestOpenDir: each gateway gets what it sees itself, and nothing more.
func TestOpenDir(t *testing.T) {
	top := places(t)
	type want struct {
		path string
		is   string   // below top; empty when it is refused
		code api.Code // of the refusal
	}
	denied, invalid := api.CodeDenied, api.CodeInvalid
	for how, wants := range map[string][]want{
		"plain": {
			{top + "/home/own", "home/own", ""},
			{top + "/home/own/sub", "home/own/sub", ""},
			{top + "/home/group/work", "home/group/work", ""},
			{top + "/tmp/work", "tmp/work", ""},
			{top + "/home/other/open", "", denied},
			{top + "/home/own/none", "", denied},
			{top + "/home/own/file", "", invalid},
			{top + "/home/own/link", "", invalid},
			{top + "/home/own/way/sub", "", invalid},
			{top + "/home/own/out/open", "", invalid},
			{top + "/home/own/../own", "", invalid},
			{top + "/home/own/", "", invalid},
			{"home/own", "", invalid},
			{"", "", invalid},
			{"/proc/self/root" + top + "/home/own", "", invalid},
			{"/proc/self/cwd", "", invalid},
			{"/proc/thread-self/root", "", invalid},
			{"/proc/1/root", "", invalid},
			{"/" + strings.Repeat("a/", 3000) + "a", "", invalid},
			{"/" + strings.Repeat("a", 300), "", denied},
		},
		"dropped groups": {
			{top + "/home/own", "home/own", ""},
			{top + "/home/group/work", "", denied},
		},
		"ProtectHome": {
			{top + "/home/own", "", denied},
			{top + "/tmp/work", "tmp/work", ""},
		},
		"PrivateTmp": {
			{top + "/tmp/work", "private/work", ""},
			{top + "/home/own", "home/own", ""},
		},
		"chroot": {
			{"/work", "image/work", ""},
			{top, "image" + top, ""},
			{top + "/home/own", "", denied},
		},
		"container": {
			{"/work", "image/work", ""},
			{top + "/home/own", "", denied},
			{"/proc", "", denied},
		},
		"rootless container": {
			{"/work", "image/work", ""},
			{top + "/home/own", "", denied},
			{"/proc", "", denied},
			// Its root may, and it is no root here: it has to send a descriptor.
			{"/other/open", "", denied},
		},
		// The daemon does not know what root may without its capabilities.
		"root": {
			{top + "/home/other/open", "", denied},
			{top + "/home", "home", ""},
		},
	} {
		t.Run(how, func(t *testing.T) {
			cred, _ := as(t, top, how)
			if how != "root" && cred.UID != gatewayUID {
				t.Fatalf("it is of uid %d", cred.UID)
			}
			for _, w := range wants {
				f, err := cred.OpenDir(t.Context(), w.path)
				if err == nil {
					defer f.Close()
				}
				switch {
				case w.is == "" && err == nil:
					t.Errorf("%.80s is opened", w.path)
				case w.is == "":
					// A link's target and what is missing look alike enough:
					// neither is told by what the daemon could see.
					if code := api.CodeOf(err); code != w.code {
						t.Errorf("%.80s: %s, want %s: %v", w.path, code, w.code, err)
					}
				case err != nil:
					t.Errorf("%s: %v", w.path, err)
				default:
					var st unix.Stat_t
					if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != inode(t, filepath.Join(top, w.is)) {
						t.Errorf("%s is another directory than %s, %v", w.path, w.is, err)
					}
				}
			}
		})
	}
}

// TestOpenDirOfNobody: without the process itself there is no root directory.
func TestOpenDirOfNobody(t *testing.T) {
	top := places(t)
	cred, end := as(t, top, "plain")
	end()
	if f, err := cred.OpenDir(t.Context(), top+"/home/own"); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("of a process that has ended: %v, %v", f, err)
	}
	cred, _ = as(t, top, "container")
	for _, method := range []string{peer.MethodPIDFDOpen, peer.MethodNone} {
		weak := cred
		weak.Method = method
		if f, err := weak.OpenDir(t.Context(), "/work"); api.CodeOf(err) != api.CodeUnsupportedHost {
			t.Errorf("%s: %v, %v", method, f, err)
		}
	}
	// The pid that came with the connection is not what is gone by.
	other := cred
	other.PID = int32(os.Getpid())
	if f, err := other.OpenDir(t.Context(), top+"/home/own"); err == nil {
		t.Errorf("beneath the root of another process: %v", f.Name())
	}
}

// TestOpenDirSwap has the caller exchange directories and links along the
// path while it is looked up. Whatever is opened is one that it could open.
func TestOpenDirSwap(t *testing.T) {
	top := places(t)
	cred, _ := as(t, top, "plain")
	attempts := 3000
	if os.Getenv("CREEL_SOAK") != "" {
		attempts = 100_000
	}
	own := filepath.Join(top, "home/own")
	// turn is, by turns, a directory of the caller's, a link to the one of
	// somebody else, and a link to one where the daemon's rights would do.
	for name, to := range map[string]string{"l1": "../other", "l2": "/"} {
		if err := os.Symlink(to, filepath.Join(own, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(own, "turn/open"), 0o755), os.MkdirAll(filepath.Join(own, "spare/open"), 0o755)); err != nil {
		t.Fatal(err)
	}
	allowed := map[uint64]bool{inode(t, own+"/turn/open"): true, inode(t, own+"/spare/open"): true}
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			for _, with := range []string{"l1", "spare", "l2"} {
				select {
				case <-stop:
					stopped <- n
					return
				default:
				}
				if err := unix.Renameat2(unix.AT_FDCWD, own+"/turn", unix.AT_FDCWD, own+"/"+with, unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
				}
				n++
			}
		}
	}()
	opened, refused := 0, 0
	for range attempts {
		f, err := cred.OpenDir(t.Context(), own+"/turn/open")
		if err != nil {
			refused++
			continue
		}
		opened++
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || !allowed[st.Ino] {
			t.Fatalf("inode %d is opened, %v", st.Ino, err)
		}
		f.Close()
	}
	close(stop)
	t.Logf("%d opened, %d refused, %d swaps", opened, refused, <-stopped)
	if opened == 0 || refused == 0 {
		t.Error("the swaps did not meet the look-ups")
	}
}
