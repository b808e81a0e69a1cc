package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/creel-sandbox/creel/pkg/audit"
)

// sample is a whole log of single commits and of batches, as lines, and its
// last head.
func sample(t *testing.T, commits int) (all [][]byte, anchor []byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, options(dir))
	for i := range commits {
		for range i % 3 {
			l.Later(entry(i))
		}
		commit(t, l, 1)
	}
	anchor = l.HeadLine()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustOK(t, verify(t, dir, anchor))
	for _, line := range lines(text(t, dir)) {
		all = append(all, bytes.TrimSuffix(line, []byte("\n")))
	}
	return all, anchor
}

func check(t *testing.T, all [][]byte, anchors ...[]byte) *audit.Report {
	t.Helper()
	var b []byte
	for _, l := range all {
		b = append(append(b, l...), '\n')
	}
	return checkText(t, b, anchors...)
}

func checkText(t *testing.T, b []byte, anchors ...[]byte) *audit.Report {
	t.Helper()
	r, err := audit.Verify([]audit.Source{{Name: "log", ReaderAt: bytes.NewReader(b), Size: int64(len(b))}}, boxKeys, anchors...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func isHead(line []byte) bool { return bytes.Contains(line, []byte(`"kind":"head"`)) }

// found says whether the report is against the log and points at or beside
// record seq.
func found(r *audit.Report, seq int) bool {
	return !r.OK && slices.ContainsFunc(r.Findings, func(f audit.Finding) bool {
		return int(f.Seq) >= seq-1 && int(f.Seq) <= seq+1 || f.Line >= seq-1 && f.Line <= seq+1
	})
}

// TestEveryRecord changes, removes, swaps, doubles, adds and cuts at every
// record of a log and sees each found, where it was done.
func TestEveryRecord(t *testing.T) {
	all, anchor := sample(t, 8)
	n := len(all)
	with := func(fn func(c [][]byte) [][]byte) [][]byte {
		c := make([][]byte, 0, n+1)
		for _, l := range all {
			c = append(c, bytes.Clone(l))
		}
		return fn(c)
	}
	for i := range n {
		seq := i + 1
		ops := map[string]func(c [][]byte) [][]byte{
			"removed": func(c [][]byte) [][]byte { return slices.Delete(c, i, i+1) },
			"doubled": func(c [][]byte) [][]byte { return slices.Insert(c, i, c[i]) },
			"emptied": func(c [][]byte) [][]byte { c[i] = nil; return c },
			"added":   func(c [][]byte) [][]byte { return slices.Insert(c, i, []byte("{}")) },
			"padded":  func(c [][]byte) [][]byte { c[i] = append(c[i], ' '); return c },
		}
		if i+1 < n {
			ops["swapped"] = func(c [][]byte) [][]byte { c[i], c[i+1] = c[i+1], c[i]; return c }
		}
		for name, fn := range ops {
			want := seq
			r := check(t, with(fn))
			if name == "removed" && seq == n {
				// Just behind a record that is no head: a cut within a commit.
				want = seq - 1
			}
			if !found(r, want) {
				t.Errorf("record %d %s: OK %v, findings %v", seq, name, r.OK, r.Findings)
			}
		}
		// A cut just behind a head is a whole log, and only an anchor of a
		// later head tells; every other cut tells of itself.
		cut := all[:i]
		r, anchored := check(t, cut), check(t, cut, anchor)
		if wholeLog := i > 0 && isHead(all[i-1]); r.OK != wholeLog {
			t.Errorf("cut before record %d: OK %v, want %v: %v", seq, r.OK, wholeLog, r.Findings)
		}
		if anchored.OK {
			t.Errorf("cut before record %d, with an anchor: not found", seq)
		}
	}
}

// TestEveryByte changes each byte of a log to others.
func TestEveryByte(t *testing.T) {
	all, anchor := sample(t, 1)
	whole := append(bytes.Join(all, []byte("\n")), '\n')
	line := 1
	for i := range whole {
		if i > 0 && whole[i-1] == '\n' {
			line++
		}
		for _, to := range []byte{whole[i] ^ 1, whole[i] ^ 0x20, '\n'} {
			if to == whole[i] {
				continue
			}
			b := bytes.Clone(whole)
			b[i] = to
			if r := checkText(t, b); !found(r, line) {
				t.Fatalf("byte %d (line %d) %q to %q: OK %v, findings %v", i, line, whole[i], to, r.OK, r.Findings)
			}
		}
		if r := checkText(t, whole[:i], anchor); r.OK {
			t.Fatalf("cut at byte %d, with an anchor: not found", i)
		}
		head := i > 0 && whole[i-1] == '\n' && isHead(all[line-2])
		if r := checkText(t, whole[:i]); r.OK != head {
			t.Fatalf("cut at byte %d: OK %v, want %v", i, r.OK, head)
		}
	}
}

// rechain writes every link anew, as somebody can who has no key.
func rechain(t *testing.T, all [][]byte) [][]byte {
	t.Helper()
	var out [][]byte
	prev := "0000000000000000000000000000000000000000000000000000000000000000"
	for _, l := range all {
		i := bytes.Index(l, []byte(`"prev":"`)) + 8
		l = slices.Concat(l[:i], []byte(prev), l[i+64:])
		out = append(out, l)
		prev = fmt.Sprintf("%x", sum(l))
	}
	return out
}

func TestWrittenAnew(t *testing.T) {
	all, anchor := sample(t, 8)
	mustOK(t, check(t, rechain(t, all)))
	for i := range all {
		c := slices.Clone(all)
		if c[i] = bytes.Replace(c[i], []byte("coder"), []byte("Coder"), 1); bytes.Equal(c[i], all[i]) {
			c[i] = bytes.Replace(c[i], []byte(`"time":"2`), []byte(`"time":"3`), 1)
		}
		r := check(t, rechain(t, c))
		if r.OK || int(r.SignedThrough) > i {
			t.Errorf("record %d changed and the rest written anew: OK %v, signed through %d, %v", i+1, r.OK, r.SignedThrough, r.Findings)
		}
		// Without the heads that would tell, the end is not signed.
		forged := rechain(t, c)
		last := len(forged)
		for last > 0 && (last > i && isHead(forged[last-1])) {
			last--
		}
		if r := check(t, forged[:max(last, i+1)], anchor); r.OK {
			t.Errorf("record %d forged at the end: not found", i+1)
		}
	}
}

// TestSignatureIsTheLines: a head cannot be given another's signature, nor
// another form of its own.
func TestSignatureIsTheLines(t *testing.T) {
	all, _ := sample(t, 8)
	var heads []int
	for i, l := range all {
		if isHead(l) {
			heads = append(heads, i)
		}
	}
	a, b := heads[len(heads)-2], heads[len(heads)-1]
	cutSig := func(l []byte) ([]byte, []byte) {
		i := bytes.LastIndex(l, []byte(`,"sig":"`))
		return l[:i], l[i:]
	}
	front, _ := cutSig(all[b])
	_, sig := cutSig(all[a])
	c := slices.Clone(all)
	c[b] = slices.Concat(front, sig)
	if r := check(t, c); !found(r, b+1) {
		t.Errorf("another head's signature: %v", r.Findings)
	}
	var doc struct {
		Sig string `json:"sig"`
	}
	if err := json.Unmarshal(all[b], &doc); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(doc.Sig)
	if err != nil {
		t.Fatal(err)
	}
	c[b] = slices.Concat(front, []byte(`,"sig":"`+base64.RawStdEncoding.EncodeToString(raw)+`"}`))
	if r := check(t, c); !found(r, b+1) {
		t.Errorf("another form of the signature: %v", r.Findings)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"seq":3,"time":"2026-01-02T03:04:05.000000006Z","prev":"0000000000000000000000000000000000000000000000000000000000000000","kind":"fact","action":"x"}`))
	f.Add([]byte(`{"seq":3,"time":"2026-01-02T03:04:05.000000006Z","prev":"0000000000000000000000000000000000000000000000000000000000000000","kind":"head","key":"00","sig":"AA=="}`))
	f.Add([]byte(`{"seq":1,"seq":2}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := audit.Parse(line)
		if (err == nil) != (r != nil) {
			t.Fatalf("record and error disagree: %v, %v", r, err)
		}
		if err == nil && bytes.ContainsFunc(line, func(c rune) bool { return c < 0x20 || c > 0x7e }) {
			t.Errorf("a record with bytes beyond printable ASCII: %q", line)
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{}\n"), 0, 0)
	f.Add([]byte(nil), 10, 20)
	var all [][]byte
	f.Fuzz(func(t *testing.T, put []byte, from, to int) {
		if all == nil {
			all, _ = sample(t, 8)
		}
		whole := append(bytes.Join(all, []byte("\n")), '\n')
		from, to = min(max(from, 0), len(whole)), min(max(to, 0), len(whole))
		if to < from {
			from, to = to, from
		}
		b := slices.Concat(whole[:from], put, whole[to:])
		r := checkText(t, b)
		// What is good is the log itself or a part from its begin to a head.
		if r.OK && !bytes.HasPrefix(whole, b) {
			t.Errorf("%q for %d to %d was not found", put, from, to)
		}
	})
}

func sum(b []byte) [32]byte { return sha256.Sum256(b) }
