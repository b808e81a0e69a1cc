// Package lab runs a creeld of the test's own: a real daemon, a real
// containerd and real sandboxes, below a directory and a cgroup that nothing
// else uses, with the failpoints of pkg/failpoint compiled in.
//
// Every lab compares the host before and after: what a test leaves behind
// fails it.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// Lab is one daemon and its directories.
type Lab struct {
	*client.Client
	Dir    string // everything of the daemon's
	Socket string
	Log    string
	Bin    string // creel, creeld and what they run

	tb      testing.TB
	config  string
	fail    string
	cgroup  string
	daemon  *exec.Cmd
	exited  chan struct{}
	foreign bool // the daemon is in the host's mount namespace
}

// Options change a lab's configuration.
type Options struct {
	// Config is added to the configuration file, Top before its first table.
	// Without a [[caller]] in it, everybody has the default ceiling, any
	// profile, and may mount what it can open; without [host], a busy host refuses nothing.
	Config, Top string
	// Image is the archive imported as "base"; Tiny when empty.
	Image string
	// Ranges is how many sandboxes have ids of their own at once; 64 when 0.
	Ranges int
	// Foreign gives the daemon a containerd that was there before it, started
	// in the host's mount namespace, and runc.
	Foreign bool
	// StateMiB puts the state directory on a file system of its own, of that
	// size, in place of the host's.
	StateMiB int
	// Blind puts that containerd in a mount namespace of its own.
	Blind bool
	// Group is the socket's group, by name; the socket is root's alone when empty.
	Group string
	// Patience is how long the lab may be in use, where that is longer than a
	// test's usual time.
	Patience time.Duration
}

// numbers keeps the id ranges of concurrent labs apart.
var numbers struct {
	sync.Mutex
	next int
}

// New starts a daemon with an image called "base". It is ended, and what it
// left is looked for, when the test ends.
func New(tb testing.TB, o Options) *Lab {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root, kerneltest.IDMap, kerneltest.Bin)
	// Short, because sockets below it must fit into 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "creel-lab-") //nolint:usetesting // that one is too long
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	l := &Lab{
		tb: tb, Dir: dir, Socket: filepath.Join(dir, "run", "creel.sock"), Log: filepath.Join(dir, "log"),
		Bin: kerneltest.BinDir(), config: filepath.Join(dir, "creeld.toml"), fail: filepath.Join(dir, "failpoints"),
		cgroup: "/" + filepath.Base(dir), foreign: o.Foreign,
	}
	l.Client = client.New(l.Socket)
	l.Copy("creel", l.creel())
	numbers.Lock()
	first := 0x7900_0000 + numbers.next*0x0040_0000
	numbers.next = (numbers.next + 1) % 8
	numbers.Unlock()
	ranges := 64
	if o.Ranges > 0 {
		ranges = o.Ranges
	}
	programs := l.Bin
	if o.Foreign {
		programs = l.withoutContainerd()
	}
	text := fmt.Sprintf(`version = 1
run_dir = %q
state_dir = %q
bin_dir = %q
socket = %q
socket_group = %q
profiles_dir = %q
[cgroup]
root = %q
[ids]
first = %#x
last = %#x
[log]
level = "debug"
`, filepath.Join(dir, "run"), filepath.Join(dir, "state"), programs, l.Socket, o.Group, filepath.Join(dir, "profiles"), l.cgroup, first, first+ranges<<16-1)
	if o.Foreign {
		// crun refuses cgroup hierarchies of both versions, which only
		// creeld's own mount namespace hides.
		o.Config += fmt.Sprintf("[containerd]\naddress = %q\n[runtime]\ndefault = \"runc\"\n", l.containerdSocket())
	}
	if !strings.Contains(o.Config, "[[caller]]") {
		o.Config += "\n[[caller]]\nmatch = \"default\"\nprofiles = [\"*\"]\nmounts = [\"*\"]\n"
	}
	if !strings.Contains(o.Config, "[host]") {
		o.Config += "\n[host]\nmemory = \"0\"\npids = 0\nmemory_pressure = 0.0\nio_pressure = 0.0\n"
	}
	l.write(l.config, o.Top+"\n"+text+o.Config)
	stuck := time.AfterFunc(max(o.Patience, patience()), l.stuck)
	tb.Cleanup(func() { l.close(); stuck.Stop() })
	if o.StateMiB > 0 {
		l.makeState(o.StateMiB)
	}
	if o.Foreign {
		l.startContainerd(o.Blind)
	}
	l.Start()
	image := o.Image
	if image == "" {
		image = Tiny(tb)
	}
	l.Import("base", image)
	return l
}

