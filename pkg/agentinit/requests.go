package agentinit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// Hello is what creel-init says of itself first.
type Hello struct {
	PID     int    // in its own namespace: 1
	Ready   bool   // Setup was done
	Gone    bool   // Go was said
	Keyring string // the session keyring, "type;uid;gid;perm;name" (keyctl(2)); "" without
}

// Hello begins the conversation. Whatever creel-init had queued for an
// earlier daemon is passed over. It must be the first request.
func (h *Host) Hello(ctx context.Context) (Hello, error) {
	nonce := newNonce()
	h.mu.Lock()
	if h.synced {
		h.mu.Unlock()
		return Hello{}, fmt.Errorf("hello: %w", ErrOrder)
	}
	h.nonce = nonce
	h.mu.Unlock()
	c, err := h.roundTrip(ctx, wire.THello, wire.THelloReply, nil, func(w *wire.W) { w.Bytes(nonce[:]) })
	if err != nil {
		return Hello{}, fmt.Errorf("hello: %w", err)
	}
	r := wire.Body(c.body)
	r.Bytes(wire.NonceLen)
	hello := Hello{PID: int(r.U32()), Ready: r.Bool(), Gone: r.Bool(), Keyring: r.Str(wire.MaxKeyring)}
	if !r.Done() || hello.PID != 1 {
		return Hello{}, fmt.Errorf("hello: answer from pid %d: %w", hello.PID, ErrHostile)
	}
	return hello, nil
}

// Rlimit is a resource limit of creel-init and all its children, which can
// only be lowered.
type Rlimit struct {
	Resource   int // unix.RLIMIT_*
	Soft, Hard uint64
}

// Setup is what creel-init does to itself before anything runs.
type Setup struct {
	// Filter is the seccomp filter, struct sock_filter after struct
	// sock_filter, put on every thread. None when empty.
	Filter []byte

	// Rlimits are lowered first. creel-init's own descriptors count against
	// RLIMIT_NOFILE: about four for each process that lives.
	Rlimits []Rlimit

	// Isolate puts each process that is started, with its children, into a
	// Landlock domain of its own: it cannot look into another's, or at
	// creel-init. The error is EOPNOTSUPP or ENOSYS when the kernel has no
	// Landlock, and EINVAL when it is older than Linux 5.19.
	Isolate bool
}

// Setup installs the limits and the filter. It can be done once, before Go.
func (h *Host) Setup(ctx context.Context, s Setup) error {
	m := wire.Setup{Filter: s.Filter, Isolate: s.Isolate}
	if len(s.Filter) > wire.MaxFilter || len(s.Filter)%8 != 0 || len(s.Rlimits) > wire.MaxRlimits {
		return fmt.Errorf("setup: filter of %d bytes, %d limits: %w", len(s.Filter), len(s.Rlimits), ErrTooLarge)
	}
	for _, l := range s.Rlimits {
		m.Rlimits = append(m.Rlimits, wire.Rlimit{Resource: uint32(l.Resource), Soft: l.Soft, Hard: l.Hard})
	}
	if _, err := h.roundTrip(ctx, wire.TSetup, wire.TOK, nil, m.Append); err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	return nil
}

// ProbeOptions says what the sandbox promises beyond the fixed list.
type ProbeOptions struct {
	ReadonlyRoot bool // writing to / must give EROFS
	NoRoute      bool // no address outside can be reached: ENETUNREACH
	Isolate      bool // a process must not see into another: the row Isolation
	Root         bool // processes are root inside: no rows about becoming it
}

// Isolation is the name of the row that ProbeOptions.Isolate adds.
const Isolation = wire.Isolation

// ProbeResult is one call that must fail.
type ProbeResult struct {
	Name string
	Want syscall.Errno
	Got  syscall.Errno // 0: it succeeded
}

// OK is whether the call failed as it must.
func (r ProbeResult) OK() bool { return r.Want != 0 && r.Want == r.Got }

// Probe has creel-init try what must fail. It is refused after Go, when the
// answer would be worth nothing.
func (h *Host) Probe(ctx context.Context, o ProbeOptions) ([]ProbeResult, error) {
	m := wire.Probing(o)
	c, err := h.roundTrip(ctx, wire.TProbe, wire.TProbeReply, nil, m.Append)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	r := wire.Body(c.body)
	n := int(r.U16())
	if n == 0 || n > wire.MaxProbes {
		return nil, fmt.Errorf("probe: %d results: %w", n, ErrHostile)
	}
	out := make([]ProbeResult, 0, n)
	for range n {
		p := wire.ReadProbe(&r)
		out = append(out, ProbeResult{Name: p.Name, Want: syscall.Errno(p.Want), Got: syscall.Errno(p.Got)})
	}
	if !r.Done() {
		return nil, fmt.Errorf("probe: %w", ErrHostile)
	}
	return out, nil
}

// Go allows processes. There is no way back.
func (h *Host) Go(ctx context.Context) error {
	if _, err := h.roundTrip(ctx, wire.TGo, wire.TOK, nil, nil); err != nil {
		return fmt.Errorf("go: %w", err)
	}
	return nil
}

