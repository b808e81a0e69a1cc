package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// file is what the log needs of one of its files; tests make it fail.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync is fdatasync(2).
	Sync() error
	Truncate(size int64) error
	// Allocate gives blocks beyond the end without moving it, see
	// FALLOC_FL_KEEP_SIZE in fallocate(2).
	Allocate(off, n int64) error
}

type diskFile struct{ *os.File }

func (f diskFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f diskFile) Allocate(off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// openFile opens for reading and writing; fresh makes an empty one.
func openFile(path string, fresh bool) (file, error) {
	flags := os.O_RDWR | unix.O_CLOEXEC | unix.O_NOFOLLOW
	if fresh {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

const (
	filePrefix = "audit-"
	fileSuffix = ".jsonl"
)

// fileName is the name of the file whose first record is seq.
func fileName(seq uint64) string { return fmt.Sprintf("%s%020d%s", filePrefix, seq, fileSuffix) }

// firstOf is the first record of a file of that name.
func firstOf(name string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, filePrefix)
	if !ok {
		return 0, false
	}
	if s, ok = strings.CutSuffix(s, fileSuffix); !ok || len(s) != 20 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n > 0
}

// Files are the paths of a directory's log files, oldest first.
func Files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name, and so by number
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if _, ok := firstOf(e.Name()); ok {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

func firstsOf(dir string) ([]uint64, error) {
	paths, err := Files(dir)
	var out []uint64
	for _, p := range paths {
		n, _ := firstOf(filepath.Base(p))
		out = append(out, n)
	}
	return out, err
}

// readLines gives each line of r to fn, without its newline, with the offset
// where it begins; whole is false for a last one that has no newline. A line
// longer than MaxLine comes as its first MaxLine+1 bytes. line is valid during
// the call only.
func readLines(r io.Reader, fn func(line []byte, off int64, whole bool) error) error {
	br := bufio.NewReaderSize(r, MaxLine+2)
	var off int64
	for {
		line, err := br.ReadSlice('\n')
		n := int64(len(line))
		switch {
		case err == nil:
			err = fn(line[:len(line)-1], off, true)
		case errors.Is(err, io.EOF) && n == 0:
			return nil
		case errors.Is(err, io.EOF):
			return fn(line, off, false)
		case errors.Is(err, bufio.ErrBufferFull):
			head := slices.Clone(line[:MaxLine+1])
			var whole bool
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = br.ReadSlice('\n')
				n += int64(len(line))
			}
			if whole = err == nil; err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			err = fn(head, off, whole)
		}
		if err != nil {
			return err
		}
		off += n
	}
}

// prevOf is what the first record of a file says of the one before it.
func prevOf(path string) (Hash, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Hash{}, err
	}
	defer func() { _ = f.Close() }()
	var o outline
	ok := false
	err = readLines(f, func(line []byte, _ int64, whole bool) error {
		if o, ok = scan(line); !ok || !whole {
			return fmt.Errorf("%s: %w", path, ErrBadRecord)
		}
		return io.EOF
	})
	if ok && errors.Is(err, io.EOF) {
		err = nil
	}
	return o.prev, err
}

// prepareDir makes the directory, and refuses one that others can write.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int64(st.Uid) != int64(os.Geteuid()) || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: the audit log's directory must belong to uid %d and be writable by nobody else; it has mode %04o and uid %d", dir, os.Geteuid(), st.Mode&0o7777, st.Uid)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// isFull says whether an error is for want of space.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

func gone(err error) bool { return err == nil || errors.Is(err, fs.ErrNotExist) }
