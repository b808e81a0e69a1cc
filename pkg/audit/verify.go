package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Finding is one thing that is wrong with a log, or worth to know.
type Finding struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"` // from 1
	// Offset is of the line's first byte in its file.
	Offset int64  `json:"offset"`
	Seq    uint64 `json:"seq,omitempty"` // of the record meant, 0 where it is not known
	What   string `json:"what"`
}

// String is "file:line: what".
func (f Finding) String() string {
	if f.File == "" {
		return f.What
	}
	return fmt.Sprintf("%s:%d (byte %d): %s", f.File, f.Line, f.Offset, f.What)
}

// Report is what Verify found.
type Report struct {
	// OK says that no record between First and SignedThrough was changed,
	// removed, added or moved, and that nothing follows.
	OK      bool   `json:"ok"`
	Files   int    `json:"files"`
	Bytes   int64  `json:"bytes"`
	Records uint64 `json:"records"` // heads and other records of the log's own included
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	// SignedThrough is the last record under a good signature.
	SignedThrough uint64    `json:"signed_through"`
	Since         time.Time `json:"since,omitzero"`
	Until         time.Time `json:"until,omitzero"`
	// Anchors is how many of the anchors given are in the log.
	Anchors  int       `json:"anchors"`
	Findings []Finding `json:"findings,omitempty"`
	Notes    []Finding `json:"notes,omitempty"`
}

// maxFindings bounds a report; a log that is wrong all over says so often enough.
const maxFindings = 100

// Source is one part of a log.
type Source struct {
	Name string
	io.ReaderAt
	Size int64
}

