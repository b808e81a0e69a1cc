package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// tree starts processes that try to get away from their exec: in another
// session and process group, re-parented to PID 1, ignoring signals.
const tree = `
trap '' TERM HUP INT
setsid sleep 1000 &
(setsid sh -c 'trap "" TERM HUP; sleep 1000 & sleep 1000' &)
(sh -c '(sleep 1000 </dev/null >/dev/null 2>&1 &)' &)
usleep 100000
echo ready
sleep 1000
`

// treeBound is within which the whole tree must be gone: ten times what is
// promised, so that a busy machine passes and a kill by some time-out, or by
// polling, does not. The promise itself, 100 ms, is "make bench"'s kill_tree.
const treeBound = time.Second

// patience is how many times longer the emulated machine of "make test-vm"
// may take for anything.
func patience() time.Duration {
	if os.Getenv("CREEL_TEST_VM") != "" {
		return 20
	}
	return 1
}

// onlyInit waits until PID 1, which is not counted, is the only process of the
// sandbox.
func onlyInit(t *testing.T, l *lab.Lab, id string) {
	t.Helper()
	processes(t, l, id, 0)
}

func processes(t *testing.T, l *lab.Lab, id string, want int64) {
	t.Helper()
	l.Eventually("processes end", 10*time.Second, func() error {
		st, err := l.Stats(t.Context(), id)
		if err == nil && st.Pids != want {
			err = fmt.Errorf("%d processes, want %d", st.Pids, want)
		}
		return err
	})
}

// watchFor is a writer that says when a text has come.
type watchFor struct {
	text string
	seen chan struct{}
	buf  bytes.Buffer
}

func (w *watchFor) Write(p []byte) (int, error) {
	before := strings.Contains(w.buf.String(), w.text)
	w.buf.Write(p)
	if !before && strings.Contains(w.buf.String(), w.text) {
		close(w.seen)
	}
	return len(p), nil
}

func awaiting(text string) *watchFor { return &watchFor{text: text, seen: make(chan struct{})} }

// TestExecTreeEnds kills an exec's whole tree, and nothing else, in each of
// the ways an exec is ended from outside.
func TestExecTreeEnds(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	neighbour, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer neighbour.Close()
	const others = 1 // the neighbour
	tests := []struct {
		name    string
		timeout time.Duration
		end     func(*client.Process) error
		reason  api.Reason
		code    int
		lost    bool // nobody is there to be told
	}{
		{name: "time limit", timeout: 600 * time.Millisecond * patience(), reason: api.ReasonTimeout, code: 124},
		{name: "SIGKILL", end: func(p *client.Process) error { return p.Signal(unix.SIGKILL) }, reason: api.ReasonKilled, code: 137},
		{name: "lost client", end: (*client.Process).Close, lost: true},
	}
	for _, mode := range modes {
		for _, tt := range tests {
			t.Run(mode+"/"+tt.name, func(t *testing.T) {
				began := time.Now()
				p, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{
					Command: []string{"/bin/sh", "-c", tree}, IO: mode, Timeout: api.Duration(tt.timeout),
				})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				out := awaiting("ready")
				type answer struct {
					res api.ExecResult
					err error
				}
				done := make(chan answer, 1)
				go func() {
					res, err := p.Run(client.Stdio{Out: out, Err: io.Discard})
					done <- answer{res, err}
				}()
				select {
				case <-out.seen:
				case a := <-done:
					t.Fatalf("it ended first: %+v, %v", a.res, a.err)
				}
				if tt.end != nil {
					began = time.Now()
					if err := tt.end(p); err != nil {
						t.Fatal(err)
					}
				}
				a := <-done
				processes(t, l, sb.ID, others)
				took := time.Since(began) - tt.timeout
				t.Logf("the tree was gone after %v", took)
				if took > treeBound*patience() {
					t.Errorf("the tree was gone after %v", took)
				}
				if !tt.lost && (a.err != nil || a.res.Reason != tt.reason || a.res.ExitCode != tt.code) {
					t.Errorf("result %+v, %v", a.res, a.err)
				}
			})
		}
	}
	var out bytes.Buffer
	res, err := neighbour.Run(client.Stdio{In: strings.NewReader("untouched"), Out: &out})
	if err != nil || res.ExitCode != 0 || out.String() != "untouched" {
		t.Errorf("the neighbour: %+v, %v, %q", res, err, out.String())
	}
	onlyInit(t, l, sb.ID)
}

// TestExecLeavesServers lets a process go on that an exec left behind when it
// ended by itself, as a development server is started; the sandbox's end ends
// it.
func TestExecLeavesServers(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	began := time.Now()
	out, res := l.Sh(sb.ID, "setsid sleep 1000 & echo started")
	if res.ExitCode != 0 || !strings.Contains(out, "started") {
		t.Errorf("%q, %+v", out, res)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the answer waited %v for a process left behind", took)
	}
	time.Sleep(200 * time.Millisecond) // whatever would end it has begun
	processes(t, l, sb.ID, 1)
	grace := time.Duration(0)
	if _, err := l.Client.Stop(t.Context(), sb.ID, &grace); err != nil {
		t.Error(err)
	}
	if err := l.Remove(t.Context(), sb.ID, false); err != nil {
		t.Error(err)
	}
	l.NothingLeft()
}

// terminal is both ends of one.
func terminal(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	return master, os.NewFile(fd, "tty")
}

// TestCallersStdin gives the command line what must never enter a sandbox as
// its standard input (CVE-2024-21626 is the class). Only bytes get in.
func TestCallersStdin(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	peer := os.NewFile(uintptr(pair[1]), "peer")
	defer peer.Close()
	_, tty := terminal(t)
	open := func(path string, flags int) *os.File {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), path)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, in := range []struct {
		name string
		file *os.File
	}{
		{"directory", open("/", unix.O_RDONLY|unix.O_DIRECTORY)},
		{"O_PATH", open(secret, unix.O_PATH)},
		{"socket", os.NewFile(uintptr(pair[0]), "socket")},
		{"terminal", tty},
		{"device", open("/dev/zero", unix.O_RDWR)},
	} {
		for _, flag := range []string{"-i", ""} {
			t.Run(in.name+flag, func(t *testing.T) {
				args := []string{"exec", sb.ID, "--", "/bin/sh", "-c", "cd /proc/self/fd; for f in *; do readlink $f; done | cut -d: -f1 | sort -u; ls -d /proc/self/fd/0/. 2>&1"}
				if flag != "" {
					args = append([]string{"exec", flag}, args[1:]...)
				}
				cmd := l.Command(nil, args...)
				cmd.Stdin = in.file
				var out bytes.Buffer
				cmd.Stdout = &out
				_ = cmd.Run() // reading the thing may well be an error of the client's own
				if got := out.String(); got != "" && !strings.HasPrefix(got, "pipe\n") {
					t.Errorf("inside it is %q", got)
				}
				if strings.Contains(out.String(), "\n/proc/self/fd/0/.\n") {
					t.Error("the standard input leads to a directory")
				}
			})
		}
		_ = in.file.Close()
	}
	onlyInit(t, l, sb.ID)
}
