package audit

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Range is which records are read.
type Range struct {
	// After leaves out records up to that one.
	After uint64
	// Since and Until bound the time, where they are not zero; files that
	// ended before Since are not read.
	Since, Until time.Time
	// Follow goes on with what is committed, until ctx ends.
	Follow bool
}

// Read gives the lines of acknowledged records to fn, oldest first. line is
// valid during the call only. It stops at fn's error and returns it.
func (l *Log) Read(ctx context.Context, r Range, fn func(line []byte) error) error {
	at := r.After
	for {
		l.mu.Lock()
		firsts, length, changed := slices.Clone(l.firsts), l.length, l.changed
		closed := l.closed
		l.mu.Unlock()
		for i, first := range firsts {
			if i+1 < len(firsts) && (firsts[i+1] <= at+1 || l.before(firsts[i+1], r.Since)) {
				continue
			}
			most := int64(1) << 62
			if i == len(firsts)-1 {
				most = length
			}
			if err := l.readFile(ctx, first, most, &at, r, fn); err != nil {
				return err
			}
		}
		if !r.Follow || closed {
			return nil
		}
		select {
		case <-changed:
		case <-l.done:
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// before says whether the file that begins with record first does so before t.
func (l *Log) before(first uint64, t time.Time) bool {
	if t.IsZero() {
		return false
	}
	f, err := os.OpenFile(filepath.Join(l.o.Dir, fileName(first)), os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 256)
	n, _ := f.ReadAt(b, 0)
	o, ok := scan(append(b[:n], '}'))
	return ok && string(o.time) < t.UTC().Format(timeLayout)
}

func (l *Log) readFile(ctx context.Context, first uint64, most int64, at *uint64, r Range, fn func([]byte) error) error {
	f, err := os.OpenFile(filepath.Join(l.o.Dir, fileName(first)), os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // dropped meanwhile
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	since, until := bound(r.Since), bound(r.Until)
	return readLines(io.NewSectionReader(f, 0, most), func(line []byte, _ int64, whole bool) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		o, ok := scan(line)
		if !whole || !ok || o.seq <= *at {
			return nil
		}
		*at = o.seq
		if t := string(o.time); (since != "" && t < since) || (until != "" && t >= until) {
			return nil
		}
		return fn(line)
	})
}

// bound is a time as it is written, to be compared as text.
func bound(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}
