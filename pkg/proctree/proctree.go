// Package proctree reads the processes of a sandbox out of the daemon's /proc.
//
// The processes are hostile. A pid is only a number: what it named a moment
// ago may have ended, and the number be another caller's process by now. So a
// process is held by its directory in /proc, which stays that process's, and
// what is read through it counts only if the pid is in the sandbox's cgroup
// while the directory is held. The arguments are in the process's own memory,
// which it may have replaced by a file whose file system never answers: they
// are read apart, within a time, by a bounded number of goroutines.
package proctree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

const (
	// readers is how many sandboxes are read at one time.
	readers = 4
	// stuck is how many reads of arguments may be under way: one of each
	// reader, and as many that hang.
	stuck = 2 * readers
	// batch is how many processes of a group are held at one time.
	batch = 64
	// argsTime is how long is waited for the arguments of one sandbox.
	argsTime = time.Second
)

// Group is the processes of one cgroup.
type Group struct {
	// Exec is what they are shown as.
	Exec string
	// Pids are they now, by the daemon's numbers. A group that is gone has none.
	Pids func() ([]int, error)
}

// Reader reads. It is safe for concurrent use.
type Reader struct {
	readers chan struct{}
	stuck   chan struct{}
	args    func(p proc) ([]string, bool, error)
	time    time.Duration
}

// New makes a Reader.
func New() *Reader {
	return &Reader{
		readers: make(chan struct{}, readers), stuck: make(chan struct{}, stuck),
		args: proc.args, time: argsTime,
	}
}

// Read is at most limit processes of the groups, in the order of the groups
// and then of their pids, and whether there are more. Processes that end
// meanwhile are left out. Others wait while [readers] read.
func (r *Reader) Read(ctx context.Context, groups []Group, limit int) (_ []api.Process, more bool, err error) {
	select {
	case r.readers <- struct{}{}:
		defer func() { <-r.readers }()
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
	now, err := sinceBoot()
	if err != nil {
		return nil, false, err
	}
	var all []found
	deadline := time.Now().Add(r.time)
	for _, g := range groups {
		pids, err := g.Pids()
		if err != nil {
			return nil, false, err
		}
		slices.Sort(pids)
		if room := limit - len(all); len(pids) > room {
			pids, more = pids[:room], true
		}
		for part := range slices.Chunk(pids, batch) {
			if ctx.Err() != nil {
				return nil, false, context.Cause(ctx)
			}
			some, err := r.read(g, part, now, deadline)
			if err != nil {
				return nil, false, err
			}
			all = append(all, some...)
		}
	}
	return inSandbox(all), more, nil
}

// found is a process with its pids as the daemon sees them.
type found struct {
	api.Process
	pid, ppid int
}

// read is one batch.
func (r *Reader) read(g Group, pids []int, now time.Duration, deadline time.Time) ([]found, error) {
	held := make([]proc, 0, len(pids))
	for _, pid := range pids {
		p, err := open(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			closeAll(held)
			return nil, err
		}
		held = append(held, p)
	}
	// Which of them are the group's is asked now that they are held.
	members, err := g.Pids()
	if err != nil {
		closeAll(held)
		return nil, err
	}
	out := []found{}
	var mine []proc
	for _, p := range held {
		var f found
		err := fs.ErrNotExist
		if slices.Contains(members, p.pid) {
			f, err = p.status(now)
		}
		if err != nil {
			p.close()
			if gone(err) {
				continue
			}
			closeAll(held[slices.Index(held, p)+1:])
			closeAll(mine)
			return nil, err
		}
		f.Exec = g.Exec
		out, mine = append(out, f), append(mine, p)
	}
	r.readArgs(mine, deadline, func(i int, args []string, cut bool) { out[i].Args, out[i].Cut = args, cut })
	return out, nil
}

// readArgs gives the arguments that can be had before the deadline to set. It
// takes over and closes the processes' directories.
func (r *Reader) readArgs(procs []proc, deadline time.Time, set func(i int, args []string, cut bool)) {
	left := time.Until(deadline)
	if len(procs) == 0 || left <= 0 {
		closeAll(procs)
		return
	}
	select {
	case r.stuck <- struct{}{}:
	default: // too many hang already
		closeAll(procs)
		return
	}
	type answer struct {
		i    int
		args []string
		cut  bool
	}
	answers := make(chan answer, len(procs)) // nobody may be listening any more
	go func() {
		defer func() { <-r.stuck }()
		defer closeAll(procs)
		defer close(answers)
		for i, p := range procs {
			if time.Now().After(deadline) {
				return
			}
			if args, cut, err := r.args(p); err == nil {
				answers <- answer{i, args, cut}
			}
		}
	}()
	timer := time.NewTimer(left)
	defer timer.Stop()
	for {
		select {
		case a, ok := <-answers:
			if !ok {
				return
			}
			set(a.i, a.args, a.cut)
		case <-timer.C:
			return
		}
	}
}

// inSandbox gives parents their pids in the sandbox, and sorts PID 1's group
// and the rest as they came, by those.
func inSandbox(all []found) []api.Process {
	inner := make(map[int]int, len(all))
	order := map[string]int{}
	for _, f := range all {
		inner[f.pid] = f.PID
		if _, ok := order[f.Exec]; !ok {
			order[f.Exec] = len(order)
		}
	}
	out := make([]api.Process, 0, len(all))
	for _, f := range all {
		f.PPID = inner[f.ppid]
		out = append(out, f.Process)
	}
	slices.SortFunc(out, func(a, b api.Process) int {
		return cmp.Or(cmp.Compare(order[a.Exec], order[b.Exec]), cmp.Compare(a.PID, b.PID))
	})
	return out
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

func sinceBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("time since boot: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
