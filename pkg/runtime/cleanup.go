package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// gentle is how long Cleanup waits for a shim to end its task by itself.
const gentle = 5 * time.Second

// Found is what there is of one sandbox, in containerd and around it.
type Found struct {
	ID        string
	Labels    map[string]string // the container's
	Container bool
	Snapshot  bool
	Task      bool
	Pid       int      // PID 1 of the task
	Running   bool     // its processes are there, or paused
	Traces    []string // bundle directories, mounts, runtime state, shims
}

// List finds everything that belongs to sandboxes, by id, for reconciling.
func (c *Client) List(ctx context.Context) ([]Found, error) {
	all := map[string]*Found{}
	get := func(id string) *Found {
		if all[id] == nil {
			all[id] = &Found{ID: id}
		}
		return all[id]
	}
	ctrs, err := c.ctrs.List(ctx)
	if err != nil {
		return nil, wrap(err, "list containers")
	}
	for _, k := range ctrs {
		f := get(k.ID)
		f.Container, f.Labels = true, k.Labels
	}
	err = c.snaps.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted && validID(i.Name) {
			get(i.Name).Snapshot = true
		}
		return nil
	})
	if err != nil {
		return nil, wrap(err, "list snapshots")
	}
	ts, err := c.tasks.List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, wrap(err, "list tasks")
	}
	for _, t := range ts.Tasks {
		f := get(t.ID)
		f.Task, f.Pid = true, int(t.Pid)
		f.Running = t.Status == task.Status_RUNNING || t.Status == task.Status_PAUSED || t.Status == task.Status_PAUSING
	}
	for id, what := range c.traces() {
		get(id).Traces = what
	}
	out := make([]Found, 0, len(all))
	for _, f := range all {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Found) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Leftovers says, for people, what is there of sandboxes that known does not
// know and of imports that nobody ended.
func (c *Client) Leftovers(ctx context.Context, known func(id string) bool) ([]string, error) {
	found, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range found {
		if known(f.ID) {
			continue
		}
		for what, there := range map[string]bool{"container": f.Container, "snapshot": f.Snapshot, "task": f.Task} {
			if there {
				out = append(out, what+" "+f.ID)
			}
		}
		out = append(out, f.Traces...)
	}
	ls, err := c.cd.LeasesService().List(ctx)
	if err != nil {
		return nil, wrap(err, "list leases")
	}
	for _, l := range ls {
		out = append(out, "lease "+l.ID)
	}
	slices.Sort(out)
	return out, nil
}

