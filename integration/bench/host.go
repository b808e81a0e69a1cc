package main

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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/mountns"
)

// host is a creeld with its containerd, for this run alone.
type host struct {
	*client.Client
	run, state string // run is a tmpfs, as /run is on the target platform
	cgroup     string
	socket     string
	daemon     *exec.Cmd
	ended      chan struct{}
	setup
}

// setup is what one host has that another has not.
type setup struct {
	first, last uint32 // host ids of its sandboxes
	config      string // that goes on where the host's own ends
	// fill is given the path of the state file before the daemon opens it; nil
	// is for an empty one. What it puts there is not removed at the end but
	// with the file.
	fill func(path string) error
}

// The host ids of the daemon's sandboxes, and the first of the bare
// containers': ranges that the other tests of this project do not use.
const (
	firstID   = 0x7B00_0000
	lastID    = 0x7B7F_FFFF
	crowdedID = 0x7B80_0000 // the first of the host that has a past
	lastOfAll = 0x7BFF_FFFF
	bareID    = 0x7C00_0000
)

func newHost(ctx context.Context, o options, s setup) (_ *host, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("must run as root")
	}
	h := &host{ended: make(chan struct{}), setup: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	// Short, because sockets below it must fit into 108 bytes.
	if h.run, err = os.MkdirTemp("/run", "creel-bench-"); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", h.run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, fmt.Errorf("tmpfs for the run directory: %w", err)
	}
	if h.state, err = os.MkdirTemp("/var/tmp", "creel-bench-"); err != nil {
		return nil, err
	}
	h.cgroup = "/" + filepath.Base(h.run)
	h.socket = filepath.Join(h.run, "creel.sock")
	h.Client = client.New(h.socket)
	config := filepath.Join(h.run, "creeld.toml")
	text := fmt.Sprintf(`version = 1
run_dir = %q
state_dir = %q
bin_dir = %q
socket = %q
socket_group = ""
[cgroup]
root = %q
[runtime]
default = %q
[ids]
first = %d
last = %d
`, h.run, filepath.Join(h.state, "state"), o.bin, h.socket, h.cgroup, o.runtime, s.first, s.last) + s.config
	if s.fill != nil {
		dir := filepath.Join(h.state, "state")
		if err := errors.Join(os.Mkdir(dir, 0o700), s.fill(filepath.Join(dir, "state.db"))); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return h, h.start(ctx, filepath.Join(o.bin, "creeld"), config)
}

func (h *host) start(ctx context.Context, creeld, config string) error {
	log, err := os.OpenFile(filepath.Join(h.state, "creeld.log"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not ended with ctx: close does it when the sandboxes are gone.
	h.daemon = exec.CommandContext(context.WithoutCancel(ctx), creeld, "--config", config)
	h.daemon.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	h.daemon.Stdout, h.daemon.Stderr = log, log
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := h.daemon.Start(); err != nil {
		h.daemon = nil
		return err
	}
	go func() { _ = h.daemon.Wait(); close(h.ended) }()
	return eventually(ctx, "creeld answers", time.Minute, func() error {
		select {
		case <-h.ended:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("creeld ended:\n%s", text)
		default:
		}
		_, err := h.Version(ctx)
		return err
	})
}

// importImage gives the daemon the image of an archive.
func (h *host) importImage(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return fmt.Errorf("image: %w; \"make image\" makes it", err)
	}
	defer f.Close()
	_, err = h.ImportImage(ctx, imageName, f)
	return err
}

// eventually waits until cond is nil.
func eventually(ctx context.Context, what string, within time.Duration, cond func() error) error {
	for deadline := time.Now().Add(within); ; time.Sleep(2 * time.Millisecond) {
		err := cond()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case time.Now().After(deadline):
			return fmt.Errorf("%s: not within %s: %w", what, within, err)
		}
	}
}

// close removes every sandbox, the daemon, its containerd, and what they had.
func (h *host) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	if h.daemon != nil {
		if h.fill == nil {
			errs = append(errs, h.removeAll(ctx))
		}
		errs = append(errs, h.daemon.Process.Signal(unix.SIGTERM))
		<-h.ended
	}
	errs = append(errs, h.stopContainerd(ctx))
	if h.run != "" {
		errs = append(errs, mountns.Unpin(h.run), unmount(h.run), os.RemoveAll(h.run), h.removeCgroups())
	}
	if h.state != "" {
		errs = append(errs, os.RemoveAll(h.state))
	}
	return errors.Join(errs...)
}

func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

func (h *host) removeAll(ctx context.Context) error {
	all, err := h.List(ctx, client.ListOptions{All: true})
	if err != nil {
		return err
	}
	for _, sb := range all {
		if err := errors.Join(h.Remove(ctx, sb.ID, true), h.settled(ctx, sb.ID)); err != nil {
			return err
		}
	}
	return nil
}

// settled waits until nothing of a sandbox is left: clean-up goes on after
// the answer, and must not be counted in the next sample.
func (h *host) settled(ctx context.Context, id string) error {
	return eventually(ctx, "clean-up of "+id, time.Minute, func() error {
		if _, err := os.Lstat(filepath.Join(h.run, "sandboxes", id)); !errors.Is(err, os.ErrNotExist) {
			return errors.New("its directory is there")
		}
		return nil
	})
}

func (h *host) daemonPID() int { return h.daemon.Process.Pid }

func (h *host) containerdSocket() string {
	return filepath.Join(h.run, "containerd", "containerd.sock")
}

// processes are the pids whose command line keep accepts.
func processes(keep func(args []string) bool) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is good
	for _, d := range dirs {
		text, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || len(text) == 0 {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && keep(strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// containerdPIDs is the daemon's containerd.
func (h *host) containerdPIDs() []int {
	return processes(func(args []string) bool {
		return slices.Contains(args, filepath.Join(h.run, "containerd", "containerd.toml"))
	})
}

// shims are those of the daemon's containerd.
func (h *host) shims() []int {
	return processes(func(args []string) bool {
		return filepath.Base(args[0]) == "containerd-shim-runc-v2" && slices.Contains(args, h.containerdSocket())
	})
}

func (h *host) stopContainerd(ctx context.Context) error {
	if h.run == "" {
		return nil
	}
	for _, pid := range h.containerdPIDs() {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return eventually(ctx, "containerd ends", 20*time.Second, func() error {
		if pids := h.containerdPIDs(); len(pids) > 0 {
			return fmt.Errorf("pid %v is there", pids)
		}
		return nil
	})
}

// removeCgroups removes the run's own cgroup from each hierarchy; what is in
// it has ended.
func (h *host) removeCgroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, _ := filepath.Glob(pattern + h.cgroup) // the pattern is good
		for _, top := range tops {
			below, _ := filepath.Glob(top + "/*")
			for _, d := range append(below, top) {
				if fi, err := os.Lstat(d); err == nil && fi.IsDir() {
					errs = append(errs, unix.Rmdir(d))
				}
			}
		}
	}
	return errors.Join(errs...)
}
