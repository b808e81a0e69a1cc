package integration_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// TestCeilings: what a caller may have is what its table says, whatever it
// asks for; all that is wrong is told at once, with the rule and the way out.
func TestCeilings(t *testing.T) {
	l := lab.New(t, lab.Options{
		Top: fmt.Sprintf("operators = [\"uid:%d\"]", stranger+2),
		Config: fmt.Sprintf(`
[[caller]]
match = "uid:%d"
profiles = ["strict"]
runtimes = ["crun"]
images = ["team/*"]
mounts = ["own:ro"]
sandboxes = 2
memory = "300M"
exec_rate = 3
`, stranger),
	})
	// So that it may mount on hosts without BPF LSM, too.
	strict, _, _ := l.Creel("profile", "show", "strict")
	file := filepath.Join(l.Dir, "profiles", "strict.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(strings.Replace(strict, `unix_peers = "required"`, `unix_peers = "preferred"`, 1)), 0o644)); err != nil {
		t.Fatal(err)
	}
	l.Stop()
	l.Start()
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	unknown := &syscall.Credential{Uid: stranger + 1, Gid: stranger + 1}
	operator := &syscall.Credential{Uid: stranger + 2, Gid: stranger + 2}
	creel := func(as *syscall.Credential, args ...string) (string, int) {
		t.Helper()
		out, errOut, code := l.CreelAs(as, "", args...)
		return out + errOut, code
	}
	dir := filepath.Join(l.Dir, "guests")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	if out, code := creel(nil, "image", "tag", "base", "team/base:1"); code != 0 {
		t.Fatal(out)
	}

	t.Run("lists", func(t *testing.T) {
		out, code := creel(guest, "run", "-d", "--profile", "default", "--runtime", "runc", "--image", "base", "-v", dir+":/w")
		for _, want := range []string{"4 rules refuse it", "ask for profile strict", "ask for runtime crun", "ask for image team/*", "mount it read-only"} {
			if code == 0 || !strings.Contains(out, want) {
				t.Errorf("%d %s: does not say %q", code, out, want)
			}
		}
		status, body := 0, ""
		asStranger(t, func() {
			status, body = ask(t, l, "POST", "/v1/sandboxes", `{"image":"base"}`)
		})
		if status != http.StatusForbidden || !strings.Contains(body, `"rule":"ceiling.profiles"`) || !strings.Contains(body, `"rule":"ceiling.images"`) {
			t.Errorf("%d %s", status, body)
		}
		out, code = creel(guest, "run", "--rm", "--profile", "strict", "--image", "team/base:1", "--memory", "64M", "-v", dir+":/w:ro", "--", "/bin/ls", "/w")
		if code != 0 {
			t.Errorf("what is allowed: %d %s", code, out)
		}
		if out, code := creel(guest, "image", "tag", "team/base:1", "mine"); code == 0 || !strings.Contains(out, "no image of your own") {
			t.Errorf("an image of its own: %d %s", code, out)
		}
	})
	t.Run("totals", func(t *testing.T) {
		run := func(memory string) (string, int) {
			return creel(guest, "run", "-d", "--profile", "strict", "--image", "team/base:1", "--memory", memory)
		}
		var mu sync.Mutex
		var won []string
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				out, code := run("128M")
				mu.Lock()
				defer mu.Unlock()
				switch {
				case code == 0:
					won = append(won, strings.TrimSpace(out))
				case !strings.Contains(out, "sandboxes is 2") && !strings.Contains(out, "rules refuse"):
					t.Errorf("refused with %s", out)
				}
			})
		}
		wg.Wait()
		if len(won) != 2 {
			t.Fatalf("%d were let in, want 2: %q", len(won), won)
		}
		if out, code := creel(guest, "rm", "-f", won[0]); code != 0 {
			t.Fatal(out)
		}
		if out, code := run("200M"); code == 0 || !strings.Contains(out, "ceiling.memory is 300M") || !strings.Contains(out, "at most 172M") {
			t.Errorf("more memory than is left: %d %s", code, out)
		}
		l.Stop()
		l.Start()
		open(t, l)
		if out, code := run("200M"); code == 0 || !strings.Contains(out, "ceiling.memory is 300M") {
			t.Errorf("after a restart: %d %s", code, out)
		}
		for range 3 {
			if out, code := creel(guest, "exec", won[1], "--", "/bin/true"); code != 0 {
				t.Fatalf("exec: %d %s", code, out)
			}
		}
		if out, code := creel(guest, "exec", won[1], "--", "/bin/true"); code != 125 || !strings.Contains(out, "ceiling.exec_rate is 3 in a minute") {
			t.Errorf("the fourth exec: %d %s", code, out)
		}
	})
	t.Run("explain", func(t *testing.T) {
		// One runs, with 128M: nothing is made or counted, however often it is asked.
		for range 2 {
			out, code := creel(guest, "explain", "--image", "base", "--profile", "strict", "--memory", "200M", "-v", "/usr:/w:ro", "-v", "gone:/v:ro")
			for _, want := range []string{
				"NO  ceiling.images", "ok  ceiling.profiles", "NO  ceiling.mounts", "ok  ceiling.sandboxes", "NO  ceiling.memory", "128M, with this one 328M",
				"refused, by the ceiling of uid:", "fix: have the operator add it to mounts of [[caller]] uid:", "fix: ask for memory of at most 172M", `no volume "gone"`, "fix: creel volume create gone",
			} {
				if code != 1 || !strings.Contains(out, want) {
					t.Errorf("%d\n%s\ndoes not say %q", code, out, want)
				}
			}
		}
		if out, code := creel(guest, "explain", "--image", "team/base:1", "--profile", "strict", "--memory", "172M", "-v", dir+":/w:ro"); code != 0 || !strings.Contains(out, "allowed, by the ceiling of uid:") {
			t.Errorf("with that mended: %d %s", code, out)
		}
		if out, code := creel(guest, "explain", "--memory", "1K", "--cpus", "9999"); code != 1 || !strings.Contains(out, "NO  limits.memory") || !strings.Contains(out, "NO  limits.cpus") {
			t.Errorf("a wrong request: %d %s", code, out)
		}
		if out, code := creel(nil, "explain", "--image", "base"); code != 0 || !strings.Contains(out, "allowed, by the ceiling of operator") {
			t.Errorf("root: %d %s", code, out)
		}
		if out, code := creel(guest, "ps", "-q"); code != 0 || len(strings.Fields(out)) != 1 {
			t.Errorf("after asking: %d %q", code, out)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		for _, args := range [][]string{{"run", "-d"}, {"image", "ls"}, {"events"}, {"doctor"}, {"profile", "ls"}, {"system", "df"}, {"inspect", "x"}} {
			if out, code := creel(unknown, args...); code == 0 || !strings.Contains(out, "no [[caller]] of creeld's configuration is for uid") {
				t.Errorf("creel %q: %d %s", args, code, out)
			}
		}
		for _, args := range [][]string{{"version"}, {"ps", "-a", "-q"}} {
			if out, code := creel(unknown, args...); code != 0 || args[0] == "ps" && out != "" {
				t.Errorf("creel %q: %d %s", args, code, out)
			}
		}
	})
	t.Run("operator", func(t *testing.T) {
		out, code := creel(operator, "ps", "--json")
		if code != 0 || !strings.Contains(out, fmt.Sprintf(`"uid": %d`, stranger)) && !strings.Contains(out, fmt.Sprintf(`"uid":%d`, stranger)) {
			t.Errorf("an operator sees: %d %s", code, out)
		}
		sb := l.Spawn(api.SpawnRequest{Name: "roots"})
		if out, code := creel(operator, "rm", "-f", sb.ID); code != 0 {
			t.Errorf("an operator removes root's: %d %s", code, out)
		}
		if out, code := creel(operator, "image", "tag", "base", "box2"); code != 0 {
			t.Errorf("an operator's image: %d %s", code, out)
		}
		if out, code := creel(nil, "image", "inspect", "box2"); code != 0 {
			t.Errorf("is the box's: %d %s", code, out)
		}
	})
}

