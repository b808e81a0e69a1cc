package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/verify"
)

// mkdirs makes directories of callerUID's in a workspace.
func mkdirs(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for p := filepath.Join(dir, name); p != dir; p = filepath.Dir(p) {
			if err := os.Chown(p, callerUID, callerUID); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// started is a sandbox of callerUID's that creel run -d with these flags makes.
func started(t *testing.T, l *lab.Lab, flags ...string) string {
	t.Helper()
	out, errOut, code := l.CreelAs(caller, "", append([]string{"run", "-d"}, flags...)...)
	if code != 0 {
		t.Fatalf("run %q: %d, %s", flags, code, errOut)
	}
	return strings.TrimSpace(out)
}

// provenNow are the controls that are not ok in a proof taken now.
func provenNow(t *testing.T, l *lab.Lab, id string) (failed []string) {
	t.Helper()
	ev, err := l.Evidence(t.Context(), id, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range verify.Failed(ev[0].Controls) {
		failed = append(failed, c.Name+" "+c.Observed)
	}
	return failed
}

// TestNestedMounts mounts directories and volumes in one another, with each
// runtime: each is as writable as it was asked for, and the proof has them all.
func TestNestedMounts(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	mkdirs(t, dir, "out", "a/b/c", "vol/in")
	if out, errOut, code := l.CreelAs(caller, "", "volume", "create", "--size", "16M", "kept"); code != 0 {
		t.Fatalf("volume: %s%s", out, errOut)
	}
	started(t, l, "--rm", "-v", "kept:/kept", "--", "mkdir", "/kept/dir") // in the volume, before anything is mounted there
	for _, runtime := range []string{"crun", "runc"} {
		for _, tt := range []struct {
			name   string
			mounts string
			write  string // where it can
			not    string
		}{
			{"read-only in writable", dir + ":/w " + dir + "/src:/w/src:ro", "/w /w/out /w/a/b", "/w/src"},
			{"writable in read-only", dir + "/out:/w/out " + dir + ":/w:ro", "/w/out", "/w /w/src /w/a/b"},
			{"three, the innermost first", dir + "/src:/w/a/b/c:ro " + dir + "/out:/w/a " + dir + ":/w", "", ""}, // refused: out has no b
			{"one in one in one", dir + "/src:/w/out/b/c:ro " + dir + "/a:/w/out " + dir + ":/w:ro", "/w/out /w/out/b", "/w /w/src /w/out/b/c"},
			{"a volume in a directory", dir + ":/w:ro kept:/w/vol", "/w/vol /w/vol/dir", "/w /w/src"},
			{"a read-only volume in a directory", dir + ":/w kept:/w/vol:ro", "/w", "/w/vol /w/vol/dir"},
			{"a directory in a volume", "kept:/w " + dir + ":/w/dir:ro", "/w", "/w/dir /w/dir/src"},
			{"a directory in itself", dir + ":/w " + dir + ":/w/vol/in:ro", "/w /w/vol", "/w/vol/in /w/vol/in/vol/in"},
		} {
			t.Run(runtime+"/"+tt.name, func(t *testing.T) {
				flags := []string{"--runtime", runtime}
				for m := range strings.FieldsSeq(tt.mounts) {
					flags = append(flags, "-v", m)
				}
				if tt.write == "" {
					_, errOut, code := l.CreelAs(caller, "", append(append([]string{"run", "--rm"}, flags...), "--", "true")...)
					if code != 125 || !strings.Contains(errOut, "mounts[0].target") || !strings.Contains(errOut, "it does not exist") {
						t.Errorf("%d, %s", code, errOut)
					}
					return
				}
				id := started(t, l, flags...)
				for at, want := range map[string]string{tt.write: "written", tt.not: "Read-only file system"} {
					for path := range strings.FieldsSeq(at) {
						out, _ := l.Sh(id, "touch "+path+"/new 2>&1 && rm "+path+"/new && echo written")
						if !strings.Contains(out, want) {
							t.Errorf("in %s: %q, want %q", path, out, want)
						}
					}
				}
				if failed := provenNow(t, l, id); len(failed) > 0 {
					t.Errorf("proven again: %q", failed)
				}
				ev, err := l.Evidence(t.Context(), id, true)
				if err != nil {
					t.Fatal(err)
				}
				for m := range strings.FieldsSeq(tt.mounts) {
					name := "mount." + strings.Split(m, ":")[1]
					if !slices.ContainsFunc(ev[0].Controls, func(c api.Control) bool { return c.Name == name }) {
						t.Errorf("no control %s", name)
					}
				}
				if err := l.Remove(t.Context(), id, true); err != nil {
					t.Error(err)
				}
				l.NothingLeft()
			})
		}
	}
}

// TestMountPointsRefused: what is mounted on must be there, and is never made.
func TestMountPointsRefused(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	if err := errors.Join(os.Symlink("src", filepath.Join(dir, "link")), os.Symlink("/etc", filepath.Join(dir, "etc"))); err != nil {
		t.Fatal(err)
	}
	for target, why := range map[string]string{
		"/w/none": "does not exist", "/w/src/none": "does not exist", "/w/src/precious": "not a directory",
		"/w/link": "symbolic link", "/w/etc": "symbolic link", "/w/etc/ssl": "symbolic link",
	} {
		t.Run(target, func(t *testing.T) {
			_, errOut, code := l.CreelAs(caller, "", "run", "--rm", "-v", dir+":/w", "-v", dir+"/src:"+target, "--", "true")
			if code != 125 || !strings.Contains(errOut, "mounts[1].target") || !strings.Contains(errOut, why) {
				t.Errorf("%d, %s", code, errOut)
			}
			if left := l.Snapshot(); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
	}
	for _, name := range []string{"none", "src/none"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was made: %v", name, err)
		}
	}
}

// TestNestedMountHolds is what an agent and its caller can do about a mount
// point while the sandbox runs, as docs/threat-model.md has it: what leads to
// it can be moved, and the proof finds that.
func TestNestedMountHolds(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	mkdirs(t, dir, "a/git", "point", "point2")
	id := started(t, l, "-v", dir+":/w", "-v", dir+"/src:/w/src:ro", "-v", dir+"/src:/w/a/git:ro", "-v", dir+"/src:/w/point:ro", "-v", dir+"/src:/w/point2:ro")
	for _, script := range []string{"mv src other", "mv point other", "rmdir point", "rm -r src", "mv a/git a/other", "mv a/git b"} {
		if out, res := l.Sh(id, "cd /w && "+script+" 2>&1"); res.ExitCode == 0 || !strings.Contains(out, "busy") && !strings.Contains(out, "Read-only") {
			t.Errorf("%s: %q, %+v", script, out, res)
		}
	}
	if failed := provenNow(t, l, id); len(failed) > 0 {
		t.Fatalf("proven again: %q", failed)
	}
	sees := func(what string, want ...string) {
		t.Helper()
		failed := strings.Join(provenNow(t, l, id), "; ")
		for _, w := range want {
			if !strings.Contains(failed, w) {
				t.Errorf("%s: the proof finds %q, want %q", what, failed, w)
			}
		}
		if (len(want) == 0) != (failed == "") {
			t.Errorf("%s: the proof finds %q", what, failed)
		}
	}
	out, res := l.Sh(id, "cd /w && mv a b && mkdir -p a/git && echo mine >a/git/config; echo >b/git/x")
	if res.ExitCode == 0 || !strings.Contains(out, "Read-only") {
		t.Errorf("a directory above it: %q, %+v", out, res)
	}
	sees("moved by the agent", "mount./w/a/git not mounted", "mounts.closed ext4 on /w/b/git")
	if out, res := l.Sh(id, "cd /w && rm -r a && mv b a"); res.ExitCode != 0 {
		t.Fatalf("%q, %+v", out, res)
	}
	sees("moved back")
	// On the host it is a directory like any other.
	if err := os.Rename(filepath.Join(dir, "point"), filepath.Join(filepath.Dir(dir), "moved")); err != nil {
		t.Fatal(err)
	}
	sees("moved away by the caller", "mount./w/point not mounted")
	if err := os.Rename(filepath.Join(filepath.Dir(dir), "moved"), filepath.Join(dir, "point")); err != nil {
		t.Fatal(err)
	}
	sees("moved back by the caller")
	if err := os.Remove(filepath.Join(dir, "point")); err != nil {
		t.Fatal(err)
	}
	sees("removed by the caller", "mount./w/point not mounted")
	mkdirs(t, dir, "point")
	sees("made again", "mount./w/point not mounted")
	// So it is in a sandbox of the agent's that has the outer one alone.
	other := started(t, l, "-v", dir+":/w")
	if out, res := l.Sh(other, "cd /w && echo >src/other && mv point2 moved && rmdir moved"); res.ExitCode != 0 {
		t.Errorf("%q, %+v", out, res)
	}
	sees("removed in another sandbox", "mount./w/point not mounted", "mount./w/point2 not mounted")
	got, err := l.Inspect(t.Context(), id)
	if err != nil || got.State != api.StateRunning || !strings.Contains(got.Problem, "mount./w/point") {
		t.Errorf("it is %+v, %v", got, err)
	}
	if err := errors.Join(l.Remove(t.Context(), id, true), l.Remove(t.Context(), other, true)); err != nil {
		t.Error(err)
	}
	l.NothingLeft()
}

// TestMountPointRace has the caller swap the mount point while launches attach
// to it: a sandbox has the mount where it should be, or there is no sandbox.
func TestMountPointRace(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	mkdirs(t, dir, "a/b", "aside/b")
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Symlink("/etc", at("link")); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		swap := func(x, y string) {
			_ = unix.Renameat2(unix.AT_FDCWD, at(x), unix.AT_FDCWD, at(y), unix.RENAME_EXCHANGE)
		}
		for i := 0; !stop.Load(); i++ {
			for _, with := range []string{"link", "aside"} {
				time.Sleep(time.Duration(i%8) * time.Millisecond)
				swap("a", with)
				time.Sleep(time.Millisecond)
				if i%32 == 0 {
					_ = unix.Rmdir(at("aside/b"))
					_ = unix.Mkdir(at("aside/b"), 0o755)
				}
				swap("a", with)
			}
		}
	}()
	stopped := func() { stop.Store(true); <-done }
	defer stopped()
	ran, codes := 0, map[api.Code]int{}
	const tries = 100
	for range tries {
		res, err := l.Client.Spawn(t.Context(), api.SpawnRequest{Mounts: []api.Mount{
			{Source: dir, Target: "/w", ReadOnly: true}, {Source: at("src"), Target: "/w/a/b", ReadOnly: true},
		}})
		if err != nil {
			codes[api.CodeOf(err)]++
			continue
		}
		ran++
		if err := l.Remove(t.Context(), res.Sandbox.ID, true); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d ran, refused: %v", ran, codes)
	if refused := codes[api.CodeInvalid] + codes[api.CodeNotProven]; ran == 0 || refused == 0 || ran+refused != tries {
		t.Errorf("%d ran, refused: %v", ran, codes)
	}
	stopped()
	l.NothingLeft()
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", l.DaemonPID())); err != nil || strings.Contains(string(b), " /etc ") {
		t.Errorf("the daemon has something mounted on /etc: %v", err)
	}
}

// TestDiffNestedMounts: what is in one mount is told of that one alone.
func TestDiffNestedMounts(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	mkdirs(t, dir, "out", "w/a/b", "w/ro")
	id := started(t, l, "-v", dir+"/w:/w", "-v", dir+"/out:/w/a/b", "-v", dir+"/src:/w/ro:ro")
	if out, res := l.Sh(id, "echo >/w/x; echo >/w/a/b/y"); res.ExitCode != 0 {
		t.Fatalf("%q, %+v", out, res)
	}
	d, err := l.Diff(t.Context(), id, 0)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range d.Changes {
		if c.Mount != "" {
			got = append(got, c.Mount+" "+c.Path)
		}
	}
	slices.Sort(got)
	if want := []string{"/w /w", "/w /w/x", "/w/a/b /w/a/b", "/w/a/b /w/a/b/y"}; !slices.Equal(got, want) {
		t.Errorf("changes are %q, want %q", got, want)
	}
}
