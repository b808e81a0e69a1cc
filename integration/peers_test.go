package integration_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
)

// peersName is what this test's own program is called in an image, where it
// listens and connects, see peersInside.
const peersName = "peers"

func init() { // before the test would read its flags
	if filepath.Base(os.Args[0]) == peersName {
		if err := peersInside(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// socketKinds are named as in the script.
var socketKinds = map[string]int{"stream": unix.SOCK_STREAM, "seqpacket": unix.SOCK_SEQPACKET, "dgram": unix.SOCK_DGRAM}

// hostSocket makes a socket of the caller's. One of somebody else's is out of
// an agent's reach in any case: its owner is not mapped.
func hostSocket(t *testing.T, path string, kind int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(path, 0o777), os.Chown(path, callerUID, callerUID)); err != nil {
		t.Fatal(err)
	}
	if kind != unix.SOCK_DGRAM {
		if err := unix.Listen(fd, 4096); err != nil {
			t.Fatal(err)
		}
	}
}

// fromHost is what comes of connecting to a path.
func fromHost(t *testing.T, path string, kind int) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

// peersIn starts a sandbox of the caller's in which the script runs.
func peersIn(t *testing.T, l *lab.Lab, dir, mode string) *api.Sandbox {
	t.Helper()
	out, errOut, code := l.CreelAs(caller, "", "run", "-d", "-v", dir+":/workspace", "--", "/bin/"+peersName, mode)
	if code != 0 {
		t.Fatalf("run: %d, %s", code, errOut)
	}
	sb, err := l.Inspect(t.Context(), strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

// fromInside connects to a path with every kind and by every call.
func fromInside(t *testing.T, l *lab.Lab, id, path, kind string) string {
	t.Helper()
	out, res := l.ShContext(deadline(t), id, api.ExecRequest{Command: []string{"/bin/" + peersName, "try", kind, path}})
	if res.ExitCode != 0 {
		t.Fatalf("%s: %q, %+v", path, out, res)
	}
	return strings.TrimSpace(out)
}

func labForPeers(t *testing.T) (l *lab.Lab, dir string) {
	t.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	l = lab.New(t, lab.Options{Image: lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "bin/" + peersName, Mode: 0o755}, program)
	})})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return l, workspace(t)
}

// listening waits for the script's sockets.
func listening(t *testing.T, l *lab.Lab, dir string) {
	t.Helper()
	l.Eventually("the sandbox listens", time.Minute, func() error {
		_, err := os.Lstat(filepath.Join(dir, "listening"))
		return err
	})
}

// TestUnixPeers: sockets in a mounted directory, there before or made later,
// lead neither out nor in, whatever their kind. Within the sandbox they work.
func TestUnixPeers(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPFLSM)
	l, dir := labForPeers(t)
	for kind, n := range socketKinds {
		hostSocket(t, filepath.Join(dir, "before-"+kind), n)
	}
	sb := peersIn(t, l, dir, "listen")
	other := peersIn(t, l, dir+"/src", "listen")
	listening(t, l, dir)
	listening(t, l, dir+"/src")
	for kind, n := range socketKinds {
		hostSocket(t, filepath.Join(dir, "after-"+kind), n)
	}
	for kind, n := range socketKinds {
		for path, want := range map[string]string{
			"before-" + kind: "EACCES", "after-" + kind: "EACCES", "src/inside-" + kind: "EACCES", "inside-" + kind: "OK",
		} {
			if got := fromInside(t, l, sb.ID, "/workspace/"+path, kind); got != want {
				t.Errorf("from inside to %s: %s, want %s", path, got, want)
			}
		}
		if err := fromHost(t, filepath.Join(dir, "inside-"+kind), n); !errors.Is(err, unix.EACCES) {
			t.Errorf("from the host to inside-%s: %v", kind, err)
		}
		if err := fromHost(t, filepath.Join(dir, "before-"+kind), n); err != nil {
			t.Errorf("on the host: %v", err)
		}
	}
	ev, err := l.Evidence(t.Context(), sb.ID, true)
	if err != nil || len(ev) != 2 {
		t.Fatalf("%d evidences, %v", len(ev), err)
	}
	for _, e := range ev {
		if c := controlOf(e, unixpeers.Control); !e.OK || !c.OK || strings.Contains(strings.Join(e.Weaker, "\n"), unixpeers.Control) {
			t.Errorf("%s: ok %t, control %+v, weaker %q", e.Why, e.OK, c, e.Weaker)
		}
	}
	for _, id := range []string{sb.ID, other.ID} {
		if err := l.Remove(t.Context(), id, true); err != nil {
			t.Error(err)
		}
	}
	l.NothingLeft()
}

