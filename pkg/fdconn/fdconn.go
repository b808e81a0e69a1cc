// Package fdconn carries open files beside the bytes of a Unix stream socket
// (SCM_RIGHTS, see unix(7)), beneath code that knows only net.Conn, such as
// net/http.
//
// Every Read collects the descriptors that came with its bytes; Take hands
// them over, in the order they were sent. Attach sends files with the first
// byte of the next Write.
//
//	server:  l = fdconn.Listen(l); srv.ConnContext = fdconn.ConnContext; fdconn.Take(ctx)
//	client:  c := fdconn.Client(uc); c.Attach(dirs...); req.Write(c)
//
// Beware: all reading of the socket must go through the Conn. A plain read
// makes the kernel drop the descriptors that came with those bytes.
package fdconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Max is how many descriptors one connection may bring in all.
const Max = 16

// What can be wrong with descriptors.
var (
	// ErrTooMany means more than Max came, or that the kernel could not
	// install them all. The ones that came were closed.
	ErrTooMany = errors.New("too many descriptors; send at most 16 on one connection")
	// ErrNotDirectory means a descriptor is not of a file opened with
	// O_DIRECTORY. The ones that came were closed.
	ErrNotDirectory = errors.New("not a directory; open it with O_DIRECTORY")
	// ErrFlood ends a connection that goes on sending after a refusal.
	ErrFlood = errors.New("descriptors sent after some were refused")
)

// Conn is a Unix stream connection that carries descriptors. It is safe for
// concurrent use as net.Conn is.
type Conn struct {
	uc       *net.UnixConn
	dirsOnly bool
	deaf     bool // takes no descriptors: the kernel closes those that come

	rmu sync.Mutex
	oob [maxOOB]byte // guarded by rmu

	wmu  sync.Mutex
	send []*os.File // guarded by wmu

	mu       sync.Mutex
	files    []*os.File
	received int
	refused  error
	closed   bool
	hooks    []func()
	pending  sync.WaitGroup // closing of refused descriptors
}

// maxOOB is room for exactly Max descriptors in one message: the kernel
// installs no more than fit and sets MSG_CTRUNC (checked by a test).
const maxOOB = unix.SizeofCmsghdr + 4*Max

// Client wraps a client's end. It takes descriptors of any kind, because the
// daemon sends pipes and terminals.
func Client(uc *net.UnixConn) *Conn { return &Conn{uc: uc} }

// Server wraps the daemon's end of a connection. Only directories are taken,
// see checkDirectory.
func Server(uc *net.UnixConn) *Conn { return &Conn{uc: uc, dirsOnly: true} }

// Deaf wraps the daemon's end of a connection from which no descriptors are
// taken: they never become the daemon's.
func Deaf(uc *net.UnixConn) *Conn { return &Conn{uc: uc, deaf: true} }

// Read reads bytes and keeps the descriptors that came with them for Take.
// What is wrong with them is told by Take, not here, so that a server can
// answer it; only a peer that then sends more is cut off, with ErrFlood.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // recvmsg with a control buffer would eat a byte
	}
	if c.deaf {
		return c.uc.Read(p)
	}
	c.rmu.Lock()
	defer c.rmu.Unlock()
	n, oobn, flags, _, err := c.uc.ReadMsgUnix(p, c.oob[:])
	if oobn > 0 || flags&unix.MSG_CTRUNC != 0 {
		if ferr := c.collect(c.oob[:oobn], flags&unix.MSG_CTRUNC != 0); ferr != nil {
			_ = c.uc.Close()
			return 0, ferr
		}
	}
	switch {
	case errors.Is(err, io.EOF), err == nil && n == 0:
		return 0, io.EOF // unwrapped, as io.Reader wants
	case err != nil:
		return 0, err // n is -1 after an errno, which a bufio.Reader panics on
	default:
		return n, nil
	}
}

