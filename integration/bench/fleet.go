package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/client"
)

// mb is what a megabyte is here.
const mb = 1e6

// fleetStage starts many sandboxes at once, weighs them, and takes turns with
// bare containers at it.
func (b *bench) fleetStage(ctx context.Context) error {
	var took, base []float64
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	daemon, cd, err := b.weighDaemons()
	if err != nil {
		return err
	}
	for i := range b.rounds {
		d, err := b.burst(ctx)
		if err != nil {
			return err
		}
		took = append(took, ms(d))
		if i == 0 {
			if err := b.weigh(ctx, daemon, cd); err != nil {
				return err
			}
		}
		if err := b.clear(ctx); err != nil {
			return err
		}
		if d, err = b.bareBurst(ctx, variant{runtime: b.runtime}, b.fleet); err != nil {
			return err
		}
		base = append(base, ms(d))
	}
	b.report.add(fmt.Sprintf("burst_%d", b.fleet), "ms", took, "the same number of bare containers at once", base, target{ratio: 1.3})
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// burst spawns the fleet at once; all of them run when it returns.
func (b *bench) burst(ctx context.Context) (time.Duration, error) {
	return atOnce(b.fleet, b.fleet, func() error {
		_, err := b.Spawn(ctx, b.request())
		return err
	})
}

// clear removes the fleet, a few at a time, and waits for its clean-up.
func (b *bench) clear(ctx context.Context) error {
	all, err := b.List(ctx, client.ListOptions{All: true})
	if err != nil {
		return err
	}
	i := make(chan string, len(all))
	for _, sb := range all {
		i <- sb.ID
	}
	_, err = atOnce(len(all), 4, func() error {
		id := <-i
		if err := b.Remove(ctx, id, true); err != nil {
			return err
		}
		return b.settled(ctx, id)
	})
	return err
}

// bareBurst starts as many bare containers, at most so many at one time, and
// removes them.
func (b *bench) bareBurst(ctx context.Context, v variant, most int) (time.Duration, error) {
	var mu sync.Mutex
	var all []*container
	took, err := atOnce(b.fleet, most, func() error {
		c, _, err := b.bare.start(ctx, v)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, c)
		return nil
	})
	if err != nil {
		return 0, err
	}
	i := make(chan *container, len(all))
	for _, c := range all {
		i <- c
	}
	_, err = atOnce(len(all), 4, func() error { return (<-i).remove(ctx) })
	return took, err
}

// weighDaemons is the proportional set size of creeld and its containerd.
func (b *bench) weighDaemons() (daemon, cd float64, err error) {
	if daemon, err = memory("Pss", b.daemonPID()); err != nil {
		return 0, 0, err
	}
	cd, err = memory("Pss", b.containerdPIDs()...)
	return daemon, cd, err
}

// weigh says what an idle fleet has added, by what has it.
func (b *bench) weigh(ctx context.Context, daemon, cd float64) error {
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	all, err := b.List(ctx, client.ListOptions{})
	if err != nil {
		return err
	}
	var inits []int
	for _, sb := range all {
		inits = append(inits, sb.PID)
	}
	shims := b.shims()
	if len(all) != b.fleet || len(shims) != b.fleet {
		return fmt.Errorf("%d sandboxes and %d shims, want %d", len(all), len(shims), b.fleet)
	}
	rss, err := memory("Rss", b.daemonPID())
	if err != nil {
		return err
	}
	shimPSS, err := memory("Pss", shims...)
	if err != nil {
		return err
	}
	initPSS, err := memory("Pss", inits...)
	if err != nil {
		return err
	}
	daemonNow, cdNow, err := b.weighDaemons()
	if err != nil {
		return err
	}
	n := float64(b.fleet)
	each := (shimPSS + initPSS + daemonNow - daemon + cdNow - cd) / n
	one := func(v float64) []float64 { return []float64{v} }
	b.report.add("daemon_rss", "MB", one(rss), "", nil, target{most: 60})
	b.report.add("idle_footprint", "MB", one(each), "", nil, target{most: 8})
	b.report.add("idle_footprint.shim", "MB", one(shimPSS/n), "", nil, target{})
	b.report.add("idle_footprint.init", "MB", one(initPSS/n), "", nil, target{})
	b.report.add("idle_footprint.daemon", "MB", one((daemonNow-daemon)/n), "", nil, target{})
	b.report.add("idle_footprint.containerd", "MB", one((cdNow-cd)/n), "", nil, target{})
	return nil
}

// memory adds up a line of smaps_rollup (proc_pid_smaps(5)), in megabytes.
func memory(field string, pids ...int) (sum float64, err error) {
	for _, pid := range pids {
		kib, err := rollup(pid, field)
		if err != nil {
			return 0, err
		}
		sum += float64(kib) * 1024 / mb
	}
	return sum, nil
}

func rollup(pid int, field string) (int, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), field+":"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, fmt.Errorf("%s has no %s", f.Name(), field)
}

// runtimeStage compares the runtimes through containerd alone, in turn: the
// whole start, the removal, and an exec through the runtime.
func (b *bench) runtimeStage(ctx context.Context) error {
	names := []string{"crun", "runc"}
	start, down, run := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	spec := *b.bare.spec.Process
	spec.Args = []string{"/bin/true"}
	for i := range warm + b.n {
		for _, name := range names {
			c, took, err := b.bare.start(ctx, variant{runtime: name, args: b.request().Command})
			if err != nil {
				return err
			}
			execTook, err := c.exec(ctx, &spec, "exec")
			if err != nil {
				return err
			}
			began := time.Now()
			if err := c.remove(ctx); err != nil {
				return err
			}
			if i < warm {
				continue
			}
			start[name] = append(start[name], ms(took))
			run[name] = append(run[name], ms(execTook))
			down[name] = append(down[name], ms(time.Since(began)))
		}
	}
	b.report.add("crun.start", "ms", start["crun"], "runc, both through containerd alone", start["runc"], target{})
	b.report.add("crun.exec", "ms", run["crun"], "runc", run["runc"], target{})
	b.report.add("crun.remove", "ms", down["crun"], "runc", down["runc"], target{})
	return nil
}

// groupStage says what one shim for several sandboxes would save in memory
// and time. creel does not do it: one shim's end would end all of them.
func (b *bench) groupStage(ctx context.Context) (err error) {
	const members = 20
	for _, v := range []struct{ name, group string }{{"alone", ""}, {"grouped", "bench"}} {
		var list []*container
		var took []float64
		for range members {
			c, d, err := b.bare.start(ctx, variant{runtime: b.runtime, group: v.group, args: b.request().Command})
			if err != nil {
				return err
			}
			list, took = append(list, c), append(took, ms(d))
		}
		if err := sleep(ctx, settle/4); err != nil {
			return err
		}
		shims := b.shims()
		pss, err := memory("Pss", shims...)
		if err != nil {
			return err
		}
		b.report.add(fmt.Sprintf("shim_%s.memory", v.name), "MB", []float64{pss / members}, "", nil, target{})
		b.report.add(fmt.Sprintf("shim_%s.start", v.name), "ms", took, "", nil, target{})
		for _, c := range list {
			if err := c.remove(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}
