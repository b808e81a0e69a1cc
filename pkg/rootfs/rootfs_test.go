package rootfs_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/rootfs"

	"golang.org/x/sys/unix"
)

const hostUID = 0x78000000

var needLoop = kerneltest.Need{Name: "loop", Probe: func() error {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return err
	}
	_, err := exec.LookPath("mkfs.ext4")
	return err
}}

// The mounts that tests make go with their namespace.
func TestMain(m *testing.M) { kerneltest.InMountNamespace(m) }

func newMaker(tb testing.TB) (*rootfs.Maker, string) {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root)
	dir := tb.TempDir()
	root := filepath.Join(dir, "rootfs")
	// By a symlink, as /var/run is.
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		tb.Fatal(err)
	}
	m, err := rootfs.New(filepath.Join(dir, "link", "rootfs"), "")
	if err != nil {
		tb.Fatal(err)
	}
	return m, root
}

// loops are the loop devices of files under dir.
func loops(tb testing.TB, dir string) []string {
	tb.Helper()
	var out []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			out = append(out, f)
		}
	}
	return out
}

func mounts(tb testing.TB, dir string) []string {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " "+dir+"/") {
			out = append(out, line)
		}
	}
	return out
}

// nothingLeft waits, since the kernel frees a loop device after the last close.
func nothingLeft(tb testing.TB, root, id string) {
	tb.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for len(loops(tb, root)) > 0 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond) // a kernel thread frees it; nothing to wait on
	}
	if l := loops(tb, root); len(l) > 0 {
		tb.Errorf("loop devices left: %q", l)
	}
	if m := mounts(tb, root); len(m) > 0 {
		tb.Errorf("mounts left: %q", m)
	}
	if _, err := os.Lstat(filepath.Join(root, id)); !errors.Is(err, os.ErrNotExist) {
		tb.Errorf("directory left: %v", err)
	}
}

// fill writes to path until it fails, and returns how much was written.
func fill(path string, most int64) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	for i := range buf {
		buf[i] = byte(i)
	}
	var n int64
	for n < most {
		k, err := f.Write(buf)
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, f.Sync()
}

func TestLimits(t *testing.T) {
	for _, k := range []struct {
		kind          string
		limit, memory api.Size
	}{
		{rootfs.KindTmpfs, 8 << 20, 32 << 20},
		{rootfs.KindExt4, 9 << 20, 32 << 20},
		{rootfs.KindExt4, 64 << 20, 32 << 20},
	} {
		t.Run(k.kind+"-"+k.limit.String(), func(t *testing.T) {
			if k.kind == rootfs.KindExt4 {
				kerneltest.Require(t, needLoop)
			}
			m, root := newMaker(t)
			const inodes = 1200
			l, undo, err := m.Prepare(t.Context(), "abc", rootfs.Options{Limit: k.limit, Memory: k.memory, Inodes: inodes, HostUID: hostUID, Home: "/home/agent", HomeUID: hostUID + 1000})
			if err != nil {
				t.Fatal(err)
			}
			defer undo(t.Context())
			for dir, uid := range map[string]uint32{"": hostUID, "home": hostUID, "home/agent": hostUID + 1000} {
				fi, err := os.Stat(filepath.Join(l.Upper, dir))
				if err != nil {
					t.Fatal(err)
				}
				if st := fi.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != uid || fi.Mode() != os.ModeDir|0o755 {
					t.Errorf("/%s is %v of %d:%d, want %d", dir, fi.Mode(), st.Uid, st.Gid, uid)
				}
			}
			if l.Kind != k.kind {
				t.Errorf("Kind = %q, want %q", l.Kind, k.kind)
			}
			checkMount(t, l)

			// dd of the limit and 1 MiB more ends in ENOSPC, having got most of it.
			n, err := fill(filepath.Join(l.Upper, "big"), int64(k.limit)+1<<20)
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("writing limit + 1 MiB = %v after %d bytes, want ENOSPC", err, n)
			}
			if n > int64(k.limit) || n < int64(k.limit)*9/10 {
				t.Errorf("%d bytes fit, limit %d", n, k.limit)
			}
			if st, err := os.Stat(filepath.Join(root, "abc", "image")); err == nil && st.Sys().(*syscall.Stat_t).Blocks*512 > int64(k.limit)+64<<10 {
				t.Errorf("the image takes %d bytes of the host, limit %d", st.Sys().(*syscall.Stat_t).Blocks*512, k.limit)
			}
			if err := os.Remove(filepath.Join(l.Upper, "big")); err != nil {
				t.Fatal(err)
			}

			made := 0
			for ; made < 3*inodes; made++ {
				if err = os.Symlink("x", filepath.Join(l.Upper, fmt.Sprint(made))); err != nil {
					break
				}
			}
			// mkfs rounds up to whole blocks of inodes, per group.
			if !errors.Is(err, unix.ENOSPC) || made < inodes-20 || made > inodes+64 {
				t.Errorf("%d files could be made, then %v; want about %d, then ENOSPC", made, err, inodes)
			}

			for range 2 {
				if err := undo(t.Context()); err != nil {
					t.Errorf("undo: %v", err)
				}
			}
			nothingLeft(t, root, "abc")
		})
	}
}

