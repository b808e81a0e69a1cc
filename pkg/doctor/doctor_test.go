package doctor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/doctor"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

func TestCompareVersions(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"v2.4.2", "2.0.0", 1},
		{"2.0", "2.0.0", 0},
		{"1.7.24~ds1", "2.0.0", -1},
		{"6.1.0-18-amd64", "6.1", 0},
		{"6.18.44", "6.9", 1},
		{"crun version 1.21", "1.21", 0},
		{"", "0.1", -1},
		{"6.1-rc3", "6.1.1", -1},
	} {
		got := doctor.CompareVersions(tt.a, tt.b)
		if (got > 0) != (tt.want > 0) || (got < 0) != (tt.want < 0) {
			t.Errorf("compare %q with %q = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("v2.4.2", "2.0.0")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := doctor.CompareVersions(a, b), doctor.CompareVersions(b, a); (x > 0) != (y < 0) || (x == 0) != (y == 0) {
			t.Errorf("%q and %q: %d one way and %d the other", a, b, x, y)
		}
	})
}

func TestJudgements(t *testing.T) {
	full := "CapBnd:\t000001ffffffffff"
	tests := []struct {
		name string
		got  api.Check
		want string
		text string // in the detail
	}{
		{"core file", doctor.CorePattern("core"), doctor.OK, "core"},
		{"core pipe", doctor.CorePattern("|/usr/lib/systemd/systemd-coredump %P"), doctor.Weaker, "systemd-coredump"},
		{"core socket", doctor.CorePattern("@@/run/x"), doctor.Weaker, "/run/x"},
		{"all capabilities", doctor.BoundingOf("Name:\tx\n" + full + "\n"), doctor.OK, ""},
		{"no CAP_SYS_RESOURCE", doctor.BoundingOf("CapBnd:\t000001fffeffffff\n"), doctor.Weaker, "CAP_SYS_RESOURCE"},
		{"no capability", doctor.BoundingOf("CapBnd:\t0\n"), doctor.Missing, "CAP_SYS_ADMIN"},
		{"no line", doctor.BoundingOf("Name:\tx\n"), doctor.Weaker, "cannot be read"},
		{"no swap", doctor.Swap("Filename Type Size\n", "v1"), doctor.OK, "none"},
		{"swap, v1", doctor.Swap("Filename Type Size\n/dev/sda2 partition 1 0 -2\n", "v1"), doctor.Weaker, "swaps"},
		{"swap, v2", doctor.Swap("Filename Type Size\n/dev/sda2 partition 1 0 -2\n", "v2"), doctor.OK, "memory.swap.max"},
		{"1970", doctor.Clock(time.Unix(0, 0)), doctor.Missing, "cannot be"},
		{"old containerd", doctor.VersionCheck(doctor.Version{Name: "containerd", Have: "1.6.20", Fault: errors.New("containerd 1.6.20: want 2.0.10")}), doctor.Missing, "1.6.20"},
		{"new containerd", doctor.VersionCheck(doctor.Version{Name: "containerd", Have: "v2.4.2"}), doctor.OK, "v2.4.2"},
		{"silent containerd", doctor.VersionCheck(doctor.Version{Name: "containerd"}), doctor.Missing, "does not answer"},
		{"no runc", doctor.VersionCheck(doctor.Version{Name: "runc", Optional: true}), doctor.Weaker, "not installed"},
		{"state directory", doctor.Disk("/proc"), doctor.Missing, "/proc: proc"},
		{"state directory that is made at the start", doctor.Disk("/proc/none/at/all"), doctor.Missing, "/proc: proc"},
	}
	for _, tt := range tests {
		if tt.got.Status != tt.want || !strings.Contains(tt.got.Detail, tt.text) {
			t.Errorf("%s: %+v, want %s with %q", tt.name, tt.got, tt.want, tt.text)
		}
	}
}

func TestGroups(t *testing.T) {
	status := func(checks []api.Check) (out []string) {
		for _, c := range checks {
			out = append(out, c.Status)
		}
		return out
	}
	for _, tt := range []struct {
		groups []string
		want   []string
	}{
		{[]string{"users", "creel", "kvm"}, []string{doctor.OK}},
		{[]string{"users", "docker"}, []string{doctor.Danger}},
		{[]string{"sudo", "lxd", "disk"}, []string{doctor.Weaker, doctor.Danger, doctor.Danger}},
	} {
		if diff := cmp.Diff(tt.want, status(doctor.Groups(tt.groups...))); diff != "" {
			t.Errorf("%q: %s", tt.groups, diff)
		}
	}
}

