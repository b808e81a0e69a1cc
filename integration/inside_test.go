package integration_test

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// insideScript tries, as the agent, what an agent must not be able to do.
//
//go:embed testdata/inside.py
var insideScript string

// insideLeast is fewer attacks than the script makes: one that ends early, or
// loses a group, must not pass.
const insideLeast = 450

// TestInside runs the attacks with each runtime and each kind of root.
func TestInside(t *testing.T) {
	kerneltest.Require(t, kerneltest.BaseImage)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath()})
	abstract := hostAbstractSocket(t)
	for _, tt := range []struct{ profile, runtime string }{{"default", "crun"}, {"strict", "runc"}, {"build", "crun"}, {"build", "runc"}} {
		t.Run(tt.profile+" "+tt.runtime, func(t *testing.T) {
			// The script's storm of signals to PID 1 is passed to the main
			// command, as promised, and ends one that does not ignore it.
			sb := l.Spawn(api.SpawnRequest{
				Profile: tt.profile, Runtime: tt.runtime,
				Command: []string{"/bin/sh", "-c", "trap '' HUP INT QUIT TERM USR1 USR2; sleep 1000"},
			})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			put(t, l, sb.ID, "/tmp/inside.py", insideScript)
			var out, errb bytes.Buffer
			res, err := l.Exec(ctx, sb.ID, api.ExecRequest{Command: []string{"/usr/bin/python3", "-B", "/tmp/inside.py", abstract, tt.profile}}, client.Stdio{Out: &out, Err: &errb})
			if err != nil || res.ExitCode != 0 {
				t.Fatalf("script: %+v, %v\n%s", res, err, errb.String())
			}
			judge(t, out.Bytes())
			// PID 1 still serves, and the proof still holds.
			if got, res := l.Sh(sb.ID, "echo served"); got != "served\n" {
				t.Errorf("after the attacks: %q, %+v", got, res)
			}
			ev, err := l.Evidence(ctx, sb.ID, true)
			if err != nil || !ev[0].OK {
				t.Errorf("evidence after the attacks: %+v, %v", ev, err)
			}
		})
	}
}

// judge holds the script's lines against what they say must happen.
func judge(t *testing.T, out []byte) {
	t.Helper()
	n, ended := 0, false
	for line := range bytes.Lines(out) {
		var a struct {
			Name string
			Got  any
			Want []any
		}
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		n++
		ended = a.Name == "end"
		got := fmt.Sprint(a.Got)
		if !slices.ContainsFunc(a.Want, func(w any) bool { return fmt.Sprint(w) == got }) {
			t.Errorf("%s: %s, want one of %v", a.Name, got, a.Want)
		}
	}
	if n < insideLeast || !ended {
		t.Errorf("%d attacks, ended: %t; want at least %d", n, ended, insideLeast)
	}
	t.Logf("%d attacks", n)
}

// hostAbstractSocket listens on an abstract socket of the host's.
func hostAbstractSocket(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("creel-test-%d", os.Getpid())
	ln, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return name
}

func put(t *testing.T, l *lab.Lab, id, path, text string) {
	t.Helper()
	if err := l.WriteFile(t.Context(), id, path, client.WriteOptions{Mode: 0o755}, strings.NewReader(text), int64(len(text))); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
}

