package launcher

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/ownsocket"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/recent"
	"github.com/creel-sandbox/creel/pkg/rootfs"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/undo"
	"github.com/creel-sandbox/creel/pkg/verify"
	"github.com/creel-sandbox/creel/pkg/weaken"
)

// launch is one request on its way to a running sandbox.
type launch struct {
	l      *Launcher
	id     string
	caller peer.Cred
	*admission.Admitted
	dirs    []*os.File
	key     *store.SpawnKey // the request's, nil without one
	trace   trace
	undo    undo.Stack
	stuck   map[string]bool // effects whose undo failed
	sb      *sandbox
	spec    spec.Sandbox
	ns      *netns.NS
	newTask func(context.Context) (int, error)
	said    []api.Control // by PID 1, before the agent can have changed it
	upper   string        // of the writable layer; empty without one
	proof   api.Evidence
}

// Launch makes a sandbox of an admitted request: it returns when the
// isolation is proven and the main command, if any, is about to execute. If
// it fails nothing is left; if its undo fails, the record stays as "unknown"
// and is cleaned up later. It counts for the caller's spawn rate, and t goes on
// with its steps.
//
//nolint:contextcheck // clean-up outlives the request by design
func (l *Launcher) Launch(ctx context.Context, c peer.Cred, a *admission.Admitted, dirs []*os.File, key *store.SpawnKey, t trace) (_ *api.SpawnResult, err error) {
	s := &launch{l: l, id: newID(), caller: c, Admitted: a, dirs: dirs, key: key, trace: t, stuck: map[string]bool{}}
	began := time.Now()
	if err := l.Callers.Spawn(c); err != nil {
		return nil, err
	}
	select {
	case l.launches <- struct{}{}:
		defer func() { <-l.launches }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s.trace.end("queue", began)
	if err := s.reserve(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if s.ns != nil {
			_ = s.ns.Close() // PID 1 holds the namespace now, or nothing does
		}
		if err != nil {
			err = s.failed(ctx, err)
		}
	}()
	if err := failpoint.Hit("launch.reserve"); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		name string
		fn   func(context.Context) error
	}{
		{"prepare", s.prepare},     // namespaces, mounts, layers: all that needs no process
		{"container", s.container}, // snapshot and OCI spec, in containerd
		{"task", s.task},           // the runtime makes the namespaces; PID 1 waits
		{"start", s.start},         // PID 1 executes creel-init, the daemon takes its channel
		{"channel", s.channel},     // PID 1 installs the filter and tries it
		{"prove", s.prove},         // read back from the kernel
		{"go", s.goAhead},          // from here on the agent may run
		{"main", s.main},           // and its main command does
		{"record", s.record},
	} {
		began := time.Now()
		if err := step.fn(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		s.trace.end(step.name, began)
		if err := failpoint.Hit("launch." + step.name); err != nil {
			return nil, err
		}
	}
	res := &api.SpawnResult{Sandbox: s.sb.view(), Evidence: s.proof}
	if a.Request.Trace {
		res.Trace = s.trace.steps()
	}
	return res, nil
}

// reserve writes the intent: from here on a crash finds a record of the id,
// and so everything that carries it.
func (s *launch) reserve(ctx context.Context) error {
	began := time.Now()
	s.l.imageMu.RLock()
	defer s.l.imageMu.RUnlock()
	// Looking up the image has no effect, so the intent is committed meanwhile.
	// If the image is not there, an outcome says so.
	recorded := make(chan error, 1)
	go func() { recorded <- s.l.Spawning(ctx, s.caller, s.id, s.Admitted) }()
	digest, err := s.l.Runtime.Resolve(ctx, s.caller.UID, s.Request.Image)
	s.trace.end("image", began)
	if err := errors.Join(<-recorded, err); err != nil {
		return err
	}
	if err := failpoint.Hit("launch.image"); err != nil {
		return err
	}
	s.trace.end("audit", began)
	began = time.Now()
	if s.Request.Home == "persistent" {
		if err := s.makeHome(ctx); err != nil {
			return err
		}
		s.trace.end("home", began)
		began = time.Now()
	}
	return s.l.volumes.Use(s.caller.UID, s.Request, func(volumes []store.VolumeUse) error {
		if err := s.intend(digest, volumes); err != nil {
			return err
		}
		s.trace.end("intent", began)
		return nil
	})
}

// makeHome sees that the agent has its persistent home. That is no part of the
// sandbox: a launch that fails leaves it.
func (s *launch) makeHome(ctx context.Context) error {
	s.l.mu.Lock()
	parent, err := s.l.parentLocked(s.caller, s.Request.Parent)
	s.l.mu.Unlock()
	if err != nil {
		return err
	}
	rules, err := s.l.roomNow(s.caller, parent.line(), admission.SumOf(s.Request.Rootfs == "ephemeral", s.Limits))
	if err := errors.Join(err, admission.Refusal(rules)); err != nil {
		return err // before the work
	}
	return s.l.volumes.Home(ctx, s.caller, s.Request.Agent, s.Profile.HomeSize)
}

// intend puts a record of the sandbox where everybody finds it.
func (s *launch) intend(digest string, volumes []store.VolumeUse) (err error) {
	began := time.Now()
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	parent, err := s.l.parentLocked(s.caller, s.Request.Parent)
	if err == nil {
		err = parent.sameImage(digest)
	}
	if err != nil {
		return err
	}
	if err := s.l.take(s.id, s.caller, parent.line(), admission.SumOf(s.Request.Rootfs == "ephemeral", s.Limits)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.l.tally.Drop(s.id)
		}
	}()
	agent, forget, err := s.l.useAgentLocked(s.caller, s.Request)
	if err != nil {
		return err
	}
	reach, approvals, err := s.l.egressOf(s.caller, s.Admitted, parent)
	if err != nil {
		return err
	}
	refs, err := s.l.secretsOf(s.caller, s.Admitted, parent)
	if err != nil {
		return err
	}
	first, err := s.l.IDs.Take()
	if err != nil {
		return api.Errorf(api.CodeExhausted, "%w", err)
	}
	r := s.Request
	rec := store.Record{
		Request:     r,
		Key:         s.key,
		CgroupsPath: s.l.Cgroups.CgroupsPath(s.id),
		BootID:      bootID(),
		Volumes:     volumes,
		Groups:      parent.groups(s.caller.Groups),
		Secrets:     refs,
		Approvals:   approvals,
		Sandbox: api.Sandbox{
			ID: s.id, Name: r.Name, Agent: r.Agent, AgentID: agent.ID, Parent: r.Parent, Profile: r.Profile,
			Image: r.Image, ImageDigest: digest, Runtime: r.Runtime, Rootfs: r.Rootfs, Home: r.Home, Network: r.Network, Egress: reach, Observe: s.Profile.Observe, Secrets: r.Secrets, Logs: r.Logs,
			User: userOf(s.Profile), Capabilities: s.Profile.Capabilities,
			State: api.StateCreating, Command: r.Command, Workdir: r.Workdir, TTY: r.TTY, Stdin: r.Stdin,
			Mounts: r.Mounts, Socket: r.Socket, Limits: s.Limits, Labels: r.Labels,
			Caller:  api.Caller{UID: s.caller.UID, GID: s.caller.GID},
			HostUID: first, Created: time.Now().UTC(),
		},
	}
	if rec.Sandbox.Name == "" {
		rec.Sandbox.Name = r.Agent + "-" + s.id[:6]
	}
	s.trace.end("totals", began)
	err = s.l.Store.Update(func(t *store.Tx) error {
		err := errors.Join(t.PutSandbox(rec), t.PutAgent(agent))
		if forget != nil {
			err = errors.Join(err, t.DeleteAgent(forget.Caller.UID, forget.Name))
		}
		return err
	})
	if err != nil {
		s.l.IDs.Release(first)
		return err
	}
	s.l.Agents.Put(agent)
	if forget != nil {
		s.l.Agents.Drop(forget.Caller.UID, forget.Name)
	}
	s.sb = s.l.newSandbox(rec, parent)
	s.l.sandboxes[s.id] = s.sb
	return nil
}

