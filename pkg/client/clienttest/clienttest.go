// Package clienttest is a daemon for tests of clients: the real server over a
// service that has no sandboxes, but runs commands as children of the test.
//
// It isolates nothing. What it offers is what a client sees: pipes and
// terminals by descriptor, exit codes, hostile listings.
package clienttest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/boxkey"
	"github.com/creel-sandbox/creel/pkg/server"
)

// Daemon is the service. Its exported fields are changed with Set.
type Daemon struct {
	server.Service // what is not implemented panics, which fails the test

	// Socket is where it listens.
	Socket string
	// Root is the file system that file operations see.
	Root *os.Root
	// Listings are answered as they are for these directories.
	Listings map[string][]api.FileInfo
	// Modes are reported for these files instead of their own.
	Modes map[string]uint32
	// Proof is the evidence of every sandbox.
	Proof api.Evidence
	// Fail is the answer to every spawn when set.
	Fail *api.Error

	mu        sync.Mutex
	sandboxes map[string]*box
	images    map[string]api.Image
	volumes   map[string]api.Volume
	secrets   map[string]api.Secret
	requests  []api.SpawnRequest
	dirs      [][]string
	killed    []string
	log       *audit.Log // nil until it is asked for
}

type box struct {
	api.Sandbox
	proc  *process
	execs []api.Exec
}

// New starts one; it ends with the test.
func New(tb testing.TB) *Daemon {
	tb.Helper()
	dir, err := os.MkdirTemp("", "creel") //nolint:usetesting // a socket's path has 108 bytes, and TempDir's can be longer
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	fsDir := filepath.Join(dir, "fs")
	if err := os.Mkdir(fsDir, 0o755); err != nil {
		tb.Fatal(err)
	}
	root, err := os.OpenRoot(fsDir)
	if err != nil {
		tb.Fatal(err)
	}
	d := &Daemon{
		Socket: filepath.Join(dir, "s"), Root: root,
		sandboxes: map[string]*box{}, volumes: map[string]api.Volume{}, secrets: map[string]api.Secret{}, images: map[string]api.Image{"base": {Ref: "base", Digest: "sha256:0123456789abcdef0123", Size: 1 << 20}},
		Proof: api.Evidence{Why: "spawn", OK: true, Controls: []api.Control{{Name: "namespace.user", Expected: "own", Observed: "own", OK: true}}},
	}
	d.serve(tb)
	return d
}

func (d *Daemon) serve(tb testing.TB) {
	tb.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.Socket, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	srv, err := server.New(d, server.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), 5*time.Second)
		defer cancel()
		if err := errors.Join(srv.Shutdown(ctx), <-served, d.Root.Close()); err != nil {
			tb.Errorf("stop the daemon: %v", err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, b := range d.sandboxes {
			b.proc.kill()
		}
		if d.log != nil {
			if err := d.log.Close(); err != nil {
				tb.Errorf("close the audit log: %v", err)
			}
		}
	})
}

// Set changes the fields between requests.
func (d *Daemon) Set(change func(d *Daemon)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

// Requests are the spawn requests so far, and the directories that came with
// each.
func (d *Daemon) Requests() ([]api.SpawnRequest, [][]string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.requests), slices.Clone(d.dirs)
}

// Killed are the signals sent to sandboxes, as "name signal".
func (d *Daemon) Killed() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.killed)
}

const alphabet = "abcdefghijklmnopqrstuvwxyz234567"