// PruneImports ends imports and saves that an earlier daemon did not live to
// end, with what they had stored or held. Call it while none runs.
func (c *Client) PruneImports(ctx context.Context) error {
	lm := c.cd.LeasesService()
	ls, err := lm.List(ctx)
	if err != nil {
		return wrap(err, "list leases")
	}
	for _, l := range ls {
		if err := gone(lm.Delete(ctx, l, leases.SynchronousDelete)); err != nil {
			return wrap(err, "end lease "+l.ID)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(c.opts.State, "check-*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := unmountTree(d); err != nil {
			return err
		}
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// orphanPath is in the error of a snapshot whose directory exists already.
var orphanPath = regexp.MustCompile(`rename /\S+ (/\S+/io\.containerd\.snapshotter\.v1\.overlayfs/snapshots/[0-9]+): file exists`)

// orphan is the directory that a containerd left when it was killed after it
// had made a snapshot's directory and before it had committed the snapshot
// (plugins/snapshots/overlay, createSnapshot). Its number is given out again,
// so that every snapshot from then on fails; containerd itself looks for such
// directories only after a removal.
func orphan(err error) string {
	if err == nil {
		return ""
	}
	if m := orphanPath.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return ""
}

// removeOrphan removes an orphan, which was never mounted and is therefore
// empty. Nothing with a file in it can be removed.
func removeOrphan(dir string) error {
	for _, d := range []string{filepath.Join(dir, "fs"), filepath.Join(dir, "work"), dir} {
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove what a killed containerd left: %s: %w", d, err)
		}
	}
	return nil
}

// PruneMounts removes the mounts that a shim makes for a moment, of an image's
// id-mapped layers, and leaves when it is killed just then. Call it while no
// task is being created.
func (c *Client) PruneMounts() error {
	dirs, err := filepath.Glob(filepath.Join(c.opts.State, "tmp", "ovl-idmapped*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := unmountTree(d); err != nil {
			return err
		}
		if err := unix.Rmdir(d); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", d, err)
		}
	}
	return nil
}

// Cleanup removes everything there is of a sandbox, whatever state it was
// left in: processes, shim, bundle, mounts, container, snapshot. It succeeds
// when there is nothing, and may be repeated.
func (c *Client) Cleanup(ctx context.Context, id string) error {
	if err := c.EndTask(ctx, id); err != nil {
		return err
	}
	return c.DeleteContainer(ctx, id)
}

// EndTask is DeleteTask that also ends what containerd does not know, or
// cannot end: after a kill -9 of containerd, of a shim, or of both, a shim can
// be left that belongs to no task. No task is success.
func (c *Client) EndTask(ctx context.Context, id string) error {
	if !validID(id) {
		return api.Errorf(api.CodeInternal, "end task %q: not a sandbox id", id)
	}
	dctx, cancel := context.WithTimeout(ctx, gentle)
	known, err := c.deleteTask(dctx, id)
	cancel()
	if api.CodeOf(err) == api.CodeUnavailable || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	if known && !c.hasFiles(id) {
		return nil // the usual end: the shim has answered, and goes
	}
	// The process table is searched only when something is odd.
	if err == nil && len(c.traces()[id]) == 0 {
		return nil
	}
	if err := c.force(ctx, id); err != nil {
		return fmt.Errorf("end task %s: %w", id, err)
	}
	return nil
}

// hasFiles tells that a bundle or a runtime's state is there.
func (c *Client) hasFiles(id string) bool {
	for _, p := range append(c.bundles(id), filepath.Join(c.opts.State, "oci", Namespace, id)) {
		if _, err := os.Lstat(p); err == nil {
			return true
		}
	}
	return false
}

// force removes what containerd did not: it is for a shim that hangs or was
// killed, or a containerd that died between two steps.
func (c *Client) force(ctx context.Context, id string) error {
	deadline := time.After(gentle)
	if err := c.killShims(ctx, id); err != nil {
		return err
	}
	// containerd has seen the shim go and cleans up after it, with another
	// shim process. Its word is not needed, only that it does not do so at
	// the same time as what follows.
	for quiet := 0; quiet < 3; {
		_, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
		if errdefs.IsNotFound(native(err)) && !c.hasShim(id) {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			quiet = 3 // it hangs too: go on
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := c.killShims(ctx, id); err != nil {
		return err
	}
	if err := c.deleteOCI(ctx, id); err != nil {
		return err
	}
	for _, dir := range c.bundles(id) {
		if err := unmountTree(filepath.Join(dir, "rootfs")); err != nil {
			return err
		}
		if err := removeFlat(dir); err != nil {
			return err
		}
	}
	return nil
}

// killShims ends the shims of a sandbox; there is one at most, unless a
// containerd died while starting one.
func (c *Client) killShims(ctx context.Context, id string) error {
	for _, s := range c.shims() {
		if s.id != id {
			continue
		}
		p, err := openProcess(filepath.Join("/proc", strconv.Itoa(s.pid)))
		if err != nil || p == nil {
			continue // gone meanwhile
		}
		if now := shimID(s.pid, c.opts.Address); now != id { // the pid is somebody else's by now
			p.close()
			continue
		}
		err = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
		if err == nil {
			_, err = p.wait(ctx, 5*time.Second)
		}
		p.close()
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end shim %d: %w", s.pid, err)
		}
	}
	return nil
}

// deleteOCI has the OCI runtime kill and forget what it still knows. It is
// asked, not imitated: it tells its processes from others with recycled pids.
func (c *Client) deleteOCI(ctx context.Context, id string) error {
	root := filepath.Join(c.opts.State, "oci", Namespace)
	for name, mark := range map[string]string{"crun": "status", "runc": "state.json"} {
		if _, err := os.Lstat(filepath.Join(root, id, mark)); err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, filepath.Join(c.opts.Bin, name), "--root", root, "delete", "--force", id)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=" + c.opts.Bin, "LC_ALL=C"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s delete: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
	}
	// A runtime killed while creating leaves a directory without its mark.
	if err := removeFlat(filepath.Join(root, id)); err != nil {
		return err
	}
	return nil
}

// bundles are the directories containerd has for a task. Those of the
// persistent kind are known by the "work" link of the other.
func (c *Client) bundles(id string) []string {
	dir := filepath.Join(c.opts.State, "containerd", "io.containerd.runtime.v2.task", Namespace)
	out := []string{filepath.Join(dir, id), filepath.Join(dir, "."+id)}
	if work, err := os.Readlink(filepath.Join(dir, id, "work")); err == nil && filepath.Base(work) == id {
		out = append(out, work)
	}
	return out
}

// traces finds, by id, what is left outside of containerd's database.
func (c *Client) traces() map[string][]string {
	out := map[string][]string{}
	note := func(id, what string) {
		if validID(id) {
			out[id] = append(out[id], what)
		}
	}
	for what, dir := range map[string]string{
		"bundle":        filepath.Join(c.opts.State, "containerd", "io.containerd.runtime.v2.task", Namespace),
		"runtime state": filepath.Join(c.opts.State, "oci", Namespace),
	} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // never made
		}
		for _, e := range entries {
			note(strings.TrimPrefix(e.Name(), "."), what+" "+filepath.Join(dir, e.Name()))
		}
	}
	for _, s := range c.shims() {
		note(s.id, "shim process "+strconv.Itoa(s.pid))
	}
	return out
}

