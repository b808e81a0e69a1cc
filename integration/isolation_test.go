package integration_test

import (
	"bytes"
	"context"
	_ "embed"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

const isolation = "exec_isolation"

// TestExecsApart: a command looks into the main command, another exec and
// their children, with each profile and in both ways that bytes travel.
func TestExecsApart(t *testing.T) {
	kerneltest.Require(t, kerneltest.Landlock)
	l := lab.New(t, lab.Options{})
	// Each says who it is and leaves a child that says so as well.
	const victim = `sleep 1000 & echo $$ $!; read x; kill $!`
	for profile, home := range map[string]string{"default": "/home/agent\n", "strict": "/home/agent\n", "build": "/root\n"} {
		sb := l.Spawn(api.SpawnRequest{Profile: profile, Stdin: true, Command: []string{"/bin/sh", "-c", "sleep 1000 & sleep 1000"}})
		ev, err := l.Evidence(t.Context(), sb.ID, true)
		if err != nil || len(ev) != 2 || !ev[0].OK {
			t.Fatalf("%d evidences, %v", len(ev), err)
		}
		if c := controlOf(ev[1], isolation); !c.OK || c.Observed != "EACCES" {
			t.Errorf("%s: control %+v", profile, c)
		}
		for _, mode := range modes {
			t.Run(profile+"/"+mode, func(t *testing.T) {
				pids := pidsOf(t, l, sb.ID, mode, victim)
				all, _ := l.Sh(sb.ID, `for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p != 1 ] && [ $p != $$ ] && grep -q . /proc/$p/cmdline && echo $p; done`)
				for _, pid := range pids {
					if !slices.Contains(strings.Fields(all), pid) {
						t.Fatalf("no %s in %q", pid, all)
					}
				}
				for pid := range strings.FieldsSeq(all) {
					out, _ := l.ShContext(deadline(t), sb.ID, api.ExecRequest{IO: mode, Command: []string{"/bin/sh", "-c", `
for f in fd/0 environ mem maps auxv cwd/. root/. exe task/$1/fd/0 fdinfo/0; do (exec 3</proc/$1/$f) 2>/dev/null && echo read $f; done
for f in fd/0 mem environ; do (exec 3>>/proc/$1/$f) 2>/dev/null && echo wrote $f; done
for f in fd/0 fd/1 cwd root exe ns/mnt; do readlink /proc/$1/$f; done
for d in map_files cwd root/etc; do ls /proc/$1/$d/ 2>/dev/null; done`, "sh", pid}})
					if out != "" {
						t.Errorf("process %s of another command: %q", pid, out)
					}
				}
			})
		}
		if out, res := l.Sh(sb.ID, `sleep 1000 & (exec 3</proc/$!/environ) && readlink /proc/$!/fd/1 && cat /proc/$!/maps >/dev/null && (readlink /proc/$$/cwd); kill $!`); res.ExitCode != 0 || !strings.HasSuffix(out, home) {
			t.Errorf("within one command: %q, %+v", out, res)
		}
		// A child that left its command's session is no other command's.
		if out, _ := l.Sh(sb.ID, `setsid sh -c 'exec sleep 1000' & p=$!; usleep 50000; readlink /proc/$p/cwd; kill $p`); out != home {
			t.Errorf("its own child in another session: %q", out)
		}
	}
}

// pidsOf runs an exec for the length of the test and returns the numbers that
// it prints.
func pidsOf(t *testing.T, l *lab.Lab, id, mode, script string) []string {
	t.Helper()
	in, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	done := make(chan error, 1)
	go func() {
		_, err := l.Exec(ctx, id, api.ExecRequest{IO: mode, Stdin: true, Command: []string{"/bin/sh", "-c", script}}, client.Stdio{In: in, Out: out, Err: out})
		_ = out.Close()
		done <- err
	}()
	t.Cleanup(func() {
		defer cancel()
		_ = inW.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var line [64]byte
	n, err := outR.Read(line[:])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(line[:n]))
}

func controlOf(ev api.Evidence, name string) api.Control {
	for _, c := range ev.Controls {
		if c.Name == name {
			return c
		}
	}
	return api.Control{}
}

// TestWithoutLandlock is a host that has none: strict refuses to start, and
// the evidence of default says what is weaker, at each proof.
func TestWithoutLandlock(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Fail("host.landlock on")
	_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Profile: "strict"})
	e := asAPI(t, err)
	if e.Code != api.CodeNotProven {
		t.Fatal(e)
	}
	refusedFor(t, e, isolation)
	if !strings.Contains(e.Message, "Landlock: operation not supported") {
		t.Error(e.Message)
	}
	l.NothingLeft()
	sb := l.Spawn(api.SpawnRequest{})
	l.Fail() // a daemon with another kernel's answer still knows how this one was started
	l.Stop()
	l.Start()
	ev, err := l.Evidence(t.Context(), sb.ID, true)
	if err != nil || len(ev) != 3 {
		t.Fatalf("%d evidences, %v", len(ev), err)
	}
	for _, e := range ev {
		if weaker := strings.Join(e.Weaker, "\n"); !e.OK || !strings.Contains(weaker, isolation+": ") || controlOf(e, isolation).Name != "" {
			t.Errorf("%s: ok %t, weaker %q, control %+v", e.Why, e.OK, weaker, controlOf(e, isolation))
		}
	}
	if out, res := l.Sh(sb.ID, "echo runs"); out != "runs\n" {
		t.Errorf("%q %+v", out, res)
	}
}

// movingScript does what REFER is about.
//
//go:embed testdata/moving.py
var movingScript string

// TestMoving: the domain of a command is in nobody's way.
func TestMoving(t *testing.T) {
	kerneltest.Require(t, kerneltest.BaseImage)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath()})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		dirs []string
	}{
		{"default", nil, []string{"/workspace", "/tmp", "/home/agent", "/var/tmp", "/dev/shm"}},
		{"ephemeral", []string{"--rootfs", "ephemeral"}, []string{"/workspace", "/home/agent"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "-v", workspace(t) + ":/workspace"}, tt.args...)
			args = append(args, "--", "/usr/bin/python3", "-B", "-c", movingScript)
			out, errOut, code := l.CreelAs(caller, "", append(args, tt.dirs...)...)
			if out != "end\n" || code != 0 {
				t.Errorf("code %d:\n%s%s", code, out, errOut)
			}
		})
	}
	t.Run("strict", func(t *testing.T) {
		sb := l.Spawn(api.SpawnRequest{Profile: "strict"})
		var out, errOut bytes.Buffer
		res, err := l.Exec(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/usr/bin/python3", "-B", "-c", movingScript, "/tmp", "/home/agent"}}, client.Stdio{Out: &out, Err: &errOut})
		if err != nil || out.String() != "end\n" {
			t.Errorf("%+v, %v:\n%s%s", res, err, &out, &errOut)
		}
	})
}
