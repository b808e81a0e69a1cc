package peer

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peerGroups reads SO_PEERGROUPS (Linux 4.13), which x/sys has no wrapper for.
// The kernel answers ERANGE, and the length it needs, when the buffer is small.
func peerGroups(fd int) ([]uint32, error) {
	buf := make([]uint32, 64)
	for {
		size := uint32(len(buf) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		n := int(size / 4)
		switch {
		case errno == 0 && n <= len(buf):
			groups := slices.Clone(buf[:n])
			slices.Sort(groups)
			return groups, nil
		case errno == unix.ERANGE && n > len(buf) && n <= maxGroups:
			buf = make([]uint32, n)
		case errno == 0 || errno == unix.ERANGE:
			return nil, fmt.Errorf("SO_PEERGROUPS: the kernel answered %d groups for room of %d", n, len(buf))
		default:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		}
	}
}
