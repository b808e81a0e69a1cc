package cgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// killBatch bounds how many process descriptors a kill holds at once.
const killBatch = 256

// Kill ends every process of the sandbox with SIGKILL, PID 1 included, paused
// or not, and returns when its cgroups are empty.
func (s *Sandbox) Kill(ctx context.Context) error {
	if err := s.kill(ctx, nil, true); err != nil {
		return fmt.Errorf("kill sandbox %s: %w", s.id, err)
	}
	return nil
}

// kill empties the cgroups subs of the sandbox, all of it when whole.
func (s *Sandbox) kill(ctx context.Context, subs []string, whole bool) error {
	if s.host.version == 2 {
		return s.killV2(ctx, subs, whole)
	}
	return s.killV1(ctx, subs, whole)
}

// killV2 lets the kernel do it: cgroup.kill takes the whole subtree, frozen
// and forking processes included (Linux 5.14).
func (s *Sandbox) killV2(ctx context.Context, subs []string, whole bool) error {
	if whole {
		subs = []string{""}
	}
	hr := s.host.by["memory"]
	for _, sub := range subs {
		dir := strings.TrimSuffix(hr.at(s.id, sub), "/")
		if err := hr.write(dir+"/cgroup.kill", "1"); gone(err) && !hr.exists(dir) {
			continue
		} else if err != nil {
			return err
		}
		err := s.await(ctx, func() (bool, error) {
			ev, err := hr.counters(dir + "/cgroup.events")
			return gone(err) || (err == nil && ev["populated"] == 0), ignoreGone(err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}

// killV1 freezes, signals every process and thaws, until nothing is left. The
// freeze keeps a fork bomb from outrunning the loop; a process born between
// the freeze and the reading is met in the next round.
func (s *Sandbox) killV1(ctx context.Context, subs []string, whole bool) error {
	k := &killer{s: s, done: map[int]bool{}}
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		dirs := subs
		if whole {
			// A paused agent cannot die before it is thawed, nor PID 1 before the agent.
			if err := s.setFrozen(false); ignoreGone(err) != nil {
				return err
			}
			dirs = s.everyDir()
		}
		left := 0
		for _, d := range dirs {
			n, err := k.round(d)
			if err != nil {
				return err
			}
			left += n
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, wait); err != nil {
			return fmt.Errorf("%d processes left: %w", left, err)
		}
		if wait == 5*time.Millisecond {
			clear(k.done) // a pid may have come back within the cgroup
		}
	}
}

// everyDir is the sandbox's cgroups in any hierarchy, "" for itself, which
// comes first: it has PID 1, whose death ends all others.
func (s *Sandbox) everyDir() []string {
	dirs, seen := []string{""}, map[string]bool{"": true}
	for _, hr := range s.host.all {
		names, err := hr.below(hr.at(s.id))
		if err != nil {
			continue
		}
		for _, n := range names {
			sub := strings.TrimPrefix(strings.TrimPrefix(n, hr.at(s.id)), "/")
			if !seen[sub] {
				seen[sub] = true
				dirs = append(dirs, sub)
			}
		}
	}
	return dirs
}

type killer struct {
	s    *Sandbox
	done map[int]bool // signalled already
}

// round signals every process of one cgroup that was not signalled before
// and says how many processes it had.
func (k *killer) round(sub string) (left int, err error) {
	all, fresh, err := k.members(sub)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	if fresh == nil {
		if k.paused(sub) { // since they were signalled
			err = k.moveOut(sub)
		}
		return len(all), err
	}
	thaw, err := k.hold(sub)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	// Read again: those born before the freeze took hold.
	if all, fresh, err = k.members(sub); err != nil {
		return 0, err
	}
	for batch := range slices.Chunk(fresh, killBatch) {
		if err := k.signal(sub, batch); err != nil {
			return 0, err
		}
	}
	return max(len(all), 1), nil
}

// hold freezes an exec's cgroup. In a paused sandbox it is frozen already and
// its parent would keep it so; then letting go means moving the signalled
// processes to the sandbox's own cgroup, where they run into their death.
func (k *killer) hold(sub string) (release func() error, err error) {
	if !strings.HasPrefix(sub, "agent/") {
		return func() error { return nil }, nil // PID 1's cgroup is never frozen
	}
	if k.paused(sub) {
		return func() error { return k.moveOut(sub) }, nil
	}
	s, hr := k.s, k.s.host.by["freezer"]
	file := hr.at(s.id, sub, "freezer.state")
	if err := hr.write(file, freezerState[true]); ignoreGone(err) != nil {
		return nil, err
	}
	return func() error { return ignoreGone(hr.write(file, freezerState[false])) }, nil
}

// paused tells that a cgroup's parent keeps it frozen.
func (k *killer) paused(sub string) bool {
	hr := k.s.host.by["freezer"]
	self, err := hr.read(hr.at(k.s.id, "agent", "freezer.self_freezing"))
	return err == nil && self == "1" && strings.HasPrefix(sub, "agent/")
}

func (k *killer) moveOut(sub string) error {
	s, hr := k.s, k.s.host.by["freezer"]
	pids, err := hr.procs(hr.at(s.id, sub))
	if err != nil {
		return err
	}
	for _, p := range pids {
		if !k.done[p] {
			continue
		}
		err := hr.write(s.host.initAt(hr, s.id, "cgroup.procs"), strconv.Itoa(p))
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// members are the processes of a cgroup in every hierarchy, and those of them
// not signalled yet.
func (k *killer) members(sub string) (all, fresh []int, err error) {
	seen := map[int]bool{}
	for _, hr := range k.s.host.all {
		pids, err := hr.procs(strings.TrimSuffix(hr.at(k.s.id, sub), "/"))
		if err != nil {
			return nil, nil, err
		}
		for _, p := range pids {
			if seen[p] {
				continue
			}
			seen[p] = true
			all = append(all, p)
			if !k.done[p] {
				fresh = append(fresh, p)
			}
		}
	}
	return all, fresh, nil
}

// signal kills processes of a cgroup by descriptor. Each descriptor is
// opened before the membership is read again, so what is signalled was a
// member while the descriptor existed: a pid used again elsewhere is not hit.
func (k *killer) signal(sub string, pids []int) error {
	fds := make(map[int]int, len(pids))
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, p := range pids {
		fd, err := unix.PidfdOpen(p, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pidfd_open %d: %w", p, err)
		}
		fds[p] = fd
	}
	still, _, err := k.members(sub)
	if err != nil {
		return err
	}
	for _, p := range still {
		fd, ok := fds[p]
		if !ok {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill %d: %w", p, err)
		}
		k.done[p] = true
	}
	return nil
}
