package integration_test

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/profiles"
)

// protectScript tries, as the agent, to change what is protected.
//
//go:embed testdata/protect.py
var protectScript string

// checkout is a workspace with some of the protected names, and without others.
func checkout(t *testing.T) string {
	t.Helper()
	dir := workspace(t)
	mkdirs(t, dir, ".git/hooks", ".git/objects", ".git/refs/heads", ".git/info", ".vscode/in", ".github/workflows")
	for _, name := range []string{".git/HEAD", ".git/config", ".git/index", ".git/hooks/pre-commit", ".envrc", ".vscode/tasks.json", ".vscode/in/x", ".github/workflows/ci.yml", "Jenkinsfile"} {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), []byte("the user's"), 0o755), os.Chown(filepath.Join(dir, name), callerUID, callerUID)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// inTree is everything in a directory: type, mode, owner and content.
func inTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		if errors.Is(err, fs.ErrNotExist) { // it is just being removed
			return nil
		}
		if err != nil {
			return err
		}
		var text []byte
		if d.Type().IsRegular() {
			text, err = os.ReadFile(p)
		}
		out[strings.TrimPrefix(p, dir)] = fmt.Sprintf("%o %d %s", st.Mode, st.Uid, text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sameTree waits until a directory is as it was.
func sameTree(t *testing.T, l *lab.Lab, dir string, before map[string]string) {
	t.Helper()
	l.Eventually("the directory is as it was", 20*time.Second, func() error {
		after := inTree(t, dir)
		maps.DeleteFunc(after, func(k, v string) bool { return before[k] == v })
		if len(after) > 0 {
			return fmt.Errorf("there is %q", after)
		}
		return nil
	})
	for name := range before {
		if _, err := os.Lstat(dir + name); err != nil {
			t.Error(err)
		}
	}
}

// protectedNames are those of the embedded list, directories with a slash.
func protectedNames(t *testing.T) []string {
	t.Helper()
	l, err := protect.Load(profiles.FS)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range l {
		name := n.String()
		if n.IsDir() {
			name += "/"
		}
		out = append(out, name)
	}
	return out
}

// TestProtect attacks every protected name from inside, with each runtime. What is
// protected is so in the evidence, git goes on, and afterwards the host has what
// it had, and what the agent was free to make.
func TestProtect(t *testing.T) {
	kerneltest.Require(t, kerneltest.BaseImage)
	l := lab.New(t, lab.Options{Image: kerneltest.BaseImagePath()})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	names := protectedNames(t)
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			dir := checkout(t)
			before := inTree(t, dir)
			id := started(t, l, "--runtime", runtime, "-v", dir+":/work:protect")
			ev, err := l.Evidence(t.Context(), id, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"/.git", "/.git/hooks", "/.git/config", "/.git/commondir", "/.envrc", "/.vscode", "/.github", "/.github/workflows", "/.gitlab-ci.yml", "/.cargo"} {
				i := slices.IndexFunc(ev[0].Controls, func(c api.Control) bool { return c.Name == "mount./work"+name })
				if i < 0 {
					t.Errorf("no control of %s", name)
				} else if c, way := ev[0].Controls[i], name == "/.git" || name == "/.github"; !c.OK || strings.Contains(c.Expected, "ro") == way || strings.Contains(c.Expected, "rw") != way {
					t.Errorf("of %s the evidence is %+v", name, c)
				}
			}
			put(t, l, id, "/tmp/protect.py", protectScript)
			out, res := l.Sh(id, "python3 -B /tmp/protect.py /work "+strings.Join(names, " ")+" 2>&1")
			if res.ExitCode != 0 {
				t.Fatalf("%+v\n%s", res, out)
			}
			tried := 0
			for line := range strings.Lines(out) {
				var a struct {
					Name string
					Got  any
				}
				if err := json.Unmarshal([]byte(line), &a); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				if a.Name == "end" {
					tried = int(a.Got.(float64))
				} else {
					t.Errorf("%s succeeds: %v", a.Name, a.Got)
				}
			}
			if t.Logf("%d attacks", tried); tried < 37*len(names) {
				t.Errorf("%d attacks", tried)
			}
			if out, res := l.Sh(id, "cat /work/.npmrc /work/.git/commondir; ls -d /work/.zed"); out != ".\n/work/.zed\n" {
				t.Errorf("placeholders are %q, %+v", out, res)
			}
			if failed := provenNow(t, l, id); len(failed) > 0 {
				t.Errorf("proven again: %q", failed)
			}
			if err := l.Remove(t.Context(), id, true); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"/src/renamed.c", "/src/.vscode", "/.git/objects/ab", "/.git/objects/ab/cd", "/.git/rebase-merge", "/.git/COMMIT_EDITMSG", "/.git/index", "/.git/HEAD", "/.git/refs/heads/main", "/.git/logs", "/.git/logs/HEAD", "/.git/packed-refs", "/.git/info/exclude", "/.git/MERGE_HEAD"} {
				var st unix.Stat_t
				if err := unix.Lstat(dir+name, &st); err != nil || st.Uid != callerUID {
					t.Errorf("%s on the host: %+v, %v", name, st, err)
				}
				before[name] = inTree(t, dir)[name]
			}
			sameTree(t, l, dir, before)
			l.NothingLeft()
		})
	}
}

