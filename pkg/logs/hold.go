package logs

import (
	"context"
	"errors"
	"time"
)

// errHeld means that a new generation would take the oldest from a reader
// that holds it.
var errHeld = errors.New("a reader holds the oldest output")

// hold keeps what the reader has not read; go on with it as it advances.
func (r *reader) hold(gen uint64) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	r.l.holds[r] = gen
	if r != r.l.expected && r.l.expected != nil { // this is the one
		delete(r.l.holds, r.l.expected)
		r.l.expected = nil
	}
	r.l.freeLocked()
}

func (r *reader) letGo() {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if _, ok := r.l.holds[r]; ok {
		delete(r.l.holds, r)
		r.l.freeLocked()
	}
}

func (l *Log) freeLocked() {
	close(l.freed)
	l.freed = make(chan struct{})
}

// Expect holds everything for a reader with ReadOptions.Hold that is about to
// come, for at most that long.
func (l *Log) Expect(within time.Duration) {
	r := &reader{l: l}
	r.hold(0)
	l.mu.Lock()
	l.expected = r
	l.mu.Unlock()
	time.AfterFunc(within, r.letGo)
}

// heldLocked says whether a reader holds what the next generation would drop:
// all before the current one.
func (l *Log) heldLocked() bool {
	for _, gen := range l.holds {
		if gen < l.gen {
			return true
		}
	}
	return false
}

// fullLocked says whether the current generation has what one may have.
func (l *Log) fullLocked() bool { return l.sizes[0]+l.sizes[Stdout]+l.sizes[Stderr] >= l.max/2 }

// untilFree waits until no reader is behind, or ctx ends, or there is room in a
// generation that the capture of another stream has begun: a reader comes to it
// only when something is in it. The output stays in the pipe meanwhile, which
// stops the command.
func (l *Log) untilFree(ctx context.Context) error {
	for {
		l.mu.Lock()
		held, freed := l.fullLocked() && l.heldLocked() && !l.ending, l.freed
		l.mu.Unlock()
		if !held {
			return nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Drain is for a command that has ended: what its pipes still have, which is
// little, is captured also while a reader is behind, beyond Options.Max.
func (l *Log) Drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ending = true
	l.freeLocked()
}
