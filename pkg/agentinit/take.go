package agentinit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// DaemonFD is the descriptor in creel-init that is the daemon's end.
const DaemonFD = 101

// Descriptors are what creel-init has open when it has answered Setup, and
// before it was told to start anything: number and beginning of the link in
// /proc/PID/fd. isolate is Setup's. While a process waits for its release there is one more
// socket; the descriptors to keep (and the pipes or terminal of Bytes) are
// there until its Ack. It has never anything else.
func Descriptors(isolate bool) map[int]string {
	fds := map[int]string{
		0: "/dev/null", 1: "/dev/null", 2: "/dev/null", 3: "/dev/null",
		4: "anon_inode:[eventpoll]", 5: "anon_inode:[eventfd]", // the Go runtime's
		100: "socket:", DaemonFD: "socket:", 102: "anon_inode:[eventpoll]",
		104: "pipe:", 105: "pipe:",
	}
	if isolate {
		fds[107] = "anon_inode:[landlock-ruleset]"
	}
	return fds
}

// Take gets the daemon's end of the channel out of the creel-init that pidfd
// refers to, and begins to read it. It waits until creel-init is so far; it
// ends when the process does or with ctx. pidfd stays the caller's. It needs
// PTRACE_MODE_ATTACH_REALCREDS over the process (pidfd_getfd(2)): root's.
func Take(ctx context.Context, pidfd int) (*Host, error) {
	fd, err := getFD(ctx, pidfd)
	if err != nil {
		return nil, fmt.Errorf("take creel-init's channel: %w", err)
	}
	if err := checkSocket(fd); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("take creel-init's channel: %w", err)
	}
	c, err := newPacketConn(fd)
	if err != nil {
		return nil, err
	}
	return NewHost(c), nil
}

// TakeStream is Take for a runtime that passes no descriptors: rw is
// creel-init's standard input and output. The Host closes it.
func TakeStream(rw io.ReadWriteCloser) *Host {
	return NewHost(&streamConn{rw: rw, send: make(chan struct{}, 1)})
}

// getFD asks until the descriptor is there. creel-init needs about a
// millisecond for it, so the first pauses are short.
func getFD(ctx context.Context, pidfd int) (int, error) {
	pause := 100 * time.Microsecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		fd, err := unix.PidfdGetfd(pidfd, DaemonFD, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EBADF) && !errors.Is(err, unix.ESRCH) {
			return -1, fmt.Errorf("pidfd_getfd: %w", err)
		}
		// ESRCH is said of a main thread that has exited as well, and so for a
		// moment of a process that another thread of its executes in.
		if dead(pidfd) {
			return -1, fmt.Errorf("%w before its channel was ready", ErrGone)
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return -1, context.Cause(ctx)
		case <-timer.C:
		}
		pause = min(pause*5/4, time.Millisecond)
	}
}

// dead is whether the process of a pidfd has ended.
func dead(pidfd int) bool {
	p := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents != 0
}

// checkSocket refuses anything but a Unix seqpacket socket: after go, what is
// at that number is the word of a process that may have been taken over.
func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("descriptor %d: %w", DaemonFD, err)
	}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("descriptor %d: %w", DaemonFD, err)
	}
	if domain != unix.AF_UNIX || typ != unix.SOCK_SEQPACKET {
		return fmt.Errorf("descriptor %d is a socket of domain %d, type %d: %w", DaemonFD, domain, typ, ErrHostile)
	}
	return nil
}
