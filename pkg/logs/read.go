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
	"reflect"
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
	// Source leaves out all of a tagged log but what is of this one, if not
	// empty.
	Source string
	// Since leaves out what came before, if not zero.
	Since time.Time
	// Hold has nothing dropped that was not read yet: a slow reader stops the
	// command, as a pipe would, instead of missing something.
	Hold bool
}

// emitMax is the most that one call of emit gets.
const emitMax = 32 << 10

// Piece is some output, as it was captured.
type Piece struct {
	Source string // of a tagged log; empty else, and of the stream Lost
	Stream byte
	At     time.Time
	Data   []byte // not to be kept
}

// Read calls emit with the output in the order it came, each piece once, and
// with the time it was captured. Output that is kept no longer, or went while
// a slow reader was behind, is told of in a piece of the stream Lost. It
// returns emit's error, ctx's cause, or nil at the end: of what there is, or
// with Follow of the log.
func (l *Log) Read(ctx context.Context, o ReadOptions, emit func(Piece) error) error {
	return Read(ctx, []*Log{l}, o, emit)
}

// Read is [Log.Read] of several logs in one, in the order of the times at which
// each piece was captured.
func Read(ctx context.Context, of []*Log, o ReadOptions, emit func(Piece) error) error {
	var m merge
	defer func() { m.close() }() // of all that are in it then
	for _, l := range of {
		r := &reader{l: l, since: o.Since, source: o.Source, emit: emit, buf: make([]byte, emitMax)}
		m = append(m, r)
		if o.Hold {
			r.holds = true
			r.hold(0)
		}
	}
	if o.Tail > 0 {
		if err := m.seekTail(o.Tail); err != nil {
			return err
		}
	}
	for {
		over, changed := m.snapshot()
		if err := m.upToNow(ctx); err != nil {
			return err
		}
		if !o.Follow || over {
			return nil
		}
		if err := anyOf(ctx, changed); err != nil {
			return err
		}
	}
}

// anyOf waits for the first of several channels to be closed.
func anyOf(ctx context.Context, changed []<-chan struct{}) error {
	cases := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(ctx.Done())}}
	for _, c := range changed {
		cases = append(cases, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)})
	}
	if n, _, _ := reflect.Select(cases); n == 0 {
		return context.Cause(ctx)
	}
	return nil
}

// merge is a place in several logs.
type merge []*reader

func (m merge) close() {
	for _, r := range m {
		r.close()
		if r.holds {
			r.letGo()
		}
	}
}

// snapshot looks how far the logs are: whether all are closed, and what says
// that one that is not has more.
func (m merge) snapshot() (over bool, changed []<-chan struct{}) {
	over = true
	for _, r := range m {
		r.now = r.l.now()
		if !r.now.closed {
			over = false
			changed = append(changed, r.now.changed)
		}
	}
	return over, changed
}

// upToNow emits everything until the snapshot, the oldest first.
func (m merge) upToNow(ctx context.Context) error {
	for {
		var first *reader
		var at int64
		for _, r := range m {
			rec, ok, err := r.peek()
			if err != nil {
				return err
			}
			if ok && (first == nil || rec.at < at) {
				first, at = r, rec.at
			}
		}
		if first == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := first.record(); err != nil {
			return err
		}
	}
}

