//go:build !seccomp || !cgo

package seccomp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// HostChecker names what CheckHost compares our tables with.
const HostChecker = "x/sys"

// native are numbers the standard library was compiled with, from another
// source than the tables; a table of the wrong architecture fails here.
var native = map[string]uint32{
	"read": unix.SYS_READ, "openat": unix.SYS_OPENAT, "execve": unix.SYS_EXECVE,
	"socket": unix.SYS_SOCKET, "clone": unix.SYS_CLONE, "ioctl": unix.SYS_IOCTL,
	"prctl": unix.SYS_PRCTL, "seccomp": unix.SYS_SECCOMP, "ptrace": unix.SYS_PTRACE,
	"mount": unix.SYS_MOUNT, "unshare": unix.SYS_UNSHARE, "bpf": unix.SYS_BPF,
	"io_uring_setup": unix.SYS_IO_URING_SETUP, "clone3": unix.SYS_CLONE3,
}

func checkNumbers(_ *Profile, arch string) ([]string, error) {
	for name, want := range native {
		if got, ok := Number(arch, name); !ok || got != want {
			return nil, fmt.Errorf("system call %s is %d here, our table says %d", name, want, got)
		}
	}
	return nil, nil
}
