package inside

import (
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// maxQueued is how many answers may wait for the daemon before no more
// requests are read. Events come on top; those are bounded by MaxProcs.
const maxQueued = 64

// channel carries whole messages to and from the daemon. It never blocks.
type channel interface {
	// recv gives the next message, which is valid until the next call; nil
	// when there is none for now. It is false when the channel has ended.
	recv() (msg []byte, fds []int, ok bool)
	send(msg []byte)
	flush()
	drop()
	queued() int
	setInterest(sys system, in, out uint32)
}

// recvBuf is where messages are read. It is not on the heap so that only the
// pages that were used count.
var recvBuf [wire.MaxMessage + 8]byte

// outQueue holds messages that did not fit into the socket.
type outQueue struct{ list [][]byte }

func (q *outQueue) push(msg []byte) {
	allocated += len(msg)
	q.list = append(q.list, append([]byte(nil), msg...))
}

func (q *outQueue) pop()        { q.list = q.list[1:] }
func (q *outQueue) queued() int { return len(q.list) }

// packetChannel is a SOCK_SEQPACKET socket; descriptors come with messages.
type packetChannel struct {
	outQueue
	fd      int
	in, out uint32
}

func newPacketChannel(fd int) *packetChannel {
	return &packetChannel{fd: fd, in: syscall.EPOLLIN}
}

func (c *packetChannel) recv() ([]byte, []int, bool) {
	var control [64 + 4*wire.MaxFDs]byte
	iov := syscall.Iovec{Base: &recvBuf[0]}
	iov.SetLen(len(recvBuf))
	for {
		hdr := syscall.Msghdr{Iov: &iov, Iovlen: 1, Control: &control[0]}
		hdr.SetControllen(len(control))
		n, _, e := syscall.RawSyscall(syscall.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&hdr)), msgCmsgCloexec|msgDontwait)
		switch {
		case e == syscall.EINTR:
			continue
		case e == syscall.EAGAIN:
			return nil, nil, true
		case e != 0:
			return nil, nil, false
		}
		fds := rights(control[:hdr.Controllen])
		if hdr.Flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 || n == 0 {
			n = 0 // answered as malformed
		}
		return recvBuf[:n], fds, true
	}
}

// rights takes the descriptors out of a control buffer.
func rights(b []byte) []int {
	const head = syscall.SizeofCmsghdr
	var fds []int
	for len(b) >= head {
		h := (*syscall.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < head || n > len(b) {
			break
		}
		if h.Level == syscall.SOL_SOCKET && h.Type == syscall.SCM_RIGHTS {
			for d := b[head:n]; len(d) >= 4; d = d[4:] {
				fds = append(fds, int(*(*int32)(unsafe.Pointer(&d[0]))))
			}
		}
		b = b[min((n+7)&^7, len(b)):]
	}
	return fds
}

// put is false when the message has to wait. One that can never be sent is
// dropped.
func (c *packetChannel) put(msg []byte) bool {
	for {
		_, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(c.fd), uintptr(unsafe.Pointer(&msg[0])), uintptr(len(msg)), msgNosignal|msgDontwait, 0, 0)
		switch e {
		case syscall.EINTR:
			continue
		case syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM:
			return false
		}
		return true
	}
}

func (c *packetChannel) send(msg []byte) {
	if len(c.list) > 0 || !c.put(msg) {
		c.push(msg)
	}
}

func (c *packetChannel) flush() {
	for len(c.list) > 0 && c.put(c.list[0]) {
		c.pop()
	}
}

func (c *packetChannel) drop() { c.list = nil }

func (c *packetChannel) setInterest(sys system, in, out uint32) {
	if c.in != in || c.out != out {
		c.in, c.out = in, out
		_ = sys.watch(c.fd, in|out, false)
	}
}

// streamChannel is a byte stream, or two: each message has its length, four
// bytes, before it. No descriptors come.
type streamChannel struct {
	outQueue
	rfd, wfd int
	have     int // bytes in recvBuf
	used     int // of those, the message given last
	sent     int // bytes of list[0] that are out
	in, out  uint32
}

func newStreamChannel(rfd, wfd int) *streamChannel {
	return &streamChannel{rfd: rfd, wfd: wfd, in: syscall.EPOLLIN}
}

func (c *streamChannel) recv() ([]byte, []int, bool) {
	if c.used > 0 {
		copy(recvBuf[:], recvBuf[c.used:c.have])
		c.have -= c.used
		c.used = 0
	}
	for {
		if c.have >= 4 {
			r := wire.Body(recvBuf[:4])
			n := int(r.U32())
			if n > wire.MaxMessage {
				return nil, nil, false // no way to find the next one
			}
			if c.have >= 4+n {
				c.used = 4 + n
				return recvBuf[4:c.used], nil, true
			}
		}
		n, e := read(c.rfd, recvBuf[c.have:])
		switch {
		case e == syscall.EINTR:
		case e == syscall.EAGAIN:
			return nil, nil, true
		case e != 0 || n == 0:
			return nil, nil, false
		default:
			c.have += n
		}
	}
}

func (c *streamChannel) send(msg []byte) {
	n := len(msg)
	allocated += n
	framed := append(make([]byte, 0, n+4), byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
	c.list = append(c.list, append(framed, msg...))
	c.flush()
}

func (c *streamChannel) flush() {
	for len(c.list) > 0 {
		n, e := write(c.wfd, c.list[0][c.sent:])
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			return
		}
		if c.sent += n; c.sent == len(c.list[0]) {
			c.pop()
			c.sent = 0
		}
	}
}

// drop leaves a message of which a part is out: the stream would lose its frames.
func (c *streamChannel) drop() {
	if c.sent > 0 {
		c.list = c.list[:1]
		return
	}
	c.list = nil
}

func (c *streamChannel) setInterest(sys system, in, out uint32) {
	if c.in != in {
		c.in = in
		_ = sys.watch(c.rfd, in, false)
	}
	if c.out != out {
		c.out = out
		_ = sys.watch(c.wfd, out, false)
	}
}
