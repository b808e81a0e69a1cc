package server

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangups tells at once when a peer has closed its end, also while nothing
// reads from the connection (because the command does not take its input) or a
// write is blocked: reading would only find out after all that was sent.
//
// One epoll instance watches all sessions for EPOLLRDHUP; the Go runtime's
// poller watches that instance, so that no thread waits.
type hangups struct {
	ep    *os.File
	done  chan struct{}
	close func() error

	mu   sync.Mutex
	next int32
	gone map[int32]func()
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // makes os.File use the poller
		_ = unix.Close(fd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	h := &hangups{ep: os.NewFile(uintptr(fd), "hangups"), done: make(chan struct{}), gone: map[int32]func(){}}
	h.close = sync.OnceValue(h.ep.Close)
	raw, err := h.ep.SyscallConn()
	if err != nil {
		_ = h.ep.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go h.loop(raw)
	return h, nil
}

// watch calls fn once when the peer of c has closed its end, or half of it.
// fn must not block. The returned function ends the watch; call it before c is
// closed.
func (h *hangups) watch(c syscall.Conn, fn func()) (func(), error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.next++
	// A number that is not used again, rather than the descriptor's: an event
	// of a closed connection must not end the one that got its number.
	token := h.next
	h.gone[token] = fn
	h.mu.Unlock()
	err = h.control(raw, unix.EPOLL_CTL_ADD, &unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: token})
	if err != nil {
		h.take(token)
		return nil, err
	}
	return func() {
		if h.take(token) != nil {
			_ = h.control(raw, unix.EPOLL_CTL_DEL, nil) // closed already: then the kernel did it
		}
	}, nil
}

func (h *hangups) control(raw syscall.RawConn, op int, ev *unix.EpollEvent) error {
	epRaw, err := h.ep.SyscallConn()
	if err != nil {
		return err
	}
	var ctlErr, connErr error
	err = epRaw.Control(func(ep uintptr) {
		connErr = raw.Control(func(fd uintptr) { ctlErr = unix.EpollCtl(int(ep), op, int(fd), ev) })
	})
	for _, e := range []error{err, connErr, ctlErr} {
		if e != nil {
			return fmt.Errorf("watch connection: %w", e)
		}
	}
	return nil
}

func (h *hangups) take(token int32) func() {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn := h.gone[token]
	delete(h.gone, token)
	return fn
}

func (h *hangups) loop(raw syscall.RawConn) {
	defer close(h.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			var err error
			n, err = unix.EpollWait(int(fd), events, 0)
			return n > 0 || (err != nil && err != unix.EINTR)
		})
		if err != nil {
			return // closed
		}
		for _, ev := range events[:max(n, 0)] {
			if fn := h.take(ev.Fd); fn != nil {
				fn()
			}
		}
	}
}

// Close ends all watches. It may be called again.
func (h *hangups) Close() error {
	err := h.close()
	<-h.done
	return err
}