// TestProtectRefused: what cannot be protected starts nothing, says why, and leaves
// the directory as it was.
func TestProtectRefused(t *testing.T) {
	l := forUsers(t)
	if out, errOut, code := l.CreelAs(caller, "", "volume", "create", "--size", "16M", "kept"); code != 0 {
		t.Fatalf("volume: %s%s", out, errOut)
	}
	for _, tt := range []struct {
		name, lay, flags, want string
	}{
		{"a link", "rm -r .vscode; ln -s src .vscode", "-v DIR:/w:protect", "mounts[0].protect"},
		{"a link in the place of a file", "rm Jenkinsfile; ln -s src/precious Jenkinsfile", "-v DIR:/w:protect", "Jenkinsfile in it cannot be protected: it is a symbolic link"},
		{"a link on the way", "mv .github real; ln -s real .github", "-v DIR:/w:protect", ".github in it cannot be protected"},
		{"another name", "ln .git/config src/config", "-v DIR:/w:protect", "another name"},
		{"a closed directory", "chmod 500 .git", "-v DIR:/w:protect", "permission denied"},
		{"read-only", "true", "-v DIR:/w:protect,ro", "a directory that can be written"},
		{"a volume", "true", "-v kept:/w:protect", "a directory that can be written"},
		{"the same once more without", "true", "-v DIR:/w:protect -v DIR:/w2", "mounts[1].readonly"},
		{"above it without", "true", "-v DIR/..:/w2 -v DIR:/w:protect", "mounts[0].readonly"},
		{"a target that is not there", "true", "-v DIR:/w:protect -v DIR/src:/w/none:ro", "mounts[1].target"},
		{"a target in a placeholder", "true", "-v DIR:/w:protect -v DIR/src:/w/.zed/x:ro", "mounts[1].target"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := checkout(t)
			if err := os.Chown(filepath.Dir(dir), callerUID, callerUID); err != nil {
				t.Fatal(err)
			}
			onHost(t, "cd "+dir+" && "+tt.lay)
			before := inTree(t, dir)
			args := append([]string{"run", "--rm"}, strings.Fields(strings.ReplaceAll(tt.flags, "DIR", dir))...)
			if _, errOut, code := l.CreelAs(caller, "", append(args, "--", "true")...); code != 125 || !strings.Contains(errOut, tt.want) {
				t.Errorf("%d, %s; want %q", code, errOut, tt.want)
			}
			sameTree(t, l, dir, before)
		})
	}
	l.NothingLeft()
}

