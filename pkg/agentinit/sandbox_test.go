package agentinit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

const (
	helperEnv = "CREEL_AGENTINIT_HELPER"
	agentUID  = 1000
	hostBase  = 1879048192 // 0x7000_0000: no range of creel's pool
	home      = "/mnt"
)

func TestMain(m *testing.M) {
	if os.Getenv(leaderEnv) != "" {
		loseLeader()
	}
	if path := os.Getenv(helperEnv); path != "" {
		err := becomeInit(path, os.Args[1:])
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(1)
	}
	code := m.Run()
	if builtIn != "" {
		_ = os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// becomeInit runs in fresh namespaces, as root of them, and becomes
// creel-init the way the runtime starts it: uid 1000, no capability,
// no_new_privs, its own /proc.
func becomeInit(path string, args []string) error {
	for _, m := range []struct {
		src, dst, typ string
		flags         uintptr
		data          string
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", home, "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		if err := unix.Mount(m.src, m.dst, m.typ, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dst, err)
		}
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(agentUID), syscall.Setuid(agentUID)); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return syscall.Exec(path, append([]string{"creel-init"}, args...), nil)
}

// builtIn is the directory that buildInit made.
var builtIn string

// buildInit builds the real binary once, readable by nobody, as the launcher
// makes the private copy.
var buildInit = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "creel-init-test-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "helper"), self, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "creel-init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "../../cmd/creel-init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, os.Chmod(path, 0o111)
})

type sandbox struct {
	*agentinit.Host
	cmd   *exec.Cmd
	pidfd int
}

// newSandbox runs creel-init in its own namespaces. Extra arguments are its.
func newSandbox(tb testing.TB, stdio io.ReadWriteCloser, args ...string) *sandbox {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root)
	path, err := buildInit()
	if err != nil {
		tb.Fatal(err)
	}
	s := &sandbox{cmd: exec.Command(filepath.Join(filepath.Dir(path), "helper"), args...), pidfd: -1}
	s.cmd.Env = []string{helperEnv + "=" + path}
	var stderr bytes.Buffer
	s.cmd.Stderr = &stderr
	if stdio != nil {
		f := stdio.(*os.File)
		s.cmd.Stdin, s.cmd.Stdout = f, f
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostBase, Size: 65536}}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true}, // of the new namespace
		PidFD:      &s.pidfd,
	}
	if err := s.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		_ = unix.Close(s.pidfd)
		if tb.Failed() {
			tb.Logf("init's stderr: %s", &stderr)
		}
	})
	return s
}

// take connects and says hello.
func (s *sandbox) take(tb testing.TB) agentinit.Hello {
	tb.Helper()
	h, err := agentinit.Take(deadline(tb), s.pidfd)
	if err != nil {
		tb.Fatal(err)
	}
	s.Host = h
	tb.Cleanup(func() { _ = h.Close() })
	hello, err := h.Hello(deadline(tb))
	if err != nil {
		tb.Fatal(err)
	}
	return hello
}

// landlock is whether this kernel can isolate commands.
var landlock = kerneltest.Landlock.Probe() == nil

// running is a sandbox after Go, without filter.
func running(tb testing.TB) *sandbox {
	tb.Helper()
	s := newSandbox(tb, nil)
	s.take(tb)
	if err := s.Setup(deadline(tb), agentinit.Setup{Isolate: landlock}); err != nil {
		tb.Fatal(err)
	}
	if err := s.Go(deadline(tb)); err != nil {
		tb.Fatal(err)
	}
	return s
}

func deadline(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 30*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

var lastID int

func newID() string {
	lastID++
	return "p" + strconv.Itoa(lastID)
}

type result struct {
	out, err string
	status   agentinit.WaitStatus
	fail     error // of Release
	stamp    int64
}

// exec runs a command to its end with pipes.
func (s *sandbox) exec(tb testing.TB, p agentinit.Process, stdin string) result {
	tb.Helper()
	ctx := deadline(tb)
	if p.ID == "" {
		p.ID = newID()
	}
	in, inW := pipe(tb)
	outR, out := pipe(tb)
	errR, errW := pipe(tb)
	if _, err := s.Start(ctx, p, []*os.File{in, out, errW}); err != nil {
		tb.Fatal(err)
	}
	for _, f := range []*os.File{in, out, errW} {
		_ = f.Close()
	}
	go func() {
		_, _ = io.WriteString(inW, stdin)
		_ = inW.Close()
	}()
	var r result
	r.stamp, r.fail = s.Release(ctx, p.ID)
	var wg sync.WaitGroup
	wg.Go(func() { b, _ := io.ReadAll(outR); r.out = string(b) })
	wg.Go(func() { b, _ := io.ReadAll(errR); r.err = string(b) })
	wg.Wait()
	_ = outR.Close()
	_ = errR.Close()
	var err error
	r.status, err = s.Wait(ctx, p.ID)
	if (err == nil) != (r.fail == nil) {
		tb.Fatalf("Release: %v, Wait: %v", r.fail, err)
	}
	if err := s.Ack(ctx, p.ID); err != nil {
		tb.Fatal(err)
	}
	return r
}

func (s *sandbox) sh(tb testing.TB, script string, args ...string) result {
	tb.Helper()
	return s.exec(tb, agentinit.Process{
		Argv: append([]string{"sh", "-c", script, "sh"}, args...),
		Env:  []string{"PATH=/usr/bin:/bin", "HOME=" + home},
	}, "")
}

func pipe(tb testing.TB) (*os.File, *os.File) {
	tb.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	return r, w
}
