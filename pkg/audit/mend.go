package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// mend makes the end of the log what is acknowledged, if it may be otherwise:
// at the start, and after a write that failed.
func (l *Log) mend() error {
	if !l.begun {
		if err := l.start(); err != nil {
			return err
		}
		l.begun = true
	}
	if !l.dirty {
		return nil
	}
	// A descriptor tells of a failed write-back once. A new one, from before
	// the bytes are written again, will tell of theirs.
	l.mu.Lock()
	path := filepath.Join(l.o.Dir, fileName(l.firsts[len(l.firsts)-1]))
	l.mu.Unlock()
	f, err := l.o.open(path, false)
	if err != nil {
		return err
	}
	if err := l.restore(f); err != nil {
		return errors.Join(fmt.Errorf("mend %s: %w", filepath.Base(path), err), f.Close())
	}
	if l.cur != nil {
		_ = l.cur.Close() // its error was told by the write
	}
	l.cur, l.dirty = f, false
	return nil
}

// restore writes the acknowledged end again, so that its pages are dirty once
// more and the disk, not the page cache, has the last word; and cuts off what
// was not acknowledged.
func (l *Log) restore(f file) error {
	// Cutting gives back what is allocated behind, so only if it must be.
	if n, _ := f.ReadAt(make([]byte, 1), l.end); n > 0 {
		if err := f.Truncate(l.end); err != nil {
			return err
		}
	}
	l.allocated = l.end
	// On a full disk it is what the last daemon has left of the reserve.
	for n := l.o.Reserve; n >= 4096; n /= 2 {
		err := f.Allocate(l.end, n)
		if err == nil {
			l.allocated += n
			break
		}
		if !isFull(err) {
			return err
		}
	}
	if _, err := f.WriteAt(l.tail, l.end-int64(len(l.tail))); err != nil {
		return err
	}
	return f.Sync()
}

// start finds the log's end. What follows the last head that the box's key has
// signed was not acknowledged, or is not what it was: it is cut off, set aside
// if whole records are in it, and a seal record tells of it.
func (l *Log) start() error {
	firsts, err := firstsOf(l.o.Dir)
	if err != nil {
		return err
	}
	var cut SealInfo
	for len(firsts) > 0 {
		first := firsts[len(firsts)-1]
		e, err := l.examine(filepath.Join(l.o.Dir, fileName(first)), first)
		if err != nil {
			return err
		}
		if e.cut.Bytes > 0 || e.end == 0 {
			if err := l.cutOff(fileName(first), &e); err != nil {
				return err
			}
			cut = add(cut, e.cut)
		}
		if e.end > 0 {
			l.follow(firsts, e)
			break
		}
		firsts = firsts[:len(firsts)-1]
	}
	if len(firsts) == 0 {
		f, err := l.fresh(filepath.Join(l.o.Dir, fileName(1)))
		if err != nil {
			return err
		}
		l.cur, l.allocated, l.seq, l.prev, l.end, l.tail = f, l.o.Reserve, 0, Hash{}, 0, nil
		l.mu.Lock()
		l.firsts, l.length = []uint64{1}, 0
		l.mu.Unlock()
	}
	if len(firsts) == 0 {
		l.due = append(l.due, &item{begin: true, e: Entry{Time: time.Now()}})
	}
	if cut.Bytes > 0 {
		l.due = append(l.due, &item{seal: &cut, e: Entry{Time: time.Now()}})
	}
	return nil
}

// follow goes on behind the end that was found.
func (l *Log) follow(firsts []uint64, e ending) {
	l.end, l.seq, l.prev, l.tail = e.end, e.seq, e.hash, e.tail
	l.dirty = true // the page cache may have what the disk has not
	l.mu.Lock()
	l.firsts, l.length, l.head = firsts, e.end, e.head
	l.mu.Unlock()
}

// add joins two cuts of one start: the newer file's came first.
func add(a, b SealInfo) SealInfo {
	if a.Bytes == 0 {
		return b
	}
	a.Bytes, a.Records, a.Heads = a.Bytes+b.Bytes, a.Records+b.Records, a.Heads+b.Heads
	h := sha256.Sum256(append(b.Hash[:], a.Hash[:]...))
	a.Hash = h
	if b.Aside != "" {
		a.Aside = b.Aside + " " + a.Aside
	}
	return a
}

