package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const unavailable = `workdir "%s" is unavailable or not a directory: command was not executed. workdir is treated as a literal path; shell expansions such as "~" are not applied. Use an existing directory, omit an explicit workdir to use the default cwd, or update the configured default cwd.`

// testExec: a command runs in the sandbox and nowhere else, and what comes of
// it is what a model knows from OpenClaw's own sandboxes.
func testExec(t *testing.T, w *world, g *gateway) {
	t.Helper()
	g.uses(t, "main", "exec",
		use{"exec", shell("echo out; echo err >&2; exit 7"), "^(out\nerr|err\nout)\n\n\\(Command exited with code 7\\)"},
		use{"exec", shell("true"), "(no output)"},
		use{"exec", shell("kill -9 $$"), "(no output)\n\n(Command exited with code 137)"},
		use{"exec", shell("kill -TERM $$"), "(no output)\n\n(Command exited with code 143)"},
		use{"exec", shell("nosuchcommand"), "/bin/sh: 1: nosuchcommand: not found\n\nCommand not found"},
		use{"exec", shell("pwd; mkdir sub; id -u; echo $HOME; cat /proc/self/status | grep CapEff"), "/workspace\n1000\n/home/agent\nCapEff:\t0000000000000000"},
		use{"exec", shell("pwd", "workdir", "sub"), "/workspace/sub"},
		use{"exec", shell("pwd", "workdir", "/workspace/sub"), "/workspace/sub"},
		use{"exec", shell("pwd", "workdir", "/tmp"), "/tmp"},
		use{"exec", shell("pwd", "workdir", "/nowhere"), fmt.Sprintf(unavailable, "/nowhere")},
		use{"exec", shell("pwd", "workdir", g.Dir), fmt.Sprintf(unavailable, g.Dir)},
		use{"exec", shell("echo \"$X\"", "env", obj{"X": "a b\n'c'"}), "a b\n'c'"},
		// Of the gateway's environment there is nothing.
		use{"exec", shell("env | cut -d= -f1 | sort | tr '\\n' ' '"), "HOME LANG LOGNAME OPENCLAW_SHELL PATH PWD SHELL USER"},
		use{"exec", shell("echo $PATH; ls /tmp /run/creel /openclaw 2>&1"), "^/usr/local/bin:/usr/bin:/bin.*/run/creel.*No such file.*"},
		use{"exec", shell("cut -d: -f1 /proc/net/dev | tail -n +3; hostname"), "^ *lo\noc-[0-9a-f]{8}-main-.*"},
		use{"exec", shell("sleep 4701", "timeoutSeconds", 1), "^(?i).*timed out.*"},
		use{"exec", shell("seq 1 300000"), `^\[earlier output was discarded at the retention cap and cannot be recovered\].*truncated.*`},
		use{"exec", shell("head -c 100M /dev/zero | wc -c"), "104857600"},
		use{"exec", shell("tty", "pty", true), "not a tty\n\n(Command exited with code 1)"},
		use{"exec", shell("id", "host", "gateway"), failed("exec", "exec host not allowed (requested gateway; configured host is auto; set tools.exec.host=gateway to allow this override).")},
		use{"exec", shell("id", "elevated", true), `^.*elevated is not available right now \(runtime=sandboxed\).*`},
	)
	w.ends(t, "sleep", "4701")
	t.Run("twenty at once", func(t *testing.T) {
		results := g.results(t, "main", "exec", func([]string) []call {
			var calls []call
			for i := range 20 {
				calls = append(calls, call{"exec", shell(fmt.Sprintf("echo %d; sleep 0.2", i))})
			}
			return calls
		})
		for i, r := range results {
			if r != fmt.Sprint(i) {
				t.Errorf("%d: %q", i, r)
			}
		}
	})
	if n := len(w.sandboxes(t, sessionKey("main", "exec"))); n != 1 {
		t.Errorf("the session has %d sandboxes", n)
	}
	if n := w.sandbox(t, sessionKey("main", "exec")).Execs; n != 0 {
		t.Errorf("%d commands are said to run", n)
	}
	// The tools of an agent that is not in a sandbox show what it would have seen.
	if r := g.results(t, "open", "exec", do("exec", shell("id -u"))); r[0] != fmt.Sprint(gatewayUID) {
		t.Errorf("outside: %q", r)
	}
}

