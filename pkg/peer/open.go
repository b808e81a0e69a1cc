package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// openTimeout is how long a look-up may take. A file system may be somebody's
// process, or behind a network.
const openTimeout = 10 * time.Second

// maxOpening is how many look-ups of one uid may be under way. One that is
// stuck keeps its thread, and its place.
const maxOpening = 4

var opening = struct {
	mu  sync.Mutex
	uid map[uint32]int
}{uid: map[uint32]int{}}

// OpenDir opens a directory by the path that the peer has for it: beneath the
// root directory of the process that connected, as it is now, and with that
// process's uid, gid and groups as they were at connect(2), without any
// capability. No symbolic or magic link is followed. The descriptor is O_PATH.
//
// The process must still be there when the directory has been opened, and
// must be known by SO_PEERPIDFD (Linux 6.5): by its pid alone it could be
// another process of the user's, with another root.
//
// Beware: a process can have fewer rights than its ids. What its Landlock
// domain, its system call filter or its SELinux or AppArmor policy keeps from
// it cannot be asked by anybody else. A process with such a label is refused;
// a Landlock domain cannot be seen from outside. See openat2(2).
//
// Errors carry an api.Code: invalid_argument, permission_denied (also for what
// does not exist: the path is not there for this caller),
// unsupported_host, resource_exhausted or unavailable.
func (c Cred) OpenDir(ctx context.Context, dir string) (*os.File, error) {
	if !path.IsAbs(dir) || path.Clean(dir) != dir || len(dir) >= unix.PathMax {
		return nil, api.Errorf(api.CodeInvalid, "%q is not an absolute path without . and ..", clip(dir))
	}
	if c.PIDFD == nil || c.Method != MethodPeerPIDFD {
		return nil, api.Errorf(api.CodeUnsupportedHost, "the process that connected cannot be told from others: %s", c.Method).
			WithHint("send a descriptor of the directory; paths need Linux 6.5, and the process that connected must still be there")
	}
	leave, err := enterOpening(c.UID)
	if err != nil {
		return nil, err
	}
	// The result's owner is whoever takes it: nobody, after the time-out.
	done := make(chan *os.File)
	failed := make(chan error, 1)
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, api.Errorf(api.CodeUnavailable, "looking up %s takes too long", clip(dir)))
	go func() {
		defer leave()
		f, err := c.openDir(dir)
		if err != nil {
			failed <- err
			return
		}
		select {
		case done <- f:
		case <-ctx.Done():
			_ = f.Close()
		}
	}()
	defer cancel()
	select {
	case f := <-done:
		return f, nil
	case err := <-failed:
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func clip(s string) string { return s[:min(len(s), 200)] }

func enterOpening(uid uint32) (leave func(), err error) {
	opening.mu.Lock()
	defer opening.mu.Unlock()
	if opening.uid[uid] >= maxOpening {
		return nil, api.Errorf(api.CodeExhausted, "%d paths of this user are being looked up", maxOpening).
			WithHint("try again in a moment, or send descriptors")
	}
	opening.uid[uid]++
	return func() {
		opening.mu.Lock()
		defer opening.mu.Unlock()
		if opening.uid[uid]--; opening.uid[uid] == 0 {
			delete(opening.uid, uid)
		}
	}, nil
}

func (c Cred) openDir(dir string) (f *os.File, err error) {
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd := -1
	err = c.as(func() error {
		fd, err = unix.Openat2(int(root.Fd()), dir, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		return err
	})
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, api.Errorf(api.CodeInvalid, "%s has a symbolic link in it", clip(dir)).WithHint("give the path that the link leads to")
	case errors.Is(err, unix.ENOTDIR):
		return nil, api.Errorf(api.CodeInvalid, "%s is not a directory", clip(dir))
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENAMETOOLONG):
		return nil, api.Errorf(api.CodeDenied, "%s: %w for uid %d in the root directory of the process that connected", clip(dir), err, c.UID)
	case err != nil:
		return nil, fmt.Errorf("open %s as uid %d: %w", clip(dir), c.UID, err)
	}
	f = os.NewFile(uintptr(fd), dir)
	// Last: it lives now, so its pid was its own all the time.
	if err := c.lives(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// root is the root directory of the process that connected.
func (c Cred) root() (*os.File, error) {
	pid, err := c.pid()
	if err != nil {
		return nil, err
	}
	proc, err := os.OpenFile("/proc/"+pid, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errors.Join(c.lives(), err)
	}
	defer proc.Close()
	if err := unconfined(proc); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(proc.Fd()), "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err := errors.Join(c.lives(), err); err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	return os.NewFile(uintptr(fd), "root"), nil
}

// pid is the number in /proc of the process that the pidfd is of, see
// proc_pid_fdinfo(5).
func (c Cred) pid() (pid string, err error) {
	raw, err := c.PIDFD.SyscallConn()
	if err != nil {
		return "", err
	}
	var info []byte
	var rerr error
	err = raw.Control(func(fd uintptr) { info, rerr = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) })
	if err := errors.Join(err, rerr); err != nil {
		return "", err
	}
	for line := range strings.Lines(string(info)) {
		text, found := strings.CutPrefix(line, "Pid:")
		if n, err := strconv.Atoi(strings.TrimSpace(text)); found && err == nil && n > 0 {
			return strconv.Itoa(n), nil
		}
	}
	return "", errors.Join(c.lives(), api.Errorf(api.CodeDenied, "the process that connected is not in the daemon's pid namespace"))
}

// lives is nil while the process that connected has not been reaped.
func (c Cred) lives() error {
	raw, err := c.PIDFD.SyscallConn()
	if err != nil {
		return err
	}
	var gone error
	err = raw.Control(func(fd uintptr) { gone = unix.PidfdSendSignal(int(fd), 0, nil, 0) })
	if err := errors.Join(err, gone); err != nil {
		return api.Errorf(api.CodeDenied, "the process that connected has ended: %w", err).
			WithHint("send the request, on a connection of its own, from a process that stays")
	}
	return nil
}

// unconfined refuses a process that a mandatory policy may keep from what its
// ids may open. proc is its directory in /proc.
func unconfined(proc *os.File) error {
	fd, err := unix.Openat(int(proc.Fd()), "attr/current", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("security label of the process that connected: %w", err)
	}
	f := os.NewFile(uintptr(fd), "attr/current")
	defer f.Close()
	label := make([]byte, 4096)
	n, err := f.Read(label)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // no module has labels (proc_pid_attr_read, fs/proc/base.c)
	}
	if err != nil {
		return fmt.Errorf("security label of the process that connected: %w", err)
	}
	if l := string(bytes.TrimRight(label[:n], "\x00\n")); !free(l) {
		return api.Errorf(api.CodeDenied, "the process that connected is confined (%s), and its rights cannot be asked for it", clip(l)).
			WithHint("send a descriptor of the directory")
	}
	return nil
}

// free says whether a label is of no policy: AppArmor's and SELinux's.
func free(label string) bool {
	fields := bytes.Split([]byte(label), []byte(":"))
	return label == "" || label == "unconfined" || len(fields) >= 4 && string(fields[2]) == "unconfined_t"
}

// as runs fn with the peer's ids where the file system looks, and no capability.
func (c Cred) as(fn func() error) error { return thread.As(c.UID, c.GID, c.Groups, fn) }
