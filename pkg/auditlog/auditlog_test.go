package auditlog_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/audit"
	"github.com/creel-sandbox/creel/pkg/auditlog"
	"github.com/creel-sandbox/creel/pkg/boxkey"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/server"
)

// fakeLog keeps what it is given, and can be down.
type fakeLog struct {
	entries []audit.Entry
	down    error
}

func (l *fakeLog) Commit(_ context.Context, e audit.Entry) error {
	if l.down == nil {
		l.entries = append(l.entries, e)
	}
	return l.down
}

func (l *fakeLog) Keep(_ context.Context, e audit.Entry) error {
	l.entries = append(l.entries, e)
	return l.down
}
func (l *fakeLog) Later(e audit.Entry)         { l.entries = append(l.entries, e) }
func (l *fakeLog) Ready(context.Context) error { return l.down }
func (l *fakeLog) HeadLine() []byte            { return nil }
func (l *fakeLog) Read(context.Context, audit.Range, func([]byte) error) error {
	return errors.New("not here")
}

func (l *fakeLog) kinds() string {
	var out []string
	for _, e := range l.entries {
		out = append(out, string(e.Kind)+" "+e.Action)
	}
	return strings.Join(out, ", ")
}

// box does everything, and says that it did.
type box struct {
	server.Actions
	did []string
	r   *auditlog.Recorder
	err error
}

func (b *box) done(what string) error { b.did = append(b.did, what); return b.err }

func (b *box) Spawn(ctx context.Context, c peer.Cred, req api.SpawnRequest, _ []*os.File) (*api.SpawnResult, error) {
	ad := &admission.Admitted{Request: req, Profile: &profile.Profile{Name: "default", Source: "embedded"}}
	if err := b.r.Spawning(ctx, c, "id1", ad); err != nil {
		return nil, err
	}
	return &api.SpawnResult{Sandbox: api.Sandbox{ID: "id1", ImageDigest: "sha256:aa"}}, b.done("spawn")
}

type session struct{ server.Session }

func (session) ID() string { return "e1" }

func (b *box) Exec(context.Context, peer.Cred, string, api.ExecRequest) (server.Session, error) {
	return session{}, b.done("exec")
}

func (b *box) Attach(context.Context, peer.Cred, string, server.AttachOptions) (server.Session, error) {
	return session{}, b.done("attach")
}

func (b *box) AllowEgress(context.Context, peer.Cred, string, []string) (*api.Sandbox, error) {
	return &api.Sandbox{}, b.done("allow")
}

func (b *box) DecideApproval(context.Context, peer.Cred, string, api.ApprovalDecision) (*api.Approval, error) {
	return &api.Approval{}, b.done("decide")
}

func (b *box) ForgetEgress(context.Context, peer.Cred, string, []string) (*api.Agent, error) {
	return &api.Agent{}, b.done("forget")
}

func (b *box) Forward(context.Context, peer.Cred, string, uint16) (server.Tunnel, error) {
	return nil, b.done("forward")
}

func (b *box) Stop(context.Context, peer.Cred, string, time.Duration) (*api.WaitResult, error) {
	return &api.WaitResult{}, b.done("stop")
}

func (b *box) Kill(context.Context, peer.Cred, string, syscall.Signal) error { return b.done("kill") }

func (b *box) Pause(context.Context, peer.Cred, string) error { return b.done("pause") }

func (b *box) Resume(context.Context, peer.Cred, string) error { return b.done("resume") }

func (b *box) Remove(context.Context, peer.Cred, string, bool) error { return b.done("remove") }

func (b *box) ReadFile(context.Context, peer.Cred, string, string) (api.FileInfo, io.ReadCloser, error) {
	return api.FileInfo{}, io.NopCloser(strings.NewReader("12345")), b.done("read")
}

func (b *box) WriteFile(_ context.Context, _ peer.Cred, _, _ string, _ server.WriteOptions, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return errors.Join(err, b.done("write"))
}

