package egressproc_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
)

// noise is bytes that look like no others: the key stream of a block cipher.
type noise struct{ s cipher.Stream }

func newNoise(t *testing.T, seed byte) io.Reader {
	t.Helper()
	b, err := aes.NewCipher([]byte{15: seed})
	if err != nil {
		t.Fatal(err)
	}
	return noise{cipher.NewCTR(b, make([]byte, aes.BlockSize))}
}

func (n noise) Read(p []byte) (int, error) {
	clear(p)
	n.s.XORKeyStream(p, p)
	return len(p), nil
}

func digest(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// TestBulk: a gibibyte goes out and another comes back at one time, byte for byte.
func TestBulk(t *testing.T) {
	const size = 1 << 30
	b := newBox(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		var wg sync.WaitGroup
		wg.Go(func() { got <- digest(t, c) })
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(newNoise(t, 2), size), make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		wg.Wait()
	}()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	b.add(b.ns, "bulk", policy(synthetic.NewRange6(), toBox(port)))
	at, err := look(t, b.ns, "udp", string(egress.BoxName))
	if err != nil {
		t.Fatal(err)
	}
	c, err := dial(b.ns, "tcp", netip.AddrPortFrom(at[0], port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Minute))
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(newNoise(t, 1), size), make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
	})
	back := digest(t, c)
	wg.Wait()
	if want := digest(t, io.LimitReader(newNoise(t, 1), size)); <-got != want {
		t.Error("what went out is something else")
	}
	if want := digest(t, io.LimitReader(newNoise(t, 2), size)); back != want {
		t.Error("what came back is something else")
	}
}

// TestKilledMeanwhile: however often its process is killed, nothing is let through
// that was not before, and what is allowed works again.
func TestKilledMeanwhile(t *testing.T) {
	b := newBox(t)
	port, other := service(t, "hello"), service(t, "not for you")
	b.add(b.ns, "kills", policy(synthetic.NewRange6(), toBox(port)))
	found, err := look(t, b.ns, "udp", string(egress.BoxName))
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var killer sync.WaitGroup
	kills := 0
	killer.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(60 * time.Millisecond):
			}
			for _, pid := range b.pids() {
				if unix.Kill(pid, unix.SIGKILL) == nil {
					kills++
				}
			}
		}
	})
	var heard, refused int
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		for _, to := range []string{
			netip.AddrPortFrom(found[0], other).String(), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), other).String(),
			netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), other).String(), netip.AddrPortFrom(netip.MustParseAddr("198.18.77.1"), other).String(),
		} {
			if got, err := hear(b.ns, to); got != "" {
				t.Fatalf("%s: %q, %v", to, got, err)
			}
			refused++
		}
		if names, err := look(t, b.ns, "tcp", "evil.example"); err == nil {
			t.Fatalf("a name that is not allowed: %v", names)
		}
		switch got, err := hear(b.ns, netip.AddrPortFrom(found[0], port).String()); {
		case err == nil && got == "hello":
			heard++
		case got != "" && got != "hello":
			t.Fatalf("%q, %v", got, err)
		case err == nil, errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, os.ErrDeadlineExceeded):
		default:
			t.Fatalf("%v", err)
		}
	}
	close(stop)
	killer.Wait()
	await(t, "it is served again", func() bool {
		got, err := hear(b.ns, netip.AddrPortFrom(found[0], port).String())
		return err == nil && got == "hello"
	})
	t.Logf("%d kills, %d refused, %d heard", kills, refused, heard)
	if kills < 5 || heard < 1 || refused < 20 {
		t.Errorf("%d kills, %d refused, %d heard", kills, refused, heard)
	}
}