// failed takes back what was made. The record goes last: while it is there,
// reconcile knows that something may be left.
func (s *launch) failed(ctx context.Context, err error) error {
	s.sb.mu.Lock()
	ending := s.sb.ending
	s.sb.ending = true // it has no end of its own any more
	if !ending && s.sb.rec.Sandbox.State == api.StateRunning {
		// A daemon killed from here on leaves half a sandbox, not one that ran.
		half := s.sb.rec
		half.Sandbox.State = api.StateCreating
		err = errors.Join(err, s.sb.putLocked(half))
	}
	s.sb.mu.Unlock()
	if ending {
		// It ran, and has ended by itself meanwhile: that cleans up.
		return errors.Join(err, s.sb.remove(context.WithoutCancel(ctx), true))
	}
	defer s.sb.markDone() // for whoever waits for it
	s.sb.release()
	s.l.broken.Store(true)
	uerr := s.undo.Run(ctx)
	if uerr == nil {
		uerr = s.l.forget(s.sb)
	}
	if uerr != nil {
		s.l.log.ErrorContext(ctx, "launch could not be undone; will be tried again", slog.String("sandbox", s.id), slog.Any("error", uerr))
		s.l.unknown(s.sb, uerr)
		err = errors.Join(err, uerr)
	}
	s.l.publish("sandbox.failed", s.sb.identity(), "error", err.Error())
	return err
}

