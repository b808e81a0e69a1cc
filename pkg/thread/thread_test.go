package thread_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/thread"

	"golang.org/x/sys/unix"
)

// The tests' own main goroutine holds the main thread, so that every Do of
// TestMain below meets the case of a goroutine on it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	runtime.UnlockOSThread()
	os.Exit(m.Run())
}

func TestDo(t *testing.T) {
	want := errors.New("result")
	if err := thread.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do = %v, want fn's error", err)
	}
	for range 50 {
		if err := thread.Do(func() error {
			if unix.Gettid() == os.Getpid() {
				return errors.New("ran on the main thread, which cannot be thrown away")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDoLeavesNoThread puts threads into other namespaces and looks for any
// that is still there afterwards.
func TestDoLeavesNoThread(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	own, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := thread.Do(func() error { return unix.Unshare(unix.CLONE_NEWUTS) }); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		strays := 0
		links, err := filepath.Glob("/proc/self/task/*/ns/uts")
		if err != nil || len(links) == 0 {
			t.Fatalf("no threads listed: %v", err)
		}
		for _, l := range links {
			if ns, err := os.Readlink(l); err == nil && ns != own {
				strays++
			}
		}
		if strays == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads stayed in another namespace", strays)
		}
		runtime.Gosched()
	}
}

// TestAs: the file system sees the other ids, and nothing is left of root's rights.
func TestAs(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := errors.Join(os.Mkdir(closed, 0o700), os.Mkdir(filepath.Join(dir, "theirs"), 0o755), os.Chown(filepath.Join(dir, "theirs"), 424242, 434343)); err != nil {
		t.Fatal(err)
	}
	theirs, err := os.Open(filepath.Join(dir, "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	root, err := os.Open(closed)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = thread.As(424242, 434343, nil, func() error {
		if err := unix.Mkdirat(int(root.Fd()), "new", 0o755); !errors.Is(err, unix.EACCES) {
			t.Errorf("in a directory of root's: %v", err)
		}
		return unix.Mkdirat(int(theirs.Fd()), "new", 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "theirs", "new"), &st); err != nil || st.Uid != 424242 || st.Gid != 434343 {
		t.Errorf("it is %+v, %v", st, err)
	}
}
