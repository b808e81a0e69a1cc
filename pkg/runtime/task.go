package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/failpoint"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// specType is how containerd names an encoded OCI spec (client/client.go).
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// CreateOptions describe a sandbox to containerd.
type CreateOptions struct {
	// ID names the snapshot, the container and the task. Required.
	ID string
	// Image is a reference or digest that Images knows. Required.
	Image string
	// Spec is the OCI spec, used as it is: nothing of the image is added.
	// Its root path must be "rootfs", its annotations empty.
	Spec *specs.Spec
	// Runtime is "crun" or "runc".
	Runtime string
	// HostUID is the first of the RangeSize host uids and gids that ids from
	// 0 are mapped to, in the spec and in the root file system. Not 0.
	HostUID uint32
	// Labels are kept with the container; each begins with LabelPrefix.
	Labels map[string]string
	// Upper, when set, is the writable layer: a directory on a file system
	// whose size is the sandbox's disk limit. Create makes "upper" and
	// "work" in it. When empty the writable layer is the snapshot's own,
	// which is right only for a read-only root.
	Upper string
}

// createTime is how long containerd may take to make a snapshot and a container.
const createTime = 30 * time.Second

// Sandbox is what Create made and NewTask needs.
type Sandbox struct {
	ID     string
	rootfs []*types.Mount
}

// Create makes the snapshot and the container of a sandbox. If it fails
// nothing stays. DeleteContainer undoes it.
func (c *Client) Create(ctx context.Context, o CreateOptions) (_ *Sandbox, err error) {
	opts, err := c.check(o)
	if err != nil {
		return nil, err
	}
	ch, err := c.chainOf(ctx, o.Image)
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(o.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec of %s: %w", o.ID, err)
	}
	// A caller that goes away does not end the calls: containerd may do what
	// was asked after its client was told that it is cancelled, and then what
	// undoes it has been before.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTime)
	defer cancel()
	// Both at one time: each is a commit to disk.
	var mounts []mount.Mount
	var cerr, serr error
	var g sync.WaitGroup
	g.Go(func() {
		_, cerr = c.ctrs.Create(ctx, containers.Container{
			ID:          o.ID,
			Labels:      maps.Clone(o.Labels),
			Runtime:     containers.RuntimeInfo{Name: runcShim, Options: opts},
			Spec:        encoded{specType, spec},
			Snapshotter: snapshotter,
			SnapshotKey: o.ID,
		})
		cerr = wrap(cerr, "container "+o.ID)
	})
	g.Go(func() { mounts, serr = c.snapshot(ctx, o, ch) })
	g.Wait()
	if cerr != nil || serr != nil {
		return nil, errors.Join(cerr, serr, c.undoCreate(ctx, o.ID, cerr == nil, serr == nil))
	}
	for i := range mounts {
		// The runtimes do not ask for these, and the kernel locks them: what
		// an image has of set-user-ID files and device nodes is inert.
		for _, flag := range []string{"nosuid", "nodev"} {
			if !failpoint.On("layer.root." + flag) {
				mounts[i].Options = append(mounts[i].Options, flag)
			}
		}
	}
	return &Sandbox{ID: o.ID, rootfs: mount.ToProto(mounts)}, nil
}

// undoCreate removes what a Create that failed has made, and nothing that
// was there before.
func (c *Client) undoCreate(ctx context.Context, id string, container, snapshot bool) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if snapshot {
		err = wrap(gone(c.snaps.Remove(ctx, id)), "remove snapshot "+id)
	}
	if container {
		err = errors.Join(err, wrap(gone(c.ctrs.Delete(ctx, id)), "delete container "+id))
	}
	return err
}

// check refuses what could weaken a sandbox or name something else.
func (c *Client) check(o CreateOptions) (typeurl.Any, error) {
	switch {
	case !validID(o.ID):
		return nil, api.Errorf(api.CodeInternal, "sandbox id %q: want [a-z0-9-]", o.ID)
	case o.HostUID == 0:
		return nil, api.Errorf(api.CodeInternal, "sandbox %s: host uid range begins at 0, which is root", o.ID)
	case o.Spec == nil || o.Spec.Root == nil || o.Spec.Root.Path != "rootfs":
		return nil, api.Errorf(api.CodeInternal, "sandbox %s: the spec's root path must be \"rootfs\"", o.ID)
	case len(o.Spec.Annotations) > 0:
		// Annotations steer the shim (grouping) and the runtimes (crun's
		// run.oci.*), past everything the spec says.
		return nil, api.Errorf(api.CodeInternal, "sandbox %s: the spec has annotations", o.ID)
	case o.Spec.Hooks != nil:
		return nil, api.Errorf(api.CodeInternal, "sandbox %s: the spec has hooks", o.ID)
	}
	for k := range o.Labels {
		if !strings.HasPrefix(k, LabelPrefix) {
			return nil, api.Errorf(api.CodeInternal, "sandbox %s: label %q does not begin with %s", o.ID, k, LabelPrefix)
		}
	}
	return c.runtimeOptions(o.Runtime)
}

