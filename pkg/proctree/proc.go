package proctree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxArgs = 512     // bytes of a process's arguments
	maxFile = 8 << 10 // bytes of stat or status, which have some 300 and 1,500
	// hz is USER_HZ, which is 100 on amd64 and arm64 whatever the kernel's own.
	hz = 100
)

// proc is /proc/PID held open. When its process has ended, everything below
// gives ESRCH, even if its number is in use again.
type proc struct {
	fd, pid int
}

func open(pid int) (proc, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return proc{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return proc{fd, pid}, nil
}

func (p proc) close() { _ = unix.Close(p.fd) }

func closeAll(ps []proc) {
	for _, p := range ps {
		p.close()
	}
}

// read is the first most bytes of a file, and whether there are more.
func (p proc) read(name string, most int) (_ []byte, more bool, err error) {
	fd, err := unix.Openat(p.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, fmt.Errorf("process %d: %s: %w", p.pid, name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	buf := make([]byte, most+1)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, false, fmt.Errorf("process %d: %s: %w", p.pid, name, err)
	}
	return buf[:min(n, most)], n > most, nil
}

// status is what the kernel says of a process, now being the time since boot.
func (p proc) status(now time.Duration) (found, error) {
	stat, _, err := p.read("stat", maxFile)
	if err != nil {
		return found{}, err
	}
	f, err := parseStat(string(stat), now)
	if err != nil {
		return found{}, fmt.Errorf("process %d: %w", p.pid, err)
	}
	status, _, err := p.read("status", maxFile)
	if err != nil {
		return found{}, err
	}
	f.pid = p.pid
	f.PID, err = parseNSPid(string(status))
	if err != nil {
		return found{}, fmt.Errorf("process %d: %w", p.pid, err)
	}
	return f, nil
}

// parseStat reads proc_pid_stat(5).
func parseStat(text string, now time.Duration) (found, error) {
	// The second field is the name in parentheses and may hold anything; no
	// later field has a parenthesis.
	start, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if start < 0 || end < start {
		return found{}, errors.New("stat has no name")
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 24-2 || len(fields[0]) != 1 {
		return found{}, errors.New("stat has too few fields")
	}
	var bad error
	field := func(n int) int64 { // as numbered in the manual
		v, err := strconv.ParseInt(fields[n-3], 10, 64)
		if err != nil && bad == nil {
			bad = fmt.Errorf("stat field %d: %w", n, err)
		}
		return v
	}
	f := found{ppid: int(field(4))}
	f.Comm, f.State = strings.ToValidUTF8(text[start+1:end], "\ufffd"), fields[0]
	f.CPUSeconds = float64(field(14)+field(15)) / hz
	f.Threads = field(20)
	age := now - time.Duration(field(22))*(time.Second/hz)
	f.Started = time.Now().Add(-max(age, 0))
	f.MemoryBytes = field(24) * int64(os.Getpagesize())
	return f, bad
}

// parseNSPid reads a process's pid one namespace below the daemon's out of
// proc_pid_status(5). The kernel escapes line ends in the name.
func parseNSPid(text string) (int, error) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "NSpid:")
		if !ok {
			continue
		}
		if f := strings.Fields(rest); len(f) > 1 {
			return strconv.Atoi(f[1])
		}
		return 0, errors.New("it is in no pid namespace of its own")
	}
	return 0, errors.New("status has no NSpid")
}

// args are the process's arguments, and whether there was more. It may hang:
// the bytes are in the process's memory.
func (p proc) args() (_ []string, cut bool, err error) {
	text, cut, err := p.read("cmdline", maxArgs)
	if err != nil {
		return nil, false, err
	}
	return splitArgs(text), cut, nil
}

func splitArgs(text []byte) []string {
	text = bytes.TrimSuffix(text, []byte{0})
	if len(text) == 0 {
		return nil
	}
	var args []string
	for arg := range bytes.SplitSeq(text, []byte{0}) {
		args = append(args, strings.ToValidUTF8(string(arg), "\ufffd"))
	}
	return args
}
