package audit

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Options are how a log is kept. Dir and Key are required; others that are
// zero have the default in brackets.
type Options struct {
	// Dir has the log's files and nothing else.
	Dir string
	Key Signer
	// Public tells at the start whether the log's end is Key's.
	Public Public
	// MaxFile is the size, in bytes, from which a new file is begun [16 MiB].
	MaxFile int64
	// Keep is how many files there are at most, 2 or more; 0 is all.
	Keep int
	// Reserve is how many bytes are allocated beyond the log's end for Keep
	// and Later on a full disk [1 MiB].
	Reserve int64
	// Retry is how long a log that is down waits to try again by itself [1 s].
	Retry time.Duration
	// OnHead gets each signed head's line after its commit. It must not block
	// nor keep the line.
	OnHead func(line []byte)
	// OnDown is told when the log goes down, and with nil when it is back.
	OnDown func(err error)

	open func(path string, fresh bool) (file, error) // tests make it fail
}

const (
	// Delay is the longest that Later leaves a record uncommitted while the
	// log is up, the commit itself apart.
	Delay = 20 * time.Millisecond
	// StuckAfter is how long one commit may take before Ready refuses.
	StuckAfter = 5 * time.Second
	// maxBatch bounds one commit, in records.
	maxBatch = 512
	// maxBacklog bounds what waits in memory while the log is down.
	maxBacklog = 4096
	// window is how much of the acknowledged end is kept in memory, to be
	// written again after a failed write: more than any page or block.
	window = 64 << 10
	// step is how much more than the reserve is allocated at a time, so that
	// not every commit has to.
	step = 256 << 10
)

// DownError says that the log cannot be written and that new work is refused.
type DownError struct {
	// Full says that it is for want of space.
	Full bool
	Err  error
}

// Error says what would help.
func (e *DownError) Error() string {
	if e.Full {
		return "the audit log cannot be written, its disk is full: " + e.Err.Error()
	}
	return "the audit log cannot be written: " + e.Err.Error()
}

// Unwrap is the cause.
func (e *DownError) Unwrap() error { return e.Err }

// ErrClosed means that the log was closed.
var ErrClosed = errors.New("the audit log is closed")

// item is one record on its way.
type item struct {
	e     Entry
	drop  *DropInfo
	seal  *SealInfo
	begin bool
	keep  bool       // stays when it cannot be written
	done  chan error // nil when nobody waits; has room for one
}

func (i *item) tell(err error) {
	if i.done != nil {
		i.done <- err
		i.done = nil
	}
}

// Log is an open log. It is safe for concurrent use.
type Log struct {
	o    Options
	wake chan struct{} // there is something that does not wait
	stop chan struct{}
	done chan struct{}

	// Of the committer alone.
	cur       file
	end       int64   // bytes of cur that are acknowledged
	allocated int64   // bytes of cur that have blocks
	tail      []byte  // the acknowledged bytes before end, at most window
	dirty     bool    // cur may hold other than tail says
	seq       uint64  // of the last acknowledged record
	prev      Hash    // of its line
	begun     bool    // start has been done
	due       []*item // records of the log's own, before all others

	mu      sync.Mutex
	queue   []*item
	lost    int // records that found no room in the queue
	lazy    *time.Timer
	down    *DownError
	since   time.Time // when the commit under way began; zero when none
	firsts  []uint64  // of each file, oldest first
	head    []byte    // the last head's line
	length  int64     // end, for readers
	changed chan struct{}
	closed  bool
}

// Open opens the log in o.Dir, or makes it. A damaged end is cut off and that
// is recorded. A log that cannot be written now is open, and down.
func Open(o Options) (*Log, error) {
	if o.Dir == "" || o.Key == nil || o.Public == nil {
		return nil, errors.New("audit: Dir, Key and Public are required")
	}
	if o.Keep == 1 || o.Keep < 0 {
		return nil, fmt.Errorf("audit: keep %d files: the least is 2, and 0 is all", o.Keep)
	}
	for _, d := range []struct {
		have *int64
		def  int64
	}{{&o.MaxFile, 16 << 20}, {&o.Reserve, 1 << 20}} {
		if *d.have <= 0 {
			*d.have = d.def
		}
	}
	if o.Retry <= 0 {
		o.Retry = time.Second
	}
	if o.open == nil {
		o.open = openFile
	}
	if err := prepareDir(o.Dir); err != nil {
		return nil, err
	}
	l := &Log{o: o, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{})}
	l.lazy = time.AfterFunc(time.Hour, l.kick)
	l.lazy.Stop()
	l.commit(nil)
	go l.run()
	return l, nil
}

