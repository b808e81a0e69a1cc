package seccomp

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrHost means that this host cannot enforce the profile.
var ErrHost = errors.New("host cannot enforce the seccomp profile")

// CheckHost says whether this host can enforce the profile: its kernel knows
// every action the profile uses, and libseccomp, where creel is built with
// it (see HostChecker), gives each system call the number our tables give.
//
// The notes are names that the host's libseccomp is too old to know. They
// cost nothing: the filter is compiled from our own table, and in an
// allow-list a number that the kernel does not have is merely refused by it.
//
// It is meant to be called once, when the daemon starts.
func CheckHost(p *Profile) (notes []string, err error) {
	if _, err := p.Compile(runtime.GOARCH); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrHost, err)
	}
	for _, a := range []Action{Allow, Errno(unix.ENOSYS), KillProcess} {
		if err := actionAvailable(a); err != nil {
			return nil, fmt.Errorf("%w: action %s: %w; a kernel of 4.14 or later with CONFIG_SECCOMP_FILTER is needed", ErrHost, a, err)
		}
	}
	notes, err = checkNumbers(p, runtime.GOARCH)
	if err != nil {
		return notes, fmt.Errorf("%w: %w", ErrHost, err)
	}
	return notes, nil
}

// actionAvailable asks the kernel (SECCOMP_GET_ACTION_AVAIL, Linux 4.14).
func actionAvailable(a Action) error {
	kind := uint32(a) & unix.SECCOMP_RET_ACTION_FULL
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&kind)))
	if errno != 0 {
		return errno
	}
	return nil
}

// syscalls is every name the profile has rules for on the architecture.
func (p *Profile) syscalls(arch string) []string {
	seen := map[string]bool{}
	var out []string
	for _, g := range p.Groups {
		for _, r := range g.Rules {
			for _, name := range r.Syscalls {
				if r.on(arch) && !seen[name] {
					seen[name] = true
					out = append(out, name)
				}
			}
		}
	}
	return out
}
