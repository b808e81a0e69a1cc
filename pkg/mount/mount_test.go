package mount_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/thread"

	"golang.org/x/sys/unix"
)

// The ids of the tests: nobody has them.
const (
	callerUID, callerGID = 424242, 434343
	agentUID, agentGID   = 0x78000000 + 1000, 0x78000000 + 1001
)

var groups = []uint32{454545, 464646}

// The mounts that tests make go with their namespace. A helper process stays
// where its test put it.
func TestMain(m *testing.M) { kerneltest.InMountNamespace(m) }

// world is a daemon's directories and a caller's.
type world struct {
	run, state string // creel's own
	work       string // the caller's, mode 0700
	stager     *mount.Stager
	userns     *os.File
}

func newWorld(tb testing.TB) world {
	tb.Helper()
	kerneltest.Require(tb, kerneltest.Root, kerneltest.IDMap)
	dir := tb.TempDir()
	w := world{run: filepath.Join(dir, "run"), state: filepath.Join(dir, "var", "state"), work: filepath.Join(dir, "home", "work")}
	for _, d := range []string{filepath.Join(w.run, "mnt"), filepath.Join(w.state, "logs"), w.work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	own(tb, w.work)
	chmodUp(tb, w.work)
	if err := os.Chmod(w.work, 0o700); err != nil {
		tb.Fatal(err)
	}
	w.stager = mount.New(append(mount.HostDoors(), w.run, w.state))
	var err error
	if w.userns, err = idmap.ForCaller(tb.Context(), callerUID, callerGID, agentUID, agentGID, groups); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		w.userns.Close()
		if err := mount.Cleanup(filepath.Join(w.run, "mnt")); err != nil {
			tb.Errorf("clean up: %v", err)
		}
	})
	return w
}

func own(tb testing.TB, path string) {
	tb.Helper()
	if err := os.Chown(path, callerUID, callerGID); err != nil {
		tb.Fatal(err)
	}
}

func (w world) target() string { return filepath.Join(w.run, "mnt", "0") }

func (w world) request(dir *os.File) mount.Request {
	return mount.Request{
		Dir: dir, Target: w.target(), UserNS: w.userns,
		CallerUID: callerUID, CallerGID: callerGID, AgentUID: agentUID, AgentGID: agentGID, Groups: groups,
	}
}

