package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// write commits the batch: all of it, or on a full disk what may use the
// reserve. What is written has keep and done cleared by written; the error is
// why the rest is not.
func (l *Log) write(batch []*item) error {
	if err := l.mend(); err != nil {
		return err
	}
	l.noteLost()
	own := l.due
	full := l.room(own, batch)
	if full != nil {
		var urgent []*item
		for _, it := range batch {
			if it.keep {
				urgent = append(urgent, it)
			}
		}
		batch = urgent
	}
	all := slices.Concat(own, batch)
	if len(all) == 0 {
		return full
	}
	buf, seq, prev, head := l.encode(all)
	if full != nil && l.end+int64(len(buf)) > l.allocated {
		return fmt.Errorf("the reserve is used up: %w", full)
	}
	if err := l.put(buf); err != nil {
		return err
	}
	l.acknowledge(buf, seq, prev, head, all)
	if full == nil {
		l.rotate()
	}
	return full
}

// noteLost has it recorded that records were lost.
func (l *Log) noteLost() {
	l.mu.Lock()
	n := l.lost
	l.lost = 0
	l.mu.Unlock()
	if n > 0 {
		l.due = append(l.due, &item{e: Entry{Kind: Fact, Time: time.Now(), Action: "audit.lost", Detail: map[string]string{"records": strconv.Itoa(n)}}})
	}
}

// encode makes the lines of a batch, chained, with a signed head at the end.
func (l *Log) encode(batch []*item) (buf []byte, seq uint64, prev Hash, head []byte) {
	seq, prev = l.seq, l.prev
	add := func(r *Record, line func() []byte) []byte {
		seq++
		r.Seq, r.Prev = seq, prev
		b := line()
		prev = hashOf(b)
		buf = append(append(buf, b...), '\n')
		return b
	}
	for _, it := range batch {
		r := &Record{Entry: it.e, Drop: it.drop, Seal: it.seal}
		switch {
		case it.begin:
			r.Kind, r.Chain = Begin, newChain()
		case it.drop != nil:
			r.Kind = Drop
		case it.seal != nil:
			r.Kind = Seal
		case it.e.Kind == "":
			continue // only to have the log tried
		}
		add(r, r.line)
	}
	if len(buf) == 0 {
		return nil, seq, prev, nil
	}
	r := &Record{Entry: Entry{Time: time.Now()}}
	head = add(r, func() []byte { return r.sign(l.o.Key) })
	return buf, seq, prev, head
}

// room makes sure of the blocks that a batch of new work needs, and of the
// reserve behind them.
func (l *Log) room(own, batch []*item) error {
	need := l.end + l.o.Reserve
	for _, it := range slices.Concat(own, batch) {
		need += int64(len((&Record{Entry: it.e}).line())) + 256
	}
	if need += 1024; need <= l.allocated {
		return nil
	}
	err := l.cur.Allocate(l.end, need-l.end+step)
	if err == nil {
		l.allocated = need + step
		return nil
	}
	if isFull(err) {
		if err = l.cur.Allocate(l.end, need-l.end); err == nil {
			l.allocated = need
			return nil
		}
	}
	return fmt.Errorf("%s: fallocate: %w", l.o.Dir, err)
}

// put writes at the end, durably. After an error the file's end is not known.
func (l *Log) put(buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	l.dirty = true
	if _, err := l.cur.WriteAt(buf, l.end); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := l.cur.Sync(); err != nil {
		return fmt.Errorf("fdatasync: %w", err)
	}
	l.dirty = false
	return nil
}

// acknowledge makes what was written the log's end.
func (l *Log) acknowledge(buf []byte, seq uint64, prev Hash, head []byte, batch []*item) {
	l.seq, l.prev, l.due = seq, prev, nil
	l.end += int64(len(buf))
	l.allocated = max(l.allocated, l.end)
	l.tail = append(l.tail, buf...)
	if n := len(l.tail) - window; n > 0 {
		l.tail = append(l.tail[:0:0], l.tail[n:]...)
	}
	l.mu.Lock()
	l.length = l.end
	for _, it := range batch {
		it.tell(nil)
		it.keep = false
	}
	if head != nil {
		l.head = head
		close(l.changed)
		l.changed = make(chan struct{})
	}
	l.mu.Unlock()
	for _, it := range batch {
		if it.drop != nil {
			l.remove(*it.drop)
		}
	}
	if head != nil && l.o.OnHead != nil {
		l.o.OnHead(head)
	}
}

// rotate begins a new file when this one is long enough. If it cannot, the log
// goes on in this one.
func (l *Log) rotate() {
	if l.end < l.o.MaxFile {
		return
	}
	next := l.seq + 1
	path := filepath.Join(l.o.Dir, fileName(next))
	f, err := l.fresh(path)
	if err != nil {
		_ = os.Remove(path) // it holds nothing; the next rotation makes it anew
		return
	}
	// What was allocated beyond the old one's end is given back.
	_ = l.cur.Truncate(l.end)
	_ = l.cur.Close()
	l.cur, l.end, l.allocated, l.tail = f, 0, l.o.Reserve, nil
	l.mu.Lock()
	l.firsts, l.length = append(l.firsts, next), 0
	old := l.firsts
	if l.o.Keep > 0 && len(old) > l.o.Keep {
		old = old[:len(old)-l.o.Keep+1]
	} else {
		old = nil
	}
	l.mu.Unlock()
	if len(old) < 2 {
		return
	}
	last := old[len(old)-1] // the first that stays
	hash, err := prevOf(filepath.Join(l.o.Dir, fileName(last)))
	if err != nil {
		return // Verify will say what is wrong with it; nothing is dropped
	}
	l.due = append(l.due, &item{drop: &DropInfo{First: old[0], Last: last - 1, Hash: hash}, e: Entry{Time: time.Now()}})
	l.kick()
}

// fresh makes an empty file with its reserve, durably.
func (l *Log) fresh(path string) (file, error) {
	f, err := l.o.open(path, true)
	if err != nil {
		return nil, err
	}
	if err := f.Allocate(0, l.o.Reserve); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), syncDir(l.o.Dir)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// remove deletes the files whose records a committed drop record names.
func (l *Log) remove(d DropInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.firsts) > 1 && l.firsts[1] <= d.Last+1 {
		if err := os.Remove(filepath.Join(l.o.Dir, fileName(l.firsts[0]))); !gone(err) {
			return // the next rotation tries again
		}
		l.firsts = l.firsts[1:]
	}
}