// seekTail goes to the place lines before the end. It walks the records
// backward, the newest first, so that only the tail is read.
func (m merge) seekTail(lines int) error {
	m.snapshot()
	for _, r := range m {
		if err := r.toLast(); err != nil {
			return err
		}
	}
	left, first := lines, true // first: the newline that ends the last line does not count
	for left > 0 {
		var last *reader
		var at int64
		for _, r := range m {
			rec, ok, err := r.peekBack()
			if err != nil {
				return err
			}
			if ok && (last == nil || rec.at > at) {
				last, at = r, rec.at
			}
		}
		if last == nil { // fewer lines than asked for: from the start, as without Tail
			for _, r := range m {
				r.rewind()
			}
			return nil
		}
		if err := last.back(&left, &first); err != nil {
			return err
		}
	}
	return nil
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
	l      *Log
	since  time.Time
	source string
	emit   func(Piece) error
	buf    []byte
	holds  bool

	now   state // until where to read
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

// peek is the next record until the snapshot, if there is one.
func (r *reader) peek() (record, bool, error) {
	for r.now.gen > 0 {
		if r.files[0] == nil {
			if err := r.open(r.now.gen); err != nil {
				return record{}, false, err
			}
		}
		end := r.now.index
		if r.gen < r.now.gen {
			st, err := r.files[0].Stat() // complete: it is not written any more
			if err != nil {
				return record{}, false, err
			}
			end = st.Size() - st.Size()%r.l.form.size
		}
		if r.at[0] < end {
			rec, err := r.next()
			return rec, err == nil, err
		}
		if r.gen >= r.now.gen {
			break
		}
		r.close()
	}
	return record{}, false, nil
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
		base, _, err := r.l.form.header(r.files[0])
		if err != nil {
			return err
		}
		if base > r.seen {
			msg := fmt.Appendf(nil, "creel: %d bytes of older output are no longer kept\n", base-r.seen)
			if err := r.emit(Piece{Stream: Lost, At: time.Now(), Data: msg}); err != nil {
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
	r.gen, r.at, r.skip = gen, [3]int64{r.l.form.size, 0, 0}, 0
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
	var room [16 + MaxSource]byte
	b := room[:r.l.form.size]
	if _, err := r.files[0].ReadAt(b, r.at[0]); err != nil {
		return record{}, fmt.Errorf("log index: %w", err)
	}
	rec, err := r.l.form.decode(b)
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
	at := time.Unix(0, rec.at)
	wanted := !at.Before(r.since) && (r.source == "" || r.source == rec.source)
	r.at[0] += r.l.form.size
	if rec.stream == Lost {
		if !wanted {
			return nil
		}
		return r.emit(Piece{Stream: Lost, At: at, Data: fmt.Appendf(nil, "creel: %d bytes of %s could not be kept\n", rec.length, rec.source)})
	}
	from, to := r.at[rec.stream]+r.skip, r.at[rec.stream]+int64(rec.length)
	r.at[rec.stream] = to
	r.skip = 0
	r.seen += uint64(rec.length)
	if !wanted {
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
		if err := r.emit(Piece{rec.source, rec.stream, at, r.buf[:n]}); err != nil {
			return err
		}
	}
	return nil
}

// rewind goes to the oldest there is.
func (r *reader) rewind() {
	r.close()
	r.gen, r.seen, r.skip = 0, 0, 0
}

// toLast goes behind the last record until the snapshot.
func (r *reader) toLast() error {
	if r.now.gen == 0 {
		return nil
	}
	err := r.openGen(r.now.gen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // dropped meanwhile, by a flood: from the start
	}
	if err != nil {
		return err
	}
	return r.toEnd(r.now)
}

// peekBack is the record before the place, if it is still there.
func (r *reader) peekBack() (record, bool, error) {
	for r.files[0] != nil {
		if r.at[0] > r.l.form.size {
			r.at[0] -= r.l.form.size
			rec, err := r.next()
			r.at[0] += r.l.form.size
			return rec, err == nil, err
		}
		gens, err := r.l.generations()
		if err != nil {
			return record{}, false, err
		}
		i, _ := slices.BinarySearch(gens, r.gen)
		if i == 0 {
			break
		}
		err = r.openGen(gens[i-1])
		if errors.Is(err, fs.ErrNotExist) {
			r.rewind()
			break
		}
		if err == nil {
			err = r.toEnd(r.now)
		}
		if err != nil {
			return record{}, false, err
		}
	}
	return record{}, false, nil
}

// toEnd puts the place behind the last record of the open generation.
func (r *reader) toEnd(now state) error {
	base, _, err := r.l.form.header(r.files[0])
	if err != nil {
		return err
	}
	limit := now.index
	if r.gen < now.gen {
		limit = math.MaxInt64
	}
	sums, records, err := r.l.form.index(r.files[0], limit)
	if err != nil {
		return err
	}
	r.at = [3]int64{(1 + records) * r.l.form.size, sums[Stdout], sums[Stderr]}
	r.seen = base + uint64(sums[Stdout]+sums[Stderr])
	return nil
}

// back steps over the record before the place. When the last wanted line
// begins in it, left becomes 0 and skip is where.
func (r *reader) back(left *int, first *bool) error {
	r.at[0] -= r.l.form.size
	rec, err := r.next()
	if err != nil || rec.stream == Lost {
		return err
	}
	start := r.at[rec.stream] - int64(rec.length)
	r.at[rec.stream] = start
	r.seen -= uint64(rec.length)
	if r.source != "" && r.source != rec.source {
		return nil
	}
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
