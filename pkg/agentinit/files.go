package agentinit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// File operations are processes of their own, with the agent's rights, uid
// and cgroup: Start with Internal and one of these command lines. Their
// standard output is a stream of records for the decoders below; what they
// take and give is as hostile as any process's. Paths that are not absolute
// begin at Cwd, or at HOME when that is empty.

// ReadFile gives the contents of a regular file: DecodeFile.
func ReadFile(path string) []string { return []string{"read", path} }

// WriteFile makes or replaces a file by the records of a FileWriter on its
// standard input: DecodeEnd. mode may not have set-user-ID, set-group-ID or
// sticky bits. The file appears whole or not at all; a symbolic link is replaced.
func WriteFile(path string, mode fs.FileMode, how ...WriteFlag) []string {
	args := []string{"write", path, octal(mode)}
	for _, f := range how {
		args = append(args, string(f))
	}
	return args
}

// WriteFlag changes what WriteFile does.
type WriteFlag string

// The flags.
const (
	// WriteParents makes the directories above the file.
	WriteParents WriteFlag = "parents"
	// WriteExclusive makes it an error, EEXIST, that there is something already; of
	// several at once one makes it.
	WriteExclusive WriteFlag = "exclusive"
	// WriteKeepMode has a file that is replaced keep its permission bits.
	WriteKeepMode WriteFlag = "keepmode"
)

// ListDir gives at most limit entries of a directory, in no order: DecodeDir.
func ListDir(path string, limit int) []string {
	return []string{"list", path, strconv.Itoa(max(limit, 0))}
}

// StatFile describes a file, not following a link: DecodeStat.
func StatFile(path string) []string { return []string{"stat", path} }

// MakeDir makes a directory, with parents also those above it and no error
// when it is there: DecodeEnd.
func MakeDir(path string, mode fs.FileMode, parents bool) []string {
	args := []string{"mkdir", path, octal(mode)}
	if parents {
		args = append(args, "parents")
	}
	return args
}

// Remove removes a file or an empty directory, with recursive any: DecodeEnd.
func Remove(path string, recursive bool) []string {
	if recursive {
		return []string{"remove", path, "recursive"}
	}
	return []string{"remove", path}
}

// Rename is rename(2): DecodeEnd.
func Rename(from, to string) []string { return []string{"rename", from, to} }

// octal lets set-ID bits through, in both of their forms, for creel-init to
// refuse: dropping them would be a success that is none.
func octal(m fs.FileMode) string {
	n := uint32(m & 0o7777)
	for bit, set := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			n |= set
		}
	}
	return strconv.FormatUint(uint64(n), 8)
}

// ErrTruncated is DecodeDir's last error when there were more entries than
// the limit.
var ErrTruncated = errors.New("the directory has more entries than the limit")

// Entry is a file as lstat(2) in the sandbox tells. Names and targets are the
// agent's: any bytes but NUL.
type Entry struct {
	Name    string
	Mode    fs.FileMode
	UID     uint32 // in the sandbox
	GID     uint32
	Size    int64
	ModTime time.Time
	Target  string // of a symbolic link
}

// recordReader reads records of a hostile sender.
type recordReader struct {
	r   *bufio.Reader
	buf [wire.RecMax]byte
}

func newRecordReader(r io.Reader) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, 4<<10)}
}

