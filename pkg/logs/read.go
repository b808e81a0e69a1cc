package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ReadOptions say which output is wanted.
type ReadOptions struct {
	// Follow goes on with new output until the log is closed.
	Follow bool
	// Tail starts that many lines before the end, of both streams together;
	// 0 is all. A last line without a newline counts as one.
	Tail int
	// Since leaves out what came before, if not zero.
	Since time.Time
	// Hold has nothing dropped that was not read yet: a slow reader stops the
	// command, as a pipe would, instead of missing something.
	Hold bool
}

// emitMax is the most that one call of emit gets.
const emitMax = 32 << 10

// Read calls emit with the output in the order it came, each piece once, and
// with the time it was captured. emit must not keep p. Output that is kept no
// longer, or went while a slow reader was behind, is told of in a piece of the
// stream Lost. It returns emit's error, ctx's cause, or nil at the end: of
// what there is, or with Follow of the log.
func (l *Log) Read(ctx context.Context, o ReadOptions, emit func(stream byte, at time.Time, p []byte) error) error {
	r := &reader{l: l, since: o.Since, emit: emit, buf: make([]byte, emitMax)}
	defer r.close()
	if o.Hold {
		r.holds = true
		r.hold(0)
		defer r.letGo()
	}
	var err error
	if o.Tail > 0 {
		err = r.seekTail(o.Tail)
	}
	for err == nil {
		now := l.now()
		if err = r.upTo(ctx, now); err != nil {
			break
		}
		if !o.Follow || now.closed {
			return nil
		}
		select {
		case <-now.changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	return err
}

// state is how far the log is.
type state struct {
	gen     uint64
	index   int64 // the size of gen's index
	closed  bool
	changed <-chan struct{}
}

func (l *Log) now() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return state{l.gen, l.sizes[0], l.closed, l.changed}
}

// reader is a place in the log: the next record of a generation.
type reader struct {
	l     *Log
	since time.Time
	emit  func(byte, time.Time, []byte) error
	buf   []byte
	holds bool

	gen   uint64
	files [3]*os.File
	at    [3]int64 // where the next record, and its bytes, are
	skip  int64    // bytes of the next record that are not wanted
	seen  uint64   // the bytes of all generations that are behind this place
}

func (r *reader) close() {
	closeAll(r.files[:])
	r.files = [3]*os.File{}
}

// upTo emits everything until now.
func (r *reader) upTo(ctx context.Context, now state) error {
	for {
		if r.files[0] == nil {
			if err := r.open(now.gen); err != nil {
				return err
			}
		}
		end := now.index
		if r.gen < now.gen {
			st, err := r.files[0].Stat() // complete: it is not written any more
			if err != nil {
				return err
			}
			end = st.Size() - (st.Size()-headerSize)%recordSize
		}
		for r.at[0] < end {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := r.record(); err != nil {
				return err
			}
		}
		if r.gen >= now.gen {
			return nil
		}
		r.close()
	}
}

// open goes to the next generation that there is, last at most, and tells of
// bytes that are gone in between.
func (r *reader) open(last uint64) error {
	for {
		next, err := r.l.oldest(r.gen + 1)
		if err != nil {
			return err
		}
		if next == 0 || next > last {
			return fmt.Errorf("log %s: generation %d: %w", r.l.dir, last, fs.ErrNotExist)
		}
		if err := r.openGen(next); errors.Is(err, fs.ErrNotExist) {
			continue // dropped between the two looks
		} else if err != nil {
			return err
		}
		base, err := readHeader(r.files[0])
		if err != nil {
			return err
		}
		if base > r.seen {
			msg := fmt.Appendf(nil, "creel: %d bytes of older output are no longer kept\n", base-r.seen)
			if err := r.emit(Lost, time.Now(), msg); err != nil {
				return err
			}
		}
		r.seen = base
		return nil
	}
}

func (r *reader) openGen(gen uint64) error {
	r.close()
	for i, name := range fileNames {
		f, err := os.OpenFile(filepath.Join(r.l.genDir(gen), name), unix.O_NOFOLLOW, 0)
		if err != nil {
			r.close()
			return err
		}
		r.files[i] = f
	}
	r.gen, r.at, r.skip = gen, [3]int64{headerSize, 0, 0}, 0
	if r.holds {
		r.hold(gen)
	}
	return nil
}

// oldest is the first generation not before from, 0 when there is none.
func (l *Log) oldest(from uint64) (uint64, error) {
	gens, err := l.generations()
	if err != nil {
		return 0, err
	}
	for _, n := range gens {
		if n >= from {
			return n, nil
		}
	}
	return 0, nil
}

// next reads the record at the place.
func (r *reader) next() (record, error) {
	var b [recordSize]byte
	if _, err := r.files[0].ReadAt(b[:], r.at[0]); err != nil {
		return record{}, fmt.Errorf("log index: %w", err)
	}
	rec, err := decode(b[:])
	if err != nil {
		return record{}, fmt.Errorf("log %s: %w", r.files[0].Name(), err)
	}
	return rec, nil
}

// record emits the record at the place and steps over it.
func (r *reader) record() error {
	rec, err := r.next()
	if err != nil {
		return err
	}
	from, to := r.at[rec.stream]+r.skip, r.at[rec.stream]+int64(rec.length)
	at := time.Unix(0, rec.at)
	r.at[0] += recordSize
	r.at[rec.stream] = to
	r.skip = 0
	r.seen += uint64(rec.length)
	if at.Before(r.since) {
		return nil
	}
	for from < to {
		n, err := r.files[rec.stream].ReadAt(r.buf[:min(emitMax, to-from)], from)
		if n == 0 {
			if errors.Is(err, io.EOF) {
				return nil // a power failure took it; the index alone is left
			}
			return err
		}
		from += int64(n)
		if err := r.emit(rec.stream, at, r.buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

// seekTail goes to the place lines before the end. It walks the records
// backward, so that only the tail is read.
func (r *reader) seekTail(lines int) error {
	now := r.l.now()
	gens, err := r.l.generations()
	if err != nil {
		return err
	}
	left, first := lines, true // first: the newline that ends the last line does not count
	for _, gen := range slices.Backward(gens) {
		if gen > now.gen {
			continue
		}
		if err := r.openGen(gen); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return err
		}
		if err := r.toEnd(now); err != nil {
			return err
		}
		for r.at[0] > headerSize {
			if err := r.back(&left, &first); err != nil {
				return err
			}
			if left == 0 {
				return nil
			}
		}
	}
	// Fewer lines than asked for: from the start, as without Tail.
	r.close()
	r.gen, r.seen = 0, 0
	return nil
}

// toEnd puts the place behind the last record of the open generation.
func (r *reader) toEnd(now state) error {
	base, err := readHeader(r.files[0])
	if err != nil {
		return err
	}
	limit := now.index
	if r.gen < now.gen {
		limit = math.MaxInt64
	}
	sums, records, err := readIndex(r.files[0], limit)
	if err != nil {
		return err
	}
	r.at = [3]int64{headerSize + records*recordSize, sums[Stdout], sums[Stderr]}
	r.seen = base + uint64(sums[Stdout]+sums[Stderr])
	return nil
}

// back steps over the record before the place. When the last wanted line
// begins in it, left becomes 0 and skip is where.
func (r *reader) back(left *int, first *bool) error {
	r.at[0] -= recordSize
	rec, err := r.next()
	if err != nil {
		return err
	}
	start := r.at[rec.stream] - int64(rec.length)
	r.at[rec.stream] = start
	r.seen -= uint64(rec.length)
	for end := int64(rec.length); end > 0; {
		n := min(emitMax, end)
		p := r.buf[:n]
		if _, err := r.files[rec.stream].ReadAt(p, start+end-n); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := len(p); i > 0; {
			i = bytes.LastIndexByte(p[:i], '\n')
			if i < 0 {
				break
			}
			if *first && end-n+int64(i) == int64(rec.length)-1 {
				*first = false
				continue
			}
			*first = false
			if *left--; *left == 0 {
				r.skip = end - n + int64(i) + 1
				return nil
			}
		}
		*first = false
		end -= n
	}
	return nil
}