func openDir(tb testing.TB, path string) *os.File {
	tb.Helper()
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

// as runs fn with other ids and no capabilities.
func as(uid, gid int, fn func() error) error {
	return thread.Do(func() error {
		for _, c := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			// Raw, so that only this thread changes.
			if _, _, errno := unix.RawSyscall(c[0], c[1], c[2], c[3]); errno != 0 {
				return errno
			}
		}
		return fn()
	})
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func isMounted(t *testing.T, dir string) bool {
	t.Helper()
	left, err := mount.Leftovers(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(left) > 0
}

func TestStage(t *testing.T) {
	w := newWorld(t)
	for name, ids := range map[string][2]int{
		"mine": {callerUID, callerGID}, "grouped": {callerUID, 454545}, "foreign": {callerUID, 5555},
		"roots": {0, 0}, "others": {5555, 5555}, "groups": {5555, 454545},
	} {
		p := filepath.Join(w.work, name)
		if err := os.WriteFile(p, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chown(p, ids[0], ids[1]), os.Chmod(p, 0o664)); err != nil {
			t.Fatal(err)
		}
	}
	st, undo, err := w.stager.Stage(t.Context(), w.request(openDir(t, w.work)))
	if err != nil {
		t.Fatal(err)
	}
	src := stat(t, w.work)
	if st.Dev != src.Dev || st.Inode != src.Ino || st.FSType == "" {
		t.Errorf("Staged = %+v, want device %d inode %d", st, src.Dev, src.Ino)
	}
	at := func(name string) string { return filepath.Join(w.target(), name) }

	err = as(agentUID, agentGID, func() error {
		for _, name := range []string{"mine", "grouped"} {
			if err := os.WriteFile(at(name), []byte("changed"), 0o644); err != nil {
				return fmt.Errorf("the agent cannot write the caller's file: %w", err)
			}
		}
		if err := os.WriteFile(at("new"), nil, 0o600); err != nil {
			return fmt.Errorf("the agent cannot create: %w", err)
		}
		if err := os.Mkdir(at("dir"), 0o755); err != nil {
			return err
		}
		// "groups" is writable by a group of the caller's, which the agent is
		// not in; "foreign" is of a group that nobody here is in.
		for _, name := range []string{"roots", "others", "groups", "foreign"} {
			if err := os.WriteFile(at(name), nil, 0o644); !errors.Is(err, os.ErrPermission) {
				return fmt.Errorf("the agent writing %s = %v, want permission denied", name, err) //nolint:errorlint // it may be nil
			}
			if err := os.Chmod(at(name), 0o777); name != "foreign" && err == nil {
				return fmt.Errorf("the agent changed the mode of %s", name)
			}
			if err := os.Chown(at("new"), 0, 0); err == nil {
				return errors.New("the agent gave a file to root")
			}
		}
		return unix.Mknod(at("fifo"), unix.S_IFIFO|0o600, 0)
	})
	if err != nil {
		t.Error(err)
	}
	for _, name := range []string{"mine", "new", "dir", "fifo"} {
		if st := stat(t, filepath.Join(w.work, name)); st.Uid != callerUID || st.Gid != callerGID {
			t.Errorf("%s belongs to %d:%d on the host, want the caller's %d:%d", name, st.Uid, st.Gid, callerUID, callerGID)
		}
	}
	if err := as(agentUID, agentGID, func() error { return os.Chown(at("mine"), -1, agentGID+1) }); err == nil {
		t.Error("the agent gave a file to a group of the caller's that it is not in")
	}
	for name, want := range map[string]uint32{"roots": 65534, "others": 65534, "mine": agentUID} {
		if st := stat(t, at(name)); st.Uid != want {
			t.Errorf("%s belongs to %d in the sandbox, want %d", name, st.Uid, want)
		}
	}
	// Not even root of another range, or of the host, creates as itself here.
	for _, uid := range []int{0, agentUID + 65536} {
		err := as(uid, uid, func() error { return os.WriteFile(at("alien"), nil, 0o644) })
		if err == nil {
			t.Errorf("uid %d created a file through the agent's mount", uid)
		}
	}

	for range 2 {
		if err := undo(t.Context()); err != nil {
			t.Errorf("undo: %v", err)
		}
	}
	if _, err := os.Lstat(w.target()); !errors.Is(err, os.ErrNotExist) || isMounted(t, w.run) {
		t.Errorf("after undo: %v, mounted: %t", err, isMounted(t, w.run))
	}
	if b, err := os.ReadFile(filepath.Join(w.work, "mine")); string(b) != "changed" || err != nil {
		t.Errorf("the caller's file after undo: %q, %v", b, err)
	}
}

// TestSetIDAndDevices: a set-user-ID program or a device in the source gives
// nothing through the mount.
func TestSetIDAndDevices(t *testing.T) {
	w := newWorld(t)
	if _, _, err := w.stager.Stage(t.Context(), w.request(openDir(t, w.work))); err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	prog := filepath.Join(w.work, "setuid")
	if err := os.WriteFile(prog, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, prog)
	if err := os.Chmod(prog, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	dev := filepath.Join(w.work, "zero")
	if err := unix.Mknod(dev, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{w.work, w.target()} {
		cmd := exec.Command(filepath.Join(root, "setuid"), "-test.run=^TestHelperIDs$", "-test.v")
		cmd.Env = []string{kerneltest.Child, "CREEL_TEST_IDS=1"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		gained := strings.Contains(string(out), "euid=") && !strings.Contains(string(out), "euid=0 egid=0")
		if gained != (root == w.work) {
			t.Errorf("run from %s, another uid gained: %t\n%s", root, gained, out)
		}
		_, err = os.ReadFile(filepath.Join(root, "none"))
		if !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		f, err := os.Open(filepath.Join(root, "zero"))
		if (err == nil) != (root == w.work) {
			t.Errorf("open a device through %s = %v", root, err)
		}
		if err == nil {
			f.Close()
		}
	}
}

// TestHelperIDs is the set-user-ID program.
func TestHelperIDs(t *testing.T) {
	if os.Getenv("CREEL_TEST_IDS") == "" {
		t.Skip("only run by TestSetIDAndDevices")
	}
	fmt.Printf("euid=%d egid=%d\n", os.Geteuid(), os.Getegid())
}

func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	sub := filepath.Join(w.work, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, sub)
	try := func(r mount.Request) error {
		st, undo, err := w.stager.Stage(t.Context(), r)
		if err != nil {
			return err
		}
		if st.Inode == 0 {
			t.Error("no inode")
		}
		defer undo(t.Context())
		return as(agentUID, agentGID, func() error { return os.WriteFile(filepath.Join(w.target(), "f"), nil, 0o644) })
	}
	r := w.request(openDir(t, sub))
	r.ReadOnly = true
	if err := try(r); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a read-only mount = %v, want EROFS", err)
	}
	// A mount that is read-only for the caller stays so.
	if err := errors.Join(
		unix.Mount(sub, sub, "", unix.MS_BIND, ""),
		unix.Mount("", sub, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
	); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(sub, unix.MNT_DETACH)
	if err := try(w.request(openDir(t, sub))); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a writable request for a read-only mount = %v, want EROFS", err)
	}
}

func TestRootOwned(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(filepath.Dir(w.work), "roots")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	r := w.request(openDir(t, dir))
	if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeDenied || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("writable mount of root's directory = %v, want permission_denied that names read-only", err)
	}
	r.ReadOnly = true
	_, undo, err := w.stager.Stage(t.Context(), r)
	if err != nil {
		t.Fatalf("read-only mount of root's directory: %v", err)
	}
	undo(t.Context())

	// root as the caller
	r = w.request(openDir(t, w.work))
	r.CallerUID, r.CallerGID = 0, 0
	if _, _, err := w.stager.Stage(t.Context(), r); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("writable mount for root = %v, want permission_denied", err)
	}
	ns, err := idmap.ForCaller(t.Context(), 0, 0, agentUID, agentGID, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	r.ReadOnly, r.UserNS, r.Dir = true, ns, openDir(t, dir)
	_, undo, err = w.stager.Stage(t.Context(), r)
	if err != nil {
		t.Fatalf("read-only mount for root: %v", err)
	}
	defer undo(t.Context())
	if st := stat(t, w.target()); st.Uid != agentUID {
		t.Errorf("root's directory appears as %d's, want the agent's", st.Uid)
	}
}

// TestWrongMap: a map that is not the one the request speaks of is noticed.
func TestWrongMap(t *testing.T) {
	w := newWorld(t)
	r := w.request(openDir(t, w.work))
	r.AgentUID++
	if _, _, err := w.stager.Stage(t.Context(), r); err == nil || !strings.Contains(err.Error(), "not what was asked for") {
		t.Errorf("staged with another map: %v", err)
	}
	if _, err := os.Lstat(w.target()); !errors.Is(err, os.ErrNotExist) || isMounted(t, w.run) {
		t.Errorf("the refused mount was left: %v", err)
	}
}

func TestNestedMountsAreNotShown(t *testing.T) {
	w := newWorld(t)
	sub := filepath.Join(w.work, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(sub, unix.MNT_DETACH)
	if err := os.WriteFile(filepath.Join(sub, "nested"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The host's own mounts, which hide nothing from this caller alone.
	host, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	r := w.request(openDir(t, w.work))
	r.Namespaces, r.Host = []*os.File{host}, host
	if _, _, err := w.stager.Stage(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(w.target(), "sub", "nested")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a nested mount is visible: %v", err)
	}
}

// TestSwap: what the path means later does not matter.
func TestSwap(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.work, "right"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := openDir(t, w.work)
	if err := os.Rename(w.work, w.work+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", w.work); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.stager.Stage(t.Context(), w.request(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(w.target(), "right")); err != nil {
		t.Errorf("the staged directory is another: %v", err)
	}
}

func TestExistingTargetIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	if err := os.Mkdir(w.target(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", w.target(), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.stager.Stage(t.Context(), w.request(openDir(t, w.work))); !errors.Is(err, os.ErrExist) {
		t.Errorf("Stage over another's mount = %v, want it to exist", err)
	}
	if !isMounted(t, w.target()) {
		t.Error("another's mount was taken away")
	}
}

func TestCleanup(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.run, "mnt")
	for i := range 3 {
		r := w.request(openDir(t, w.work))
		r.Target = filepath.Join(dir, fmt.Sprint(i))
		if _, _, err := w.stager.Stage(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(w.work, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}
	if left, err := mount.Leftovers(dir); err != nil || len(left) != 3 {
		t.Errorf("Leftovers = %q, %v; want 3", left, err)
	}
	link := filepath.Join(t.TempDir(), "run") // as /var/run is
	if err := os.Symlink(w.run, link); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := mount.Cleanup(filepath.Join(link, "mnt")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) || isMounted(t, w.run) {
		t.Errorf("after Cleanup: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(w.work, "precious")); err != nil {
		t.Errorf("Cleanup took the caller's file: %v", err)
	}
}

func BenchmarkStage(b *testing.B) {
	w := newWorld(b)
	dir := openDir(b, w.work)
	for b.Loop() {
		_, undo, err := w.stager.Stage(b.Context(), w.request(dir))
		if err != nil {
			b.Fatal(err)
		}
		if err := undo(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
