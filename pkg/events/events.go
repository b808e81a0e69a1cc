// Package events tells everybody who listens what happened, and keeps it.
//
// Events are numbered and kept by the store in batches; a listener follows
// the store, so that one who comes late or is slow reads the same events as
// one who was there, and nobody who publishes ever waits for a listener.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Store keeps events: the newest, numbered from 1 without gaps.
type Store interface {
	AppendEvents(events []api.Event) error
	Events(after uint64, limit int) ([]api.Event, error)
}

// Dropped is the type of the event a follower gets in place of events that
// are not kept any more; its field "count" says how many.
const Dropped = "events.dropped"

const (
	// within is how long an event may wait for its commit.
	within = 20 * time.Millisecond
	// pending bounds what waits; beyond it the oldest go, counted.
	pending = 4096
	// batch is how many events a follower reads at a time.
	batch = 256
)

// Bus is a store with listeners. It is safe for concurrent use.
type Bus struct {
	store Store
	log   *slog.Logger
	wake  chan struct{}
	done  chan struct{}
	stop  chan struct{}
	once  sync.Once

	mu      sync.Mutex
	queue   []api.Event
	lost    int
	changed chan struct{} // closed and replaced when the store has more
}

// New makes a bus on a store. Close it before the store.
func New(s Store, log *slog.Logger) *Bus {
	b := &Bus{
		store: s, log: log, changed: make(chan struct{}),
		wake: make(chan struct{}, 1), done: make(chan struct{}), stop: make(chan struct{}),
	}
	go b.run()
	return b
}

// Close commits what waits and ends the bus. Publishing after it does nothing.
func (b *Bus) Close() {
	b.once.Do(func() { close(b.stop) })
	<-b.done
}

// Publish queues an event; its Seq is the store's to give. It never waits.
func (b *Bus) Publish(e api.Event) {
	b.mu.Lock()
	if len(b.queue) >= pending {
		b.queue = b.queue[1:]
		b.lost++
	}
	b.queue = append(b.queue, e)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *Bus) run() {
	defer close(b.done)
	for {
		select {
		case <-b.stop:
			b.flush()
			return
		case <-b.wake:
		}
		// Gather what comes at about the same time into one commit.
		t := time.NewTimer(within)
		select {
		case <-b.stop:
		case <-t.C:
		}
		t.Stop()
		b.flush()
	}
}

// flush commits the queue and wakes the followers.
func (b *Bus) flush() {
	b.mu.Lock()
	es, lost := b.queue, b.lost
	b.queue, b.lost = nil, 0
	b.mu.Unlock()
	if lost > 0 {
		es = append([]api.Event{{Time: time.Now(), Type: Dropped, Fields: map[string]string{"count": fmt.Sprint(lost)}}}, es...)
	}
	if len(es) == 0 {
		return
	}
	if err := b.store.AppendEvents(es); err != nil {
		b.log.Error("events not kept", "count", len(es), "error", err)
		return
	}
	b.mu.Lock()
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
}

// Follow gives every event after a sequence number to emit, those kept and
// then those to come, until ctx ends (its cause is returned) or emit fails.
// Where the store has lost some, a Dropped event says how many.
func (b *Bus) Follow(ctx context.Context, after uint64, emit func(api.Event) error) error {
	for {
		b.mu.Lock()
		changed := b.changed
		b.mu.Unlock()
		es, err := b.store.Events(after, batch)
		if err != nil {
			return err
		}
		for _, e := range es {
			if after != 0 && e.Seq > after+1 {
				gap := api.Event{Seq: e.Seq - 1, Time: e.Time, Type: Dropped, Fields: map[string]string{"count": fmt.Sprint(e.Seq - after - 1)}}
				if err := emit(gap); err != nil {
					return err
				}
			}
			after = e.Seq
			if err := emit(e); err != nil {
				return err
			}
		}
		if len(es) == batch {
			continue
		}
		select {
		case <-changed:
		case <-b.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
