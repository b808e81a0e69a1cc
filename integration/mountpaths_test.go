package integration_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// setpriv is util-linux's, for gateways that arrange their own mounts first.
var setpriv = kerneltest.Need{Name: "setpriv", Probe: func() error { _, err := exec.LookPath("setpriv"); return err }}

// byPath has curl, as the caller and after a script of root's in a mount
// namespace of its own, ask for a sandbox with a directory by its path. The
// script can set $in, what the caller starts curl by, and $socket, where that
// finds the daemon's.
func byPath(t *testing.T, l *lab.Lab, script, source string, readOnly bool) (api.SpawnResult, *api.Error) {
	t.Helper()
	body, err := json.Marshal(api.SpawnRequest{Mounts: []api.Mount{{Source: source, Target: "/workspace", ReadOnly: readOnly}}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec", "in= socket=$0\n"+script+`
exec setpriv --reuid 4242 --regid 4242 --clear-groups $in curl -sS --unix-socket "$socket" -H "Content-Type: application/json" --data-binary "$1" http://creel/v1/sandboxes`,
		l.Socket, string(body))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, &said)
	}
	var res api.SpawnResult
	if json.Unmarshal(out, &res) == nil && res.Sandbox.ID != "" {
		return res, nil
	}
	e := &api.Error{}
	if err := json.Unmarshal(out, e); err != nil || e.Code == "" {
		t.Fatalf("answer %q, %v", out, err)
	}
	return res, e
}

