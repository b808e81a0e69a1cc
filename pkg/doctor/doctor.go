// Package doctor says, control by control, what this host can enforce, what
// it lacks, what that costs and how to mend it.
//
// A kernel feature is asked for by the system call that creel will use, not by
// the kernel's version: distributions take features back and leave them out.
package doctor

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

// The values of api.Check.Status.
const (
	OK      = "ok"      // in force
	Weaker  = "weaker"  // works, and something is not enforced
	Missing = "missing" // creel, or what was asked for, does not work
	Danger  = "danger"  // somebody is root by another door
)

// Version is a program that creel drives, as pkg/runtime judges it.
type Version struct {
	Name     string // "containerd"
	Have     string // "2.4.2"; empty when it is not there or does not answer
	Fault    error  // why creeld refuses this one, with the CVE
	Optional bool   // creeld starts without it
}

// Inputs are what Run cannot find out by itself. All are optional; what is
// not given is not checked.
type Inputs struct {
	// StateDir is where images and records are kept.
	StateDir string

	// UserNS makes a user namespace in which the given host user and group
	// are uid and gid 1000. The id-mapped mounts are tried with it.
	UserNS func(ctx context.Context, uid, gid uint32) (*os.File, error)

	// IDRange is the pool of host ids, for display, and IDOverlap says whom
	// of this host it collides with.
	IDRange   string
	IDOverlap error

	// CgroupVersion, CgroupWeaker and CgroupErr are what pkg/cgroup found.
	CgroupVersion string
	CgroupWeaker  []string
	CgroupErr     error

	Versions []Version

	// Leftovers are objects with creel's names that no sandbox owns.
	Leftovers []string

	// User, a name or a uid, is asked about as a caller; "" is nobody.
	User string

	// Workspace is an absolute path that User wants to mount; "" is none. It
	// is followed with User's rights, so that the answer tells User nothing
	// that it could not see itself. Whoever may not ask about another user
	// must be refused before.
	Workspace string

	// Protected are paths that are never mounted: nor what is in them, nor
	// what they are in.
	Protected []string

	// Group is whose members may use the socket.
	Group string

	// More are checks that other packages made.
	More []api.Check
}

// Run checks the host. It changes nothing on it: what it mounts for a try
// is in a namespace of its own and gone when it returns.
func Run(ctx context.Context, in Inputs) api.Doctor {
	var checks []api.Check
	checks = append(checks, kernel(ctx, in)...)
	checks = append(checks, cgroups(in)...)
	checks = append(checks, security()...)
	checks = append(checks, machine(in)...)
	for _, v := range in.Versions {
		checks = append(checks, version(v))
	}
	checks = append(checks, in.More...)
	if in.User != "" {
		checks = append(checks, Caller(in.User, in.Group)...)
	}
	if in.Workspace != "" {
		checks = append(checks, Workspace(ctx, in)...)
	}
	left := in.Leftovers
	if left == nil {
		left = []string{}
	}
	return api.Doctor{Checks: checks, Leftovers: left}
}

func ok(name, format string, args ...any) api.Check {
	return api.Check{Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)}
}

// bad is a check that is not ok, whatever its status.
func bad(status, name, detail, cost, fix string) api.Check {
	return api.Check{Name: name, Status: status, Detail: detail, Cost: cost, Fix: fix}
}

func version(v Version) api.Check {
	name := "version." + v.Name
	switch {
	case v.Have == "" && v.Optional:
		return bad(Weaker, name, v.Name+" is not installed", "sandboxes that ask for it are refused", "make tools, or take it out of runtime.allowed")
	case v.Have == "":
		return bad(Missing, name, v.Name+" does not answer", "no sandbox can be started", "see creeld's log; reinstall creel")
	case v.Fault != nil:
		return bad(Missing, name, v.Fault.Error(), "creeld does not start", "use the one that creel's package brings")
	}
	return ok(name, "%s", v.Have)
}

// compareVersions compares dotted numbers; letters around them ("v2.4.2",
// "6.1.0-18-amd64") do not count.
func compareVersions(a, b string) int {
	x, y := numbers(a), numbers(b)
	for i := range x {
		if x[i] != y[i] {
			return x[i] - y[i]
		}
	}
	return 0
}

// numbers are the first three numbers of a version.
func numbers(s string) (out [3]int) {
	i, in := 0, false
	for _, c := range s {
		switch {
		case c >= '0' && c <= '9':
			if out[i] < 1<<20 {
				out[i] = out[i]*10 + int(c-'0')
			}
			in = true
		case in && c == '.':
			if i++; i == len(out) {
				return out
			}
		case in:
			return out
		}
	}
	return out
}

// release is the kernel's version.
func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "0"
	}
	return unix.ByteSliceToString(u.Release[:])
}
