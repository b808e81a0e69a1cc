package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func patch(lines ...string) obj {
	return obj{"input": "*** Begin Patch\n" + strings.Join(lines, "\n") + "\n*** End Patch"}
}

func edit(path, before, after string) obj {
	return obj{"path": path, "edits": []obj{{"oldText": before, "newText": after}}}
}

// testFiles: the file tools work on the sandbox's files, whatever is made of
// them from inside.
func testFiles(t *testing.T, _ *world, g *gateway) {
	t.Helper()
	outside := filepath.Join(g.Dir, "openclaw.json")
	g.uses(t, "main", "files",
		use{"write", obj{"path": "a/b/c.txt", "content": "one\ntwo\n"}, "Successfully wrote 8 bytes to /workspace/a/b/c.txt"},
		use{"read", obj{"path": "a/b/c.txt"}, "one\ntwo\n"},
		use{"edit", edit("a/b/c.txt", "two", "three"), "Successfully replaced 1 block(s) in /workspace/a/b/c.txt."},
		use{"read", obj{"path": "/workspace/a/b/c.txt"}, "one\nthree\n"},
		use{"ls", obj{"path": "a/b"}, `"c.txt"`},
		use{"apply_patch", patch("*** Add File: p/new.txt", "+hello", "*** Update File: a/b/c.txt", "@@", "-one", "+uno"), "Success. Updated the following files:\nA p/new.txt\nM a/b/c.txt"},
		use{"exec", shell("cat p/new.txt a/b/c.txt; stat -c '%a %u %n' p p/new.txt a/b/c.txt"), "hello\nuno\nthree\n755 1000 p\n644 1000 p/new.txt\n644 1000 a/b/c.txt"},
		use{"apply_patch", patch("*** Delete File: p/new.txt", "*** Update File: a/b/c.txt", "*** Move to: a/moved.txt", "@@", "-uno", "+one"), "Success. Updated the following files:\nM a/moved.txt\nD p/new.txt"},
		use{"exec", shell("find a p | sort"), "a\na/b\na/moved.txt\np"},
		use{"read", obj{"path": "nothing"}, failed("read", "File not found: nothing.")},
		use{"edit", edit("nothing", "a", "b"), `^.*"tool": "edit".*`},
		use{"exec", shell("mkdir d; touch 'a file'; chmod 0 d; mkfifo fifo; printf 'x\\0\\377y' >binary; echo '#!/bin/sh' >run; chmod 755 run; head -c 3000000 /dev/zero | base64 >big"), "(no output)"},
		use{"read", obj{"path": "a file"}, "File is empty (0 bytes)."},
		use{"read", obj{"path": "d"}, failed("read", "Read requires a file path, but d is a directory. List the directory, then read a specific file.")},
		use{"ls", obj{"path": "d"}, failed("ls", "/workspace/d: permission denied")},
		use{"read", obj{"path": "fifo"}, failed("read", "/workspace/fifo: invalid argument")},
		use{"write", obj{"path": "d", "content": "y"}, failed("write", "/workspace/d: is a directory")},
		use{"read", obj{"path": "big"}, `^A.*\[Read output capped at 50KB for this call\. Use offset=\d+ to continue\.\]`},
		use{"edit", edit("run", "sh", "bash"), "Successfully replaced 1 block(s) in /workspace/run."},
		use{"exec", shell("stat -c %a run; ./run"), "755"},
	)
	t.Run("links lead nowhere outside", func(t *testing.T) {
		g.uses(t, "main", "files",
			use{"exec", shell("ln -s /etc/passwd link; ln -s /etc dir; ln -s . self; ln -s " + g.Dir + " host; ln -s /proc/1/root root; ln -s /proc/self/fd fds; echo x >x; ln x hard"), "(no output)"},
			use{"read", obj{"path": "self/self/x"}, "x\n"},
			use{"read", obj{"path": "link"}, "^root:x:0:0:.*agent:x:1000:.*"}, // the sandbox's
			use{"write", obj{"path": "dir/new", "content": "x"}, failed("write", "/workspace/dir/new: read-only file system")},
			use{"write", obj{"path": "/etc/new", "content": "x"}, failed("write", "/etc/new: read-only file system")},
			use{"apply_patch", patch("*** Add File: /etc/new", "+x"), `^.*Path escapes sandbox root .*: /etc/new.*`},
			use{"apply_patch", patch("*** Add File: dir/new", "+x"), `^.*Symlink escapes sandbox root .*`},
			use{"read", obj{"path": outside}, failed("read", "File not found: "+outside+".")},
			use{"read", obj{"path": "host/openclaw.json"}, failed("read", "File not found: host/openclaw.json.")},
			use{"read", obj{"path": "../../../.." + outside}, `^.*"tool": "read",\n  "error": "File not found: .*`},
			use{"edit", edit("host/openclaw.json", "gateway", "x"), `^.*"tool": "edit".*`},
			use{"ls", obj{"path": "host"}, `^.*"tool": "ls".*`},
			use{"ls", obj{"path": g.Dir}, `^.*"tool": "ls".*`},
			use{"read", obj{"path": "root" + outside}, `^.*"tool": "read".*`},
			use{"read", obj{"path": "fds/3"}, `^.*"tool": "read".*`},
			use{"apply_patch", patch("*** Delete File: host/openclaw.json"), `^.*"tool": "apply_patch".*`},
			use{"apply_patch", patch("*** Update File: host/openclaw.json", "@@", "-{", "+x"), `^.*"tool": "apply_patch".*`},
			// The sandbox has a /tmp of its own.
			use{"write", obj{"path": outside, "content": "x"}, "Successfully wrote 1 bytes to " + outside},
			use{"read", obj{"path": "host/openclaw.json"}, "x"},
			// A file with two names is another after a write.
			use{"write", obj{"path": "x", "content": "y"}, "Successfully wrote 1 bytes to /workspace/x"},
			use{"exec", shell("cat x hard"), "yx"},
		)
		if text, err := os.ReadFile(outside); err != nil || !strings.Contains(string(text), `"gateway"`) {
			t.Errorf("the gateway's configuration is %q, %v", text, err)
		}
	})
}
