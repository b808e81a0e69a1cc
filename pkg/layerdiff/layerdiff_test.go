package layerdiff_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/layerdiff"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// overlay is two layers and a writable one, mounted.
type overlay struct {
	merged string
	opts   layerdiff.Options
}

func mount(t *testing.T, fill ...func(dir string)) *overlay {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root)
	// A tmpfs: the layers' own file system may be an overlay itself.
	top := t.TempDir()
	if err := unix.Mount("creel-test", top, "tmpfs", 0, "size=64M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(top, unix.MNT_DETACH) })
	o := &overlay{merged: filepath.Join(top, "merged")}
	o.opts.Upper = filepath.Join(top, "upper")
	for _, d := range []string{"merged", "upper", "work"} {
		must(t, os.Mkdir(filepath.Join(top, d), 0o755))
	}
	for i, f := range fill {
		// Each layer is written through an overlay of those before it, so that
		// its whiteouts are the kernel's own.
		dir := filepath.Join(top, fmt.Sprint("layer", i))
		must(t, os.Mkdir(dir, 0o755))
		if i == 0 {
			f(dir)
		} else {
			work := dir + "-work"
			must(t, os.Mkdir(work, 0o755))
			mountAt(t, o.merged, o.opts.Lower, dir, work)
			f(o.merged)
			must(t, unix.Unmount(o.merged, 0))
		}
		o.opts.Lower = append([]string{dir}, o.opts.Lower...)
	}
	mountAt(t, o.merged, o.opts.Lower, o.opts.Upper, filepath.Join(top, "work"))
	t.Cleanup(func() { _ = unix.Unmount(o.merged, unix.MNT_DETACH) })
	return o
}

func mountAt(t *testing.T, at string, lower []string, upper, work string) {
	t.Helper()
	data := "index=off,lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work
	must(t, unix.Mount("overlay", at, "overlay", 0, data))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// list is the changes, as "A /path".
func (o *overlay) list(t *testing.T) []string {
	t.Helper()
	changes, complete, err := layerdiff.List(t.Context(), o.opts)
	if err != nil || !complete {
		t.Fatalf("List: complete %t, %v", complete, err)
	}
	out := []string{}
	for _, c := range changes {
		out = append(out, c.Kind+" "+c.Path)
	}
	return out
}

func write(t *testing.T, path string) {
	t.Helper()
	must(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(path), 0o644)))
}

func TestList(t *testing.T) {
	o := mount(t, func(dir string) {
		for _, p := range []string{"etc/passwd", "etc/group", "usr/bin/sh", "usr/lib/a/b", "usr/lib/c", "gone/below", "opt/x/y", "opt/x/z", "quiet/f", "var/f"} {
			write(t, filepath.Join(dir, p))
		}
	}, func(dir string) {
		must(t, os.RemoveAll(filepath.Join(dir, "gone")))
		must(t, os.RemoveAll(filepath.Join(dir, "opt/x")))
		write(t, filepath.Join(dir, "opt/x/new")) // opaque in the image
	})
	m := func(p string) string { return filepath.Join(o.merged, p) }
	if got := o.list(t); len(got) != 0 {
		t.Errorf("nothing was done, and it lists %q", got)
	}
	write(t, m("etc/passwd"))
	must(t, os.Remove(m("etc/group")))
	write(t, m("new/deep/file"))
	must(t, os.Symlink("/etc", m("new/link")))
	must(t, os.RemoveAll(m("usr/lib")))
	write(t, m("usr/lib/c"))         // replaced: what else was there is deleted
	write(t, m("opt/x/y"))           // hidden by the image itself, so new
	write(t, m("gone"))              // as a file; the image has none
	write(t, m("quiet/g"))           // and taken back
	must(t, os.Remove(m("quiet/g"))) // so nothing changed
	must(t, os.RemoveAll(m("var")))
	write(t, m("var")) // a file where a directory was
	must(t, os.Chmod(m("usr/bin"), 0o700))
	want := []string{
		"C /etc", "D /etc/group", "C /etc/passwd", "A /gone", "A /new", "A /new/deep", "A /new/deep/file", "A /new/link",
		"C /opt", "C /opt/x", "A /opt/x/y", "C /usr", "C /usr/bin", "C /usr/lib", "D /usr/lib/a", "C /usr/lib/c", "C /var",
	}
	if diff := cmp.Diff(want, o.list(t)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	changes, _, err := layerdiff.List(t.Context(), o.opts)
	must(t, err)
	for _, c := range changes {
		if c.Path == "/etc/passwd" && (c.Size != int64(len(m("etc/passwd"))) || c.Mode != unix.S_IFREG|0o644) {
			t.Errorf("%+v", c)
		}
	}
}

// TestRandom does random things in an overlay and holds the list against what
// a walk of both trees finds.
func TestRandom(t *testing.T) {
	paths := []string{"a", "b", "a/c", "a/d", "b/c", "a/c/e", "a/c/f", "b/c/g", "a/c/e/h"}
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			act := func(n int) func(string) {
				return func(dir string) {
					for range n {
						p := filepath.Join(dir, paths[r.IntN(len(paths))])
						switch r.IntN(5) { // what cannot be done is not done
						case 0, 1:
							_ = os.WriteFile(p, []byte(fmt.Sprint(r.Int())), 0o644)
						case 2, 3:
							_ = os.Mkdir(p, 0o755)
						case 4:
							_ = os.RemoveAll(p)
						}
					}
				}
			}
			o := mount(t, act(20), act(12))
			was := tree(t, o.merged)
			act(12)(o.merged)
			is := tree(t, o.merged)
			want := map[string]string{}
			for p := range was {
				_, still := is[p]
				// With its directory, which is listed or is none any more.
				if parent, ok := is[filepath.Dir(p)]; !still && ok && parent == "dir" {
					want[p] = "D"
				}
			}
			for p, now := range is {
				if before, ok := was[p]; !ok {
					want[p] = "A"
				} else if before != now {
					want[p] = "C"
				}
			}
			got := map[string]string{}
			for _, line := range o.list(t) {
				kind, p, _ := strings.Cut(line, " ")
				got[p] = kind
			}
			for p, kind := range want {
				if got[p] != kind {
					t.Errorf("%s: %q, want %q", p, got[p], kind)
				}
				delete(got, p)
			}
			for p, kind := range got {
				// What is listed beside that is a directory on the way.
				if kind != "C" || is[p] != "dir" {
					t.Errorf("%s: %q and nothing was done", p, kind)
				}
			}
		})
	}
}

