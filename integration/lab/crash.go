package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/store"
)

// Processes of a lab that can be killed.
const (
	Daemon     = "creeld"
	Containerd = "containerd"
	Shim       = "shim"
	Init       = "init"
	Egress     = "creel-egress"
)

// KillProcess ends one of the lab's processes as a crash would and waits
// until it is gone. id is the sandbox's, for Shim, Init and Egress. One that is not
// there is none to kill.
func (l *Lab) KillProcess(what, id string) {
	l.tb.Helper()
	pid := 0
	switch what {
	case Daemon:
		l.Kill()
		return
	case Containerd:
		pid = l.ContainerdPID()
	case Shim:
		pid = l.ShimPID(id)
	case Init:
		if sb, err := l.Inspect(context.Background(), id); err == nil {
			pid = sb.PID
		}
	case Egress:
		if sb, err := l.Inspect(context.Background(), id); err == nil {
			for _, pid := range l.EgressPIDs(sb.Caller.UID) {
				l.KillPID(pid)
			}
		}
	default:
		l.tb.Fatalf("no process %q", what)
	}
	if pid != 0 {
		l.KillPID(pid)
	}
}

// KillPID is KillProcess for a pid, 0 or one that is gone included.
func (l *Lab) KillPID(pid int) {
	l.tb.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has just ended
	}
	defer func() { _ = unix.Close(fd) }()
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	l.Eventually("the killed process ends", 20*time.Second, func() error {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil || n == 0 {
			return fmt.Errorf("pid %d is there", pid)
		}
		return nil
	})
}

// Children are the pids of a process's children, whichever of its threads
// forked them: each thread has a list of its own (proc_pid_task(5)).
func Children(pid int) (out []int) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list)
		for w := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(w); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

// Alive says whether a process is there and not a zombie.
func Alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

// State opens the daemon's state file, while no daemon has it.
func (l *Lab) State(fn func(*store.Store) error) {
	l.tb.Helper()
	s, err := store.Open(l.StatePath())
	if err != nil {
		l.tb.Fatal(err)
	}
	if err := fn(s); err != nil {
		l.tb.Error(err)
	}
	if err := s.Close(); err != nil {
		l.tb.Error(err)
	}
}

// StatePath is the state file.
func (l *Lab) StatePath() string { return filepath.Join(l.Dir, "state", "state.db") }

// OtherBoot gives every record the id of an earlier boot, while no daemon runs.
func (l *Lab) OtherBoot() (ids []string) {
	l.tb.Helper()
	l.State(func(s *store.Store) error {
		if err := s.Sandboxes(func(r store.Record) error { ids = append(ids, r.Sandbox.ID); return nil }); err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := s.ModifySandbox(id, func(r *store.Record) error { r.BootID = "an earlier boot"; return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	return ids
}

// Reboot does to a lab whose daemon was killed what a restart of the machine
// does: no process, mount, cgroup or file of the run directory stays, and the
// records have the id of an earlier boot.
func (l *Lab) Reboot() {
	l.tb.Helper()
	ids := l.OtherBoot()
	l.KillProcess(Containerd, "")
	for _, id := range ids {
		// containerd, when it saw a shim go, has started another to clean up.
		l.Eventually("every shim ends", 20*time.Second, func() error {
			pid := l.ShimPID(id)
			if pid == 0 {
				return nil
			}
			l.KillPID(pid)
			return fmt.Errorf("pid %d was there", pid)
		})
	}
	l.Eventually("every process ends", 20*time.Second, func() error {
		left := 0
		for _, top := range l.cgroupTops() {
			_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
				if err != nil || !d.IsDir() {
					return nil
				}
				_ = os.WriteFile(filepath.Join(p, "freezer.state"), []byte("THAWED"), 0)
				text, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
				for w := range strings.FieldsSeq(string(text)) {
					if pid, err := strconv.Atoi(w); err == nil {
						left++
						_ = unix.Kill(pid, unix.SIGKILL)
					}
				}
				return nil
			})
		}
		if left > 0 {
			return fmt.Errorf("%d are there", left)
		}
		return nil
	})
	l.endEgress()
	l.removeCgroups()
	l.unmountAll()
	if err := os.RemoveAll(filepath.Join(l.Dir, "run")); err != nil {
		l.tb.Error(err)
	}
}

// Refused starts a daemon with a changed configuration, which must not come
// up, and gives its last words. The lab's own must not run.
func (l *Lab) Refused(change func(config string) string) string {
	l.tb.Helper()
	path := l.changed(change)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.creeld(), "--config", path)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CREEL_FAILPOINT_FILE=" + l.fail}
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		l.tb.Errorf("creeld came up:\n%s", out)
	case err == nil:
		l.tb.Errorf("creeld ended without an error:\n%s", out)
	}
	return string(out)
}

// changed writes a configuration that differs from the lab's.
func (l *Lab) changed(change func(config string) string) string {
	l.tb.Helper()
	text, err := os.ReadFile(l.config)
	if err != nil {
		l.tb.Fatal(err)
	}
	path := filepath.Join(l.Dir, "changed.toml")
	l.write(path, change(string(text)))
	return path
}

// CreeldDoctor runs creeld doctor with a changed configuration: what it says on both
// streams, and its exit code.
func (l *Lab) CreeldDoctor(change func(config string) string, args ...string) (string, int) {
	l.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.creeld(), append([]string{"doctor", "--config", l.changed(change)}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		l.tb.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// NothingLeftBut is NothingLeft except for what begins with one of these.
func (l *Lab) NothingLeftBut(prefixes ...string) {
	l.tb.Helper()
	l.Eventually("nothing is left", 30*time.Second, func() error {
		left := slices.DeleteFunc(l.Snapshot(), func(s string) bool {
			return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
		})
		if len(left) > 0 {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
}
