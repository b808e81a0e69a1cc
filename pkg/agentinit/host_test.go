package agentinit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// fakeInit is a creel-init in this process: script answers each request.
type fakeInit struct {
	script func(h wire.Header, r wire.R) [][]byte
	in     chan []byte
	once   sync.Once
	gone   chan struct{}
}

func newFake(script func(wire.Header, wire.R) [][]byte) *fakeInit {
	return &fakeInit{script: script, in: make(chan []byte, 64<<10), gone: make(chan struct{})}
}

func (f *fakeInit) PassesFDs() bool { return true }

func (f *fakeInit) Close() error {
	f.once.Do(func() { close(f.gone) })
	return nil
}

func (f *fakeInit) Send(_ context.Context, msg []byte, _ []int) error {
	h, r, _ := wire.Open(msg)
	for _, m := range f.script(h, r) {
		f.in <- m
	}
	return nil
}

func (f *fakeInit) Recv(fn func([]byte) error) error {
	select {
	case m := <-f.in:
		return fn(m)
	case <-f.gone:
		return io.EOF
	}
}

func answer(t wire.Type, req uint32, body func(*wire.W)) []byte {
	w := wire.Begin(nil, t, req)
	if body != nil {
		body(&w)
	}
	return w.B
}

// honest answers as creel-init does; Start and Release begin and run.
func honest(h wire.Header, r wire.R) [][]byte {
	switch h.Type {
	case wire.THello:
		nonce := r.Bytes(wire.NonceLen)
		return [][]byte{answer(wire.THelloReply, h.Req, func(w *wire.W) {
			w.Bytes(nonce)
			w.U32(1)
			w.Bool(false)
			w.Bool(false)
			w.Str("")
		})}
	case wire.TStart:
		return [][]byte{answer(wire.TStarted, h.Req, func(w *wire.W) { w.U32(2) })}
	case wire.TRelease:
		id := r.ID()
		p := wire.Proc{ID: id, State: wire.StateRunning, NSPid: 2, Stamp: 5}
		return [][]byte{answer(wire.TOK, h.Req, nil), answer(wire.TRunning, 0, p.Append)}
	case wire.TResume:
		return [][]byte{answer(wire.TResumeReply, h.Req, func(w *wire.W) { w.Bool(false); w.U16(0) })}
	}
	return [][]byte{answer(wire.TOK, h.Req, nil)}
}

func exited(id string, status uint32) []byte {
	p := wire.Proc{ID: id, State: wire.StateFinished, NSPid: 9, Stamp: 5, Status: status}
	return answer(wire.TExited, 0, p.Append)
}

func hosted(tb testing.TB, f *fakeInit) *agentinit.Host {
	tb.Helper()
	h := agentinit.NewHost(f)
	tb.Cleanup(func() { _ = h.Close() })
	return h
}

func mustHello(tb testing.TB, h *agentinit.Host) {
	tb.Helper()
	if _, err := h.Hello(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

var bare = agentinit.Process{ID: "a", Argv: []string{"true"}, Bytes: true}

// TestStale: what creel-init had sent to an earlier daemon is passed over,
// whether it is read before hello is said or after.
func TestStale(t *testing.T) {
	var stale [][]byte
	for range 100 {
		stale = append(stale, exited("a", 256), answer(wire.TOK, 1, nil), answer(wire.THelloReply, 1, func(w *wire.W) {
			w.Bytes(make([]byte, wire.NonceLen)) // another's nonce, or that of a daemon which has none yet
			w.U32(1)
			w.Bool(true)
			w.Bool(true)
			w.Str("")
		}), []byte("nonsense"))
	}
	for _, before := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(func(hd wire.Header, r wire.R) [][]byte {
				if hd.Type == wire.THello && !before {
					return append(slices.Clone(stale), honest(hd, r)...)
				}
				return honest(hd, r)
			})
			h := hosted(t, f)
			if before {
				for _, msg := range stale {
					f.in <- msg
				}
				synctest.Wait() // all of them are read
			}
			hello, err := h.Hello(t.Context())
			if err != nil || hello.Gone {
				t.Fatalf("read before %t: hello = %+v, %v", before, hello, err)
			}
			if n := h.Dropped(); n != 0 {
				t.Errorf("read before %t: %d of them count as bad", before, n)
			}
		})
	}
}

// TestHostileInit is PID 1 after the agent took it over.
func TestHostileInit(t *testing.T) {
	flood := func(msg []byte) func(wire.Header, wire.R) [][]byte {
		return func(h wire.Header, r wire.R) [][]byte {
			if h.Type != wire.TStart {
				return honest(h, r)
			}
			var out [][]byte
			for range 5000 {
				out = append(out, msg)
			}
			return append(out, honest(h, r)...)
		}
	}
	output := func(n int) []byte {
		return answer(wire.TOutput, 0, (&wire.Data{ID: "a", Stream: 1, Data: make([]byte, n)}).Append)
	}
	tests := map[string][]byte{
		"nonsense":             []byte("nonsense"),
		"empty":                nil,
		"a request":            answer(wire.TStart, 0, nil),
		"exit of nobody":       exited("nobody", 0),
		"answers to nothing":   answer(wire.TOK, 12345, nil),
		"output over credit":   output(wire.MaxData),
		"output of nobody":     answer(wire.TOutput, 0, (&wire.Data{ID: "b", Stream: 1}).Append),
		"credit over window":   answer(wire.TInputCredit, 0, (&wire.Credit{ID: "a", N: 1}).Append),
		"running before start": answer(wire.TRunning, 0, (&wire.Proc{ID: "a", State: wire.StateFinished, NSPid: 3}).Append),
	}
	for name, msg := range tests {
		t.Run(name, func(t *testing.T) {
			h := hosted(t, newFake(flood(msg)))
			mustHello(t, h)
			if _, err := h.Start(t.Context(), bare, nil); !errors.Is(err, agentinit.ErrHostile) {
				t.Errorf("Start = %v", err)
			}
			<-h.Done()
			if _, err := h.Wait(t.Context(), "a"); err == nil {
				t.Error("Wait succeeded")
			}
		})
	}
}

