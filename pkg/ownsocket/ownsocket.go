// Package ownsocket makes the listening Unix socket that a sandbox has of its
// own.
//
// It is in the sandbox's network namespace, so that both ends of a connection
// are, and what keeps Unix sockets from leading over the sandbox's edge
// (pkg/unixpeers) needs no exception for it. Directory and socket are root's,
// and the sandbox's user may only connect: it can neither replace the socket
// nor change who else may.
package ownsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/thread"
)

// Name is the socket's, in its directory.
const Name = "creel.sock"

// backlog is how many connections may wait to be accepted; with more,
// connect(2) blocks or fails with EAGAIN.
const backlog = 16

// MakeDir makes the directory of a socket: root's, for a group to enter.
func MakeDir(dir string, gid uint32) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(os.Chown(dir, 0, int(gid)), os.Chmod(dir, 0o750))
}

// Listen makes the socket in dir, in the place of one that an earlier daemon
// left, for a group to connect to. Its sockets belong to the network namespace
// that netns is open on. Closing the listener leaves the file.
func Listen(netns *os.File, dir string, gid uint32) (*net.UnixListener, error) {
	l, err := listen(netns, dir, gid)
	if err != nil {
		return nil, fmt.Errorf("socket in %s: %w", dir, err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

func listen(netns *os.File, dir string, gid uint32) (*net.UnixListener, error) {
	in, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(in)
	if err := unix.Unlinkat(in, Name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	fd, err := socketIn(netns)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, Name))
	defer f.Close() // the listener has its own duplicate
	// By way of the descriptor, since a socket's path has 108 bytes at most.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", in, Name)}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	// Nobody can connect before it listens.
	if err := errors.Join(unix.Fchownat(in, Name, 0, int(gid), unix.AT_SYMLINK_NOFOLLOW), unix.Fchmodat(in, Name, 0o660, 0)); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil //nolint:forcetypeassert // it is a Unix stream socket
}

// socketIn is a new socket of a network namespace.
func socketIn(netns *os.File) (fd int, err error) {
	err = thread.Do(func() (err error) {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join: %w", err)
		}
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	return fd, err
}
