package logs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/logs"
)

// The test binary is also the daemon that is killed: it captures descriptor 3.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CREEL_LOGS_CAPTURE"); dir != "" {
		l, err := logs.Open(dir, logs.Options{Max: 1 << 30})
		if err == nil {
			err = l.Capture(context.Background(), logs.Stdout, os.NewFile(3, "pipe"))
		}
		fmt.Println(err)
		return
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string, size int64) *logs.Log {
	t.Helper()
	l, err := logs.Open(dir, logs.Options{Max: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// put captures one piece and returns when it is in the log.
func put(t *testing.T, l *logs.Log, stream byte, s string) {
	t.Helper()
	r, w := pipe(t)
	if _, err := w.WriteString(s); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if err := l.Capture(t.Context(), stream, r); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
}

// read is what Read gives, with the stream before each change of it.
func read(t *testing.T, l *logs.Log, o logs.ReadOptions) string {
	t.Helper()
	var b strings.Builder
	var last byte
	err := l.Read(t.Context(), o, func(piece logs.Piece) error {
		stream := piece.Stream
		at := piece.At
		p := piece.Data
		if stream != last {
			fmt.Fprintf(&b, "<%d>", stream)
			last = stream
		}
		if time.Since(at) > time.Hour || time.Since(at) < -time.Second {
			t.Errorf("piece is of %v", at)
		}
		b.Write(p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestOrder(t *testing.T) {
	dir := t.TempDir() + "/log"
	l := open(t, dir, 0)
	put(t, l, logs.Stdout, "one\n")
	put(t, l, logs.Stderr, "two\n")
	middle := time.Now()
	put(t, l, logs.Stdout, "three\nfour\n")
	put(t, l, logs.Stdout, "no end")
	want := "<1>one\n<2>two\n<1>three\nfour\nno end"
	if diff := cmp.Diff(want, read(t, l, logs.ReadOptions{})); diff != "" {
		t.Error(diff)
	}
	if got := read(t, l, logs.ReadOptions{Since: middle}); got != "<1>three\nfour\nno end" {
		t.Errorf("since the middle: %q", got)
	}
	for n, want := range map[int]string{
		1: "<1>no end", 2: "<1>four\nno end", 3: "<1>three\nfour\nno end",
		4: "<2>two\n<1>three\nfour\nno end", 5: want, 99: want,
	} {
		if got := read(t, l, logs.ReadOptions{Tail: n}); got != want {
			t.Errorf("last %d lines: %q, want %q", n, got, want)
		}
	}
	put(t, l, logs.Stderr, "\n")
	if got := read(t, l, logs.ReadOptions{Tail: 1}); got != "<1>no end<2>\n" && got != "<2>\n" {
		t.Errorf("last line of two streams: %q", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, logs.ReadOptions{Follow: true}); got != want+"<2>\n" {
		t.Errorf("after Close: %q", got)
	}
	if l.Bytes() != 26 {
		t.Errorf("Bytes = %d, want 26", l.Bytes())
	}
	if again := open(t, dir, 0); again.Bytes() != 26 {
		t.Errorf("Bytes after Open = %d", again.Bytes())
	}
}

// Whoever follows gets each byte once, whenever it began to.
func TestFollow(t *testing.T) {
	l := open(t, t.TempDir()+"/log", 0)
	r, w := pipe(t)
	r2, w2 := pipe(t)
	var want [3]bytes.Buffer
	var wg sync.WaitGroup
	for stream, f := range map[byte]*os.File{logs.Stdout: r, logs.Stderr: r2} {
		wg.Go(func() {
			if err := l.Capture(t.Context(), stream, f); err != nil {
				t.Error(err)
			}
		})
	}
	type result [3]bytes.Buffer
	results := make([]result, 5)
	var readers sync.WaitGroup
	for i := range results {
		readers.Go(func() {
			err := l.Read(t.Context(), logs.ReadOptions{Follow: true}, func(piece logs.Piece) error {
				stream := piece.Stream
				p := piece.Data
				results[i][stream].Write(p)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		for n := range 200 {
			stream, f := logs.Stdout, w
			if n%3 == 0 {
				stream, f = logs.Stderr, w2
			}
			s := strings.Repeat(fmt.Sprintf("reader %d line %d;", i, n), 1+n%50)
			want[stream].WriteString(s)
			if _, err := f.WriteString(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, _ = w.Close(), w2.Close()
	wg.Wait()
	_ = l.Close()
	readers.Wait()
	for i := range results {
		for _, stream := range []byte{logs.Stdout, logs.Stderr} {
			if !bytes.Equal(results[i][stream].Bytes(), want[stream].Bytes()) {
				t.Errorf("reader %d, stream %d: %d bytes, want %d", i, stream, results[i][stream].Len(), want[stream].Len())
			}
		}
	}
	if l.Rate() <= 0 {
		t.Error("no rate")
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir() + "/log"
	l := open(t, dir, 8<<10)
	r, w := pipe(t)
	done := make(chan error, 1)
	go func() { done <- l.Capture(t.Context(), logs.Stdout, r) }()
	var all bytes.Buffer
	for n := range 2000 {
		s := fmt.Sprintf("line %d %s\n", n, strings.Repeat("x", 30))
		all.WriteString(s)
		if _, err := w.WriteString(s); err != nil {
			t.Fatal(err)
		}
		for n%20 == 0 && l.Bytes() < uint64(all.Len()) { // let the capture take pieces
			runtime.Gosched() // the test's own timeout ends it
		}
	}
	_ = w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if size := logSize(dir); size > (8<<10)+2*(64<<10) { // a piece is never split, so a generation can be over by what a pipe holds
		t.Errorf("log is %d bytes", size)
	}
	got := read(t, l, logs.ReadOptions{})
	lost, kept, ok := strings.Cut(strings.TrimPrefix(got, "<0>"), "<1>")
	var n int
	if _, err := fmt.Sscanf(lost, "creel: %d bytes of older output are no longer kept\n", &n); err != nil || !ok {
		t.Fatalf("the loss is told as %q: %v", lost, err)
	}
	if n == 0 || n+len(kept) != all.Len() || !strings.HasSuffix(all.String(), kept) {
		t.Errorf("told of %d lost bytes, kept %d, wrote %d", n, len(kept), all.Len())
	}
	if l.Bytes() != uint64(all.Len()) {
		t.Errorf("Bytes = %d, want %d", l.Bytes(), all.Len())
	}
	if got := read(t, l, logs.ReadOptions{Tail: 2}); !strings.HasSuffix(all.String(), got[3:]) || strings.Count(got, "\n") != 2 {
		t.Errorf("last two lines: %q", got)
	}
}

// A follower that is slower than two generations is told what it missed.
func TestSlowFollower(t *testing.T) {
	l := open(t, t.TempDir()+"/log", 4<<10)
	put(t, l, logs.Stdout, "first\n")
	var got, lost strings.Builder
	wrote := 6
	err := l.Read(t.Context(), logs.ReadOptions{Follow: true}, func(piece logs.Piece) error {
		stream := piece.Stream
		p := piece.Data
		if got.Len() == 0 { // now it is overtaken
			for range 10 {
				put(t, l, logs.Stdout, strings.Repeat("y", 3000))
				wrote += 3000
			}
			_ = l.Close()
		}
		if stream == logs.Lost {
			lost.Write(p)
		} else {
			got.Write(p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscanf(lost.String(), "creel: %d bytes", &n); err != nil || got.Len()+n != wrote {
		t.Errorf("got %d bytes and told of %d (%q), wrote %d", got.Len(), n, lost.String(), wrote)
	}
}

// kill -9 of whoever captures, again and again, loses and doubles nothing.
func TestKilledCapture(t *testing.T) {
	dir := t.TempDir() + "/log"
	r, w := pipe(t)
	var all bytes.Buffer
	wrote := make(chan error, 1)
	go func() {
		for n := range 200_000 {
			s := fmt.Sprintf("line %d\n", n)
			all.WriteString(s)
			if _, err := w.WriteString(s); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- w.Close()
	}()
	for i := range 15 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "CREEL_LOGS_CAPTURE="+dir)
		cmd.ExtraFiles = []*os.File{r}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(10+3*i) * time.Millisecond)
		for i == 14 && logSize(dir) == 0 { // on a slow machine none has come so far
			time.Sleep(time.Millisecond)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	l := open(t, dir, 1<<30)
	before := l.Bytes()
	if err := l.Capture(t.Context(), logs.Stdout, r); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if before == 0 {
		t.Error("the killed captures took nothing")
	}
	if got := read(t, l, logs.ReadOptions{}); got != "<1>"+all.String() {
		t.Errorf("log has %d bytes, written were %d", len(got)-3, all.Len())
	}
}

// logSize is how much output there is in a log, by the sizes of its files.
func logSize(dir string) (size int64) {
	_ = filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			size += fi.Size()
		}
		return err
	})
	return size
}

// What a crash can leave: bytes without a record, a record that is cut off,
// bytes that a power failure took.
func TestRepair(t *testing.T) {
	dir := t.TempDir() + "/log"
	l := open(t, dir, 0)
	put(t, l, logs.Stdout, "whole\n")
	_ = l.Close()
	add := func(name, s string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, "gen-00000001", name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := io.WriteString(f, s); err != nil {
			t.Fatal(err)
		}
	}
	add("stdout.log", "no record\n")
	add("index", "cut")
	l = open(t, dir, 0)
	put(t, l, logs.Stderr, "after\n")
	if got := read(t, l, logs.ReadOptions{}); got != "<1>whole\nno record\n<2>after\n" {
		t.Errorf("repaired log is %q", got)
	}
	_ = l.Close()
	if err := os.Truncate(filepath.Join(dir, "gen-00000001", "stdout.log"), 3); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, 0)
	put(t, l, logs.Stdout, "new\n")
	if got := read(t, l, logs.ReadOptions{}); got != "<1>who<2>after\n<1>new\n" {
		t.Errorf("after a power failure: %q", got)
	}
}

func TestCaptureEnds(t *testing.T) {
	l := open(t, t.TempDir()+"/log", 0)
	r, w := pipe(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	done := make(chan error, 1)
	go func() { done <- l.Capture(ctx, logs.Stdout, r) }()
	cancel(stop)
	if err := <-done; !errors.Is(err, stop) {
		t.Errorf("Capture = %v, want the cause", err)
	}
	if _, err := w.WriteString("kept in the pipe"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if err := l.Capture(t.Context(), logs.Stdout, r); err != nil {
		t.Error(err)
	}
	if got := read(t, l, logs.ReadOptions{}); got != "<1>kept in the pipe" {
		t.Errorf("log is %q", got)
	}
	if err := l.Capture(t.Context(), 7, r); err == nil {
		t.Error("stream 7 was captured")
	}
}

// A terminal's output comes too, and its end is an end.
func TestTerminal(t *testing.T) {
	kerneltest.Require(t, kerneltest.Terminal)
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	conn, _ := ptmx.SyscallConn()
	var n int
	if err := conn.Control(func(fd uintptr) {
		_ = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	}); err != nil || n < 0 {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, t.TempDir()+"/log", 0)
	if _, err := tty.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	_ = tty.Close()
	if err := l.Capture(t.Context(), logs.Stdout, ptmx); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, logs.ReadOptions{}); got != "<1>hello\r\n" {
		t.Errorf("log is %q", got)
	}
}

// Whatever is in the files, Open and Read end, and never panic.
func FuzzIndex(f *testing.F) {
	f.Add([]byte("creelog1\x00\x00\x00\x00\x00\x00\x00\x00"), []byte("x"))
	f.Add([]byte("creelog1\x00\x00\x00\x00\x00\x00\x00\x00\x17\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x00\x00"), []byte("x"))
	f.Fuzz(func(t *testing.T, index, out []byte) {
		dir := t.TempDir()
		gen := filepath.Join(dir, "gen-00000001")
		if err := os.Mkdir(gen, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"index": index, "stdout.log": out, "stderr.log": nil} {
			if err := os.WriteFile(filepath.Join(gen, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, err := logs.Open(dir, logs.Options{})
		if err != nil {
			return
		}
		defer l.Close()
		for _, tail := range []int{0, 2} {
			n := 0
			err = l.Read(t.Context(), logs.ReadOptions{Tail: tail}, func(piece logs.Piece) error {
				p := piece.Data
				n += len(p)
				return nil
			})
			if err == nil && n > len(out)+100 {
				t.Errorf("read %d bytes of %d", n, len(out))
			}
		}
	})
}
