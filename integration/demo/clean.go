package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/mountns"
)

// cgroupRoot is the demo's in every hierarchy.
const cgroupRoot = "/creel-demo"

// killTimeout is how long processes may take to go.
const killTimeout = 10 * time.Second

// cleanUp takes away whatever a run can have made, however it ended. It
// finds things by name, not by memory, so that it also cleans up after a run
// that was killed; nothing there is success.
func (d *demo) cleanUp(ctx context.Context) error {
	var errs []error
	errs = append(errs, endProcesses())
	if _, err := os.Stat(runDir()); err == nil {
		errs = append(errs, mountns.Unpin(runDir()))
	}
	errs = append(errs, removeCgroups(), removeUser(ctx))
	if mounts, err := ownMounts(); err != nil || len(mounts) > 0 {
		errs = append(errs, err, fmt.Errorf("still mounted, so %s is not removed: %s", scratch, strings.Join(mounts, ", ")))
	} else if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(scratch))
	}
	return errors.Join(errs...)
}

// showLeftovers fails if there is anything, and says what was looked for.
func (d *demo) showLeftovers() error {
	procs, perr := ownProcesses()
	mounts, merr := ownMounts()
	groups, gerr := ownCgroups()
	loops, lerr := ownLoops(d.cache)
	if err := errors.Join(perr, merr, gerr, lerr); err != nil {
		return err
	}
	var users, dirs []string
	if u, err := user.Lookup(userName); err == nil {
		users = append(users, u.Username)
	}
	if g, err := user.LookupGroup(userName); err == nil {
		users = append(users, "group "+g.Name)
	}
	if _, err := os.Lstat(scratch); err == nil {
		dirs = append(dirs, scratch)
	}
	var names []string
	for _, p := range procs {
		names = append(names, fmt.Sprintf("%d (%s)", p, comm(p)))
	}
	left := 0
	for _, row := range []struct {
		what  string
		found []string
	}{
		{"processes", names},
		{"mounts and pinned namespaces", mounts},
		{"cgroups", groups},
		{"loop devices", loops},
		{"users and groups", users},
		{"files outside the checkout", dirs},
	} {
		left += len(row.found)
		d.tell.say("    %-30s %s", row.what, cmpOr(strings.Join(row.found, ", "), "none"))
	}
	if left > 0 {
		return fmt.Errorf("%d things are left behind", left)
	}
	d.tell.say("    nothing is left; the unpacked image stays in %s", d.cache)
	return nil
}

func cmpOr(s, or string) string {
	if s == "" {
		return or
	}
	return s
}

// endProcesses kills every process of the demo and waits until they are gone.
// Several rounds, because one may fork before it is killed.
func endProcesses() error {
	for deadline := time.Now().Add(killTimeout); ; time.Sleep(20 * time.Millisecond) {
		procs, err := ownProcesses()
		if err != nil || len(procs) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", procs)
		}
		for _, pid := range procs {
			kill(pid)
		}
	}
}

// kill kills a process that still is the demo's when the pidfd holds it.
func kill(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone
	}
	defer unix.Close(fd)
	if own, err := ownProcesses(); err == nil && slices.Contains(own, pid) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // the next round sees a failure
	}
}

// ownProcesses are those in the demo's mount namespace (creeld, containerd,
// shims), in its cgroups (agents), and of its ids.
func ownProcesses() ([]int, error) {
	var pinned unix.Stat_t
	havePin := unix.Stat(filepath.Join(runDir(), "mnt", "ns"), &pinned) == nil
	in := map[int]bool{}
	groups, err := ownCgroups()
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		b, err := os.ReadFile(filepath.Join(g, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				in[pid] = true
			}
		}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	acc, _ := lookup() // no such user: no process of it
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		var ns unix.Stat_t
		if havePin && unix.Stat(filepath.Join(dir, "ns", "mnt"), &ns) == nil && ns.Dev == pinned.Dev && ns.Ino == pinned.Ino {
			in[pid] = true
		}
		if uid, ok := realUID(dir); ok && (uid >= firstID && uid <= lastID || acc != nil && uid == acc.uid) {
			in[pid] = true
		}
	}
	out := make([]int, 0, len(in))
	for pid := range in {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out, nil
}

func realUID(proc string) (uint32, bool) {
	b, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return 0, false
	}
	_, rest, ok := bytes.Cut(b, []byte("\nUid:\t"))
	f := strings.Fields(string(rest))
	if !ok || len(f) == 0 {
		return 0, false
	}
	uid, err := strconv.ParseUint(f[0], 10, 32)
	return uint32(uid), err == nil
}

func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)) // for display
	return strings.TrimSpace(string(b))
}

// mountPoints are those for which keep says yes, given type and source.
func mountPoints(keep func(point, fsType string) bool) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if ok && len(l) > 4 && len(r) > 0 && keep(l[4], r[0]) {
			out = append(out, l[4])
		}
	}
	return out, nil
}

func ownMounts() ([]string, error) {
	return mountPoints(func(point, _ string) bool {
		return point == scratch || strings.HasPrefix(point, scratch+"/")
	})
}

// ownCgroups are the demo's, parents first, in every mounted hierarchy.
func ownCgroups() ([]string, error) {
	tops, err := mountPoints(func(_, fsType string) bool { return fsType == "cgroup" || fsType == "cgroup2" })
	if err != nil {
		return nil, err
	}
	var out []string
	for _, top := range tops {
		err := filepath.WalkDir(filepath.Join(top, cgroupRoot), func(path string, e fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err == nil && e.IsDir():
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func removeCgroups() error {
	groups, err := ownCgroups()
	if err != nil {
		return err
	}
	slices.Reverse(groups)
	for deadline := time.Now().Add(killTimeout); ; time.Sleep(10 * time.Millisecond) {
		var errs []error
		for _, g := range groups {
			// A dying process keeps its cgroup busy for a moment.
			if err := unix.Rmdir(g); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", g, err))
			}
		}
		if len(errs) == 0 || time.Now().After(deadline) {
			return errors.Join(errs...)
		}
	}
}

// ownLoops are loop devices over files of the demo's state.
func ownLoops(cache string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.HasPrefix(string(b), cache+"/") {
			out = append(out, filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return out, nil
}