// Close commits what is queued and closes the log. What could not be written
// is the error.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		<-l.done
		return nil
	}
	l.closed = true
	close(l.stop)
	l.mu.Unlock()
	<-l.done
	l.lazy.Stop()
	var err error
	if l.cur != nil {
		err = l.cur.Close()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.queue) + l.lost; n > 0 && l.down != nil {
		err = errors.Join(err, fmt.Errorf("%d audit records are lost: %w", n, l.errLocked()))
	}
	return err
}

// Commit records e before its effect. When it returns nil, the record is on
// disk and under a signature. An error wraps *DownError, ErrClosed or ctx's;
// in the last case the record may still be committed.
func (l *Log) Commit(ctx context.Context, e Entry) error {
	return l.wait(ctx, &item{e: e.bounded(time.Now())})
}

// Keep is Commit for what happens whatever the log does: it may use the
// reserve, and after an error the record waits to be written when the log is
// back, or until there are too many.
func (l *Log) Keep(ctx context.Context, e Entry) error {
	return l.wait(ctx, &item{e: e.bounded(time.Now()), keep: true})
}

// Later is Keep without waiting: the record is committed within Delay, or
// when the log is back.
func (l *Log) Later(e Entry) {
	_ = l.add(&item{e: e.bounded(time.Now()), keep: true}, false) // nobody is there to be told
}

// Ready is an error if new work must be refused: a *DownError, or ErrClosed. A
// log that is down is tried first.
func (l *Log) Ready(ctx context.Context) error {
	l.mu.Lock()
	down, since, closed := l.down, l.since, l.closed
	l.mu.Unlock()
	switch {
	case closed:
		return ErrClosed
	case down == nil && !since.IsZero() && time.Since(since) > StuckAfter:
		return &DownError{Err: fmt.Errorf("a write takes longer than %v", StuckAfter)}
	case down == nil:
		return nil
	}
	return l.wait(ctx, nil)
}

// Err is why the log is down; nil when it is not.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.errLocked()
}

func (l *Log) errLocked() error {
	if l.down == nil {
		return nil
	}
	return l.down
}

// HeadLine is the line of the last head that was committed, nil before the
// first. It is an anchor: see Anchor.
func (l *Log) HeadLine() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.head)
}

// wait adds an item, or with nil only has the log tried, and waits.
func (l *Log) wait(ctx context.Context, it *item) error {
	if it == nil {
		it = &item{e: Entry{}}
	}
	done := make(chan error, 1)
	it.done = done
	if err := l.add(it, true); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *Log) add(it *item, now bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if it.keep && len(l.queue) >= maxBacklog {
		l.lost++
		return &DownError{Err: fmt.Errorf("%d records wait to be written", maxBacklog)}
	}
	l.queue = append(l.queue, it)
	switch {
	case now:
		l.kick()
	case len(l.queue) == 1:
		l.lazy.Reset(Delay)
	}
	return nil
}

func (l *Log) kick() {
	select {
	case l.wake <- struct{}{}:
	default: // it is awake already
	}
}

// run commits until Close, and then what is left.
func (l *Log) run() {
	defer close(l.done)
	retry := time.NewTicker(l.o.Retry)
	defer retry.Stop()
	for {
		stopping := false
		select {
		case <-l.wake:
		case <-retry.C:
			if l.Err() == nil {
				continue
			}
		case <-l.stop:
			stopping = true
		}
		for l.commit(l.take()) {
		}
		if stopping {
			return
		}
	}
}

// take is the next batch.
func (l *Log) take() []*item {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.queue), maxBatch)
	batch := slices.Clone(l.queue[:n])
	l.queue = slices.Delete(l.queue, 0, n)
	l.since = time.Now()
	return batch
}

// commit writes a batch and tells who waits; more says that there is another.
func (l *Log) commit(batch []*item) (more bool) {
	err := l.write(batch)
	var down *DownError
	if err != nil {
		down = &DownError{Full: isFull(err), Err: err}
	}
	l.mu.Lock()
	was := l.down
	l.down, l.since = down, time.Time{}
	var back []*item
	for _, it := range batch {
		switch {
		case it.done == nil && !it.keep: // written
		case down == nil:
			it.tell(nil)
		default:
			it.tell(down)
			if it.keep {
				back = append(back, it)
			}
		}
	}
	l.queue = append(back, l.queue...)
	more = len(l.queue) > 0 && down == nil
	l.mu.Unlock()
	if l.o.OnDown != nil && (was == nil) != (down == nil) {
		if down == nil {
			l.o.OnDown(nil)
		} else {
			l.o.OnDown(down)
		}
	}
	return more
}

// newChain is a new chain's name.
func newChain() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}
