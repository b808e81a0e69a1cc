package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/audit"
)

// ops are the op fields of the records that are there, in their order.
func ops(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	for _, line := range lines(text(t, dir)) {
		if r, err := audit.Parse(bytes.TrimSuffix(line, []byte("\n"))); err == nil && r.Op != "" {
			out = append(out, r.Op)
		}
	}
	return strings.Join(out, " ")
}

func named(op string) audit.Entry {
	return audit.Entry{Kind: audit.Intent, Action: "x", Op: op, Asked: map[string]string{"pad": strings.Repeat("p", 700)}}
}

// TestFailingDisk: what fails stops new work, loses nothing that was
// acknowledged, keeps what must be recorded, and ends by itself.
func TestFailingDisk(t *testing.T) {
	tests := []struct {
		name string
		bad  func(*disk)
	}{
		{"write", func(d *disk) { d.writeErr = unix.EIO }},
		{"short write", func(d *disk) { d.writeErr, d.shortWrite = unix.ENOSPC, 300 }},
		{"fsync", func(d *disk) { d.syncErr = unix.EIO }},
		{"fsync that drops pages", func(d *disk) { d.syncErr, d.lossy = unix.EIO, true }},
		{"fsync for want of space", func(d *disk) { d.syncErr, d.lossy = unix.ENOSPC, true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, d := filepath.Join(t.TempDir(), "audit"), &disk{}
			var told []error
			o := options(dir).OnDisk(d.open)
			o.OnDown = func(err error) { told = append(told, err) }
			l := open(t, o)
			for _, op := range []string{"a", "b", "c", "d", "e", "f", "g"} {
				if err := l.Commit(t.Context(), named(op)); err != nil {
					t.Fatal(err)
				}
			}
			acked := l.HeadLine()
			d.set(tt.bad)
			var down *audit.DownError
			for range 3 {
				if err := l.Commit(t.Context(), named("refused")); !errors.As(err, &down) {
					t.Fatalf("Commit error = %v, want a *DownError", err)
				}
			}
			if err := l.Keep(t.Context(), named("stop")); !errors.As(err, &down) {
				t.Fatalf("Keep error = %v, want a *DownError", err)
			}
			l.Later(named("outcome"))
			if err := l.Ready(t.Context()); !errors.As(err, &down) {
				t.Fatalf("Ready error = %v, want a *DownError", err)
			}
			d.set(func(d *disk) { d.writeErr, d.syncErr, d.lossy = nil, nil, false })
			if err := l.Ready(t.Context()); err != nil {
				t.Fatalf("Ready after the disk is good again: %v", err)
			}
			if err := l.Commit(t.Context(), named("h")); err != nil {
				t.Fatal(err)
			}
			if got, want := ops(t, dir), "a b c d e f g stop outcome h"; got != want {
				t.Errorf("the log has %s, want %s", got, want)
			}
			r := verify(t, dir, acked, l.HeadLine())
			mustOK(t, r)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if len(told) != 2 || told[0] == nil || told[1] != nil {
				t.Errorf("OnDown was told %v, want an error and nil", told)
			}
		})
	}
}

// TestComesBackByItself: nobody has to ask.
func TestComesBackByItself(t *testing.T) {
	dir, d := filepath.Join(t.TempDir(), "audit"), &disk{}
	back := make(chan struct{}, 1)
	o := options(dir).OnDisk(d.open)
	o.Retry = time.Millisecond
	o.OnDown = func(err error) {
		if err == nil {
			back <- struct{}{}
		}
	}
	l := open(t, o)
	d.set(func(d *disk) { d.syncErr = unix.EIO })
	if err := l.Keep(t.Context(), named("stop")); err == nil {
		t.Fatal("Keep says it is recorded")
	}
	d.set(func(d *disk) { d.syncErr = nil })
	<-back
	mustOK(t, verify(t, dir))
	if got := ops(t, dir); got != "stop" {
		t.Errorf("the log has %q, want stop", got)
	}
}

