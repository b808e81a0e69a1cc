package web

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/handed"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
)

// connKey is where a request's context has its connection.
type connKey struct{}

// conn is an agent's connection.
type conn struct {
	*handed.Conn
	to   proxy.Target
	kind egress.Kinds // HTTP or HTTPS

	explicit bool            // its client speaks to a proxy
	ctx      context.Context // of its Serve, if explicit
}

// whose is the connection that net/http serves, with TLS around it or not.
func whose(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	in, _ := c.(*conn)
	return in
}

// peek is the first byte that comes, which stays to be read.
func peek(c *net.TCPConn) (byte, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var b [1]byte
	var n int
	var said error
	err = raw.Read(func(fd uintptr) bool {
		n, _, said = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(said, unix.EAGAIN)
	})
	if err == nil {
		err = said
	}
	if err == nil && n == 0 {
		err = net.ErrClosed
	}
	return b[0], err
}