func checkMount(t *testing.T, l rootfs.Layer) {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(l.Upper, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %#x lack nosuid or nodev", fs.Flags)
	}
	for path, want := range map[string][2]uint32{l.Upper: {hostUID, 0o755}, l.Work: {0, 0o711}} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != want[0] || st.Gid != want[0] || st.Mode&0o7777 != want[1] {
			t.Errorf("%s is %d:%d %o, want %d %o", path, st.Uid, st.Gid, st.Mode&0o7777, want[0], want[1])
		}
	}
	if line := mounts(t, filepath.Dir(filepath.Dir(l.Upper))); len(line) != 1 || strings.Contains(line[0], "shared:") {
		t.Errorf("mount table: %q", line)
	}
}

// TestChoice is the rule of the kinds, and what is refused.
func TestChoice(t *testing.T) {
	kerneltest.Require(t, needLoop)
	m, root := newMaker(t)
	for i, k := range []struct {
		limit, memory api.Size
		kind          string
	}{
		{8 << 20, 32 << 20, rootfs.KindTmpfs},
		{8<<20 + 5, 32 << 20, rootfs.KindTmpfs}, // rounded down first
		{9 << 20, 32 << 20, rootfs.KindExt4},
		{24 << 20, 0, rootfs.KindExt4},
	} {
		l, undo, err := m.Prepare(t.Context(), fmt.Sprintf("s%d", i), rootfs.Options{Limit: k.limit, Memory: k.memory, HostUID: hostUID})
		if err != nil {
			t.Fatal(err)
		}
		if l.Kind != k.kind {
			t.Errorf("limit %d of memory %d is %s, want %s", k.limit, k.memory, l.Kind, k.kind)
		}
		undo(t.Context())
	}
	if _, _, err := m.Prepare(t.Context(), "small", rootfs.Options{Limit: 3 << 20, Memory: 1 << 30}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a tiny limit = %v, want invalid_argument", err)
	}
	for _, id := range []string{"", "..", "a/b", "templates", "A"} {
		if _, _, err := m.Prepare(t.Context(), id, rootfs.Options{Limit: 8 << 20, Memory: 1 << 30}); err == nil {
			t.Errorf("id %q was accepted", id)
		}
		if err := m.Remove(id); err == nil {
			t.Errorf("Remove(%q) was accepted", id)
		}
	}
	if ids, err := m.List(); err != nil || len(ids) > 0 {
		t.Errorf("List = %q, %v; want none", ids, err)
	}
	nothingLeft(t, root, "s0")
}

