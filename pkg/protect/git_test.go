package protect_test

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/profiles"
)

// TestGit has an agent work with git in a protected repository: all of it goes on,
// git sees no placeholder, neither there nor on the host, and what a repository runs
// programs by cannot be brought in.
func TestGit(t *testing.T) {
	kerneltest.Require(t, kerneltest.Program("git"))
	w := newWork(t)
	if err := os.RemoveAll(w.at(".git")); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.l, err = protect.Load(profiles.FS); err != nil {
		t.Fatal(err)
	}
	git := func(id uint32, dir string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=A", "-c", "user.email=a@example.com"}, args...)...)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-qm", "first", "--allow-empty"}} {
		if out, err := git(callerID, w.dir, args...); err != nil {
			t.Fatalf("%q: %v, %s", args, err, out)
		}
	}
	before := w.files()
	tr := w.tree()
	made, _ := w.protect(tr, nil)
	if err := asAgent(func() error { return os.WriteFile(filepath.Join(tr.Staged, "src/new.c"), []byte("int x;\n"), 0o644) }); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"add", "-A"},
		{"commit", "-qm", "second"},
		{"status", "--porcelain"},
		{"checkout", "-qb", "topic"},
		{"commit", "-qm", "third", "--allow-empty"},
		{"checkout", "-q", "main"},
		{"merge", "-q", "topic"},
		{"tag", "v1"},
		{"rebase", "-q", "topic"},
		{"stash", "list"},
		{"gc", "-q"},
		{"fsck", "--no-progress"},
		{"reset", "-q", "--hard", "HEAD~1"},
	} {
		if out, err := git(agentID, tr.Staged, args...); err != nil || out != "" && args[0] != "fsck" {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	if out, err := git(agentID, tr.Staged, "show", "--name-only", "--format=", "HEAD"); err != nil || out != "src/new.c\n" {
		t.Errorf("committed is %q, %v", out, err)
	}
	for _, args := range [][]string{
		{"config", "core.fsmonitor", "true"},
		{"config", "core.hooksPath", "src"},
		{"remote", "add", "x", "/x"},
		{"worktree", "add", "../w2"},
	} {
		if out, err := git(agentID, tr.Staged, args...); err == nil {
			t.Errorf("%q succeeds: %s", args, out)
		}
	}
	if out, err := git(callerID, w.dir, "status", "--porcelain"); err != nil || out != "" {
		t.Errorf("on the host: %v, %s", err, out)
	}
	w.unstage(made, true, nil)
	after := w.files()
	maps.DeleteFunc(after, func(name, is string) bool {
		return before[name] == is || strings.HasPrefix(name, "/.git/") || strings.HasPrefix(name, "/src")
	})
	if _, err := os.Lstat(w.at(".git/commondir")); len(after) > 0 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left %v, %v", after, err)
	}
}