func (b *box) ImportImage(_ context.Context, _ peer.Cred, _ string, r io.Reader) (*api.Image, error) {
	_, err := io.Copy(io.Discard, r)
	return &api.Image{Ref: "x", Digest: "sha256:bb"}, errors.Join(err, b.done("import"))
}
func (b *box) RemoveImage(context.Context, peer.Cred, string) error { return b.done("rmi") }
func (b *box) CreateVolume(context.Context, peer.Cred, api.VolumeRequest) (*api.Volume, error) {
	return &api.Volume{}, b.done("volume")
}
func (b *box) RemoveVolume(context.Context, peer.Cred, string) error { return b.done("rmvolume") }
func (b *box) Commit(context.Context, peer.Cred, string, string) (*api.Image, error) {
	return &api.Image{}, b.done("commit")
}

func (b *box) RevokeAgent(context.Context, peer.Cred, string) (*api.Agent, error) {
	return &api.Agent{}, b.done("revoke")
}

func (b *box) RestoreAgent(context.Context, peer.Cred, string) (*api.Agent, error) {
	return &api.Agent{}, b.done("restore")
}

func (b *box) ExpireAgent(context.Context, peer.Cred, string, time.Time) (*api.Agent, error) {
	return &api.Agent{}, b.done("expire")
}

func (b *box) Prune(context.Context, peer.Cred, api.PruneRequest) (*api.PruneResult, error) {
	return &api.PruneResult{}, b.done("prune")
}

const hidden = "hunter2"

func ceiling(peer.Cred) string { return "group:creel" }

// calls are what callers do, and whether it begins something.
var calls = []struct {
	name   string
	begins bool
	fn     func(context.Context, server.Service, peer.Cred) error
}{
	{"spawn", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Spawn(ctx, c, api.SpawnRequest{Agent: "a", Command: []string{"x"}, Env: map[string]string{"T": hidden}}, nil)
		return err
	}},
	{"exec", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Exec(ctx, c, "b", api.ExecRequest{Command: []string{"x", "y"}, Env: map[string]string{"T": hidden}, Input: hidden, InputBase64: hidden})
		return err
	}},
	{"attach", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Attach(ctx, c, "b", server.AttachOptions{Stdin: true})
		return err
	}},
	{"allow", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.AllowEgress(ctx, c, "b", []string{"a.example"})
		return err
	}},
	{"decide", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.DecideApproval(ctx, c, "b.1", api.ApprovalDecision{Allow: true, For: api.ForOnce})
		return err
	}},
	{"forget", false, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.ForgetEgress(ctx, c, "a", nil)
		return err
	}},
	{"forward", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Forward(ctx, c, "b", 80)
		return err
	}},
	{"resume", true, func(ctx context.Context, s server.Service, c peer.Cred) error { return s.Resume(ctx, c, "b") }},
	{"write", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		return s.WriteFile(ctx, c, "b", "/f", server.WriteOptions{Mode: 0o600}, strings.NewReader(hidden))
	}},
	{"import", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.ImportImage(ctx, c, "x", strings.NewReader(hidden))
		return err
	}},
	{"volume", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.CreateVolume(ctx, c, api.VolumeRequest{Name: "v"})
		return err
	}},
	{"commit", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Commit(ctx, c, "b", "x")
		return err
	}},
	{"restore", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.RestoreAgent(ctx, c, "a")
		return err
	}},
	{"expire", true, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.ExpireAgent(ctx, c, "a", time.Time{})
		return err
	}},
	{"revoke", false, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.RevokeAgent(ctx, c, "a")
		return err
	}},
	{"stop", false, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Stop(ctx, c, "b", 0)
		return err
	}},
	{"kill", false, func(ctx context.Context, s server.Service, c peer.Cred) error { return s.Kill(ctx, c, "b", 9) }},
	{"pause", false, func(ctx context.Context, s server.Service, c peer.Cred) error { return s.Pause(ctx, c, "b") }},
	{"remove", false, func(ctx context.Context, s server.Service, c peer.Cred) error { return s.Remove(ctx, c, "b", true) }},
	{"rmi", false, func(ctx context.Context, s server.Service, c peer.Cred) error { return s.RemoveImage(ctx, c, "x") }},
	{"rmvolume", false, func(ctx context.Context, s server.Service, c peer.Cred) error { return s.RemoveVolume(ctx, c, "v") }},
	{"prune", false, func(ctx context.Context, s server.Service, c peer.Cred) error {
		_, err := s.Prune(ctx, c, api.PruneRequest{})
		return err
	}},
}

