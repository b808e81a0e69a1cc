package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/stream"
)

// The values of api.ExecRequest.IO.
const (
	// IOFDs has the daemon hand over pipe ends, so that the bytes do not pass it.
	IOFDs = "fds"
	// IOFramed has the bytes travel in the stream's frames.
	IOFramed = "framed"
)

// Stdio is where a command's streams come from and go to. A nil Out or Err
// discards that stream; In must be nil unless the command was asked for with
// stdin.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Process is a command running in a sandbox, with this process as its client.
// Its methods may be called concurrently; Run once.
type Process struct {
	ctx   context.Context //nolint:containedctx // the connection's life is the context's, as with exec.Cmd
	w     *wire
	s     *stream.Conn
	id    string
	tty   bool
	stdin bool
	files []*os.File // of fds mode
}

// Exec runs a command in a sandbox and returns how it ended. The command's
// own failure is not an error: ExitCode has it. Cancelling ctx kills the
// command with all it started.
//
// When req.IO is empty, descriptors are used, but for a terminal whose output
// is to be kept. Exec returns when the command
// has ended and its output is copied; what a process that it left behind
// writes later is not waited for. A read of stdio.In that is under way then is
// left to end by itself.
func (c *Client) Exec(ctx context.Context, ref string, req api.ExecRequest, stdio Stdio) (api.ExecResult, error) {
	p, err := c.StartExec(ctx, ref, req)
	if err != nil {
		return api.ExecResult{}, err
	}
	defer func() { _ = p.Close() }()
	return p.Run(stdio)
}

