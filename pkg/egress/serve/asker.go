package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/outside"
	"github.com/creel-sandbox/creel/pkg/egress/proxy"
	"github.com/creel-sandbox/creel/pkg/egress/workload"
)

// askTimeout bounds one answer of creeld's, and awayTimeout is how long it may be
// away meanwhile: a process that has just begun is about to be connected to.
const (
	askTimeout  = 5 * time.Second
	awayTimeout = 2 * time.Second
)

// errNoCreeld is creeld away.
var errNoCreeld = errors.New("creeld does not answer")

// asker asks creeld, by the connection that it made last for that.
type asker struct {
	mu      sync.Mutex
	conn    *link.Conn    // nil while there is none
	came    chan struct{} // closed when there is one
	last    uint64
	waiting map[uint64]chan reply
}

func newAsker() *asker {
	return &asker{came: make(chan struct{}), waiting: map[uint64]chan reply{}}
}

// use takes answers from a connection until it breaks.
func (s *asker) use(c *link.Conn) {
	s.mu.Lock()
	if s.conn == nil {
		close(s.came)
	}
	s.conn = c
	s.mu.Unlock()
	for {
		var a link.Reply
		files, err := c.Receive(&a)
		s.mu.Lock()
		if err != nil {
			if s.conn == c {
				s.conn, s.came = nil, make(chan struct{})
			}
			s.mu.Unlock()
			return
		}
		if to, ok := s.waiting[a.Seq]; ok {
			to <- reply{a, files} // it has room for one
			delete(s.waiting, a.Seq)
		} else {
			closeAll(files)
		}
		s.mu.Unlock()
	}
}

// reach is the network outside for one sandbox: the host's, and other agents.
type reach struct {
	*outside.Host
	asker *asker
	id    string
}

var _ proxy.Outside = reach{}

// DialAgent implements proxy.Outside: creeld connects.
func (r reach) DialAgent(ctx context.Context, agent string, port uint16) (*net.TCPConn, error) {
	a, err := r.asker.ask(ctx, link.Question{ID: r.id, Agent: agent, Port: port})
	if err != nil {
		return nil, err
	}
	defer closeAll(a.files)
	if a.Error != "" || len(a.files) != 1 {
		return nil, errors.New(clip(a.Error))
	}
	c, err := net.FileConn(a.files[0])
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a connection that is a %T", c), c.Close())
	}
	return tcp, nil
}

// sign asks creeld for a sandbox's SVID.
func (s *asker) sign(ctx context.Context, id string, key []byte) (*workload.Signed, error) {
	a, err := s.ask(ctx, link.Question{ID: id, Key: key})
	if err != nil {
		return nil, err
	}
	closeAll(a.files)
	switch {
	case a.Refused:
		return nil, fmt.Errorf("%w: %s", workload.ErrRefused, clip(a.Error))
	case a.Error != "":
		return nil, errors.New(clip(a.Error))
	}
	return &workload.Signed{ID: a.SPIFFEID, Certificate: a.Certificate, Bundle: a.Bundle}, nil
}

// reply is what creeld says, with what came beside it, which is the asker's to
// close.
type reply struct {
	link.Reply
	files []*os.File
}

// ask asks and waits.
func (s *asker) ask(ctx context.Context, q link.Question) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s.mu.Lock()
	came := s.came
	s.mu.Unlock()
	select {
	case <-came:
	case <-time.After(awayTimeout):
	case <-ctx.Done():
	}
	seq, answer, err := s.send(q)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		return &a, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	delete(s.waiting, seq)
	s.mu.Unlock()
	select {
	case a := <-answer: // it came meanwhile
		closeAll(a.files)
	default:
	}
	return nil, errNoCreeld
}

func (s *asker) send(q link.Question) (uint64, <-chan reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return 0, nil, errNoCreeld
	}
	s.last++
	q.Seq = s.last
	answer := make(chan reply, 1)
	_ = s.conn.Net().SetWriteDeadline(time.Now().Add(time.Second)) // one that does not read holds nobody up
	if err := s.conn.Send(q); err != nil {
		return 0, nil, errNoCreeld
	}
	s.waiting[q.Seq] = answer
	return q.Seq, answer, nil
}