// container is a script for byPath that puts the caller into a root file
// system with the socket in it, and dir at /work: by a container engine that
// is root, or by one of the caller's own in a user namespace. (util-linux's
// umount needs a /proc, which there is none of.)
func container(t *testing.T, l *lab.Lab, dir string, rootless bool) string {
	t.Helper()
	root, err := os.MkdirTemp(filepath.Dir(workspace(t)), "image") //nolint:usetesting // users must reach it
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"", "usr", "run", "work", "old"} {
		d = filepath.Join(root, d)
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	enter := `mount --bind ` + root + ` ` + root + `
cd ` + root + `
mount -o rbind,ro /usr usr
mount --bind ` + l.Socket + ` run/creel.sock
mount --bind ` + dir + ` work
pivot_root . old
busybox umount -l /old
cd /
`
	err = errors.Join(
		os.WriteFile(filepath.Join(root, "run/creel.sock"), nil, 0o644),
		os.WriteFile(filepath.Join(root, "start"), []byte(enter+"exec \"$@\"\n"), 0o644),
	)
	for _, d := range []string{"bin", "lib", "lib64"} {
		if to, e := os.Readlink("/" + d); e == nil { // of a merged /usr
			err = errors.Join(err, os.Symlink(to, filepath.Join(root, d)))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	const socket = "socket=/run/creel.sock\n"
	if rootless {
		return socket + "in='unshare --user --map-root-user --mount /bin/sh -e " + root + "/start'\n"
	}
	return socket + enter
}

func labForPaths(t *testing.T) *lab.Lab {
	t.Helper()
	kerneltest.Require(t, kerneltest.Curl, setpriv)
	l := lab.New(t, lab.Options{Config: "[mounts]\npaths = true\n"})
	if err := os.Chmod(l.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestMountByPath: a client that cannot send descriptors gets by a path what
// it could open itself, in its own view of the host.
func TestMountByPath(t *testing.T) {
	kerneltest.Require(t, kerneltest.Busybox)
	l := labForPaths(t)
	dir := workspace(t)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	private := workspace(t)
	for d, whose := range map[string]string{dir: "host's\n", private: "own\n"} {
		if err := os.WriteFile(filepath.Join(d, "src", "whose"), []byte(whose), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	contained, rootless := container(t, l, private, false), container(t, l, private, true)
	for name, tt := range map[string]struct{ script, source, want string }{
		"as on the host":                {"", dir, "host's\n"},
		"with a mount of its own":       {"mount --bind " + private + " " + dir, dir, "own\n"},
		"in a container":                {contained, "/work", "own\n"},
		"in a rootless container":       {rootless, "/work", "own\n"},
		"in a container, the host's":    {contained, dir, ""},
		"in a rootless one, the host's": {rootless, dir, ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, e := byPath(t, l, tt.script, tt.source, false)
			if tt.want == "" {
				if e == nil || e.Code != api.CodeDenied {
					t.Fatalf("%+v, %+v", res, e)
				}
				return
			}
			if e != nil {
				t.Fatal(e)
			}
			if out, res := l.Sh(res.Sandbox.ID, "cat /workspace/src/whose && touch /workspace/new && stat -c %u /workspace/new"); out != tt.want+"1000\n" {
				t.Errorf("%q, %+v", out, res)
			}
			if err := l.Remove(t.Context(), res.Sandbox.ID, true); err != nil {
				t.Error(err)
			}
		})
	}
	var st unix.Stat_t
	for _, d := range []string{dir, private} {
		if err := unix.Lstat(filepath.Join(d, "new"), &st); err != nil || st.Uid != callerUID {
			t.Errorf("%s/new is of %d, %v", d, st.Uid, err)
		}
	}
	l.NothingLeft()
}

// TestMountByPathRefused lists what a caller cannot have by a path.
func TestMountByPathRefused(t *testing.T) {
	l := labForPaths(t)
	dir := workspace(t)
	top := filepath.Dir(dir)
	secret, link := filepath.Join(top, "secret"), filepath.Join(dir, "link")
	err := errors.Join(
		os.MkdirAll(filepath.Join(secret, "work"), 0o755), os.Chown(filepath.Join(secret, "work"), callerUID, callerUID), os.Chmod(secret, 0o700),
		os.Symlink(secret, link), os.Symlink("src", filepath.Join(dir, "near")),
		os.Mkdir(filepath.Join(dir, "point"), 0o755),
	)
	if err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(dir, "point")
	for _, tt := range []struct{ name, script, source string }{
		{"behind a directory it may not enter", "", secret + "/work"},
		{"by a link", "", link + "/work"},
		{"by a link to its own", "", dir + "/near"},
		{"by a link of /proc", "", "/proc/self/root" + dir},
		{"by another process's root", "", "/proc/1/root" + dir},
		{"by the daemon's directory", "", "/proc/self/cwd"},
		{"relative", "", "workspace"},
		{"with ..", "", dir + "/../workspace"},
		{"hidden from it", "mount -t tmpfs -o mode=755 none " + top, dir},
		{"what would uncover what is hidden from it", "mount -t tmpfs -o mode=755 none " + dir + "/src", dir},
		{"what would make writable what is not", "mount --bind " + dir + "/src " + dir + "/src; mount -o remount,bind,ro " + dir + "/src", dir},
		{"nothing", "", dir + "/none"},
		{"a file", "", dir + "/src/precious"},
		{"the root", "", "/"},
		{"/proc", "", "/proc"},
		{"/sys", "", "/sys"},
		{"/proc by a mount", "mount --bind /proc " + point, point},
		{"a new /proc", "mount -t proc proc " + point, point},
		{"/sys by a mount", "mount --bind /sys " + point, point},
		{"/dev by a mount", "mount --bind /dev " + point, point},
		{"creel's own directory", "", l.Dir + "/run"},
		{"creel's own by a mount", "mount --bind " + l.Dir + "/run " + point, point},
		{"creel's state by a mount", "mount --bind " + l.StateDir() + " " + point, point},
		{"what has creel's own in it", "mount --bind " + l.Dir + " " + point, point},
		{"what has it, twice removed", "mount --bind / " + point + "; mount --bind " + point + l.Dir + " " + point, point},
		{"the root by a mount", "mount --bind / " + point, point},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, e := byPath(t, l, tt.script, tt.source, true)
			if e == nil {
				out, _ := l.Sh(res.Sandbox.ID, "ls -la /workspace")
				t.Fatalf("it is mounted: %s", out)
			}
			if e.Code != api.CodeDenied && e.Code != api.CodeInvalid && e.Code != api.CodeUnsupportedHost {
				t.Errorf("%+v", e)
			}
		})
	}
	if _, e := byPath(t, l, "", secret, false); e == nil {
		t.Error("root's directory is mounted writable")
	}
	l.NothingLeft()
}

// TestMountByPathUnmappable has a file system that no kernel can id-map.
func TestMountByPathUnmappable(t *testing.T) {
	l := labForPaths(t)
	dir := workspace(t)
	for _, fs := range []string{"ramfs", "overlay"} {
		t.Run(fs, func(t *testing.T) {
			point := filepath.Join(dir, fs)
			if err := os.Mkdir(point, 0o755); err != nil {
				t.Fatal(err)
			}
			script := "mount -t ramfs ramfs " + point
			if fs == "overlay" {
				script = "mount -t overlay -o lowerdir=/bin/.:/etc overlay " + point
			}
			_, e := byPath(t, l, script, point, true)
			if e == nil || e.Code != api.CodeUnsupportedHost || !strings.Contains(e.Message, fs) {
				t.Errorf("%+v", e)
			}
		})
	}
	l.NothingLeft()
}
