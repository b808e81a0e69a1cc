package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// testWorkspace: what each workspaceAccess gives an agent, and whose the files
// are afterwards.
func testWorkspace(t *testing.T, _ *world, g *gateway) {
	t.Helper()
	mess := shell("exec 2>&1; touch f; chmod 6755 f; cp /bin/true t; chmod 4755 t; mkdir s; chmod 2777 s; ln -s /etc/shadow l; mkfifo p; stat -c '%a %n' f t s")
	const bits = "chmod: changing permissions of 'f': Operation not permitted\nchmod: changing permissions of 't': Operation not permitted\nchmod: changing permissions of 's': Operation not permitted\n644 f\n755 t\n755 s"
	t.Run("none", func(t *testing.T) {
		g.uses(t, "main", "ws", use{"exec", mess, bits}, use{"exec", shell("ls /agent 2>&1 || true; ls"), "^ls: cannot access '/agent': No such file or directory\nf\nl\np\ns\nskills\nt"})
		if r := g.results(t, "main", "ws2", do("exec", shell("ls"))); r[0] != "skills" {
			t.Errorf("another session sees %q", r)
		}
	})
	t.Run("ro", func(t *testing.T) {
		dir := filepath.Join(g.Dir, "ws-ro")
		theirs(t, dir, "notes", "of the user\n")
		r := g.turn(t, "ro", "ws", do("exec", shell("exec 2>&1; cat /agent/notes; touch x /agent/x; echo y >>/agent/notes; id -u")), do("read", obj{"path": "/agent/notes"}), do("write", obj{"path": "x", "content": "y"}))
		if !r.ended {
			t.Fatalf("%d %s\n%s", r.status, r.answer, g.logTail(10))
		}
		same(t, "exec", r.results[0], "^of the user\n.*'x': Read-only file system\n.*'/agent/x': Read-only file system\n.*/agent/notes: Read-only file system\n1000")
		same(t, "read", r.results[1], "of the user\n")
		same(t, "write", r.results[2], "Tool write not found")
		for _, tool := range []string{"write", "edit", "apply_patch"} {
			if slices.Contains(r.tools, tool) {
				t.Errorf("%s is offered", tool)
			}
		}
		if text, err := os.ReadFile(filepath.Join(dir, "notes")); err != nil || string(text) != "of the user\n" {
			t.Errorf("notes: %q, %v", text, err)
		}
	})
	t.Run("rw", func(t *testing.T) {
		dir := filepath.Join(g.Dir, "ws-rw")
		theirs(t, dir, "notes", "of the user\n")
		g.uses(t, "rw", "ws",
			use{"exec", mess, bits},
			use{"exec", shell("cat notes; echo of the agent >>notes; mkdir made; echo x >made/x"), "of the user"},
			use{"write", obj{"path": "made/y", "content": "y"}, "Successfully wrote 1 bytes to /workspace/made/y"},
			use{"edit", edit("notes", "of the user", "of both"), "Successfully replaced 1 block(s) in /workspace/notes."},
			use{"apply_patch", patch("*** Add File: made/z", "+z"), "Success. Updated the following files:\nA made/z"},
			// In a directory of the user's own a link is followed by nobody outside.
			use{"exec", shell("ln -s " + g.configPath() + " config; ln -s " + g.Dir + " up; ls -L config up 2>&1 | sort"), "ls: cannot access 'config': No such file or directory\nls: cannot access 'up': No such file or directory"},
			use{"read", obj{"path": "config"}, failed("read", "File not found: config.")},
			use{"read", obj{"path": "up/openclaw.json"}, failed("read", "File not found: up/openclaw.json.")},
			use{"edit", edit("config", "gateway", "x"), failed("edit", "Could not edit file: /workspace/config. Error code: ENOENT.")},
			use{"ls", obj{"path": "up"}, failed("ls", "ENOENT: no such file or directory, /workspace/up")},
			use{"apply_patch", patch("*** Update File: config", "@@", "-{", "+x"), `^.*"tool": "apply_patch".*Symlink escapes sandbox root.*`},
			use{"exec", shell("rm config up"), "(no output)"},
		)
		// Another session of the agent's has the same workspace, at the same time.
		g.uses(t, "rw", "ws2", use{"exec", shell("cat notes made/x made/y made/z"), "of both\nof the agent\nx\nyz"})
		if text, err := os.ReadFile(filepath.Join(dir, "notes")); err != nil || string(text) != "of both\nof the agent\n" {
			t.Errorf("notes: %q, %v", text, err)
		}
		f := g.spawn(t, "rw", "ws", obj{"sandbox": "require"}, do("exec", shell("cat made/z; echo child >>notes")))
		if told := g.told(t, f); told != "ok" {
			t.Errorf("told %q", told)
		}
		if text, err := os.ReadFile(filepath.Join(dir, "notes")); err != nil || !strings.HasSuffix(string(text), "child\n") {
			t.Errorf("notes: %q, %v", text, err)
		}
	})
	owned(t, g.Dir)
}

// theirs is a file of the user's.
func theirs(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	for _, err := range []error{
		os.MkdirAll(dir, 0o755), os.Chown(dir, gatewayUID, gatewayUID), os.WriteFile(path, []byte(text), 0o644), os.Chown(path, gatewayUID, gatewayUID),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}
