package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"
)

// fake is a Service that remembers what it was asked and answers what it is
// told.
type fake struct {
	mu    sync.Mutex
	calls []call
	by    server.Caller // of the last

	err     error // what every method returns when set
	forward func() (*net.TCPConn, error)
	session *fakeSession
	files   []string // names of entries of a listing
	wait    func(ctx context.Context) error
	spawn   func(dirs []*os.File) error
	events  []api.Event
	list    []api.Sandbox
	imgs    []api.Image
	body    []byte // what WriteFile and ImportImage got
	content io.ReadCloser
	exec    api.ExecRequest
}

var _ server.Service = (*fake)(nil)

// call is one method with its arguments.
type call struct {
	Method string
	Args   []any
}

func (f *fake) note(c server.Caller, method string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.UID != uint32(os.Geteuid()) {
		return errors.New("the caller is not this process")
	}
	f.calls, f.by = append(f.calls, call{method, args}), c
	return f.err
}

// set changes the fake while requests may be running.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// logBuffer is a log that is written and read at the same time.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

func (f *fake) last() call {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		return call{}
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) Spawn(_ context.Context, c server.Caller, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, error) {
	if err := f.note(c, "Spawn", req, len(dirs)); err != nil {
		return nil, err
	}
	if f.spawn != nil {
		if err := f.spawn(dirs); err != nil {
			return nil, err
		}
	}
	return &api.SpawnResult{Sandbox: api.Sandbox{ID: "s1", State: api.StateRunning}}, nil
}

func (f *fake) Explain(_ context.Context, _ server.Caller, req api.SpawnRequest, dirs []*os.File) (*api.Decision, error) {
	ok := req.Profile != "open"
	return &api.Decision{Allowed: ok, Ceiling: "default", Rules: []api.Rule{
		{Rule: "ceiling.profiles", Field: "profile", Asked: req.Profile, Allowed: "strict", OK: ok, Fix: map[bool]string{false: "ask for profile strict"}[ok]},
		{Rule: "ceiling.mounts", Asked: fmt.Sprint(len(dirs)), Allowed: "*", OK: true},
	}}, nil
}

func (f *fake) SpawnOnce(_ context.Context, c server.Caller, key string, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, bool, error) {
	return &api.SpawnResult{Sandbox: api.Sandbox{ID: "s1"}}, key != "again", f.note(c, "SpawnOnce", key, req, len(dirs))
}

func (f *fake) Ensure(_ context.Context, c server.Caller, name string, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, bool, error) {
	return &api.SpawnResult{Sandbox: api.Sandbox{ID: "s1", Name: name}}, req.Agent == "new", f.note(c, "Ensure", name, req, len(dirs))
}

func (f *fake) List(_ context.Context, c server.Caller, o server.ListOptions) ([]api.Sandbox, error) {
	err := f.note(c, "List", o)
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list), err
}

func (f *fake) Get(_ context.Context, c server.Caller, ref string) (*api.Sandbox, error) {
	return &api.Sandbox{ID: ref}, f.note(c, "Get", ref)
}

func (f *fake) Stop(_ context.Context, c server.Caller, ref string, grace time.Duration) (*api.WaitResult, error) {
	return &api.WaitResult{ID: ref}, f.note(c, "Stop", ref, grace)
}

func (f *fake) Kill(_ context.Context, c server.Caller, ref string, sig syscall.Signal) error {
	return f.note(c, "Kill", ref, sig)
}

func (f *fake) Pause(_ context.Context, c server.Caller, ref string) error {
	return f.note(c, "Pause", ref)
}

func (f *fake) Resume(_ context.Context, c server.Caller, ref string) error {
	return f.note(c, "Resume", ref)
}

func (f *fake) Remove(_ context.Context, c server.Caller, ref string, force bool) error {
	return f.note(c, "Remove", ref, force)
}

func (f *fake) Wait(ctx context.Context, c server.Caller, ref string) (*api.WaitResult, error) {
	if err := f.note(c, "Wait", ref); err != nil {
		return nil, err
	}
	if f.wait != nil {
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
	}
	return &api.WaitResult{ID: ref, ExitCode: 3}, nil
}

func (f *fake) Exec(_ context.Context, c server.Caller, ref string, req api.ExecRequest) (server.Session, error) {
	f.mu.Lock()
	f.exec = req
	f.mu.Unlock()
	if err := f.note(c, "Exec", ref, req.Command); err != nil {
		return nil, err
	}
	return f.session, nil
}