// TestFilesOfAHostileAgent: operations on files happen in the sandbox, so
// neither links nor odd files nor endless directories lead to the host or
// hold the daemon.
func TestFilesOfAHostileAgent(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	setup := fmt.Sprintf(`cd /tmp && ln -s /etc/passwd passwd && ln -s /proc/1/root%[1]s root && ln -s %[1]s direct &&
ln -s /proc/self/fd/0 fd0 && ln -s loop loop && mknod fifo p && ln -s /dev/zero zero && ln -s ../../../../../../../%[1]s dots &&
dd if=/dev/zero of=sparse bs=1 count=0 seek=2147483647 2>/dev/null && mkdir d && touch 'd/new
line' d/-rf && ln -s / d/slash && ln -s /nonexistent d/dangling`, secret)
	if out, res := l.Sh(sb.ID, setup); res.ExitCode != 0 {
		t.Fatalf("%q %+v", out, res)
	}
	for _, tt := range []struct {
		path string
		want api.Code
	}{
		{"/tmp/root", api.CodeDenied},
		{"/tmp/direct", api.CodeNotFound},
		{"/tmp/dots", api.CodeNotFound},
		{"/tmp/loop", api.CodeInvalid},
		{"/tmp/fifo", api.CodeInvalid},
		{"/tmp/zero", api.CodeInvalid},
		{"/tmp/fd0", api.CodeInvalid},
		{"/dev/tty", api.CodeInvalid},
		{"/tmp/d", api.CodeInvalid},
		{"/proc/1/environ", api.CodeDenied},
	} {
		t.Run(tt.path, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			text, err := readAll(ctx, l, sb.ID, tt.path)
			if api.CodeOf(err) != tt.want || strings.Contains(text, "host") {
				t.Errorf("read: %q, %v; want code %s", text, err, tt.want)
			}
		})
	}
	if text, err := readAll(t.Context(), l, sb.ID, "/tmp/passwd"); err != nil || !strings.Contains(text, "agent:x:1000") || strings.Contains(text, "daemon") {
		t.Errorf("a link to /etc/passwd gives %q, %v; want the sandbox's", text, err)
	}
	t.Run("write through a link", func(t *testing.T) {
		put(t, l, sb.ID, "/tmp/direct", "new")
		if b, _ := os.ReadFile(secret); string(b) != "host" {
			t.Errorf("the host's file is now %q", b)
		}
	})
	t.Run("names", func(t *testing.T) {
		var names []string
		if _, err := l.ListDir(t.Context(), sb.ID, "/tmp/d", 100, func(f api.FileInfo) error { names = append(names, f.Name); return nil }); err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		if want := []string{"-rf", "dangling", "new\nline", "slash"}; !slices.Equal(names, want) {
			t.Errorf("names %q, want %q", names, want)
		}
	})
	t.Run("copy out", func(t *testing.T) { testCopyOut(t, l, sb.ID) })
	t.Run("deep and wide", func(t *testing.T) { testDeepAndWide(t, l, sb.ID) })
}

func readAll(ctx context.Context, l *lab.Lab, id, path string) (string, error) {
	r, err := l.ReadFile(ctx, id, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	return b.String(), err
}

// testCopyOut: what "creel cp" unpacks for the caller stays where it was sent.
func testCopyOut(t *testing.T, l *lab.Lab, id string) {
	t.Helper()
	dst := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if out, res := l.Sh(id, fmt.Sprintf(`mkdir -p /tmp/c && cd /tmp/c && echo x >ok && ln -s %s escape && ln -s ../.. up && mknod pipe p && echo y >'a\b'`, outside)); res.ExitCode != 0 {
		t.Fatalf("%q %+v", out, res)
	}
	stdout, stderr, code := l.Creel("cp", id+":/tmp/c", dst)
	t.Logf("creel cp: %d %q %q", code, stdout, stderr)
	if _, err := os.Lstat(outside); err == nil {
		t.Error("the copy wrote outside")
	}
	err := filepath.WalkDir(dst, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch d.Type() {
		case 0, os.ModeDir:
		case os.ModeSymlink:
			if target, _ := os.Readlink(p); filepath.IsAbs(target) || strings.HasPrefix(target, "..") {
				t.Errorf("link %s leads out, to %s", p, target)
			}
		default:
			t.Errorf("%s of type %v was copied", p, d.Type())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dst, "c", "ok")); string(b) != "x\n" {
		t.Errorf("the ordinary file: %q, %v", b, err)
	}
}

// testDeepAndWide: a directory of many levels is listed and removed like any
// other.
func testDeepAndWide(t *testing.T, l *lab.Lab, id string) {
	t.Helper()
	out, res := l.Sh(id, `cd /run; mkdir wide; cd wide; seq 1 2000 | xargs touch
cd /var/tmp; i=0; while [ $i -lt 180 ]; do mkdir dddddddddddddddddddd && cd dddddddddddddddddddd || break; i=$((i+1)); done; echo $i`)
	if !strings.HasSuffix(out, "180\n") {
		t.Fatalf("%q %+v", out, res)
	}
	for _, dir := range []string{"/var/tmp/dddddddddddddddddddd", "/run/wide"} {
		if err := l.RemoveFile(t.Context(), id, dir, true); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
		if _, err := l.StatFile(t.Context(), id, dir); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("after its removal, stat of %s = %v", dir, err)
		}
	}
}

