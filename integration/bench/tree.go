package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// tree starts processes that try to get away from their exec: in sessions of
// their own, re-parented to PID 1, deaf to signals.
const tree = `
trap '' TERM HUP INT
i=0
while [ $i -lt 8 ]; do
	setsid sh -c 'trap "" TERM HUP INT; sleep 1000 & sleep 1000' &
	(sh -c '(sleep 1000 </dev/null >/dev/null 2>&1 &)' &)
	i=$((i+1))
done
sleep 1000
`

// treeSize is how many processes that comes to: itself and its sleep, and for
// each turn a shell with two and one on its own.
const treeSize = 2 + 8*4

// pollTree is how often a cgroup is looked at: finer than what is measured.
const pollTree = 200 * time.Microsecond

// treeStage closes the connection of an exec that has become a tree, and waits
// until its cgroup is empty. Bare containerd has nothing like it: the end of
// an exec's client ends nothing there.
func (b *bench) treeStage(ctx context.Context) error {
	res, _, err := b.spawn(ctx)
	if err != nil {
		return err
	}
	var took []float64
	for i := range warm + b.n {
		d, err := b.killTree(ctx, res.Sandbox.ID)
		if err != nil {
			return err
		}
		if i >= warm {
			took = append(took, ms(d))
		}
	}
	b.report.add("kill_tree", "ms", took, "", nil, target{p95: 100})
	return b.removeAll(ctx)
}

func (b *bench) killTree(ctx context.Context, id string) (time.Duration, error) {
	p, err := b.StartExec(ctx, id, api.ExecRequest{Command: []string{"/bin/sh", "-c", tree}})
	if err != nil {
		return 0, err
	}
	defer func() { _ = p.Close() }() // once more does nothing
	procs, err := b.procsOf(id, p.ID())
	if err != nil {
		return 0, err
	}
	if err := until(ctx, procs, func(n int) bool { return n >= treeSize }); err != nil {
		return 0, fmt.Errorf("the tree does not grow: %w", err)
	}
	began := time.Now()
	if err := p.Close(); err != nil {
		return 0, err
	}
	if err := until(ctx, procs, func(n int) bool { return n == 0 }); err != nil {
		return 0, fmt.Errorf("the tree does not end: %w", err)
	}
	return time.Since(began), nil
}

// procsOf is the file that lists the processes of an exec's cgroup.
func (b *bench) procsOf(id, exec string) (string, error) {
	for _, top := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		for _, below := range []string{"/", "/*/"} {
			found, err := filepath.Glob(top + b.cgroup + below + id + "/agent/exec-" + exec + "/cgroup.procs")
			if err != nil {
				return "", err
			}
			if len(found) > 0 {
				return found[0], nil
			}
		}
	}
	return "", fmt.Errorf("no cgroup of exec %s", exec)
}

// until waits for a number of processes. A cgroup that is removed has none.
func until(ctx context.Context, procs string, good func(n int) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		text, err := os.ReadFile(procs)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		n := bytes.Count(text, []byte("\n"))
		if good(n) {
			return nil
		}
		if err := sleep(ctx, pollTree); err != nil {
			return fmt.Errorf("%d processes: %w", n, err)
		}
	}
}
