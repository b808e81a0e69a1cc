// Package verify reads back from the kernel, from outside, whether a sandbox
// is what it was meant to be.
//
// Read compares everything that isolates the sandbox's PID 1 with an Expect
// and returns one named control per promise. It takes nothing on trust: not
// the runtime's success, not what PID 1 says. What cannot be read is a
// control that is not ok, with the error as what was observed; no control is
// ever left out because of an error.
//
// The reader must be root in the initial user and pid namespaces, see a full
// /proc, and have no seccomp filter of its own: the kernel refuses
// PTRACE_SECCOMP_GET_FILTER to a filtered reader (EACCES).
//
// It proves one instant. The launcher repeats it on a timer.
package verify

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Expect is what a sandbox was meant to be.
type Expect struct {
	// ID is the sandbox, Why the occasion (spawn, reconcile, timer, request);
	// both go into the evidence as they are.
	ID, Why string

	// PID is PID 1 of the sandbox as the host numbers it. Required.
	PID int
	// PIDFD is a pidfd of the same process. Required: it is what makes all
	// that is read belong to one process, whatever becomes of the number.
	PIDFD int
	// StartTime is field 22 of /proc/PID/stat as StartTime read it at launch.
	// Not compared when zero.
	StartTime uint64

	// HostNS are the host's namespaces by name (user, pid, mnt, net, ipc,
	// uts, cgroup), as inodes. See Namespaces. All are required; those of
	// the daemon do when the daemon is not in a namespace of its own.
	HostNS map[string]uint64
	// OwnNS are namespaces that must be exactly these: those the daemon made
	// ("net") or, when evidence is taken again, all of them. May be empty.
	OwnNS map[string]uint64
	// UserNSOwner is the host uid that owns the user namespace: that of the
	// process that made it.
	UserNSOwner uint32

	// HostUID is the first of the IDs host ids that are 0.. inside.
	// IDs is 65,536 when zero. The gid map is the same.
	HostUID, IDs uint32
	// Setgroups is "allow" or "deny". Not compared when empty.
	Setgroups string
	// AgentUID and AgentGID are PID 1's ids as numbered inside; Groups its
	// supplementary groups.
	AgentUID, AgentGID uint32
	Groups             []uint32
	// Caps are the capabilities that every thread has, permitted, effective
	// and bounding, as bits. None are ever inheritable or ambient.
	Caps uint64

	// Filter is the compiled seccomp filter: an array of struct sock_filter.
	// Exactly this one must be in force, and no other. Required.
	Filter []byte

	// Rlimits are by name in lower case without RLIMIT_: "nofile".
	Rlimits map[string]Rlimit
	// Mounts are the mounts that must be there, in any order.
	Mounts []Mount
	// ClosedMounts refuses every mount that Mounts does not name.
	ClosedMounts bool

	// OOMScoreAdj is PID 1's.
	OOMScoreAdj int
	// FDs are PID 1's open descriptors; no other may be open.
	FDs []FD
	// Exe is the file PID 1 runs: the sandbox's private copy of creel-init.
	Exe FileID
	// Label is the security label as Label read it at launch. When empty the
	// label is only told, not compared: nothing that creel does chooses it.
	Label string

	// Alone says that PID 1 must be the only process: nothing of the agent's
	// has run. Procs are the pids in the sandbox's cgroup.
	Alone bool
	Procs []int

	// Extra are controls read by others (cgroup, the self-probe); they count.
	Extra []api.Control
	// Weaker is what this host cannot enforce, in plain words.
	Weaker []string
}

// Rlimit is a resource limit; Infinity is none.
type Rlimit struct{ Soft, Hard uint64 }

// Infinity is RLIM_INFINITY.
const Infinity = ^uint64(0)

// FileID names a file whatever its path.
type FileID struct{ Dev, Ino uint64 }

// FD is a descriptor that PID 1 has.
type FD struct {
	// Num is its number, or -1 for any number of descriptors of this kind,
	// none included.
	Num int
	// Target is "/dev/null" (checked by device number), a kind ("socket:",
	// "pipe:"), or exactly what the link in /proc/PID/fd says
	// ("anon_inode:[eventpoll]").
	Target string
}

