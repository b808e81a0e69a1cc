package launcher

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestUntilRead: a sandbox that removes itself waits for the client that has
// its output, and for no other.
func TestUntilRead(t *testing.T) {
	tests := []struct {
		name string
		act  func(*sandbox)
		want time.Duration // until it may go
	}{
		{"nobody comes", func(*sandbox) {}, attachWait},
		{"was read before the end", func(sb *sandbox) { sb.attaching(1); sb.attaching(-1) }, 0},
		{"is being read", func(sb *sandbox) {
			sb.attaching(1)
			time.AfterFunc(time.Minute, func() { sb.attaching(-1) })
		}, time.Minute},
		{"comes late and reads", func(sb *sandbox) {
			time.AfterFunc(9*time.Second, func() { sb.attaching(1) })
			time.AfterFunc(20*time.Second, func() { sb.attaching(-1) })
		}, 20 * time.Second},
		{"two read, one is killed", func(sb *sandbox) {
			sb.attaching(1)
			sb.attaching(1)
			time.AfterFunc(time.Second, func() { sb.attaching(-1) })
			time.AfterFunc(30*time.Second, func() { sb.attaching(-1) })
		}, 30 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sb := &sandbox{detached: make(chan struct{}, 1)}
				tt.act(sb)
				began := time.Now()
				if err := sb.untilRead(t.Context()); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("after %s, want %s", took, tt.want)
				}
			})
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the daemon stops")
	cancel(stop)
	if err := (&sandbox{attached: 1, detached: make(chan struct{}, 1)}).untilRead(ctx); !errors.Is(err, stop) {
		t.Errorf("when the daemon stops: %v", err)
	}
}
