package idmap

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
)

// Map makes the id ID of a file system appear, through a mount that is
// id-mapped with it, as the id Host of the initial user namespace: the line
// "ID Host Count" of uid_map (user_namespaces(7), mount_setattr(2)).
type Map struct {
	ID, Host, Count uint32
}

// MaxGroups is how many of a caller's supplementary groups are mapped: the
// whole map must be written at once and in less than a page.
const MaxGroups = 64

// ForCaller is [UserNS] for a directory that a caller shares with an agent:
// what the caller owns appears as the agent's and the reverse.
//
// The caller's supplementary groups appear as the ids after agentGID, of which
// the agent is no member. It gains no right of theirs, but without it the
// kernel would refuse even the owner to write a file of such a group ("nobody
// gets write access to an inode with an unmapped id"). No other id is mapped,
// so that the agent can create or change nothing of anyone else's. Group 0 is
// not mapped unless it is the caller's own.
func ForCaller(ctx context.Context, callerUID, callerGID, agentUID, agentGID uint32, groups []uint32) (*os.File, error) {
	gids := []Map{{callerGID, agentGID, 1}}
	seen := map[uint32]bool{0: true, callerGID: true}
	for _, g := range groups {
		if seen[g] || len(gids) > MaxGroups {
			continue
		}
		seen[g] = true
		gids = append(gids, Map{g, agentGID + uint32(len(gids)), 1})
	}
	return UserNS(ctx, []Map{{callerUID, agentUID, 1}}, gids)
}

// UserNS makes a user namespace with the given maps, for mount_setattr(2).
// It has no process in it, and dies with the descriptor and the last mount
// that uses it. The caller closes the file.
//
// Only a process that has just been cloned can have its maps written before it
// runs, so this makes a child. It is traced and therefore stops in execve(2),
// before the first instruction of the program; it is killed there. It takes
// about 1 ms, so there is no cache of them.
func UserNS(ctx context.Context, uids, gids []Map) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result, 1)
	go func() {
		// The tracer is a thread, and the child dies with it (Pdeathsig), so
		// it must not change between start and wait. Unlocked again: the
		// thread's own state is not touched.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		f, err := userNS(uids, gids)
		c <- result{f, err}
	}()
	r := <-c
	return r.f, r.err
}

func userNS(uids, gids []Map) (_ *os.File, err error) {
	p, err := os.StartProcess("/proc/self/exe", []string{"creel-userns"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: sysMaps(uids),
			GidMappings: sysMaps(gids),
			Ptrace:      true,
			Pdeathsig:   syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer func() {
		_ = p.Kill() // it cannot have exited: nobody but us reaps or resumes it
		if _, werr := p.Wait(); werr != nil && err == nil {
			err = fmt.Errorf("reap the user namespace's child: %w", werr)
		}
	}()
	f, err := os.Open("/proc/" + strconv.Itoa(p.Pid) + "/ns/user")
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return f, nil
}

func sysMaps(ms []Map) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, 0, len(ms))
	for _, m := range ms {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ID), HostID: int(m.Host), Size: int(m.Count)})
	}
	return out
}
