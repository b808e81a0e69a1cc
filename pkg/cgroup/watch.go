package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher hears of OOM kills in every sandbox with one descriptor and one
// goroutine: an epoll set of eventfds on v1 (memory.oom_control, see
// cgroup-v1/memory.rst), an inotify instance on v2 (memory.events).
type watcher struct {
	version int
	file    *os.File
	conn    syscall.RawConn
	wg      sync.WaitGroup

	mu   sync.Mutex
	subs map[int]*subscription // by eventfd or inotify watch
}

// subscription is one sandbox's.
type subscription struct {
	s    *Sandbox
	fn   func(ctx context.Context, execID string)
	ctx  context.Context //nolint:containedctx // ends with the caller's or with the watch
	stop func()

	mu      sync.Mutex
	running bool
	again   bool
}

func (h *Host) watcher() (*watcher, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, os.ErrClosed
	}
	var err error
	if h.watch == nil {
		h.watch, err = newWatcher(h.version)
	}
	return h.watch, err
}

func newWatcher(version int) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if version == 1 {
		if err == nil {
			unix.Close(fd)
		}
		fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("watch for OOM kills: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch for OOM kills: %w", err)
	}
	f := os.NewFile(uintptr(fd), "oom-watch")
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w := &watcher{version: version, file: f, conn: conn, subs: map[int]*subscription{}}
	w.wg.Go(w.loop)
	return w, nil
}

func (w *watcher) close() error {
	w.mu.Lock()
	subs := w.subs
	w.subs = nil
	w.mu.Unlock()
	for key, sub := range subs {
		sub.stop()
		if w.version == 1 {
			unix.Close(key)
		}
	}
	err := w.file.Close()
	w.wg.Wait()
	return err
}

// loop ends when the file is closed.
func (w *watcher) loop() {
	for {
		keys, err := w.next()
		if err != nil {
			return
		}
		for _, key := range keys {
			w.mu.Lock()
			sub := w.subs[key]
			if sub != nil && w.version == 1 {
				var buf [8]byte
				_, _ = unix.Read(key, buf[:]) // resets the eventfd; it is ours while mu is held
			}
			w.mu.Unlock()
			if sub != nil {
				w.poke(sub)
			}
		}
	}
}

// next waits for events, parked in Go's poller and not in a thread.
func (w *watcher) next() (keys []int, err error) {
	var events [64]unix.EpollEvent
	var buf [4096]byte
	n, opErr := 0, error(nil)
	err = w.conn.Read(func(fd uintptr) bool {
		if w.version == 1 {
			n, opErr = unix.EpollWait(int(fd), events[:], 0)
			return n > 0 || (opErr != nil && !errors.Is(opErr, unix.EINTR))
		}
		n, opErr = unix.Read(int(fd), buf[:])
		return !errors.Is(opErr, unix.EAGAIN) && !errors.Is(opErr, unix.EINTR)
	})
	if err := errors.Join(err, opErr); err != nil {
		return nil, err
	}
	if w.version == 1 {
		for _, ev := range events[:n] {
			keys = append(keys, int(ev.Fd))
		}
		return keys, nil
	}
	return inotifyKeys(buf[:n]), nil
}

// inotifyKeys reads the watches out of inotify(7) events.
func inotifyKeys(b []byte) (keys []int) {
	for len(b) >= unix.SizeofInotifyEvent {
		keys = append(keys, int(int32(binary.NativeEndian.Uint32(b))))
		skip := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		b = b[min(skip, len(b)):]
	}
	return keys
}

// scanWaits is how long after an event the counters are looked at: v1 tells
// of an OOM before it picks the victim.
var scanWaits = []time.Duration{
	0, time.Millisecond, 4 * time.Millisecond, 20 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second,
}

// poke looks for new OOM kills, in one goroutine per sandbox at most.
func (w *watcher) poke(sub *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		return // close waits, or has waited, for what runs
	}
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.again = true
	if sub.running {
		return
	}
	sub.running = true
	w.wg.Go(func() {
		for sub.next() {
			for _, wait := range scanWaits {
				if sleep(sub.ctx, wait) != nil || sub.scan() {
					break
				}
			}
		}
	})
}

