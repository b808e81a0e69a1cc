package relay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/egress/relay"
)

// pair is a TCP connection's two ends.
func pair(tb testing.TB) (a, b *net.TCPConn) {
	tb.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		tb.Fatal(err)
	}
	b, err = l.AcceptTCP()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

type done struct {
	relay.Moved
	err error
}

// run relays between a client and a server, and gives their ends.
func run(ctx context.Context, tb testing.TB, lim relay.Limits) (client, server *net.TCPConn, ended <-chan done) {
	tb.Helper()
	client, a := pair(tb)
	b, server := pair(tb)
	ch := make(chan done, 1)
	go func() {
		m, err := relay.Run(ctx, a, b, lim)
		ch <- done{m, err}
	}()
	return client, server, ch
}

func await(t *testing.T, ended <-chan done) done {
	t.Helper()
	select {
	case d := <-ended:
		return d
	case <-time.After(30 * time.Second):
		t.Fatal("the relay goes on")
		return done{}
	}
}

func plenty() relay.Limits {
	return relay.Limits{Budget: relay.NewBudget(1 << 40), Idle: time.Minute}
}

// noise writes size bytes in pieces of all sizes, and says their digest.
func noise(t *testing.T, w *net.TCPConn, seed uint64, size int) [32]byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	sum := sha256.New()
	b := make([]byte, 300_000)
	for size > 0 {
		n := min(size, 1+rnd.IntN(1<<(1+rnd.IntN(18))))
		for i := range b[:n] {
			b[i] = byte(rnd.Uint32())
		}
		sum.Write(b[:n])
		if _, err := w.Write(b[:n]); err != nil {
			t.Error(err)
			return [32]byte{}
		}
		size -= n
	}
	if err := w.CloseWrite(); err != nil {
		t.Error(err)
	}
	return [32]byte(sum.Sum(nil))
}

// TestExact: what is sent arrives, in both directions at once, to the byte.
func TestExact(t *testing.T) {
	client, server, ended := run(t.Context(), t, plenty())
	const up, down = 9_000_001, 20_000_003
	var sent, got [2][32]byte
	var wg sync.WaitGroup
	read := func(c *net.TCPConn, to *[32]byte) {
		wg.Go(func() {
			sum := sha256.New()
			if _, err := io.Copy(sum, c); err != nil {
				t.Error(err)
			}
			*to = [32]byte(sum.Sum(nil))
		})
	}
	read(server, &got[0])
	read(client, &got[1])
	wg.Go(func() { sent[0] = noise(t, client, 1, up) })
	wg.Go(func() { sent[1] = noise(t, server, 2, down) })
	wg.Wait()
	if got != sent {
		t.Error("what came is not what was sent")
	}
	if d := await(t, ended); d.err != nil || d.Out != up || d.In != down {
		t.Errorf("%+v", d)
	}
}

// TestHalfClose: a client that has said all still hears the answer.
func TestHalfClose(t *testing.T) {
	client, server, ended := run(t.Context(), t, plenty())
	_, _ = client.Write([]byte("question"))
	_ = client.CloseWrite()
	if b, err := io.ReadAll(server); err != nil || string(b) != "question" {
		t.Fatalf("%q, %v", b, err)
	}
	time.Sleep(50 * time.Millisecond)
	_, _ = server.Write([]byte("answer"))
	_ = server.Close()
	if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
		t.Fatalf("%q, %v", b, err)
	}
	if d := await(t, ended); d.err != nil || d.Moved != (relay.Moved{Out: 8, In: 6}) {
		t.Errorf("%+v", d)
	}
}

// TestReset: what broke does not look like an end to the other side.
func TestReset(t *testing.T) {
	client, server, ended := run(t.Context(), t, plenty())
	_, _ = server.Write([]byte("half of"))
	b := make([]byte, 7)
	if _, err := io.ReadFull(client, b); err != nil {
		t.Fatal(err)
	}
	_ = server.SetLinger(0)
	_ = server.Close()
	if _, err := io.ReadAll(client); err == nil {
		t.Error("the client sees an end")
	}
	if d := await(t, ended); d.err == nil {
		t.Errorf("%+v", d)
	}
}

// TestBudget: no byte more than there is goes, over however many connections
// at once, and none is lost of what is not used.
func TestBudget(t *testing.T) {
	budget := relay.NewBudget(1_000_000)
	if !budget.Spend(1) || budget.Spend(1_000_000) || budget.Left() != 999_999 {
		t.Fatal(budget.Left())
	}
	idle, _, idles := run(t.Context(), t, relay.Limits{Budget: budget, Idle: time.Minute})
	var mu sync.Mutex
	var got int64
	var wg sync.WaitGroup
	for range 8 {
		client, server, ended := run(t.Context(), t, relay.Limits{Budget: budget, Idle: time.Minute})
		wg.Go(func() {
			_, _ = server.ReadFrom(bytes.NewReader(make([]byte, 400_000)))
			_ = server.CloseWrite()
		})
		wg.Go(func() { _, _ = io.Copy(io.Discard, client); _ = client.Close() })
		wg.Go(func() {
			d := await(t, ended)
			if d.err != nil && !errors.Is(d.err, relay.ErrBudget) {
				t.Errorf("%+v", d)
			}
			mu.Lock()
			defer mu.Unlock()
			got += d.In + d.Out
		})
	}
	wg.Wait()
	if got != 999_999 || budget.Left() != 0 {
		t.Errorf("%d went, %d are left", got, budget.Left())
	}
	// One that said nothing held nothing, and its end needs no bytes.
	_ = idle.CloseWrite()
	select {
	case d := <-idles:
		t.Errorf("ended: %+v", d)
	case <-time.After(50 * time.Millisecond):
	}
	_ = idle.Close()
}

