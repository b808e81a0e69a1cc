// Package peer tells which local process is at the other end of a Unix socket.
//
// Give ConnContext to http.Server and read the caller with From. A request
// without kernel-given credentials has no caller and must be refused.
//
// Beware: a pid is a name that the kernel uses again. Decide on UID, GID and
// Groups; use PIDFD where the process itself is meant.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// How the process behind a connection was pinned, strongest first.
const (
	// MethodPeerPIDFD is SO_PEERPIDFD (Linux 6.5): the process that connected.
	MethodPeerPIDFD = "SO_PEERPIDFD"
	// MethodPIDFDOpen is pidfd_open(2) of the pid that connected, checked to
	// have the same effective uid. Weaker: the pid may have been used again by
	// another process of that user.
	MethodPIDFDOpen = "pidfd_open (weaker: the pid may have been used again)"
	// MethodNone is no pidfd: the process has ended, or is in a pid namespace
	// that the daemon does not see.
	MethodNone = "none (the process has ended or is not visible)"
)

// maxGroups bounds SO_PEERGROUPS; NGROUPS_MAX is 65536, see setgroups(2).
const maxGroups = 65536

// Cred is what the kernel recorded when the peer connected, see unix(7).
type Cred struct {
	// UID and GID are the effective ids at connect(2).
	UID uint32
	GID uint32
	// Groups are the supplementary groups at connect(2), sorted.
	Groups []uint32
	// PID is the process that connected, 0 when it is in a pid namespace that
	// is not a descendant of the daemon's. For display only.
	PID int32
	// PIDFD pins that process, or is nil (see Method). It belongs to the
	// connection and is closed with it; do not close it.
	PIDFD *os.File
	// Method says how PIDFD was obtained: one of the Method constants.
	Method string
	// Via is the id of the sandbox through whose own socket a request came,
	// empty for creeld's. The ids are then those of the sandbox's caller, who
	// is no operator here: only the sandbox's descendants exist.
	Via string
}

// InGroup says whether gid is the peer's group or one of its supplementary ones.
func (c Cred) InGroup(gid uint32) bool {
	_, ok := slices.BinarySearch(c.Groups, gid)
	return ok || c.GID == gid
}

// ErrNone means the request did not come through a socket with credentials.
var ErrNone = errors.New("no peer credentials; connect through creeld's Unix socket")

type key struct{}

// NewContext returns a context in which From finds cred.
func NewContext(ctx context.Context, cred Cred) context.Context {
	return context.WithValue(ctx, key{}, cred)
}

// From returns the credentials of the request's peer, or ErrNone.
func From(ctx context.Context) (Cred, error) {
	cred, ok := ctx.Value(key{}).(Cred)
	if !ok {
		return Cred{}, ErrNone
	}
	return cred, nil
}

// ConnContext stores the peer's credentials; give it to http.Server.
// A connection without credentials gets none, and From then refuses it.
//
// The pidfd is closed by the connection's OnClose hook. A connection that has
// no such hook gets no pidfd, so that none can leak.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	cred, err := Read(c)
	if err != nil {
		return ctx
	}
	if cred.PIDFD != nil {
		pidfd := cred.PIDFD
		if h, ok := c.(interface{ OnClose(func()) }); ok {
			h.OnClose(func() { _ = pidfd.Close() })
		} else {
			_ = pidfd.Close()
			cred.PIDFD, cred.Method = nil, MethodNone
		}
	}
	return NewContext(ctx, cred)
}

// Read asks the kernel who is at the other end of c, which must be, or wrap, a
// connected Unix socket: anything with a SyscallConn method. The caller of
// Read owns the PIDFD.
func Read(c net.Conn) (Cred, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Cred{}, ErrNone
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred Cred
	var readErr error
	if err := raw.Control(func(fd uintptr) { cred, readErr = read(int(fd)) }); err != nil {
		return Cred{}, fmt.Errorf("peer credentials: %w", err)
	}
	return cred, readErr
}

func read(fd int) (Cred, error) {
	cred, err := idsOf(fd)
	if err != nil {
		return Cred{}, err
	}
	cred.PIDFD, cred.Method = pinPeer(fd, cred)
	return cred, nil
}

func idsOf(fd int) (Cred, error) {
	ucred, err := ucredOf(fd)
	if err != nil {
		return Cred{}, err
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return Cred{}, err
	}
	return Cred{PID: ucred.Pid, UID: ucred.Uid, GID: ucred.Gid, Groups: groups, Method: MethodNone}, nil
}

// pinPeer prefers the kernel's own word on the process. Only where the kernel
// does not know the option does it go by pid.
func pinPeer(fd int, cred Cred) (*os.File, string) {
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		return os.NewFile(uintptr(pidfd), "peer pidfd"), MethodPeerPIDFD
	case errors.Is(err, unix.ENOPROTOOPT):
		return pinByPID(cred)
	default:
		// ESRCH or EINVAL: it has been reaped. The pid must not be tried, it
		// is another process's by now.
		return nil, MethodNone
	}
}

// pinByPID opens the pid and then checks, through the pinned process, that it
// still has the uid that connected.
func pinByPID(cred Cred) (*os.File, string) {
	if cred.PID <= 0 {
		return nil, MethodNone
	}
	pidfd, err := unix.PidfdOpen(int(cred.PID), 0)
	if err != nil {
		return nil, MethodNone
	}
	f := os.NewFile(uintptr(pidfd), "peer pidfd")
	euid, err := effectiveUID(cred.PID)
	// The signal is sent last: if the pinned process lives now, it has held
	// its pid all the time, and the file read was its own.
	if err != nil || euid != cred.UID || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil {
		_ = f.Close()
		return nil, MethodNone
	}
	return f, MethodPIDFDOpen
}

// effectiveUID reads the second number of the Uid line, see proc_pid_status(5).
func effectiveUID(pid int32) (uint32, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 5 && f[0] == "Uid:" {
			uid, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(uid), err
		}
	}
	return 0, fs.ErrNotExist
}

// IDs is who the peer is by its ids alone, without a pidfd to close.
func IDs(c net.Conn) (Cred, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Cred{}, ErrNone
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred Cred
	var readErr error
	if err := raw.Control(func(fd uintptr) { cred, readErr = idsOf(int(fd)) }); err != nil {
		return Cred{}, fmt.Errorf("peer credentials: %w", err)
	}
	return cred, readErr
}

func ucredOf(fd int) (*unix.Ucred, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, fmt.Errorf("SO_DOMAIN: %w", err)
	}
	// A TCP socket answers SO_PEERCRED too, with pid 0 and uid -1.
	if domain != unix.AF_UNIX {
		return nil, ErrNone
	}
	ucred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	if ucred.Uid == ^uint32(0) || ucred.Gid == ^uint32(0) {
		return nil, ErrNone // not connected
	}
	return ucred, nil
}
