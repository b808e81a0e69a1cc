package integration_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestCommit makes an image of what a root has installed: it is its caller's,
// its files are root's, and an agent runs from it in the default profile.
func TestCommit(t *testing.T) {
	l := forUsers(t)
	as := func(c *syscall.Credential, want int, args ...string) (string, string) {
		t.Helper()
		out, errOut, code := l.CreelAs(c, "", args...)
		if code != want {
			t.Errorf("creel %q: %d, want %d\n%s%s\n%s", args, code, want, out, errOut, l.LogTail(3))
		}
		return out, errOut
	}
	other := &syscall.Credential{Uid: stranger, Gid: stranger}
	as(caller, 0, "run", "-d", "--name", "builder", "--profile", "build", "--", "/bin/sh", "-c", "while :; do :; done")
	as(caller, 0, "exec", "builder", "--", "/bin/sh", "-c", `set -e
mkdir /usr/bin; printf '#!/bin/sh\necho the tool\n' >/usr/bin/tool; chmod 4755 /usr/bin/tool
echo secret >/etc/shadow; chmod 600 /etc/shadow; ln /etc/shadow /etc/shadow-
echo agents >/home/agent/own; chown 1000:1000 /home/agent/own
rm -r /mnt /etc/group; rm -r /workspace; mkdir /workspace; echo fresh >/workspace/f
ln -s tool /usr/bin/alias; mknod /usr/pipe p; echo tmp >/tmp/t`)
	out, _ := as(caller, 0, "commit", "builder", "team/tools:1")
	if !strings.Contains(out, "team/tools:1 sha256:") {
		t.Errorf("commit: %q", out)
	}
	// It went on, and can be committed again, also while it is paused.
	as(caller, 0, "pause", "builder")
	as(caller, 0, "commit", "builder", "team/tools:2")
	if sb, err := l.Inspect(t.Context(), "builder"); err != nil || sb.State != api.StatePaused {
		t.Errorf("after a commit it is %+v, %v", sb, err)
	}
	as(caller, 0, "resume", "builder")
	as(caller, 0, "exec", "builder", "--", "/bin/true")

	out, errOut := as(caller, 0, "run", "--rm", "--image", "team/tools:1", "--rootfs", "ephemeral", "--", "/bin/sh", "-c", `
id -u; tool; alias_=$(readlink /usr/bin/alias); echo $alias_
stat -c '%u:%g %a %h %n' /usr/bin/tool /etc/shadow /home/agent/own /usr/pipe /workspace
cat /etc/shadow; echo x >/usr/bin/tool; chmod 777 /usr/bin/tool; rm /etc/shadow; ls -d /mnt /etc/group /tmp/t; ls /workspace; cat /home/agent/own`)
	want := "1000\nthe tool\ntool\n0:0 755 1 /usr/bin/tool\n0:0 600 2 /etc/shadow\n1000:1000 644 1 /home/agent/own\n0:0 644 1 /usr/pipe\n0:0 755 2 /workspace\nf\nagents\n"
	if out != want {
		t.Errorf("from the image:\n%s\n%s", out, errOut)
	}
	for _, denied := range []string{"/etc/shadow': Permission denied", "create /usr/bin/tool: Permission denied", "/usr/bin/tool: Operation not permitted", "/mnt: No such file", "/etc/group: No such file", "/tmp/t: No such file"} {
		if !strings.Contains(errOut, denied) {
			t.Errorf("no %q in:\n%s", denied, errOut)
		}
	}
	// From an image of an image: the second layer's removals count.
	as(caller, 0, "run", "-d", "--name", "again", "--profile", "build", "--image", "team/tools:1")
	as(caller, 0, "exec", "again", "--", "/bin/sh", "-c", "rm -r /usr/bin && mkdir /usr/bin && echo 2 >/usr/bin/two")
	as(caller, 0, "commit", "again", "team/tools:3")
	if out, _ := as(caller, 0, "run", "--rm", "--image", "team/tools:3", "--", "/bin/ls", "/usr/bin"); out != "two\n" {
		t.Errorf("of an image of an image: %q", out)
	}
	if out, _ := as(caller, 0, "image", "inspect", "team/tools:3"); strings.Count(out, `"media_type"`) != 3 {
		t.Errorf("layers: %s", out)
	}

	// It is nobody else's, and so are its names and the sandbox.
	all, err := l.Images(t.Context())
	i := slices.IndexFunc(all, func(i api.Image) bool { return i.Ref == "team/tools:1" })
	if err != nil || i < 0 {
		t.Fatalf("images %+v, %v", all, err)
	}
	for _, img := range []string{"team/tools:1", all[i].Digest} {
		if _, e := as(other, 125, "run", "--rm", "--image", img, "--", "/bin/true"); !strings.Contains(e, "is not here") {
			t.Errorf("another caller runs %s: %s", img, e)
		}
	}
	if _, e := as(other, 1, "commit", "builder", "mine"); !strings.Contains(e, "no sandbox") {
		t.Errorf("another's sandbox: %s", e)
	}
	if _, e, code := l.Creel("commit", "builder", "everybodys"); code != 1 || !strings.Contains(e, "another user's") {
		t.Errorf("by root: %d %s", code, e)
	}
	if _, e := as(caller, 1, "commit", "builder", "base"); !strings.Contains(e, "the box has an image") {
		t.Errorf("the box's name: %s", e)
	}
	for _, name := range []string{"", "../x", "sha256:" + strings.Repeat("a", 64)} {
		if _, e := as(caller, 1, "commit", "builder", name); !strings.Contains(e, "image") && !strings.Contains(e, "name") {
			t.Errorf("name %q: %s", name, e)
		}
	}
	as(caller, 0, "run", "-d", "--name", "readonly")
	if _, e := as(caller, 1, "commit", "readonly", "x"); !strings.Contains(e, "read-only") {
		t.Errorf("a read-only one: %s", e)
	}
	as(caller, 0, "stop", "-t", "1s", "builder")
	if _, e := as(caller, 1, "commit", "builder", "x"); !strings.Contains(e, "is gone") {
		t.Errorf("an ended one: %s", e)
	}
}

