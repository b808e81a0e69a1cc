// Package relay passes bytes between two connections, as they are, in both
// directions at once.
//
// Between two TCP connections the kernel moves them (splice(2), which
// net.TCPConn uses by itself); no byte is copied into the process.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of this package, to be tested with errors.Is.
var (
	// ErrBudget is a relay that was ended since its bytes are used up.
	ErrBudget = errors.New("the budget of bytes is used up")
	// ErrIdle is one over which nothing went for too long.
	ErrIdle = errors.New("nothing went over the connection for too long")
)

// Budget is how many bytes, or other things, may still go, of all that share it.
// The zero value is none. It is safe for concurrent use.
type Budget struct {
	left  atomic.Int64
	once  sync.Once
	empty func()
}

// NewBudget makes a budget of n bytes.
func NewBudget(n int64) *Budget {
	b := &Budget{}
	b.left.Store(max(n, 0))
	return b
}

// OnEmpty has fn be called once, when somebody first asks for more than there is.
// It is to be called before that.
func (b *Budget) OnEmpty(fn func()) { b.empty = fn }

func (b *Budget) short() {
	if b.empty != nil {
		b.once.Do(b.empty)
	}
}

// Left is how many bytes there are.
func (b *Budget) Left() int64 { return b.left.Load() }

// Spend takes n bytes for what does not go through Run, or none if there are
// fewer.
func (b *Budget) Spend(n int64) bool {
	got := b.take(n)
	if got < n {
		b.giveBack(got)
		b.short()
	}
	return got == n
}

// take takes up to n bytes: 0 if there are none.
func (b *Budget) take(n int64) int64 {
	for {
		left := b.left.Load()
		n := min(n, left)
		if n <= 0 {
			b.short()
			return 0
		}
		if b.left.CompareAndSwap(left, left-n) {
			return n
		}
	}
}

func (b *Budget) giveBack(n int64) { b.left.Add(n) }

// Limits end a relay.
type Limits struct {
	// Budget is of both directions together. Required.
	Budget *Budget
	// Idle ends it when no byte has gone either way for that long, and when
	// one side does not take what the other has sent. Required.
	Idle time.Duration
}

// Moved is how many bytes went.
type Moved struct {
	// Out is from the first connection to the second, In the other way.
	Out, In int64
}

// chunk is what goes at a time, in bytes: a pipe's size.
const chunk = 1 << 20

// Run passes bytes until both sides have said that nothing more comes. The end
// of one direction is passed on, and the other goes on. It ends early by an
// error of either connection, by ErrBudget or ErrIdle, and by ctx with its
// cause; each side then gets a reset, so that nobody takes what came for the
// whole. Both connections are closed when it returns.
func Run(ctx context.Context, a, b *net.TCPConn, lim Limits) (Moved, error) {
	if lim.Budget == nil || lim.Idle <= 0 {
		_, _ = a.Close(), b.Close()
		return Moved{}, errors.New("a relay without limits")
	}
	r := &relay{Limits: lim}
	r.touch()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		for _, c := range []*net.TCPConn{a, b} {
			_, _ = c.SetLinger(0), c.Close()
		}
	})
	var m Moved
	var wg sync.WaitGroup
	one := func(dst, src *net.TCPConn, n *int64) {
		wg.Go(func() {
			if err := r.copy(dst, src, n); err != nil {
				cancel(err)
			}
		})
	}
	one(b, a, &m.Out)
	one(a, b, &m.In)
	wg.Wait()
	if !stop() {
		<-closed
		return m, context.Cause(ctx)
	}
	_, _ = a.Close(), b.Close()
	return m, nil
}

// relay is one that runs.
type relay struct {
	Limits

	last atomic.Int64 // when bytes went, in nanoseconds
}

func (r *relay) touch() { r.last.Store(time.Now().UnixNano()) }

func (r *relay) idle() bool { return time.Now().UnixNano()-r.last.Load() >= int64(r.Idle) }

// copy passes one direction on until its end.
func (r *relay) copy(dst, src *net.TCPConn, total *int64) error {
	for {
		n, err := r.wait(src)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := dst.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) { // it has hung up
				return err
			}
			return nil
		}
		// Taken only of what is there, so that who waits holds nothing.
		granted := r.Budget.take(min(n, chunk))
		if granted == 0 {
			return ErrBudget
		}
		// It is there to be read: a deadline that passes is dst's.
		if err := errors.Join(src.SetReadDeadline(time.Time{}), dst.SetWriteDeadline(time.Now().Add(r.Idle))); err != nil {
			return err
		}
		n, err = io.CopyN(dst, src, granted)
		r.Budget.giveBack(granted - n)
		*total += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("%w: %s", ErrIdle, r.Idle)
		}
		if err != nil {
			return err
		}
		r.touch()
	}
}

// wait waits for bytes and says how many there are to be read: none when
// nothing more comes.
func (r *relay) wait(src *net.TCPConn) (n int64, err error) {
	raw, err := src.SyscallConn()
	if err != nil {
		return 0, err
	}
	for {
		// A look now and then whether there is still a reason to wait: the
		// other direction may go on.
		if err := src.SetReadDeadline(time.Now().Add(r.Idle / 4)); err != nil {
			return 0, err
		}
		var said error
		err := raw.Read(func(fd uintptr) bool {
			n, said = readable(int(fd))
			return !errors.Is(said, unix.EAGAIN)
		})
		switch {
		case err == nil && said == nil:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && r.idle():
			return 0, fmt.Errorf("%w: %s", ErrIdle, r.Idle)
		case errors.Is(err, os.ErrDeadlineExceeded):
		default:
			return 0, errors.Join(err, said)
		}
	}
}

// readable is how many bytes there are: 0 at the end, EAGAIN before any came.
// (TIOCINQ is SIOCINQ of tcp(7).)
func readable(fd int) (int64, error) {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil || n > 0 {
		return int64(n), err
	}
	var b [1]byte
	n, _, err = unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return int64(n), err
}
