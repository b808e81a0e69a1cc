package idmap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// table is a file of /etc that gives ids away.
type table struct {
	file     string
	fields   []int // of single ids
	start    int   // of a first id and a count; -1 when there is none
	optional bool
}

var tables = []table{
	{file: "passwd", fields: []int{2, 3}, start: -1}, // passwd(5)
	{file: "group", fields: []int{2}, start: -1},     // group(5)
	{file: "subuid", start: 1, optional: true},       // subuid(5)
	{file: "subgid", start: 1, optional: true},       // subgid(5)
}

// CheckHost refuses the ids first..last if a user, a group or a subordinate
// range of this host has one of them: a sandbox would then own that user's
// files. etc is the host's /etc. Users of directory services are not listed in
// files and are not seen here. All overlaps are reported at once.
func CheckHost(etc fs.FS, first, last uint32) error {
	errs := []error{checkBounds(first, last)}
	for _, t := range tables {
		f, err := etc.Open(t.file)
		if t.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("who has which ids: %w", err))
			continue
		}
		errs = append(errs, t.check(f, first, last))
		_ = f.Close()
	}
	return errors.Join(errs...)
}

func (t table) check(r io.Reader, first, last uint32) error {
	var errs []error
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20) // a group may list thousands of members on one line
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.ContainsRune("#+-", rune(line[0])) {
			continue // comments, and NIS entries, which carry no ids of their own
		}
		if err := t.checkLine(line, first, last); err != nil {
			errs = append(errs, fmt.Errorf("/etc/%s line %d: %w", t.file, n, err))
		}
	}
	if err := sc.Err(); err != nil {
		errs = append(errs, fmt.Errorf("/etc/%s: %w", t.file, err))
	}
	return errors.Join(errs...)
}

func (t table) checkLine(line string, first, last uint32) error {
	f := strings.Split(line, ":")
	number := func(i int) (uint64, error) {
		if i >= len(f) {
			return 0, fmt.Errorf("%q has too few fields; correct it", line)
		}
		v, err := strconv.ParseUint(f[i], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%q is not an id; correct it", f[i])
		}
		return v, nil
	}
	clash := func(lo, hi uint64) error {
		if lo > uint64(last) || hi < uint64(first) {
			return nil
		}
		return fmt.Errorf("%s has ids %d to %d, within creel's %d to %d; set ids.first and ids.last to a free range", f[0], lo, hi, first, last)
	}
	for _, i := range t.fields {
		v, err := number(i)
		if err != nil {
			return err
		}
		if err := clash(v, v); err != nil {
			return err
		}
	}
	if t.start < 0 {
		return nil
	}
	start, err := number(t.start)
	if err != nil {
		return err
	}
	count, err := number(t.start + 1)
	if err != nil || count == 0 {
		return err
	}
	return clash(start, start+count-1)
}
