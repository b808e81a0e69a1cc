package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// errNoBoot means that the machine never said the first line of guest.sh.
var errNoBoot = errors.New("the machine did not come up")

// boot runs the machine until it powers itself off and reads what it says.
// The error wraps errNoBoot if it said nothing within timeout.
func (l *layout) boot(ctx context.Context, qemu []string, timeout time.Duration, w io.Writer) (*report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	results, err := os.OpenFile(l.resultsLog(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer results.Close()

	args := append(qemu[1:len(qemu):len(qemu)], l.machine()...)
	cmd := exec.CommandContext(ctx, qemu[0], args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+l.work) // of the boot disk's throw-away layer
	cmd.Stderr = w
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}

	var up atomic.Bool
	timer := time.AfterFunc(timeout, func() {
		if !up.Load() {
			cancel(fmt.Errorf("%w within %s", errNoBoot, timeout))
		}
	})
	defer timer.Stop()

	rep := &report{}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimRight(sc.Text(), "\r")
		fmt.Fprintln(results, line)
		if shown := rep.line(line); shown != "" {
			fmt.Fprintln(w, shown)
		}
		if rep.booted {
			up.Store(true)
		}
	}
	err = errors.Join(sc.Err(), cmd.Wait())
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("qemu: %w", err)
	case !rep.booted:
		return nil, fmt.Errorf("%w: it powered off", errNoBoot)
	}
	return rep, nil
}

// machine is the emulated machine: two processors, 2 GiB, three disks, two
// serial lines (kernel's to a file, results to qemu's stdout), no network.
func (l *layout) machine() []string {
	drive := func(file, more string) string {
		return "file=" + file + ",format=raw,if=virtio,cache=unsafe" + more
	}
	return []string{
		"-M", "q35", "-smp", "2", "-m", "2048",
		// A plain model: what newer ones add is slow to emulate and not needed.
		"-cpu", "Nehalem", "-accel", "tcg,thread=multi,tb-size=512",
		"-display", "none", "-monitor", "none", "-no-reboot", "-nodefaults",
		"-kernel", filepath.Join(l.root, "vmlinuz"), "-initrd", filepath.Join(l.root, "initrd.img"),
		"-append", "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off loglevel=4 systemd.show_status=false",
		"-serial", "file:" + l.consoleLog(),
		"-chardev", "stdio,id=results,signal=off", "-serial", "chardev:results",
		"-drive", drive(filepath.Join(l.root, "root.img"), ",snapshot=on"),
		"-drive", drive(filepath.Join(l.work, "payload.img"), ",readonly=on"),
		"-drive", drive(filepath.Join(l.work, "state.img"), ""),
		"-device", "virtio-rng-pci",
	}
}
