// Command run is "make test-vm": it boots a Debian system in an emulated
// machine, installs creel there as a service, runs the tests that
// integration/vm/tests.txt lists, and prints what came of each.
//
// It needs root (for the owners of the files on the disks) but no KVM, no loop
// device and no network of its own: the machine has none. Its exit code is 0
// only if every listed test ran to its end and none failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// options are the command's flags.
type options struct {
	suite     string
	qemuFloor string
	service   bool
	only      string
	tests     string
	boot      time.Duration
	total     time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.suite, "suite", "trixie", "Debian `release` to boot")
	flag.StringVar(&o.qemuFloor, "qemu-floor", "10", "oldest major version of qemu to use")
	flag.BoolVar(&o.service, "service", true, "install creel and start creeld.service")
	flag.StringVar(&o.only, "only", "", "run only the listed `package`, such as ./integration")
	flag.StringVar(&o.tests, "run", "", "with -only: the tests' `regex`, instead of the listed one")
	flag.DurationVar(&o.boot, "boot-timeout", 5*time.Minute, "give up a boot that has not reached the tests by then")
	flag.DurationVar(&o.total, "timeout", 45*time.Minute, "give up altogether")
	flag.Parse()

	if err := run(o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "test-vm:", err)
		os.Exit(1)
	}
}

// run prepares the disks, boots, and reports to w.
func run(o options, w io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if os.Geteuid() != 0 {
		return errors.New("must run as root, to give the files on the disk their owners")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.total, fmt.Errorf("not done after %s", o.total))
	defer cancel()

	l, err := newLayout(o.suite)
	if err != nil {
		return err
	}
	step := stepper(w)
	qemu, err := l.prepareQEMU(ctx, o.qemuFloor)
	if err != nil {
		return err
	}
	step("emulator")
	if err := l.prepareRoot(ctx); err != nil {
		return err
	}
	step("root disk")
	entries, err := l.preparePayload(ctx, o)
	if err != nil {
		return err
	}
	step("payload disk")

	rep, err := l.bootWithRetry(ctx, qemu, o.boot, w)
	step("run")
	if err != nil {
		return fmt.Errorf("%w; see %s and %s", err, l.consoleLog(), l.resultsLog())
	}
	rep.print(w)
	if err := rep.verdict(entries); err != nil {
		return fmt.Errorf("%w; see %s", err, l.resultsLog())
	}
	return nil
}

// bootWithRetry boots a second time if the first never reached the tests: now
// and then an emulated kernel hangs on its way up. A failing test is no reason.
func (l *layout) bootWithRetry(ctx context.Context, qemu []string, timeout time.Duration, w io.Writer) (*report, error) {
	rep, err := l.boot(ctx, qemu, timeout, w)
	if errors.Is(err, errNoBoot) && ctx.Err() == nil {
		fmt.Fprintf(w, "%v: once more\n", err)
		rep, err = l.boot(ctx, qemu, timeout, w)
	}
	return rep, err
}

// stepper prints how long each part of the preparation took.
func stepper(w io.Writer) func(name string) {
	last := time.Now()
	return func(name string) {
		fmt.Fprintf(w, "test-vm: %-12s %6.1f s\n", name, time.Since(last).Seconds())
		last = time.Now()
	}
}

// layout is where things lie in the checkout.
type layout struct {
	suite string
	repo  string // the module's root
	root  string // .cache/vm/SUITE-KEY: the boot disk, kernel and initrd
	work  string // .cache/vm/run: remade by each run
}

func newLayout(suite string) (*layout, error) {
	repo, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(repo, "integration", "vm", "tests.txt")); err != nil {
		return nil, fmt.Errorf("run this from the root of the checkout: %w", err)
	}
	key, err := rootKey(repo)
	if err != nil {
		return nil, err
	}
	l := &layout{
		suite: suite, repo: repo,
		root: filepath.Join(repo, ".cache", "vm", suite+"-"+key),
		work: filepath.Join(repo, ".cache", "vm", "run"),
	}
	if err := os.RemoveAll(l.work); err != nil {
		return nil, err
	}
	return l, os.MkdirAll(l.work, 0o755)
}

func (l *layout) consoleLog() string { return filepath.Join(l.work, "console.log") }
func (l *layout) resultsLog() string { return filepath.Join(l.work, "results.log") }
