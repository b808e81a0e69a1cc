package auditlog

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/approval"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/server"
)

// service records what goes to the one within. What only looks (list, get,
// logs, stats, events) is passed on as it is.
type service struct {
	server.Actions
	r *Recorder
}

// Wrap is svc with every action of its callers recorded.
func (r *Recorder) Wrap(svc server.Actions) server.Service { return &service{svc, r} }

// Spawning commits a spawn's intent: who, what was asked and what was decided
// by which profile. The launcher calls it before its first effect.
func (r *Recorder) Spawning(ctx context.Context, c peer.Cred, id string, ad *admission.Admitted) error {
	a, ok := ctx.Value(actionKey{}).(*action)
	if !ok {
		a = r.begin(ctx, c, "sandbox.spawn", id, "")
	}
	a.Sandbox, a.Agent, a.Object = id, ad.Request.Agent, ad.Request.Image
	limits, err := json.Marshal(ad.Limits)
	if err != nil {
		return err
	}
	a.Decided = map[string]string{
		"profile": ad.Profile.Name, "rule": "ceiling " + r.ceiling(c) + ", profile " + ad.Profile.Name + " of " + ad.Profile.Source,
		"runtime": ad.Request.Runtime, "network": ad.Request.Network, "rootfs": ad.Request.Rootfs, "limits": string(limits),
	}
	if len(ad.Request.Egress) > 0 {
		a.Decided["egress"] = strings.Join(ad.Request.Egress, "; ")
	}
	if ad.Request.Parent != "" {
		a.Decided["parent"] = ad.Request.Parent
	}
	if ad.Request.Socket {
		a.Decided["socket"] = "granted"
	}
	return a.commit(ctx)
}

// spawn is around each way to make a sandbox.
func (s *service) spawn(ctx context.Context, c peer.Cred, req api.SpawnRequest, fn func(context.Context) (*api.SpawnResult, bool, error)) (*api.SpawnResult, bool, error) {
	a := s.r.begin(ctx, c, "sandbox.spawn", "", req.Image)
	a.Agent, a.Asked = req.Agent, asked(req)
	s.r.command(&a.Entry, req.Command)
	res, made, err := fn(context.WithValue(ctx, actionKey{}, a))
	if res != nil {
		a.Sandbox = res.Sandbox.ID
		digest(&a.Entry, "image", res.Sandbox.ImageDigest)
		if e := res.Evidence.Signed; e != nil {
			spec, proof := digestsOf(e)
			digest(&a.Entry, "evidence", proof)
			digest(&a.Entry, "spec", spec)
		}
		if !made {
			a.Decided = with(a.Decided, "made", "no: it was there")
		}
	}
	a.end(err)
	return res, made, err
}

// digestsOf are the spec's, and that of the signed payload itself.
func digestsOf(e *api.Envelope) (spec, proof string) {
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		return "", ""
	}
	var s struct {
		SpecDigest string `json:"spec_digest"`
	}
	_ = json.Unmarshal(payload, &s) // the daemon's own
	return s.SpecDigest, fmt.Sprintf("sha256:%x", sha256.Sum256(payload))
}

// Spawn implements server.Service.
func (s *service) Spawn(ctx context.Context, c peer.Cred, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, error) {
	res, _, err := s.spawn(ctx, c, req, func(ctx context.Context) (*api.SpawnResult, bool, error) {
		res, err := s.Actions.Spawn(ctx, c, req, dirs)
		return res, true, err
	})
	return res, err
}

// SpawnOnce implements server.Service.
func (s *service) SpawnOnce(ctx context.Context, c peer.Cred, key string, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, bool, error) {
	return s.spawn(ctx, c, req, func(ctx context.Context) (*api.SpawnResult, bool, error) {
		return s.Actions.SpawnOnce(ctx, c, key, req, dirs)
	})
}

// Ensure implements server.Service.
func (s *service) Ensure(ctx context.Context, c peer.Cred, name string, req api.SpawnRequest, dirs []*os.File) (*api.SpawnResult, bool, error) {
	return s.spawn(ctx, c, req, func(ctx context.Context) (*api.SpawnResult, bool, error) {
		return s.Actions.Ensure(ctx, c, name, req, dirs)
	})
}