// patience is how long one lab may be in use: no test takes a quarter of it.
// The emulated machine is ten times slower.
func patience() time.Duration {
	if os.Getenv("CREEL_SOAK") != "" {
		return 3 * time.Hour
	}
	if os.Getenv("CREEL_TEST_VM") != "" {
		return 18 * time.Minute
	}
	return 4 * time.Minute
}

// stuck ends a run that hangs, and says where: the daemon's goroutines and the
// test's, which "go test" would print only when all its time is up.
func (l *Lab) stuck() {
	_ = l.daemon.Process.Signal(unix.SIGQUIT)
	select {
	case <-l.exited:
	case <-time.After(5 * time.Second):
	}
	fmt.Fprintf(os.Stderr, "%s: hangs; creeld:\n%s\n", l.tb.Name(), l.LogTail(2000))
	debug.SetTraceback("all")
	panic(l.tb.Name() + " hangs")
}

func (l *Lab) write(path, text string) {
	l.tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil { //nolint:gosec // the lab's own file
		l.tb.Fatal(err)
	}
}

// Reconfigure replaces a part of the configuration file and has the daemon read
// it again.
func (l *Lab) Reconfigure(old, text string) {
	l.tb.Helper()
	b, err := os.ReadFile(l.config)
	if err != nil || !strings.Contains(string(b), old) {
		l.tb.Fatalf("the configuration has no %q: %v", old, err)
	}
	l.write(l.config, strings.Replace(string(b), old, text, 1))
	if err := l.daemon.Process.Signal(unix.SIGHUP); err != nil {
		l.tb.Fatal(err)
	}
}

// creeld is the daemon with failpoints, or the one CREEL_TEST_CREELD names.
func (l *Lab) creeld() string {
	if p := os.Getenv("CREEL_TEST_CREELD"); p != "" {
		return p
	}
	return filepath.Join(l.Bin, "creeld-failpoint")
}

// Start starts the daemon and waits until it answers.
func (l *Lab) Start() {
	l.tb.Helper()
	l.Begin()
	l.Eventually("creeld answers", 60*time.Second, func() error {
		select {
		case <-l.exited:
			l.tb.Fatalf("creeld ended at start:\n%s", l.LogTail(20))
		default:
		}
		_, err := l.Version(context.Background())
		return err
	})
}

// Begin starts the daemon and does not wait.
func (l *Lab) Begin() {
	l.tb.Helper()
	log, err := os.OpenFile(l.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		l.tb.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(l.tb.Context()), l.creeld(), "--config", l.config)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CREEL_FAILPOINT_FILE=" + l.fail,
		"DAEMONS_SECRET=no sandbox may see it",
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		l.tb.Fatalf("%v; run \"make build-failpoint\"", err)
	}
	l.daemon, l.exited = cmd, make(chan struct{})
	go func() { _ = cmd.Wait(); close(l.exited) }()
}

// Kill ends the daemon as a crash would, and waits.
func (l *Lab) Kill() {
	_ = l.daemon.Process.Kill()
	<-l.exited
}

// Exited is closed when the daemon has ended by itself, as a failpoint of
// action "kill" makes it.
func (l *Lab) Exited() <-chan struct{} { return l.exited }

// Stop ends the daemon as systemd would, and waits.
func (l *Lab) Stop() {
	_ = l.daemon.Process.Signal(unix.SIGTERM)
	<-l.exited
}

// DaemonPID is creeld's.
func (l *Lab) DaemonPID() int { return l.daemon.Process.Pid }

// Fail sets the failpoints: lines of "NAME ACTION", none to clear them.
func (l *Lab) Fail(lines ...string) {
	l.tb.Helper()
	l.write(l.fail, strings.Join(lines, "\n")+"\n")
}

// Held waits until the daemon waits at a failpoint of action "hold".
func (l *Lab) Held(name string) {
	l.tb.Helper()
	l.Eventually("creeld comes to "+name, 30*time.Second, func() error {
		text, err := os.ReadFile(l.fail + ".held")
		if err == nil && string(text) != name {
			err = fmt.Errorf("it is at %q", text)
		}
		return err
	})
}

// Import gives the daemon an image.
func (l *Lab) Import(ref, archive string) {
	l.tb.Helper()
	f, err := os.Open(archive)
	if err != nil {
		l.tb.Fatal(err)
	}
	defer f.Close()
	if _, err := l.ImportImage(context.Background(), ref, f); err != nil {
		l.tb.Fatalf("import %s: %v", archive, err)
	}
}

// Creel runs the command line as the caller of the test.
func (l *Lab) Creel(args ...string) (stdout, stderr string, code int) {
	return l.CreelAs(nil, "", args...)
}

