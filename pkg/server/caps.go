package server

import (
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/fdconn"
	"github.com/creel-sandbox/creel/pkg/peer"
)

// counter counts something per uid, up to a limit for each and one for all.
type counter struct {
	perUID, total int

	mu  sync.Mutex
	n   map[uint32]int
	all int
}

func newCounter(perUID, total int) *counter {
	return &counter{perUID: perUID, total: total, n: map[uint32]int{}}
}

// take counts n more, unless that is too many.
func (c *counter) take(uid uint32, n int) bool { return c.takeOf(uid, n, 0) }

// takeOf is take with a limit of the user's own below the one for each; 0 is
// none.
func (c *counter) takeOf(uid uint32, n, most int) bool {
	if most <= 0 || most > c.perUID {
		most = c.perUID
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[uid]+n > most || c.all+n > c.total {
		return false
	}
	c.n[uid] += n
	c.all += n
	return true
}

func (c *counter) give(uid uint32, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all -= n
	if c.n[uid] -= n; c.n[uid] == 0 {
		delete(c.n, uid)
	}
}

// capListener turns away connections beyond the caller's limit before a
// goroutine or buffer is spent on them.
type capListener struct {
	net.Listener
	conns *counter
	most  func(Caller) int // of a caller's own; 0 is none
	log   *slog.Logger
}

// busy is the whole answer to a connection too many: nothing is read from it.
const busy = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n\r\n" +
	`{"code":"resource_exhausted","message":"too many connections of this user","hint":"close some, or raise connections of its [[caller]], or server.max_connections"}` + "\n"

func (l *capListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who, err := peer.IDs(c)
		if err != nil {
			_ = c.Close() // nobody the kernel can name
			continue
		}
		uid := who.UID
		if l.conns.takeOf(uid, 1, l.most(who)) {
			c.(*fdconn.Conn).OnClose(func() { l.conns.give(uid, 1) })
			return c, nil
		}
		l.log.Debug("connection refused: too many of this user", slog.Uint64("uid", uint64(uid)))
		// A fresh socket has room for these bytes; the deadline is for a peer
		// that has made its buffer tiny.
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		_, _ = c.Write([]byte(busy))
		_ = c.Close()
	}
}
