package verify

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// proc is /proc/PID held open. The directory belongs to one process: when
// that has ended, everything below gives ESRCH, even if its number is in use
// again.
type proc struct {
	fd  int
	pid int
}

func openProc(pid int) (*proc, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("pid %d is not a process", pid)
	}
	path := "/proc/" + strconv.Itoa(pid)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &proc{fd, pid}, nil
}

func (p *proc) close() { _ = unix.Close(p.fd) }

// errNone stands for a process whose directory could not be opened; the
// report holds the reason then and shows that.
var errNone = errors.New("no process")

func (p *proc) open(name string, flags int) (*os.File, error) {
	if p == nil {
		return nil, errNone
	}
	fd, err := unix.Openat(p.fd, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc/%d/%s: %w", p.pid, name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// maxFile bounds what is read of one file of /proc, in bytes.
const maxFile = 1 << 20

// read is the whole of a file; one longer than maxFile is an error.
func (p *proc) read(name string) (string, error) {
	f, err := p.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fmt.Errorf("read /proc/%d/%s: %w", p.pid, name, err)
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("/proc/%d/%s is longer than %d bytes", p.pid, name, maxFile)
	}
	return string(b), nil
}

// list is the numbers that name the entries of a directory.
func (p *proc) list(name string) ([]int, error) {
	f, err := p.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.Readdirnames(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list /proc/%d/%s: %w", p.pid, name, err)
	}
	if len(entries) == maxEntries {
		return nil, fmt.Errorf("/proc/%d/%s has %d entries or more", p.pid, name, maxEntries)
	}
	out := make([]int, 0, len(entries))
	for _, e := range entries {
		n, err := strconv.Atoi(e)
		if err != nil {
			return nil, fmt.Errorf("/proc/%d/%s/%s is not a number", p.pid, name, e)
		}
		out = append(out, n)
	}
	return out, nil
}

const maxEntries = 4096

func (p *proc) readlink(name string) (string, error) {
	if p == nil {
		return "", errNone
	}
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(p.fd, name, buf[:])
	if err != nil {
		return "", fmt.Errorf("readlink /proc/%d/%s: %w", p.pid, name, err)
	}
	return string(buf[:n]), nil
}

// stat follows magic links: it is of the file itself, whatever namespace the
// file is in.
func (p *proc) stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if p == nil {
		return st, errNone
	}
	if err := unix.Fstatat(p.fd, name, &st, 0); err != nil {
		return st, fmt.Errorf("stat /proc/%d/%s: %w", p.pid, name, err)
	}
	return st, nil
}

// procStat is what is needed of /proc/PID/stat (proc_pid_stat(5)).
type procStat struct {
	tty   int64
	start uint64
}

func parseStat(text string) (procStat, error) {
	// The second field is the command in parentheses and may hold anything;
	// no later field has a parenthesis.
	end := strings.LastIndexByte(text, ')')
	f := strings.Fields(text[end+1:])
	if end < 0 || len(f) < 20 {
		return procStat{}, fmt.Errorf("stat %q has too few fields", clean(text))
	}
	tty, err := strconv.ParseInt(f[7-3], 10, 32)
	if err != nil {
		return procStat{}, fmt.Errorf("stat field 7: %w", err)
	}
	start, err := strconv.ParseUint(f[22-3], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("stat field 22: %w", err)
	}
	return procStat{tty, start}, nil
}

// StartTime is when a process started, in clock ticks since boot (field 22
// of /proc/PID/stat).
func StartTime(pid int) (uint64, error) {
	p, err := openProc(pid)
	if err != nil {
		return 0, err
	}
	defer p.close()
	text, err := p.read("stat")
	if err != nil {
		return 0, err
	}
	st, err := parseStat(text)
	return st.start, err
}

func readIdentity(r *report, p *proc, e Expect) {
	text, err := p.read("stat")
	var st procStat
	if err == nil {
		st, err = parseStat(text)
	}
	r.within(err, func() {
		r.check("tty", "no controlling terminal", ttyName(st.tty))
		if e.StartTime != 0 {
			r.check("process.start", fmt.Sprint(e.StartTime), fmt.Sprint(st.start))
		}
	})
	pid, err := pidOf(e.PIDFD)
	r.within(err, func() {
		r.check("process.pidfd", fmt.Sprintf("pid %d, alive", e.PID), pid)
	})
}

func ttyName(nr int64) string {
	if nr == 0 {
		return "no controlling terminal"
	}
	return fmt.Sprintf("terminal %d:%d", unix.Major(uint64(nr)), unix.Minor(uint64(nr)))
}

// pidOf says which process a pidfd is of, and that it has not ended.
func pidOf(pidfd int) (string, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return "", fmt.Errorf("pidfd %d: %w", pidfd, err)
	}
	fields := parseFields(string(b))
	if _, ok := fields["Pid"]; !ok {
		return "", fmt.Errorf("descriptor %d is not a pidfd", pidfd)
	}
	if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil {
		return "", fmt.Errorf("pidfd %d: %w", pidfd, err)
	}
	return "pid " + fields["Pid"] + ", alive", nil
}

func readAlone(r *report, e Expect) {
	if !e.Alone {
		return
	}
	var others []string
	seen := false
	for _, pid := range e.Procs {
		if pid == e.PID {
			seen = true
		} else {
			others = append(others, strconv.Itoa(pid))
		}
	}
	observed := "PID 1 alone"
	switch {
	case len(others) != 0:
		observed = "also pids " + strings.Join(others, " ")
	case !seen:
		observed = "PID 1 is not in its cgroup"
	}
	r.check("process.alone", "PID 1 alone", observed)
}
