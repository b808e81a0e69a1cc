package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// shimName is the runtime plugin that drives crun and runc, as creeld has it.
const shimName = "io.containerd.runc.v2"

// groupAnnotation has the shim serve all containers of one value.
const groupAnnotation = "io.containerd.runc.v2.group"

// bare runs containers of creel's own OCI spec with nothing but containerd's
// client: what a program would do that had no creel. It uses creeld's private
// containerd, so that both have the same binaries, configuration and disk.
type bare struct {
	host  *host
	cd    *containerd.Client
	image containerd.Image
	spec  specs.Spec // as creel made it for a sandbox
	init  string     // a copy of creel-init
	bin   string
	next  atomic.Int64
}

// newBare takes the spec of a sandbox that creel has made.
func newBare(ctx context.Context, h *host, o options, id string) (_ *bare, err error) {
	b := &bare{host: h, bin: o.bin, init: filepath.Join(h.run, "bare-init")}
	if b.cd, err = containerd.New(h.containerdSocket(), containerd.WithDefaultNamespace("creel")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.cd.Close())
		}
	}()
	c, err := b.cd.LoadContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	s, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	b.spec = *s
	if b.image, err = b.cd.GetImage(ctx, "docker.io/library/"+imageName+":latest"); err != nil {
		return nil, err
	}
	return b, copyFile(filepath.Join(o.bin, "creel-init"), b.init)
}

func copyFile(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o555)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

func (b *bare) close() error { return b.cd.Close() }

// container is a bare one that runs.
type container struct {
	containerd.Container
	task containerd.Task
	// What each part of its start took, in milliseconds.
	created, tasked, started float64
}

// variant is how a bare container differs from creel's.
type variant struct {
	runtime string
	group   string   // of containers that share a shim; none when empty
	args    []string // in place of creel-init
}

// specOf is creel's spec with names, ids and paths of its own. The network
// namespace is left to the runtime: creel makes it and hands it over.
func (b *bare) specOf(name string, uid uint32, v variant) (*specs.Spec, error) {
	text, err := json.Marshal(b.spec)
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	s.Hostname = name
	s.Linux.CgroupsPath = filepath.Join(filepath.Dir(s.Linux.CgroupsPath), name)
	s.Linux.UIDMappings[0].HostID, s.Linux.GIDMappings[0].HostID = uid, uid
	for i := range s.Linux.Namespaces {
		s.Linux.Namespaces[i].Path = ""
	}
	for i := range s.Mounts {
		if s.Mounts[i].Destination == "/dev/creel-init" {
			s.Mounts[i].Source = b.init
		}
	}
	if v.args != nil {
		s.Process.Args = v.args
	}
	if v.group != "" {
		s.Annotations = map[string]string{groupAnnotation: v.group}
	}
	return &s, nil
}

// start makes a container and runs it; the time is that of the client's calls.
func (b *bare) start(ctx context.Context, v variant) (_ *container, took time.Duration, err error) {
	n := b.next.Add(1)
	name, uid := fmt.Sprintf("bare-%d", n), uint32(bareID+n%1024*65536)
	spec, err := b.specOf(name, uid, v)
	if err != nil {
		return nil, 0, err
	}
	opts := &runcoptions.Options{BinaryName: filepath.Join(b.bin, v.runtime), Root: filepath.Join(b.host.run, "containerd", "oci")}
	began := time.Now()
	c, err := b.cd.NewContainer(ctx, name,
		containerd.WithSnapshotter("overlayfs"),
		containerd.WithNewSnapshot(name, b.image, containerd.WithRemapperLabels(0, uid, 0, uid, 65536)),
		containerd.WithSpec(spec),
		containerd.WithRuntime(shimName, opts))
	if err != nil {
		return nil, 0, fmt.Errorf("bare container: %w", err)
	}
	out := &container{Container: c, created: ms(time.Since(began))}
	made := time.Now()
	out.task, err = c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return nil, 0, fmt.Errorf("bare task: %w", errors.Join(err, c.Delete(ctx, containerd.WithSnapshotCleanup)))
	}
	out.tasked = ms(time.Since(made))
	made = time.Now()
	if err := out.task.Start(ctx); err != nil {
		return nil, 0, fmt.Errorf("bare start: %w", errors.Join(err, out.remove(ctx)))
	}
	out.started = ms(time.Since(made))
	return out, time.Since(began), nil
}

// remove kills the container and deletes all of it.
func (c *container) remove(ctx context.Context) error {
	exited, err := c.task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := c.task.Kill(ctx, unix.SIGKILL); err != nil {
		return err
	}
	<-exited
	if _, err := c.task.Delete(ctx); err != nil {
		return err
	}
	return c.Delete(ctx, containerd.WithSnapshotCleanup)
}

// exec runs a command in the container to its end, as the agent's user.
func (c *container) exec(ctx context.Context, spec *specs.Process, id string) (took time.Duration, err error) {
	began := time.Now()
	p, err := c.task.Exec(ctx, id, spec, cio.NullIO)
	if err != nil {
		return 0, err
	}
	exited, err := p.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if err := p.Start(ctx); err != nil {
		return 0, err
	}
	status := <-exited
	took = time.Since(began) // its deletion is not counted
	if _, err := p.Delete(ctx); err != nil {
		return 0, err
	}
	if status.ExitCode() != 0 {
		return 0, fmt.Errorf("bare exec: exit status %d", status.ExitCode())
	}
	return took, nil
}