func TestActions(t *testing.T) {
	for _, call := range calls {
		t.Run(call.name, func(t *testing.T) {
			log := &fakeLog{}
			r := auditlog.New(log, auditlog.Full, ceiling, slog.New(slog.DiscardHandler))
			b := &box{r: r}
			if err := call.fn(t.Context(), r.Wrap(b), peer.Cred{UID: 7}); err != nil || !slices.Equal(b.did, []string{call.name}) {
				t.Fatalf("did %v, error %v", b.did, err)
			}
			if len(log.entries) != 2 || log.entries[0].Kind != audit.Intent || log.entries[1].Kind != audit.Outcome || log.entries[1].Result.Code != "ok" ||
				log.entries[0].Action != log.entries[1].Action || log.entries[0].Who.UID != 7 {
				t.Errorf("recorded %s: %+v", log.kinds(), log.entries)
			}
			if text := fmt.Sprintf("%+v", log.entries); strings.Contains(text, hidden) {
				t.Errorf("a secret is recorded: %s", text)
			}

			// What fails is recorded, and what the host said of it is not.
			log.entries, b.err = nil, errors.New("open /var/lib/host: no")
			if err := call.fn(t.Context(), r.Wrap(b), peer.Cred{}); err == nil {
				t.Fatal("no error")
			}
			last := log.entries[len(log.entries)-1]
			if last.Result.Code != "internal" || strings.Contains(fmt.Sprintf("%+v", log.entries), "/var/lib/host") {
				t.Errorf("recorded %+v", last.Result)
			}

			// No audit, no new work; what ends something goes on.
			log.entries, b.err, b.did = nil, nil, nil
			log.down = &audit.DownError{Full: true, Err: syscall.ENOSPC}
			err := call.fn(t.Context(), r.Wrap(b), peer.Cred{})
			if call.begins {
				if api.CodeOf(err) != api.CodeUnavailable || len(b.did) != 0 || !strings.Contains(err.Error(), "disk is full") {
					t.Errorf("with the log down: did %v, error %v", b.did, err)
				}
				if log.kinds() == "" || log.entries[len(log.entries)-1].Result.Code != "unavailable" {
					t.Errorf("the refusal is not recorded: %s", log.kinds())
				}
			} else if err != nil || len(b.did) != 1 {
				t.Errorf("with the log down: did %v, error %v", b.did, err)
			}
		})
	}
}

// TestEveryActionIsKnown: a method that is new must be recorded or named here
// as one that only looks.
func TestEveryActionIsKnown(t *testing.T) {
	looks := []string{
		"List", "Get", "Wait", "Logs", "ListDir", "StatFile", "Diff", "Stats", "Top", "Execs", "Events", "Images", "Image",
		"Volumes", "Volume", "Secrets", "Profiles", "Profile", "CheckProfile", "DiskUsage", "Evidence", "PublicKey", "TrustBundle", "Approvals", "Doctor", "Version",
		"Agents", "Agent", "Explain",
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(b)
	}
	for m := range reflect.TypeFor[server.Actions]().Methods() {
		recorded := strings.Contains(source.String(), "func (s *service) "+m.Name+"(")
		if recorded == slices.Contains(looks, m.Name) {
			t.Errorf("%s: recorded %v, and listed as one that only looks %v", m.Name, recorded, !recorded)
		}
	}
}