// tree is what is at each path: "dir", or a file's bytes.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{"/": "dir"}
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel := "/" + strings.TrimPrefix(p, root+"/")
		if d.IsDir() {
			out[rel] = "dir"
			return nil
		}
		b, err := os.ReadFile(p)
		out[rel] = "file " + string(b)
		return err
	}))
	return out
}

// TestBounds: what an agent can make without end makes a list that says it is
// not complete.
func TestBounds(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, dir string)
		most int
	}{
		{"many", func(t *testing.T, dir string) {
			for i := range 300 {
				write(t, filepath.Join(dir, fmt.Sprint(i)))
			}
		}, 100},
		{"deep", func(t *testing.T, dir string) {
			fd, err := unix.Open(dir, unix.O_DIRECTORY, 0)
			must(t, err)
			for range 3000 { // far beyond PATH_MAX
				must(t, unix.Mkdirat(fd, strings.Repeat("d", 200), 0o755))
				next, err := unix.Openat(fd, strings.Repeat("d", 200), unix.O_DIRECTORY, 0)
				must(t, err)
				must(t, unix.Close(fd))
				fd = next
			}
			must(t, unix.Close(fd))
		}, 100},
		{"long names", func(t *testing.T, dir string) {
			for i := range 90 {
				p := filepath.Join(dir, strings.Repeat("x", 250))
				for range 13 {
					p = filepath.Join(p, strings.Repeat("y", 250))
				}
				write(t, filepath.Join(p, fmt.Sprint(i)))
			}
		}, 100},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := mount(t, func(string) {})
			tt.make(t, o.merged)
			o.opts.Limit = 100
			before := descriptors(t)
			changes, complete, err := layerdiff.List(t.Context(), o.opts)
			if err != nil {
				t.Fatal(err)
			}
			sum := 0
			for _, c := range changes {
				sum += len(c.Path)
			}
			if len(changes) > tt.most || sum > 1<<20 || complete && tt.name != "long names" {
				t.Errorf("%d changes, %d bytes of paths, complete %t", len(changes), sum, complete)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// TestRace: while the agent turns directories into links out and back, nothing
// outside is listed and nothing fails.
func TestRace(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "secret"))
	o := mount(t, func(dir string) { write(t, filepath.Join(dir, "a/b/f")) })
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, name := range []string{"a", "n"} {
		wg.Go(func() {
			dir := filepath.Join(o.merged, name)
			for {
				select {
				case <-stop:
					return
				default:
				}
				_ = os.MkdirAll(filepath.Join(dir, "b"), 0o755)
				_ = os.WriteFile(filepath.Join(dir, "b/g"), nil, 0o644)
				_ = os.RemoveAll(dir)
				_ = os.Symlink(outside, dir)
				_ = os.Remove(dir)
				_ = unix.Mkfifo(dir, 0o644) // opening it would hang
				_ = os.Remove(dir)
			}
		})
	}
	defer wg.Wait()
	defer close(stop)
	for range 1000 {
		changes, _, err := layerdiff.List(t.Context(), o.opts)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(changes, func(c layerdiff.Change) bool { return strings.Contains(c.Path, "secret") }) {
			t.Fatalf("%+v", changes)
		}
	}
}

func TestEnds(t *testing.T) {
	o := mount(t, func(string) {})
	write(t, filepath.Join(o.merged, "f"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := layerdiff.List(ctx, o.opts); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	o.opts.Upper += "-none"
	if _, _, err := layerdiff.List(t.Context(), o.opts); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no layer: %v", err)
	}
}
