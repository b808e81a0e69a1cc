package serve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/workload"
)

// signTimeout bounds one answer of creeld's, and awayTimeout is how long it may be
// away meanwhile: a process that has just begun is about to be connected to.
const (
	signTimeout = 5 * time.Second
	awayTimeout = 2 * time.Second
)

// errNoSigner is creeld away.
var errNoSigner = errors.New("creeld does not answer")

// signer has creeld sign, by the connection that it made last for that.
type signer struct {
	mu      sync.Mutex
	conn    *link.Conn    // nil while there is none
	came    chan struct{} // closed when there is one
	last    uint64
	waiting map[uint64]chan link.Signed
}

func newSigner() *signer {
	return &signer{came: make(chan struct{}), waiting: map[uint64]chan link.Signed{}}
}

// use takes answers from a connection until it breaks.
func (s *signer) use(c *link.Conn) {
	s.mu.Lock()
	if s.conn == nil {
		close(s.came)
	}
	s.conn = c
	s.mu.Unlock()
	for {
		var a link.Signed
		files, err := c.Receive(&a)
		closeAll(files)
		s.mu.Lock()
		if err != nil {
			if s.conn == c {
				s.conn, s.came = nil, make(chan struct{})
			}
			s.mu.Unlock()
			return
		}
		if to, ok := s.waiting[a.Seq]; ok {
			to <- a // it has room for one
			delete(s.waiting, a.Seq)
		}
		s.mu.Unlock()
	}
}

// sign asks creeld for a sandbox's SVID.
func (s *signer) sign(ctx context.Context, id string, key []byte) (*workload.Signed, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	s.mu.Lock()
	came := s.came
	s.mu.Unlock()
	select {
	case <-came:
	case <-time.After(awayTimeout):
	case <-ctx.Done():
	}
	seq, answer, err := s.ask(id, key)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		switch {
		case a.Refused:
			return nil, fmt.Errorf("%w: %s", workload.ErrRefused, clip(a.Error))
		case a.Error != "":
			return nil, errors.New(clip(a.Error))
		}
		return &workload.Signed{ID: a.SPIFFEID, Certificate: a.Certificate, Bundle: a.Bundle}, nil
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiting, seq)
		s.mu.Unlock()
		return nil, errNoSigner
	}
}

func (s *signer) ask(id string, key []byte) (uint64, <-chan link.Signed, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return 0, nil, errNoSigner
	}
	s.last++
	answer := make(chan link.Signed, 1)
	if err := s.conn.Send(link.SignRequest{Seq: s.last, ID: id, Key: key}); err != nil {
		return 0, nil, errNoSigner
	}
	s.waiting[s.last] = answer
	return s.last, answer, nil
}