// Start has creel-init fork a child, which waits for Release, and gives its
// pid in the sandbox's namespace. fds are its standard input, output and
// error (with TTY one terminal for all three; with Bytes none), and then
// KeepFDs that creel-init holds until Ack, and JoinFDs; the caller keeps its copies. Its
// standard descriptors are made blocking, the kept ones are left as they are. An
// *ExecError of StageFork means that there was nothing left to fork with.
func (h *Host) Start(ctx context.Context, p Process, fds []*os.File) (int, error) {
	m, err := p.wire()
	if err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	if len(fds) != m.FDs() {
		return 0, fmt.Errorf("start: %d descriptors, not the %d it needs: %w", len(fds), m.FDs(), os.ErrInvalid)
	}
	if !p.Bytes && !h.conn.PassesFDs() {
		return 0, fmt.Errorf("start: this runtime passes no descriptors; use Bytes: %w", errors.ErrUnsupported)
	}
	raw, err := numbers(fds)
	if err != nil {
		return 0, fmt.Errorf("start: %w", err)
	}
	for _, fd := range raw[:len(raw)-p.KeepFDs-p.JoinFDs] {
		// os.Pipe's are not, and few commands know what to do with EAGAIN.
		if err := unix.SetNonblock(fd, false); err != nil {
			return 0, fmt.Errorf("start: %w", err)
		}
	}
	defer runtime.KeepAlive(fds)
	st := newProc(p.Bytes)
	h.mu.Lock()
	if h.procs[p.ID] != nil {
		h.mu.Unlock()
		return 0, fmt.Errorf("start %s: %w", p.ID, ErrExists)
	}
	h.procs[p.ID] = st
	h.mu.Unlock()

	c, err := h.roundTrip(ctx, wire.TStart, wire.TStarted, raw, m.Append)
	if err == nil {
		r := wire.Body(c.body)
		pid := int32(r.U32())
		if r.Done() && pid > 1 {
			h.mu.Lock()
			st.info.NSPid = pid
			h.mu.Unlock()
			return int(pid), nil
		}
		err = fmt.Errorf("pid %d: %w", pid, ErrHostile)
	}
	h.drop(p.ID)
	if c != nil && c.code == wire.CodeOS {
		err = &ExecError{Stage: StageFork, Errno: c.no}
	}
	return 0, fmt.Errorf("start %s: %w", p.ID, err)
}

// numbers gives the files' descriptors as they are: File.Fd would make them
// blocking, and one that is also held here must stay with the netpoller.
func numbers(fds []*os.File) ([]int, error) {
	raw := make([]int, len(fds))
	for i, f := range fds {
		c, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := c.Control(func(fd uintptr) { raw[i] = int(fd) }); err != nil {
			return nil, err
		}
	}
	return raw, nil
}

func newProc(withBytes bool) *proc {
	p := &proc{started: make(chan struct{}), exited: make(chan struct{})}
	if withBytes {
		p.io = newByteIO()
	}
	return p
}

func (p *Process) wire() (*wire.Start, error) {
	m := &wire.Start{
		ID: p.ID, TTY: p.TTY, Internal: p.Internal, Umask: p.Umask, Cols: p.Cols, Rows: p.Rows,
		Keep: uint8(p.KeepFDs), Join: uint8(p.JoinFDs), Cwd: []byte(p.Cwd),
	}
	if p.Bytes {
		m.IO, m.Window = wire.IOBytes, window
	}
	for _, a := range p.Argv {
		m.Argv = append(m.Argv, []byte(a))
	}
	for _, e := range p.Env {
		m.Env = append(m.Env, []byte(e))
	}
	if len(m.Argv) > MaxStrings || len(m.Env) > MaxStrings || m.ArgsLen() > MaxArgs {
		return nil, ErrTooLarge
	}
	if p.KeepFDs < 0 || p.KeepFDs > MaxKeepFDs || p.JoinFDs < 0 || p.JoinFDs > wire.MaxJoin {
		return nil, fmt.Errorf("%d descriptors to keep and %d to join by: %w", p.KeepFDs, p.JoinFDs, os.ErrInvalid)
	}
	// What creel-init would refuse is refused here, with a better message.
	w := wire.W{}
	m.Append(&w)
	r := wire.Body(w.B)
	var check wire.Start
	if check.Read(&r); !r.Done() {
		return nil, fmt.Errorf("id, command, directory or umask: %w", os.ErrInvalid)
	}
	return m, nil
}

func (h *Host) drop(id string) {
	h.mu.Lock()
	delete(h.procs, id)
	h.mu.Unlock()
}

func (h *Host) lookup(id string) (*proc, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.procs[id]
	if p == nil {
		return nil, fmt.Errorf("%q: %w", id, ErrUnknown)
	}
	return p, nil
}

func (h *Host) about(ctx context.Context, t wire.Type, id string) error {
	_, err := h.roundTrip(ctx, t, wire.TOK, nil, func(w *wire.W) { w.Str(id) })
	return err
}

