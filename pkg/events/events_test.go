package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/store"
)

func open(t *testing.T) (*events.Bus, *store.Store) {
	t.Helper()
	s, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	b := events.New(s, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { b.Close(); _ = s.Close() })
	return b, s
}

func TestFollowersSeeTheSameInOrder(t *testing.T) {
	b, _ := open(t)
	const n = 500
	var wg sync.WaitGroup
	for f := range 4 {
		wg.Go(func() {
			enough := errors.New("enough")
			var last uint64
			err := b.Follow(t.Context(), 0, func(e api.Event) error {
				if e.Seq != last+1 || e.Type != fmt.Sprint("e", last) {
					return fmt.Errorf("event %d is %d %s", last+1, e.Seq, e.Type)
				}
				if last = e.Seq; last == n {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) {
				t.Errorf("follower %d: %v", f, err)
			}
		})
	}
	for i := range n {
		b.Publish(api.Event{Time: time.Now(), Type: fmt.Sprint("e", i)})
	}
	wg.Wait()
}

func TestCloseKeepsWhatWaits(t *testing.T) {
	b, s := open(t)
	b.Publish(api.Event{Type: "last"})
	b.Close()
	es, err := s.Events(0, 10)
	if err != nil || len(es) != 1 || es[0].Type != "last" {
		t.Errorf("kept %v, %v", es, err)
	}
}

func TestAFollowerIsToldWhatItMissed(t *testing.T) {
	b, s := open(t)
	for range store.MaxEvents/1000 + 1 {
		if err := s.AppendEvents(make([]api.Event, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	err := b.Follow(t.Context(), 1, func(e api.Event) error {
		if e.Type != events.Dropped || e.Fields["count"] == "" {
			t.Errorf("first event is %+v", e)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
}

func TestFollowEnds(t *testing.T) {
	b, _ := open(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("client gone")
	cancel(why)
	if err := b.Follow(ctx, 0, func(api.Event) error { return nil }); !errors.Is(err, why) {
		t.Errorf("error is %v", err)
	}
}
