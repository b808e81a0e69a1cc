package agentinit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// Conn carries whole messages between the daemon and creel-init. Recv is
// called by one goroutine; Send may be called by several. Close makes both
// return.
type Conn interface {
	// Send sends one message and, where PassesFDs, descriptors with it, of
	// which the caller keeps its own.
	Send(ctx context.Context, msg []byte, fds []int) error

	// Recv waits for a message and calls fn with it; the bytes are valid
	// only during the call. io.EOF means that creel-init is gone.
	Recv(fn func(msg []byte) error) error

	// PassesFDs is whether descriptors can be sent.
	PassesFDs() bool

	Close() error
}

// recvBuffers are shared by all channels: one that waits holds none, so that
// many idle sandboxes cost no memory.
var recvBuffers = sync.Pool{New: func() any {
	b := make([]byte, wire.MaxMessage+1)
	return &b
}}

// packetConn is a Conn over a SOCK_SEQPACKET socket.
type packetConn struct {
	f    *os.File
	raw  syscall.RawConn
	send chan struct{} // held while sending; a channel, to be given up with a context
}

// newPacketConn takes ownership of fd.
func newPacketConn(fd int) (*packetConn, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("channel: %w", err)
	}
	f := os.NewFile(uintptr(fd), "creel-init channel")
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("channel: %w", err)
	}
	return &packetConn{f: f, raw: raw, send: make(chan struct{}, 1)}, nil
}

func (c *packetConn) PassesFDs() bool { return true }
func (c *packetConn) Close() error    { return c.f.Close() }

func (c *packetConn) Send(ctx context.Context, msg []byte, fds []int) error {
	select {
	case c.send <- struct{}{}:
		defer func() { <-c.send }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cut)
		_ = c.f.SetWriteDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			// The function runs beside this one. If it set the deadline after
			// it was taken away here, no message could be sent ever again.
			<-cut
			_ = c.f.SetWriteDeadline(time.Time{})
		}
	}()
	var sendErr error
	err := c.raw.Write(func(fd uintptr) bool {
		for {
			sendErr = unix.Sendmsg(int(fd), msg, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			if sendErr != unix.EINTR {
				return sendErr != unix.EAGAIN
			}
		}
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err = errors.Join(err, sendErr); err != nil {
		return fmt.Errorf("send to creel-init: %w", err)
	}
	return nil
}

// Recv gives the kernel no control buffer, so descriptors that a hostile
// creel-init sends are never installed here.
func (c *packetConn) Recv(fn func([]byte) error) error {
	var recvErr error
	err := c.raw.Read(func(fd uintptr) bool {
		buf := recvBuffers.Get().(*[]byte)
		defer recvBuffers.Put(buf)
		for {
			n, _, flags, _, err := unix.RecvmsgBuffers(int(fd), [][]byte{*buf}, nil, unix.MSG_DONTWAIT)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN:
				return false
			case err != nil:
				recvErr = err
			case n == 0: // the end; an empty message is as good as one
				recvErr = io.EOF
			case flags&unix.MSG_TRUNC != 0:
				recvErr = fmt.Errorf("message over %d bytes: %w", wire.MaxMessage, ErrHostile)
			default:
				recvErr = fn((*buf)[:n])
			}
			return true
		}
	})
	if recvErr != nil {
		return recvErr
	}
	return err
}

// streamConn is a Conn over a byte stream: each message has its length, four
// bytes little-endian, before it.
type streamConn struct {
	rw   io.ReadWriteCloser
	send chan struct{}
}

func (c *streamConn) PassesFDs() bool { return false }
func (c *streamConn) Close() error    { return c.rw.Close() }

// Send cannot leave a message half sent and go on: when ctx ends first, the
// stream is closed.
func (c *streamConn) Send(ctx context.Context, msg []byte, fds []int) error {
	if len(fds) > 0 {
		return fmt.Errorf("descriptors over a byte stream: %w", errors.ErrUnsupported)
	}
	select {
	case c.send <- struct{}{}:
		defer func() { <-c.send }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.rw.Close() })
	defer stop()
	framed := binary.LittleEndian.AppendUint32(make([]byte, 0, len(msg)+4), uint32(len(msg)))
	if _, err := c.rw.Write(append(framed, msg...)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("send to creel-init: %w", err)
	}
	return nil
}

func (c *streamConn) Recv(fn func([]byte) error) error {
	var head [4]byte
	if _, err := io.ReadFull(c.rw, head[:]); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > wire.MaxMessage {
		return fmt.Errorf("message of %d bytes: %w", n, ErrHostile)
	}
	buf := recvBuffers.Get().(*[]byte)
	defer recvBuffers.Put(buf)
	if _, err := io.ReadFull(c.rw, (*buf)[:n]); err != nil {
		return err
	}
	return fn((*buf)[:n])
}