// open lets every user of the test's connect.
func open(t *testing.T, l *lab.Lab) {
	t.Helper()
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestHostBounds: a box that has not enough left takes no sandbox, whoever
// asks; what was missing is told, and nothing is left of the attempt.
func TestHostBounds(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[host]\nmemory = \"1024T\"\npids = 4194304\n"})
	_, err := l.Client.Spawn(t.Context(), api.SpawnRequest{})
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeExhausted || len(e.Problems) != 2 ||
		e.Problems[0].Rule != "host.memory" || e.Problems[1].Rule != "host.pids" || !strings.Contains(e.Problems[0].Value, "available") {
		t.Errorf("spawn: %+v", err)
	}
	if list, err := l.List(t.Context(), client.ListOptions{All: true}); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// TestReload: SIGHUP puts what the configuration says of callers in force, for
// what is asked from then on; one that is wrong keeps the policy there was, and
// who may know is told why.
func TestReload(t *testing.T) {
	l := lab.New(t, lab.Options{Config: fmt.Sprintf("[[caller]]\nmatch = \"uid:%d\"\nsandboxes = 1\n", stranger)})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	run := func() (string, int) {
		out, errOut, code := l.CreelAs(guest, "", "run", "-d", "--image", "base")
		return out + errOut, code
	}
	doctor := func(as *syscall.Credential) string {
		out, _, _ := l.CreelAs(as, "", "doctor")
		return out
	}
	generation := func(want int) {
		t.Helper()
		l.Eventually("the policy is read again", 30*time.Second, func() error {
			v, err := l.Version(t.Context())
			if err == nil && v.Policy != want {
				err = fmt.Errorf("generation %d", v.Policy)
			}
			return err
		})
	}
	generation(1)
	first, code := run()
	if code != 0 {
		t.Fatal(first)
	}
	if out, code := run(); code == 0 {
		t.Fatalf("two of one: %s", out)
	}
	l.Reconfigure("sandboxes = 1", "sandboxes = 2")
	generation(2)
	second, code := run()
	if code != 0 {
		t.Fatalf("after the bound was raised: %s", second)
	}

	l.Reconfigure("sandboxes = 2", "sandboxes = many")
	l.Eventually("the failure is told", 30*time.Second, func() error {
		if out := doctor(nil); !strings.Contains(out, "the last reload failed") || !strings.Contains(out, "creeld.toml:") {
			return fmt.Errorf("doctor says %s", out)
		}
		return nil
	})
	if out := doctor(guest); !strings.Contains(out, "the last reload failed") || strings.Contains(out, "creeld.toml:") {
		t.Errorf("a caller is told %s", out)
	}
	if out, code := run(); code == 0 || !strings.Contains(out, "ceiling.sandboxes is 2") {
		t.Errorf("with the old policy: %d %s", code, out)
	}

	l.Reconfigure("sandboxes = many", "sandboxes = 1\nprofiles = []")
	generation(3)
	for _, id := range []string{first, second} { // they keep what they were admitted with
		if out, errOut, code := l.CreelAs(guest, "", "exec", strings.TrimSpace(id), "--", "/bin/true"); code != 0 {
			t.Errorf("exec in what runs: %d %s%s", code, out, errOut)
		}
	}
	if out := doctor(nil); strings.Contains(out, "reload failed") || !strings.Contains(out, "generation 3") {
		t.Errorf("doctor after it was mended: %s", out)
	}
	l.Reconfigure("[log]", "[exec]\nmax_per_sandbox = 3\n[log]")
	generation(4)
	if out := doctor(nil); !strings.Contains(out, "changed and not in force: exec.max_per_sandbox") {
		t.Errorf("a key that needs a restart: %s", out)
	}
	l.Reconfigure(fmt.Sprintf("match = \"uid:%d\"", stranger), "match = \"uid:1\"")
	generation(5)
	if out, code := run(); code == 0 || !strings.Contains(out, "no [[caller]] of creeld's configuration is for uid") {
		t.Errorf("without a table: %d %s", code, out)
	}
}