func TestEventsOnce(t *testing.T) {
	f := newFake(honest)
	h := hosted(t, f)
	mustHello(t, h)
	pid, err := h.Start(t.Context(), bare, nil)
	if err != nil || pid != 2 {
		t.Fatal(pid, err)
	}
	if stamp, err := h.Release(t.Context(), "a"); err != nil || stamp != 5 {
		t.Fatal(stamp, err)
	}
	f.in <- exited("a", 3<<8)
	st, err := h.Wait(t.Context(), "a")
	if err != nil || st.ExitCode() != 3 {
		t.Fatalf("%d, %v", st.ExitCode(), err)
	}
	f.in <- exited("a", 0) // a second thought is not taken
	if err := h.Go(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st, _ := h.Wait(t.Context(), "a"); st.ExitCode() != 3 || h.Dropped() != 1 {
		t.Errorf("code %d, dropped %d", st.ExitCode(), h.Dropped())
	}
	if err := h.Ack(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wait(t.Context(), "a"); !errors.Is(err, agentinit.ErrUnknown) {
		t.Errorf("Wait after Ack = %v", err)
	}
}

func TestClose(t *testing.T) {
	h := hosted(t, newFake(func(hd wire.Header, r wire.R) [][]byte {
		if hd.Type == wire.TGo {
			return nil // never answered
		}
		return honest(hd, r)
	}))
	mustHello(t, h)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if err := h.Go(ctx); !errors.Is(err, why) {
		t.Errorf("Go with a cancelled context = %v", err)
	}
	got := make(chan error)
	go func() { got <- h.Go(t.Context()) }()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, agentinit.ErrGone) {
		t.Errorf("Go on a closed channel = %v", err)
	}
}

// TestGivenUp: answers to requests that nobody waits for any more are not
// taken for an attack, however many there are.
func TestGivenUp(t *testing.T) {
	h := hosted(t, newFake(honest))
	mustHello(t, h)
	given, cancel := context.WithCancel(t.Context())
	cancel()
	for range 4000 {
		_ = h.Go(given)
	}
	if err := h.Go(t.Context()); err != nil || h.Dropped() != 0 {
		t.Errorf("after many requests that were given up: %v, %d messages dropped", err, h.Dropped())
	}
}

func TestStartChecks(t *testing.T) {
	h := hosted(t, newFake(honest))
	mustHello(t, h)
	for name, p := range map[string]agentinit.Process{
		"no id":      {Argv: []string{"a"}, Bytes: true},
		"bad id":     {ID: "A/b", Argv: []string{"a"}, Bytes: true},
		"no command": {ID: "a", Bytes: true},
		"NUL":        {ID: "a", Argv: []string{"a\x00b"}, Bytes: true},
		"umask":      {ID: "a", Argv: []string{"a"}, Umask: 0o1000, Bytes: true},
		"keep":       {ID: "a", Argv: []string{"a"}, KeepFDs: 99},
	} {
		if _, err := h.Start(t.Context(), p, nil); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := bare
	p.Env = make([]string, agentinit.MaxStrings+1)
	if _, err := h.Start(t.Context(), p, nil); !errors.Is(err, agentinit.ErrTooLarge) {
		t.Errorf("many variables: %v", err)
	}
}

func TestMatchNSPid(t *testing.T) {
	self := os.Getpid()
	if got, err := agentinit.MatchNSPid([]int{1 << 29, self}, self); err != nil || got != self {
		t.Errorf("MatchNSPid = %d, %v", got, err)
	}
	if _, err := agentinit.MatchNSPid([]int{self}, 1<<29); !errors.Is(err, agentinit.ErrNoMatch) {
		t.Errorf("MatchNSPid = %v", err)
	}
}

// FuzzHost feeds it what a hostile creel-init may send. It must not panic or
// hang, and nothing makes a process that was not started known.
func FuzzHost(f *testing.F) {
	f.Add(append([]byte{byte(len(exited("a", 0)))}, exited("a", 0)...))
	f.Add(append([]byte{9}, answer(wire.TResumeReply, 3, func(w *wire.W) { w.Bool(true); w.U16(0) })...))
	f.Fuzz(func(t *testing.T, b []byte) {
		fake := newFake(func(h wire.Header, r wire.R) [][]byte {
			out := honest(h, r)
			if h.Type == wire.TRelease {
				for rest := bytes.Clone(b); len(rest) > 0; {
					n := min(int(rest[0]), len(rest)-1)
					out = append([][]byte{rest[1 : 1+n]}, out...)
					rest = rest[1+n:]
				}
			}
			return out
		})
		h := agentinit.NewHost(fake)
		defer h.Close()
		mustHello(t, h)
		if _, err := h.Start(t.Context(), bare, nil); err != nil {
			t.Fatal(err)
		}
		if stamp, err := h.Release(t.Context(), "a"); err == nil && stamp <= 0 {
			t.Errorf("stamp %d", stamp)
		}
		if _, err := h.Wait(t.Context(), "b"); !errors.Is(err, agentinit.ErrUnknown) {
			t.Errorf("Wait of what was never started = %v", err)
		}
		live, finished, _ := h.Resume(t.Context())
		if n := len(live) + len(finished); n > agentinit.MaxProcs {
			t.Errorf("%d processes", n)
		}
	})
}
