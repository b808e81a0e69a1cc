package audit_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/boxkey"
)

var (
	boxKey   = boxkey.New([32]byte{1})
	otherKey = boxkey.New([32]byte{2})
	boxKeys  = []audit.Public{boxKey.Public()}
)

func options(dir string) audit.Options {
	return audit.Options{Dir: dir, Key: boxKey, Public: boxKey.Public(), Retry: time.Hour, Reserve: 64 << 10}
}

func open(t *testing.T, o audit.Options) *audit.Log {
	t.Helper()
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func entry(i int) audit.Entry {
	exit := i
	return audit.Entry{
		Kind: audit.Intent, Action: "sandbox.spawn", Op: fmt.Sprint("op-", i),
		Who:   &audit.Who{UID: 1000, GID: 1000, Groups: []uint32{4, 27}, PID: 4242, Exe: "/usr/bin/node", LoginUID: 1000, Via: "efgh"},
		Agent: "coder", Sandbox: "abcd", Object: "base", Command: []string{"sh", "-c", "echo \x1b[31m\"hi\"\n\u202e\U0001f980\xff"},
		Asked: map[string]string{"b": "2", "a": "1"}, Decided: map[string]string{"profile": "default"},
		Digests: map[string]string{"spec": "sha256:00"}, Result: &audit.Result{Code: "ok", Exit: &exit, Reason: "exited"},
	}
}

func commit(t *testing.T, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Commit(t.Context(), entry(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func verify(t *testing.T, dir string, anchors ...[]byte) *audit.Report {
	t.Helper()
	return verifyWith(t, boxKeys, dir, anchors...)
}

func verifyWith(t *testing.T, keys []audit.Public, dir string, anchors ...[]byte) *audit.Report {
	t.Helper()
	src, done, err := audit.OpenSources(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	r, err := audit.Verify(src, keys, anchors...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustOK(t *testing.T, r *audit.Report) {
	t.Helper()
	if !r.OK || r.SignedThrough != r.Last {
		t.Fatalf("not verified, signed through %d of %d: %v", r.SignedThrough, r.Last, r.Findings)
	}
}

func text(t *testing.T, dir string) []byte {
	t.Helper()
	paths, err := audit.Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

func lines(b []byte) [][]byte {
	return bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, options(dir))
	want := entry(3)
	want.Time = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	if err := l.Commit(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	all := lines(text(t, dir))
	if len(all) != 4 { // begin, head, intent, head
		t.Fatalf("%d lines, want 4:\n%s", len(all), text(t, dir))
	}
	line := bytes.TrimSuffix(all[2], []byte("\n"))
	for _, b := range line {
		if b < 0x20 || b > 0x7e {
			t.Fatalf("byte %#x in %s", b, line)
		}
	}
	r, err := audit.Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	want.Command = []string{"sh", "-c", strings.ToValidUTF8(want.Command[2], "\ufffd")}
	if diff := cmp.Diff(want, r.Entry); diff != "" {
		t.Errorf("entry changed (-want +got):\n%s", diff)
	}
	mustOK(t, verify(t, dir, l.HeadLine()))
	st, err := os.Stat(filepath.Join(dir, "audit-00000000000000000001.jsonl"))
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, error %v, want 0600", st.Mode(), err)
	}
}

// TestGoldenLine holds the bytes that docs/audit.md describes.
func TestGoldenLine(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := open(t, options(dir))
	e := entry(0)
	e.Time = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	if err := l.Commit(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	line := string(lines(text(t, dir))[2])
	i := strings.Index(line, `"prev":"`) + len(`"prev":"`)
	got := line[:i] + line[i+64:]
	want := `{"seq":3,"time":"2026-01-02T03:04:05.000000006Z","prev":"","kind":"intent","action":"sandbox.spawn","op":"op-0",` +
		`"who":{"uid":1000,"gid":1000,"groups":[4,27],"pid":4242,"exe":"/usr/bin/node","login_uid":1000,"via":"efgh"},"agent":"coder","sandbox":"abcd","object":"base",` +
		`"command":["sh","-c","echo \u001b[31m\"hi\"\u000a\u202e\ud83e\udd80\ufffd"],"asked":{"a":"1","b":"2"},"decided":{"profile":"default"},` +
		`"digests":{"spec":"sha256:00"},"result":{"code":"ok","exit":0,"reason":"exited"}}` + "\n"
	if got != want {
		t.Errorf("line\n%swant\n%s", got, want)
	}
}

func TestBounds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, options(dir))
	big := strings.Repeat("\x00\U0001f980", 1<<16)
	m := map[string]string{}
	for i := range 1000 {
		m[fmt.Sprint(i, big)] = big
	}
	e := audit.Entry{
		Kind: audit.Fact, Action: big, Op: big, Agent: big, Sandbox: big, Object: big, Asked: m, Decided: m, Digests: m, Detail: m,
		Who: &audit.Who{Groups: make([]uint32, 65536), Exe: big}, Result: &audit.Result{Code: big, Message: big, Reason: big},
	}
	for range 10_000 {
		e.Command = append(e.Command, big)
	}
	if err := l.Commit(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	all := lines(text(t, dir))
	if n := len(all[2]); n > audit.MaxLine {
		t.Errorf("a record of %d bytes, more than %d", n, audit.MaxLine)
	}
	if _, err := audit.Parse(bytes.TrimSuffix(all[2], []byte("\n"))); err != nil {
		t.Error(err)
	}
	mustOK(t, verify(t, dir))
}

func TestGroupCommit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	slow := &disk{gate: make(chan struct{})}
	opened := make(chan *audit.Log)
	go func() { opened <- open(t, options(dir).OnDisk(slow.open)) }()
	slow.gate <- struct{}{} // the new file
	slow.gate <- struct{}{} // its first records
	l := <-opened
	before := slow.syncs.Load()
	first, last := make(chan error, 1), make(chan error, 1)
	go func() { first <- l.Commit(t.Context(), entry(0)) }()
	slow.gate <- struct{}{} // it is on its way, or just done
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	go func() { last <- l.Commit(t.Context(), entry(0)) }()
	for slow.waiting.Load() == 0 {
		runtime.Gosched()
	}
	for i := range 100 {
		l.Later(entry(i)) // all while one is being written
	}
	slow.gate <- struct{}{}
	if err := <-last; err != nil {
		t.Fatal(err)
	}
	slow.gate <- struct{}{}
	close(slow.gate)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := slow.syncs.Load() - before; n != 3 {
		t.Errorf("102 records took %d syncs, want 3", n)
	}
	r := verify(t, dir, l.HeadLine())
	mustOK(t, r)
	if r.Records != 2+102+3 {
		t.Errorf("%d records, want 107", r.Records)
	}
}

func TestLaterIsCommitted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	heads := make(chan string, 100)
	o := options(dir)
	o.OnHead = func(line []byte) { heads <- string(line) }
	l := open(t, o)
	<-heads // of the start
	l.Later(entry(1))
	<-heads // nobody waited for it, and it came
	if r := verify(t, dir, l.HeadLine()); r.Last != 4 {
		t.Errorf("last record %d, want 4", r.Last)
	}
}

func TestRotationAndRetention(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	o := options(dir)
	o.MaxFile, o.Keep = 3000, 3
	l := open(t, o)
	var anchors [][]byte
	for i := range 60 {
		commit(t, l, 1)
		if i == 0 || i == 58 {
			anchors = append(anchors, l.HeadLine())
		}
	}
	paths, err := audit.Files(dir)
	if err != nil || len(paths) < 2 || len(paths) > 4 {
		t.Fatalf("%d files, error %v, want about 3", len(paths), err)
	}
	r := verify(t, dir, anchors...)
	mustOK(t, r)
	if r.First == 1 || r.Anchors != 1 || len(r.Notes) != 2 {
		t.Errorf("first %d, %d anchors found, notes %v: want a first above 1, 1, and notes of what was dropped and of the old anchor", r.First, r.Anchors, r.Notes)
	}
	// A start goes on with the same chain.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	commit(t, l, 1)
	mustOK(t, verify(t, dir, anchors[1], l.HeadLine()))
	// Any file that somebody else removes is missed.
	paths, _ = audit.Files(dir)
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, dir, l.HeadLine()); r.OK {
			t.Errorf("%s removed, and not missed", filepath.Base(p))
		}
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOK(t, verify(t, dir, l.HeadLine()))
}

func TestKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, options(dir))
	commit(t, l, 2)
	anchor := l.HeadLine()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verifyWith(t, []audit.Public{otherKey.Public()}, dir); r.OK {
		t.Error("verified with another key")
	}
	if _, err := audit.Verify(nil, []audit.Public{otherKey.Public()}, anchor); err == nil {
		t.Error("an anchor of another key was taken")
	}
	// A box with a new key goes on, and both keys are needed from then on.
	o := options(dir)
	o.Key, o.Public = otherKey, otherKey.Public()
	l = open(t, o)
	commit(t, l, 2)
	mustOK(t, verifyWith(t, []audit.Public{boxKey.Public(), otherKey.Public()}, dir, anchor))
	if r := verify(t, dir); r.OK {
		t.Error("heads of a key that was not given were taken")
	}
}

func TestCommitAfterClose(t *testing.T) {
	l := open(t, options(filepath.Join(t.TempDir(), "audit")))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(context.Background(), entry(1)); err == nil { //nolint:usetesting // the log is closed whatever the context
		t.Error("a closed log takes records")
	}
}

func TestRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	o := options(dir)
	o.MaxFile = 2000
	l := open(t, o)
	commit(t, l, 10)
	var seqs []uint64
	read := func(r audit.Range) {
		seqs = nil
		if err := l.Read(t.Context(), r, func(line []byte) error {
			rec, err := audit.Parse(line)
			if err == nil {
				seqs = append(seqs, rec.Seq)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	read(audit.Range{})
	if len(seqs) != 22 || seqs[0] != 1 || seqs[21] != 22 {
		t.Errorf("read %v, want 1 to 22", seqs)
	}
	read(audit.Range{After: 20})
	if len(seqs) != 2 {
		t.Errorf("read %v, want 21 and 22", seqs)
	}
	read(audit.Range{Since: time.Now().Add(time.Hour)})
	if len(seqs) != 0 {
		t.Errorf("read %v from the future", seqs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan uint64)
	ended := make(chan error, 1)
	go func() {
		ended <- l.Read(ctx, audit.Range{After: 22, Follow: true}, func(line []byte) error {
			rec, err := audit.Parse(line)
			if err == nil {
				got <- rec.Seq
			}
			return err
		})
	}()
	commit(t, l, 1)
	if a, b := <-got, <-got; a != 23 || b != 24 {
		t.Errorf("followed %d and %d, want 23 and 24", a, b)
	}
	cancel()
	<-ended
}

func TestOpenSourcesRefuses(t *testing.T) {
	empty := t.TempDir()
	for _, path := range []string{empty, filepath.Join(empty, "none"), os.DevNull} {
		if src, done, err := audit.OpenSources(path); err == nil || src != nil || done != nil {
			t.Errorf("%s: %v, %v", path, src, err)
		}
	}
}