// TestHugeDirectory: listing a directory of any size costs the daemon no
// memory, and neither does a client that does not read the answer.
func TestHugeDirectory(t *testing.T) {
	files := 100_000
	if os.Getenv("CREEL_SOAK") != "" {
		files = 1_000_000
	}
	l := lab.New(t, lab.Options{})
	dir := t.TempDir()
	for i := range files {
		if err := os.Symlink(strings.Repeat("x", 50), filepath.Join(dir, fmt.Sprintf("%030d", i))); err != nil {
			t.Fatal(err)
		}
	}
	sb := l.Spawn(api.SpawnRequest{Mounts: []api.Mount{{Source: dir, Target: "/mnt/huge", ReadOnly: true}}})
	list := func(fn func(api.FileInfo) error) (bool, error) {
		return l.ListDir(t.Context(), sb.ID, "/mnt/huge", files+1, fn)
	}
	if _, err := l.ListDir(t.Context(), sb.ID, "/mnt/huge", 1000, func(api.FileInfo) error { return nil }); err != nil {
		t.Fatal(err)
	}
	before := rss(t, l.DaemonPID())
	n := 0
	truncated, err := list(func(api.FileInfo) error { n++; return nil })
	if err != nil || truncated || n != files {
		t.Errorf("%d entries, truncated %t, %v; want %d", n, truncated, err, files)
	}
	slow, stop := 0, errors.New("enough")
	if _, err := list(func(api.FileInfo) error {
		if slow++; slow == 1 {
			time.Sleep(time.Second)
		}
		if slow == 1000 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) {
		t.Errorf("a client that stops reading: %v", err)
	}
	if grown := rss(t, l.DaemonPID()) - before; grown > 16<<20*raceFactor() {
		t.Errorf("listing %d files cost the daemon %d KiB", files, grown>>10)
	}
	if truncated, err := l.ListDir(t.Context(), sb.ID, "/mnt/huge", 10, func(api.FileInfo) error { return nil }); err != nil || !truncated {
		t.Errorf("with a limit: truncated %t, %v", truncated, err)
	}
}

// TestStubsUnderFire is about an agent that stops, or ends, the
// processes by which the daemon serves others in the same sandbox: whoever
// asks gets an answer or can go away, and nothing stays behind.
func TestStubsUnderFire(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	before := used(t, l.DaemonPID())
	for _, sig := range []string{"STOP", "KILL", "TERM", "SEGV"} {
		t.Run(sig, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// kill -1 spares PID 1 and the sender.
			storm, err := l.StartExec(ctx, sb.ID, api.ExecRequest{Command: []string{"/bin/sh", "-c", "echo on; while :; do kill -" + sig + " -1; done"}})
			if err != nil {
				t.Fatal(err)
			}
			for range 8 {
				c, stop := context.WithTimeout(t.Context(), time.Second)
				_, _ = l.Exec(c, sb.ID, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
				_, _ = readAll(c, l, sb.ID, "/etc/passwd")
				stop()
			}
			storm.Close()
			l.Eventually("the sandbox serves again", 40*time.Second, func() error {
				c, stop := context.WithTimeout(t.Context(), 5*time.Second)
				defer stop()
				res, err := l.Exec(c, sb.ID, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
				if err == nil && res.ExitCode != 0 {
					err = fmt.Errorf("%+v", res)
				}
				return err
			})
			l.Eventually("nothing is left of the execs", 40*time.Second, func() error {
				v, err := l.Inspect(t.Context(), sb.ID)
				if err == nil && v.Execs != 0 {
					err = fmt.Errorf("%d execs", v.Execs)
				}
				if now := used(t, l.DaemonPID()); now.fds > before.fds+16 || now.threads > before.threads+16 {
					err = fmt.Errorf("the daemon had %+v, has %+v", before, now)
				}
				return err
			})
		})
	}
}

// TestDescriptorsAndEnvironment: nothing of the daemon's enters a sandbox,
// its shim or its helpers, and nothing of the run and state directories is
// anybody's to read.
func TestDescriptorsAndEnvironment(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sleep", "1000"}})
	out, _ := l.Sh(sb.ID, "ls -l /proc/self/fd; env | sort")
	for line := range strings.Lines(out) {
		if strings.Contains(line, "/tmp/creel-lab-") || strings.Contains(line, "CREEL_") || strings.Contains(line, "socket:") {
			t.Errorf("in the sandbox: %s", line)
		}
	}
	for _, tt := range []struct {
		name string
		pid  int
	}{{"shim", l.ShimPID(sb.ID)}, {"containerd", l.ContainerdPID()}, {"PID 1", sb.PID}} {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", tt.pid))
		if err != nil {
			t.Fatal(err)
		}
		for v := range strings.SplitSeq(string(env), "\x00") {
			name, _, _ := strings.Cut(v, "=")
			switch name {
			case "", "PATH", "HOME", "TMPDIR", "LC_ALL", "GOGC", "MAX_SHIM_VERSION", "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE",
				"CONTAINERD_DISABLE_PIGZ", "CONTAINERD_DISABLE_IGZIP", "OTEL_SERVICE_NAME", "GOMAXPROCS", "SCHED_CORE":
			default:
				t.Errorf("%s has %q in its environment", tt.name, v)
			}
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", tt.pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fds {
			to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", tt.pid, f.Name()))
			if err == nil && tt.name != "containerd" && (strings.Contains(to, "state.db") || strings.Contains(to, "creel.sock") || to == l.Log) {
				t.Errorf("%s holds %s", tt.name, to)
			}
		}
	}
}

// TestPermissionsOfDirectories walks what the daemon keeps and finds what
// somebody else could read, write or walk into.
func TestPermissionsOfDirectories(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Command: []string{"/bin/sh", "-c", "echo secret; sleep 1000"}})
	l.Eventually("the log", 10*time.Second, func() error {
		_, err := os.Stat(filepath.Join(l.Dir, "state/logs", sb.ID))
		return err
	})
	reachable := func(rel string) bool { // by others, through every directory above
		for p := filepath.Join(l.Dir, rel); p != l.Dir; p = filepath.Dir(p) {
			if fi, err := os.Stat(filepath.Dir(p)); err != nil || fi.Mode().Perm()&0o001 == 0 {
				return false
			}
		}
		return true
	}
	for _, root := range []string{"run", "state"} {
		_ = filepath.WalkDir(filepath.Join(l.Dir, root), func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // goes away while it is looked at
			}
			rel, _ := filepath.Rel(l.Dir, p)
			var st unix.Stat_t
			if unix.Lstat(p, &st) != nil || d.Type() == os.ModeSymlink {
				return nil
			}
			if strings.Count(rel, "/") > 6 || strings.Contains(rel, "/snapshots/") || strings.HasSuffix(rel, "/rootfs") {
				return filepath.SkipDir // the image's own modes; the directories above are what guards them
			}
			if st.Mode&0o022 != 0 && reachable(rel) {
				t.Errorf("%s can be written by others: %o", rel, st.Mode&0o7777)
			}
			if st.Mode&0o004 != 0 && reachable(rel) && rel != "run" && d.Name() != "creel.sock" {
				t.Errorf("%s can be read by others: %o", rel, st.Mode&0o7777)
			}
			return nil
		})
	}
}

// rss is a process's resident memory in bytes.
func rss(tb testing.TB, pid int) int64 {
	tb.Helper()
	return statusNumber(tb, pid, "VmRSS") << 10
}
