package prepared

import (
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
)

func put(t *testing.T, x *Execs, uid uint32, word string, size int) api.PreparedExec {
	t.Helper()
	p, err := x.Put(uid, Exec{Sandbox: "s1", Request: api.ExecRequest{Command: []string{word}}}, size)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestOnce: an id is its user's, and good for one run.
func TestOnce(t *testing.T) {
	x := New(DefaultLimits())
	a, b := put(t, x, 1000, "a", 10), put(t, x, 1001, "b", 10)
	if a.ID == b.ID || len(a.ID) < 26 {
		t.Fatalf("ids %q and %q", a.ID, b.ID)
	}
	if _, err := x.Take(1001, a.ID); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("another user's: %v", err)
	}
	e, err := x.Take(1000, a.ID)
	if err != nil || e.Sandbox != "s1" || e.Request.Command[0] != "a" {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := x.Take(1000, a.ID); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("again: %v", err)
	}
}

// TestExpires: what nobody runs is forgotten, and its room is free.
func TestExpires(t *testing.T) {
	x := New(Limits{Life: time.Minute, Count: 2, Bytes: 100})
	now := time.Now()
	x.now = func() time.Time { return now }
	a := put(t, x, 1000, "a", 10)
	put(t, x, 1000, "b", 10)
	if _, err := x.Put(1000, Exec{}, 1); api.CodeOf(err) != api.CodeExhausted {
		t.Fatalf("a third: %v", err)
	}
	now = now.Add(time.Minute)
	if _, err := x.Take(1000, a.ID); api.CodeOf(err) != api.CodeNotFound {
		t.Fatalf("after its time: %v", err)
	}
	put(t, x, 1000, "c", 100)
	if len(x.byID) != 1 || x.all != 100 || x.count[1000] != 1 || x.bytes[1000] != 100 {
		t.Fatalf("%d kept, %d bytes, %v, %v", len(x.byID), x.all, x.count, x.bytes)
	}
}

// TestBounds: nobody fills the daemon's memory.
func TestBounds(t *testing.T) {
	x := New(Limits{Life: time.Minute, Count: 100, Bytes: 100})
	for uid := range uint32(4) {
		put(t, x, uid, "a", 100)
		if _, err := x.Put(uid, Exec{}, 1); api.CodeOf(err) != api.CodeExhausted {
			t.Fatalf("one byte more of %d: %v", uid, err)
		}
	}
	if _, err := x.Put(9, Exec{}, 1); api.CodeOf(err) != api.CodeExhausted {
		t.Fatalf("one byte more of all: %v", err)
	}
}
