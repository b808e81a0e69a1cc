package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestRoot: a profile whose commands are root is used when it is named, gives
// its capabilities and no other, and mounts nothing of anybody's.
func TestRoot(t *testing.T) {
	l := forUsers(t)
	refused := func(want string, args ...string) {
		t.Helper()
		if _, errOut, code := l.CreelAs(caller, "", args...); code != 125 || !strings.Contains(errOut, want) {
			t.Errorf("creel %q: %d, want %q in:\n%s", args, code, want, errOut)
		}
	}
	dir := workspace(t)
	refused("neither host directories nor volumes", "run", "--rm", "--profile", "build", "-v", dir+":/w:ro", "--", "/bin/true")
	if out, errOut, code := l.CreelAs(caller, "", "volume", "create", "--size", "16M", "work"); code != 0 {
		t.Fatal(out, errOut)
	}
	refused("neither host directories nor volumes", "run", "--rm", "--profile", "build", "-v", "work:/w", "--", "/bin/true")
	refused("rootfs", "run", "--rm", "--profile", "build", "--rootfs", "readonly", "--", "/bin/true")

	out, errOut, code := l.CreelAs(caller, "", "run", "-d", "--name", "builder", "--profile", "build")
	if code != 0 {
		t.Fatal(out, errOut)
	}
	script := `id -u; pwd; echo $HOME; touch /usr/x && chown 5:6 /usr/x && chmod 4711 /usr/x && stat -c %u:%g:%a /usr/x; grep ^Cap /proc/self/status`
	out, errOut, code = l.CreelAs(caller, "", "exec", "builder", "--", "/bin/sh", "-c", script)
	want := "0\n/root\n/root\n5:6:4711\nCapInh:\t0000000000000000\nCapPrm:\t00000000000000cb\nCapEff:\t00000000000000cb\nCapBnd:\t00000000000000cb\nCapAmb:\t0000000000000000\n"
	if out != want {
		t.Errorf("root: %d %q %s", code, out, errOut)
	}
	sb, err := l.Inspect(t.Context(), "builder")
	if err != nil || sb.User != api.UserRoot || len(sb.Capabilities) != 5 {
		t.Fatalf("%+v, %v", sb, err)
	}
	setIDStaysInside(t, l, sb.ID)

	// It is the same to a daemon that takes it over.
	l.Kill()
	l.Start()
	ev, err := l.Evidence(t.Context(), sb.ID, true)
	if err != nil || !ev[0].OK {
		t.Fatalf("after a restart: %+v, %v", ev, err)
	}
	for _, c := range ev[0].Controls {
		if c.Name == "caps.bounding" && c.Expected != "00000000000000cb" {
			t.Errorf("control %+v", c)
		}
	}
}

// setIDStaysInside: the file that a root has made is under a directory that
// only the host's root can enter, on a file system that is mounted nosuid, and
// not in the host's mount namespace at all.
func setIDStaysInside(t *testing.T, l *lab.Lab, id string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), id) {
		t.Errorf("the host's mount table has the sandbox's layer (%v)", err)
	}
	root := filepath.Join("/proc", fmt.Sprint(l.DaemonPID()), "root")
	fs := filepath.Join(l.Dir, "state", "rootfs", id, "fs")
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, fs, "upper/usr/x"), &st); err != nil || st.Mode&0o7777 != 0o4711 {
		t.Fatalf("the layer's file: mode %o, %v", st.Mode, err)
	}
	var fsInfo unix.Statfs_t
	if err := unix.Statfs(filepath.Join(root, fs), &fsInfo); err != nil || fsInfo.Flags&unix.ST_NOSUID == 0 || fsInfo.Flags&unix.ST_NODEV == 0 {
		t.Errorf("the layer's mount has flags %#x, %v", fsInfo.Flags, err)
	}
	if err := unix.Lstat(filepath.Join(root, filepath.Dir(fs)), &st); err != nil || st.Uid != 0 || st.Mode&0o077 != 0 {
		t.Errorf("the layer's directory has mode %o, %v", st.Mode, err)
	}
}

// TestRootIsProven takes layers away from a root's sandbox: what it may have
// more than an agent is no reason to let it have anything else.
func TestRootIsProven(t *testing.T) {
	l := lab.New(t, lab.Options{})
	req := api.SpawnRequest{Profile: "build"}
	for layer, control := range map[string]string{
		"uid": "uid", "groups": "groups", "caps": "caps.bounding", "nnp": "no_new_privs", "seccomp": "seccomp.mode",
		"seccomp.content": "seccomp.filter", "dumpable": "exe.unreadable", "exe": "exe", "root.nosuid": "mount./",
		"tmp.nosuid": "mount./tmp", "readonly": "mount./proc/sys", "masked": "mount./proc/keys", "userns": "idmap.uid",
	} {
		t.Run(layer, func(t *testing.T) {
			l.Fail("layer." + layer + " on")
			defer l.Fail()
			res, err := l.Client.Spawn(t.Context(), req)
			if err == nil {
				t.Fatalf("sandbox %s runs without it", res.Sandbox.ID)
			}
			e := asAPI(t, err)
			if e.Code != api.CodeNotProven {
				t.Fatalf("want %s, is %v\n%s", api.CodeNotProven, e, l.LogTail(3))
			}
			refusedFor(t, e, control)
			l.NothingLeft()
		})
	}
	sb := l.Spawn(req)
	if ev, err := l.Evidence(t.Context(), sb.ID, true); err != nil || !ev[0].OK {
		t.Errorf("evidence %+v, %v", ev, err)
	}
}

// TestRootByDefault: a daemon does not start with a root profile as what
// everybody gets who names none.
func TestRootByDefault(t *testing.T) {
	l := lab.New(t, lab.Options{})
	l.Stop()
	dropIn := filepath.Join(l.Dir, "config.d")
	if err := os.MkdirAll(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dropIn, "p.toml"), []byte("default_profile = \"build\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	l.Begin()
	<-l.Exited()
	if log := l.LogTail(3); !strings.Contains(log, "default_profile: profile build is root") {
		t.Errorf("it started, or for another reason not:\n%s", log)
	}
	if err := os.Remove(filepath.Join(dropIn, "p.toml")); err != nil {
		t.Fatal(err)
	}
	l.Start()
}