func (f *fake) Attach(_ context.Context, c server.Caller, ref string, o server.AttachOptions) (server.Session, error) {
	if err := f.note(c, "Attach", ref, o); err != nil {
		return nil, err
	}
	return f.session, nil
}

func (f *fake) Logs(_ context.Context, c server.Caller, ref string, o server.LogOptions, emit func(server.Output) error) error {
	if err := f.note(c, "Logs", ref, o.Follow, o.Tail, o.Since.IsZero()); err != nil {
		return err
	}
	if err := emit(server.Output{Exec: "main", Stdout: true, Data: []byte("out")}); err != nil {
		return err
	}
	if err := emit(server.Output{Exec: map[bool]string{true: "exec1", false: "main"}[o.Exec == server.AllExecs], Data: []byte("err")}); err != nil {
		return err
	}
	if f.wait != nil {
		return f.wait(context.Background())
	}
	return nil
}

func (f *fake) ReadFile(_ context.Context, c server.Caller, ref, path string) (api.FileInfo, io.ReadCloser, error) {
	if err := f.note(c, "ReadFile", ref, path); err != nil {
		return api.FileInfo{}, nil, err
	}
	r := f.content
	if r == nil {
		r = io.NopCloser(bytes.NewReader([]byte("content")))
	}
	return api.FileInfo{Mode: 0o640, Size: 7}, r, nil
}

func (f *fake) WriteFile(_ context.Context, c server.Caller, ref, path string, opts server.WriteOptions, r io.Reader) error {
	b, err := io.ReadAll(r)
	f.mu.Lock()
	f.body = b
	f.mu.Unlock()
	return errors.Join(err, f.note(c, "WriteFile", ref, path, opts))
}

func (f *fake) ListDir(_ context.Context, c server.Caller, ref, path string, limit int, emit func(api.FileInfo) error) (bool, error) {
	err := f.note(c, "ListDir", ref, path, limit)
	for _, n := range f.files {
		if err := emit(api.FileInfo{Name: n, Type: "file"}); err != nil {
			return false, err
		}
	}
	return true, err
}

func (f *fake) StatFile(_ context.Context, c server.Caller, ref, path string) (*api.FileInfo, error) {
	return &api.FileInfo{Name: path}, f.note(c, "StatFile", ref, path)
}

func (f *fake) Mkdir(_ context.Context, c server.Caller, ref, path string, parents bool) error {
	return f.note(c, "Mkdir", ref, path, parents)
}

func (f *fake) RemoveFile(_ context.Context, c server.Caller, ref, path string, recursive bool) error {
	return f.note(c, "RemoveFile", ref, path, recursive)
}

func (f *fake) RenameFile(_ context.Context, c server.Caller, ref, from, to string) error {
	return f.note(c, "RenameFile", ref, from, to)
}

func (f *fake) Stats(_ context.Context, c server.Caller, ref string) (*api.Stats, error) {
	return &api.Stats{ID: ref}, f.note(c, "Stats", ref)
}

func (f *fake) Top(_ context.Context, c server.Caller, ref string) (*api.Top, error) {
	return &api.Top{ID: ref}, f.note(c, "Top", ref)
}

func (f *fake) Execs(_ context.Context, c server.Caller, ref string, labels map[string]string) ([]api.Exec, error) {
	return nil, f.note(c, "Execs", ref, labels)
}