// next gives a record, valid until the next call. At RecEnd the error is
// io.EOF, or the errno; without it io.ErrUnexpectedEOF.
func (d *recordReader) next() (t wire.RecordType, body []byte, truncated bool, err error) {
	if _, err := io.ReadFull(d.r, d.buf[:wire.RecHead]); err != nil {
		return 0, nil, false, unexpected(err)
	}
	t, n, ok := wire.RecordHead(d.buf[:wire.RecHead])
	if !ok {
		return 0, nil, false, fmt.Errorf("record: %w", ErrHostile)
	}
	body = d.buf[:n]
	if _, err := io.ReadFull(d.r, body); err != nil {
		return 0, nil, false, unexpected(err)
	}
	if t != wire.RecEnd {
		return t, body, false, nil
	}
	r := wire.Body(body)
	no, truncated := syscall.Errno(r.U32()), r.Bool()
	switch {
	case !r.Done() || no > 4095:
		return 0, nil, false, fmt.Errorf("end record: %w", ErrHostile)
	case no != 0:
		return 0, nil, false, no
	}
	return t, nil, truncated, io.EOF
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// FileReader gives the bytes of ReadFile's output.
type FileReader struct {
	d    *recordReader
	left []byte
	err  error
}

// DecodeFile reads ReadFile's output. Read gives io.EOF only when the whole
// file came; a syscall.Errno is the sandbox's.
func DecodeFile(r io.Reader) *FileReader { return &FileReader{d: newRecordReader(r)} }

// Read implements io.Reader.
func (f *FileReader) Read(b []byte) (int, error) {
	for len(f.left) == 0 && f.err == nil {
		var t wire.RecordType
		t, f.left, _, f.err = f.d.next()
		if f.err == nil && t != wire.RecData {
			f.err = fmt.Errorf("record %d in a file: %w", t, ErrHostile)
		}
	}
	if f.err != nil {
		return 0, f.err
	}
	n := copy(b, f.left)
	f.left = f.left[n:]
	return n, nil
}

// FileWriter makes WriteFile's input.
type FileWriter struct {
	w   io.Writer
	err error
}

// NewFileWriter writes to w, which stays the caller's to close.
func NewFileWriter(w io.Writer) *FileWriter { return &FileWriter{w: w} }

// Write implements io.Writer.
func (f *FileWriter) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) && f.err == nil {
		n := min(len(b)-done, wire.RecMax-wire.RecHead)
		rec := wire.BeginRecord(make([]byte, 0, n+wire.RecHead), wire.RecData)
		rec.B = append(rec.B, b[done:done+n]...)
		if _, f.err = f.w.Write(wire.EndRecord(&rec)); f.err == nil {
			done += n
		}
	}
	return done, f.err
}

// Close says that the file is whole. Without it nothing is changed.
func (f *FileWriter) Close() error {
	if f.err != nil {
		return f.err
	}
	f.err = io.ErrClosedPipe
	rec := wire.BeginRecord(nil, wire.RecEnd)
	_, err := f.w.Write(wire.EndRecord(&rec))
	return err
}

// DecodeDir reads ListDir's output. It yields entries, and after them an
// error unless all went well: ErrTruncated, a syscall.Errno, or what was wrong
// with the stream. limit is ListDir's; more entries are a protocol error.
func DecodeDir(r io.Reader, limit int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		d := newRecordReader(r)
		for n := 0; ; n++ {
			t, body, truncated, err := d.next()
			if errors.Is(err, io.EOF) {
				if truncated {
					yield(Entry{}, ErrTruncated)
				}
				return
			}
			var e Entry
			if err == nil {
				e, err = entry(t, body)
			}
			if err == nil && (n >= limit || e.Name == "." || e.Name == ".." || strings.Contains(e.Name, "/") || len(e.Name) > wire.MaxName) {
				err = fmt.Errorf("directory entry %d of %d: %w", n+1, limit, ErrHostile)
			}
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// DecodeStat reads StatFile's output.
func DecodeStat(r io.Reader) (Entry, error) {
	d := newRecordReader(r)
	t, body, _, err := d.next()
	if err != nil {
		return Entry{}, unexpected(err)
	}
	e, err := entry(t, body)
	if err != nil {
		return Entry{}, err
	}
	if _, _, _, err = d.next(); err == nil {
		return Entry{}, fmt.Errorf("more than one record: %w", ErrHostile)
	}
	if !errors.Is(err, io.EOF) {
		return Entry{}, err
	}
	return e, nil
}

// DecodeEnd reads the output of an operation that gives nothing but success.
func DecodeEnd(r io.Reader) error {
	_, _, _, err := newRecordReader(r).next()
	switch {
	case err == nil:
		return fmt.Errorf("a record: %w", ErrHostile)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

func entry(t wire.RecordType, body []byte) (Entry, error) {
	r := wire.Body(body)
	m := wire.ReadEntry(&r)
	if t != wire.RecEntry || !r.Done() {
		return Entry{}, fmt.Errorf("directory entry: %w", ErrHostile)
	}
	return Entry{
		Name: m.Name, Mode: fileMode(m.Mode), UID: m.UID, GID: m.GID,
		Size: m.Size, ModTime: time.Unix(0, m.MTime), Target: m.Target,
	}, nil
}

// fileMode translates st_mode.
func fileMode(st uint32) fs.FileMode {
	m := fs.FileMode(st & 0o777)
	switch st & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFREG:
	default:
		m |= fs.ModeIrregular
	}
	for bit, set := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if st&bit != 0 {
			m |= set
		}
	}
	return m
}
