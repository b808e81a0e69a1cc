package sametime

import (
	"testing"
	"testing/synctest"
	"time"
)

// recorder notes that a test would have failed.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Errorf(string, ...any) { r.failed = true }

// TestCheck: it fails for what always takes longer, and not for what does now
// and then, or for a while.
func TestCheck(t *testing.T) {
	sleep := func(d time.Duration) func() { return func() { time.Sleep(d) } }
	calls := 0
	for _, tt := range []struct {
		name string
		ask  func()
		want bool
	}{
		{"the same", sleep(time.Millisecond), false},
		{"within", sleep(1100 * time.Microsecond), false},
		{"longer", sleep(1101 * time.Microsecond), true},
		{"shorter", sleep(899 * time.Microsecond), true},
		{"longer now and then", func() {
			if calls++; calls%3 == 0 {
				time.Sleep(time.Second)
			}
			time.Sleep(time.Millisecond)
		}, false},
		{"longer for a while", func() {
			if calls++; calls < 4*Samples(9) {
				time.Sleep(time.Second)
			}
			time.Sleep(time.Millisecond)
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls = 0
				r := &recorder{TB: t}
				Check(r, 9, 100*time.Microsecond, Question{"one", sleep(time.Millisecond)}, Question{"other", tt.ask})
				if r.failed != tt.want {
					t.Errorf("failed: %v, want %v", r.failed, tt.want)
				}
			})
		})
	}
}