// TestCommitOfHostile: what a root can make of its layer to lead the daemon
// astray is refused, and the sandbox goes on.
func TestCommitOfHostile(t *testing.T) {
	l := lab.New(t, lab.Options{})
	for _, tt := range []struct {
		name, script, want string
	}{
		{"a removal by its name", "touch /etc/.wh.passwd", "a name that says in an image"},
		{"an opaque by its name", "touch /usr/.wh..wh..opq", "a name that says in an image"},
		{"holes", "dd if=/dev/zero of=/big bs=1024 count=0 seek=1000000000", "bytes"},
		{"a link for /etc", "rm -r /etc && ln -s /tmp /etc", "/etc is not a real directory"},
		{"a link for /dev's parent", "mv /var /var2 && ln -s /var2 /var", "/var is not a real directory"},
		{"a link above the root", "ln -s ../../../../../etc/shadow /x", "above the root"},
		{"depth", `d=/d; mkdir $d; cd $d; i=0; while [ $i -lt 300 ]; do mkdir d && cd d || exit 1; i=$((i+1)); done`, "directories deep"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sb := l.Spawn(api.SpawnRequest{Profile: "build"})
			defer l.Remove(t.Context(), sb.ID, true)
			if out, res := l.Sh(sb.ID, tt.script+" 2>&1"); res.ExitCode != 0 {
				t.Fatalf("%s: %q %+v", tt.script, out, res)
			}
			if _, err := l.Commit(t.Context(), sb.ID, "hostile"); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
			if out, _ := l.Sh(sb.ID, "echo on"); out != "on\n" {
				t.Errorf("after it: %q", out)
			}
		})
	}
	if all, err := l.Images(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("images: %+v, %v", all, err)
	}
}

// TestKilledInCommit kills creeld at each step of a commit: the sandbox goes
// on, nothing of the image is left, and the same commit works.
func TestKilledInCommit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Profile: "build", Command: []string{"/bin/sh", "-c", "while :; do echo $(($(cat /n 2>/dev/null) + 1)) >/n2; mv /n2 /n; usleep 1000; done"}})
	for _, point := range []string{"commit.still", "commit.spooled", "commit.extend", "import.mounted"} {
		t.Run(point, func(t *testing.T) {
			l.Fail(point + " kill")
			if _, err := l.Commit(t.Context(), sb.ID, "tools"); err == nil {
				t.Fatal("the commit succeeded")
			}
			died(t, l)
			if all, err := l.Images(t.Context()); err != nil || len(all) != 1 {
				t.Errorf("images: %+v, %v", all, err)
			}
			before, _ := l.Sh(sb.ID, "cat /n")
			l.Eventually("the main command goes on", 30*time.Second, func() error {
				if now, _ := l.Sh(sb.ID, "cat /n"); now == before {
					return os.ErrDeadlineExceeded
				}
				return nil
			})
			for _, dir := range []string{"state", "state/rootfs", "run/containerd"} {
				left, err := filepath.Glob(filepath.Join(l.Dir, dir, "check-*"))
				if err != nil || len(left) > 0 {
					t.Errorf("left behind: %q, %v", left, err)
				}
			}
		})
	}
	if _, err := l.Commit(t.Context(), sb.ID, "tools"); err != nil {
		t.Fatal(err)
	}
	got := l.Spawn(api.SpawnRequest{Image: "tools"})
	if out, res := l.Sh(got.ID, "cat /n"); res.ExitCode != 0 || out == "" {
		t.Errorf("from the image: %q, %+v", out, res)
	}
}

// TestDuringCommit: while a sandbox is held still nothing starts in it or
// changes that, and it can be ended, which ends the commit.
func TestDuringCommit(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Profile: "build"})
	l.Fail("commit.still hold")
	done := make(chan error, 1)
	go func() {
		_, err := l.Commit(t.Context(), sb.ID, "tools")
		done <- err
	}()
	l.Held("commit.still")
	for name, do := range map[string]func() error{
		"pause":  func() error { return l.Pause(t.Context(), sb.ID) },
		"resume": func() error { return l.Resume(t.Context(), sb.ID) },
		"exec": func() error {
			_, err := l.Exec(t.Context(), sb.ID, api.ExecRequest{Command: []string{"/bin/true"}}, client.Stdio{})
			return err
		},
		"file": func() error {
			return l.WriteFile(t.Context(), sb.ID, "/x", client.WriteOptions{Mode: 0o644}, strings.NewReader("x"), 1)
		},
	} {
		if err := do(); api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "an image of sandbox") {
			t.Errorf("%s meanwhile: %v", name, err)
		}
	}
	if err := l.Remove(t.Context(), sb.ID, true); err != nil {
		t.Error(err)
	}
	l.Fail()
	if err := <-done; err == nil {
		t.Error("an image of what is gone was made")
	}
	if all, err := l.Images(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("images: %+v, %v", all, err)
	}
	l.NothingLeft()
}
