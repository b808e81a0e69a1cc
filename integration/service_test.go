package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

// The tests whose names begin with TestService are of creel as it is
// installed: creeld.service, started by creeld.socket, under a systemd that is
// PID 1. Only the machine of "make test-vm" has that.

const (
	unit      = "creeld.service"
	cgroupTop = "/sys/fs/cgroup"
)

// installed is the service of this machine, and says so with CREEL_SOCKET.
var installed = kerneltest.Need{Name: "service", Probe: func() error {
	if os.Getenv("CREEL_SOCKET") == "" {
		return errors.New("CREEL_SOCKET does not name the socket of an installed creeld.service; make test-vm has one")
	}
	return nil
}}

// service is the installed daemon, with an image "tiny".
type service struct {
	*client.Client
	t *testing.T
}

func newService(t *testing.T) *service {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, kerneltest.Systemd, kerneltest.CgroupV2, installed)
	s := &service{client.New(os.Getenv("CREEL_SOCKET")), t}
	if _, err := s.Image(t.Context(), "tiny"); api.CodeOf(err) == api.CodeNotFound {
		f, err := os.Open(lab.Tiny(t))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := s.ImportImage(t.Context(), "tiny", f); err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.clean)
	return s
}

// clean removes every sandbox and wants their cgroups gone.
func (s *service) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	all, err := s.List(ctx, client.ListOptions{All: true})
	if err != nil {
		s.t.Errorf("list: %v", err)
	}
	for _, sb := range all {
		if err := s.Remove(ctx, sb.ID, true); err != nil {
			s.t.Errorf("remove: %v", err)
		}
	}
	s.eventually("no cgroup of a sandbox is left", func() error {
		entries, err := os.ReadDir(s.root())
		for _, e := range entries {
			if e.IsDir() {
				err = fmt.Errorf("%s is there", e.Name())
			}
		}
		return err
	})
}

func (s *service) spawn(req api.SpawnRequest) *api.SpawnResult {
	s.t.Helper()
	req.Image = "tiny"
	res, err := s.Spawn(s.t.Context(), req)
	if err != nil {
		s.t.Fatalf("spawn: %v", err)
	}
	return res
}

func (s *service) sh(id, script string) (string, api.ExecResult) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	res, err := s.Exec(ctx, id, api.ExecRequest{Command: []string{"/bin/sh", "-c", script}}, client.Stdio{Out: &out})
	if err != nil {
		s.t.Fatalf("exec %q: %v", script, err)
	}
	return out.String(), res
}

