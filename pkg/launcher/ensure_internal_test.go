package launcher

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

// TestTurns: one at a time for each name of each user, and nothing is kept.
func TestTurns(t *testing.T) {
	var ts turns
	var inside [2]atomic.Int32
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			release, err := ts.take(t.Context(), uint32(i%2), "name x")
			if err != nil {
				t.Error(err)
				return
			}
			if inside[i%2].Add(1) != 1 {
				t.Error("two at one time")
			}
			inside[i%2].Add(-1)
			release()
		})
	}
	wg.Wait()
	release, err := ts.take(t.Context(), 1, "name x")
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(errClosing)
	if _, err := ts.take(gone, 1, "name x"); !errors.Is(err, errClosing) {
		t.Errorf("who does not want to wait: %v", err)
	}
	other, err := ts.take(t.Context(), 1, "key x")
	if err != nil {
		t.Fatal(err)
	}
	other()
	release()
	if len(ts.m) != 0 {
		t.Errorf("%d turns are kept", len(ts.m))
	}
}
