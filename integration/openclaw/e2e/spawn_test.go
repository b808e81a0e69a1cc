package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// gate is where a model waits for the test.
type gate struct {
	once          sync.Once
	reached, open chan struct{}
}

func newGate() *gate { return &gate{reached: make(chan struct{}), open: make(chan struct{})} }

// before is a step that is taken when the gate is open.
func (g *gate) before(s step) step {
	return func(results []string) []call {
		g.once.Do(func() { close(g.reached) })
		<-g.open
		return s(results)
	}
}

func (g *gate) wait(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(time.Minute):
		close(g.open)
		t.Fatal("the model does not come to the gate")
	}
}

// accepted is what sessions_spawn answers.
type accepted struct {
	Status          string
	Error           string
	ChildSessionKey string
	Attachments     struct{ RelDir, MountPath string }
}

func spawnAnswer(t *testing.T, text string) (a accepted) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatalf("sessions_spawn answered %s", short(text))
	}
	return a
}

// family is a session that has spawned another.
type family struct {
	parent, child string // what was said to each
	key           string // of the child's session
}

// spawn has an agent spawn a child and wait for it.
func (g *gateway) spawn(t *testing.T, agent, session string, args obj, child ...step) family {
	t.Helper()
	f := family{child: g.model.add(child...)}
	args["task"] = f.child
	f.parent = g.model.add(do("sessions_spawn", args), do("sessions_yield", obj{}))
	if status, answer := g.say(t, agent, session, f.parent); status != http.StatusOK {
		t.Fatalf("spawn: %d %s\n%s", status, answer, g.logTail(10))
	}
	a := spawnAnswer(t, g.model.seen(g.model.script(f.parent)).results[0])
	if a.Status != "accepted" {
		t.Fatalf("spawn: %+v", a)
	}
	f.key = a.ChildSessionKey
	return f
}

// told is what OpenClaw tells a parent of its child in the end.
func (g *gateway) told(t *testing.T, f family) string {
	t.Helper()
	s := g.model.wait(t, f.parent)
	// (The task that it quotes is not always the child's first.)
	_, after, _ := strings.Cut(strings.Join(s.told, "\n"), "</prompt-data>\nstatus: ")
	status, _, _ := strings.Cut(after, "\nChild result (")
	if status == "" {
		t.Errorf("the parent is told nothing of its child: %q", s.told)
	}
	return strings.TrimSpace(status)
}

// testSpawn: sessions_spawn with sandbox "require" has the child's commands in
// a sandbox of its own, of which creeld has evidence.
func testSpawn(t *testing.T, w *world, g *gateway) {
	t.Helper()
	for _, parent := range []string{"open", "main"} {
		t.Run("from "+parent, func(t *testing.T) {
			at := newGate()
			f := g.spawn(t, parent, "spawn", obj{"agentId": "boxed", "sandbox": "require", "cleanup": "keep"},
				do("exec", shell("sleep 4711", "background", true)), at.before(of(0, "kill")), do("exec", shell("hostname")))
			at.wait(t)
			sb := w.sandbox(t, f.key)
			w.proven(t, sb, w.begins(t, "sleep", "4711"))
			close(at.open)
			if told := g.told(t, f); told != "ok" {
				t.Errorf("told %q", told)
			}
			if s := g.model.wait(t, f.child); s.results[2] != sb.Name {
				t.Errorf("the child says it is in %q, not %s", s.results, sb.Name)
			}
			w.ends(t, "sleep", "4711")
		})
	}
	t.Run("nested twice", func(t *testing.T) { w.nested(t, g) })
	t.Run("five at once", func(t *testing.T) { w.five(t, g) })
	t.Run("attachments", func(t *testing.T) {
		content := base64.StdEncoding.EncodeToString([]byte("of the parent\x00"))
		f := g.spawn(t, "open", "attach", obj{
			"agentId": "boxed", "sandbox": "require",
			"attachments": []obj{{"name": "a.txt", "content": "attached\n"}, {"name": "b.bin", "content": content, "encoding": "base64"}},
		},
			do("exec", shell("exec 2>&1; cd /openclaw/attachments; find . -name a.txt -exec cat {} +; find . -name b.bin -exec od -An -c {} +; touch $(find . -name a.txt) x; grep attachments /proc/self/mountinfo | cut -d' ' -f6")))
		if told := g.told(t, f); told != "ok" {
			t.Errorf("told %q", told)
		}
		s := g.model.wait(t, f.child)
		same(t, "attachments", s.results[0], `^attached\n   o   f       t   h   e       p   a   r   e   n   t  \\0\n.*Read-only file system.*Read-only file system\nro,.*`)
	})
	t.Run("cleanup", func(t *testing.T) {
		for how, left := range map[string]int{"keep": 1, "delete": 0} {
			f := g.spawn(t, "open", "cleanup", obj{"agentId": "boxed", "sandbox": "require", "cleanup": how}, do("write", obj{"path": "kept", "content": "x"}), do("exec", shell("cat kept")))
			if told := g.told(t, f); told != "ok" {
				t.Errorf("%s: told %q", how, told)
			}
			if s := g.model.wait(t, f.child); s.results[1] != "x" {
				t.Errorf("%s: %q", how, s.results)
			}
			w.Eventually("cleanup "+how, 20*time.Second, func() error {
				if n := len(w.sandboxes(t, f.key)); n != left {
					return fmt.Errorf("%d sandboxes are there, want %d", n, left)
				}
				files, _ := filepath.Glob(filepath.Join(g.Dir, "state", "sandboxes", "workspace-*", "kept"))
				if len(files) != left {
					return fmt.Errorf("there are %q, want %d", files, left)
				}
				for _, f := range files { // for the next round
					_ = os.Remove(f)
				}
				return nil
			})
			w.clear(t)
		}
	})
}

