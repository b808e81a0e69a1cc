package agentinit_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// TestProbeIsolation: the probe tells whether commands are apart.
func TestProbeIsolation(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock)
	for _, isolate := range []bool{true, false} {
		t.Run(fmt.Sprint(isolate), func(t *testing.T) {
			s := newSandbox(t, nil)
			s.take(t)
			if err := s.Setup(deadline(t), agentinit.Setup{Isolate: isolate}); err != nil {
				t.Fatal(err)
			}
			want := map[string]unix.Errno{agentinit.Isolation: 0}
			if isolate {
				want[agentinit.Isolation] = unix.EACCES
			}
			for _, asked := range []bool{true, false, true} {
				rows, err := s.Probe(deadline(t), agentinit.ProbeOptions{Isolate: asked})
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for _, r := range rows {
					if r.Name != agentinit.Isolation {
						continue
					}
					if n++; r.Got != want[r.Name] || r.OK() != isolate {
						t.Errorf("row %+v, ok %t", r, r.OK())
					}
				}
				if n == 1 != asked {
					t.Errorf("%d rows, asked for: %t", n, asked)
				}
			}
			if procs, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.cmd.Process.Pid)); err != nil || len(procs) != 0 {
				t.Errorf("the probe left processes: %q, %v", procs, err)
			}
			if err := s.Go(deadline(t)); err != nil {
				t.Fatal(err)
			}
			if r := s.sh(t, "echo $$"); !strings.HasSuffix(r.out, "\n") {
				t.Errorf("after the probe: %+v", r)
			}
		})
	}
}

// TestOtherFilter: a filter that refuses the call which makes a domain is
// seen by the probe, and no command starts without one.
func TestOtherFilter(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock)
	s := newSandbox(t, nil)
	s.take(t)
	if err := s.Setup(deadline(t), agentinit.Setup{Isolate: true, Filter: refusing(unix.SYS_LANDLOCK_RESTRICT_SELF, unix.ENOSYS)}); err != nil {
		t.Fatal(err)
	}
	rows, err := s.Probe(deadline(t), agentinit.ProbeOptions{Isolate: true})
	if err != nil {
		t.Fatal(err)
	}
	if last := rows[len(rows)-1]; last.Name != agentinit.Isolation || last.OK() {
		t.Errorf("probe: %+v", last)
	}
	if err := s.Go(deadline(t)); err != nil {
		t.Fatal(err)
	}
	r := s.sh(t, "echo ran")
	if e, ok := errors.AsType[*agentinit.ExecError](r.fail); !ok || e.Stage != agentinit.StageIsolate || e.Errno != unix.ENOSYS || e.ExitCode() != 125 || r.out != "" {
		t.Errorf("a command without a domain: %+v, %v", r, r.fail)
	}
}

// TestCommandsApart has one command look into another, and into its own
// children.
func TestCommandsApart(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock)
	s := running(t)
	in, inW := pipe(t)
	outR, out := pipe(t)
	pid, err := s.Start(deadline(t), agentinit.Process{
		ID: "victim", Argv: []string{"sh", "-c", "sleep 1000 & echo $!; read x; kill $!"},
		Env: []string{"PATH=/usr/bin:/bin", "HOME=" + home, "SECRET=1"},
	}, []*os.File{in, out, out})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Release(deadline(t), "victim"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := outR.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	child := strings.TrimSpace(string(buf[:n]))
	for _, victim := range []string{fmt.Sprint(pid), child} {
		for _, f := range []string{"fd/0", "environ", "mem", "maps", "auxv", "cwd/.", "root/.", "exe", "task/" + victim + "/fd/0", "fdinfo/0"} {
			if r := s.sh(t, `exec 3<"/proc/$1/$2" && echo opened`, victim, f); r.out != "" || !strings.Contains(r.err, "denied") {
				t.Errorf("/proc/%s/%s of another command: %q, %q", victim, f, r.out, r.err)
			}
		}
		if r := s.sh(t, `ls "/proc/$1/map_files"`, victim); r.out != "" {
			t.Errorf("another command has mapped %q", r.out)
		}
		for _, f := range []string{"fd/0", "fd/1", "cwd", "root", "exe", "ns/net"} {
			if r := s.sh(t, `readlink "/proc/$1/$2"`, victim, f); r.out != "" {
				t.Errorf("/proc/%s/%s of another command leads to %q", victim, f, r.out)
			}
		}
	}
	// What everybody may know of a process, ps(1) still shows.
	if r := s.sh(t, `cat /proc/$1/stat /proc/$1/cmdline`, child); !strings.Contains(r.out, "sleep") {
		t.Errorf("ps: %q, %q", r.out, r.err)
	}
	// Within a command nothing changes, and its children cannot get out.
	r := s.sh(t, `sleep 1000 & p=$!
until [ "$(readlink /proc/$p/exe)" != "$(readlink /proc/$$/exe)" ]; do :; done
for f in fd/0 environ maps cwd/. root/. exe; do (exec 3<"/proc/$p/$f") && echo $f; done; (exec 3<"/proc/$$/environ") && echo parent
kill $p; (cat "/proc/$1/environ" || setsid cat "/proc/$1/environ") 2>/dev/null`, child)
	if want := "fd/0\nenviron\nmaps\ncwd/.\nroot/.\nexe\nparent\n"; r.out != want {
		t.Errorf("within a command: %q, want %q; %q", r.out, want, r.err)
	}
	_ = inW.Close()
	if _, err := s.Wait(deadline(t), "victim"); err != nil {
		t.Error(err)
	}
}

// TestMoving: a domain takes nothing away from what files can be done with.
func TestMoving(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock)
	s := running(t)
	r := s.sh(t, `set -e; cd /mnt; mkdir -p a/deep b; echo x >a/f
mv a/f b/g; ln b/g a/h; mv a/deep b/deep; mkdir a/other; mv -T a/other b/other
mv b/g /mnt/top; mv top b/deep/down; cp -al b/deep a/linked; mv b/deep/down ../mnt/a/linked/up
cat a/linked/up a/h; ls a b`)
	if want := "x\nx\na:\nh\nlinked\n\nb:\ndeep\nother\n"; r.out != want || r.err != "" {
		t.Errorf("%q, %q; want %q", r.out, r.err, want)
	}
}

// refusing is a filter that refuses one call.
func refusing(nr uint32, e unix.Errno) []byte {
	return filter(
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(e)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
}
