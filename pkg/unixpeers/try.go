package unixpeers

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/thread"
)

// try has sockets of a namespace of its own connect to two of the daemon's: it
// must work before that namespace is on the list, and not afterwards. A kernel
// without bpf among its active LSMs takes the programs and never asks them.
func (g *Guard) try() error {
	tmp, err := os.MkdirTemp(os.TempDir(), "creel-unix-peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	dir, err := unix.Open(tmp, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		// By way of the descriptor, since a socket's path has 108 bytes at most.
		addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%d", dir, kind)}
		if err := g.tryKind(kind, addr); err != nil {
			return err
		}
	}
	return nil
}

const tryID = "self-test"

func (g *Guard) tryKind(kind int, addr unix.Sockaddr) (err error) {
	outer, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(outer)
	if err := unix.Bind(outer, addr); err != nil {
		return err
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(outer, 1); err != nil {
			return err
		}
	}
	inner, cookie, err := elsewhere(kind)
	if err != nil {
		return err
	}
	defer unix.Close(inner[0])
	defer unix.Close(inner[1])
	if err := unix.Connect(inner[0], addr); err != nil {
		return fmt.Errorf("try: connect from a namespace that is not on the list: %w", err)
	}
	if err := g.Add(cookie, tryID); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.list.Delete(cookie)) }()
	if err := unix.Connect(inner[1], addr); !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("try: the kernel does not ask the programs (connect: %w); boot with bpf in lsm=", errors.Join(err))
	}
	return nil
}

// elsewhere makes two sockets in a new network namespace, which ends with them.
func elsewhere(kind int) (fds [2]int, cookie uint64, err error) {
	err = thread.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		for i := range fds {
			fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds[i] = fd
		}
		cookie, err = unix.GetsockoptUint64(fds[0], unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return fds, cookie, err
}