func (sub *subscription) next() bool {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.running = sub.again && sub.ctx.Err() == nil
	sub.again = false
	return sub.running
}

// scan reports the execs whose OOM counter has grown.
func (sub *subscription) scan() bool {
	s, found := sub.s, []string(nil)
	for _, id := range s.Execs() {
		n := s.exec(id).OOMKills()
		s.mu.Lock()
		if n > s.seenOOM[id] {
			s.seenOOM[id] = n
			found = append(found, id)
		}
		s.mu.Unlock()
	}
	for _, id := range found {
		sub.fn(sub.ctx, id)
	}
	return found != nil
}

// oomKillTimeout bounds the ending of an exec that was out of memory (v1).
const oomKillTimeout = 10 * time.Second

// WatchOOM has fn called, until ctx ends or the sandbox is removed, when the
// OOM killer has ended a process of an exec. The rest of that exec is ended
// too, by the kernel on v2 and by the watch, before fn is called, on v1. fn is
// called once per exec and kill, from a goroutine of the watch. An exec that is removed at
// once is not reported: Exec.OOMKills, read before Exec.Remove, is exact.
func (s *Sandbox) WatchOOM(ctx context.Context, fn func(execID string)) error {
	w, err := s.host.watcher()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	sub := &subscription{s: s, ctx: ctx, stop: cancel, fn: func(ctx context.Context, id string) {
		if s.host.version == 1 {
			kctx, cancel := context.WithTimeout(ctx, oomKillTimeout)
			_ = s.exec(id).Kill(kctx) // the caller ends the exec with its own deadline and error
			cancel()
		}
		fn(id)
	}}
	if err := w.add(sub); err != nil {
		cancel()
		return fmt.Errorf("watch sandbox %s for OOM kills: %w", s.id, err)
	}
	w.poke(sub) // for what came before the watch
	return nil
}

// add registers a subscription. Several for one sandbox are one too many: on
// v2 they would share the inotify watch.
func (w *watcher) add(sub *subscription) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		return os.ErrClosed
	}
	key, err := w.subscribe(sub.s)
	if err != nil {
		return err
	}
	w.subs[key] = sub
	context.AfterFunc(sub.ctx, func() { w.drop(sub) })
	return nil
}

func (w *watcher) subscribe(s *Sandbox) (key int, err error) {
	hr := s.host.by["memory"]
	err = w.conn.Control(func(fd uintptr) {
		if w.version == 1 {
			key, err = subscribeV1(hr, hr.at(s.id, "agent"), int(fd))
			return
		}
		key, err = unix.InotifyAddWatch(int(fd), hr.point+"/"+hr.at(s.id, "agent", "memory.events"), unix.IN_MODIFY|unix.IN_DONT_FOLLOW)
	})
	return key, err
}

func subscribeV1(hr *hierarchy, agent string, epfd int) (int, error) {
	oom, err := hr.open(agent+"/memory.oom_control", unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer unix.Close(oom)
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return 0, err
	}
	err = hr.write(agent+"/cgroup.event_control", fmt.Sprintf("%d %d", efd, oom))
	if err == nil {
		err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, efd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(efd)})
	}
	if err != nil {
		unix.Close(efd)
		return 0, err
	}
	return efd, nil
}

// drop ends a subscription.
func (w *watcher) drop(gone *subscription) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, sub := range w.subs {
		if sub != gone {
			continue
		}
		delete(w.subs, key)
		sub.stop()
		if w.version == 1 {
			unix.Close(key) // leaves the epoll set by itself
			continue
		}
		_ = w.conn.Control(func(fd uintptr) {
			_, _ = unix.InotifyRmWatch(int(fd), uint32(key)) // it is gone with its file
		})
	}
}

// unwatch ends the sandbox's subscriptions.
func (s *Sandbox) unwatch() {
	s.host.mu.Lock()
	w := s.host.watch
	s.host.mu.Unlock()
	if w == nil {
		return
	}
	w.mu.Lock()
	var mine []*subscription
	for _, sub := range w.subs {
		if sub.s.id == s.id {
			mine = append(mine, sub)
		}
	}
	w.mu.Unlock()
	for _, sub := range mine {
		w.drop(sub)
	}
}