// OpenSources opens files of a log, or the files of directories, and gives
// them in the order of their first records. The caller closes them.
func OpenSources(paths ...string) (_ []Source, closeAll func(), err error) {
	var files []*os.File
	shut := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	defer func() {
		if err != nil {
			shut()
		}
	}()
	var names []string
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil {
			return nil, nil, err
		}
		if !st.IsDir() {
			names = append(names, p)
			continue
		}
		in, err := Files(p)
		if err != nil {
			return nil, nil, err
		}
		if len(in) == 0 {
			return nil, nil, fmt.Errorf("%s: no audit log here: no file %sNUMBER%s", p, filePrefix, fileSuffix)
		}
		names = append(names, in...)
	}
	type part struct {
		Source
		first uint64
	}
	var parts []part
	for _, p := range names {
		f, err := os.OpenFile(p, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
		st, err := f.Stat()
		if err != nil {
			return nil, nil, err
		}
		if !st.Mode().IsRegular() {
			return nil, nil, fmt.Errorf("%s: not a regular file", p)
		}
		first, _ := firstOf(filepath.Base(p))
		if first == 0 { // of another name: by what is in it
			_ = readLines(f, func(line []byte, _ int64, _ bool) error {
				o, _ := scan(line)
				first = o.seq
				return io.EOF
			})
		}
		parts = append(parts, part{Source{p, f, st.Size()}, first})
	}
	slices.SortStableFunc(parts, func(a, b part) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	out := make([]Source, 0, len(parts))
	for _, p := range parts {
		out = append(out, p.Source)
	}
	return out, shut, nil
}

// Verify reads a log from its first record that is there to its last. keys are
// the box's public keys, one in general; anchors are lines of heads that were
// kept elsewhere. It finds every record that was changed, removed, added or
// moved. It cannot tell a log cut just behind a head from one that ended there,
// unless an anchor is of a later head.
//
// The error is of reading or of an anchor that is none; what is wrong with
// the log is in the report.
func Verify(sources []Source, keys []Public, anchors ...[]byte) (*Report, error) {
	v := &verifier{keys: map[string]Public{}, anchors: map[uint64][]byte{}, drops: map[uint64]DropInfo{}}
	for _, k := range keys {
		v.keys[k.ID()] = k
	}
	for _, a := range anchors {
		if err := v.anchor(a); err != nil {
			return nil, err
		}
	}
	for _, s := range sources {
		v.file, v.line = s.Name, 0
		v.r.Files++
		if err := readLines(io.NewSectionReader(s, 0, s.Size), v.record); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		v.r.Bytes += s.Size
	}
	v.end()
	if len(v.badRuns) > 0 {
		if err := v.locate(sources); err != nil {
			return nil, err
		}
	}
	v.r.OK = len(v.r.Findings) == 0
	return &v.r, nil
}

// mark is a head, for later.
type mark struct {
	Finding
	text []byte
}

type verifier struct {
	r       Report
	keys    map[string]Public
	anchors map[uint64][]byte
	drops   map[uint64]DropInfo // by the last record dropped
	file    string
	line    int

	seq   uint64 // of the last record
	hash  Hash   // of its line
	where Finding
	sure  bool   // seq and hash are of a good line
	first Hash   // what the first record says of the one before
	until []byte // the last record's time

	head    mark      // the last one, its signature not looked at yet
	headKey string    // the key that it names
	badRuns []Finding // heads whose signature is not good
	after   int       // records since the last head
}

func (v *verifier) anchor(line []byte) error {
	line = bytes.TrimSpace(line)
	r, err := Parse(line)
	if err != nil || r.Kind != Head {
		return fmt.Errorf("anchor: %w: it is a line that creel audit anchor prints", ErrBadRecord)
	}
	if _, known, good := checkHead(line, v.keys); !known || !good {
		return fmt.Errorf("anchor of record %d: not signed by a key that was given (it names %s)", r.Seq, r.Key)
	}
	v.anchors[r.Seq] = slices.Clone(line)
	return nil
}

func (v *verifier) find(at Finding, format string, args ...any) {
	at.What = fmt.Sprintf(format, args...)
	if len(v.r.Findings) < maxFindings {
		v.r.Findings = append(v.r.Findings, at)
	}
}

func (v *verifier) note(at Finding, format string, args ...any) {
	at.What = fmt.Sprintf(format, args...)
	if len(v.r.Notes) < maxFindings {
		v.r.Notes = append(v.r.Notes, at)
	}
}

// record takes one line.
func (v *verifier) record(line []byte, off int64, whole bool) error {
	v.line++
	at := Finding{File: v.file, Line: v.line, Offset: off}
	o, ok := scan(line)
	switch {
	case !whole:
		v.after++
		v.find(at, "the file ends within a record, after %d bytes of it: it was cut, or creeld was killed here and has not started since", len(line))
		v.sure = false
		return nil
	case !ok:
		v.after++
		v.find(at, "not a record: changed, or not written by creeld")
		v.sure = false
		return nil
	}
	at.Seq = o.seq
	v.chain(at, o)
	if v.line == 1 {
		if first, ok := firstOf(filepath.Base(v.file)); ok && first != o.seq {
			v.find(at, "the file begins with record %d, and by its name with %d", o.seq, first)
		}
	}
	v.seq, v.hash, v.where, v.sure = o.seq, hashOf(line), at, true
	v.r.Records++
	v.r.Last = o.seq
	if v.until = append(v.until[:0], o.time...); v.r.Records == 1 {
		v.r.Since, _ = time.Parse(timeLayout, string(o.time))
	}
	v.after++
	if a, ok := v.anchors[o.seq]; ok {
		if bytes.Equal(a, line) {
			v.r.Anchors++
		} else {
			v.find(at, "record %d is not the head that the anchor is: the log was written anew from here or before, or is of another box", o.seq)
		}
		delete(v.anchors, o.seq)
	}
	v.own(at, o, line)
	return nil
}

// chain holds a record against the one before.
func (v *verifier) chain(at Finding, o outline) {
	if v.r.Records == 0 {
		v.r.First, v.first = o.seq, o.prev
		if o.seq == 1 && (o.kind != Begin || o.prev != Hash{}) {
			v.find(at, "record 1 does not begin a chain")
		}
		if len(v.r.Findings) > 0 {
			return // something before it is no record
		}
		return
	}
	switch {
	case o.seq > v.seq+1 && v.sure:
		v.find(at, "%s missing before record %d", span(v.seq+1, o.seq-1), o.seq)
	case o.seq <= v.seq:
		v.find(at, "record %d comes after record %d: moved, or written twice", o.seq, v.seq)
	case v.sure && o.prev != v.hash:
		v.find(v.where, "record %d was changed: record %d has another hash of it", v.seq, o.seq)
	case !v.sure && o.seq > v.seq+2:
		v.find(at, "%s missing or damaged before record %d", span(v.seq+1, o.seq-1), o.seq)
	}
}

func span(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is", from)
	}
	return fmt.Sprintf("records %d to %d are", from, to)
}

// own looks at the log's own records.
func (v *verifier) own(at Finding, o outline, line []byte) {
	switch o.kind {
	case Intent, Outcome, Fact:
		return
	case Head:
		v.newest(at, line)
		return
	case Begin, Drop, Seal:
	}
	r, err := Parse(line)
	if err != nil {
		v.find(at, "record %d: %v", o.seq, err)
		return
	}
	switch {
	case o.kind == Begin && o.seq != 1:
		v.find(at, "record %d begins another chain", o.seq)
	case o.kind == Drop && r.Drop != nil:
		v.drops[r.Drop.Last] = *r.Drop
	case o.kind == Seal && r.Seal != nil:
		v.seal(at, *r.Seal)
	}
}