// Write writes p, with the attached files at its first byte.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if len(c.send) == 0 || len(p) == 0 {
		return c.uc.Write(p)
	}
	fds, err := numbers(c.send)
	if err != nil {
		return 0, err
	}
	n, _, err := c.uc.WriteMsgUnix(p, unix.UnixRights(fds...), nil)
	if err != nil {
		return n, err
	}
	c.send = nil // also keeps the files from being finalised until now
	if n < len(p) {
		m, err := c.uc.Write(p[n:])
		return n + m, err
	}
	return n, nil
}

// Attach sends files with the first byte of the next Write. They stay the
// caller's, and must not be closed before that Write has returned.
func (c *Conn) Attach(files ...*os.File) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if len(c.send)+len(files) > Max {
		return ErrTooMany
	}
	c.send = append(c.send, files...)
	return nil
}

// Take returns the descriptors that came since the last Take, close-on-exec,
// and gives them to the caller. The error is the first thing that was wrong
// with any, ErrTooMany or ErrNotDirectory; there are then none.
func (c *Conn) Take() ([]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	files := c.files
	c.files = nil
	return files, c.refused
}

// OnClose runs fn once when the connection has been closed, or now if it has
// been. Hooks run after the descriptors are closed, which may be later than
// Close returns.
func (c *Conn) OnClose(fn func()) {
	c.mu.Lock()
	if !c.closed {
		c.hooks = append(c.hooks, fn)
		c.mu.Unlock()
		return
	}
	c.mu.Unlock()
	fn()
}

// Close closes the socket and the descriptors that nobody took.
func (c *Conn) Close() error {
	err := c.uc.Close()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return err
	}
	c.closed = true
	files, hooks := c.files, c.hooks
	c.files, c.hooks = nil, nil
	c.mu.Unlock()

	closeAll(files)
	go func() {
		c.pending.Wait()
		for _, fn := range hooks {
			fn()
		}
	}()
	return err
}

// SyscallConn is the socket's.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.uc.SyscallConn() }

// UnixConn is the socket beneath. Do not read from it.
func (c *Conn) UnixConn() *net.UnixConn { return c.uc }

// CloseWrite ends the sending half.
func (c *Conn) CloseWrite() error { return c.uc.CloseWrite() }

// The rest of net.Conn is the socket's.

// LocalAddr is the socket's own address.
func (c *Conn) LocalAddr() net.Addr { return c.uc.LocalAddr() }

// RemoteAddr is the peer's address, which is nearly always unnamed.
func (c *Conn) RemoteAddr() net.Addr { return c.uc.RemoteAddr() }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error { return c.uc.SetDeadline(t) }

// SetReadDeadline ends a blocked Read.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.uc.SetReadDeadline(t) }

// SetWriteDeadline ends a blocked Write.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.uc.SetWriteDeadline(t) }

type listener struct{ *net.UnixListener }

// Listen makes the connections of l carry descriptors.
func Listen(l *net.UnixListener) net.Listener { return listener{l} }

func (l listener) Accept() (net.Conn, error) {
	uc, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return Server(uc), nil
}

type key struct{}

// ConnContext remembers the connection for From and Take; give it to
// http.Server.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if fc, ok := c.(*Conn); ok {
		return context.WithValue(ctx, key{}, fc)
	}
	return ctx
}

// From is the connection that the request of ctx came on.
func From(ctx context.Context) (*Conn, bool) {
	c, ok := ctx.Value(key{}).(*Conn)
	return c, ok
}

// Take is Conn.Take of the connection that the request of ctx came on. A
// connection that carries no descriptors has none.
func Take(ctx context.Context) ([]*os.File, error) {
	c, ok := From(ctx)
	if !ok {
		return nil, nil
	}
	return c.Take()
}

// numbers gets the descriptors without os.File.Fd, which would make a
// non-blocking file blocking for everybody who shares it.
func numbers(files []*os.File) ([]int, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		if err != nil {
			return nil, fmt.Errorf("send descriptor %d: %w", i, err)
		}
	}
	return fds, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
