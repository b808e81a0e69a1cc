package fdconn

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// collect takes the descriptors out of a control message. It returns an error
// only when the connection must end.
func (c *Conn) collect(oob []byte, truncated bool) error {
	fds, err := parse(oob)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused != nil || c.closed {
		c.discardLocked(fds)
		return ErrFlood
	}
	switch {
	case err != nil:
		c.refused = err
	case truncated, c.received+len(fds) > Max:
		c.refused = ErrTooMany
	case c.dirsOnly:
		c.refused = checkDirectories(fds)
	}
	if c.refused != nil {
		c.discardLocked(fds)
		closeAll(c.files)
		c.files = nil
		return nil
	}
	c.received += len(fds)
	for _, fd := range fds {
		c.files = append(c.files, os.NewFile(uintptr(fd), "received"))
	}
	return nil
}

// discardLocked closes refused descriptors on their own goroutine: the last
// close of a file can wait for its file system (FUSE_FLUSH of a hostile one:
// for ever). The OnClose hooks, and with them the caller's count of
// connections, wait for it, so stuck closes cannot pile up.
func (c *Conn) discardLocked(fds []int) {
	if len(fds) == 0 {
		return
	}
	c.pending.Go(func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	})
}

// parse returns all descriptors in oob, even when it also returns an error.
// They are close-on-exec: net reads with MSG_CMSG_CLOEXEC.
func parse(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			err = fmt.Errorf("control message of level %d and type %d; only SCM_RIGHTS is expected", m.Header.Level, m.Header.Type)
			continue
		}
		if len(m.Data)%4 != 0 { // ParseUnixRights would panic
			err = fmt.Errorf("control message with %d bytes of descriptors", len(m.Data))
			continue
		}
		got, perr := unix.ParseUnixRights(&m)
		if perr != nil {
			err = fmt.Errorf("control message: %w", perr)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}

func checkDirectories(fds []int) error {
	for i, fd := range fds {
		if err := checkDirectory(fd); err != nil {
			return fmt.Errorf("descriptor %d: %w", i, err)
		}
	}
	return nil
}

// checkDirectory tells a directory without asking its file system, which may
// be a FUSE of the caller that never answers: open(2) with O_DIRECTORY
// succeeds on directories only, the flag stays in the open file, and F_SETFL
// cannot add it. O_TMPFILE contains its bit and gives a regular file, so that
// is excluded. Detached mounts (open_tree(2), fsmount(2)) do not have it.
func checkDirectory(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("F_GETFL: %w", err)
	}
	const tmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY
	if flags&unix.O_DIRECTORY == 0 || flags&tmpfile != 0 {
		return ErrNotDirectory
	}
	return nil
}