// newest takes a head. Only the last of each key is looked at: it is of all
// that came before it, and so are older ones' signatures.
func (v *verifier) newest(at Finding, line []byte) {
	_, rest, ok := bytes.Cut(line, []byte(`,"key":"`))
	key, _, quoted := bytes.Cut(rest, []byte(`"`))
	if !ok || !quoted || len(key) == 0 {
		v.find(at, "head %d names no key", at.Seq)
		return
	}
	if v.headKey != "" && string(key) != v.headKey {
		v.judge()
	}
	v.head, v.headKey, v.after = mark{at, append(v.head.text[:0], line...)}, string(key), 0
}

func (v *verifier) seal(at Finding, s SealInfo) {
	if s.Heads > 0 {
		v.find(at, "creeld found %d bytes before record %d damaged and cut them off, with %d signed heads among them: acknowledged records are lost here (set aside as %q)", s.Bytes, at.Seq, s.Heads, s.Aside)
		return
	}
	v.note(at, "creeld cut off %d bytes (%d whole records) before record %d that nobody had been told of: it was killed while it wrote, or they were added", s.Bytes, s.Records, at.Seq)
}

// judge looks at the signature of the last head.
func (v *verifier) judge() {
	key, known, good := checkHead(v.head.text, v.keys)
	switch {
	case v.headKey == "":
	case key == "":
		v.find(v.head.Finding, "record %d is no head as creeld writes it", v.head.Seq)
	case !known:
		v.find(v.head.Finding, "record %d is signed by key %s, which was not given", v.head.Seq, key)
	case !good:
		v.badRuns = append(v.badRuns, v.head.Finding)
	default:
		v.r.SignedThrough = v.head.Seq
	}
}

// end looks at what is seen only when all is read.
func (v *verifier) end() {
	v.r.Until, _ = time.Parse(timeLayout, string(v.until))
	v.judge()
	switch {
	case v.r.Records == 0:
		v.find(Finding{}, "there is no record")
	case v.headKey == "":
		v.find(Finding{}, "there is no signed head: nothing of this can be trusted")
	case v.after > 0 && v.sure:
		v.find(v.where, "%d records follow the last signed head, record %d: the log was cut within a commit, or they were added", v.after, v.head.Seq)
	}
	if v.r.First > 1 {
		d, ok := v.drops[v.r.First-1]
		switch {
		case !ok:
			v.find(Finding{}, "records 1 to %d are missing, and no record says that creeld dropped them", v.r.First-1)
		case d.Hash != v.first:
			v.find(Finding{}, "record %d is not the one that creeld dropped: record %d has another hash of it", v.r.First-1, v.r.First)
		default:
			v.note(Finding{}, "records 1 to %d were dropped by creeld, as configured", v.r.First-1)
		}
	}
	for seq := range v.anchors {
		switch {
		case seq > v.r.Last:
			v.find(Finding{}, "the log ends with record %d, and the anchor is of record %d: %d or more records were cut off", v.r.Last, seq, seq-v.r.Last)
		case seq < v.r.First:
			v.note(Finding{}, "the anchor is of record %d, which was dropped; it says nothing of what is here", seq)
		default:
			v.find(Finding{}, "record %d, which the anchor is of, is missing", seq)
		}
	}
}

// locate finds between which heads the records were written anew by somebody
// without the key: it looks at every signature.
func (v *verifier) locate(sources []Source) error {
	var lastGood uint64
	told := false
	for _, s := range sources {
		line := 0
		err := readLines(io.NewSectionReader(s, 0, s.Size), func(text []byte, off int64, whole bool) error {
			line++
			o, ok := scan(text)
			if !ok || !whole || o.kind != Head {
				return nil
			}
			_, known, good := checkHead(text, v.keys)
			switch {
			case good:
				lastGood = o.seq
			case known && !told:
				told = true
				v.find(Finding{File: s.Name, Line: line, Offset: off, Seq: o.seq},
					"the signature of head %d is not good: a record from %d to %d was changed and all after it written anew", o.seq, lastGood+1, o.seq)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if !told {
		return errors.New("the log was changed while it was read")
	}
	v.r.SignedThrough = min(v.r.SignedThrough, lastGood)
	return nil
}