// TestImageBytes: what images of its own a caller has is bounded, also of one
// that is on its way, and what is not let in leaves nothing.
func TestImageBytes(t *testing.T) {
	l := lab.New(t, lab.Options{Config: fmt.Sprintf("[[caller]]\nmatch = \"uid:%d\"\nimages = [\"own\"]\nimage_bytes = \"3M\"\n", stranger)})
	open(t, l)
	guest := &syscall.Credential{Uid: stranger, Gid: stranger}
	archive := func(name string, size int) string {
		body := make([]byte, size)
		b, err := os.ReadFile(lab.TinyWith(t, nil, func(w *tar.Writer) {
			lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body)
		}))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	load := func(name string, size int) (string, int) {
		out, errOut, code := l.CreelAs(guest, archive(name, size), "image", "import", "--ref", name, "-")
		return out + errOut, code
	}
	if out, code := load("large", 8<<20); code == 0 {
		t.Errorf("8 MiB of 3: %s", out)
	}
	if out, code := load("one", 0); code != 0 {
		t.Fatalf("busybox alone: %s", out)
	}
	if out, code := load("two", 1<<20); code == 0 {
		t.Errorf("a second busybox and a mebibyte: %s", out)
	}
	out, errOut, code := l.CreelAs(guest, "", "run", "--rm", "--image", "one", "--", "/bin/echo", "own")
	if code != 0 || out != "own\n" {
		t.Errorf("its own: %d %s%s", code, out, errOut)
	}
	// Neither by name nor by digest is the box's its own.
	base, err := l.Image(t.Context(), "base")
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"base", base.Digest} {
		if _, errOut, code := l.CreelAs(guest, "", "run", "-d", "--image", ref); code != 125 || !strings.Contains(errOut, "ceiling.images is own") {
			t.Errorf("the box's as %s: %d %s", ref, code, errOut)
		}
	}
	// Nor does a name of its own make it so.
	if _, errOut, code := l.CreelAs(guest, "", "image", "tag", "base", "mine"); code != 0 {
		t.Errorf("tag: %s", errOut)
	}
	if out, errOut, code := l.CreelAs(guest, "", "run", "-d", "--image", "mine"); code != 125 || !strings.Contains(errOut, "ceiling.images is own") {
		t.Errorf("the box's image under a name of its own: %d %s%s", code, out, errOut)
	}
}
