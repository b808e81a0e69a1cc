package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// imageName is what the image is imported as.
const imageName = "bench"

// settle is how long an idle fleet is left alone before it is weighed.
const settle = 20 * time.Second

// warm launches precede every measurement.
const warm = 3

// lull is the time before each exec, as between an agent's commands: for some
// milliseconds after one the kernel moves the next process to its cgroup
// faster, which would not be seen in use.
const lull = 50 * time.Millisecond

// bench is one run.
type bench struct {
	options
	*host
	bare   *bare
	report report
}

// request is what is spawned: a command that outlives the measurement.
func (b *bench) request() api.SpawnRequest {
	return api.SpawnRequest{Agent: "bench", Image: imageName, Runtime: b.runtime, Command: []string{"/bin/sleep", "86400"}, Trace: true}
}

func (b *bench) prepare(ctx context.Context) error {
	if err := b.importImage(ctx, b.image); err != nil {
		return err
	}
	res, err := b.Spawn(ctx, b.request())
	if err != nil {
		return err
	}
	if b.bare, err = newBare(ctx, b.host, b.options, res.Sandbox.ID); err != nil {
		return err
	}
	return b.removeAll(ctx)
}

// spawn launches a sandbox; the time is from the request's sending to
// creel-init's stamp before the command's execve, both on CLOCK_MONOTONIC.
func (b *bench) spawn(ctx context.Context) (*api.SpawnResult, time.Duration, error) {
	sent := monotonic()
	res, err := b.Spawn(ctx, b.request())
	if err != nil {
		return nil, 0, err
	}
	for _, s := range res.Trace {
		if s.At != 0 {
			return res, time.Duration(s.At - sent), nil
		}
	}
	return nil, 0, errors.New("the trace has no stamp of the execve")
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// spawnStage takes turns: one sandbox of creel's, one bare container.
func (b *bench) spawnStage(ctx context.Context) error {
	var spawn, base, teardown, baseDown []float64
	steps, bareSteps := map[string][]float64{}, map[string][]float64{}
	var order []string
	for i := range warm + b.n {
		res, took, err := b.spawn(ctx)
		if err != nil {
			return err
		}
		began := time.Now()
		grace := time.Duration(0)
		if _, err := b.Stop(ctx, res.Sandbox.ID, &grace); err != nil {
			return err
		}
		if err := b.Remove(ctx, res.Sandbox.ID, false); err != nil {
			return err
		}
		down := time.Since(began)
		if err := b.settled(ctx, res.Sandbox.ID); err != nil {
			return err
		}
		c, bareTook, err := b.bare.start(ctx, variant{runtime: b.runtime})
		if err != nil {
			return err
		}
		began = time.Now()
		if err := c.remove(ctx); err != nil {
			return err
		}
		bareDown := time.Since(began)
		if i < warm {
			continue
		}
		spawn, base = append(spawn, ms(took)), append(base, ms(bareTook))
		teardown, baseDown = append(teardown, ms(down)), append(baseDown, ms(bareDown))
		bareSteps["container"] = append(bareSteps["container"], c.created)
		bareSteps["task"] = append(bareSteps["task"], c.tasked)
		bareSteps["start"] = append(bareSteps["start"], c.started)
		for _, s := range res.Trace {
			if _, seen := steps[s.Name]; !seen {
				order = append(order, s.Name)
			}
			if s.At == 0 {
				steps[s.Name] = append(steps[s.Name], s.Took)
			}
		}
	}
	b.report.add("spawn_cold", "ms", spawn, "containerd create + start, same spec, "+b.runtime, base, target{ratio: 1.3})
	b.report.add("teardown", "ms", teardown, "containerd kill + delete", baseDown, target{most: 60})
	for _, name := range order {
		if len(steps[name]) > 0 {
			b.report.add("spawn_cold."+name, "ms", steps[name], "", bareSteps[name], target{})
		}
	}
	return nil
}

// bulkBytes is how much output a command of bulk has.
const bulkBytes = 256 << 20

// bulk takes how long much output needs to a client that has descriptors,
// with and without a log.
func (b *bench) bulk(ctx context.Context, id string) error {
	var took [2][]float64
	for range min(b.n, 10) {
		for i, logs := range []string{"", "none"} {
			began := time.Now()
			r, err := b.Exec(ctx, id, api.ExecRequest{
				Command: []string{"head", "-c", fmt.Sprint(bulkBytes), "/dev/zero"}, Logs: logs,
			}, client.Stdio{})
			if err != nil || r.ExitCode != 0 {
				return fmt.Errorf("exec: %+v: %w", r, err)
			}
			took[i] = append(took[i], ms(time.Since(began)))
		}
	}
	b.report.add("exec_bulk", "ms", took[0], "the same with logs none", took[1], target{})
	return nil
}

// execStage takes turns as well, in a sandbox of creel's and a bare container
// of runc's.
func (b *bench) execStage(ctx context.Context) error {
	res, _, err := b.spawn(ctx)
	if err != nil {
		return err
	}
	c, _, err := b.bare.start(ctx, variant{runtime: "runc", args: b.request().Command})
	if err != nil {
		return err
	}
	command := []string{"/bin/true"}
	spec := *b.bare.spec.Process
	spec.Args = command
	var api5, silent, cli, base, plain []float64
	for i := range warm + b.n {
		if err := sleep(ctx, lull); err != nil {
			return err
		}
		began := time.Now()
		r, err := b.Exec(ctx, res.Sandbox.ID, api.ExecRequest{Command: command}, client.Stdio{})
		if err != nil || r.ExitCode != 0 {
			return fmt.Errorf("exec: %+v: %w", r, err)
		}
		took := time.Since(began)
		if err := sleep(ctx, lull); err != nil {
			return err
		}
		began = time.Now()
		r, err = b.Exec(ctx, res.Sandbox.ID, api.ExecRequest{Command: command, Logs: "none"}, client.Stdio{})
		if err != nil || r.ExitCode != 0 {
			return fmt.Errorf("exec: %+v: %w", r, err)
		}
		silentTook := time.Since(began)
		if err := sleep(ctx, lull); err != nil {
			return err
		}
		bareTook, err := c.exec(ctx, &spec, fmt.Sprintf("exec-%d", i))
		if err != nil {
			return err
		}
		if err := sleep(ctx, lull); err != nil {
			return err
		}
		cliTook, err := b.creel(ctx, "exec", res.Sandbox.ID, command[0])
		if err != nil {
			return err
		}
		// What starting the program costs that is not creel's.
		plainTook, err := b.creel(ctx, "help")
		if i >= warm {
			api5, base, cli = append(api5, ms(took)), append(base, ms(bareTook)), append(cli, ms(cliTook))
			silent = append(silent, ms(silentTook))
			if err == nil {
				plain = append(plain, ms(plainTook))
			}
		}
	}
	b.report.add("exec_api", "ms", api5, "containerd exec through runc, same spec", base, target{most: 5, ratio: 0.125})
	b.report.add("exec_logged", "ms", api5, "the same with logs none", silent, target{})
	if err := b.bulk(ctx, res.Sandbox.ID); err != nil {
		return err
	}
	b.report.add("exec_cli", "ms", cli, "creel help: the program's start alone", plain, target{most: 15})
	return errors.Join(c.remove(ctx), b.removeAll(ctx))
}

// creel runs the command line.
func (b *bench) creel(ctx context.Context, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "creel"), args...)
	cmd.Env = []string{"CREEL_SOCKET=" + b.socket}
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("creel %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return time.Since(began), nil
}

// atOnce runs fn n times, at most so many at one time, and says how long all took.
func atOnce(n, most int, fn func() error) (time.Duration, error) {
	var wg sync.WaitGroup
	errs := make([]error, n)
	places := make(chan struct{}, most)
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			errs[i] = fn()
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}
