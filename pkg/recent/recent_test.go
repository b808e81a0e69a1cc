package recent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/recent"
)

// The mounts that tests make go with their namespace.
func TestMain(m *testing.M) { kerneltest.InMountNamespace(m) }

// tree makes a directory with files in it, and returns it with a moment after
// all of them.
func tree(t *testing.T, names ...string) (string, time.Time) {
	t.Helper()
	top := t.TempDir()
	for _, name := range names {
		write(t, filepath.Join(top, name))
	}
	return top, moment()
}

// moment is after all that has happened: the clock of file systems, which from
// Linux 6.13 on stamps some changes finer than it goes, has gone on.
func moment() time.Time {
	was := time.Now()
	for {
		if now := recent.Now(); now.After(was) {
			return now
		}
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("text\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, o recent.Options) []string {
	t.Helper()
	changes, complete, err := recent.List(t.Context(), o)
	if err != nil || !complete {
		t.Fatalf("List: complete %t, %v", complete, err)
	}
	out := []string{}
	for _, c := range changes {
		out = append(out, fmt.Sprintf("%s %d%s", c.Kind, c.Tree, c.Path))
	}
	return out
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestList(t *testing.T) {
	top, since := tree(t, "kept/f", "kept/touched", "written", "mode", "from/moved", "old/x/y", "gone/f", "linked", "quiet/f")
	other, _ := tree(t, "f")
	since = maxTime(since, moment())
	at := func(name string) string { return filepath.Join(top, name) }
	o := recent.Options{Trees: []string{top, other}, Since: since}
	if got := list(t, o); len(got) != 0 {
		t.Errorf("nothing was done, and it lists %q", got)
	}
	write(t, at("new/deep/file"))
	do(t,
		os.Symlink("/etc", at("new/link")),
		unix.Mkfifo(at("new/fifo"), 0o600),
		os.WriteFile(at("written"), []byte("more than before\n"), 0o644),
		os.Chmod(at("mode"), 0o600),
		os.Rename(at("from/moved"), at("kept/moved")),
		os.Rename(at("old"), at("renamed")),
		os.Remove(at("gone/f")),
		os.Link(at("linked"), at("new/linked")),
		os.WriteFile(filepath.Join(other, "f"), nil, 0o644),
		// Nobody but the host's clock makes a change older.
		os.Chtimes(at("kept/touched"), time.Unix(1, 0), time.Unix(1, 0)),
	)
	want := []string{
		"C 0", "C 0/from", "C 0/gone", "C 0/kept", "C 0/kept/moved", "C 0/kept/touched", "C 0/linked", "C 0/mode",
		"A 0/new", "A 0/new/deep", "A 0/new/deep/file", "A 0/new/fifo", "A 0/new/link", "C 0/new/linked",
		"C 0/renamed", "C 0/written", "C 1/f",
	}
	if diff := cmp.Diff(want, list(t, o)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	changes, _, err := recent.List(t.Context(), o)
	do(t, err)
	for _, c := range changes {
		if c.Tree == 0 && c.Path == "/written" && (c.Size != 17 || c.Mode != unix.S_IFREG|0o644) || c.Path == "/new/link" && c.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%+v", c)
		}
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// TestMounted: what is mounted in a tree is not the tree's, not even its top.
func TestMounted(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	top, _ := tree(t, "at/f")
	other, since := tree(t, "f")
	do(t, unix.Mount(other, filepath.Join(top, "at"), "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(top, "at"), unix.MNT_DETACH) })
	write(t, filepath.Join(other, "new"))
	if got := list(t, recent.Options{Trees: []string{top, other}, Since: since}); !slices.Equal(got, []string{"C 1", "A 1/new"}) {
		t.Errorf("it lists %q", got)
	}
}

// TestBounds: what can be made without end is bounded, and said to be.
func TestBounds(t *testing.T) {
	top, since := tree(t)
	for i := range 5 {
		write(t, filepath.Join(top, fmt.Sprint("f", i)))
	}
	for limit, want := range map[int]bool{1: false, 5: false, 6: true, 7: true} { // the directory is one
		changes, complete, err := recent.List(t.Context(), recent.Options{Trees: []string{top}, Since: since, Limit: limit})
		if err != nil || complete != want || len(changes) != min(limit, 6) {
			t.Errorf("at most %d: %d, complete %t, %v", limit, len(changes), complete, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, complete, err := recent.List(ctx, recent.Options{Trees: []string{top}, Since: since}); err != nil || complete {
		t.Errorf("no time left: complete %t, %v", complete, err)
	}
	deep, err := os.Open(top)
	do(t, err)
	for range 300 {
		do(t, unix.Mkdirat(int(deep.Fd()), strings.Repeat("d", 200), 0o755))
		fd, err := unix.Openat(int(deep.Fd()), strings.Repeat("d", 200), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		do(t, err, deep.Close())
		deep = os.NewFile(uintptr(fd), "deep")
	}
	do(t, deep.Close())
	changes, complete, err := recent.List(t.Context(), recent.Options{Trees: []string{top}, Since: since})
	if err != nil || complete || len(changes) < 100 {
		t.Errorf("deep: %d, complete %t, %v", len(changes), complete, err)
	}
}

// TestRace: directories become links out and back while they are walked, and
// nothing from outside is ever listed.
func TestRace(t *testing.T) {
	outside, _ := tree(t, "secret/a", "secret/b")
	top, since := tree(t, "d/e/f", "d/g/h")
	write(t, filepath.Join(outside, "secret/new"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			a, b := filepath.Join(top, "d"), filepath.Join(top, "away")
			if os.Rename(a, b) == nil {
				_ = os.Symlink(filepath.Join(outside, "secret"), a)
				_ = os.Remove(a)
				_ = os.Rename(b, a)
			}
		}
	})
	for range 500 {
		changes, _, err := recent.List(t.Context(), recent.Options{Trees: []string{top}, Since: since})
		if err != nil {
			t.Errorf("List: %v", err)
			break
		}
		for _, c := range changes {
			if strings.HasSuffix(c.Path, "/new") || strings.HasSuffix(c.Path, "/a") {
				t.Errorf("from outside: %+v", c)
			}
		}
	}
	close(stop)
	wg.Wait()
}

var needLoop = kerneltest.Need{Name: "loop", Probe: func() error {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return err
	}
	_, err := exec.LookPath("mkfs.ext4")
	return err
}}

// TestWholeSeconds: where stamps are of whole seconds, what was changed in the
// second of the moment is listed, and is not said to be new.
func TestWholeSeconds(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, needLoop)
	top := t.TempDir()
	image := filepath.Join(t.TempDir(), "image")
	do(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", "-I", "128", image}, {"mount", "-o", "loop", image, top}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v, %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(top, 0); err != nil {
			t.Error(err)
		}
	})
	since := recent.Now()
	write(t, filepath.Join(top, "new"))
	if got := list(t, recent.Options{Trees: []string{top}, Since: since}); !slices.Contains(got, "C 0/new") && !slices.Contains(got, "A 0/new") {
		t.Errorf("not listed: %q", got)
	}
	var st unix.Statx_t
	do(t, unix.Statx(unix.AT_FDCWD, filepath.Join(top, "new"), 0, unix.STATX_CTIME, &st))
	if st.Ctime.Nsec != 0 {
		t.Errorf("a stamp of %d ns: this tests nothing", st.Ctime.Nsec)
	}
}