// TestProtectNested: other mounts are at protected names, in them and around them.
func TestProtectNested(t *testing.T) {
	l := forUsers(t)
	dir, other := checkout(t), checkout(t)
	mkdirs(t, dir, "sub", ".git/modules/m")
	mkdirs(t, other, "empty")
	before, beforeOther := inTree(t, dir), inTree(t, other)
	id := started(t, l, "-v", dir+":/w:protect", "-v", other+":/w/sub:protect", "-v", other+"/empty:/w/.vscode", "-v", other+"/src:/w/.git/modules/m:ro", "-v", other+"/empty:/w/.github/workflows:ro")
	for script, want := range map[string]string{
		"echo >/w/.git/hooks/x":                         "Read-only",
		"echo >/w/sub/.git/hooks/x":                     "Read-only",
		"mkdir /w/sub/.zed":                             "File exists",
		"mv /w/sub/.git /w/sub/git":                     "busy",
		"mv /w/.git/modules /w/.git/m":                  "busy",
		"echo >/w/.git/modules/m/x":                     "Read-only",
		"echo >/w/.github/workflows/x":                  "Read-only",
		"mv /w/.github /w/g":                            "busy",
		"echo >/w/.vscode/x && rm /w/.vscode/x":         "",
		"echo >/w/sub/src/x && rm /w/sub/src/x":         "",
		"cat /w/.git/modules/m/precious | grep -q user": "",
	} {
		if out, res := l.Sh(id, script+" 2>&1"); (res.ExitCode == 0) != (want == "") || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %+v; want %q", script, out, res, want)
		}
	}
	if failed := provenNow(t, l, id); len(failed) > 0 {
		t.Errorf("proven again: %q", failed)
	}
	if err := l.Remove(t.Context(), id, true); err != nil {
		t.Error(err)
	}
	twice := started(t, l, "-v", dir+":/w:protect", "-v", dir+":/w2:protect")
	for _, at := range []string{"/w", "/w2"} {
		for _, name := range []string{".git/hooks", ".zed", ".vscode", ".github/workflows", ".gitea"} {
			if out, res := l.Sh(twice, "cd "+at+" && { mv "+name+" "+name+".x || rmdir "+name+" || mkdir "+name+"/x; } 2>&1"); res.ExitCode == 0 {
				t.Errorf("%s in %s: %q", name, at, out)
			}
		}
	}
	if failed := provenNow(t, l, twice); len(failed) > 0 {
		t.Errorf("twice: %q", failed)
	}
	if err := l.Remove(t.Context(), twice, true); err != nil {
		t.Error(err)
	}
	sameTree(t, l, dir, before)
	sameTree(t, l, other, beforeOther)
	l.NothingLeft()
}

// TestProtectUndone fails and kills launches and clean-ups where placeholders are
// made and removed: none is left, and nothing else is gone.
func TestProtectUndone(t *testing.T) {
	l := forUsers(t)
	dir := checkout(t)
	before := inTree(t, dir)
	args := []string{"run", "-d", "-v", dir + ":/w:protect"}
	points := []string{"planned", "placed", "nested", "mounts", "container", "prove", "main", "record"}
	for _, point := range points {
		t.Run("fails at "+point, func(t *testing.T) {
			l.Fail("launch." + point + " error")
			defer l.Fail()
			if _, errOut, code := l.CreelAs(caller, "", args...); code != 125 {
				t.Errorf("%d, %s", code, errOut)
			}
			if left := l.Snapshot(); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
			if after := inTree(t, dir); !maps.Equal(before, after) { // at once
				t.Errorf("the directory is %q", after)
			}
		})
		t.Run("killed at "+point, func(t *testing.T) {
			l.Fail("launch." + point + " kill")
			if _, _, code := l.CreelAs(caller, "", args...); code == 0 {
				t.Error("it started")
			}
			died(t, l)
			reopen(t, l)
			removeAll(t, l)
			sameTree(t, l, dir, before)
		})
	}
	for _, point := range []string{"undo.mounts", "undo.placeholders"} {
		t.Run("killed in "+point, func(t *testing.T) {
			id := started(t, l, args[2:]...)
			l.Fail(point + " kill")
			_ = l.Remove(t.Context(), id, true)
			died(t, l)
			reopen(t, l)
			sameTree(t, l, dir, before)
			removeAll(t, l)
		})
		t.Run("fails in "+point, func(t *testing.T) {
			id := started(t, l, args[2:]...)
			l.Fail(point + " error")
			if err := l.Remove(t.Context(), id, true); err != nil {
				t.Error(err)
			}
			l.Eventually("the failure is noted", 30*time.Second, func() error {
				got, err := l.Inspect(t.Context(), id)
				if err == nil && !strings.Contains(got.Problem, point) {
					err = fmt.Errorf("problem %q", got.Problem)
				}
				return err
			})
			l.Fail("watch.fastretry on")
			defer l.Fail()
			sameTree(t, l, dir, before)
			removeAll(t, l)
		})
	}
	t.Run("taken over", func(t *testing.T) {
		id := started(t, l, args[2:]...)
		l.Kill()
		l.Start()
		reopen(t, l)
		if failed := provenNow(t, l, id); len(failed) > 0 {
			t.Errorf("proven again: %q", failed)
		}
		if out, res := l.Sh(id, "echo x >/w/.envrc; rm -r /w/.zed; mv /w/.git /w/git"); res.ExitCode == 0 {
			t.Errorf("%q", out)
		}
		removeAll(t, l)
		sameTree(t, l, dir, before)
	})
	l.NothingLeft()
	t.Run("the host is restarted", func(t *testing.T) {
		started(t, l, args[2:]...)
		l.Kill()
		l.Reboot()
		if after := inTree(t, dir); maps.Equal(before, after) {
			t.Error("no placeholder to remove")
		}
		l.Start()
		reopen(t, l)
		sameTree(t, l, dir, before)
		removeAll(t, l)
	})
}

