package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// teller writes what the demo is doing. It is a Writer for the programs it
// runs, so that their lines and its own do not mix.
type teller struct {
	mu sync.Mutex
	w  io.Writer
}

func (t *teller) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.w.Write(p)
}

func (t *teller) say(format string, args ...any) {
	fmt.Fprintf(t, format+"\n", args...)
}

// step announces fn, shows that it is still at work, and says how long it
// took if that could be noticed.
func (t *teller) step(text string, fn func() error) error {
	t.say("\n==> %s", text)
	began := time.Now()
	done := make(chan struct{})
	var ticking sync.WaitGroup
	ticking.Go(func() {
		for tick := time.NewTicker(2 * time.Second); ; {
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
				t.say("    ... %d s", int(time.Since(began).Seconds()))
			}
		}
	})
	err := fn()
	close(done)
	ticking.Wait()
	if took := time.Since(began); err == nil && took > time.Second {
		t.say("    done in %.1f s", took.Seconds())
	}
	return err
}