// TestBudgetOfNothing: an end is passed on without any bytes.
func TestBudgetOfNothing(t *testing.T) {
	client, server, ended := run(t.Context(), t, relay.Limits{Budget: relay.NewBudget(0), Idle: time.Minute})
	_ = client.CloseWrite()
	if b, err := io.ReadAll(server); err != nil || len(b) != 0 {
		t.Fatalf("%q, %v", b, err)
	}
	_, _ = server.Write([]byte("x"))
	if d := await(t, ended); !errors.Is(d.err, relay.ErrBudget) || d.Moved != (relay.Moved{}) {
		t.Errorf("%+v", d)
	}
	if _, err := io.ReadAll(client); err == nil {
		t.Error("the client sees an end")
	}
}

// TestIdle: a relay that nobody uses ends, one that is used little does not,
// and one whose reader stands still does.
func TestIdle(t *testing.T) {
	lim := func() relay.Limits {
		return relay.Limits{Budget: relay.NewBudget(1 << 40), Idle: 400 * time.Millisecond}
	}
	t.Run("unused", func(t *testing.T) {
		_, _, ended := run(t.Context(), t, lim())
		began := time.Now()
		if d := await(t, ended); !errors.Is(d.err, relay.ErrIdle) || time.Since(began) < 400*time.Millisecond {
			t.Errorf("%+v after %v", d, time.Since(began))
		}
	})
	t.Run("one byte now and then", func(t *testing.T) {
		client, server, ended := run(t.Context(), t, lim())
		go func() { _, _ = io.Copy(io.Discard, client) }()
		for range 8 { // one direction alone is enough
			time.Sleep(150 * time.Millisecond)
			if _, err := server.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = server.Close(), client.Close()
		if d := await(t, ended); d.In != 8 {
			t.Errorf("%+v", d)
		}
	})
	t.Run("stands still", func(t *testing.T) {
		_, server, ended := run(t.Context(), t, lim())
		_ = server.SetWriteDeadline(time.Now().Add(20 * time.Second))
		for {
			if _, err := server.Write(make([]byte, 1<<20)); err != nil {
				break
			}
		}
		if d := await(t, ended); !errors.Is(d.err, relay.ErrIdle) {
			t.Errorf("%+v", d)
		}
	})
}

// TestCancel ends it with the cause, on both sides, whatever it is about.
func TestCancel(t *testing.T) {
	cause := errors.New("the policy is another one now")
	for _, busy := range []bool{false, true} {
		ctx, cancel := context.WithCancelCause(t.Context())
		client, server, ended := run(ctx, t, plenty())
		if busy {
			go func() { _, _ = server.ReadFrom(zeros{}) }()
			_, _ = io.ReadFull(client, make([]byte, 1<<20))
		}
		cancel(cause)
		if d := await(t, ended); !errors.Is(d.err, cause) {
			t.Errorf("busy %v: %+v", busy, d)
		}
		if _, err := io.Copy(io.Discard, client); err == nil {
			t.Errorf("busy %v: the client sees an end", busy)
		}
		_ = server.Close()
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestWithoutLimits refuses to run, and closes what it was given.
func TestWithoutLimits(t *testing.T) {
	for _, lim := range []relay.Limits{{}, {Budget: relay.NewBudget(1)}, {Idle: time.Second}} {
		_, _, ended := run(t.Context(), t, lim)
		if d := await(t, ended); d.err == nil {
			t.Errorf("%+v ran", lim)
		}
	}
}

// BenchmarkRun beside a connection without a relay.
func BenchmarkRun(b *testing.B) {
	const size = 1 << 20
	for _, direct := range []bool{true, false} {
		b.Run(map[bool]string{true: "direct", false: "relay"}[direct], func(b *testing.B) {
			var client, server *net.TCPConn
			if direct {
				client, server = pair(b)
			} else {
				client, server, _ = run(b.Context(), b, plenty())
			}
			b.SetBytes(size)
			buf := make([]byte, size)
			go func() {
				for {
					if _, err := server.Write(buf); err != nil {
						return
					}
				}
			}()
			in := make([]byte, size)
			for b.Loop() {
				if _, err := io.ReadFull(client, in); err != nil {
					b.Fatal(err)
				}
			}
			_, _ = client.Close(), server.Close()
		})
	}
}