// did registers the undo of an effect, right beside it.
func (s *launch) did(effect string) { s.undo.Add(effect, s.l.undoing(effect, s.id, s.stuck)) }

// prepare makes all that needs no process of the sandbox's.
func (s *launch) prepare(ctx context.Context) error {
	s.did("rundir")
	if err := errors.Join(s.l.placeInit(s.id), failpoint.Hit("launch.init")); err != nil {
		return err
	}
	if err := s.makeNetwork(ctx); err != nil {
		return err
	}
	s.did("unix_peers")
	if err := errors.Join(s.guardPeers(), failpoint.Hit("launch.netns")); err != nil {
		return err
	}
	if s.Request.Socket {
		s.did("socket")
		if err := errors.Join(ownsocket.MakeDir(s.l.socketDir(s.id), s.sb.hostUser()), s.sb.listen(s.ns), failpoint.Hit("launch.socket")); err != nil {
			return err
		}
	}
	if err := errors.Join(s.stageMounts(ctx), failpoint.Hit("launch.mounts")); err != nil {
		return err
	}
	if s.Request.Rootfs == "ephemeral" {
		s.did("rootfs")
		layer, _, err := s.l.layers.Prepare(ctx, s.id, rootfs.Options{
			Limit: s.Limits.Disk, Memory: s.Limits.Memory, HostUID: s.sb.fixed.Sandbox.HostUID,
			Home: spec.Home, HomeUID: s.sb.fixed.Sandbox.HostUID + spec.AgentUID,
		})
		if err != nil {
			return err
		}
		s.upper = filepath.Dir(layer.Upper)
		s.sb.amend(func(r *store.Record) { r.RootfsKind = layer.Kind })
	}
	s.spec = s.l.specOf(&s.sb.rec)
	s.spec.NetNS = s.ns.Path()
	return nil
}

func (s *launch) container(ctx context.Context) error {
	s.did("container")
	c := Container{
		ID: s.id, Image: s.sb.fixed.Sandbox.ImageDigest, Spec: spec.Build(s.spec),
		Runtime: s.Request.Runtime, HostUID: s.spec.HostUID,
	}
	weaken.Spec(c.Spec, s.l.dir(s.id))
	c.Upper = s.upper
	text, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	s.sb.amend(func(r *store.Record) { r.SpecDigest = fmt.Sprintf("sha256:%x", sha256.Sum256(text)) })
	s.newTask, err = s.l.Runtime.Create(ctx, c)
	return err
}

func (s *launch) task(ctx context.Context) (err error) {
	s.did("task")
	s.did("cgroup") // the runtime makes it
	pid, err := s.newTask(ctx)
	if err != nil {
		return err
	}
	pidfd, err := openPidfd(pid)
	s.sb.hold(func() { s.sb.pid, s.sb.pidfd = pid, pidfd })
	return err
}

