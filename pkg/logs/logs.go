// Package logs keeps the output of a sandbox's commands.
//
// Bytes go from the command's pipes to files by splice(2), without passing the
// daemon's memory: at any moment they are either in the pipe, which PID 1 of
// the sandbox holds open, or in a file. So a daemon that is killed loses none;
// the next one opens the log and captures the same pipe. A terminal cannot be
// spliced: up to 32 KiB of its output that were read and not yet written are
// lost with the daemon.
//
// A log is a directory of generations, of which the newest two are kept:
//
//	gen-N/stdout.log   raw bytes (of a terminal: everything)
//	gen-N/stderr.log   raw bytes
//	gen-N/index        a header, then a record for each piece: time, stream, length
//
// The index is what puts the two streams in order. A piece that a crash left
// without its record is given one, with the file's time, by the next Open.
//
// A tagged log has the output of many commands: its records also say whose a
// piece is, and its header whose the bytes are that have no record yet. Read
// puts several logs together in the order of time.
package logs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The streams. Lost is not captured: it is how Read tells that older output
// is no longer there.
const (
	Lost   byte = 0
	Stdout byte = 1
	Stderr byte = 2
)

// DefaultMax is the most a log keeps.
const DefaultMax = 64 << 20

// Options of a log. The zero value is good.
type Options struct {
	// Max is how many bytes are kept at most, index included; DefaultMax when
	// 0. When half of it is full a new generation begins, and the one before
	// the last goes.
	Max int64
	// Tagged is for a log of many commands, by Tap. Nothing is on disk before
	// its first byte.
	Tagged bool
}

// Log is the log of one sandbox. Its methods may be called from several
// goroutines at once. One process at a time may have it open.
type Log struct {
	dir  string
	max  int64
	form form
	rate rate

	mu       sync.Mutex
	gen      uint64 // the generation written to
	files    [3]*os.File
	sizes    [3]int64         // what the index has of each stream; [0] is the index's own size
	owner    string           // whose bytes without a record are, as the header says
	missing  map[string]int64 // bytes that could not be kept and are not told of yet
	pending  [3]record        // pieces in their file whose record could not be written
	base     uint64           // bytes of the generations before gen
	changed  chan struct{}    // closed and replaced when there is more
	closed   bool
	holds    map[*reader]uint64 // readers that must not miss anything, and the generation each is in
	expected *reader            // stands for one that is about to come
	freed    chan struct{}      // closed and replaced when one has gone on
	ending   bool               // no hold counts any more
}

// form is how an index is laid out. Its header is as long as a record.
type form struct {
	magic string
	size  int64
}

var (
	// plain: the header is the magic and, as uint64, the bytes in all
	// generations before; a record unix ns int64, length uint32, stream, 3
	// zero bytes.
	plain = form{"creelog1", 16}
	// tagged: both are followed by a source, padded with zero bytes.
	tagged = form{"creelog2", 16 + MaxSource}
)

// MaxSource is how long the name of a source may be, in bytes.
const MaxSource = 16

var fileNames = [3]string{"index", "stdout.log", "stderr.log"}

// record is one piece of output; of the stream Lost, one that is not there.
type record struct {
	at     int64 // ns
	length uint32
	stream byte
	source string // of a tagged log
}

func (f form) encode(r record) []byte {
	b := make([]byte, f.size)
	binary.BigEndian.PutUint64(b, uint64(r.at))
	binary.BigEndian.PutUint32(b[8:], r.length)
	b[12] = r.stream
	copy(b[16:], r.source)
	return b
}

func (f form) decode(b []byte) (record, error) {
	r := record{at: int64(binary.BigEndian.Uint64(b)), length: binary.BigEndian.Uint32(b[8:]), stream: b[12]}
	if r.stream > Stderr || (r.stream == Lost && f != tagged) || b[13]|b[14]|b[15] != 0 {
		return r, errors.New("index record is damaged")
	}
	r.source = sourceOf(b[16:])
	return r, nil
}