func TestCopied(t *testing.T) {
	log := &fakeLog{}
	r := auditlog.New(log, auditlog.Full, ceiling, slog.New(slog.DiscardHandler))
	_, f, err := r.Wrap(&box{r: r}).ReadFile(t.Context(), peer.Cred{}, "b", "/f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
	if log.kinds() != "intent file.read" {
		t.Errorf("before the end: %s", log.kinds())
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if log.kinds() != "intent file.read, outcome file.read" || log.entries[1].Detail["bytes"] != "5" || log.entries[0].Object != "/f" {
		t.Errorf("recorded %s: %+v", log.kinds(), log.entries)
	}
}

// TestWho: of the process is told what /proc says, if it is still that one.
func TestWho(t *testing.T) {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	own := os.NewFile(uintptr(fd), "pidfd")
	defer own.Close()
	other, err := os.Open(os.DevNull) // no pidfd: nothing of it may be believed
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for pidfd, want := range map[*os.File]string{own: exe, other: "", nil: ""} {
		log := &fakeLog{}
		r := auditlog.New(log, auditlog.Full, ceiling, slog.New(slog.DiscardHandler))
		if err := r.Wrap(&box{r: r}).Kill(t.Context(), peer.Cred{PID: int32(os.Getpid()), PIDFD: pidfd}, "b", 9); err != nil {
			t.Fatal(err)
		}
		if w := log.entries[0].Who; w.Exe != want || w.LoginUID != -1 && pidfd != own {
			t.Errorf("who = %+v, want exe %q", w, want)
		}
	}
}

// TestOwnLines: a caller sees what it did, and nothing that counts others.
func TestOwnLines(t *testing.T) {
	key := boxkey.New([32]byte{1})
	l, err := audit.Open(audit.Options{Dir: filepath.Join(t.TempDir(), "audit"), Key: key, Public: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := auditlog.New(l, auditlog.Full, ceiling, slog.New(slog.DiscardHandler))
	b := &box{r: r}
	s := r.Wrap(b)
	for _, uid := range []uint32{5, 55, 0} {
		if err := s.Resume(t.Context(), peer.Cred{UID: uid}, fmt.Sprintf(`sandbox-of-"uid":%d,`, 5)); err != nil {
			t.Fatal(err)
		}
	}
	r.Fact("sandbox.stopped", map[string]string{"caller_uid": "5"})
	if err := l.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(t.Context(), audit.Entry{Kind: audit.Fact, Action: "x"}); err != nil {
		t.Fatal(err)
	}
	read := func(uid uint32, o server.AuditOptions) (out []string) {
		t.Helper()
		if err := s.AuditLog(t.Context(), peer.Cred{UID: uid}, o, func(line []byte) error {
			out = append(out, string(line))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	own := read(5, server.AuditOptions{})
	if len(own) != 3 {
		t.Errorf("uid 5 sees %d lines, want 3:\n%s", len(own), strings.Join(own, "\n"))
	}
	for _, line := range own {
		if strings.Contains(line, `"seq"`) || strings.Contains(line, `"prev"`) || !strings.HasPrefix(line, `{"time":"`) || !strings.HasSuffix(line, "}") {
			t.Errorf("line %s", line)
		}
	}
	other := uint32(55)
	if got := read(5, server.AuditOptions{Caller: &other}); len(got) != 0 {
		t.Errorf("uid 5 sees %v of 55", got)
	}
	if got := read(0, server.AuditOptions{}); len(got) != 9 { // begin, three times two, two facts
		t.Errorf("root sees %d lines, want 9:\n%s", len(got), strings.Join(got, "\n"))
	}
	if got := read(0, server.AuditOptions{Kind: "intent", Caller: &other}); len(got) != 1 {
		t.Errorf("root sees %d intents of 55", len(got))
	}
	for name, err := range map[string]error{
		"the whole log": s.AuditLog(t.Context(), peer.Cred{UID: 5}, server.AuditOptions{All: true}, nil),
		"a kind":        s.AuditLog(t.Context(), peer.Cred{UID: 5}, server.AuditOptions{Kind: "head"}, nil),
	} {
		if code := api.CodeOf(err); code != api.CodeDenied && code != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.AuditHead(t.Context(), peer.Cred{UID: 5}); api.CodeOf(err) != api.CodeDenied {
		t.Errorf("the head: %v", err)
	}
	if h, err := s.AuditHead(t.Context(), peer.Cred{}); err != nil || h.Seq == 0 {
		t.Errorf("root's head: %+v, %v", h, err)
	}
}