// Exec implements server.Service. How the command ends is a fact of its own.
func (s *service) Exec(ctx context.Context, c peer.Cred, ref string, req api.ExecRequest) (server.Session, error) {
	a := s.r.begin(ctx, c, "exec.start", ref, "")
	a.Asked = asked(req)
	s.r.command(&a.Entry, req.Command)
	if err := a.queue(ctx); err != nil {
		return nil, a.done(err)
	}
	session, err := s.Actions.Exec(ctx, c, ref, req)
	if err == nil {
		a.Detail = map[string]string{"exec": session.ID()}
	}
	a.end(err)
	return session, err
}

// AllowEgress implements server.Service.
func (s *service) AllowEgress(ctx context.Context, c peer.Cred, ref string, rules []string) (sb *api.Sandbox, err error) {
	a := s.r.begin(ctx, c, "egress.allow", ref, "")
	a.Asked = asked(api.EgressRequest{Allow: rules})
	err = s.working(ctx, a, func() error {
		sb, err = s.Actions.AllowEgress(ctx, c, ref, rules)
		return err
	})
	return sb, err
}

// DecideApproval implements server.Service.
func (s *service) DecideApproval(ctx context.Context, c peer.Cred, id string, d api.ApprovalDecision) (out *api.Approval, err error) {
	ref, _ := approval.Number(id)
	a := s.r.begin(ctx, c, "approval.decide", ref, id)
	a.Asked = asked(d)
	err = s.working(ctx, a, func() error {
		out, err = s.Actions.DecideApproval(ctx, c, id, d)
		if out != nil {
			a.Detail = map[string]string{"to": out.To, "rule": out.Rule, "for": string(out.For)}
		}
		return err
	})
	return out, err
}

// ForgetEgress implements server.Service.
func (s *service) ForgetEgress(ctx context.Context, c peer.Cred, ref string, rules []string) (*api.Agent, error) {
	a := s.r.begin(ctx, c, "agent.forget_egress", "", ref)
	a.Asked = asked(api.ForgetRequest{Rules: rules})
	a.keep(ctx)
	agent, err := s.Actions.ForgetEgress(ctx, c, ref, rules)
	a.agent(agent)
	return agent, a.done(err)
}

// Forward implements server.Service. What goes over it is not looked at.
func (s *service) Forward(ctx context.Context, c peer.Cred, ref string, port uint16) (server.Tunnel, error) {
	a := s.r.begin(ctx, c, "sandbox.forward", ref, "")
	a.Asked = map[string]string{"port": strconv.Itoa(int(port))}
	if err := a.queue(ctx); err != nil {
		return nil, a.done(err)
	}
	conn, err := s.Actions.Forward(ctx, c, ref, port)
	if err := a.done(err); err != nil {
		if conn != nil {
			_ = conn.Close()
		}
		return nil, err
	}
	return conn, nil
}

// Attach implements server.Service. Only one that sends input does something.
func (s *service) Attach(ctx context.Context, c peer.Cred, ref string, o server.AttachOptions) (server.Session, error) {
	if !o.Stdin {
		return s.Actions.Attach(ctx, c, ref, o)
	}
	a := s.r.begin(ctx, c, "sandbox.attach", ref, "")
	if err := a.queue(ctx); err != nil {
		return nil, a.done(err)
	}
	session, err := s.Actions.Attach(ctx, c, ref, o)
	a.end(err)
	return session, err
}

// ending is around what ends or holds something.
func (s *service) ending(ctx context.Context, c peer.Cred, name, ref string, asked map[string]string, fn func() error) error {
	a := s.r.begin(ctx, c, name, ref, "")
	a.Asked = asked
	a.keep(ctx)
	return a.done(fn())
}

// Stop implements server.Service.
func (s *service) Stop(ctx context.Context, c peer.Cred, ref string, grace time.Duration) (res *api.WaitResult, err error) {
	err = s.ending(ctx, c, "sandbox.stop", ref, map[string]string{"grace": grace.String()}, func() error {
		res, err = s.Actions.Stop(ctx, c, ref, grace)
		return err
	})
	return res, err
}

// Kill implements server.Service.
func (s *service) Kill(ctx context.Context, c peer.Cred, ref string, sig syscall.Signal) error {
	return s.ending(ctx, c, "sandbox.kill", ref, map[string]string{"signal": strconv.Itoa(int(sig))}, func() error {
		return s.Actions.Kill(ctx, c, ref, sig)
	})
}