// Mount is a mount that a sandbox has.
type Mount struct {
	// Target is the mount point as seen inside.
	Target string
	// FSType, Source and Root (the part of the file system that is mounted:
	// "/null" of devtmpfs over a masked path) are compared when not empty.
	FSType, Source, Root string
	// Flags are options that must be on: ro, nosuid, nodev, noexec, idmapped.
	Flags []string
	// Writable refuses the option ro.
	Writable bool
	// Device is the character device that is mounted, as unix.Mkdev makes it;
	// File is the file or directory. Both are of the object itself, whatever
	// the file system it is in and its name there. Compared when not zero.
	Device uint64
	File   FileID
	// Size and Inodes are a tmpfs's limits. Compared when not zero.
	Size, Inodes uint64
}

// Read takes the evidence. It needs about a millisecond and is bounded by
// ctx, and by half a second when PID 1 cannot be stopped (a frozen cgroup of
// version 1): the filter is then not proven.
func Read(ctx context.Context, e Expect) api.Evidence {
	r := &report{}
	p, err := openProc(e.PID)
	if err == nil {
		defer p.close()
	}
	if err == nil {
		err = ctx.Err()
	}
	r.err = err
	readNamespaces(r, p, e)
	readIDMaps(r, p, e)
	readThreads(r, p, e)
	readFilter(ctx, r, e)
	readLimits(r, p, e)
	readMounts(r, p, e)
	readFiles(r, p, e)
	readLabel(r, p, e)
	readAlone(r, e)
	r.err = err
	readIdentity(r, p, e) // last: what was read before belongs to this process
	r.controls = append(r.controls, e.Extra...)
	return api.Evidence{
		Sandbox:  e.ID,
		Taken:    time.Now().UTC(),
		Why:      e.Why,
		OK:       AllOK(r.controls),
		Controls: r.controls,
		Weaker:   slices.Clone(e.Weaker),
	}
}

// AllOK says whether there are controls and all of them are ok.
func AllOK(cs []api.Control) bool {
	return len(cs) != 0 && !slices.ContainsFunc(cs, func(c api.Control) bool { return !c.OK })
}

// Failed are the controls that are not ok.
func Failed(cs []api.Control) []api.Control {
	return slices.DeleteFunc(slices.Clone(cs), func(c api.Control) bool { return c.OK })
}

// Probe is a call that creel-init made before go and that had to fail.
type Probe struct {
	Name string
	// Want are the errors that will do; Got is the one it ended in, 0 when
	// the call went through.
	Want []unix.Errno
	Got  unix.Errno
}

// FromProbe makes a control "probe.NAME" of each. That there are as many
// probes as there should be is for the caller to check.
func FromProbe(probes []Probe) []api.Control {
	out := make([]api.Control, 0, len(probes))
	for _, p := range probes {
		want := make([]string, len(p.Want))
		for i, w := range p.Want {
			want[i] = errnoName(w)
		}
		out = append(out, api.Control{
			Name:     "probe." + clean(p.Name),
			Expected: strings.Join(want, " or "),
			Observed: errnoName(p.Got),
			OK:       p.Got != 0 && slices.Contains(p.Want, p.Got),
		})
	}
	return out
}

func errnoName(e unix.Errno) string {
	if e == 0 {
		return "success"
	}
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return fmt.Sprintf("errno %d", int(e))
}

// report collects controls. While err is set, everything that is checked is
// not ok and shows the error.
type report struct {
	controls []api.Control
	err      error
}

func (r *report) add(name, expected, observed string, ok bool) {
	if r.err != nil {
		observed, ok = "cannot be read: "+r.err.Error(), false
	}
	r.controls = append(r.controls, api.Control{Name: name, Expected: clean(expected), Observed: clean(observed), OK: ok})
}

func (r *report) check(name, expected, observed string) {
	r.add(name, expected, observed, expected == observed)
}

// within runs fn with err as the reason why nothing can be read, unless there
// is one already.
func (r *report) within(err error, fn func()) {
	old := r.err
	if r.err == nil {
		r.err = err
	}
	fn()
	r.err = old
}

// maxText bounds one string of a control, in bytes.
const maxText = 512

// clean makes text of foreign origin (a mount point, a link) fit for a
// terminal and a log: one line, printable, bounded.
func clean(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		s = strconv.Quote(s)
	}
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}
