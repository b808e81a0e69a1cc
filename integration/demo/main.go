// Command demo is "make demo": it runs an agent's job in a sandbox as an
// ordinary user, on this machine, and leaves nothing behind.
//
//	demo -bin DIR -image ARCHIVE -example DIR -cache DIR
//
// It starts a creeld of its own below /var/lib/creel-demo, beside any other
// on the machine: own containerd, socket, cgroup, id range and user. Only the
// unpacked image is kept, in the cache directory, so that the next run takes
// seconds. Whatever ends it, it cleans up; after a kill -9 the next run does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/client"
)

// demo is one run.
type demo struct {
	bin, image, example, cache string

	tell   *teller
	user   *account
	daemon *process
	client *client.Client
}

func main() {
	d := &demo{tell: &teller{w: os.Stdout}}
	flag.StringVar(&d.bin, "bin", "bin", "where creeld, creel, creel-init, containerd and crun are")
	flag.StringVar(&d.image, "image", ".cache/images/base.oci.tar", "OCI archive of the base image")
	flag.StringVar(&d.example, "example", "examples/web-traffic", "directory that becomes the workspace")
	flag.StringVar(&d.cache, "cache", ".cache/demo", "what is kept for the next run")
	flag.Parse()
	// SIGPIPE, too: "make demo | head" must not leave a daemon behind.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	defer stop()
	if err := d.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func (d *demo) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("must run as root: it starts creeld and makes a user for the time it takes")
	}
	for _, p := range []*string{&d.bin, &d.image, &d.example, &d.cache} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	began := time.Now()
	lock, err := takeLock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.MkdirAll(d.cache, 0o700); err != nil {
		return err
	}
	// What a killed run left would be in the way of this one.
	if err := d.cleanUp(ctx); err != nil {
		return fmt.Errorf("clean up after an earlier run: %w", err)
	}
	defer func() {
		cerr := d.end(context.WithoutCancel(ctx))
		if ctx.Err() != nil {
			err = context.Cause(ctx) // what it broke off says nothing
		}
		if err = errors.Join(err, cerr); err == nil {
			d.tell.say("demo done in %.1f s", time.Since(began).Seconds())
		}
	}()
	for _, step := range []struct {
		text string
		fn   func(context.Context) error
	}{
		{"make the user " + userName + " and its workspace", d.makeUser},
		{"start creeld with a containerd of its own", d.startDaemon},
		{"import the base image", d.importImage},
		{"run the job as " + userName, d.runJob},
		{"what the job left in the user's workspace", d.showFiles},
		{"the proof, read back from the kernel before the job's first instruction", d.showEvidence},
		{"the limits it had", d.showLimits},
		{"stop and remove the sandbox", d.removeSandbox},
	} {
		if err := d.tell.step(step.text, func() error { return step.fn(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

// end stops and removes everything, then looks for what is still there.
func (d *demo) end(ctx context.Context) error {
	err := d.tell.step("stop creeld and remove the user", func() error {
		var err error
		if d.daemon != nil {
			if err = d.removeSandboxes(ctx); ended(d.daemon) {
				err = nil // nobody to ask; it was said why
			}
			err = errors.Join(err, d.daemon.stop(10*time.Second))
		}
		return errors.Join(err, d.cleanUp(ctx))
	})
	return errors.Join(err, d.tell.step("look for what is left", d.showLeftovers))
}

// takeLock makes sure that one demo runs at a time on this machine, of
// whichever checkout. The lock is on the directory above scratch, so that it
// leaves no file.
func takeLock() (*os.File, error) {
	f, err := os.Open(filepath.Dir(scratch))
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another demo is running: lock %s: %w", f.Name(), err)
	}
	return f, nil
}
