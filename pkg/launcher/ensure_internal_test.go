package launcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"
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

// TestSpentKeys: keys have their time, and a user so many.
func TestSpentKeys(t *testing.T) {
	var ks spentKeys
	now := time.Now()
	key := func(name string, until time.Time) spentKey {
		return spentKey{store.SpawnKey{Key: name, Digest: "d"}, "id-" + name, until}
	}
	ks.add(1, key("a", now.Add(time.Second)))
	if k, ok := ks.find(1, "a", now); !ok || k.id != "id-a" {
		t.Errorf("find = %+v, %t", k, ok)
	}
	if _, ok := ks.find(2, "a", now); ok {
		t.Error("another user's key is found")
	}
	if _, ok := ks.find(1, "a", now.Add(time.Second)); ok {
		t.Error("a key is found when its time is over")
	}
	for i := 1; i < maxKeys; i++ {
		ks.add(1, key(fmt.Sprint(i), now.Add(time.Minute)))
	}
	if ks.room(1, now) || !ks.room(2, now) {
		t.Errorf("with %d keys: room for one more of the user %t, of another %t", maxKeys, ks.room(1, now), ks.room(2, now))
	}
	if !ks.room(1, now.Add(time.Second)) {
		t.Error("a key whose time is over takes up room")
	}
	if ks.room(2, now.Add(time.Hour)); len(ks.m) != 0 {
		t.Errorf("keys of %d users are kept", len(ks.m))
	}
}

// TestRestoreKeys: of what an earlier daemon left, those that made a sandbox.
func TestRestoreKeys(t *testing.T) {
	now := time.Now()
	rec := func(state api.State, age time.Duration) *store.Record {
		return &store.Record{Key: &store.SpawnKey{Key: "k"}, Sandbox: api.Sandbox{ID: "x", State: state, Created: now.Add(-age), Caller: api.Caller{UID: 7}}}
	}
	for _, tt := range []struct {
		rec  *store.Record
		want bool
	}{
		{rec(api.StateRunning, time.Minute), true},
		{rec(api.StateStopped, time.Minute), true},
		{rec(api.StateCreating, time.Minute), false}, // will be undone
		{rec(api.StateUnknown, time.Minute), false},
		{rec(api.StateRunning, keyLife), false},
		{&store.Record{Sandbox: api.Sandbox{State: api.StateRunning, Created: now}}, false},
	} {
		var ks spentKeys
		ks.restore(tt.rec, now)
		if _, ok := ks.find(7, "k", now); ok != tt.want {
			t.Errorf("%s of %v: restored %t", tt.rec.Sandbox.State, now.Sub(tt.rec.Sandbox.Created), ok)
		}
	}
}
