package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

const (
	// waitDelay is between SIGTERM and SIGKILL for a command line.
	waitDelay = 5 * time.Second
	// startTimeout is until creeld answers; the first start is the longest.
	startTimeout = 60 * time.Second
	imageRef     = "base"

	// Outside the default range, so that another creeld's sandboxes have
	// none of these (systemd's uids-and-gids.md leaves them unused).
	firstID, lastID = 0x77F0_0000, 0x77FF_FFFF
)

func runDir() string     { return filepath.Join(scratch, "run") }
func socketPath() string { return filepath.Join(runDir(), "creel.sock") }
func logPath() string    { return filepath.Join(scratch, "creeld.log") }

func (d *demo) config() string {
	return fmt.Sprintf(`version = 1
run_dir = %q
state_dir = %q
bin_dir = %q
socket = %q
socket_group = %q
profiles_dir = %q
default_image = %q
[ids]
first = %#x
last = %#x
[cgroup]
root = %q
`, runDir(), filepath.Join(d.cache, "state"), d.bin, socketPath(), userName,
		filepath.Join(scratch, "profiles"), imageRef, firstID, lastID, cgroupRoot)
}

// process is a running creeld.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

func (d *demo) startDaemon(ctx context.Context) error {
	conf := filepath.Join(scratch, "creeld.toml")
	if err := os.WriteFile(conf, []byte(d.config()), 0o600); err != nil {
		return err
	}
	// The user must be able to execute creel wherever the checkout is.
	if err := copyProgram(filepath.Join(d.bin, "creel"), filepath.Join(scratch, "bin", "creel")); err != nil {
		return err
	}
	log, err := os.OpenFile(logPath(), os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// It outlives ctx: cleaning up needs it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(d.bin, "creeld"), "--config", conf)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for the demo
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	d.daemon, d.client = p, client.New(socketPath())
	v, err := d.answer(ctx)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(logPath()))
	}
	// Of a run that was killed: their records are in what is kept.
	if err := d.removeSandboxes(ctx); err != nil {
		return err
	}
	d.tell.say("    creel %s, containerd %s, %s %s, Linux %s, cgroup %s", v.Creel, v.Containerd, v.Runtime, v.RuntimeVer, v.Kernel, v.Cgroup)
	return nil
}

// removeSandboxes removes whatever the daemon has.
func (d *demo) removeSandboxes(ctx context.Context) error {
	list, err := d.client.List(ctx, client.ListOptions{All: true})
	if err != nil {
		return err
	}
	var errs []error
	for _, sb := range list {
		errs = append(errs, d.client.Remove(ctx, sb.ID, true))
	}
	return errors.Join(errs...)
}

// answer waits until creeld does.
func (d *demo) answer(ctx context.Context) (*api.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		v, err := d.client.Version(ctx)
		if err == nil {
			return v, nil
		}
		select {
		case <-d.daemon.done:
			return nil, fmt.Errorf("creeld ended: %w", errors.Join(d.daemon.err))
		case <-ctx.Done():
			return nil, fmt.Errorf("creeld does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func ended(p *process) bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends creeld, by force after grace.
func (p *process) stop(grace time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // ended already: done says so
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	err := p.cmd.Process.Kill()
	<-p.done
	return errors.Join(fmt.Errorf("creeld did not stop within %s", grace), err)
}

// importImage imports the archive unless the kept state has it already.
func (d *demo) importImage(ctx context.Context) error {
	info, err := os.Stat(d.image)
	if err != nil {
		return fmt.Errorf("%w; \"make image\" builds it", err)
	}
	stamp := filepath.Join(d.cache, "imported")
	want := fmt.Sprintf("%d %d\n", info.Size(), info.ModTime().UnixNano())
	if have, err := os.ReadFile(stamp); err == nil && string(have) == want {
		if img, err := d.client.Image(ctx, imageRef); err == nil {
			d.tell.say("    kept from the last run: %s", img.Digest)
			return nil
		}
	}
	f, err := os.Open(d.image)
	if err != nil {
		return err
	}
	defer f.Close()
	img, err := d.client.ImportImage(ctx, imageRef, f)
	if err != nil {
		return err
	}
	d.tell.say("    %s", img.Digest)
	return os.WriteFile(stamp, []byte(want), 0o600)
}

func copyProgram(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("%w; \"make tools build\" makes it", err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// tail is the end of a log, for an error.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}
