// Package events tells whoever listens what happened, and keeps it.
//
// An event is committed to the store's ring first and told afterwards, so that
// nobody hears of one that a crash then forgets, and its number is never used
// again. Commits are batched: at most one every 50 ms, at once after a quiet
// time.
//
// A listener has no queue. It reads the ring at its own pace, so a slow one
// costs neither memory nor anyone else's time; what the ring has lost before
// it came to read it is told as one event of type [TypeDropped].
package events

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Interval is the shortest time between two commits.
const Interval = 50 * time.Millisecond

// maxPending bounds what is kept while the store cannot be written.
const maxPending = 10_000

// batch is how many events a listener reads at a time.
const batch = 256

// TypeDropped is the type of the event that stands for those a listener, or
// the store, missed. Fields["count"] is their number.
const TypeDropped = "dropped"

// CallerField is the field of an event that says whose it is, as a uid: a
// caller sees only its own, also after what it is about is forgotten.
const CallerField = "caller_uid"

// ErrClosed means that the bus has ended.
var ErrClosed = errors.New("the event stream has ended: the daemon is stopping")

// Store is the ring that events are kept in. pkg/store has it.
type Store interface {
	// AppendEvents commits events and sets their Seq.
	AppendEvents([]api.Event) error
	// Events are at most limit events with a Seq above after.
	Events(after uint64, limit int) ([]api.Event, error)
	// LastEvent is the Seq of the newest.
	LastEvent() (uint64, error)
}

// Bus takes events and tells them. It is safe for concurrent use.
type Bus struct {
	store Store
	log   *slog.Logger
	wake  chan struct{} // there may be something to commit
	stop  chan struct{}
	done  chan struct{} // the committer has ended

	mu      sync.Mutex
	pending []api.Event
	dropped int           // of pending, for want of room
	changed chan struct{} // closed at the next commit
	closed  bool          // Close was called
	ended   bool          // nothing will be committed any more
}

// New starts a bus. Close ends it.
func New(store Store, log *slog.Logger) *Bus {
	b := &Bus{
		store: store, log: log,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		changed: make(chan struct{}),
	}
	go b.run()
	return b
}

// Publish queues an event, with the time now if it has none. It never waits.
func (b *Bus) Publish(e api.Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	if len(b.pending) >= maxPending {
		b.pending = b.pending[1:]
		b.dropped++
	}
	b.pending = append(b.pending, e)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default: // it is awake already
	}
}

// run commits until Close, and then what is left.
func (b *Bus) run() {
	defer close(b.done)
	for {
		select {
		case <-b.wake:
			b.commit()
		case <-b.stop:
			b.commit()
			return
		}
		select {
		case <-time.After(Interval):
		case <-b.stop:
			b.commit()
			return
		}
	}
}

// commit writes what is pending. If the store fails, it stays pending.
func (b *Bus) commit() {
	b.mu.Lock()
	events, dropped := b.pending, b.dropped
	b.pending, b.dropped = nil, 0
	b.mu.Unlock()
	if dropped > 0 {
		events = append([]api.Event{droppedEvent(0, uint64(dropped))}, events...)
	}
	if len(events) == 0 {
		return
	}
	err := b.store.AppendEvents(events)
	if err != nil {
		b.log.LogAttrs(context.Background(), slog.LevelError, "events not stored, trying again", slog.Int("events", len(events)), slog.Any("error", err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.keepLocked(events, dropped)
		return
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// keepLocked puts events back in front of what came in the meantime.
func (b *Bus) keepLocked(events []api.Event, dropped int) {
	if dropped > 0 {
		events = events[1:] // counted again below
	}
	b.dropped += dropped
	b.pending = append(events, b.pending...)
	if over := len(b.pending) - maxPending; over > 0 {
		b.pending = b.pending[over:]
		b.dropped += over
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func droppedEvent(seq, count uint64) api.Event {
	return api.Event{Seq: seq, Time: time.Now(), Type: TypeDropped, Fields: map[string]string{"count": strconv.FormatUint(count, 10)}}
}

// Last is the number of the newest event, for Follow from now on.
func (b *Bus) Last() (uint64, error) { return b.store.LastEvent() }

// Follow calls emit for every event after the given number, those of the ring
// first, until ctx ends, emit fails or the bus is closed; the error says which
// (ErrClosed for the last). With after 0 it begins with the oldest. A number
// that has not been reached yet, from before the state was lost, means now.
//
// emit may take its time. It is told what it missed by then.
func (b *Bus) Follow(ctx context.Context, after uint64, emit func(api.Event) error) error {
	last, err := b.store.LastEvent()
	if err != nil {
		return err
	}
	after = min(after, last)
	// Nothing is missed by beginning, only by being slow.
	first := after == 0
	for {
		b.mu.Lock()
		changed, ended := b.changed, b.ended
		b.mu.Unlock()
		n, err := b.tell(&after, first, emit)
		if err != nil {
			return err
		}
		first = first && n == 0
		if err := ctx.Err(); err != nil {
			return err
		}
		if n == batch {
			continue
		}
		if ended {
			return ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tell emits the next batch and moves after on.
func (b *Bus) tell(after *uint64, first bool, emit func(api.Event) error) (int, error) {
	events, err := b.store.Events(*after, batch)
	if err != nil {
		return 0, err
	}
	for _, e := range events {
		if missed := e.Seq - *after - 1; missed > 0 && !first {
			if err := emit(droppedEvent(e.Seq-1, missed)); err != nil {
				return 0, err
			}
		}
		first = false
		if err := emit(e); err != nil {
			return 0, err
		}
		*after = e.Seq
	}
	return len(events), nil
}

// Close commits what is pending, ends every Follow once it has told it, and
// waits for the committer. Publish does nothing afterwards. The error says
// that events were lost because the store could not be written.
func (b *Bus) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		<-b.done
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	close(b.stop)
	<-b.done
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	close(b.changed)
	b.changed = make(chan struct{})
	if n := len(b.pending) + b.dropped; n > 0 {
		return errors.New(strconv.Itoa(n) + " events could not be stored")
	}
	return nil
}
