// Package handed is a listener whose connections come from elsewhere, so that a
// net/http server serves connections that somebody else accepted.
package handed

import (
	"context"
	"net"
	"sync"
)

// Conn is a connection of whose end is heard. Use NewConn.
type Conn struct {
	*net.TCPConn
	once   sync.Once
	closed chan struct{}
}

// NewConn is of a connection, which is closed with it.
func NewConn(c *net.TCPConn) *Conn { return &Conn{TCPConn: c, closed: make(chan struct{})} }

// Close implements net.Conn.
func (c *Conn) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// Listener gives what it is handed to who accepts. Use New.
type Listener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

var _ net.Listener = (*Listener)(nil)

// New makes a listener.
func New() *Listener { return &Listener{conns: make(chan net.Conn), done: make(chan struct{})} }

// Serve hands over a connection, which has c at its bottom, and returns when c has
// ended; if ctx ends, it ends c. The error is net.ErrClosed if nobody accepts any
// more.
func (l *Listener) Serve(ctx context.Context, serve net.Conn, c *Conn) error {
	select {
	case l.conns <- serve:
	case <-l.done:
		return net.ErrClosed
	}
	select {
	case <-c.closed:
		return nil
	case <-ctx.Done():
		_ = c.Close()
		return context.Cause(ctx)
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

// Addr implements net.Listener.
func (*Listener) Addr() net.Addr { return &net.TCPAddr{} }
