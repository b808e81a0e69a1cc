package lab

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/runtime"
)

// Snapshot is everything in the kernel, in containerd and on disk that
// belongs to sandboxes of this lab, as sorted text: a host without sandboxes
// has none.
func (l *Lab) Snapshot() []string {
	l.tb.Helper()
	var out []string
	out = append(out, l.inContainerd()...)
	out = append(out, l.cgroups()...)
	out = append(out, l.mounts()...)
	out = append(out, l.processes()...)
	out = append(out, l.loops()...)
	for _, dir := range []string{"run/sandboxes", "state/logs", "state/rootfs"} {
		entries, _ := os.ReadDir(filepath.Join(l.Dir, dir))
		for _, e := range entries {
			if e.Name() != "templates" { // empty images, kept to be fast
				out = append(out, "directory "+dir+"/"+e.Name())
			}
		}
	}
	// A volume is meant to stay, one that is half made or half removed is not.
	pending, _ := filepath.Glob(filepath.Join(l.Dir, "state", "volumes", "pending-*"))
	for _, p := range pending {
		out = append(out, "directory state/volumes/"+filepath.Base(p))
	}
	slices.Sort(out)
	return out
}

// NothingLeft fails the test if anything of a sandbox is left. Clean-up goes
// on after the answer, so it waits.
func (l *Lab) NothingLeft() {
	l.tb.Helper()
	var left []string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if left = l.Snapshot(); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.tb.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			return
		}
	}
}

func (l *Lab) inContainerd() (out []string) {
	l.tb.Helper()
	state := filepath.Join(l.Dir, "run", "containerd")
	rt, err := runtime.Connect(runtime.Options{Address: filepath.Join(state, "containerd.sock"), Bin: l.Bin, State: state})
	if err != nil {
		l.tb.Errorf("connect to containerd: %v", err)
		return nil
	}
	defer rt.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	found, err := rt.List(ctx)
	if err != nil {
		return []string{"containerd does not answer: " + err.Error()}
	}
	for _, f := range found {
		out = append(out, fmt.Sprintf("containerd %s container=%v snapshot=%v task=%v %q", f.ID, f.Container, f.Snapshot, f.Task, f.Traces))
	}
	return out
}

func (l *Lab) cgroups() (out []string) {
	for _, top := range l.cgroupTops() {
		// On v2 sandboxes are one below, in a cgroup that stays.
		if sub := filepath.Join(top, "sandboxes"); exists(sub) {
			top = sub
		}
		entries, _ := os.ReadDir(top)
		for _, e := range entries {
			if e.IsDir() && e.Name() != "supervisor" {
				out = append(out, "cgroup "+filepath.Join(top, e.Name()))
			}
		}
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// cgroupTops is the lab's own cgroup in every hierarchy.
func (l *Lab) cgroupTops() (out []string) {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, _ := filepath.Glob(pattern + l.cgroup)
		out = append(out, tops...)
	}
	return out
}

// mounts below the lab's directories, in the daemon's mount namespace.
func (l *Lab) mounts() (out []string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", l.DaemonPID()))
	if err != nil {
		return []string{"mounts of creeld: " + err.Error()}
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasPrefix(f[4], l.Dir+"/") {
			continue
		}
		switch f[4] {
		case l.StateDir(), filepath.Join(l.Dir, "run"), filepath.Join(l.Dir, "run", "mnt"), filepath.Join(l.Dir, "run", "mnt", "ns"), filepath.Join(l.Dir, "run", "bpf"), filepath.Join(l.Dir, "run", "steer"):
		default:
			out = append(out, "mount "+f[4])
		}
	}
	return out
}

// processes in the daemon's mount namespace or in a sandbox's cgroup, other
// than the daemon, containerd and those of callers' networks.
func (l *Lab) processes() (out []string) {
	own, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", l.DaemonPID()))
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || pid == l.DaemonPID() || len(cmd) == 0 {
			continue
		}
		words := strings.Split(string(cmd), "\x00")
		ns, _ := os.Readlink(filepath.Join(dir, "ns", "mnt"))
		cg, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		sandboxed := strings.Contains(string(cg), l.cgroup+"/") && !strings.Contains(string(cg), l.cgroup+"/supervisor")
		// With a containerd of somebody else's it is the host's.
		if (ns != own || l.foreign) && !sandboxed {
			continue
		}
		if name := filepath.Base(words[0]); name == "containerd" || name == "creel-egress" { // it stays a while
			continue
		}
		out = append(out, fmt.Sprintf("process %d %q", pid, words))
	}
	return out
}

func (l *Lab) loops() (out []string) {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), l.StateDir()+"/") {
			out = append(out, "loop "+strings.TrimSpace(string(text)))
		}
	}
	return out
}

// ContainerdPID is the pid of the lab's containerd, 0 when none runs.
func (l *Lab) ContainerdPID() int {
	want := filepath.Join(l.Dir, "run", "containerd", "containerd.toml")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && strings.HasSuffix(strings.TrimRight(string(cmd), "\x00"), want) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}

// ShimPID is the pid of a sandbox's shim, 0 when none runs.
func (l *Lab) ShimPID(id string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		words := strings.Split(string(cmd), "\x00")
		if err == nil && filepath.Base(words[0]) == "containerd-shim-runc-v2" && slices.Contains(words, id) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	return 0
}

// EgressPIDs are the processes that serve a caller's networks: one or none.
func (l *Lab) EgressPIDs(caller uint32) (pids []int) {
	socks, _ := filepath.Glob(filepath.Join(l.Dir, "run", "egress", fmt.Sprintf("%d-*.sock", caller)))
	for _, s := range socks {
		_, uid, _ := strings.Cut(strings.TrimSuffix(filepath.Base(s), ".sock"), "-")
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			st, err := os.ReadFile(filepath.Join(dir, "status"))
			if pid, perr := strconv.Atoi(filepath.Base(dir)); err == nil && perr == nil && strings.Contains(string(st), "\nUid:\t"+uid+"\t") {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// endEgress ends the processes of all networks.
func (l *Lab) endEgress() {
	socks, _ := filepath.Glob(filepath.Join(l.Dir, "run", "egress", "*-*.sock"))
	for _, s := range socks {
		caller, _, _ := strings.Cut(filepath.Base(s), "-")
		n, err := strconv.ParseUint(caller, 10, 32)
		if err != nil {
			l.tb.Error(err)
			continue
		}
		for _, pid := range l.EgressPIDs(uint32(n)) {
			l.KillPID(pid)
		}
	}
}

func (l *Lab) stopContainerd() {
	pid := l.ContainerdPID()
	if pid == 0 {
		return
	}
	_ = unix.Kill(pid, unix.SIGTERM)
	l.Eventually("containerd ends", 20*time.Second, func() error {
		if l.ContainerdPID() == 0 {
			return nil
		}
		return fmt.Errorf("pid %d is there", pid)
	})
}

// unmountAll takes away the pinned mount namespace, the only mount of the
// daemon's that the host sees.
func (l *Lab) unmountAll() {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		l.tb.Error(err)
		return
	}
	defer f.Close()
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 4 && strings.HasPrefix(w[4], l.Dir+"/") {
			points = append(points, w[4])
		}
	}
	slices.Reverse(points)
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			l.tb.Errorf("unmount %s: %v", p, err)
		}
	}
}

func (l *Lab) removeCgroups() {
	for _, top := range l.cgroupTops() {
		var dirs []string
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			_ = os.Remove(d) // empty unless NothingLeft has said so
		}
	}
}
