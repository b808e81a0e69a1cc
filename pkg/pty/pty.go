// Package pty opens pseudo-terminals in a sandbox's own devpts, from outside.
//
// A terminal of the host's devpts would not exist inside: ttyname(3) fails and
// its device may be another terminal's there. The file system that the sandbox
// shows is hostile, so nothing on the way may be a link, and what is opened is
// looked at before it is used.
package pty

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// ErrNotPTY means that the sandbox's /dev/pts is not what the runtime mounted.
var ErrNotPTY = errors.New("the sandbox's /dev/pts is not a devpts file system")

// Open makes a pseudo-terminal in the devpts at /dev/pts of the process pid1,
// owned by the given host ids with mode 0620. master is non-blocking. Both are
// close-on-exec, and neither becomes anyone's controlling terminal.
//
// A pid can be another process's by now: check a pidfd of it afterwards.
func Open(pid1 int, uid, gid uint32) (master, slave *os.File, err error) {
	master, err = openMaster(pid1)
	if err != nil {
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	slave, err = openSlave(master, uid, gid)
	if err != nil {
		_ = master.Close()
		return nil, nil, fmt.Errorf("open a terminal: %w", err)
	}
	return master, slave, nil
}

func openMaster(pid1 int) (*os.File, error) {
	// The one magic link that is meant to be followed.
	root, err := unix.Open("/proc/"+strconv.Itoa(pid1)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	node, err := unix.Openat2(root, "dev/pts/ptmx", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotPTY, err)
	}
	defer unix.Close(node)
	// Looked at through O_PATH, since opening some other device can act.
	if err := checkMultiplexer(node); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(node), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pty master"), nil
}

// checkMultiplexer holds that fd is character device 5:2 of a devpts, see pts(4).
func checkMultiplexer(fd int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return ErrNotPTY
	}
	return nil
}

// openSlave opens the other end without a path (TIOCGPTPEER, ioctl_tty(2)).
func openSlave(master *os.File, uid, gid uint32) (slave *os.File, err error) {
	var ioctlErr error
	err = control(master, func(fd int) {
		if ioctlErr = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); ioctlErr != nil {
			return
		}
		s, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			ioctlErr = errno
			return
		}
		slave = os.NewFile(s, "pty slave")
	})
	if err = errors.Join(err, ioctlErr); err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Fchown(int(slave.Fd()), int(uid), int(gid)), unix.Fchmod(int(slave.Fd()), 0o620)); err != nil {
		_ = slave.Close()
		return nil, fmt.Errorf("give the terminal to the agent: %w", err)
	}
	return slave, nil
}

// Resize tells the terminal's processes its size, in characters.
func Resize(f *os.File, cols, rows uint16) error {
	var ioctlErr error
	err := control(f, func(fd int) {
		ioctlErr = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	})
	if err = errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("resize a terminal: %w", err)
	}
	return nil
}

// control gives fn the descriptor. f.Fd would make it blocking.
func control(f *os.File, fn func(fd int)) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { fn(int(fd)) })
}