// TestFull: without room new work is refused before anything is written, and
// stops are recorded out of the reserve until that is used up.
func TestFull(t *testing.T) {
	dir, d := filepath.Join(t.TempDir(), "audit"), &disk{}
	l := open(t, options(dir).OnDisk(d.open))
	d.set(func(d *disk) { d.allocErr = unix.ENOSPC })
	// What is allocated already is still there to use.
	var down *audit.DownError
	var err error
	n := 0
	for ; err == nil; n++ {
		err = l.Commit(t.Context(), named("new"))
	}
	if !errors.As(err, &down) || !down.Full || n > 1000 {
		t.Fatalf("Commit %d error = %v, want a *DownError of a full disk", n, err)
	}
	stops := 0
	for err = nil; err == nil; {
		if err = l.Keep(t.Context(), named("stop")); err == nil || errors.As(err, &down) {
			stops++
		}
		if stops > 1000 {
			break
		}
	}
	if stops < 20 || stops > 1000 {
		t.Errorf("%d stops were recorded out of a reserve of 64K: %v", stops, err)
	}
	d.set(func(d *disk) { d.allocErr = nil })
	if err := l.Commit(t.Context(), named("again")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(ops(t, dir), "stop"); got != stops {
		t.Errorf("%d stops are in the log, want %d", got, stops)
	}
	mustOK(t, verify(t, dir, l.HeadLine()))
}

// TestDownAtStart: a log that cannot be read or written opens, and is down.
func TestDownAtStart(t *testing.T) {
	dir, d := filepath.Join(t.TempDir(), "audit"), &disk{allocErr: unix.ENOSPC}
	l := open(t, options(dir).OnDisk(d.open))
	if err := l.Commit(t.Context(), named("a")); err == nil {
		t.Fatal("Commit took a record")
	}
	l.Later(named("b"))
	d.set(func(d *disk) { d.allocErr = nil })
	if err := l.Commit(t.Context(), named("c")); err != nil {
		t.Fatal(err)
	}
	mustOK(t, verify(t, dir))
	if got := ops(t, dir); got != "b c" {
		t.Errorf("the log has %q, want b c", got)
	}
}

// TestBacklog: what waits in memory is bounded, and what is lost is told.
func TestBacklog(t *testing.T) {
	dir, d := filepath.Join(t.TempDir(), "audit"), &disk{}
	l := open(t, options(dir).OnDisk(d.open))
	d.set(func(d *disk) { d.syncErr = unix.EIO })
	_ = l.Ready(t.Context())
	if err := l.Commit(t.Context(), named("x")); err == nil {
		t.Fatal("the log is not down")
	}
	for range 5000 {
		l.Later(audit.Entry{Kind: audit.Fact, Action: "y", Op: "y"})
	}
	d.set(func(d *disk) { d.syncErr = nil })
	if err := l.Commit(t.Context(), named("z")); err != nil {
		t.Fatal(err)
	}
	all := string(text(t, dir))
	kept := strings.Count(all, `"op":"y"`)
	if kept > 4096+512 || kept < 4000 || !strings.Contains(all, `"action":"audit.lost"`) {
		t.Errorf("%d of 5000 records were kept, and lost ones told: %v", kept, strings.Contains(all, "audit.lost"))
	}
	mustOK(t, verify(t, dir))
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "audit")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestTorn cuts the log at every byte of its last commits, and fills the rest
// with what a disk may have there, and starts from it.
func TestTorn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, options(dir))
	commit(t, l, 2)
	keep := len(text(t, dir))
	acked := l.HeadLine()
	l.Later(audit.Entry{Kind: audit.Fact, Action: "x"})
	if err := l.Commit(t.Context(), audit.Entry{Kind: audit.Intent, Action: "y", Op: "o"}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole := text(t, dir)
	const name = "audit-00000000000000000001.jsonl"
	for at := keep; at <= len(whole); at++ {
		for i, fill := range []string{"", "\x00\x00\x00", "\n", "{}\n"} {
			if i > 0 && (at-keep)%11 != i && at != len(whole) {
				continue
			}
			b := append(bytes.Clone(whole[:at]), fill...)
			torn := filepath.Join(t.TempDir(), "audit")
			if err := errors.Join(os.Mkdir(torn, 0o700), os.WriteFile(filepath.Join(torn, name), b, 0o600)); err != nil {
				t.Fatal(err)
			}
			l, err := audit.Open(options(torn).OnDisk((&disk{memory: true}).open))
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Commit(t.Context(), named("next")); err != nil {
				t.Fatalf("cut at %d, then %q: %v", at, fill, err)
			}
			r := verify(t, torn, acked, l.HeadLine())
			mustOK(t, r)
			cut := !bytes.Equal(b, whole[:keep]) && !bytes.Equal(b, whole)
			if told := len(r.Notes) == 1; told != cut {
				t.Fatalf("cut at %d, then %q: notes %v", at, fill, r.Notes)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestNoBlessing: a start does not sign what somebody has added or changed.
func TestNoBlessing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := open(t, options(dir))
	commit(t, l, 4)
	last := l.HeadLine()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("added", func(t *testing.T) {
		d := copyDir(t, dir)
		forged := rechain(t, append(split(text(t, d)), []byte(`{"seq":11,"time":"2026-01-02T03:04:05.000000006Z","prev":"`+strings.Repeat("0", 64)+`","kind":"intent","action":"forged"}`)))
		write(t, d, forged)
		if r := verify(t, d); r.OK {
			t.Error("an added record is not found")
		}
		l := open(t, options(d))
		commit(t, l, 1)
		if b := text(t, d); bytes.Contains(b, []byte("forged")) {
			t.Error("the start signed a record that was added")
		}
		r := verify(t, d, last)
		mustOK(t, r)
		if len(r.Notes) != 1 {
			t.Errorf("notes %v, want the one of what was cut off", r.Notes)
		}
	})
	t.Run("changed", func(t *testing.T) {
		d := copyDir(t, dir)
		all := split(text(t, d))
		all[4] = bytes.Replace(all[4], []byte("coder"), []byte("Coder"), 1)
		write(t, d, all)
		l := open(t, options(d))
		commit(t, l, 1)
		if r := verify(t, d); r.OK || r.SignedThrough != r.Last {
			t.Errorf("acknowledged records are lost and it is not told: %+v", r)
		}
		aside, err := filepath.Glob(filepath.Join(d, "damaged-*"))
		if err != nil || len(aside) != 1 {
			t.Fatalf("set aside: %v, %v", aside, err)
		}
		if b, err := os.ReadFile(aside[0]); err != nil || !bytes.Contains(b, []byte("Coder")) {
			t.Errorf("what was cut off is not in %s: %v", aside[0], err)
		}
		if r := verify(t, d, last); r.OK {
			t.Error("the anchor does not miss its head")
		}
	})
	t.Run("emptied", func(t *testing.T) {
		d := copyDir(t, dir)
		if err := os.Truncate(filepath.Join(d, "audit-00000000000000000001.jsonl"), 0); err != nil {
			t.Fatal(err)
		}
		l := open(t, options(d))
		commit(t, l, 1)
		if r := verify(t, d, last); r.OK {
			t.Error("a log that was emptied passes against an anchor")
		}
	})
}

func split(b []byte) [][]byte { return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) }

func write(t *testing.T, dir string, all [][]byte) {
	t.Helper()
	b := append(bytes.Join(all, []byte("\n")), '\n')
	if err := os.WriteFile(filepath.Join(dir, "audit-00000000000000000001.jsonl"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{open, link} {
		if _, err := audit.Open(options(dir)); err == nil {
			t.Errorf("%s was taken", dir)
		}
	}
}