// slug is how OpenClaw calls what runs on.
var slug = regexp.MustCompile(`session ([a-z0-9]+(?:-[a-z0-9]+)+)`)

// of is a step with the tool "process", of what a call before it started.
func of(i int, action string, more ...any) step {
	return func(results []string) []call {
		args := obj{"action": action}
		if found := slug.FindStringSubmatch(results[i]); found != nil {
			args["sessionId"] = found[1]
		}
		for i := 0; i < len(more); i += 2 {
			args[more[i].(string)] = more[i+1]
		}
		return []call{{"process", args}}
	}
}

const runsOn = `^Command still running \(session [a-z0-9-]+, pid \d+\)\. Use process .*`

// testProcess: what runs on is written to, watched and ended, with all that it
// started.
func testProcess(t *testing.T, w *world, g *gateway) {
	t.Helper()
	results := g.results(t, "main", "process",
		do("exec", shell(`while read l; do echo "<$l>"; done; echo end`, "background", true)),
		of(0, "write", "data", "one\ntwo\n"),
		of(0, "poll", "timeout", 500),
		of(0, "write", "data", "three\n", "eof", true),
		of(0, "poll", "timeout", 3000),
		of(0, "log"),
		// What does not end when it is asked to, with children of its own.
		do("exec", shell("trap '' TERM; (trap '' TERM; sleep 4704) & setsid sleep 4705 & while :; do sleep 4706; done", "background", true)),
		do("exec", shell("sleep 0.3; ps -o args= -e | grep -c '^sleep 470'")),
		of(6, "kill"),
		of(6, "poll", "timeout", 9000),
	)
	for i, want := range []string{
		runsOn,
		"^Wrote 8 bytes to session [a-z0-9-]+\\.",
		"<one>\n<two>\n\nProcess still running.",
		"^Wrote 6 bytes to session [a-z0-9-]+ \\(stdin closed\\)\\.",
		"^<three>(\nend)?\n\nProcess (exited with code 0|still running)\\.",
		"<one>\n<two>\n<three>\nend",
		runsOn,
		"3",
		"^Termination requested for session [a-z0-9-]+\\.",
		"creel: ended: killed\n\nProcess stopped by request (code 137).",
	} {
		same(t, fmt.Sprint("process ", i), results[i], want)
	}
	for _, n := range []string{"4704", "4705", "4706"} {
		w.ends(t, "sleep", n)
	}
	// A turn that is over leaves what it started on purpose. On the host neither
	// the command nor its environment is to be seen beside it.
	g.results(t, "main", "process", do("exec", shell("sleep 4707", "background", true, "env", obj{"HUSH": "of the turn"})))
	w.begins(t, "sleep", "4707")
	relays := w.relays()
	if len(relays) != 1 {
		t.Fatalf("relays: %q", relays)
	}
	pid, cmd, _ := strings.Cut(relays[0], " ")
	environ, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
	if err != nil || strings.Contains(cmd+string(environ), "of the turn") || strings.Contains(cmd, "sleep") || strings.Contains(string(environ), token) {
		t.Errorf("%s, with %q, %v", cmd, environ, err)
	}
	results = g.results(t, "main", "process", do("process", obj{"action": "list"}))
	if !strings.Contains(results[0], "sleep 4707") {
		t.Errorf("the next turn lists %q", results[0])
	}
	sb := w.sandbox(t, sessionKey("main", "process"))
	if err := w.Remove(t.Context(), sb.ID, true); err != nil {
		t.Fatal(err)
	}
	w.ends(t, "sleep", "4707")
	g.uses(t, "main", "process", use{"exec", shell("ps -o args= -e | grep -c '^sleep'"), "0\n\n(Command exited with code 1)"})
	if now := w.sandbox(t, sessionKey("main", "process")); now.ID == sb.ID {
		t.Error("a sandbox that was removed is there")
	}
}