// TestUnixPeersWithoutDaemon kills creeld: the kernel goes on refusing, and
// so it does under the next one. One that cannot prove it any more says so.
func TestUnixPeersWithoutDaemon(t *testing.T) {
	kerneltest.Require(t, kerneltest.BPFLSM)
	l, dir := labForPeers(t)
	hostSocket(t, filepath.Join(dir, "host"), unix.SOCK_STREAM)
	sb := peersIn(t, l, dir, "loop")
	tries := func(more int) {
		t.Helper()
		path := filepath.Join(dir, "tries")
		had := -1
		l.Eventually("the sandbox goes on trying", time.Minute, func() error {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			lines := strings.Fields(string(text))
			if i := slices.IndexFunc(lines, func(s string) bool { return s != "EACCES" }); i >= 0 {
				t.Fatalf("try %d: %s", i, lines[i])
			}
			if had < 0 {
				had = len(lines)
			}
			if len(lines) < had+more {
				return fmt.Errorf("%d tries more", len(lines)-had)
			}
			return nil
		})
	}
	tries(3)
	l.Kill()
	tries(10)
	l.Start()
	tries(10)
	l.Fail("host.bpflsm on")
	l.Stop()
	l.Start()
	ev, err := l.Evidence(t.Context(), sb.ID, true)
	if err != nil || ev[0].OK || controlOf(ev[0], unixpeers.Control).OK {
		t.Errorf("a daemon that does not know: %v, %+v", err, controlOf(ev[0], unixpeers.Control))
	}
	tries(3)
	l.Fail()
	l.Stop()
	l.Start()
	if ev, err := l.Evidence(t.Context(), sb.ID, true); err != nil || !ev[0].OK {
		t.Errorf("%v, %+v", err, controlOf(ev[0], unixpeers.Control))
	}
}

// TestWithoutUnixPeers is a host whose kernel cannot: strict mounts nothing
// there, and the evidence of default says what is weaker, and it is so.
func TestWithoutUnixPeers(t *testing.T) {
	l, dir := labForPeers(t)
	l.Fail("host.bpflsm on")
	l.Stop()
	l.Start()
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	_, errOut, code := l.CreelAs(caller, "", "run", "--rm", "--profile", "strict", "-v", dir+":/workspace:ro", "--", "/bin/true")
	if code != 125 || !strings.Contains(errOut, "profile strict mounts nothing on this host") || !strings.Contains(errOut, "lsm=") {
		t.Errorf("strict with a mount: %d, %q", code, errOut)
	}
	l.NothingLeft()
	l.Spawn(api.SpawnRequest{Profile: "strict"})
	hostSocket(t, filepath.Join(dir, "host"), unix.SOCK_STREAM)
	sb := peersIn(t, l, dir, "listen")
	listening(t, l, dir)
	if got := fromInside(t, l, sb.ID, "/workspace/host", "stream"); got != "OK" {
		t.Errorf("from inside: %s", got)
	}
	ev, err := l.Evidence(t.Context(), sb.ID, true)
	if err != nil || len(ev) != 2 {
		t.Fatalf("%d evidences, %v", len(ev), err)
	}
	for _, e := range ev {
		if weaker := strings.Join(e.Weaker, "\n"); !e.OK || !strings.Contains(weaker, unixpeers.Control+": a Unix socket") || controlOf(e, unixpeers.Control).Name != "" {
			t.Errorf("%s: ok %t, weaker %q, control %+v", e.Why, e.OK, weaker, controlOf(e, unixpeers.Control))
		}
	}
	l.Fail()
	if kerneltest.BPFLSM.Probe() != nil {
		return
	}
	// A daemon that can guards it as well from then on, and says since when.
	l.Stop()
	l.Start()
	if got := fromInside(t, l, sb.ID, "/workspace/host", "stream"); got != "EACCES" {
		t.Errorf("from inside, guarded: %s", got)
	}
	ev, err = l.Evidence(t.Context(), sb.ID, true)
	if weaker := strings.Join(ev[0].Weaker, "\n"); err != nil || !ev[0].OK || !strings.Contains(weaker, "before this creeld guarded it") {
		t.Errorf("%v, ok %t, weaker %q", err, ev[0].OK, weaker)
	}
}

// peersInside is the program in the sandbox. try prints what comes of reaching
// a socket in every way; listen makes one of each kind; loop tries again and
// again.
func peersInside(args []string) error {
	switch args[0] {
	case "try":
		got, err := reach(socketKinds[args[1]], args[2])
		fmt.Println(got)
		return err
	case "listen":
		unix.Umask(0)
		for name, kind := range socketKinds {
			fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "/workspace/inside-" + name}); err != nil {
				return err
			}
			if kind == unix.SOCK_DGRAM {
				continue
			}
			if err := unix.Listen(fd, 100); err != nil {
				return err
			}
		}
		if err := os.WriteFile("/workspace/listening", nil, 0o644); err != nil {
			return err
		}
		time.Sleep(time.Hour)
	case "loop":
		f, err := os.OpenFile("/workspace/tries", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		for {
			got, err := reach(unix.SOCK_STREAM, "/workspace/host")
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(f, got); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// reach names every result of connecting, and for datagrams of sending: by the
// path, by a relative one, and by a descriptor of its directory.
func reach(kind int, path string) (string, error) {
	if err := os.Chdir(filepath.Dir(path)); err != nil {
		return "", err
	}
	dir, err := unix.Open(".", unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(dir)
	var got []string
	for _, name := range []string{path, filepath.Base(path), fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))} {
		for _, send := range []bool{false, true} {
			if send && kind != unix.SOCK_DGRAM {
				continue
			}
			fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			to := &unix.SockaddrUnix{Name: name}
			if send {
				err = unix.Sendto(fd, []byte("x"), unix.MSG_DONTWAIT, to)
			} else {
				err = unix.Connect(fd, to)
			}
			unix.Close(fd)
			if text := errName(err); !slices.Contains(got, text) {
				got = append(got, text)
			}
		}
	}
	return strings.Join(got, " "), nil
}

func errName(err error) string {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return unix.ErrnoName(errno)
	}
	if err != nil {
		return err.Error()
	}
	return "OK"
}