func sourceOf(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

// Open opens the log in dir, which is made when missing (0700; its parent must
// exist), and repairs what a crash left. Close it when all output has ended.
func Open(dir string, o Options) (*Log, error) {
	if o.Max <= 0 {
		o.Max = DefaultMax
	}
	l := &Log{dir: dir, max: o.Max, form: plain, changed: make(chan struct{}), holds: map[*reader]uint64{}, freed: make(chan struct{})}
	if o.Tagged {
		l.form, l.missing = tagged, map[string]int64{}
	} else if err := l.mkdir(); err != nil {
		return nil, err
	}
	gens, err := l.generations()
	if err != nil {
		return nil, err
	}
	if len(gens) == 0 && o.Tagged {
		return l, nil
	}
	if len(gens) > 0 {
		err = l.resume(gens[len(gens)-1])
	}
	if len(gens) == 0 || errors.Is(err, errDamaged) {
		err = l.begin()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log %s: %w", dir, err), l.Close())
	}
	return l, nil
}

func (l *Log) mkdir() error {
	if err := os.Mkdir(l.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// Usage is how many bytes of disk the log in dir takes; none when there is no
// log. It may be open meanwhile.
func Usage(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a generation that has just gone
		}
		sum += st.Blocks * 512
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("log: %w", err)
	}
	return sum, nil
}

// errDamaged is a generation that cannot be written on; it can be read.
var errDamaged = errors.New("damaged generation")

func (l *Log) genDir(n uint64) string { return filepath.Join(l.dir, fmt.Sprintf("gen-%08d", n)) }

// generations are the numbers of those there are, ascending.
func (l *Log) generations() ([]uint64, error) {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) && l.form == tagged {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	var out []uint64
	for _, e := range entries {
		s, ok := strings.CutPrefix(e.Name(), "gen-")
		if n, err := strconv.ParseUint(s, 10, 64); ok && err == nil {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

// begin starts the next generation and drops those before the last one. The
// caller holds mu, or nobody else has the log yet. On an error the current
// generation stays as it is.
func (l *Log) begin() error {
	// First, so that a full disk does not keep the log from making room.
	if err := l.prune(); err != nil {
		return err
	}
	files, err := l.makeGen()
	if err != nil {
		return err
	}
	closeAll(l.files[:])
	l.base += uint64(l.sizes[Stdout] + l.sizes[Stderr])
	l.files, l.sizes, l.gen, l.owner = files, [3]int64{l.form.size, 0, 0}, l.gen+1, ""
	return nil
}

// makeGen makes the next generation's files.
func (l *Log) makeGen() (files [3]*os.File, err error) {
	base := l.base + uint64(l.sizes[Stdout]+l.sizes[Stderr])
	// Made under another name, so that a generation always has its header.
	tmp := filepath.Join(l.dir, "new")
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return files, err
	}
	defer func() {
		if err != nil {
			closeAll(files[:])
		}
	}()
	for i, name := range fileNames {
		files[i], err = os.OpenFile(filepath.Join(tmp, name), os.O_CREATE|os.O_EXCL|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return files, err
		}
	}
	header := make([]byte, l.form.size)
	binary.BigEndian.PutUint64(header[copy(header, l.form.magic):], base)
	if _, err := files[0].WriteAt(header, 0); err != nil {
		return files, err
	}
	return files, os.Rename(tmp, l.genDir(l.gen+1))
}

// prune drops what is older than the current generation, which is about to be
// the last but one.
func (l *Log) prune() error {
	gens, err := l.generations()
	if err != nil {
		return err
	}
	for _, n := range gens {
		if n < l.gen {
			if err := os.RemoveAll(l.genDir(n)); err != nil {
				return err
			}
		}
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // nothing is buffered
		}
	}
}

// resume goes on with a generation, giving records to bytes without one. It
// answers errDamaged when bytes are missing that the index has, as after a
// power failure.
func (l *Log) resume(gen uint64) error {
	l.gen = gen
	var actual [3]int64
	var mtime [3]time.Time
	for i, name := range fileNames {
		f, err := os.OpenFile(filepath.Join(l.genDir(gen), name), os.O_RDWR|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return errDamaged
		}
		if err != nil {
			return err
		}
		l.files[i] = f
		st, err := f.Stat()
		if err != nil {
			return err
		}
		actual[i], mtime[i] = st.Size(), st.ModTime()
	}
	base, owner, err := l.form.header(l.files[0])
	if err != nil {
		return errors.Join(errDamaged, err)
	}
	sums, records, err := l.form.index(l.files[0], math.MaxInt64)
	if err != nil {
		return errors.Join(errDamaged, err)
	}
	l.base, l.sizes, l.owner = base, sums, owner
	l.sizes[0] = (1 + records) * l.form.size
	for _, stream := range []byte{Stdout, Stderr} {
		missing := actual[stream] - l.sizes[stream]
		if missing < 0 {
			return errDamaged
		}
		for missing > 0 {
			n := min(missing, 1<<30)
			if err := l.addLocked(record{mtime[stream].UnixNano(), uint32(n), stream, owner}); err != nil {
				return err
			}
			missing -= n
		}
	}
	return nil
}

// header reads an index's own: the bytes of all generations before, and whose
// the bytes without a record are.
func (f form) header(file *os.File) (base uint64, owner string, err error) {
	b := make([]byte, f.size)
	if _, err := file.ReadAt(b, 0); err != nil || string(b[:8]) != f.magic {
		return 0, "", errors.Join(fmt.Errorf("log index %s has no header", file.Name()), err)
	}
	return binary.BigEndian.Uint64(b[8:]), sourceOf(b[16:]), nil
}

// index adds up an index, to the size limit at most: the bytes of each stream
// and the whole records.
func (f form) index(file *os.File, limit int64) (sums [3]int64, records int64, err error) {
	buf := make([]byte, 4096*f.size)
	for {
		at := (1 + records) * f.size
		n, _ := file.ReadAt(buf[:max(0, min(int64(len(buf)), limit-at))], at)
		n -= n % int(f.size) // a record that a crash cut off is written over
		if n == 0 {
			return sums, records, nil
		}
		for b := range slices.Chunk(buf[:n], int(f.size)) {
			r, err := f.decode(b)
			if err != nil {
				return sums, records, err
			}
			sums[r.stream] += int64(r.length)
			records++
		}
	}
}

// addLocked records a piece that is in its file already.
func (l *Log) addLocked(r record) error {
	if _, err := l.files[0].WriteAt(l.form.encode(r), l.sizes[0]); err != nil {
		return fmt.Errorf("log index: %w", err)
	}
	l.sizes[0] += l.form.size
	if r.stream != Lost {
		l.sizes[r.stream] += int64(r.length)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Bytes is how much output was ever captured, output no longer kept included.
func (l *Log) Bytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base + uint64(l.sizes[Stdout]+l.sizes[Stderr])
}

// Rate is the output in bytes per second, averaged over the last 10 s; only
// what this process captured counts.
func (l *Log) Rate() float64 { return l.rate.perSecond(time.Now()) }

// Close ends the log: Read with Follow returns at the end of what there is.
// Captures must have returned. The log can still be read.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	close(l.changed)
	closeAll(l.files[:])
	return nil
}

// rate counts bytes in buckets of one second.
type rate struct {
	mu      sync.Mutex
	buckets [rateSeconds]struct {
		second int64
		n      int64
	}
}

const rateSeconds = 10

func (r *rate) add(now time.Time, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := &r.buckets[now.Unix()%rateSeconds]
	if b.second != now.Unix() {
		b.second, b.n = now.Unix(), 0
	}
	b.n += n
}

func (r *rate) perSecond(now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sum int64
	for _, b := range r.buckets {
		if age := now.Unix() - b.second; age >= 0 && age < rateSeconds {
			sum += b.n
		}
	}
	return float64(sum) / rateSeconds
}
