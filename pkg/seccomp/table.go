package seccomp

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// machine is what a filter has to know of an architecture.
type machine struct {
	audit   uint32 // AUDIT_ARCH_*, what seccomp_data.arch holds
	numbers map[string]uint32
	x32     bool // a second ABI shares audit and sets bit 30 of the number
}

var machines = map[string]machine{
	"amd64": {audit: unix.AUDIT_ARCH_X86_64, numbers: amd64Numbers, x32: true},
	"arm64": {audit: unix.AUDIT_ARCH_AARCH64, numbers: arm64Numbers},
}

// x32Bit marks calls of the x32 ABI; no other call has a number as high.
const x32Bit = 0x40000000

// noCall is what programs pass for a call their headers do not know,
// syscall(-1); every kernel answers ENOSYS.
const noCall = ^uint32(0)

// Number is the number of a system call on an architecture.
func Number(arch, syscall string) (uint32, bool) {
	nr, ok := machines[arch].numbers[syscall]
	return nr, ok
}

// Names is every system call of an architecture that the tables know, sorted.
func Names(arch string) []string {
	return slices.Sorted(maps.Keys(machines[arch].numbers))
}