// Release lets a started child become its command, and waits until it has.
// The stamp is CLOCK_MONOTONIC in nanoseconds, taken just before execve. An
// *ExecError says why it did not; the process is finished then, to be Acked.
func (h *Host) Release(ctx context.Context, id string) (int64, error) {
	p, err := h.lookup(id)
	if err != nil {
		return 0, fmt.Errorf("release: %w", err)
	}
	c, err := h.begin(ctx, wire.TRelease, wire.TOK, nil, func(w *wire.W) { w.Str(id) })
	if err != nil {
		return 0, fmt.Errorf("release %s: %w", id, err)
	}
	answered := c.done
	for {
		select {
		case <-answered:
			if err := c.err(); err != nil && !isClosed(p.started) {
				return 0, fmt.Errorf("release %s: %w", id, err)
			}
			answered = nil
		case <-p.started:
			info := h.info(p)
			if err := execError(info); err != nil {
				return 0, err
			}
			return info.Stamp, nil
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-h.closed:
			return 0, fmt.Errorf("release %s: %w", id, h.Err())
		}
	}
}

func (h *Host) info(p *proc) wire.Proc {
	h.mu.Lock()
	defer h.mu.Unlock()
	return p.info
}

// execError is nil for a process that was executed.
func execError(p wire.Proc) error {
	switch {
	case p.Stage != wire.StageNone:
		return &ExecError{Stage: stages[p.Stage], Errno: syscall.Errno(p.Errno)}
	case p.State == wire.StateFinished && p.Stamp == 0:
		return &ExecError{Stage: StageKilled}
	}
	return nil
}

// Cancel kills a child that was not released and forgets it.
func (h *Host) Cancel(ctx context.Context, id string) error {
	if err := h.about(ctx, wire.TCancel, id); err != nil {
		return fmt.Errorf("cancel %s: %w", id, err)
	}
	h.drop(id)
	return nil
}

// Wait waits for the end of a process. The error is an *ExecError when it was
// never executed. Any number may wait for the same process.
func (h *Host) Wait(ctx context.Context, id string) (WaitStatus, error) {
	p, err := h.lookup(id)
	if err != nil {
		return WaitStatus{}, fmt.Errorf("wait: %w", err)
	}
	select {
	case <-p.exited:
	default:
		select {
		case <-p.exited:
		case <-ctx.Done():
			return WaitStatus{}, context.Cause(ctx)
		case <-h.closed:
			return WaitStatus{}, fmt.Errorf("wait %s: %w", id, h.Err())
		}
	}
	info := h.info(p)
	if err := execError(info); err != nil {
		return WaitStatus{}, err
	}
	return WaitStatus{unix.WaitStatus(info.Status)}, nil
}

// LetGo has creel-init close the last of the descriptors it keeps for a
// process. With the write end of a standard input kept last, that is how its
// reader comes to see the end.
func (h *Host) LetGo(ctx context.Context, id string) error {
	if err := h.about(ctx, wire.TLetGo, id); err != nil {
		return fmt.Errorf("let go of a descriptor of %s: %w", id, err)
	}
	return nil
}

// Ack says that the end of a process has been written down: creel-init closes
// the descriptors it held for it and forgets it.
func (h *Host) Ack(ctx context.Context, id string) error {
	if err := h.about(ctx, wire.TAck, id); err != nil {
		return fmt.Errorf("ack %s: %w", id, err)
	}
	h.drop(id)
	return nil
}

// Resume lists what creel-init has, for a daemon that took the channel
// again. After it Wait, Release and the others work for those processes.
func (h *Host) Resume(ctx context.Context) ([]Live, []Finished, error) {
	c, err := h.roundTrip(ctx, wire.TResume, wire.TResumeReply, nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("resume: %w", err)
	}
	var live []Live
	var finished []Finished
	seen := map[string]bool{}
	for _, body := range append(c.more, c.body) {
		r := wire.Body(body)
		r.Bool()
		for n := int(r.U16()); n > 0; n-- {
			m := wire.ReadProc(&r)
			if !r.OK() || seen[m.ID] || len(seen) >= MaxProcs {
				return nil, nil, fmt.Errorf("resume: %w", ErrHostile)
			}
			seen[m.ID] = true
			keep := make([]int, len(m.Keep))
			for i, fd := range m.Keep {
				keep[i] = int(fd)
			}
			if m.State != wire.StateFinished {
				live = append(live, Live{
					ID: m.ID, NSPid: int(m.NSPid), Released: m.State != wire.StateWaiting,
					Stamp: m.Stamp, KeepFDs: keep,
				})
				continue
			}
			f := Finished{
				ID: m.ID, NSPid: int(m.NSPid), Stamp: m.Stamp, KeepFDs: keep,
				Status: WaitStatus{unix.WaitStatus(m.Status)},
			}
			_ = errors.As(execError(m), &f.Err)
			finished = append(finished, f)
		}
		if !r.Done() {
			return nil, nil, fmt.Errorf("resume: %w", ErrHostile)
		}
	}
	return live, finished, nil
}
