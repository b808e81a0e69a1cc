//go:build seccomp && cgo

package seccomp

import (
	"errors"
	"fmt"

	libseccomp "github.com/seccomp/libseccomp-golang"
)

// HostChecker names what CheckHost compares our tables with.
const HostChecker = "libseccomp"

// minAPI is libseccomp's API level from which KILL_PROCESS is known.
const minAPI = 3

func checkNumbers(p *Profile, arch string) ([]string, error) {
	api, err := libseccomp.GetAPI()
	if err != nil {
		return nil, fmt.Errorf("libseccomp API level: %w", err)
	}
	if api < minAPI {
		return nil, fmt.Errorf("libseccomp sees API level %d of this kernel, %d is needed (KILL_PROCESS)", api, minAPI)
	}
	target, err := libseccomp.GetArchFromString(arch)
	if err != nil {
		return nil, fmt.Errorf("libseccomp: architecture %q: %w", arch, err)
	}
	var notes []string
	var errs []error
	for _, name := range p.syscalls(arch) {
		ours, _ := Number(arch, name)
		nr, err := libseccomp.GetSyscallFromNameByArch(name, target)
		switch {
		case errors.Is(err, libseccomp.ErrSyscallDoesNotExist):
			notes = append(notes, fmt.Sprintf("libseccomp does not know system call %s (%d)", name, ours))
		case err != nil:
			errs = append(errs, fmt.Errorf("libseccomp: system call %s: %w", name, err))
		case int64(nr) < 0:
			errs = append(errs, fmt.Errorf("libseccomp: %s has no system call %s, our table says %d", arch, name, ours))
		case uint32(nr) != ours:
			errs = append(errs, fmt.Errorf("libseccomp: system call %s is %d, our table says %d", name, nr, ours))
		}
	}
	return notes, errors.Join(errs...)
}