// The kernel is asked as the user, not the mode bits by us.
func TestSockets(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root)
	dir, err := os.MkdirTemp("/tmp", "creel-doctor-") //nolint:usetesting // other users must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	listen := func(name string, mode os.FileMode, gid int) string {
		p := filepath.Join(dir, name)
		l, err := net.Listen("unix", p)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		if err := errors.Join(os.Chmod(p, mode), os.Chown(p, 0, gid)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	grouped, closed := listen("grouped.sock", 0o660, 4321), listen("closed.sock", 0o600, 0)
	link := filepath.Join(dir, "link.sock")
	if err := os.Symlink(grouped, link); err != nil {
		t.Fatal(err)
	}
	all := []string{grouped, closed, link, filepath.Join(dir, "none")}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	member := doctor.Sockets(65534, 4321, all...)
	if len(member) != 1 || member[0].Status != doctor.Danger || !strings.Contains(member[0].Name, "grouped") {
		t.Errorf("a member of the group: %+v", member)
	}
	if other := doctor.Sockets(65534, 65534, all...); len(other) != 1 || other[0].Status != doctor.OK {
		t.Errorf("another user: %+v", other)
	}
	if err := os.Chmod(dir, 0o700); err != nil { // no way there
		t.Fatal(err)
	}
	if hidden := doctor.Sockets(65534, 4321, all...); len(hidden) != 1 || hidden[0].Status != doctor.OK {
		t.Errorf("behind a closed directory: %+v", hidden)
	}
	if syscall.Getuid() != 0 || os.WriteFile(filepath.Join(dir, "root"), nil, 0o600) != nil {
		t.Error("this process is not what it was")
	}
}

