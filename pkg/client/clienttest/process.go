package clienttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
)

func itoa(n int) string { return strconv.Itoa(n) }

// process is a child of the test.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    output
	errOut output
	late   atomic.Bool // its time was over
	done   chan struct{}
	result api.ExecResult // after done
}

// output remembers what was written, and lets readers wait for more.
type output struct {
	mu   sync.Mutex
	cond *sync.Cond
	b    bytes.Buffer
	end  bool
}

func (o *output) init() { o.cond = sync.NewCond(&o.mu) }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.cond.Broadcast()
	return o.b.Write(p)
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end = true
	o.cond.Broadcast()
}

func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Clone(o.b.Bytes())
}

// outputReader reads an output from its start.
type outputReader struct {
	o   *output
	pos int
}

func (r *outputReader) Read(p []byte) (int, error) {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	for {
		if n := copy(p, r.o.b.Bytes()[r.pos:]); n > 0 {
			r.pos += n
			return n, nil
		}
		if r.o.end {
			return 0, io.EOF
		}
		r.o.cond.Wait()
	}
}

func newProcess(command []string, env map[string]string) *process {
	p := &process{cmd: exec.CommandContext(context.Background(), command[0], command[1:]...), done: make(chan struct{})}
	p.cmd.Env = []string{"PATH=/usr/bin:/bin"}
	for k, v := range env {
		p.cmd.Env = append(p.cmd.Env, k+"="+v)
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.out.init()
	p.errOut.init()
	return p
}

// startMain runs a sandbox's command. One that cannot start ends at once, as
// in a sandbox.
func startMain(command []string, req api.SpawnRequest) (*process, error) {
	p := newProcess(command, req.Env)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errOut
	if req.Stdin {
		in, err := p.cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		p.stdin = in
	}
	p.start(req.Timeout.D())
	return p, nil
}

func (p *process) start(timeout time.Duration) {
	if err := p.cmd.Start(); err != nil {
		p.result = api.ExecResult{ID: "main", ExitCode: 127, Reason: api.ReasonExited, Error: "not found"}
		if errors.Is(err, os.ErrPermission) {
			p.result.ExitCode, p.result.Error = 126, "not executable"
		}
		p.finish()
		return
	}
	if timeout > 0 {
		time.AfterFunc(timeout, func() {
			p.late.Store(true)
			p.kill()
		})
	}
	go p.wait()
}

func (p *process) wait() {
	_ = p.cmd.Wait() // its exit is in ProcessState
	ws, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	p.result.ID = "main"
	switch {
	case p.late.Load():
		p.result.ExitCode, p.result.Reason = 124, api.ReasonTimeout
	case ws.Signaled():
		p.result.ExitCode, p.result.Signal = 128+int(ws.Signal()), int(ws.Signal())
		p.result.Reason = api.ReasonExited
	default:
		p.result.ExitCode, p.result.Reason = ws.ExitStatus(), api.ReasonExited
	}
	p.finish()
}

func (p *process) finish() {
	p.out.close()
	p.errOut.close()
	close(p.done)
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) signal(sig syscall.Signal) {
	if !p.ended() && p.cmd.Process != nil {
		_ = unix.Kill(-p.cmd.Process.Pid, sig) // its group: what it started, too
	}
}

func (p *process) kill() { p.signal(unix.SIGKILL) }

// session is a server.Session over a process.
type session struct {
	p      *process
	id     string
	attach bool
	files  []*os.File
	tty    *os.File
	in     io.WriteCloser
	out    io.Reader
	err    io.Reader
}

func newAttach(p *process) *session {
	return &session{
		p: p, id: "main", attach: true, in: p.stdin,
		out: &outputReader{o: &p.out}, err: &outputReader{o: &p.errOut},
	}
}

// startExec runs a command with pipes or a terminal, handed over or framed.
func startExec(req api.ExecRequest) (*session, error) {
	p := newProcess(req.Command, req.Env)
	s := &session{p: p, id: "execexecexec"}
	var err error
	if req.TTY {
		err = s.terminal(req)
	} else {
		err = s.pipes(req)
	}
	if err != nil {
		return nil, err
	}
	p.start(req.Timeout.D())
	for _, f := range []any{p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr} {
		if file, ok := f.(*os.File); ok {
			_ = file.Close() // the child has its own
		}
	}
	return s, nil
}

func (s *session) pipes(req api.ExecRequest) error {
	var ends []*os.File
	if req.Stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.p.cmd.Stdin, s.in = r, w
		ends = append(ends, w)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return err
	}
	s.p.cmd.Stdout, s.p.cmd.Stderr = outW, errW
	if req.IO == "fds" {
		s.files, s.in = append(ends, outR, errR), nil
	} else {
		s.out, s.err = outR, errR
	}
	return nil
}

func (s *session) terminal(req api.ExecRequest) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var slave int
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			err = errno
			return
		}
		slave = int(n)
		err = setSize(int(fd), req.Cols, req.Rows)
	})
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	tty := os.NewFile(uintptr(slave), "tty")
	s.p.cmd.Stdin, s.p.cmd.Stdout, s.p.cmd.Stderr = tty, tty, tty
	s.p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if s.tty = master; req.IO == "fds" {
		dup, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		s.files = []*os.File{os.NewFile(uintptr(dup), "ptmx")}
	} else {
		s.in, s.out = master, master
	}
	return nil
}

func setSize(fd int, cols, rows uint16) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
}

func (s *session) ID() string            { return s.id }
func (s *session) Files() []*os.File     { return s.files }
func (s *session) Stdin() io.WriteCloser { return s.in }
func (s *session) Stdout() io.Reader     { return s.out }
func (s *session) Stderr() io.Reader     { return s.err }

func (s *session) Resize(cols, rows uint16) error {
	if s.tty == nil {
		return errors.New("no terminal")
	}
	return setSize(int(s.tty.Fd()), cols, rows)
}

func (s *session) Signal(sig syscall.Signal) error {
	s.p.signal(sig)
	return nil
}

func (s *session) Wait(ctx context.Context) (api.ExecResult, error) {
	select {
	case <-s.p.done:
		r := s.p.result
		r.ID = s.id
		return r, nil
	case <-ctx.Done():
		return api.ExecResult{}, ctx.Err()
	}
}

// Close kills an exec's process group: its client has gone.
func (s *session) Close() error {
	if s.attach {
		return nil
	}
	s.p.kill()
	for _, c := range []any{s.in, s.out, s.err} {
		if f, ok := c.(*os.File); ok && f != nil {
			_ = f.Close()
		}
	}
	return nil
}