// reopen lets every user connect to a daemon that was started again.
func reopen(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
}

// removeAll removes all sandboxes there are.
func removeAll(t *testing.T, l *lab.Lab) {
	t.Helper()
	all, err := l.List(t.Context(), client.ListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, sb := range all {
		if err := l.Remove(t.Context(), sb.ID, true); err != nil {
			t.Error(err)
		}
	}
	l.Eventually("nothing on record", 20*time.Second, func() error { return noRecord(l) })
}

// TestProtectShared: sandboxes of one agent have the same directory, in any order of
// beginning and ending, with the daemon restarted in between.
func TestProtectShared(t *testing.T) {
	l := forUsers(t)
	dir := checkout(t)
	before := inTree(t, dir)
	mount := []string{"-v", dir + ":/w:protect"}
	holds := func(id string) {
		t.Helper()
		if failed := provenNow(t, l, id); len(failed) > 0 {
			t.Errorf("%s: %q", id, failed)
		}
		for _, script := range []string{"rmdir /w/.zed", "echo >/w/.zed/x", "echo >/w/.npmrc", "mkdir -p /w/.gitea/workflows/x", "rm -f /w/.git/commondir"} {
			if out, res := l.Sh(id, script+" 2>&1"); res.ExitCode == 0 {
				t.Errorf("%s: %q", script, out)
			}
		}
	}
	for _, restart := range []bool{false, true} {
		for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
			t.Run(fmt.Sprint(restart, order), func(t *testing.T) {
				var ids []string
				for range 3 {
					ids = append(ids, started(t, l, mount...))
				}
				if restart {
					l.Kill()
					l.Start()
					reopen(t, l)
				}
				for n, i := range order {
					if err := l.Remove(t.Context(), ids[i], true); err != nil {
						t.Fatal(err)
					}
					l.Eventually("it is gone", 20*time.Second, func() error {
						if _, err := l.Inspect(t.Context(), ids[i]); api.CodeOf(err) != api.CodeNotFound {
							return fmt.Errorf("inspect: %w", err)
						}
						return nil
					})
					for _, i := range order[n+1:] {
						holds(ids[i])
					}
				}
				sameTree(t, l, dir, before)
			})
		}
	}
	t.Run("at one time", func(t *testing.T) {
		ids := make(chan string)
		for range 6 {
			go func() {
				out, _, _ := l.CreelAs(caller, "", append([]string{"run", "-d", "--memory", "64M"}, mount...)...)
				ids <- strings.TrimSpace(out)
			}()
		}
		ended := make(chan error)
		for range 6 {
			id := <-ids
			if id == "" {
				t.Error("a launch failed")
				go func() { ended <- nil }()
				continue
			}
			go func() { ended <- l.Remove(t.Context(), id, true) }()
		}
		for range 6 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		sameTree(t, l, dir, before)
	})
	l.NothingLeft()
}

// TestProtectChildren: a child has the directory protected as its parent has it, or
// not to write.
func TestProtectChildren(t *testing.T) {
	l := forUsers(t)
	dir, other := checkout(t), workspace(t)
	before := inTree(t, dir)
	started(t, l, "--name", "top", "-v", dir+":/w:protect", "-v", other+":/o")
	for _, tt := range []struct{ flags, fix string }{
		{"-v " + dir + ":/m:protect", ""},
		{"-v " + dir + ":/m:ro", ""},
		{"-v " + dir + "/.git:/m:ro", ""},
		{"-v " + dir + "/src:/m:ro", ""},
		{"-v " + other + ":/m:protect", ""},
		{"-v " + other + ":/m", ""},
		{"-v " + dir + ":/m", "mount it with protect (:protect), or read-only (:ro)"},
		{"-v " + dir + "/.git:/m", "mount it read-only (:ro)"},
		{"-v " + dir + "/.git:/m:protect", "mount it read-only (:ro)"},
		{"-v " + dir + "/.git/hooks:/m", "mount it read-only (:ro)"},
		{"-v " + dir + "/src:/m", "mount it read-only (:ro)"},
		{"-v " + filepath.Dir(dir) + ":/m:ro", "leave it out"},
	} {
		t.Run(strings.ReplaceAll(tt.flags, filepath.Dir(dir), ""), func(t *testing.T) {
			args := append([]string{"run", "-d", "--parent", "top", "--memory", "64M"}, strings.Fields(tt.flags)...)
			out, errOut, code := l.CreelAs(caller, "", args...)
			if tt.fix != "" {
				if code != 125 || !strings.Contains(errOut, tt.fix) {
					t.Errorf("%d, %s; want %q", code, errOut, tt.fix)
				}
				return
			}
			if code != 0 {
				t.Fatalf("%d, %s", code, errOut)
			}
			id := strings.TrimSpace(out)
			if failed := provenNow(t, l, id); len(failed) > 0 {
				t.Errorf("proven again: %q", failed)
			}
			if err := l.Remove(t.Context(), id, true); err != nil {
				t.Error(err)
			}
		})
	}
	if failed := provenNow(t, l, "top"); len(failed) > 0 {
		t.Errorf("the parent: %q", failed)
	}
	removeAll(t, l)
	sameTree(t, l, dir, before)
	l.NothingLeft()
}

