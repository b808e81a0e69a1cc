package logs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/logs"
)

// TestHold has a reader that holds get every byte, however slow it is, while
// the writer waits; another reader is not kept by it.
func TestHold(t *testing.T) {
	l := open(t, t.TempDir()+"/log", 4<<10)
	put(t, l, logs.Stdout, "first ")
	r, w := pipe(t)
	captured := make(chan error, 1)
	go func() { captured <- l.Capture(t.Context(), logs.Stdout, r) }()

	goOn, began := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var got bytes.Buffer
	read := make(chan error, 1)
	go func() {
		read <- l.Read(t.Context(), logs.ReadOptions{Follow: true, Hold: true}, func(piece logs.Piece) error {
			stream := piece.Stream
			p := piece.Data
			once.Do(func() { close(began) })
			<-goOn
			if stream == logs.Lost {
				return errors.New(string(p))
			}
			got.Write(p)
			return nil
		})
	}()
	<-began
	const piece, pieces = 3000, 100
	go func() {
		for n := range pieces {
			_, _ = w.WriteString(strings.Repeat(string(rune('a'+n%26)), piece))
		}
		_ = w.Close()
	}()
	// The writer stops: what is kept, and what a pipe holds, is far less than all.
	untilFull(t, l, w, captured)
	if n := l.Bytes(); n >= piece*pieces {
		t.Fatalf("%d bytes were captured past a reader that holds", n)
	}
	close(goOn)
	if err := <-captured; err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	want := "first "
	for n := range pieces {
		want += strings.Repeat(string(rune('a'+n%26)), piece)
	}
	if got.String() != want {
		t.Errorf("%d bytes came, not the %d that were written", got.Len(), len(want))
	}
}

// TestHoldTwoStreams: of two streams that wait for a reader, the one that goes
// on first begins a new generation. The other has room there, and must not wait
// for the reader to come to it: the reader waits for something to be in it.
func TestHoldTwoStreams(t *testing.T) {
	const piece, pieces = 3000, 300
	for range 20 {
		l := open(t, t.TempDir()+"/log", 4<<10)
		l.Expect(time.Minute)
		captured, read := make(chan error, 2), make(chan error, 1)
		for _, stream := range []byte{logs.Stdout, logs.Stderr} {
			r, w := pipe(t)
			go func() { captured <- l.Capture(t.Context(), stream, r) }()
			go func() {
				for range pieces {
					_, _ = w.WriteString(strings.Repeat("x", piece))
				}
				_ = w.Close()
			}()
		}
		n := 0
		go func() {
			read <- l.Read(t.Context(), logs.ReadOptions{Follow: true, Hold: true}, func(p logs.Piece) error {
				n += len(p.Data)
				return nil
			})
		}()
		late := time.After(20 * time.Second)
		for range 2 {
			select {
			case err := <-captured:
				if err != nil {
					t.Fatal(err)
				}
			case <-late:
				t.Fatal("the streams wait for a reader that waits for them")
			}
		}
		_ = l.Close()
		if err := <-read; err != nil || n != 2*piece*pieces {
			t.Fatalf("%d bytes came, %v", n, err)
		}
	}
}

// untilFull returns when the pipe that is captured is full, and stays so while
// the log takes nothing: its writer waits. What is captured to its end was not
// held.
func untilFull(t *testing.T, l *logs.Log, w *os.File, captured chan error) {
	t.Helper()
	conn, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for full, taken := 0, uint64(0); full < 10; time.Sleep(time.Millisecond) {
		select {
		case err := <-captured:
			t.Fatalf("all was captured past a reader that holds: %v", err)
		default:
		}
		n := 1
		if err := conn.Control(func(fd uintptr) {
			n, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0)
		}); err != nil {
			continue // all is written, and will be captured
		}
		if full++; n != 0 || l.Bytes() != taken {
			full, taken = 0, l.Bytes()
		}
	}
}

// TestHoldEnds has a reader that goes away, and Drain, let the writer go on.
func TestHoldEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(l *logs.Log, leave context.CancelFunc)
	}{
		{"reader gone", func(_ *logs.Log, leave context.CancelFunc) { leave() }},
		{"drained", func(l *logs.Log, _ context.CancelFunc) { l.Drain() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := open(t, t.TempDir()+"/log", 4<<10)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			began := make(chan struct{}, 1000)
			read := make(chan error, 1)
			go func() {
				read <- l.Read(ctx, logs.ReadOptions{Follow: true, Hold: true}, func(logs.Piece) error {
					began <- struct{}{}
					<-ctx.Done()
					return context.Cause(ctx)
				})
			}()
			put(t, l, logs.Stdout, strings.Repeat("x", 3000))
			<-began
			put(t, l, logs.Stdout, strings.Repeat("y", 1000)) // the second generation
			r, w := pipe(t)
			captured := make(chan error, 1)
			go func() { captured <- l.Capture(t.Context(), logs.Stdout, r) }()
			_, _ = w.WriteString(strings.Repeat("z", 3000))
			_ = w.Close()
			select {
			case err := <-captured:
				t.Fatalf("captured past a reader that holds: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			tt.end(l, leave)
			if err := <-captured; err != nil {
				t.Fatal(err)
			}
			if n := l.Bytes(); n != 7000 {
				t.Errorf("%d bytes, want 7000", n)
			}
			leave()
			<-read
		})
	}
}

// TestExpect keeps the start of an output for a reader that comes late.
func TestExpect(t *testing.T) {
	l := open(t, t.TempDir()+"/log", 4<<10)
	l.Expect(time.Minute)
	r, w := pipe(t)
	captured := make(chan error, 1)
	go func() { captured <- l.Capture(t.Context(), logs.Stdout, r) }()
	go func() {
		for range 50 {
			_, _ = w.WriteString(strings.Repeat("x", 3000))
		}
		_ = w.Close()
	}()
	untilFull(t, l, w, captured) // the writer is stopped
	var got int
	read := make(chan error, 1)
	go func() {
		read <- l.Read(t.Context(), logs.ReadOptions{Follow: true, Hold: true}, func(piece logs.Piece) error {
			stream := piece.Stream
			p := piece.Data
			if stream == logs.Lost {
				return errors.New(string(p))
			}
			got += len(p)
			return nil
		})
	}()
	if err := <-captured; err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := <-read; err != nil || got != 50*3000 {
		t.Errorf("%d bytes, %v", got, err)
	}
}

// TestNobodyComes has a log that expects a reader go on without one.
func TestNobodyComes(t *testing.T) {
	l := open(t, t.TempDir()+"/log", 4<<10)
	l.Expect(20 * time.Millisecond)
	for range 5 {
		put(t, l, logs.Stdout, strings.Repeat("x", 3000))
	}
	if n := l.Bytes(); n != 15000 {
		t.Errorf("%d bytes, want 15000", n)
	}
}