// shimProcess is a shim that runs.
type shimProcess struct {
	pid int
	id  string
}

// shims lists the shims of this containerd.
func (c *Client) shims() []shimProcess {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []shimProcess
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if id := shimID(pid, c.opts.Address); id != "" {
			out = append(out, shimProcess{pid, id})
		}
	}
	return out
}

func (c *Client) hasShim(id string) bool {
	return slices.ContainsFunc(c.shims(), func(s shimProcess) bool { return s.id == id })
}

// shimID is the sandbox whose shim a process is, "" if it is none of ours.
func shimID(pid int, address string) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	if !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-runc-v2") {
		return ""
	}
	value := func(flag string) string {
		if i := slices.Index(args, flag); i > 0 && i+1 < len(args) {
			return args[i+1]
		}
		return ""
	}
	if value("-namespace") != Namespace || value("-address") != address {
		return ""
	}
	return value("-id")
}

// shimSocket is where the shim of a sandbox listens (containerd,
// pkg/shim/util_unix.go, CreateSocketAddress).
func (c *Client) shimSocket(id string) string {
	sum := sha256.Sum256([]byte(filepath.Join(c.opts.Address, Namespace, id)))
	return filepath.Join(c.opts.State, "s", hex.EncodeToString(sum[:]))
}

// unmountTree detaches everything mounted at path, which may not exist.
func unmountTree(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// removeFlat removes a directory with its files and empty directories. It is
// not recursive on purpose: below something that is still mounted would be
// somebody's files.
func removeFlat(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// validID reports whether a name can be a sandbox's.
func validID(id string) bool {
	return id != "" && len(id) <= 76 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && !strings.HasPrefix(id, "-")
}