func (f *fake) Events(ctx context.Context, c server.Caller, after uint64, emit func(api.Event) error) error {
	if err := f.note(c, "Events", after); err != nil {
		return err
	}
	for _, ev := range f.events {
		if ev.Seq > after {
			if err := emit(ev); err != nil {
				return err
			}
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Images(_ context.Context, c server.Caller) ([]api.Image, error) {
	err := f.note(c, "Images")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.imgs != nil {
		return slices.Clone(f.imgs), err
	}
	return []api.Image{{Ref: "base"}}, err
}

func (f *fake) Image(_ context.Context, c server.Caller, ref string) (*api.Image, error) {
	return &api.Image{Ref: ref}, f.note(c, "Image", ref)
}

func (f *fake) ImportImage(_ context.Context, c server.Caller, ref string, r io.Reader) (*api.Image, error) {
	n, err := io.Copy(io.Discard, r)
	return &api.Image{Ref: ref, Size: n}, errors.Join(err, f.note(c, "ImportImage", ref, n))
}

func (f *fake) Commit(_ context.Context, c server.Caller, ref, image string) (*api.Image, error) {
	return &api.Image{Ref: image}, f.note(c, "Commit", ref, image)
}

func (f *fake) TagImage(_ context.Context, c server.Caller, source, ref string) (*api.Image, error) {
	return &api.Image{Ref: ref}, f.note(c, "TagImage", source, ref)
}

func (f *fake) SaveImage(_ context.Context, c server.Caller, ref string, w io.Writer) error {
	_, err := io.WriteString(w, "archive of "+ref)
	return errors.Join(err, f.note(c, "SaveImage", ref))
}

func (f *fake) RemoveImage(_ context.Context, c server.Caller, ref string) error {
	return f.note(c, "RemoveImage", ref)
}

func (f *fake) CreateVolume(_ context.Context, c server.Caller, req api.VolumeRequest) (*api.Volume, error) {
	return &api.Volume{Name: req.Name, Size: req.Size}, f.note(c, "CreateVolume", req)
}

func (f *fake) Volumes(_ context.Context, c server.Caller) ([]api.Volume, error) {
	return []api.Volume{{Name: "work"}}, f.note(c, "Volumes")
}

func (f *fake) Volume(_ context.Context, c server.Caller, name string) (*api.Volume, error) {
	return &api.Volume{Name: name}, f.note(c, "Volume", name)
}

func (f *fake) AllowEgress(_ context.Context, c server.Caller, ref string, rules []string) (*api.Sandbox, error) {
	return &api.Sandbox{ID: ref}, f.note(c, "AllowEgress", ref, rules)
}

func (f *fake) Forward(_ context.Context, c server.Caller, ref string, port uint16) (server.Tunnel, error) {
	if err := f.note(c, "Forward", ref, port); err != nil {
		return nil, err
	}
	f.mu.Lock()
	forward := f.forward
	f.mu.Unlock()
	return forward()
}

func (f *fake) SetSecret(_ context.Context, c server.Caller, name string, req api.SecretRequest) (*api.Secret, error) {
	return &api.Secret{Name: name, Rule: req.Rule}, f.note(c, "SetSecret", name, req)
}

func (f *fake) Secrets(_ context.Context, c server.Caller) ([]api.Secret, error) {
	return []api.Secret{{Name: "key"}}, f.note(c, "Secrets")
}

func (f *fake) RemoveSecret(_ context.Context, c server.Caller, name string) error {
	return f.note(c, "RemoveSecret", name)
}

func (f *fake) RemoveVolume(_ context.Context, c server.Caller, name string) error {
	return f.note(c, "RemoveVolume", name)
}

func (f *fake) Diff(_ context.Context, c server.Caller, ref string, limit int) (*api.Diff, error) {
	return &api.Diff{Rootfs: "ephemeral"}, f.note(c, "Diff", ref, limit)
}

func (f *fake) DiskUsage(_ context.Context, c server.Caller) (*api.DiskUsage, error) {
	return &api.DiskUsage{Rows: []api.DiskUse{}}, f.note(c, "DiskUsage")
}

func (f *fake) Prune(_ context.Context, c server.Caller, req api.PruneRequest) (*api.PruneResult, error) {
	return &api.PruneResult{Items: []api.Pruned{}}, f.note(c, "Prune", req)
}

func (f *fake) Agents(_ context.Context, c server.Caller) ([]api.Agent, error) {
	f.note(c, "Agents")
	return []api.Agent{{ID: "a1", Name: "coder", State: "active"}}, nil
}

func (f *fake) Agent(_ context.Context, c server.Caller, ref string) (*api.Agent, error) {
	f.note(c, "Agent", ref)
	return &api.Agent{ID: "a1", Name: ref, State: "active"}, nil
}

func (f *fake) Approvals(_ context.Context, c server.Caller, ref string, all bool) ([]api.Approval, error) {
	return []api.Approval{{ID: "a.1"}}, f.note(c, "Approvals", ref, all)
}

func (f *fake) DecideApproval(_ context.Context, c server.Caller, id string, d api.ApprovalDecision) (*api.Approval, error) {
	return &api.Approval{ID: id}, f.note(c, "DecideApproval", id, d)
}

func (f *fake) ForgetEgress(_ context.Context, c server.Caller, ref string, rules []string) (*api.Agent, error) {
	return &api.Agent{Name: ref}, f.note(c, "ForgetEgress", ref, rules)
}

func (f *fake) RevokeAgent(_ context.Context, c server.Caller, ref string) (*api.Agent, error) {
	f.note(c, "RevokeAgent", ref)
	return &api.Agent{ID: "a1", Name: ref, State: "revoked"}, nil
}

func (f *fake) RestoreAgent(_ context.Context, c server.Caller, ref string) (*api.Agent, error) {
	f.note(c, "RestoreAgent", ref)
	return &api.Agent{ID: "a1", Name: ref, State: "active"}, nil
}

func (f *fake) ExpireAgent(_ context.Context, c server.Caller, ref string, at time.Time) (*api.Agent, error) {
	f.note(c, "ExpireAgent", ref, at)
	return &api.Agent{ID: "a1", Name: ref, State: "active"}, nil
}

func (f *fake) Profiles(_ context.Context, c server.Caller) ([]api.Profile, error) {
	return nil, f.note(c, "Profiles")
}

func (f *fake) Profile(_ context.Context, c server.Caller, name string) (*api.Profile, error) {
	return &api.Profile{Name: name}, f.note(c, "Profile", name)
}

func (f *fake) CheckProfile(_ context.Context, c server.Caller, toml []byte) error {
	return f.note(c, "CheckProfile", string(toml))
}

func (f *fake) Evidence(_ context.Context, c server.Caller, ref string, fresh bool) ([]api.Evidence, error) {
	return []api.Evidence{{Sandbox: ref, OK: true}}, f.note(c, "Evidence", ref, fresh)
}

func (f *fake) AuditLog(_ context.Context, c server.Caller, o server.AuditOptions, emit func([]byte) error) error {
	if err := f.note(c, "AuditLog", o.Kind, o.Agent, o.Follow, o.All); err != nil {
		return err
	}
	return emit([]byte(`{"kind":"fact"}`))
}

func (f *fake) AuditHead(_ context.Context, c server.Caller) (*api.AuditHead, error) {
	return &api.AuditHead{}, f.note(c, "AuditHead")
}

func (f *fake) TrustBundle(_ context.Context, c server.Caller) (*api.TrustBundle, error) {
	return &api.TrustBundle{}, f.note(c, "TrustBundle")
}

func (f *fake) PublicKey(_ context.Context, c server.Caller) (*api.PublicKey, error) {
	return &api.PublicKey{}, f.note(c, "PublicKey")
}

func (f *fake) Doctor(_ context.Context, c server.Caller, user, dir string) (*api.Doctor, error) {
	return &api.Doctor{}, f.note(c, "Doctor", user, dir)
}

func (f *fake) Version(context.Context) api.Version { return api.Version{API: "v1"} }

// fakeSession is a command made of pipes; the test holds the far ends.
type fakeSession struct {
	id             string
	files          []*os.File
	stdin          *io.PipeWriter
	stdout, stderr *io.PipeReader
	exit           chan api.ExecResult
	closed         chan struct{}
	once           sync.Once

	in       *io.PipeReader // what the command reads
	out, err *io.PipeWriter // what it writes
	notes    chan string    // resizes and signals
}

// newSession is a running command in framed mode.
func newSession() *fakeSession {
	s := &fakeSession{id: "abcdefghijkl", exit: make(chan api.ExecResult, 1), closed: make(chan struct{}), notes: make(chan string, 16)}
	s.in, s.stdin = io.Pipe()
	s.stdout, s.out = io.Pipe()
	s.stderr, s.err = io.Pipe()
	return s
}

func (s *fakeSession) ID() string        { return s.id }
func (s *fakeSession) Files() []*os.File { return s.files }

func (s *fakeSession) Stdin() io.WriteCloser {
	if s.stdin == nil {
		return nil
	}
	return s.stdin
}

func (s *fakeSession) Stdout() io.Reader { return s.stdout } // a nil pointer in fds mode, on purpose
func (s *fakeSession) Stderr() io.Reader { return s.stderr }

func (s *fakeSession) Resize(cols, rows uint16) error {
	s.notes <- "resize " + itoa(int(cols)) + "x" + itoa(int(rows))
	return nil
}

func (s *fakeSession) Signal(sig syscall.Signal) error {
	s.notes <- "signal " + itoa(int(sig))
	return nil
}

func (s *fakeSession) Wait(ctx context.Context) (api.ExecResult, error) {
	select {
	case r := <-s.exit:
		return r, nil
	case <-ctx.Done():
		return api.ExecResult{}, ctx.Err()
	}
}

func (s *fakeSession) Close() error {
	s.once.Do(func() {
		close(s.closed)
		if s.stdin != nil {
			s.in.Close()
			s.out.Close()
			s.err.Close()
		}
	})
	return nil
}

func itoa(n int) string {
	b := []byte{}
	for ; n > 0 || len(b) == 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}
