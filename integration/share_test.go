package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestSharedDirectory: what an agent can write no other agent can, under no
// name of it, until its sandbox is gone.
func TestSharedDirectory(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	link := dir + ".link"
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	run := func(agent, mount string, args ...string) (string, string, int) {
		t.Helper()
		return l.CreelAs(caller, "", append([]string{"run", "--agent", agent, "-v", mount}, args...)...)
	}
	out, errOut, code := run("one", filepath.Join(dir, "src")+":/w", "-d", "--name", "holder")
	if code != 0 {
		t.Fatalf("the first: %q", errOut)
	}
	holder := strings.TrimSpace(out)
	try := func(what, agent, mount string, want int) {
		t.Helper()
		_, errOut, code := run(agent, mount, "--rm", "--", "/bin/true")
		if code != want || want != 0 && !strings.Contains(errOut, "sandbox holder ("+holder+") of agent one") {
			t.Errorf("%s: %d, want %d; %q", what, code, want, errOut)
		}
	}
	try("the same directory", "two", filepath.Join(dir, "src")+":/w", 125)
	try("its parent", "two", dir+":/w", 125)
	try("its parent by a link", "two", link+":/w", 125)
	try("the same, read-only", "two", filepath.Join(dir, "src")+":/w:ro", 0)
	try("the same agent", "one", filepath.Join(dir, "src")+":/w", 0)
	try("the same agent, its parent", "one", dir+":/w", 0)
	other := filepath.Join(dir, "beside")
	sub := filepath.Join(dir, "src", "sub")
	for _, d := range []string{other, sub} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, callerUID, callerUID); err != nil {
			t.Fatal(err)
		}
	}
	try("one beside it", "two", other+":/w", 0)
	try("one in it", "two", sub+":/w", 125)
	// What is another user's alone is nobody's but its own, beside all that.
	private := workspace(t)
	if err := errors.Join(os.Chown(private, callerUID+2, callerUID+2), os.Chmod(private, 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, errOut, code := l.CreelAs(&syscall.Credential{Uid: callerUID + 2, Gid: callerUID + 2}, "", "run", "--rm", "-v", private+":/w", "--", "/bin/touch", "/w/new"); code != 0 {
		t.Errorf("another user's private directory: %d, %q", code, errOut)
	}
	// Nor another user, who is not told whose it is.
	another := &syscall.Credential{Uid: callerUID + 1, Gid: callerUID + 1}
	if _, errOut, code := l.CreelAs(another, "", "run", "--rm", "--agent", "one", "-v", dir+":/w", "--", "/bin/true"); code != 125 ||
		!strings.Contains(errOut, "a sandbox of another user's") || strings.Contains(errOut, holder) || strings.Contains(errOut, "holder") {
		t.Errorf("another user: %d, %q", code, errOut)
	}
	// The next daemon knows it, too.
	l.Kill()
	l.Start()
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	try("after a kill", "two", dir+":/w", 125)
	if err := l.Remove(t.Context(), holder, true); err != nil {
		t.Error(err)
	}
	try("at once after its removal", "two", dir+":/w", 0)
}

// TestSharedDirectoryRace: of many agents that want one directory at one time
// exactly one gets it, and nothing is left of the others.
func TestSharedDirectoryRace(t *testing.T) {
	l := forUsers(t)
	dir := workspace(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := 0
	for i := range 6 {
		wg.Go(func() {
			d := []string{dir, filepath.Join(dir, "src")}[i%2]
			_, errOut, code := l.CreelAs(caller, "", "run", "-d", "--agent", fmt.Sprintf("a%d", i), "-v", d+":/w")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case code == 0:
				got++
			case code != 125 || !strings.Contains(errOut, "is writable in sandbox a") || !strings.Contains(errOut, "[[share]] path = "):
				t.Errorf("agent a%d: %d, %q", i, code, errOut)
			}
		})
	}
	wg.Wait()
	if got != 1 {
		t.Errorf("%d agents can write it", got)
	}
}
