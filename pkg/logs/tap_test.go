package logs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/logs"
)

// tagged opens a log of many commands.
func tagged(t *testing.T, dir string, most int64) *logs.Log {
	t.Helper()
	l, err := logs.Open(dir, logs.Options{Max: most, Tagged: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// tapped taps a new pipe.
func tapped(t *testing.T, l *logs.Log, source string, stream byte) (*logs.Tap, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	tap, err := l.Tap(source, stream, r)
	if err != nil {
		t.Fatal(err)
	}
	return tap, w
}

// say writes text through a tap, as a client would read it.
func say(t *testing.T, l *logs.Log, source, text string) {
	t.Helper()
	tap, w := tapped(t, l, source, logs.Stdout)
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text)+1)
	n, err := tap.Read(got)
	if err != nil || string(got[:n]) != text {
		t.Fatalf("read %q, %v; want %q", got[:n], err, text)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
}

// whole is what logs have, as "source:text" of runs of one source.
func whole(t *testing.T, o logs.ReadOptions, of ...*logs.Log) string {
	t.Helper()
	var b strings.Builder
	last := "nobody"
	err := logs.Read(t.Context(), of, o, func(p logs.Piece) error {
		if p.Source != last {
			fmt.Fprintf(&b, "[%s]", p.Source)
			last = p.Source
		}
		b.Write(p.Data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestTapped tells commands apart, in the order of time, with another log
// between them.
func TestTapped(t *testing.T) {
	dir := t.TempDir()
	main, err := logs.Open(filepath.Join(dir, "main"), logs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = main.Close() })
	at := filepath.Join(dir, "execs")
	l := tagged(t, at, 0)
	if got := whole(t, logs.ReadOptions{}, l); got != "" {
		t.Errorf("an empty log has %q", got)
	}
	if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is on disk before its first byte: %v", err)
	}
	say(t, l, "a", "1\n2\n")
	put(t, main, logs.Stdout, "m\n")
	say(t, l, "b", "3\n")
	say(t, l, "a", "4")
	const all = "[a]1\n2\n[]m\n[b]3\n[a]4"
	check := func(l *logs.Log) {
		t.Helper()
		for _, tt := range []struct {
			o    logs.ReadOptions
			want string
		}{
			{logs.ReadOptions{}, all},
			{logs.ReadOptions{Tail: 1}, "[a]4"},
			{logs.ReadOptions{Tail: 3}, "[]m\n[b]3\n[a]4"},
			{logs.ReadOptions{Tail: 4}, "[a]2\n[]m\n[b]3\n[a]4"},
			{logs.ReadOptions{Tail: 50}, all},
		} {
			if got := whole(t, tt.o, main, l); got != tt.want {
				t.Errorf("%+v: %q, want %q", tt.o, got, tt.want)
			}
		}
		for _, tt := range []struct {
			o    logs.ReadOptions
			want string
		}{{logs.ReadOptions{Source: "a"}, "[a]1\n2\n4"}, {logs.ReadOptions{Source: "a", Tail: 2}, "[a]2\n4"}, {logs.ReadOptions{Source: "c"}, ""}} {
			if got := whole(t, tt.o, l); got != tt.want {
				t.Errorf("%+v: %q, want %q", tt.o, got, tt.want)
			}
		}
	}
	check(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check(tagged(t, at, 0))
}

// TestTapWithoutRecord gives a piece whose record a crash prevented to whose it
// was.
func TestTapWithoutRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "execs")
	l := tagged(t, dir, 0)
	say(t, l, "before", "1")
	say(t, l, "victim", "2")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(dir, "gen-00000001", "index")
	if err := os.Truncate(index, 64); err != nil { // header and one record
		t.Fatal(err)
	}
	if got, want := whole(t, logs.ReadOptions{}, tagged(t, dir, 0)), "[before]1[victim]2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestTapWithoutLog serves the client when the log cannot be written, and the
// log tells what it has not.
func TestTapWithoutLog(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "later")
	l := tagged(t, filepath.Join(parent, "execs"), 0)
	say(t, l, "a", "12345") // no parent: no generation can be made
	if err := os.Mkdir(parent, 0o700); err != nil {
		t.Fatal(err)
	}
	say(t, l, "b", "6")
	const told = "[]creel: 5 bytes of a could not be kept\n"
	if got := whole(t, logs.ReadOptions{}, l); got != told+"[b]6" {
		t.Errorf("%q", got)
	}
	if got := whole(t, logs.ReadOptions{Source: "a"}, l); got != told {
		t.Errorf("of a: %q", got)
	}
}

// TestPump has everything in the client's pipe and in the log when the command
// has ended, although something holds its pipe open; then that is broken.
func TestPump(t *testing.T) {
	l := tagged(t, filepath.Join(t.TempDir(), "execs"), 0)
	tap, w := tapped(t, l, "a", logs.Stderr)
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 20<<10) // more than both pipes hold
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := errors.Join(tap.Pump(out), tap.Close()); err != nil {
			t.Errorf("pump: %v", err)
		}
	})
	wg.Go(func() {
		if _, err := w.Write(want); err != nil {
			t.Errorf("write: %v", err)
		}
		tap.Settle()
	})
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
	wg.Wait()
	if kept := whole(t, logs.ReadOptions{}, l); kept != "[a]"+string(want) {
		t.Errorf("%d bytes are kept", len(kept))
	}
	if _, err := w.Write([]byte("late")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write after the end: %v", err)
	}
	if tap.Bytes() != int64(len(want)) || tap.Lost() != 0 {
		t.Errorf("%d bytes, %d lost", tap.Bytes(), tap.Lost())
	}
}

// TestTapRotates keeps no more than the limit of many commands together, and
// in order what is left.
func TestTapRotates(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "execs")
	const most = 64 << 10
	l := tagged(t, dir, most)
	for i := range 2000 {
		say(t, l, fmt.Sprint("s", i%7), fmt.Sprintf("%099d\n", i))
	}
	used, err := logs.Usage(dir)
	if err != nil || used > most+32<<10 {
		t.Errorf("%d bytes on disk, %v", used, err)
	}
	next := -1
	err = l.Read(t.Context(), logs.ReadOptions{}, func(p logs.Piece) error {
		if p.Stream == logs.Lost {
			return nil
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(p.Data)))
		if err != nil {
			return err
		}
		if (next >= 0 && n != next) || p.Source != fmt.Sprint("s", n%7) {
			return fmt.Errorf("%d of %s, want %d", n, p.Source, next)
		}
		next = n + 1
		return nil
	})
	if err != nil || next != 2000 {
		t.Errorf("%v, up to %d", err, next)
	}
}

// TestTapFollow gives a reader that waits what comes, until the log's end.
func TestTapFollow(t *testing.T) {
	l := tagged(t, filepath.Join(t.TempDir(), "execs"), 0)
	got, over := make(chan string, 4), make(chan error, 1)
	go func() {
		over <- l.Read(t.Context(), logs.ReadOptions{Follow: true, Since: time.Unix(1, 0)}, func(p logs.Piece) error {
			got <- p.Source + ":" + string(p.Data)
			return nil
		})
	}()
	for _, s := range []string{"a", "b", "a"} {
		say(t, l, s, "x")
		if g := <-got; g != s+":x" {
			t.Errorf("got %q after %q", g, s)
		}
	}
	_ = l.Close()
	if err := <-over; err != nil {
		t.Error(err)
	}
}