// start does at one time what waits for different things: the runtime starts
// PID 1, the cgroup is divided, the daemon waits for PID 1's channel, and the
// log is made.
func (s *launch) start(ctx context.Context) error {
	s.undo.Add("logs", func(context.Context) error { return os.RemoveAll(s.l.logDir(s.id)) })
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.l.Runtime.StartTask(ctx, s.id) })
	g.Go(func() error { return s.take(ctx) })
	g.Go(func() error {
		return s.sb.openLogs()
	})
	g.Go(func() error {
		cg, err := s.l.Cgroups.Open(s.id, s.sb.pid, cgroupLimits(s.Limits))
		s.sb.hold(func() { s.sb.cg = cg })
		return err
	})
	return g.Wait()
}

func cgroupLimits(l api.Limits) cgroup.Limits {
	return cgroup.Limits{Memory: int64(l.Memory), Pids: l.Pids, CPUs: l.CPUs, IOWeight: l.IOWeight}
}

// channelTimeout bounds how long PID 1 may take for any answer. It is long
// because a loaded or emulated host is slow, and only a broken one waits.
const channelTimeout = 30 * time.Second

// take waits for PID 1's channel. Until creel-init is executed the process is
// the runtime's and has no such descriptor; that it is creel-init then, the
// proof reads.
func (s *launch) take(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, channelTimeout)
	defer cancel()
	host, err := takeHost(ctx, s.sb.pidfd)
	if err != nil {
		return err
	}
	s.sb.hold(func() { s.sb.host = host })
	return nil
}

// takeHost takes the daemon's end of PID 1's channel.
func takeHost(ctx context.Context, pidfd *os.File) (host *agentinit.Host, err error) {
	cerr := control(pidfd, func(fd int) error {
		host, err = agentinit.Take(ctx, fd)
		return err
	})
	return host, cerr
}

func (s *launch) goAhead(ctx context.Context) error {
	if err := s.sb.mayRun(); err != nil {
		return err // revoked meanwhile
	}
	s.sb.amend(func(r *store.Record) { r.Go = recent.Now() })
	return s.sb.host.Go(ctx)
}

// main starts the main command as the first exec.
func (s *launch) main(ctx context.Context) error {
	if len(s.Request.Command) == 0 {
		return nil
	}
	if s.Request.Attach {
		s.sb.log.Expect(attachWait) // who is told that it can attach misses nothing
	}
	stamp, err := s.sb.startMain(ctx, s.Admitted)
	if err != nil {
		return err
	}
	s.trace.stamp("execve", stamp)
	return nil
}

// record makes the sandbox official: running, with its evidence, in one commit.
func (s *launch) record(context.Context) error {
	start, err := verify.StartTime(s.sb.pid)
	if err != nil {
		return err
	}
	keeper, err := s.sb.openKeeper()
	if err != nil {
		return err
	}
	err = s.sb.move(api.StateRunning, func(r *store.Record) {
		r.KeeperPID, r.KeeperStart = keeper.pid, keeper.start
		r.InitPID, r.InitStart, r.NetNS = s.sb.pid, start, s.ns.Inode()
		r.Sandbox.PID, r.Sandbox.Started = s.sb.pid, time.Now().UTC()
	})
	if err != nil {
		return err
	}
	s.l.publish("sandbox.started", s.sb.identity(), "image", s.Request.Image, "profile", s.Profile.Name)
	s.sb.watch()
	s.sb.serve()
	return nil
}

// userOf is api.Sandbox.User.
func userOf(p *profile.Profile) string {
	if p.Root() {
		return api.UserRoot
	}
	return ""
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// monotonic is CLOCK_MONOTONIC in nanoseconds, the clock of creel-init's stamp.
func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// trace says where a launch's time went.
type trace struct {
	start time.Time
	mono  int64 // start on CLOCK_MONOTONIC, to place creel-init's stamp
	list  []api.Step
}

func newTrace() trace { return trace{start: time.Now(), mono: monotonic()} }

func (t *trace) end(name string, began time.Time) {
	t.list = append(t.list, api.Step{Name: name, Start: ms(began.Sub(t.start)), Took: ms(time.Since(began))})
}

// stamp adds a moment that another process took on CLOCK_MONOTONIC.
func (t *trace) stamp(name string, mono int64) {
	t.list = append(t.list, api.Step{Name: name, Start: ms(time.Duration(mono - t.mono)), At: mono})
}

func (t *trace) steps() []api.Step { return t.list }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