// ExecOnce runs a command and answers with how it ended and what it wrote:
// the first req.MaxOutput bytes of each output. req.Input or req.InputBase64
// is its input; Stdin, TTY, Cols, Rows and IO must be left out. Cancelling ctx
// kills the command with all it started.
func (c *Client) ExecOnce(ctx context.Context, ref string, req api.ExecRequest) (*api.ExecOutput, error) {
	var out api.ExecOutput
	if err := c.post(ctx, ref, "exec", req, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// StartExec starts a command and returns when it runs. The caller calls Run,
// then Close.
func (c *Client) StartExec(ctx context.Context, ref string, req api.ExecRequest) (*Process, error) {
	if req.IO == "" {
		req.IO = IOFDs
		if req.TTY && req.Logs == "" {
			req.IO = IOFramed // a terminal that is handed over cannot be logged
		}
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return c.startStream(ctx, wireRequest{
		method: http.MethodPost, target: route("sandboxes", ref, "exec"), body: body, upgrade: true,
	}, req.TTY, req.Stdin)
}

// PrepareExec gives the daemon a command that StartPrepared runs later, once,
// perhaps in another process of the same user's. req.IO must be empty.
func (c *Client) PrepareExec(ctx context.Context, ref string, req api.ExecRequest) (*api.PreparedExec, error) {
	var out api.PreparedExec
	if err := c.post(ctx, ref, "prepare", req, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// StartPrepared is StartExec of a prepared command without a terminal; stdin
// says that it was prepared with its input.
func (c *Client) StartPrepared(ctx context.Context, id string, stdin bool) (*Process, error) {
	r := request{path: route("prepared", id), query: url.Values{"io": {IOFDs}}}
	return c.startStream(ctx, wireRequest{method: http.MethodPost, target: r.target(), upgrade: true}, false, stdin)
}

// ReleasePrepared forgets a prepared command. One that has run or expired is of
// class not_found.
func (c *Client) ReleasePrepared(ctx context.Context, id string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: route("prepared", id)}, nil)
}

// AttachOptions say what of the main command is wanted.
type AttachOptions struct {
	// Replay sends the output that was kept so far before what comes.
	Replay bool
	// Stdin sends input to the command, which must have been spawned with it.
	Stdin bool
	// TTY says that the command has a terminal, whose size is Cols and Rows.
	TTY        bool
	Cols, Rows uint16
}

// Attach joins the main command of a sandbox. Run returns how the command
// ended; Close before that leaves the command running.
func (c *Client) Attach(ctx context.Context, ref string, opts AttachOptions) (*Process, error) {
	q := url.Values{}
	for name, on := range map[string]bool{"replay": opts.Replay, "stdin": opts.Stdin} {
		if on {
			q.Set(name, "true")
		}
	}
	if opts.TTY && opts.Cols > 0 && opts.Rows > 0 {
		q.Set("cols", strconv.Itoa(int(opts.Cols)))
		q.Set("rows", strconv.Itoa(int(opts.Rows)))
	}
	r := request{path: route("sandboxes", ref, "attach"), query: q}
	return c.startStream(ctx, wireRequest{method: http.MethodPost, target: r.target(), upgrade: true},
		opts.TTY, opts.Stdin)
}

// startStream opens the stream and reads up to the frame that says that the
// command runs.
func (c *Client) startStream(ctx context.Context, r wireRequest, tty, stdin bool) (_ *Process, err error) {
	w, err := c.openWire(ctx, r)
	if err != nil {
		return nil, err
	}
	p := &Process{ctx: ctx, w: w, s: stream.NewConn(w.conn, w.r), tty: tty, stdin: stdin}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	for p.id == "" {
		f, err := p.s.Next()
		if err != nil {
			return nil, readError(ctx, err)
		}
		switch f.Type { //nolint:exhaustive // default refuses the others
		case stream.FDs:
			err = p.adopt(f)
		case stream.Started:
			err = p.started(f.Payload)
		case stream.Error:
			err = streamError(f.Payload)
		default:
			err = fmt.Errorf("the daemon sent a frame of type %v before the command started", f.Type)
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// ID is the exec's id, "main" for an attach.
func (p *Process) ID() string { return p.id }

func (p *Process) started(payload []byte) error {
	var s struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(payload, &s); err != nil || s.ID == "" {
		return errors.New("the daemon sent a broken started frame")
	}
	p.id = s.ID
	return nil
}

func streamError(payload []byte) error {
	var e api.Error
	if err := json.Unmarshal(payload, &e); err != nil || e.Code == "" {
		return errors.New("the daemon sent a broken error frame")
	}
	return &e
}

// adopt takes over the pipe ends or the terminal.
func (p *Process) adopt(f stream.Frame) error {
	got, err := p.s.RecvFDs(f)
	if err != nil {
		return err
	}
	defer closeAll(got)
	for _, g := range got {
		pollable, err := nonblocking(g)
		if err != nil {
			return fmt.Errorf("descriptor from the daemon: %w", err)
		}
		p.files = append(p.files, pollable)
	}
	want := 2
	switch {
	case p.tty:
		want = 1
	case p.stdin:
		want = 3
	}
	if len(p.files) != want {
		return fmt.Errorf("the daemon sent %d descriptors, not %d", len(p.files), want)
	}
	return nil
}

// nonblocking is f as the runtime's poller wants it, so that a read waits
// without a thread and can be ended.
func nonblocking(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "creel-stdio"), nil
}

// Resize tells the terminal its new size.
func (p *Process) Resize(cols, rows uint16) error {
	return p.s.Write(stream.Resize, stream.EncodeResize(cols, rows))
}

// Signal sends a signal to the command.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.s.Write(stream.Signal, []byte{byte(sig)})
}

// Run copies the streams until the command has ended and returns how.
func (p *Process) Run(stdio Stdio) (api.ExecResult, error) {
	if stdio.Out == nil {
		stdio.Out = io.Discard
	}
	if stdio.Err == nil {
		stdio.Err = io.Discard
	}
	var out copiers
	if len(p.files) > 0 {
		p.startFDs(&out, stdio)
	} else if p.stdin {
		go p.sendStdin(stdio.In)
	}
	res, err := p.untilExit(stdio)
	if err != nil {
		return api.ExecResult{}, err
	}
	if err := out.finish(); err != nil {
		return res, err
	}
	return res, nil
}

// untilExit reads frames until the last one.
func (p *Process) untilExit(stdio Stdio) (api.ExecResult, error) {
	var res api.ExecResult
	for {
		f, err := p.s.Next()
		if err != nil {
			return res, readError(p.ctx, err)
		}
		switch f.Type { //nolint:exhaustive // default refuses the others
		case stream.Stdout:
			err = writeAll(stdio.Out, f.Payload)
		case stream.Stderr:
			err = writeAll(stdio.Err, f.Payload)
		case stream.Exit:
			if err := json.Unmarshal(f.Payload, &res); err != nil {
				return res, fmt.Errorf("decode exit frame: %w", err)
			}
			return res, nil
		case stream.Error:
			return res, streamError(f.Payload)
		default:
			err = fmt.Errorf("the daemon sent a frame of type %v to a running command", f.Type)
		}
		if err != nil {
			return res, err
		}
	}
}

func writeAll(w io.Writer, p []byte) error {
	_, err := w.Write(p)
	return err
}

// sendStdin frames what in has until its end, told by an empty frame. A write
// error is the connection's end, which the reader of it reports.
func (p *Process) sendStdin(in io.Reader) {
	if in != nil {
		_, _ = io.Copy(p.s.Stream(stream.Stdin), in)
	}
	_ = p.s.Write(stream.Stdin, nil)
}

// Close ends the stream. An exec that still runs is killed with all it
// started; an attach only ends.
func (p *Process) Close() error {
	p.w.close()
	closeAll(p.files)
	return nil
}
