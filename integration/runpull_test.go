package integration_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestRunPull is what --pull does, and what is pulled without it.
func TestRunPull(t *testing.T) {
	l := pullLab(t)
	r := newRegistry(t)
	r.push(tinyWithFile(t, "one\n"))
	auth := r.authFile(pullSecret)
	nobody := &syscall.Credential{Uid: stranger, Gid: stranger}
	run := func(code int, says string, args ...string) string {
		t.Helper()
		out, errOut, got := l.CreelAs(nobody, "", append([]string{"run", "--rm", "--authfile", auth}, args...)...)
		if got != code || !strings.Contains(errOut, says) || strings.Contains(out+errOut, pullSecret) {
			t.Errorf("run %q: exit %d, want %d with %q: %s%s", args, got, code, says, out, errOut)
		}
		return out
	}
	asked := func(want bool) {
		t.Helper()
		if n, _ := r.counts(); n > 0 != want {
			t.Errorf("the registry was asked %d times, want any: %v", n, want)
		}
	}
	ref := r.host + "/team/tools:1"
	cat := []string{"--", "/bin/cat", "/etc/pulled"}
	image := func(pull, ref string) []string {
		return append([]string{"--pull", pull, "--image", ref}, cat...)
	}

	run(125, "is not here", image("never", ref)...)
	asked(false)
	for _, short := range []string{"tools:1", "team/tools", "localhost/tools:1"} {
		run(125, "is not here", image("missing", short)...)
		run(125, "does not name its registry", image("always", short)...)
	}
	run(125, "needs an image", "--pull", "always", "--", "/bin/true")
	run(125, "missing, always, never", image("sometimes", ref)...)
	run(125, "has no "+r.host+"/team/tools:2", "--image", r.host+"/team/tools:2", "--", "/bin/true")
	r.counts()

	if out := run(0, "", append([]string{"--image", ref}, cat...)...); out != "one\n" {
		t.Errorf("without --pull: %q", out)
	}
	asked(true)
	r.push(tinyWithFile(t, "two\n"))
	for _, policy := range []string{"missing", "never"} {
		if out := run(0, "", image(policy, ref)...); out != "one\n" {
			t.Errorf("%s, when the tag has moved: %q", policy, out)
		}
		asked(false)
	}
	if out := run(0, "", image("always", ref)...); out != "two\n" {
		t.Errorf("always, when the tag has moved: %q", out)
	}
	if _, blobs := r.counts(); blobs != 2 {
		t.Errorf("always, when it has moved: %d blobs; want 2", blobs)
	}
	if out := run(0, "", image("always", ref)...); out != "two\n" {
		t.Errorf("always, again: %q", out)
	}
	if _, blobs := r.counts(); blobs != 1 {
		t.Errorf("always, when it has not moved: %d blobs; want the configuration", blobs)
	}

	// The box's image of a name is what the name means, pulled or not.
	l.Import(ref, lab.TinyWith(t, nil, func(w *tar.Writer) {
		lab.Add(t, w, &tar.Header{Typeflag: tar.TypeReg, Name: "etc/pulled", Mode: 0o644}, []byte("box\n"))
	}))
	if out := run(0, "", image("missing", ref)...); out != "box\n" {
		t.Errorf("the box's by that name: %q", out)
	}
	run(125, "the box has an image", image("always", ref)...)
	asked(false)

	// What is missing is something else than the image.
	run(125, "", "--agent", "a", "-v", "nothing:/data", "--image", ref, "--", "/bin/true")
	asked(false)

	// The registry is gone; so is creel's part.
	run(125, "creel", "--image", "127.0.0.1:1/x:1", "--", "/bin/true")
	if err := os.Remove(filepath.Join(l.Dir, "creel-pull")); err != nil {
		t.Fatal(err)
	}
	run(125, "install creel again", "--image", r.host+"/team/more:1", "--", "/bin/true")
	if len(r.seen) > 0 {
		t.Errorf("the password is on a command line: %q", r.seen)
	}
	noSecret(t, l)
}

// TestPullInterrupted: a pull that is ended, by itself or with the run that
// waits for it, leaves neither an image nor a process.
func TestPullInterrupted(t *testing.T) {
	l := pullLab(t)
	r := newRegistry(t)
	_, _, layer := r.push(tinyWithFile(t, "one\n"))
	r.stuck = "/blobs/" + layer
	auth, ref := r.authFile(pullSecret), r.host+"/team/tools:1"
	kept := len(storedBlobs(t, l))
	for _, tt := range []struct {
		sig      syscall.Signal
		code     int
		terminal bool
		shows    string
		args     []string
	}{
		{syscall.SIGINT, 1, true, "[                              ] 0%", []string{"image", "pull", "--authfile", auth, ref}},
		{syscall.SIGTERM, 125, false, "creel: pulling " + ref + ": 0%", []string{"run", "--rm", "--authfile", auth, "--image", ref, "--", "/bin/true"}},
	} {
		cmd := l.Command(nil, tt.args...)
		out, in := outputOf(t, tt.terminal)
		cmd.Stderr = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		shown := readUntil(t, out, tt.shows)
		<-r.reached
		if err := cmd.Process.Signal(tt.sig); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(out) // a terminal that nobody has ends in EIO
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(rest), "interrupted") {
			t.Errorf("%q: exit %d, want %d: %q", tt.args, code, tt.code, shown+string(rest))
		}
		l.Eventually("nothing of it is left", 20*time.Second, func() error {
			if n := len(storedBlobs(t, l)); n != kept {
				return fmt.Errorf("%d blobs in the store, %d before", n, kept)
			}
			lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, p := range lines {
				if b, _ := os.ReadFile(p); bytes.HasPrefix(b, []byte(filepath.Join(l.Dir, "creel-pull"))) {
					return fmt.Errorf("%s: %q", p, b)
				}
			}
			return nil
		})
		if _, err := l.Image(t.Context(), ref); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("%q: there is an image: %v", tt.args, err)
		}
	}
}

// outputOf is what a program writes on a terminal, or to a pipe.
func outputOf(t *testing.T, onTerminal bool) (out, in *os.File) {
	t.Helper()
	if onTerminal {
		return terminal(t)
	}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	return out, in
}

// readUntil reads until a text has come.
func readUntil(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	var got strings.Builder
	for b := make([]byte, 4096); !strings.Contains(got.String(), want); {
		n, err := r.Read(b)
		got.Write(b[:n])
		if err != nil {
			t.Fatalf("%v, after %q; want %q", err, got.String(), want)
		}
	}
	return got.String()
}