// snapshot makes the root file system's snapshot and says how to mount it. If
// it fails there is none.
func (c *Client) snapshot(ctx context.Context, o CreateOptions, ch chain) (_ []mount.Mount, err error) {
	labels := containerd.WithRemapperLabels(0, o.HostUID, 0, o.HostUID, RangeSize)
	// The collector leaves it alone also while the container that names it
	// is not there yet. It is always removed by its name.
	root := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "creel"})
	prepare := c.snaps.Prepare
	if o.Upper != "" {
		prepare = c.snaps.View
	}
	mounts, err := prepare(ctx, o.ID, ch.id, labels, root)
	if orphan(err) != "" {
		c.orphans.Lock()
		defer c.orphans.Unlock()
		if mounts, err = prepare(ctx, o.ID, ch.id, labels, root); orphan(err) != "" {
			if err := removeOrphan(orphan(err)); err != nil {
				return nil, fmt.Errorf("snapshot %s: %w", o.ID, err)
			}
			mounts, err = prepare(ctx, o.ID, ch.id, labels, root)
		}
	}
	if err != nil {
		return nil, wrap(err, "snapshot "+o.ID)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undoCreate(ctx, o.ID, false, true))
		}
	}()
	if err := checkIDMapped(mounts, o.HostUID); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", o.ID, err)
	}
	if o.Upper != "" {
		return withUpper(mounts, o.Upper, o.HostUID)
	}
	return mounts, nil
}

// NewTask starts a shim and has the OCI runtime create the sandbox's
// processes and namespaces. PID 1 waits for StartTask. It returns PID 1's pid.
// DeleteTask undoes it, also when NewTask has failed.
func (c *Client) NewTask(ctx context.Context, s *Sandbox) (int, error) {
	r, err := c.tasks.Create(ctx, &tasks.CreateTaskRequest{
		ContainerID: s.ID,
		Rootfs:      s.rootfs,
		// No stdio: the shim gives PID 1 /dev/null.
	})
	if err != nil {
		return 0, wrap(err, "task "+s.ID)
	}
	return int(r.Pid), nil
}

// StartTask lets PID 1 execute.
func (c *Client) StartTask(ctx context.Context, id string) error {
	_, err := c.tasks.Start(ctx, &tasks.StartRequest{ContainerID: id})
	return wrap(err, "start task "+id)
}

// KillTask sends a signal to PID 1. A task that has ended is success.
func (c *Client) KillTask(ctx context.Context, id string, sig syscall.Signal) error {
	_, err := c.tasks.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(sig)})
	return wrap(gone(err), "kill task "+id)
}

// PauseTask freezes every process of the sandbox.
func (c *Client) PauseTask(ctx context.Context, id string) error {
	_, err := c.tasks.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id})
	return wrap(err, "pause task "+id)
}

// ResumeTask lets them run again.
func (c *Client) ResumeTask(ctx context.Context, id string) error {
	_, err := c.tasks.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
	return wrap(err, "resume task "+id)
}

// Pid is PID 1's pid on the host; api.CodeNotFound when there is no task.
func (c *Client) Pid(ctx context.Context, id string) (int, error) {
	r, err := c.tasks.Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return 0, wrap(err, "task "+id)
	}
	return int(r.Process.Pid), nil
}

// DeleteTask ends the task if it runs, has the runtime forget it and ends its
// shim. No task is success. When the caller has seen PID 1 end, by its pidfd,
// the first attempt succeeds.
func (c *Client) DeleteTask(ctx context.Context, id string) error {
	_, err := c.deleteTask(ctx, id)
	return err
}

// deleteTask says also whether containerd knew the task.
func (c *Client) deleteTask(ctx context.Context, id string) (known bool, err error) {
	const attempts = 40
	for i := 0; ; i++ {
		_, err := c.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		if gone(err) == nil {
			return err == nil, nil
		}
		if errdefs.IsUnavailable(native(err)) || i == attempts {
			return false, wrap(err, "delete task "+id)
		}
		// Most likely it still runs, or the shim has not yet noticed its
		// end; the error has no class of its own ("cannot delete a running
		// process").
		if err := c.KillTask(ctx, id, syscall.SIGKILL); err != nil {
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, wrap(ctx.Err(), "delete task "+id)
		case <-time.After(min(time.Duration(i+1)*2*time.Millisecond, 100*time.Millisecond)):
		}
	}
}

// DeleteContainer removes the container and the snapshot of a sandbox whose
// task has been deleted. What is not there is success.
func (c *Client) DeleteContainer(ctx context.Context, id string) error {
	// The snapshot first: while the container names it the collector leaves
	// it alone, and a crash in between leaves the container to find it by.
	if err := gone(c.snaps.Remove(ctx, id)); err != nil {
		return wrap(err, "remove snapshot "+id)
	}
	if err := gone(c.ctrs.Delete(ctx, id)); err != nil {
		return wrap(err, "delete container "+id)
	}
	// A shim that was killed leaves its socket.
	if err := os.Remove(c.shimSocket(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("shim socket of %s: %w", id, err)
	}
	return nil
}

// encoded is an Any whose bytes are ready.
type encoded struct {
	url   string
	value []byte
}

func (e encoded) GetTypeUrl() string { return e.url } //nolint:revive // typeurl.Any's name
func (e encoded) GetValue() []byte   { return e.value }

var _ typeurl.Any = encoded{}
