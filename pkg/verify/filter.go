package verify

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insnSize is the size of struct sock_filter, maxInsns the kernel's limit.
const (
	insnSize = 8
	maxInsns = 4096
)

// stopTimeout bounds the wait for PID 1 to stop. It takes microseconds
// unless the process is frozen.
const stopTimeout = 500 * time.Millisecond

func readFilter(ctx context.Context, r *report, e Expect) {
	if r.err != nil {
		r.add("seccomp.filter", describe(e.Filter), "", false)
		return
	}
	got, err := fetchFilter(ctx, e.PID)
	r.within(err, func() {
		observed := describe(got)
		same := len(e.Filter) != 0 && bytes.Equal(got, e.Filter)
		if !same {
			observed += differs(got, e.Filter)
		}
		r.add("seccomp.filter", describe(e.Filter), observed, same)
	})
}

func describe(filter []byte) string {
	sum := sha256.Sum256(filter)
	return fmt.Sprintf("%d instructions, sha256 %s", len(filter)/insnSize, hex.EncodeToString(sum[:]))
}

func differs(got, want []byte) string {
	if len(want) == 0 {
		return "; no filter was expected, which is never right"
	}
	n := min(len(got), len(want))
	for i := 0; i+insnSize <= n; i += insnSize {
		if !bytes.Equal(got[i:i+insnSize], want[i:i+insnSize]) {
			return fmt.Sprintf("; instruction %d differs", i/insnSize)
		}
	}
	return "; the length differs"
}

// fetchFilter reads the one filter of a process's first thread. Two filters
// are an error. (All threads have it: TSYNC put it there, and seccomp.filters
// counts one on each.)
func fetchFilter(ctx context.Context, pid int) ([]byte, error) {
	type result struct {
		filter []byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		// ptrace belongs to the thread. It is given back only after a proper
		// detach; else it ends with this goroutine, and the kernel detaches.
		runtime.LockOSThread()
		filter, detached, err := traced(ctx, pid)
		if detached {
			runtime.UnlockOSThread()
		}
		done <- result{filter, err}
	}()
	res := <-done // traced is bounded by stopTimeout
	return res.filter, res.err
}

func traced(ctx context.Context, pid int) (filter []byte, detached bool, err error) {
	if err := ptrace(unix.PTRACE_SEIZE, pid, 0, 0); err != nil {
		return nil, true, fmt.Errorf("seize: %w", err)
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, pid, 0, 0); err != nil {
		return nil, false, fmt.Errorf("interrupt: %w", err)
	}
	sig, err := awaitStop(ctx, pid)
	if err != nil {
		return nil, false, err
	}
	filter, err = getFilters(pid)
	// A signal that was about to be delivered is not lost.
	if derr := ptrace(unix.PTRACE_DETACH, pid, 0, uintptr(sig)); derr != nil {
		return nil, false, errors.Join(err, fmt.Errorf("detach: %w", derr))
	}
	return filter, true, err
}

// awaitStop waits until the process has stopped for us, and returns the
// signal to pass on.
func awaitStop(ctx context.Context, pid int) (unix.Signal, error) {
	deadline := time.Now().Add(stopTimeout)
	for pause := 10 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		var ws unix.WaitStatus
		got, err := unix.Wait4(pid, &ws, unix.WNOHANG|unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("wait for stop: %w", err)
		case got == pid && ws.Stopped():
			if ws>>16 == unix.PTRACE_EVENT_STOP {
				return 0, nil
			}
			return ws.StopSignal(), nil
		case got == pid:
			return 0, errors.New("the process ended")
		}
		if err := ctx.Err(); err != nil {
			return 0, fmt.Errorf("wait for stop: %w", err)
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the process did not stop within %v; is it frozen?", stopTimeout)
		}
		time.Sleep(pause)
	}
}

// getFilters is the oldest filter of a stopped process; a second is an error.
func getFilters(pid int) ([]byte, error) {
	n, err := getFilter(pid, 0, nil)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("the process has no filter: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("PTRACE_SECCOMP_GET_FILTER (a reader that is itself filtered may not): %w", err)
	}
	if n <= 0 || n > maxInsns {
		return nil, fmt.Errorf("the filter has %d instructions", n)
	}
	buf := make([]byte, n*insnSize)
	again, err := getFilter(pid, 0, buf)
	if err != nil {
		return nil, fmt.Errorf("PTRACE_SECCOMP_GET_FILTER: %w", err)
	}
	if again != n {
		return nil, fmt.Errorf("the filter had %d instructions, then %d", n, again)
	}
	_, err = getFilter(pid, 1, nil)
	switch {
	case err == nil:
		return nil, errors.New("there is a second filter")
	case !errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("look for a second filter: %w", err)
	}
	return buf, nil
}

// getFilter returns the number of instructions, and the instructions
// themselves when buf is not nil.
func getFilter(pid, index int, buf []byte) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(index), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), 0, 0)
	return int(n), orNil(errno)
}

func ptrace(request, pid int, addr, data uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0)
	return orNil(errno)
}

func orNil(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
