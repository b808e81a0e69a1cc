package seccomp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Action is the verdict on a call, as a filter returns it (seccomp(2)).
type Action uint32

// The verdicts without data; Errno makes the others.
const (
	Allow       Action = unix.SECCOMP_RET_ALLOW
	KillProcess Action = unix.SECCOMP_RET_KILL_PROCESS
)

// Errno makes the call fail with e, without reaching the kernel's code for it.
func Errno(e unix.Errno) Action {
	return Action(unix.SECCOMP_RET_ERRNO | uint32(e)&unix.SECCOMP_RET_DATA)
}

// Errno is the error the call ends in, 0 when the action is another.
func (a Action) Errno() unix.Errno {
	if uint32(a)&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_ERRNO {
		return 0
	}
	return unix.Errno(uint32(a) & unix.SECCOMP_RET_DATA)
}

// String is "allow", "kill_process" or the name of the errno.
func (a Action) String() string {
	switch {
	case a == Allow:
		return "allow"
	case a == KillProcess:
		return "kill_process"
	case a.Errno() != 0:
		return unix.ErrnoName(a.Errno())
	}
	return fmt.Sprintf("action(%#x)", uint32(a))
}

// maxErrno is the highest number Linux gives an error on amd64 and arm64.
const maxErrno = 133

func errnoNamed(name string) (Action, bool) {
	for e := unix.Errno(1); e <= maxErrno; e++ {
		if unix.ErrnoName(e) == name && name != "" {
			return Errno(e), true
		}
	}
	return 0, false
}
