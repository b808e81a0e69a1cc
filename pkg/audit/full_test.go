package audit_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.InMountNamespace(m) }

// smallDisks are file systems of a few MiB.
var smallDisks = map[string]func(t *testing.T, at string){
	"tmpfs": func(t *testing.T, at string) {
		t.Helper()
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=4m"); err != nil {
			t.Fatal(err)
		}
	},
	"ext4": func(t *testing.T, at string) {
		t.Helper()
		image := filepath.Join(t.TempDir(), "image")
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20)); err != nil {
			t.Fatal(err)
		}
		// No reserved blocks: root would be given them.
		for _, line := range [][]string{{"mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image}, {"mount", "-o", "loop", image, at}} {
			if out, err := exec.CommandContext(t.Context(), line[0], line[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", line[0], err, out)
			}
		}
	},
}

// TestFullDisk fills a real file system: new work is refused, stops are
// recorded out of the reserve, also by a daemon that starts on the full disk,
// and with room again all goes on.
func TestFullDisk(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	for name, mount := range smallDisks {
		t.Run(name, func(t *testing.T) {
			at := t.TempDir()
			mount(t, at)
			t.Cleanup(func() {
				if err := unix.Unmount(at, 0); err != nil {
					t.Error(err)
				}
			})
			dir := filepath.Join(at, "audit")
			o := options(dir)
			o.Reserve = 256 << 10
			l := open(t, o)
			commit(t, l, 3)
			ballast := filepath.Join(at, "ballast")
			fillUp(t, ballast)

			var down *audit.DownError
			acked := 3
			for {
				err := l.Commit(t.Context(), entry(acked))
				if err == nil {
					if acked++; acked > 2000 {
						t.Fatal("a full disk takes everything")
					}
					continue
				}
				if !errors.As(err, &down) || !down.Full {
					t.Fatalf("Commit error = %v, want a *DownError of a full disk", err)
				}
				break
			}
			for i := range 50 {
				if err := l.Keep(t.Context(), named("stop")); err != nil {
					t.Fatalf("stop %d: %v", i, err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, o) // a start on the full disk
			if err := l.Commit(t.Context(), entry(0)); !errors.As(err, &down) {
				t.Fatalf("Commit after a start error = %v, want a *DownError", err)
			}
			for i := range 50 {
				if err := l.Keep(t.Context(), named("stop")); err != nil {
					t.Fatalf("stop %d after a start: %v", i, err)
				}
			}
			mustOK(t, verify(t, dir, l.HeadLine()))
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			commit(t, l, 3)
			mustOK(t, verify(t, dir, l.HeadLine()))
			b := text(t, dir)
			if n := strings.Count(string(b), `"op":"stop"`); n != 100 {
				t.Errorf("%d stops are recorded, want 100", n)
			}
			if n := bytes.Count(b, []byte(`"op":"op-`)); n != acked+3 {
				t.Errorf("%d records are there, want the %d that were acknowledged", n, acked+3)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// fillUp leaves no byte.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := bytes.Repeat([]byte{1}, 4096)
	for {
		if _, err := f.Write(b); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestKilled kills a writer again and again and holds that every record that
// it had been told of is there, and that the log is whole.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("CREEL_TEST_AUDIT_DIR"); dir != "" {
		l, err := audit.Open(options(dir))
		if err != nil {
			t.Fatal(err)
		}
		for { // until it is killed
			if err := l.Commit(context.Background(), named("k")); err != nil { //nolint:usetesting // it has no end
				t.Fatal(err)
			}
			if _, err := os.Stdout.WriteString("+\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := filepath.Join(t.TempDir(), "audit")
	acked := 0
	for round := range 6 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), kerneltest.Child, "CREEL_TEST_AUDIT_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		b, n := make([]byte, 4096), 0
		for n <= 2*(5+round*7) {
			m, err := out.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			n += m
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for { // what it said before it died
			m, err := out.Read(b)
			n += m
			if err != nil {
				break
			}
		}
		_ = cmd.Wait()
		acked += n / 2
		l := open(t, options(dir))
		r := verify(t, dir, l.HeadLine())
		mustOK(t, r)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := bytes.Count(text(t, dir), []byte(`"op":"k"`)); n < acked || n > acked+6 {
		t.Errorf("%d records, of which %d were acknowledged", n, acked)
	}
}