// TestOverlay: the layer serves as upper directory, and root of the sandbox's
// range may write its root.
func TestOverlay(t *testing.T) {
	kerneltest.Require(t, needLoop)
	for _, limit := range []api.Size{8 << 20, 64 << 20} {
		m, _ := newMaker(t)
		l, undo, err := m.Prepare(t.Context(), "abc", rootfs.Options{Limit: limit, Memory: 32 << 20, HostUID: hostUID})
		if err != nil {
			t.Fatal(err)
		}
		lower, merged := t.TempDir(), t.TempDir()
		if err := os.WriteFile(filepath.Join(lower, "f"), []byte("lower"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+l.Upper+",workdir="+l.Work); err != nil {
			t.Fatalf("%s: %v", l.Kind, err)
		}
		if err := os.WriteFile(filepath.Join(merged, "f"), []byte("upper"), 0o644); err != nil {
			t.Errorf("%s: copy up: %v", l.Kind, err)
		}
		if err := os.Remove(filepath.Join(merged, "f")); err != nil {
			t.Errorf("%s: whiteout: %v", l.Kind, err)
		}
		if fi, err := os.Stat(merged); err != nil || fi.Sys().(*syscall.Stat_t).Uid != hostUID {
			t.Errorf("%s: the root belongs to another: %+v, %v", l.Kind, fi, err)
		}
		// Undone while the overlay still holds it, as after a crash of the order.
		if err := undo(t.Context()); err != nil {
			t.Errorf("%s: undo under a mounted overlay: %v", l.Kind, err)
		}
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	}
}

// TestTemplates: the second image of a size needs no mkfs.
func TestTemplates(t *testing.T) {
	kerneltest.Require(t, needLoop)
	m, root := newMaker(t)
	o := rootfs.Options{Limit: 16 << 20, Memory: 16 << 20, HostUID: hostUID}
	_, undo, err := m.Prepare(t.Context(), "one", o)
	if err != nil {
		t.Fatal(err)
	}
	defer undo(t.Context())
	again, err := rootfs.New(root, "/bin/false")
	if err != nil {
		t.Fatal(err)
	}
	_, undo2, err := again.Prepare(t.Context(), "two", o)
	if err != nil {
		t.Fatalf("from a template: %v", err)
	}
	defer undo2(t.Context())
	if ids, err := m.List(); err != nil || strings.Join(ids, " ") != "one two" {
		t.Errorf("List = %q, %v", ids, err)
	}
	o.Limit = 17 << 20
	if _, _, err := again.Prepare(t.Context(), "three", o); err == nil {
		t.Error("a failed mkfs was not noticed")
	}
	nothing := func() bool { _, err := os.Lstat(filepath.Join(root, "three")); return errors.Is(err, os.ErrNotExist) }
	if !nothing() {
		t.Error("a failed Prepare left its directory")
	}
	for i := range 40 {
		o.Inodes = int64(1024 + 16*i)
		_, undo, err := m.Prepare(t.Context(), "many", o)
		if err != nil {
			t.Fatal(err)
		}
		if err := undo(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(root, "templates")); err != nil || len(entries) > 16 {
		t.Errorf("%d templates are kept, %v", len(entries), err)
	}
}

// TestCrash kills a process that has made layers; another daemon removes them.
func TestCrash(t *testing.T) {
	kerneltest.Require(t, needLoop)
	m, root := newMaker(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperCrash$")
	cmd.Env = append(os.Environ(), "CREEL_TEST_ROOTFS="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("helper said %q, %v", line, err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	ids, err := m.List()
	if err != nil || len(ids) != 2 {
		t.Fatalf("List = %q, %v; want 2", ids, err)
	}
	if l := loops(t, root); len(l) != 1 {
		t.Errorf("%d loop devices before, want 1", len(l))
	}
	for _, id := range ids {
		for range 2 {
			if err := m.Remove(id); err != nil {
				t.Error(err)
			}
		}
		nothingLeft(t, filepath.Join(root, id), "")
	}
	nothingLeft(t, root, "ext")
}

// TestHelperCrash is the process that TestCrash kills. It shares its mount
// namespace, as a daemon that was started again does.
func TestHelperCrash(t *testing.T) {
	root := os.Getenv("CREEL_TEST_ROOTFS")
	if root == "" {
		t.Skip("only run by TestCrash")
	}
	m, err := rootfs.New(root, "")
	if err != nil {
		t.Fatal(err)
	}
	for id, limit := range map[string]api.Size{"tmp": 8 << 20, "ext": 64 << 20} {
		if _, _, err := m.Prepare(t.Context(), id, rootfs.Options{Limit: limit, Memory: 32 << 20, HostUID: hostUID}); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	select {}
}

func BenchmarkPrepare(b *testing.B) {
	for _, limit := range []api.Size{64 << 20, 2 << 30} {
		b.Run(limit.String(), func(b *testing.B) {
			kerneltest.Require(b, needLoop)
			m, _ := newMaker(b)
			for b.Loop() {
				_, undo, err := m.Prepare(b.Context(), "bench", rootfs.Options{Limit: limit, Memory: 512 << 20, HostUID: hostUID})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := undo(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
