package logs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MemoryMax is for Options.Max of a log in Memory: what an attached client
// needs to go on reading, and no more.
const MemoryMax = 256 << 10

// Memory is a file system in memory, of at most size bytes, for logs of which
// nothing may reach a disk. No path leads to it: it is used below dir and is
// gone with the descriptor, or with the process. Where the kernel can (6.4),
// it is not swapped either. It needs CAP_SYS_ADMIN.
func Memory(size int64) (f *os.File, dir string, err error) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, "", fmt.Errorf("log in memory: %w", err)
	}
	defer unix.Close(fd)
	_ = unix.FsconfigSetFlag(fd, "noswap")
	for _, o := range [][2]string{{"size", fmt.Sprint(size)}, {"mode", "0700"}} {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return nil, "", fmt.Errorf("log in memory: %s: %w", o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, "", fmt.Errorf("log in memory: %w", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, "", fmt.Errorf("log in memory: %w", err)
	}
	return os.NewFile(uintptr(m), "logs in memory"), fmt.Sprintf("/proc/self/fd/%d", m), nil
}