// CreelAs runs the command line as somebody, with standard input. Tests call
// it from goroutines of their own: a program that does not run is exit code -1.
func (l *Lab) CreelAs(cred *syscall.Credential, stdin string, args ...string) (stdout, stderr string, code int) {
	l.tb.Helper()
	cmd := l.Command(cred, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.tb.Errorf("creel %q: %v", args, err)
		return out.String(), err.Error(), -1
	}
	return out.String(), errb.String(), cmd.ProcessState.ExitCode()
}

// Command is the command line as somebody, or as the caller of the test, with
// no standard streams yet. It is ended when the test has.
func (l *Lab) Command(cred *syscall.Credential, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	l.tb.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, l.creel(), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "CREEL_SOCKET=" + l.Socket, "HOME=/"}
	cmd.Dir = "/"
	if cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	return cmd
}

// Copy makes a copy of a program that everybody can run: the checkout may be
// in a directory that is root's alone. It is made before anything runs it,
// because a program that is being written cannot be.
func (l *Lab) Copy(name, path string) {
	l.tb.Helper()
	program, err := os.ReadFile(filepath.Join(l.Bin, name))
	if err == nil {
		err = errors.Join(os.WriteFile(path, program, 0o700), os.Chmod(path, 0o755)) //nolint:gosec // for every caller
	}
	if err != nil {
		l.tb.Fatal(err)
	}
}

func (l *Lab) creel() string { return filepath.Join(l.Dir, "creel") }

// Spawn launches a sandbox that the test ends with, if it has not before.
func (l *Lab) Spawn(req api.SpawnRequest) *api.Sandbox {
	l.tb.Helper()
	res, err := l.Client.Spawn(context.Background(), req)
	if err != nil {
		l.tb.Fatalf("spawn: %v\n%s", err, l.LogTail(5))
	}
	return &res.Sandbox
}

// Sh runs a shell script in a sandbox and gives its output and result.
func (l *Lab) Sh(id, script string) (string, api.ExecResult) {
	l.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return l.ShContext(ctx, id, api.ExecRequest{Command: []string{"/bin/sh", "-c", script}})
}

// ShContext runs any command; standard output and error come together.
func (l *Lab) ShContext(ctx context.Context, id string, req api.ExecRequest) (string, api.ExecResult) {
	l.tb.Helper()
	var out lockedBuffer
	res, err := l.Exec(ctx, id, req, client.Stdio{Out: &out, Err: &out})
	if err != nil {
		l.tb.Fatalf("exec %q: %v\n%s", req.Command, err, l.LogTail(5))
	}
	return out.String(), res
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Eventually waits for a condition and fails the test with its last error.
func (l *Lab) Eventually(what string, within time.Duration, cond func() error) {
	l.tb.Helper()
	deadline := time.Now().Add(within)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.tb.Fatalf("%s: not within %s: %v\n%s", what, within, err, l.LogTail(10))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// LogTail is the last lines of the daemon's log.
func (l *Lab) LogTail(n int) string {
	text, _ := os.ReadFile(l.Log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "\n")
}

// errors are the first errors of the daemon's log.
func (l *Lab) errors() string {
	text, _ := os.ReadFile(l.Log)
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "level=ERROR") && len(out) < 10 {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "\n")
}

// close removes every sandbox, ends the daemon and its containerd, and holds
// the host to what it was before.
func (l *Lab) close() {
	l.Fail()
	select {
	case <-l.exited:
		l.Start()
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all, err := l.List(ctx, client.ListOptions{All: true})
	if err != nil {
		l.tb.Errorf("list: %v", err)
	}
	for _, sb := range all {
		if err := l.Remove(ctx, sb.ID, true); err != nil && api.CodeOf(err) != api.CodeNotFound {
			l.tb.Errorf("remove %s: %v", sb.ID, err)
		}
	}
	l.NothingLeft()
	l.noRaces()
	if l.tb.Failed() {
		l.tb.Logf("creeld's errors, and the end of its log:\n%s\n%s", l.errors(), l.LogTail(40))
	}
	l.Stop()
	l.endEgress()
	l.stopContainerd()
	l.unmountAll()
	l.removeCgroups()
	if err := os.RemoveAll(l.Dir); err != nil {
		l.tb.Errorf("remove %s: %v", l.Dir, err)
	}
}

// noRaces fails the test if the daemon, built with the race detector, has
// reported one.
func (l *Lab) noRaces() {
	text, err := os.ReadFile(l.Log)
	if err != nil {
		l.tb.Error(err)
		return
	}
	if _, race, found := bytes.Cut(text, []byte("WARNING: DATA RACE")); found {
		l.tb.Errorf("data race in creeld:%s", race[:min(len(race), 6000)])
	}
}