// proven holds that a process, as the host sees it, is in the sandbox that
// creeld has signed evidence of, and in nothing else's.
func (w *world) proven(t *testing.T, sb api.Sandbox, pid int) {
	t.Helper()
	list, err := w.Evidence(t.Context(), sb.ID, false)
	if err != nil || len(list) == 0 || !list[0].OK || list[0].Signed == nil {
		t.Fatalf("evidence of %s: %+v, %v", sb.Name, list, err)
	}
	observed := map[string]string{}
	for _, c := range list[0].Controls {
		observed[c.Name] = c.Observed
		if !c.OK {
			t.Errorf("%+v", c)
		}
	}
	for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		name := ns
		if ns == "mnt" && observed["namespace.mnt"] == "" {
			name = "mount"
		}
		if err != nil || observed["namespace."+name] == "" || link != observed["namespace."+name] {
			t.Errorf("namespace %s of pid %d is %s, %v; the evidence says %q", ns, pid, link, err, observed["namespace."+name])
		}
	}
	cg, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || !strings.Contains(string(cg), sb.ID) {
		t.Errorf("the cgroup of pid %d is %s, %v", pid, cg, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n", fmt.Sprintf("Uid:\t%d\t", sb.HostUID+1000)} {
		if err != nil || !strings.Contains(string(status), want) {
			t.Errorf("pid %d has no %q: %v", pid, want, err)
		}
	}
}

// nested has a session spawn another of its agent's, and that one a third: each
// in a sandbox of its own, which is part of the one above it.
func (w *world) nested(t *testing.T, g *gateway) {
	t.Helper()
	at := newGate()
	leaf := g.model.add(do("exec", shell("sleep 4712", "background", true)), at.before(of(0, "kill")))
	f := g.spawn(t, "main", "nested", obj{"sandbox": "require"},
		do("exec", shell("echo of the middle >mark; cat mark")),
		do("sessions_spawn", obj{"task": leaf, "sandbox": "require"}), do("sessions_yield", obj{}), do("exec", shell("cat mark")))
	at.wait(t)
	pid := w.begins(t, "sleep", "4712")
	middle := w.sandbox(t, f.key)
	top := w.sandbox(t, sessionKey("main", "nested"))
	a := spawnAnswer(t, g.model.seen(g.model.script(f.child)).results[1])
	last := w.sandbox(t, a.ChildSessionKey)
	w.proven(t, last, pid)
	if middle.Parent != top.ID || last.Parent != middle.ID {
		t.Errorf("the parents of %s and %s are %q and %q, not %s and %s", middle.ID, last.ID, middle.Parent, last.Parent, top.ID, middle.ID)
	}
	close(at.open)
	if told := g.told(t, f); told != "ok" {
		t.Errorf("told %q", told)
	}
	if s := g.model.wait(t, f.child); s.results[3] != "of the middle" {
		t.Errorf("the one in the middle: %q", s.results)
	}
	w.ends(t, "sleep", "4712")
	// With the sandbox at the top go those of its children.
	if err := w.Remove(t.Context(), top.ID, true); err != nil {
		t.Error(err)
	}
	for _, key := range []string{f.key, a.ChildSessionKey} {
		w.Eventually("the children end", 20*time.Second, func() error {
			if n := len(w.sandboxes(t, key)); n > 0 {
				return fmt.Errorf("%s has %d sandboxes", key, n)
			}
			return nil
		})
	}
}

// five has a session spawn five children in one answer.
func (w *world) five(t *testing.T, g *gateway) {
	t.Helper()
	var tasks []string
	var spawns []call
	for i := range 5 {
		task := g.model.add(do("exec", shell(fmt.Sprintf("echo %d >n; sleep 1; cat n; hostname", i))))
		tasks = append(tasks, task)
		spawns = append(spawns, call{"sessions_spawn", obj{"task": task, "sandbox": "require"}})
	}
	parent := g.model.add(func([]string) []call { return spawns }, do("sessions_yield", obj{}))
	if status, answer := g.say(t, "main", "five", parent); status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	var names []string
	for i, task := range tasks {
		s := g.model.wait(t, task)
		n, name, _ := strings.Cut(s.results[0], "\n")
		if n != fmt.Sprint(i) {
			t.Errorf("child %d: %q", i, s.results)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	if n := len(slices.Compact(slices.Clone(names))); n != 5 {
		t.Errorf("five children are in %q", names)
	}
	// The parent is told of all of them together, half a minute later.
}
