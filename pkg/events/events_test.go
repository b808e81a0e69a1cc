package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/store"
)

var _ events.Store = (*store.Store)(nil)

// ring is a store in memory that keeps size events.
type ring struct {
	size int

	mu      sync.Mutex
	last    uint64
	events  []api.Event
	commits []time.Time
	fail    error
}

func (r *ring) AppendEvents(es []api.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.commits = append(r.commits, time.Now())
	for i := range es {
		r.last++
		es[i].Seq = r.last
	}
	r.events = append(r.events, es...)
	r.events = r.events[max(0, len(r.events)-r.size):]
	return nil
}

func (r *ring) Events(after uint64, limit int) ([]api.Event, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, _ := slices.BinarySearchFunc(r.events, after, func(e api.Event, after uint64) int {
		if e.Seq <= after {
			return -1
		}
		return 1
	})
	return slices.Clone(r.events[i:min(len(r.events), i+limit)]), nil
}

func (r *ring) LastEvent() (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, nil
}

func (r *ring) setFail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// follow collects the types of what a listener hears until the bus closes.
func follow(t *testing.T, b *events.Bus, after uint64) func() []string {
	t.Helper()
	var got []string
	done := make(chan error, 1)
	go func() {
		done <- b.Follow(t.Context(), after, func(e api.Event) error {
			s := e.Type
			if s == events.TypeDropped {
				s += " " + e.Fields["count"]
			}
			got = append(got, s)
			return nil
		})
	}()
	return func() []string {
		t.Helper()
		if err := <-done; !errors.Is(err, events.ErrClosed) {
			t.Errorf("Follow = %v, want ErrClosed", err)
		}
		return got
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ring{size: 100}
		b := events.New(r, discard())
		b.Publish(api.Event{Type: "a"})
		synctest.Wait()
		all, later := follow(t, b, 0), follow(t, b, 1)
		future := follow(t, b, 99) // not reached: from before the state was lost
		b.Publish(api.Event{Type: "b"})
		b.Publish(api.Event{Type: "c"})
		time.Sleep(events.Interval)
		synctest.Wait()
		if last, err := b.Last(); last != 3 || err != nil {
			t.Errorf("Last = %d, %v", last, err)
		}
		b.Publish(api.Event{Type: "d"}) // Close commits it and tells it
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
		b.Publish(api.Event{Type: "too late"})
		for name, g := range map[string]struct{ got, want []string }{
			"all":    {all(), []string{"a", "b", "c", "d"}},
			"later":  {later(), []string{"b", "c", "d"}},
			"future": {future(), []string{"b", "c", "d"}},
		} {
			if !slices.Equal(g.got, g.want) {
				t.Errorf("%s heard %q, want %q", name, g.got, g.want)
			}
		}
	})
}

func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ring{size: 1000}
		b := events.New(r, discard())
		defer b.Close()
		start := time.Now()
		for range 100 {
			b.Publish(api.Event{Type: "x"})
			time.Sleep(time.Millisecond)
		}
		time.Sleep(events.Interval)
		synctest.Wait()
		if n := len(r.commits); n < 2 || n > 4 {
			t.Errorf("%d commits for 100 ms of events, want one every %s", n, events.Interval)
		}
		if d := r.commits[0].Sub(start); d != 0 {
			t.Errorf("the first event waited %s", d)
		}
		for i := 1; i < len(r.commits); i++ {
			if d := r.commits[i].Sub(r.commits[i-1]); d < events.Interval {
				t.Errorf("two commits %s apart", d)
			}
		}
		for _, e := range r.events {
			if late := r.commits[(len(r.commits) - 1)].Sub(e.Time); late < 0 {
				t.Errorf("an event of the future: %s", late)
			}
		}
		if r.last != 100 {
			t.Errorf("%d events stored", r.last)
		}
	})
}

// TestSlowListener stops one listener while the ring goes round: it does not
// hold up anyone, and hears how many it missed.
func TestSlowListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ring{size: 10}
		b := events.New(r, discard())
		hold := make(chan struct{})
		var heard []api.Event
		done := make(chan error, 1)
		go func() {
			done <- b.Follow(t.Context(), 0, func(e api.Event) error {
				heard = append(heard, e)
				<-hold
				return nil
			})
		}()
		quick := follow(t, b, 0)
		for i := range 50 {
			b.Publish(api.Event{Type: fmt.Sprint(i + 1)})
			time.Sleep(events.Interval)
		}
		synctest.Wait()
		if len(heard) != 1 {
			t.Fatalf("the slow listener heard %d events", len(heard))
		}
		close(hold)
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, events.ErrClosed) {
			t.Error(err)
		}
		if got := quick(); len(got) != 50 {
			t.Errorf("the quick listener heard %d of 50", len(got))
		}
		// 1, 39 dropped (2 to 40), 41 to 50.
		if len(heard) != 12 || heard[1].Type != events.TypeDropped || heard[1].Fields["count"] != "39" || heard[1].Seq != 40 || heard[2].Seq != 41 {
			t.Errorf("the slow listener heard %+v", heard)
		}
	})
}

// TestStuckStore: publishers do not wait, memory is bounded, and what was lost
// is told when the store works again.
func TestStuckStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ring{size: 20_000}
		r.setFail(errors.New("disk full"))
		b := events.New(r, discard())
		const n = 10_500
		for i := range n {
			b.Publish(api.Event{Type: fmt.Sprint(i)})
			if i == 3 || i == n/2 {
				time.Sleep(3 * events.Interval) // some commits fail in between
			}
		}
		synctest.Wait()
		r.setFail(nil)
		time.Sleep(2 * events.Interval)
		synctest.Wait()
		if len(r.events) != 10_001 || r.events[0].Type != events.TypeDropped || r.events[0].Fields["count"] != "500" || r.events[1].Type != "500" {
			t.Errorf("%d events stored, the first %+v; want 500 dropped, then the newest 10,000", len(r.events), r.events[0])
		}
		r.setFail(errors.New("disk full"))
		b.Publish(api.Event{Type: "last"})
		if err := b.Close(); err == nil {
			t.Error("Close did not tell of an event it could not store")
		}
	})
}

func TestFollowEnds(t *testing.T) {
	r := &ring{size: 10}
	b := events.New(r, discard())
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Follow(ctx, 0, func(api.Event) error { return nil }) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Follow of a client that went = %v", err)
	}
	broken := errors.New("broken pipe")
	go func() { done <- b.Follow(t.Context(), 0, func(api.Event) error { return broken }) }()
	b.Publish(api.Event{Type: "x"})
	if err := <-done; !errors.Is(err, broken) {
		t.Errorf("Follow with a failing emit = %v", err)
	}
}

// TestWithStore uses the real ring, with publishers and a listener at once.
func TestWithStore(t *testing.T) {
	s, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := events.New(s, discard())
	got := follow(t, b, 0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 300 {
				b.Publish(api.Event{Type: "x"})
			}
		})
	}
	wg.Wait()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(got()); n != 1200 {
		t.Errorf("heard %d of 1200 events", n)
	}
}
