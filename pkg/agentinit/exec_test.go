package agentinit_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
)

func TestExec(t *testing.T) {
	s := running(t)
	env := []string{"PATH=/usr/bin:/bin", "HOME=" + home, "A=b c"}
	tests := []struct {
		name  string
		p     agentinit.Process
		stdin string
		out   string
		err   string
		code  int
	}{
		{name: "true", p: agentinit.Process{Argv: []string{"true"}}},
		{name: "false", p: agentinit.Process{Argv: []string{"/bin/false"}}, code: 1},
		{name: "code", p: agentinit.Process{Argv: []string{"sh", "-c", "exit 42"}}, code: 42},
		{name: "signal", p: agentinit.Process{Argv: []string{"sh", "-c", "kill -9 $$"}}, code: 137},
		{name: "three streams", p: agentinit.Process{Argv: []string{"sh", "-c", "cat; echo e >&2"}}, stdin: "in", out: "in", err: "e\n"},
		{name: "environment", p: agentinit.Process{Argv: []string{"env"}}, out: strings.Join(env, "\n") + "\n"},
		{name: "home is the default", p: agentinit.Process{Argv: []string{"pwd"}}, out: home + "\n"},
		{name: "directory", p: agentinit.Process{Argv: []string{"pwd"}, Cwd: "/usr"}, out: "/usr\n"},
		{name: "umask", p: agentinit.Process{Argv: []string{"sh", "-c", "umask"}, Umask: 0o27}, out: "0027\n"},
		{name: "session", p: agentinit.Process{Argv: []string{"sh", "-c", `read -r pid c s ppid pgrp sid rest </proc/$$/stat; [ $pid = $pgrp ] && [ $pid = $sid ] && echo own`}}, out: "own\n"},
		{name: "oom score", p: agentinit.Process{Argv: []string{"cat", "/proc/self/oom_score_adj"}}, out: "500\n"},
		{name: "descriptors", p: agentinit.Process{Argv: []string{"sh", "-c", "echo /proc/self/fd/*"}}, out: "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n"},
		{name: "signals are reset", p: agentinit.Process{Argv: []string{"sh", "-c", `while read -r k v; do case $k in Sig[BI]*) echo $k $v;; esac; done </proc/$$/status`}}, out: "SigBlk: 0000000000000000\nSigIgn: 0000000000000000\n"},
		{name: "dumpable again", p: agentinit.Process{Argv: []string{"sh", "-c", "stat -c %u /proc/$$/environ"}}, out: "1000\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.p.Env = env
			if tt.p.Umask == 0 {
				tt.p.Umask = 0o22
			}
			r := s.exec(t, tt.p, tt.stdin)
			if r.fail != nil {
				t.Fatal(r.fail)
			}
			if r.out != tt.out || r.err != tt.err || r.status.ExitCode() != tt.code {
				t.Errorf("out %q, err %q, code %d; want %q, %q, %d", r.out, r.err, r.status.ExitCode(), tt.out, tt.err, tt.code)
			}
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
				t.Fatal(err)
			}
			if age := now.Nano() - r.stamp; age < 0 || age > 20e9 {
				t.Errorf("stamp is %d ns old", age)
			}
		})
	}
}

