package egressproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress/link"
)

// running is a process that runs, our child or an earlier daemon's.
type running struct {
	pid   int
	pidfd *os.File
	child *exec.Cmd  // to be reaped; nil if adopted
	log   *link.Conn // by which it tells
	ask   *link.Conn // by which it asks
	host  *link.Host // what it was told
}

// hangUp ends the connections by which it speaks.
func (r *running) hangUp() {
	for _, c := range []*link.Conn{r.log, r.ask} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// spawn starts a process, and connects to it.
func (p *process) spawn(ctx context.Context) (_ *running, _ *link.Conn, err error) {
	sock, err := p.bind()
	if err != nil {
		return nil, nil, err
	}
	defer sock.Close()
	words, err := os.OpenFile(filepath.Join(p.k.opts.Dir, p.words()), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer words.Close()
	program, err := os.OpenFile(p.k.opts.Program, unix.O_PATH, 0)
	if err != nil {
		return nil, nil, err
	}
	defer program.Close()
	pidfd := -1
	// By its descriptor: its user need not be able to walk to it. Not ended by
	// any context: it outlives the daemon.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), fmt.Sprintf("/proc/self/fd/%d", program.Fd()))
	cmd.Args = []string{"creel-egress"}
	cmd.Dir, cmd.Stderr, cmd.ExtraFiles = "/", words, []*os.File{sock}
	cmd.Env = []string{"GOMEMLIMIT=512MiB", "GOTRACEBACK=single"}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, PidFD: &pidfd,
		Credential: &syscall.Credential{Uid: p.uid, Gid: p.uid, Groups: []uint32{}},
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	if pidfd < 0 {
		return nil, nil, errors.Join(errors.New("no pidfd; Linux 5.4 or later is needed"), cmd.Process.Kill(), cmd.Wait())
	}
	r := &running{pid: cmd.Process.Pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), child: cmd}
	for {
		c, pid, err := p.dial(ctx)
		if err == nil && pid != r.pid {
			err = errors.Join(fmt.Errorf("pid %d listens, and not %d", pid, r.pid), c.Close())
		}
		if err == nil {
			return r, c, nil
		}
		if gone, _ := r.gone(5 * time.Millisecond); gone || ctx.Err() != nil {
			return nil, nil, errors.Join(fmt.Errorf("creel-egress does not start: %w; %s", err, p.lastWords()), r.kill())
		}
	}
}

// bind makes the socket at its name, in place of one before it.
func (p *process) bind() (*os.File, error) {
	dir, err := os.Open(p.k.opts.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), p.path, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, &os.PathError{Op: "unlink", Path: p.path, Err: err}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), p.path)
	// The kernel has room for 107 bytes, whatever the directory's name.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), p.path)}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind %s: %w", p.path, err), f.Close())
	}
	return f, nil
}

// dial connects to the process that listens, which has to be of the right user,
// and says which it is.
func (p *process) dial(ctx context.Context) (_ *link.Conn, pid int, err error) {
	dir, err := os.Open(p.k.opts.Dir)
	if err != nil {
		return nil, 0, err
	}
	defer dir.Close()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), p.path))
	if err != nil {
		return nil, 0, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return nil, 0, errors.Join(fmt.Errorf("a connection that is a %T", c), c.Close())
	}
	raw, err := uc.SyscallConn()
	var who *unix.Ucred
	var said error
	if err == nil {
		err = raw.Control(func(fd uintptr) { who, said = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	}
	if err := errors.Join(err, said); err != nil {
		return nil, 0, errors.Join(err, c.Close())
	}
	// Of who called listen(2), which it did before it gave anything up.
	if who.Uid != p.uid || who.Pid <= 0 {
		return nil, 0, errors.Join(fmt.Errorf("uid %d listens at %s", who.Uid, p.path), c.Close())
	}
	return link.NewConn(uc), int(who.Pid), nil
}

// words is where the process's last words go.
func (p *process) words() string { return fmt.Sprintf("%d.err", p.caller) }

// lastWords is the end of them.
func (p *process) lastWords() string {
	f, err := os.Open(filepath.Join(p.k.opts.Dir, p.words()))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 2048)
	n, _ := f.ReadAt(b, 0)
	return strconv.Quote(string(bytes.TrimSpace(b[:n])))
}

// hold takes hold of an adopted process.
func hold(pid int) (*running, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pid %d: %w", pid, err)
	}
	return &running{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// gone waits at most d for the end of the process.
func (r *running) gone(d time.Duration) (bool, error) {
	end := time.Now().Add(d)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(r.pidfd.Fd()), Events: unix.POLLIN}}, int(max(time.Until(end), 0).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// kill ends the process, and reaps it.
func (r *running) kill() error {
	defer r.close()
	if err := unix.PidfdSendSignal(int(r.pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	if r.child != nil {
		_ = r.child.Wait() // its status says nothing that its last words do not
		return nil
	}
	ended, err := r.gone(10 * time.Second)
	if err == nil && !ended {
		err = fmt.Errorf("pid %d does not end", r.pid)
	}
	return err
}

func (r *running) close() { _ = r.pidfd.Close() }

// controlName is the control of what the process can be.
const controlName = "egress.process"

func confined(uid uint32) string {
	return fmt.Sprintf("uid %d alone, no groups, no capabilities, no_new_privs, a filter of system calls", uid)
}

// control says whether the process is what it has to be, as the kernel has it
// (proc_pid_status(5)).
func (r *running) control(uid uint32) api.Control {
	c := api.Control{Name: controlName, Expected: confined(uid)}
	got, err := r.status()
	if err == nil {
		var ended bool
		if ended, err = r.gone(0); ended {
			err = errors.New("it has ended")
		}
	}
	if err != nil {
		c.Observed = err.Error()
		return c
	}
	id := strings.Repeat(fmt.Sprintf("%d ", uid), 4)
	var wrong []string
	for _, w := range []struct{ field, want string }{
		{"Uid", strings.TrimSpace(id)},
		{"Gid", strings.TrimSpace(id)},
		{"Groups", ""},
		{"NoNewPrivs", "1"},
		{"Seccomp", "2"},
		{"CapInh", noCaps},
		{"CapPrm", noCaps},
		{"CapEff", noCaps},
		{"CapAmb", noCaps},
	} {
		if v, ok := got[w.field]; !ok || v != w.want {
			wrong = append(wrong, fmt.Sprintf("%s is %q", w.field, v))
		}
	}
	c.OK, c.Observed = len(wrong) == 0, c.Expected
	if !c.OK {
		c.Observed = strings.Join(wrong, ", ")
	}
	return c
}

const noCaps = "0000000000000000"

func (r *running) status() (map[string]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.pid))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		out[name] = strings.Join(strings.Fields(value), " ")
	}
	return out, nil
}

// endAll ends every process of a user, which has no other than a creel-egress:
// one that had not come to listen when its daemon was killed.
func endAll(uid uint32) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		r, err := hold(pid)
		if err != nil {
			continue // it has ended
		}
		// The pidfd holds it: what it is is read after that.
		st, err := r.status()
		if ids := strings.Fields(st["Uid"]); err != nil || !slices.Contains(ids, strconv.FormatUint(uint64(uid), 10)) {
			r.close()
			continue
		}
		errs = append(errs, r.kill())
	}
	return errors.Join(errs...)
}
