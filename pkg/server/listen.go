package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Socket is the daemon's listening socket.
type Socket struct {
	*net.UnixListener
	// Activated is true when systemd made it.
	Activated bool
	lock      *os.File
}

// Close stops listening. The socket's file stays, so that a client is told
// "connection refused" rather than that there is no creel; the next Listen
// replaces it.
func (s *Socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // by http.Server.Shutdown
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// Listen takes the socket that systemd passed (LISTEN_FDS, see
// sd_listen_fds(3)), or else makes one at path: mode 0660 with that group, or
// 0600 when group is empty. Call it once, in the process that serves.
//
// A socket file that is there is replaced only when nobody listens on it.
func Listen(ctx context.Context, path, group string) (*Socket, error) {
	files := activation.Files(true)
	switch len(files) {
	case 0:
		return listenOwn(ctx, path, group)
	case 1:
		defer closeFiles(files)
		l, err := unixListener(files[0])
		if err != nil {
			return nil, fmt.Errorf("socket from systemd: %w", err)
		}
		return &Socket{UnixListener: l, Activated: true}, nil
	default:
		closeFiles(files)
		return nil, fmt.Errorf("systemd passed %d sockets; creeld.socket must have one ListenStream only", len(files))
	}
}

// CheckSocket says why Listen could not make a socket, without making it.
func CheckSocket(path, group string) error {
	_, _, err := groupMode(group)
	return errors.Join(checkDir(filepath.Dir(path)), err)
}

func unixListener(f *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	ul, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("it is a %T; creel listens on a Unix stream socket only", l)
	}
	ul.SetUnlinkOnClose(false)
	return ul, nil
}

func listenOwn(ctx context.Context, path, group string) (_ *Socket, err error) {
	if err := checkDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	gid, mode, err := groupMode(group)
	if err != nil {
		return nil, err
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if err := checkStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := bind(path, gid, mode)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return &Socket{UnixListener: l, lock: lock}, nil
}

// checkDir refuses a directory in which somebody else could put another socket
// in the place of ours.
func checkDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("directory of the socket %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("directory of the socket %s is not a directory", dir)
	}
	if euid := uint32(os.Geteuid()); (st.Uid != euid && st.Uid != 0) || st.Mode&0o022 != 0 {
		return fmt.Errorf("directory of the socket %s can be written by others (uid %d, mode %o); chown it to root and chmod it to 755", dir, st.Uid, st.Mode&0o7777)
	}
	return nil
}

func groupMode(group string) (gid int, mode uint32, err error) {
	if group == "" {
		return -1, 0o600, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, 0, fmt.Errorf("group of the socket: %w; create it with \"groupadd --system %s\" or set socket_group", err, group)
	}
	gid, err = strconv.Atoi(g.Gid)
	return gid, 0o660, err
}

// lockSocket keeps two daemons from replacing each other's socket.
func lockSocket(path string) (*os.File, error) {
	name := path + ".lock"
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the socket: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another creeld has the socket %s (its lock is held)", path)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return f, nil
}

// checkStale returns nil if nothing is at path or a socket nobody listens on.
func checkStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, err)
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: something is there that is not a socket; move it away", path)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("socket %s: somebody listens on it; stop that process or set another socket", path)
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	default:
		return fmt.Errorf("socket %s: cannot tell whether somebody listens on it: %w", path, err)
	}
}

// bind makes the socket under another name and renames it when its owner and
// mode are right, and only then listens, so that at no time anybody can
// connect who should not.
func bind(path string, gid int, mode uint32) (_ *net.UnixListener, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer func() { _ = f.Close() }() // the listener has its own duplicate
	tmp := filepath.Join(filepath.Dir(path), "."+rand.Text()[:8])
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: tmp}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	if err := os.Lchown(tmp, -1, gid); err != nil {
		return nil, err
	}
	if err := os.Chmod(tmp, fs.FileMode(mode)); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), os.Remove(path))
	}
	return unixListener(f)
}