func TestExecFails(t *testing.T) {
	s := running(t)
	r := s.sh(t, "echo not a program > "+home+"/text; cp "+home+"/text "+home+"/x; chmod +x "+home+"/x; mkdir "+home+"/d "+home+"/d/text")
	if r.status.ExitCode() != 0 {
		t.Fatal(r)
	}
	tests := []struct {
		name  string
		argv0 string
		cwd   string
		path  string
		stage agentinit.Stage
		errno syscall.Errno
		code  int
	}{
		{name: "not found in PATH", argv0: "no-such-command", stage: agentinit.StageExec, errno: unix.ENOENT, code: 127},
		{name: "no such path", argv0: "/no/such", stage: agentinit.StageExec, errno: unix.ENOENT, code: 127},
		{name: "file as directory", argv0: "/etc/passwd/x", stage: agentinit.StageExec, errno: unix.ENOENT, code: 127},
		{name: "not executable", argv0: home + "/text", stage: agentinit.StageExec, errno: unix.EACCES, code: 126},
		{name: "not executable in PATH", argv0: "text", path: "/nowhere:" + home + ":/usr/bin", stage: agentinit.StageExec, errno: unix.EACCES, code: 126},
		{name: "a directory", argv0: "/usr", stage: agentinit.StageExec, errno: unix.EACCES, code: 126},
		{name: "no format", argv0: home + "/x", stage: agentinit.StageExec, errno: unix.ENOEXEC, code: 126},
		{name: "relative PATH is not used", argv0: "x", path: ".::", stage: agentinit.StageExec, errno: unix.ENOENT, code: 127},
		{name: "no directory", argv0: "true", cwd: "/no/such", stage: agentinit.StageCwd, errno: unix.ENOENT, code: 125},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.path
			if path == "" {
				path = "/usr/bin:/bin"
			}
			r := s.exec(t, agentinit.Process{Argv: []string{tt.argv0}, Cwd: tt.cwd, Env: []string{"PATH=" + path, "HOME=" + home}}, "")
			var e *agentinit.ExecError
			if !errors.As(r.fail, &e) || e.Stage != tt.stage || e.Errno != tt.errno || e.ExitCode() != tt.code {
				t.Errorf("got %#v, want %s: %v, code %d", r.fail, tt.stage, tt.errno, tt.code)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	s := newSandbox(t, nil)
	hello := s.take(t)
	if hello.PID != 1 || hello.Ready || hello.Gone {
		t.Errorf("hello = %+v", hello)
	}
	ctx := deadline(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := agentinit.Process{ID: "a", Argv: []string{"/bin/true"}}
	fds := []*os.File{null, null, null}
	expect := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	_, err = s.Start(ctx, p, fds)
	expect("start before go", err, agentinit.ErrOrder)
	expect("go before setup", s.Go(ctx), agentinit.ErrOrder)
	expect("setup", s.Setup(ctx, agentinit.Setup{}), nil)
	expect("setup twice", s.Setup(ctx, agentinit.Setup{}), agentinit.ErrOrder)
	expect("go", s.Go(ctx), nil)
	expect("go twice", s.Go(ctx), agentinit.ErrOrder)
	_, err = s.Probe(ctx, agentinit.ProbeOptions{})
	expect("probe after go", err, agentinit.ErrOrder)
	_, err = s.Hello(ctx)
	expect("hello twice", err, agentinit.ErrOrder)
	_, err = s.Start(ctx, p, fds)
	expect("start", err, nil)
	_, err = s.Start(ctx, p, fds)
	expect("start twice", err, agentinit.ErrExists)
	expect("ack of a live one", s.Ack(ctx, "a"), agentinit.ErrOrder)
	expect("ack of nobody", s.Ack(ctx, "nobody"), agentinit.ErrUnknown)
	expect("cancel", s.Cancel(ctx, "a"), nil)
	_, err = s.Release(ctx, "a")
	expect("release of a cancelled one", err, agentinit.ErrUnknown)
	_, err = s.Start(ctx, p, fds[:2])
	expect("too few descriptors", err, os.ErrInvalid)
	p.Argv = []string{"/bin/true", strings.Repeat("x", agentinit.MaxArgs)}
	_, err = s.Start(ctx, p, fds)
	expect("too long", err, agentinit.ErrTooLarge)
	p.Argv[1] = p.Argv[1][:agentinit.MaxArgs-len("/bin/true")-2]
	_, err = s.Start(ctx, p, fds)
	expect("as long as can be", err, nil)
	_, err = s.Release(ctx, "a")
	expect("release", err, nil)
	_, err = s.Wait(ctx, "a")
	expect("wait", err, nil)
}
