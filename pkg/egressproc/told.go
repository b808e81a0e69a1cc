package egressproc

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
)

// listenLocked takes the process's records from now on; their end is its.
func (p *process) listenLocked(ctx context.Context) error {
	c, _, err := p.dial(ctx)
	if err != nil {
		return err
	}
	if err := c.Send(link.Order{Op: link.Log}); err != nil {
		return errors.Join(err, c.Close())
	}
	mine := p.running
	mine.log = c
	p.told.Go(func() {
		for {
			var r link.Record
			files, err := c.Receive(&r)
			closeAll(files)
			if err != nil {
				break
			}
			p.heard(&r)
			p.k.opts.Record(p.caller, r)
		}
		p.lost(mine)
	})
	return nil
}

// signEvery is how often a process has something signed, at most: more than all of
// its sandboxes need, and little for one that was taken over.
const signEvery = 5 * time.Millisecond

// signLocked signs for the process from now on, until it ends.
func (p *process) signLocked(ctx context.Context) error {
	c, _, err := p.dial(ctx)
	if err != nil {
		return err
	}
	if err := c.Send(link.Order{Op: link.Sign}); err != nil {
		return errors.Join(err, c.Close())
	}
	p.running.sign = c
	p.told.Go(func() {
		defer c.Close()
		for {
			var r link.SignRequest
			files, err := c.Receive(&r)
			closeAll(files)
			if err != nil {
				return
			}
			a := p.k.opts.Sign(p.caller, r)
			a.Seq = r.Seq
			if err := c.Send(a); err != nil {
				return
			}
			time.Sleep(signEvery)
		}
	})
	return nil
}

// heard notes a name that now has the next address.
func (p *process) heard(r *link.Record) {
	if r.Name == "" && r.Kind != link.KindSpent {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sandboxes[r.ID]
	if r.Kind == link.KindSpent && r.Spent != nil && s != nil {
		s.spent = most(s.spent, *r.Spent)
		*r.Spent = s.spent
		return
	}
	if n, err := egress.ParseName(string(r.Name)); s == nil || err != nil || n != r.Name || slices.Contains(s.names, n) || len(s.names) >= s.mostNames() {
		r.Name = ""
		return
	}
	s.names = append(s.names, r.Name)
}

// most takes back nothing that was used, whatever a process says.
func most(a, b link.Spent) link.Spent {
	return link.Spent{Bytes: max(a.Bytes, b.Bytes), Connections: max(a.Connections, b.Connections), Requests: max(a.Requests, b.Requests)}
}