// Pause implements server.Service.
func (s *service) Pause(ctx context.Context, c peer.Cred, ref string) error {
	return s.ending(ctx, c, "sandbox.pause", ref, nil, func() error { return s.Actions.Pause(ctx, c, ref) })
}

// Resume implements server.Service: it lets an agent go on, so it is new work.
func (s *service) Resume(ctx context.Context, c peer.Cred, ref string) error {
	a := s.r.begin(ctx, c, "sandbox.resume", ref, "")
	return s.working(ctx, a, func() error { return s.Actions.Resume(ctx, c, ref) })
}

// Remove implements server.Service.
func (s *service) Remove(ctx context.Context, c peer.Cred, ref string, force bool) error {
	return s.ending(ctx, c, "sandbox.remove", ref, map[string]string{"force": strconv.FormatBool(force)}, func() error {
		return s.Actions.Remove(ctx, c, ref, force)
	})
}

// working is around new work that waits for its intent.
func (s *service) working(ctx context.Context, a *action, fn func() error) error {
	if err := a.commit(ctx); err != nil {
		return a.done(err)
	}
	return a.done(fn())
}

// counter counts what is copied.
type counter struct {
	io.ReadCloser
	n     int64
	close func(n int64, err error)
}

func (r *counter) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.n += int64(n)
	return n, err
}

func (r *counter) Close() error {
	err := r.ReadCloser.Close()
	if r.close != nil {
		r.close(r.n, err)
		r.close = nil
	}
	return err
}

func (a *action) copied(n int64) { a.Detail = with(a.Detail, "bytes", strconv.FormatInt(n, 10)) }

// ReadFile implements server.Service.
func (s *service) ReadFile(ctx context.Context, c peer.Cred, ref, path string) (api.FileInfo, io.ReadCloser, error) {
	a := s.r.begin(ctx, c, "file.read", ref, path)
	if err := a.queue(ctx); err != nil {
		return api.FileInfo{}, nil, a.done(err)
	}
	info, r, err := s.Actions.ReadFile(ctx, c, ref, path)
	if err != nil {
		return info, r, a.done(err)
	}
	return info, &counter{ReadCloser: r, close: func(n int64, err error) { a.copied(n); a.end(err) }}, nil
}

// WriteFile implements server.Service.
func (s *service) WriteFile(ctx context.Context, c peer.Cred, ref, path string, opts server.WriteOptions, r io.Reader) error {
	a := s.r.begin(ctx, c, "file.write", ref, path)
	a.Asked = map[string]string{"mode": fmt.Sprintf("%04o", opts.Mode)}
	if err := a.queue(ctx); err != nil {
		return a.done(err)
	}
	in := &counter{ReadCloser: io.NopCloser(r)}
	err := s.Actions.WriteFile(ctx, c, ref, path, opts, in)
	a.copied(in.n)
	return a.done(err)
}

// fileWork is around the other changes to an agent's files.
func (s *service) fileWork(ctx context.Context, c peer.Cred, name, ref, path string, asked map[string]string, fn func() error) error {
	a := s.r.begin(ctx, c, name, ref, path)
	a.Asked = asked
	if err := a.queue(ctx); err != nil {
		return a.done(err)
	}
	return a.done(fn())
}

// Mkdir implements server.Service.
func (s *service) Mkdir(ctx context.Context, c peer.Cred, ref, path string, parents bool) error {
	return s.fileWork(ctx, c, "file.mkdir", ref, path, nil, func() error { return s.Actions.Mkdir(ctx, c, ref, path, parents) })
}

// RemoveFile implements server.Service.
func (s *service) RemoveFile(ctx context.Context, c peer.Cred, ref, path string, recursive bool) error {
	return s.fileWork(ctx, c, "file.remove", ref, path, map[string]string{"recursive": strconv.FormatBool(recursive)}, func() error {
		return s.Actions.RemoveFile(ctx, c, ref, path, recursive)
	})
}

// RenameFile implements server.Service.
func (s *service) RenameFile(ctx context.Context, c peer.Cred, ref, from, to string) error {
	return s.fileWork(ctx, c, "file.rename", ref, from, map[string]string{"to": to}, func() error { return s.Actions.RenameFile(ctx, c, ref, from, to) })
}
