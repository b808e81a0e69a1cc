// Package pty makes terminals in a sandbox's own devpts.
//
// A terminal of the host's devpts would work too, but ttyname(3) and tty(1)
// would not find it inside, and its number would tell of the host's others.
package pty

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open makes a terminal in the devpts of the sandbox whose PID 1 is pid1, with
// a slave that host uid and gid own, mode 0620. Both ends are close-on-exec
// and nobody's controlling terminal.
//
// /dev/pts/ptmx is reached through /proc/PID/root without following any link
// and must be what its name says: the agent cannot mount there, and if it
// could, another device would be refused (CVE-2025-52565 is a console that was
// something else).
func Open(pid1, uid, gid int) (master, slave *os.File, err error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid1), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("root of the sandbox: %w", err)
	}
	defer unix.Close(root)
	m, err := unix.Openat2(root, "dev/pts/ptmx", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("dev/pts/ptmx of the sandbox: %w", err)
	}
	master = os.NewFile(uintptr(m), "/dev/pts/ptmx")
	defer func() {
		if err != nil {
			_ = master.Close()
			master = nil
		}
	}()
	if err := checkMaster(m); err != nil {
		return master, nil, err
	}
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return master, nil, fmt.Errorf("unlock terminal: %w", err)
	}
	slave, err = openSlave(m, uid, gid)
	return master, slave, err
}

// openSlave gets the slave from the master, not from a path (ioctl_tty(2)).
func openSlave(m, uid, gid int) (*os.File, error) {
	s, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open terminal: %w", errno)
	}
	slave := os.NewFile(s, "terminal")
	if err := unix.Fchown(int(s), uid, gid); err != nil {
		_ = slave.Close()
		return nil, fmt.Errorf("own terminal: %w", err)
	}
	if err := unix.Fchmod(int(s), 0o620); err != nil {
		_ = slave.Close()
		return nil, fmt.Errorf("own terminal: %w", err)
	}
	return slave, nil
}

// checkMaster refuses what is not the multiplexer of a devpts: character
// device 5:2 (Documentation/admin-guide/devices.txt).
func checkMaster(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("dev/pts/ptmx of the sandbox: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("dev/pts/ptmx of the sandbox: %w", err)
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return fmt.Errorf("dev/pts/ptmx of the sandbox is not a terminal multiplexer (file system %#x, device %#x)", fs.Type, st.Rdev)
	}
	return nil
}