func find(checks []api.Check, name string) *api.Check {
	i := slices.IndexFunc(checks, func(c api.Check) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &checks[i]
}

// On any machine: every check says what it found, and what is not ok says
// what that costs.
func TestRun(t *testing.T) {
	d := doctor.Run(t.Context(), doctor.Inputs{
		StateDir: t.TempDir(), CgroupVersion: "v1", CgroupWeaker: []string{"no cgroup.kill: killing takes longer"},
		IDRange: "1-2", IDOverlap: errors.New("user alice"),
		Versions: []doctor.Version{{Name: "crun", Have: "1.8.1", Fault: errors.New("it is old")}},
	})
	if d.Leftovers == nil {
		t.Error("leftovers are null in JSON")
	}
	for _, c := range d.Checks {
		if c.Detail == "" || !slices.Contains([]string{doctor.OK, doctor.Weaker, doctor.Missing, doctor.Danger}, c.Status) {
			t.Errorf("%+v", c)
		}
		if c.Status != doctor.OK && c.Cost == "" && c.Name != "lsm" {
			t.Errorf("%s does not say what it costs: %+v", c.Name, c)
		}
		t.Logf("%-8s %-32s %s", c.Status, c.Name, c.Detail)
	}
	if c := find(d.Checks, "project quota"); c != nil {
		t.Errorf("writable layers need none (docs/adr/0009), and yet: %+v", c)
	}
	for name, want := range map[string]string{
		"kernel": doctor.OK, "kernel.openat2": doctor.OK, "kernel.pidfd_getfd": doctor.OK, "kernel.mount_setattr": doctor.OK,
		"cgroup": doctor.Weaker, "id range": doctor.Danger, "version.crun": doctor.Missing, "entropy": doctor.OK,
	} {
		if c := find(d.Checks, name); c == nil || c.Status != want {
			t.Errorf("%s = %+v, want %s", name, c, want)
		}
	}
}

func TestMountsBeneath(t *testing.T) {
	table := "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /home/u rw - ext4 a rw\n3 2 0:3 / /home/u/my\\040data rw - ext4 a rw\n4 1 0:3 / /home/u2 rw - ext4 a rw\nshort\n"
	for dir, want := range map[string][]string{
		"/home/u": {"/home/u/my data"}, "/home": {"/home/u", "/home/u/my data", "/home/u2"}, "/tmp": nil,
		"/": {"/home/u", "/home/u/my data", "/home/u2"},
	} {
		if diff := cmp.Diff(want, doctor.MountsBeneath(table, dir)); diff != "" {
			t.Errorf("%s: %s", dir, diff)
		}
	}
}

func TestTouches(t *testing.T) {
	protected := []string{"/run/docker.sock", "/var/lib/creel"}
	for dir, want := range map[string]string{
		"/var/lib/creel": "/var/lib/creel", "/var/lib/creel/x": "/var/lib/creel", "/var/lib": "/var/lib/creel", "/": "/run/docker.sock",
		"/var/lib/creel2": "", "/home/u": "",
	} {
		if got := doctor.Touches(dir, protected); got != want {
			t.Errorf("Touches(%s) = %q, want %q", dir, got, want)
		}
	}
}

func TestCallerAndWorkspaceWithoutRights(t *testing.T) {
	kerneltest.Require(t, kerneltest.Need{Name: "own-user", Probe: func() error { _, err := user.Current(); return err }})
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if c := doctor.Caller("no-such-user", ""); len(c) != 1 || c[0].Status != doctor.Missing {
		t.Errorf("unknown user: %+v", c)
	}
	if c := doctor.Caller("0", ""); len(c) != 1 || c[0].Status != doctor.Danger {
		t.Errorf("root: %+v", c)
	}
	ask := func(dir string) *api.Check {
		return find(doctor.Workspace(t.Context(), doctor.Inputs{Workspace: dir, User: me.Username, Protected: []string{"/proc"}}), "workspace")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		"relative": "not an absolute path", "/no/such/dir": "does not exist", file: "not a directory", "/proc": "has to do with /proc",
		"/": "has to do with /proc", filepath.Dir(file): "can reach it",
	} {
		if c := ask(dir); c == nil || !strings.Contains(c.Detail, want) {
			t.Errorf("workspace %s: %+v, want %q", dir, c, want)
		}
	}
}

// As root a user's directories are judged with the user's rights, and id
// mapping is tried for real.
func TestWorkspaceOfAnother(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.IDMap, kerneltest.Users)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	base, err := os.MkdirTemp("/tmp", "creel-doctor-") //nolint:usetesting // other users must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	mine, roots, hidden := filepath.Join(base, "mine"), filepath.Join(base, "roots"), filepath.Join(base, "hidden")
	for _, d := range []string{mine, roots, hidden, filepath.Join(hidden, "sub")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(base, 0o755), os.Chmod(hidden, 0o700), os.Chown(mine, uid, uid)); err != nil {
		t.Fatal(err)
	}
	ask := func(dir string) []api.Check {
		return doctor.Workspace(t.Context(), doctor.Inputs{Workspace: dir, User: "nobody", UserNS: userNS})
	}
	got := ask(mine)
	for _, name := range []string{"workspace", "workspace.owner", "workspace.id map", "workspace.nested"} {
		if c := find(got, name); c == nil || c.Status != doctor.OK {
			t.Errorf("%s of the user's own directory: %+v", name, c)
		}
	}
	got = ask(roots)
	if c := find(got, "workspace.owner"); c == nil || c.Status != doctor.Weaker || !strings.Contains(c.Cost, "read-only") {
		t.Errorf("owner of root's directory: %+v", c)
	}
	if c := find(got, "workspace.writable"); c == nil || c.Status != doctor.Weaker {
		t.Errorf("root's directory: %+v", c)
	}
	for _, d := range []string{filepath.Join(hidden, "sub"), filepath.Join(hidden, "none")} {
		if got := ask(d); len(got) != 1 || !strings.Contains(got[0].Detail, "cannot reach") {
			t.Errorf("behind a closed directory: %+v", got)
		}
	}
	// What cannot be mapped is said so.
	if c := find(ask("/proc/sys"), "workspace.id map"); c == nil || c.Status != doctor.Missing {
		t.Errorf("id map of proc: %+v", c)
	}
}

// userNS is a user namespace, of a child that never runs.
func userNS(_ context.Context, uid, gid uint32) (*os.File, error) {
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: int(uid), HostID: 1000, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: int(gid), HostID: 1000, Size: 1}},
	}})
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
	_ = p.Kill()
	_, _ = p.Wait()
	return f, err
}

func TestRunAsRoot(t *testing.T) {
	kerneltest.Require(t, kerneltest.Root, kerneltest.IDMap)
	state := t.TempDir()
	d := doctor.Run(t.Context(), doctor.Inputs{StateDir: state, UserNS: userNS, User: "nobody"})
	for _, name := range []string{"kernel.user namespaces", "kernel.id-mapped overlay layers", "kernel.id-mapped tmpfs", "kernel.socket lookup programs"} {
		if c := find(d.Checks, name); c == nil || c.Status != doctor.OK {
			t.Errorf("%s: %+v", name, c)
		}
	}
	// Its own mounts: tests of other packages make theirs at the same time.
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, state) {
			t.Errorf("left mounted: %s", line)
		}
	}
	if left, err := os.ReadDir(state); err != nil || len(left) != 0 {
		t.Errorf("left in the state directory: %v, %v", left, err)
	}
}
