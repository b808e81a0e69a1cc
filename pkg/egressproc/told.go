package egressproc

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
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

// askEvery is how often a process is answered, at most: more than all of its
// sandboxes need, and little for one that was taken over. maxDials are the
// connections that are being made at one time, and dialTimeout bounds each.
const (
	askEvery    = 5 * time.Millisecond
	maxDials    = 16
	dialTimeout = 4 * time.Second
)

// answerLocked answers the process from now on, until it ends.
func (p *process) answerLocked(ctx context.Context) error {
	c, _, err := p.dial(ctx)
	if err != nil {
		return err
	}
	if err := c.Send(link.Order{Op: link.Ask}); err != nil {
		return errors.Join(err, c.Close())
	}
	p.running.ask = c
	p.told.Go(func() {
		defer c.Close()
		var mu sync.Mutex // who sends
		send := func(a link.Reply, files ...*os.File) {
			mu.Lock()
			defer mu.Unlock()
			_ = c.Send(a, files...) // one that is not heard has timed out
		}
		places := make(chan struct{}, maxDials)
		var dials sync.WaitGroup
		defer dials.Wait()
		for {
			var q link.Question
			files, err := c.Receive(&q)
			closeAll(files)
			if err != nil {
				return
			}
			if q.Agent == "" {
				a := p.k.opts.Sign(p.caller, q)
				a.Seq = q.Seq
				send(a)
				time.Sleep(askEvery)
				continue
			}
			select {
			case places <- struct{}{}:
			default: // it is not to keep others from their identities
				send(link.Reply{Seq: q.Seq, Error: "too many connections to agents are being made"})
				continue
			}
			dials.Go(func() {
				defer func() { <-places }()
				p.channel(q, send)
			})
		}
	})
	return nil
}

// channel answers with a connection.
func (p *process) channel(q link.Question, send func(link.Reply, ...*os.File)) {
	ctx, cancel := context.WithTimeout(p.k.ctx, dialTimeout)
	defer cancel()
	c, err := p.k.opts.Channel(ctx, p.caller, q)
	if err != nil {
		send(link.Reply{Seq: q.Seq, Error: err.Error()})
		return
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		send(link.Reply{Seq: q.Seq, Error: err.Error()})
		return
	}
	defer f.Close()
	send(link.Reply{Seq: q.Seq}, f)
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