func (d *Daemon) find(ref string) (*box, error) {
	for id, b := range d.sandboxes {
		if ref != "" && (b.Name == ref || strings.HasPrefix(id, ref)) {
			return b, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "no sandbox %q", ref).WithHint("creel ps -a lists them")
}

// get is find for those who do not hold the lock.
func (d *Daemon) get(ref string) (*box, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.find(ref)
}

// Spawn starts the command as a child.
func (d *Daemon) Spawn(_ context.Context, _ server.Caller, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for _, f := range dirs {
		name, err := os.Readlink("/proc/self/fd/" + itoa(int(f.Fd())))
		if err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	d.requests, d.dirs = append(d.requests, req), append(d.dirs, names)
	if d.Fail != nil {
		return nil, d.Fail
	}
	n := len(d.requests) - 1 // so that no id is used twice
	id := strings.Repeat(string(alphabet[n%32]), 20)
	b := &box{Sandbox: api.Sandbox{
		ID: id, Name: req.Name, Agent: cmp.Or(req.Agent, "default"), Profile: "default", Image: cmp.Or(req.Image, "base"), State: api.StateRunning,
		Labels: req.Labels, Command: req.Command, TTY: req.TTY, Stdin: req.Stdin, Created: time.Now(), Limits: req.Limits,
	}}
	if b.Name == "" {
		b.Name = "box-" + itoa(n)
	}
	command := req.Command
	if len(command) == 0 {
		command = []string{"/bin/sleep", "1000"}
	}
	var err error
	b.proc, err = startMain(command, req)
	if err != nil {
		return nil, err
	}
	if b.proc.ended() && b.proc.result.Error != "" {
		return nil, &api.Error{Code: api.CodeInvalid, Message: command[0] + ": " + b.proc.result.Error, ExitCode: b.proc.result.ExitCode}
	}
	d.sandboxes[id] = b
	res := &api.SpawnResult{Sandbox: b.Sandbox, Evidence: d.Proof}
	if req.Trace {
		res.Trace = []api.Step{{Name: "start", Start: 1, Took: 2.5}}
	}
	return res, nil
}

// Ensure gives the sandbox of that name, whatever it was made of.
func (d *Daemon) Ensure(ctx context.Context, c server.Caller, name string, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, bool, error) {
	if b, err := d.get(name); err == nil {
		return &api.SpawnResult{Sandbox: b.Sandbox, Evidence: d.Proof}, false, nil
	}
	req.Name = name
	res, err := d.Spawn(ctx, c, req, dirs)
	return res, true, err
}

// List returns those wanted.
func (d *Daemon) List(_ context.Context, _ server.Caller, o server.ListOptions) ([]api.Sandbox, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []api.Sandbox
	for _, id := range slices.Sorted(maps.Keys(d.sandboxes)) {
		b := d.sandboxes[id]
		if !hasAll(b.Labels, o.Labels) {
			continue
		}
		if b.proc.ended() {
			b.State, b.Reason = api.StateStopped, api.ReasonExited
			code := b.proc.result.ExitCode
			b.ExitCode = &code
			if !o.All && len(o.States) == 0 {
				continue
			}
		}
		if !oneOf(o.States, b.State) || !oneOf(o.Agents, b.Agent) || !oneOf(o.Images, b.Image) || !hasAll(b.Labels, o.Labels) {
			continue
		}
		list = append(list, b.Sandbox)
	}
	return list, nil
}

// oneOf says whether v is one of wanted, where there are any.
func oneOf[T comparable](wanted []T, v T) bool {
	return len(wanted) == 0 || slices.Contains(wanted, v)
}

func hasAll(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Get returns one.
func (d *Daemon) Get(_ context.Context, _ server.Caller, ref string) (*api.Sandbox, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	return &b.Sandbox, nil
}

// Stop kills the command.
func (d *Daemon) Stop(_ context.Context, _ server.Caller, ref string, _ time.Duration) (*api.WaitResult, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	b.proc.signal(syscall.SIGTERM)
	<-b.proc.done
	return &api.WaitResult{ID: b.ID, State: api.StateStopped, Reason: api.ReasonStopped, ExitCode: b.proc.result.ExitCode}, nil
}

// Kill sends a signal.
func (d *Daemon) Kill(_ context.Context, _ server.Caller, ref string, sig syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.find(ref)
	if err == nil {
		d.killed = append(d.killed, b.Name+" "+itoa(int(sig)))
		b.proc.signal(sig)
	}
	return err
}

// Pause only answers.
func (d *Daemon) Pause(_ context.Context, _ server.Caller, ref string) error {
	_, err := d.get(ref)
	return err
}

// Resume only answers.
func (d *Daemon) Resume(_ context.Context, _ server.Caller, ref string) error {
	_, err := d.get(ref)
	return err
}

// Remove forgets one.
func (d *Daemon) Remove(_ context.Context, _ server.Caller, ref string, force bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.find(ref)
	if err != nil {
		return err
	}
	if !b.proc.ended() && !force {
		return api.Errorf(api.CodeConflict, "sandbox %q is running", b.Name).WithHint("stop it first, or use --force")
	}
	b.proc.kill()
	delete(d.sandboxes, b.ID)
	return nil
}

// Wait waits for the command.
func (d *Daemon) Wait(ctx context.Context, _ server.Caller, ref string) (*api.WaitResult, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	select {
	case <-b.proc.done:
		return &api.WaitResult{ID: b.ID, State: api.StateStopped, Reason: api.ReasonExited, ExitCode: b.proc.result.ExitCode}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Logs replays the output.
func (d *Daemon) Logs(_ context.Context, _ server.Caller, ref string, o server.LogOptions, emit func(server.Output) error) error {
	b, err := d.get(ref)
	if err != nil {
		return err
	}
	if o.Follow {
		<-b.proc.done
	}
	for stream, p := range [][]byte{1: b.proc.out.bytes(), 2: b.proc.errOut.bytes()} {
		if len(p) > 0 {
			if err := emit(server.Output{Exec: "main", Stdout: stream == 1, Data: p}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Exec runs a command.
func (d *Daemon) Exec(_ context.Context, _ server.Caller, ref string, req api.ExecRequest) (server.Session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, err := d.find(ref)
	if err != nil {
		return nil, err
	}
	b.execs = append(b.execs, api.Exec{ID: "exec" + itoa(len(b.execs)), Command: req.Command, Labels: req.Labels, IO: req.IO, Started: time.Now()})
	return startExec(req)
}

// Attach replays the output and goes on until the end.
func (d *Daemon) Attach(_ context.Context, _ server.Caller, ref string, _ server.AttachOptions) (server.Session, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	return newAttach(b.proc), nil
}

// AllowEgress remembers nothing.
func (d *Daemon) AllowEgress(_ context.Context, _ server.Caller, ref string, _ []string) (*api.Sandbox, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	return &b.Sandbox, nil
}

// Forward reaches nobody.
func (d *Daemon) Forward(_ context.Context, _ server.Caller, ref string, _ uint16) (server.Tunnel, error) {
	if _, err := d.get(ref); err != nil {
		return nil, err
	}
	return nil, api.Errorf(api.CodeUnavailable, "nobody serves there")
}

// Stats are made up.
func (d *Daemon) Stats(_ context.Context, _ server.Caller, ref string) (*api.Stats, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	return &api.Stats{ID: b.ID, Name: b.Name, Read: time.Now(), MemoryBytes: 5 << 20, MemoryLimit: 512 << 20, Pids: 3, PidsLimit: 256}, nil
}

// Top is a made-up process with a hostile name.
func (d *Daemon) Top(_ context.Context, _ server.Caller, ref string) (*api.Top, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	return &api.Top{ID: b.ID, Name: b.Name, Read: time.Now(), Processes: []api.Process{
		{PID: 1, State: "S", Comm: "creel-init", Args: []string{"/.creel/init"}},
		{PID: 7, PPID: 1, Exec: "main", State: "S", Comm: "sh", Args: []string{"sh", "-c", "x"}, Cut: true},
		{PID: 9, PPID: 7, Exec: "main", State: "R", Comm: "a\x1b[2Jb"},
		{PID: 8, Exec: "other", State: "Z", Comm: "orphan"},
	}}, nil
}

// Execs are those that were started.
func (d *Daemon) Execs(_ context.Context, _ server.Caller, ref string, labels map[string]string) ([]api.Exec, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.execs), func(e api.Exec) bool { return !hasAll(e.Labels, labels) }), nil
}

// Events gives one of the past and waits.
func (d *Daemon) Events(ctx context.Context, _ server.Caller, after uint64, emit func(api.Event) error) error {
	if after < 1 {
		ev := api.Event{Seq: 1, Time: time.Unix(0, 0), Type: "sandbox.started", Sandbox: "aaaa", Fields: map[string]string{"command": "a\x1b[31mb c"}}
		if err := emit(ev); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

// Evidence is Proof.
func (d *Daemon) Evidence(_ context.Context, _ server.Caller, ref string, fresh bool) ([]api.Evidence, error) {
	b, err := d.get(ref)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	e := d.Proof
	d.mu.Unlock()
	e.Sandbox, e.Taken = b.ID, time.Unix(0, 0)
	if fresh {
		e.Why = "request"
	}
	payload, err := json.Marshal(api.EvidenceStatement{
		Evidence: e, SpecDigest: "sha256:5bec", Image: b.Image, ImageDigest: "sha256:01", Agent: b.Agent, Profile: "default", Runtime: "crun 1.21",
	})
	if err != nil {
		return nil, err
	}
	signed := testKey.Seal(api.EvidenceType, payload)
	e.Signed = &signed
	return []api.Evidence{e}, nil
}

// testKey signs what the fake box signs.
var testKey = boxkey.New([32]byte{9})

// TrustBundle is a text that is none.
func (d *Daemon) TrustBundle(context.Context, server.Caller) (*api.TrustBundle, error) {
	return &api.TrustBundle{TrustDomain: "box.example.com", PEM: "-----BEGIN CERTIFICATE-----\n"}, nil
}

// PublicKey is that of a fixed key.
func (d *Daemon) PublicKey(context.Context, server.Caller) (*api.PublicKey, error) {
	return &api.PublicKey{ID: testKey.ID(), PEM: string(testKey.Public().PEM())}, nil
}

// Doctor finds one thing of each kind.
func (d *Daemon) Doctor(_ context.Context, _ server.Caller, user, dir string) (*api.Doctor, error) {
	out := &api.Doctor{Checks: []api.Check{
		{Name: "kernel", Status: "ok", Detail: "6.12"},
		{Name: "cgroup", Status: "weaker", Detail: "v1", Cost: "no memory.oom.group", Fix: "boot with cgroup v2"},
	}, Leftovers: []string{}}
	if user != "" {
		out.Checks = append(out.Checks, api.Check{Name: "caller", Status: "danger", Detail: user + " is in group docker"})
	}
	if dir != "" {
		out.Checks = append(out.Checks, api.Check{Name: "workspace", Status: "ok", Detail: dir})
	}
	return out, nil
}

// Version is fixed.
func (d *Daemon) Version(context.Context) api.Version {
	return api.Version{Creel: "test", API: "v1", Go: "go", Kernel: "6.12", Containerd: "2", Runtime: "crun", RuntimeVer: "1", Cgroup: "v2"}
}

// Images lists what was imported.
func (d *Daemon) Images(context.Context, server.Caller) ([]api.Image, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []api.Image
	for _, ref := range slices.Sorted(maps.Keys(d.images)) {
		list = append(list, d.images[ref])
	}
	return list, nil
}

// Image returns one.
func (d *Daemon) Image(_ context.Context, _ server.Caller, ref string) (*api.Image, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	img, ok := d.images[ref]
	if !ok {
		return nil, api.Errorf(api.CodeNotFound, "no image %q", ref)
	}
	return &img, nil
}

// ImportImage counts bytes.
func (d *Daemon) ImportImage(_ context.Context, _ server.Caller, ref string, r io.Reader) (*api.Image, error) {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read the archive: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	img := api.Image{Ref: ref, Digest: "sha256:fedc", Size: n, Created: time.Unix(0, 0)}
	d.images[ref] = img
	return &img, nil
}

// Commit makes one of a sandbox that there is.
func (d *Daemon) Commit(ctx context.Context, c server.Caller, ref, image string) (*api.Image, error) {
	sb, err := d.Get(ctx, c, ref)
	if err != nil {
		return nil, err
	}
	img := api.Image{Ref: image, Digest: sb.ImageDigest, Owner: c.UID}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[image] = img
	return &img, nil
}

// TagImage names one once more.
func (d *Daemon) TagImage(ctx context.Context, c server.Caller, source, ref string) (*api.Image, error) {
	img, err := d.Image(ctx, c, source)
	if err != nil {
		return nil, err
	}
	img.Ref, img.Owner = ref, c.UID
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[ref] = *img
	return img, nil
}

// SaveImage writes the name of one.
func (d *Daemon) SaveImage(ctx context.Context, c server.Caller, ref string, w io.Writer) error {
	if _, err := d.Image(ctx, c, ref); err != nil {
		return err
	}
	_, err := io.WriteString(w, "archive of "+ref)
	return err
}

// RemoveImage forgets one.
func (d *Daemon) RemoveImage(ctx context.Context, c server.Caller, ref string) error {
	if _, err := d.Image(ctx, c, ref); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.images, ref)
	return nil
}

// Profiles lists one.
func (d *Daemon) Profiles(context.Context, server.Caller) ([]api.Profile, error) {
	return []api.Profile{{Name: "default", Description: "for most agents", Source: "embedded", TOML: "version = 1\n"}}, nil
}

// Profile returns that one.
func (d *Daemon) Profile(ctx context.Context, c server.Caller, name string) (*api.Profile, error) {
	list, err := d.Profiles(ctx, c)
	if err != nil || name != list[0].Name {
		return nil, api.Errorf(api.CodeNotFound, "no profile %q", name)
	}
	return &list[0], nil
}

// CheckProfile finds a mistake in anything but version 1.
func (d *Daemon) CheckProfile(_ context.Context, _ server.Caller, toml []byte) error {
	if strings.Contains(string(toml), "version = 1") {
		return nil
	}
	return &api.Error{Code: api.CodeInvalid, Message: "the profile is not valid", Problems: []api.Problem{{Field: "version", Want: "1"}}}
}
