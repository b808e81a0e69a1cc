package mount

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"

	"golang.org/x/sys/unix"
)

// entry is one line of mountinfo, see proc_pid_mountinfo(5).
type entry struct {
	id          uint64
	device      string // major:minor
	root        string // what of its file system it shows
	point       string
	options     []string
	propagation []string // shared:N, master:N
	fsType      string
}

func (e entry) has(option string) bool { return slices.Contains(e.options, option) }

// mountOf is the mount that fd is on, of the thread's namespace. It makes no
// call to the file system. The error is errNotHere if the mount is of another
// namespace.
func mountOf(proc *os.File, fd int) (entry, error) {
	id, err := mountID(fd)
	if err != nil {
		return entry{}, err
	}
	found := entry{}
	err = scan(proc, "thread-self", func(e entry) {
		if e.id == id {
			found = e
		}
	})
	if err != nil {
		return entry{}, err
	}
	if found.fsType == "" {
		return entry{}, errNotHere
	}
	return found, nil
}

// mountID is the id, in mountinfo, of the mount that fd is on.
func mountID(fd int) (uint64, error) {
	var stx unix.Statx_t
	flags := unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(fd, "", flags, unix.STATX_MNT_ID, &stx); err != nil {
		return 0, fmt.Errorf("mount of the directory: %w", err)
	}
	if stx.Mask&unix.STATX_MNT_ID == 0 {
		return 0, errors.New("mount of the directory: the kernel does not tell")
	}
	return stx.Mnt_id, nil
}

// covered refuses a directory with mounts beneath it in a namespace that is
// not the host's: a clone would show what they hide.
func covered(proc *os.File, fd int, host *os.File) error {
	var own, hosts unix.Stat_t
	if err := unix.Fstatat(int(proc.Fd()), "thread-self/ns/mnt", &own, 0); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if host != nil {
		if err := unix.Fstat(int(host.Fd()), &hosts); err != nil {
			return fmt.Errorf("the host's mount namespace: %w", err)
		}
		if own.Ino == hosts.Ino && own.Dev == hosts.Dev {
			return nil
		}
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(proc.Fd()), fmt.Sprintf("thread-self/fd/%d", fd), buf)
	if err != nil {
		return fmt.Errorf("path of the directory: %w", err)
	}
	if n == len(buf) {
		return api.Errorf(api.CodeInvalid, "the directory's path is too long")
	}
	prefix := strings.TrimSuffix(string(buf[:n]), "/") + "/"
	point := ""
	err = scan(proc, "thread-self", func(e entry) {
		if strings.HasPrefix(e.point, prefix) {
			point = e.point
		}
	})
	if err != nil || point == "" {
		return err
	}
	return api.Errorf(api.CodeDenied, "something is mounted at %s in the caller's mount namespace, and what is under it would be uncovered", point).
		WithHint("share a directory without mounts in it")
}

// table is the mount table of the process's (or "thread-self"'s) namespace.
func table(proc *os.File, process string) (out []entry, err error) {
	err = scan(proc, process, func(e entry) { out = append(out, e) })
	return out, err
}

// scan calls fn for each line. It keeps nothing, since a caller can have
// 100,000 mounts in a namespace of its own (fs.mount-max).
func scan(proc *os.File, process string, fn func(entry)) error {
	fd, err := unix.Openat(int(proc.Fd()), process+"/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount table: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mountinfo")
	defer f.Close()
	return parse(f, fn)
}

func parse(r io.Reader, fn func(entry)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20) // overlay options can be long
	for sc.Scan() {
		e, err := parseLine(sc.Bytes())
		if err != nil {
			return fmt.Errorf("mount table: %w", err)
		}
		fn(e)
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("mount table: %w", err)
	}
	return nil
}

// parseLine reads "36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/x rw".
func parseLine(line []byte) (entry, error) {
	left, right, ok := bytes.Cut(line, []byte(" - "))
	f, g := strings.Split(string(left), " "), strings.SplitN(string(right), " ", 2)
	if !ok || len(f) < 6 || g[0] == "" {
		return entry{}, fmt.Errorf("unexpected line %q", line)
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return entry{}, fmt.Errorf("unexpected line %q", line)
	}
	e := entry{id: id, device: f[2], root: unescape(f[3]), point: unescape(f[4]), options: strings.Split(f[5], ","), fsType: g[0]}
	for _, tag := range f[6:] {
		if tag != "" {
			e.propagation = append(e.propagation, tag)
		}
	}
	return e, nil
}

// unescape undoes the kernel's \ooo for space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