// eventually is generous: the machine is emulated.
func (s *service) eventually(what string, cond func() error) {
	s.t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not in time: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *service) systemctl(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/usr/bin/systemctl", args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("systemctl %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (s *service) property(unit, name string) string {
	s.t.Helper()
	return s.systemctl("show", "--value", "--property="+name, unit)
}

func (s *service) mainPID() int {
	s.t.Helper()
	pid, err := strconv.Atoi(s.property(unit, "MainPID"))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// delegated tells a systemd that can put the daemon into a cgroup beside its
// sandboxes' (254) from one that cannot.
func (s *service) delegated() bool { return s.property(unit, "DelegateSubgroup") == "supervisor" }

// root is where the cgroups of sandboxes are; see pkg/cgroup.
func (s *service) root() string {
	if s.delegated() {
		return cgroupTop + s.property(unit, "ControlGroup") + "/sandboxes"
	}
	return cgroupTop + "/creel/sandboxes"
}

// creel runs the installed command line as somebody.
func (s *service) creel(cred *syscall.Credential, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(kerneltest.BinDir(), "creel"), args...)
	cmd.Env, cmd.Dir = []string{"PATH=/usr/bin:/bin", "HOME=/"}, "/"
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("creel %q: %v", args, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// TestServiceStartsOnConnect is socket activation: a stopped service is
// started by whoever connects, whose request waits until it is ready.
func TestServiceStartsOnConnect(t *testing.T) {
	s := newService(t)
	for name, want := range map[string]string{"Type": "notify", "TriggeredBy": "creeld.socket", "KillMode": "process", "Delegate": "yes"} {
		if got := s.property(unit, name); got != want {
			t.Errorf("%s of the unit is %q, want %q", name, got, want)
		}
	}
	s.systemctl("stop", unit)
	if got := s.property(unit, "ActiveState"); got != "inactive" {
		t.Fatalf("stopped, the unit is %s", got)
	}
	if got := s.property("creeld.socket", "ActiveState"); got != "active" {
		t.Fatalf("with the service stopped, its socket is %s", got)
	}
	v, err := s.Version(t.Context())
	if err != nil {
		t.Fatalf("first request: %v", err)
	}
	if v.Cgroup != "v2" {
		t.Errorf("cgroup %q, want v2", v.Cgroup)
	}
	// It answered because it was ready; systemd knows so because it was told.
	s.eventually("the unit is active", func() error {
		if got := s.property(unit, "ActiveState"); got != "active" {
			return errors.New(got)
		}
		return nil
	})
	var st unix.Stat_t
	if err := unix.Stat(s.Socket(), &st); err != nil {
		t.Fatal(err)
	}
	if mode := st.Mode & 0o7777; mode != 0o660 || st.Uid != 0 || int(st.Gid) != creelGroup(t) {
		t.Errorf("the socket has mode %o, owner %d:%d", mode, st.Uid, st.Gid)
	}
}

func creelGroup(t *testing.T) int {
	t.Helper()
	g, err := user.LookupGroup("creel")
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return gid
}

// TestServiceCallers: the group is the door, and who stands before it is told
// why.
func TestServiceCallers(t *testing.T) {
	s := newService(t)
	caller, err := user.Lookup("caller") // made by vm/root.sh, put into the group by vm/guest.sh
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(caller.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	id := uint32(uid)
	member := &syscall.Credential{Uid: id, Gid: id, Groups: []uint32{uint32(creelGroup(t))}}
	work := filepath.Join(caller.HomeDir, "work")
	if err := errors.Join(os.MkdirAll(work, 0o700), os.Chown(work, int(id), int(id))); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	out, errOut, code := s.creel(member, "run", "--rm", "--image", "tiny", "-v", work+":/workspace", "--", "/bin/sh", "-c", "id -u; echo made > /workspace/file; exit 3")
	if out != "1000\n" || code != 3 {
		t.Errorf("a member's run: %q, %q, exit code %d", out, errOut, code)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(work, "file"), &st); err != nil || st.Uid != id || st.Gid != id {
		t.Errorf("what the agent made in the caller's directory belongs to %d:%d (%v), want %d", st.Uid, st.Gid, err, id)
	}
	for name, tt := range map[string]struct {
		cred *syscall.Credential
		want string
	}{
		"member since": {&syscall.Credential{Uid: id, Gid: id}, "start a new session"},
		"not a member": {&syscall.Credential{Uid: 65534, Gid: 65534}, "is not a member of group \"creel\""},
		"unknown, too": {&syscall.Credential{Uid: 4321, Gid: 4321}, "usermod -aG creel"},
	} {
		out, errOut, code := s.creel(tt.cred, "run", "--image", "tiny", "--", "/bin/true")
		if code != 125 || out != "" || !strings.Contains(errOut, tt.want) {
			t.Errorf("%s: %q, %q, exit code %d; want 125 and %q", name, out, errOut, code, tt.want)
		}
	}
}

// TestServiceDoctor finds a machine in order.
func TestServiceDoctor(t *testing.T) {
	s := newService(t)
	d, err := s.Doctor(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]api.Check{}
	for _, c := range d.Checks {
		got[c.Name] = c
		t.Logf("%-8s %s: %s %s", c.Status, c.Name, c.Detail, c.Cost)
		if !slices.Contains([]string{"ok", "weaker"}, c.Status) {
			t.Errorf("%s is %s: %s; %s", c.Name, c.Status, c.Detail, c.Cost)
		}
	}
	for _, name := range []string{"cgroup", "lsm.mandatory", "kernel.unix_peers"} {
		if got[name].Status != "ok" {
			t.Errorf("%s is %q: %s", name, got[name].Status, got[name].Detail)
		}
	}
	if len(d.Leftovers) > 0 {
		t.Errorf("leftovers: %q", d.Leftovers)
	}
}