// TestProtectOutside is what the directory's owner does on the host while the
// sandbox runs: it is not held, what it puts in the place of a protected file is
// not protected, and the proof finds that.
func TestProtectOutside(t *testing.T) {
	l := forUsers(t)
	dir := checkout(t)
	id := started(t, l, "-v", dir+":/w:protect")
	onHost(t, "cd "+dir+" && echo settings >.vscode/settings.json && echo direct >.envrc && echo made >.zed/tasks.json")
	if out, res := l.Sh(id, "exec 2>&1; cd /w && cat .vscode/settings.json .envrc .zed/tasks.json && ! echo >.zed/x"); !strings.HasPrefix(out, "settings\ndirect\nmade\n") || res.ExitCode != 0 {
		t.Errorf("%q, %+v", out, res)
	}
	if failed := provenNow(t, l, id); len(failed) > 0 {
		t.Errorf("written on the host: %q", failed)
	}
	onHost(t, "cd "+dir+" && cp .git/config .git/config.lock && mv .git/config.lock .git/config") // as git config does
	if failed := provenNow(t, l, id); len(failed) != 1 || !strings.Contains(failed[0], "mount./w/.git/config not mounted") {
		t.Errorf("replaced on the host: %q", failed)
	}
	removeAll(t, l)
	l.Eventually("only what is the caller's stays", 20*time.Second, func() error {
		if _, err := os.Lstat(dir + "/.codex"); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("placeholder: %w", errors.Join(err))
		}
		return nil
	})
	if text, err := os.ReadFile(dir + "/.zed/tasks.json"); string(text) != "made\n" {
		t.Errorf("%q, %v", text, err)
	}
	l.NothingLeft()
}

// onHost runs a script of callerUID's on the host.
func onHost(t *testing.T, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: caller}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v, %s", script, err, out)
	}
}

// TestProtectIsProven takes the protection away before the agent runs: it does not.
func TestProtectIsProven(t *testing.T) {
	l := forUsers(t)
	dir := checkout(t)
	before := inTree(t, dir)
	for layer, control := range map[string]string{"mount.protect": "mount./w/.", "mount.unprotected": "mount./w/.envrc"} {
		t.Run(layer, func(t *testing.T) {
			l.Fail("layer." + layer + " on")
			defer l.Fail()
			if _, errOut, code := l.CreelAs(caller, "", "run", "--rm", "-v", dir+":/w:protect", "--", "true"); code != 125 || !strings.Contains(errOut, control) {
				t.Errorf("%d, %s; want %s", code, errOut, control)
			}
			if after := inTree(t, dir); !maps.Equal(before, after) {
				t.Errorf("the directory is %q", after)
			}
		})
	}
	l.NothingLeft()
}

// TestProtectForeign: with a containerd that was there before, creeld is in the
// host's mount namespace, where the mounts hold the directory's owner as well.
func TestProtectForeign(t *testing.T) {
	l := lab.New(t, lab.Options{Foreign: true})
	reopen(t, l)
	dir := checkout(t)
	before := inTree(t, dir)
	id := started(t, l, "-v", dir+":/w:protect")
	if out, res := l.Sh(id, "cd /w && { echo >.git/hooks/x || mv .git git || echo >.npmrc; } 2>&1"); res.ExitCode == 0 {
		t.Errorf("%q", out)
	}
	if err := os.Rename(dir+"/.git/index", dir+"/.git/config"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("on the host: %v", err)
	}
	l.Kill()
	l.Start()
	reopen(t, l)
	if failed := provenNow(t, l, id); len(failed) > 0 {
		t.Errorf("proven again: %q", failed)
	}
	removeAll(t, l)
	sameTree(t, l, dir, before)
	l.NothingLeft()
}