// ending is where a file's good part ends.
type ending struct {
	end  int64 // just behind the last head that is the box's; 0 without one
	seq  uint64
	hash Hash
	head []byte
	tail []byte
	cut  SealInfo
}

// examine reads one file.
func (l *Log) examine(path string, first uint64) (ending, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ending{}, err
	}
	defer func() { _ = f.Close() }()
	heads, err := chained(f, first)
	if err != nil {
		return ending{}, err
	}
	keys := map[string]Public{l.o.Public.ID(): l.o.Public}
	var e ending
	for _, h := range slices.Backward(heads) {
		line := make([]byte, h.end-h.off-1)
		if _, err := f.ReadAt(line, h.off); err != nil {
			return ending{}, err
		}
		// A head of another key is kept: the box has a new key, or somebody
		// wrote it, and Verify tells which keys it does not know.
		if key, known, good := checkHead(line, keys); good || (key != "" && !known) {
			e = ending{end: h.end, seq: h.seq, hash: hashOf(line), head: line}
			break
		}
	}
	n := min(e.end, window)
	e.tail = make([]byte, n)
	if _, err := f.ReadAt(e.tail, e.end-n); err != nil {
		return ending{}, err
	}
	e.cut, err = damaged(f, e.end, keys)
	return e, err
}

// place is where a head's line is.
type place struct {
	off, end int64
	seq      uint64
}

// chained reads the part of a file whose records are one chain, and gives the
// last of its heads; older ones cannot matter unless these are all bad.
func chained(f io.ReaderAt, first uint64) ([]place, error) {
	const most = 1 << 16
	var heads []place
	var prev Hash
	want := first
	err := readLines(io.NewSectionReader(f, 0, 1<<62), func(line []byte, off int64, whole bool) error {
		o, ok := scan(line)
		if !ok || !whole || o.seq != want || (want != first && o.prev != prev) {
			return io.EOF
		}
		prev = hashOf(line)
		want++
		if o.kind == Head {
			if len(heads) == most {
				heads = append(heads[:0], heads[most/2:]...)
			}
			heads = append(heads, place{off, off + int64(len(line)) + 1, o.seq})
		}
		return nil
	})
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return heads, err
}

// damaged says what is behind the good part.
func damaged(f io.ReaderAt, end int64, keys map[string]Public) (SealInfo, error) {
	var s SealInfo
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(f, end, 1<<62))
	if err != nil || n == 0 {
		return s, err
	}
	s.Bytes, s.Hash = n, Hash(sum.Sum(nil))
	err = readLines(io.NewSectionReader(f, end, n), func(line []byte, _ int64, whole bool) error {
		if o, ok := scan(line); ok && whole {
			s.Records++
			if o.kind == Head {
				if _, _, good := checkHead(line, keys); good {
					s.Heads++
				}
			}
		}
		return nil
	})
	return s, err
}

// cutOff cuts what is behind the good part; a file without one is removed. If
// whole records are in it they are copied first: what was acknowledged must
// not be deleted, only what nobody was told of.
func (l *Log) cutOff(name string, e *ending) error {
	path := filepath.Join(l.o.Dir, name)
	if e.cut.Records > 0 {
		aside := fmt.Sprintf("damaged-%s-%x", bytes.TrimSuffix([]byte(name), []byte(fileSuffix)), e.cut.Hash[:4])
		err := copyFrom(path, filepath.Join(l.o.Dir, aside), e.end)
		if err != nil && e.cut.Heads > 0 {
			return fmt.Errorf("set %s aside, which is damaged: %w", name, err)
		}
		if err == nil {
			e.cut.Aside = aside
		}
	}
	if e.end == 0 {
		if err := os.Remove(path); !gone(err) {
			return err
		}
		return syncDir(l.o.Dir)
	}
	f, err := l.o.open(path, false)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(e.end), f.Sync(), f.Close())
}

func copyFrom(path, to string, off int64) error {
	in, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.NewSectionReader(in, off, 1<<62))
	err = errors.Join(err, out.Sync(), out.Close())
	if err != nil {
		_ = os.Remove(to)
	}
	return err
}
