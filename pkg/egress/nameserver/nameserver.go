// Package nameserver answers the DNS queries of one sandbox, on the sockets to
// which its namespace has every query go.
//
// Nothing is asked of anybody: package dnsanswer makes the answers out of the
// policy. A reply comes from the address that was asked, whichever that was.
package nameserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/dnsanswer"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
)

// Port is where DNS is served (RFC 1035, section 4.2).
const Port = 53

// Bounds of one sandbox. Queries beyond the rate wait in the kernel, whose
// buffer drops those that do not fit: to refuse them would be work as well.
const (
	perSecond = 200
	burst     = 400
	// tcpIdle is how long a connection may wait for its next query (RFC 7766,
	// section 6.2.3), and tcpMost how many it may make.
	tcpIdle = 10 * time.Second
	tcpMost = 1000
)

// Options are of one sandbox. All are required.
type Options struct {
	// Policy is the snapshot that holds now. It is asked once for a query.
	Policy func() egress.Snapshot
	Names  *synthetic.Table
	// Record is told of names that are refused, and of those that are given an
	// address for the first time.
	Record func(Decision)
}

// Decision is what was decided on a name.
type Decision struct {
	Time  time.Time
	Name  egress.Name
	Rules []string
	// Err is why it was refused: an *egress.RefusedError, or synthetic.ErrFull.
	Err error
}

// Server answers queries. Use New.
type Server struct {
	opts  Options
	limit *rate.Limiter
}

// New makes a server.
func New(o Options) (*Server, error) {
	if o.Policy == nil || o.Names == nil || o.Record == nil {
		return nil, errors.New("a name server without all of its options")
	}
	return &Server{o, rate.NewLimiter(perSecond, burst)}, nil
}

// answer is the reply to one query; nil for none.
func (s *Server) answer(query []byte) []byte {
	return dnsanswer.Answer(query, func(n egress.Name) (v4, v6 netip.Addr, err error) {
		d := Decision{Time: time.Now(), Name: n}
		g, err := s.opts.Policy().Resolves(n)
		fresh := true
		if err == nil {
			d.Rules = g.Rules
			v4, v6, fresh, err = s.opts.Names.Bind(n)
		}
		if d.Err = err; err != nil || fresh {
			s.opts.Record(d)
		}
		return v4, v6, err
	})
}

// ServeUDP answers what comes by a socket, which has IP_PKTINFO or its like for
// IPv6 set, until ctx ends or the socket is closed. It does not close it.
func (s *Server) ServeUDP(ctx context.Context, c *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	buf, oob := make([]byte, dnsanswer.MaxQuery+1), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		if err := s.limit.Wait(ctx); err != nil {
			return context.Cause(ctx)
		}
		n, nn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue // an error of a reply that was sent (ICMP)
		}
		asked, err := askedAt(oob[:nn])
		if err != nil {
			continue
		}
		if reply := s.answer(buf[:n]); reply != nil {
			_, _, _ = c.WriteMsgUDPAddrPort(reply, asked, from)
		}
	}
}

var errNotAsked = errors.New("a datagram without its destination")

// askedAt makes of the control message that came with a query the one by which
// a reply has the query's destination as its source (ip(7), ipv6(7)).
func askedAt(oob []byte) ([]byte, error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// ipi_ifindex, ipi_spec_dst, ipi_addr: the last is the header's destination.
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}), nil
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}), nil
		}
	}
	return nil, errNotAsked
}

// ServeTCP answers the queries of one connection, and returns when there are no
// more. It does not close it.
func (s *Server) ServeTCP(ctx context.Context, c net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })
	defer stop()
	for range tcpMost {
		if err := s.limit.Wait(ctx); err != nil {
			return context.Cause(ctx)
		}
		if err := c.SetDeadline(time.Now().Add(tcpIdle)); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx) // it may have come before the deadline
		}
		reply, err := s.one(c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(reply)))); err != nil {
			return err
		}
		if _, err := c.Write(reply); err != nil {
			return err
		}
	}
	return nil
}

// one reads a query and gives its reply. The error is io.EOF where there is none
// any more.
func (s *Server) one(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(length[:])
	if n > dnsanswer.MaxQuery {
		return nil, fmt.Errorf("a query of %d bytes", n)
	}
	query := make([]byte, n)
	if _, err := io.ReadFull(r, query); err != nil {
		return nil, fmt.Errorf("query: %w", io.ErrUnexpectedEOF)
	}
	reply := s.answer(query)
	if reply == nil {
		return nil, errors.New("no query")
	}
	return reply, nil
}
