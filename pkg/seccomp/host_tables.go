//go:build !seccomp || !cgo

package seccomp

import (
	"fmt"
	"syscall"
)

// HostChecker names what CheckHost compares our tables with.
const HostChecker = "syscall"

// native are the numbers of the standard library, which has its own tables,
// for the architecture this program was built for.
var native = map[string]uint32{
	"read": syscall.SYS_READ, "openat": syscall.SYS_OPENAT, "execve": syscall.SYS_EXECVE,
	"socket": syscall.SYS_SOCKET, "socketpair": syscall.SYS_SOCKETPAIR, "clone": syscall.SYS_CLONE,
	"ioctl": syscall.SYS_IOCTL, "prctl": syscall.SYS_PRCTL, "ptrace": syscall.SYS_PTRACE,
	"mount": syscall.SYS_MOUNT, "unshare": syscall.SYS_UNSHARE, "fchmod": syscall.SYS_FCHMOD,
	"fchmodat": syscall.SYS_FCHMODAT, "mkdirat": syscall.SYS_MKDIRAT, "mknodat": syscall.SYS_MKNODAT,
	"prlimit64": syscall.SYS_PRLIMIT64, "personality": syscall.SYS_PERSONALITY,
}

func checkNumbers(_ *Profile, arch string) ([]string, error) {
	for name, want := range native {
		if got, ok := Number(arch, name); !ok || got != want {
			return nil, fmt.Errorf("system call %s is %d here, our table says %d", name, want, got)
		}
	}
	return nil, nil
}
