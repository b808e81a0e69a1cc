package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// caller is callerUID, who is in no group of the host's.
var caller = &syscall.Credential{Uid: callerUID, Gid: callerUID}

// forUsers is a lab whose socket every user of the host may connect to.
func forUsers(t *testing.T) *lab.Lab {
	t.Helper()
	l := lab.New(t, lab.Options{})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestWorkspace has an ordinary user's files be the agent's, and the agent's
// new files the user's.
func TestWorkspace(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	run := func(mount, script string) (string, int) {
		t.Helper()
		out, errOut, code := l.CreelAs(caller, "", "run", "--rm", "-v", mount, "--", "/bin/sh", "-c", script+" 2>&1")
		if code == 125 {
			t.Errorf("run -v %s: %s", mount, errOut)
		}
		return out, code
	}
	out, code := run(dir+":/workspace", `{ pwd; stat -c %u:%g:%n . src src/precious; echo new >new; mkdir made; stat -c %u:%g:%n new made; grep ' /workspace ' /proc/self/mountinfo; }`)
	for _, want := range []string{"/workspace\n", "1000:1000:.\n", "1000:1000:src/precious\n", "1000:1000:new\n", "1000:1000:made\n", "nosuid", "nodev"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the output (code %d):\n%s", want, code, out)
		}
	}
	for _, name := range []string{"new", "made"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || st.Uid != callerUID || st.Gid != callerUID {
			t.Errorf("%s is of %d:%d on the host, %v", name, st.Uid, st.Gid, err)
		}
	}
	for _, mode := range []string{"4755 new", "2755 new", "6755 new", "2755 made", "u+s new", "g+s made"} {
		if out, code := run(dir+":/workspace", "chmod "+mode); code == 0 || !strings.Contains(out, "not permitted") {
			t.Errorf("chmod %s: %d, %q", mode, code, out)
		}
	}
	for _, name := range []string{"new", "made"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
			t.Errorf("%s is %v on the host, %v", name, fi.Mode(), err)
		}
	}
	if out, code := run(dir+":/data:ro", "cat /data/src/precious; touch /data/x"); code == 0 || !strings.Contains(out, "the user's\n") || !strings.Contains(out, "Read-only file system") {
		t.Errorf("read-only: %d, %q", code, out)
	}
	// The path is the user's to name, and resolved with the user's rights.
	link := dir + ".link"
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if out, code := run(link+":/workspace", "cat src/precious"); code != 0 || out != "the user's\n" {
		t.Errorf("through a link: %d, %q", code, out)
	}
}

// TestWorkspaceOfOthers shows what the user could read anyway, to read.
func TestWorkspaceOfOthers(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	own := func(uid int, mode os.FileMode) {
		if err := errors.Join(os.Chown(dir, uid, uid), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
	}
	own(0, 0o777)
	if _, errOut, code := l.CreelAs(caller, "", "run", "--rm", "-v", dir+":/workspace", "--", "/bin/true"); code != 125 || !strings.Contains(errOut, "belongs to root") {
		t.Errorf("root's, writable: %d, %q", code, errOut)
	}
	if out, errOut, code := l.CreelAs(caller, "", "run", "--rm", "-v", dir+":/workspace:ro", "--", "/bin/cat", "/workspace/src/precious"); code != 0 || out != "the user's\n" {
		t.Errorf("root's, read-only: %d, %q, %q", code, out, errOut)
	}
	own(callerUID+1, 0o755)
	if out, _, code := l.CreelAs(caller, "", "run", "--rm", "-v", dir+":/workspace", "--", "/bin/sh", "-c", "touch /workspace/x 2>&1; ls /workspace"); code != 0 || !strings.Contains(out, "Permission denied") || !strings.HasSuffix(out, "src\n") {
		t.Errorf("another user's: %d, %q", code, out)
	}
	// Root itself cannot have an agent write root's files.
	if _, errOut, code := l.Creel("run", "--rm", "-v", dir+":/workspace", "--", "/bin/true"); code != 125 || !strings.Contains(errOut, "read-only") {
		t.Errorf("root as the caller: %d, %q", code, errOut)
	}
	l.NothingLeft()
}

// TestSourcesRefused lists directories that nobody may show to an agent, not
// even read-only, and not by another name.
func TestSourcesRefused(t *testing.T) {
	l := lab.New(t, lab.Options{})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{
		"/", "/proc", "/proc/self", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", link, "/proc/1/root", "/proc/self/root/proc",
		l.Dir, filepath.Join(l.Dir, "run"), filepath.Join(l.Dir, "state"), filepath.Join(l.Dir, "run", "sandboxes"), filepath.Join(l.Dir, "run", "containerd"),
	} {
		t.Run(source, func(t *testing.T) {
			res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Mounts: []api.Mount{{Source: source, Target: "/workspace", ReadOnly: true}}})
			if err == nil {
				t.Errorf("it is mounted in %s", res.Sandbox.ID)
			} else if code := api.CodeOf(err); code != api.CodeDenied && code != api.CodeInvalid && code != api.CodeUnsupportedHost {
				t.Errorf("%s: %v\n%s", code, err, l.LogTail(2))
			}
		})
	}
	if left := l.Snapshot(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// TestTargetsRefused lists places in the sandbox that no mount may cover.
func TestTargetsRefused(t *testing.T) {
	l := lab.New(t, lab.Options{})
	dir := workspace(t)
	for _, target := range []string{"", "relative", "/", "/a/../b", "/a/", "//a", "/proc", "/proc/sys", "/sys", "/dev", "/dev/creel-init", "/dev/shm/x", "/home", "/home/agent", "/etc/../proc", "/a\nb", "/" + strings.Repeat("a", 5000)} {
		t.Run(target, func(t *testing.T) {
			_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Mounts: []api.Mount{{Source: dir, Target: target, ReadOnly: true}}})
			if err == nil {
				t.Fatal("it is mounted")
			}
			e := asAPI(t, err)
			if e.Code != api.CodeInvalid || len(e.Problems) != 1 || e.Problems[0].Field != "mounts[0].target" {
				t.Errorf("%+v", e)
			}
		})
	}
}

// TestMountNeedsDescriptor has the daemon open no path for a caller: one that
// names a directory without sending it is told so.
func TestMountNeedsDescriptor(t *testing.T) {
	l := lab.New(t, lab.Options{})
	web := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Socket)
	}}}
	defer web.CloseIdleConnections()
	for name, mount := range map[string]string{
		"no descriptor":       `{"source":"/etc","target":"/workspace","readonly":true}`,
		"one that is not":     `{"source":"/etc","target":"/workspace","readonly":true,"fd":0}`,
		"a negative one":      `{"source":"/etc","target":"/workspace","readonly":true,"fd":-1}`,
		"one of the daemon's": `{"source":"/etc","target":"/workspace","readonly":true,"fd":3}`,
	} {
		t.Run(name, func(t *testing.T) {
			res, err := web.Post("http://creel/v1/sandboxes", "application/json", bytes.NewReader([]byte(`{"mounts":[`+mount+`]}`)))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var e api.Error
			if err := json.NewDecoder(res.Body).Decode(&e); err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != http.StatusBadRequest || e.Code != api.CodeInvalid || len(e.Problems) != 1 || e.Problems[0].Field != "mounts[0].fd" {
				t.Errorf("%d: %+v", res.StatusCode, e)
			}
		})
	}
	if left := l.Snapshot(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}
