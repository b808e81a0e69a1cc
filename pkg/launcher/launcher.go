// Package launcher runs sandboxes: it is where a spawn request's way can be
// read from start to end (Launch, in launch.go), and it owns what lives after.
//
//	launch.go     request -> proven, running sandbox
//	mounts.go     the caller's directories and volumes, who may write them, and the spec
//	effects.go    what a launch leaves in the kernel and on disk, and its undo
//	network.go    what a sandbox reaches, and who sees to that
//	prove.go      the expectations that pkg/verify reads back
//	exec.go       commands in a sandbox
//	session.go    their clients, and what is remembered of them
//	end.go        how sandboxes end and are cleaned up
//	reconcile.go  finding everything again after a crash
//	watch.go      deadlines, idleness, output rates, drift, limits that were hit
//	agents.go     whom sandboxes belong to, and what they prove it by
//	approvals.go  what a sandbox may reach besides, as somebody lets it
//	children.go   sandboxes that are others' children, and sockets to make them by
//	files.go      files in and out of a sandbox, and what it changed: listed, or made an image
//	disk.go       what is kept on disk, and for how long
//	service.go    the socket's verbs, for pkg/server
//	ensure.go     those that give the same sandbox when they come again
//
// Every effect has an undo that succeeds when there is nothing to undo, so
// that a failed launch, a removal and the clean-up after a kill -9 are the
// same calls.
package launcher

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/mount"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
	"github.com/creel-sandbox/creel/pkg/proctree"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/pkg/reserve"
	"github.com/creel-sandbox/creel/pkg/retention"
	"github.com/creel-sandbox/creel/pkg/rootfs"
	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/pkg/secrets"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/share"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/svid"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
	"github.com/creel-sandbox/creel/pkg/volume"
)

// Runtime makes and removes containers; pkg/runtime's Client with containerd.
// Removing what is not there succeeds.
type Runtime interface {
	// Resolve finds the image that a reference is to a user.
	Resolve(ctx context.Context, uid uint32, ref string) (digest string, err error)
	// Names are the box's for the image that a reference is to a user; there
	// are none if the image is the user's own, and not the box's as well.
	Names(ctx context.Context, uid uint32, ref string) ([]string, error)
	// Create makes the container; newTask then has the OCI runtime make its
	// processes, of which PID 1 waits for StartTask.
	Create(ctx context.Context, c Container) (newTask func(context.Context) (pid int, err error), err error)
	StartTask(ctx context.Context, id string) error
	DeleteTask(ctx context.Context, id string) error
	DeleteContainer(ctx context.Context, id string) error
	// PruneMounts removes what creating a task leaves when it is killed. No
	// task is being created meanwhile.
	PruneMounts() error
	// Lower are the directories of the image a sandbox runs from, topmost first.
	Lower(ctx context.Context, id string) ([]string, error)
	// IDs is every id of which containerd knows anything.
	IDs(ctx context.Context) ([]string, error)
}

// Egress has sandboxes' connections made by processes outside, one for each
// caller; egressproc.Keeper. Removing what is not there succeeds.
type Egress interface {
	Add(ctx context.Context, s egressproc.Sandbox) error
	// Resume is Add of one that the last daemon added.
	Resume(ctx context.Context, id string, pol link.Policy) error
	Remove(ctx context.Context, id string) error
	// With calls fn with a sandbox's sockets and with what its process is.
	With(id string, fn func(s *steer.Sockets, process api.Control)) (served bool)
	// Held are the sandboxes, and whose each is.
	Held() map[string]uint32
	// TrustDir is the directory of a caller's trust store.
	TrustDir(caller uint32) string
}

// Container is what the runtime needs to make one.
type Container struct {
	ID      string
	Image   string // a digest
	Spec    *specs.Spec
	Runtime string // crun or runc
	HostUID uint32
	Upper   string // a directory for the writable layer; the snapshot's own when empty
}

// Options are a Launcher's parts. All are required but Log.
type Options struct {
	RunDir   string // lost at reboot: private init copies, staged mounts
	StateDir string // kept: logs, writable layers, volumes
	InitPath string // the creel-init binary that is copied for each sandbox
	Runtime  Runtime
	Store    *store.Store
	IDs      *idmap.Pool
	Cgroups  *cgroup.Host
	Bus      *events.Bus
	Policy   admission.Policy
	// Callers are whom the daemon serves, and what each may have.
	Callers *policy.Rules
	// Agents are whom sandboxes belong to, as the store has them.
	Agents *agents.Registry
	// Filters are the compiled seccomp filters by the name profiles use.
	Filters map[string]seccomp.Filter
	// Seccomp are what they were compiled from.
	Seccomp map[string]*seccomp.Profile
	// Peers refuses connections of Unix sockets over the edge of a sandbox. It
	// is nil where the kernel cannot, and NoPeers says why.
	Peers   *unixpeers.Guard
	NoPeers error
	// Egress serves the networks of sandboxes. It is nil where this host cannot,
	// and NoEgress says why.
	Egress   Egress
	NoEgress error
	// Secrets are the credentials that go out with requests.
	Secrets *secrets.Store
	// AskTTL is how long what a sandbox was refused waits for an approval.
	AskTTL time.Duration
	// Identities signs who sandboxes are.
	Identities *svid.Authority
	// BlindRuntime says that containerd is not the daemon's own and not in its
	// mount namespace: nothing the daemon mounts is seen by shims.
	BlindRuntime bool
	// HostNS are the host's namespaces, as verify.Namespaces names them.
	HostNS map[string]uint64
	// HostMounts is the mount namespace of the host, in which a caller's
	// descriptors are when the caller has none of its own.
	HostMounts *os.File

	// Spawning records that a sandbox of that id is about to be launched, for
	// whom and as what. It is called before the first effect, at one time with
	// what has none; its error refuses the launch.
	Spawning func(ctx context.Context, c peer.Cred, id string, a *admission.Admitted) error
	// Sign signs evidence. It fills in the versions of what the daemon drives.
	Sign func(api.EvidenceStatement) (*api.Envelope, error)
	// Serve answers on a sandbox's own socket, for a caller who is in it, to
	// peers of some host uids, until stop, which waits for what is under way.
	Serve func(l *net.UnixListener, in server.Inside) (stop func(), err error)
	// Protect are the names that are read-only in mounts that ask for it.
	Protect protect.List
	// MountPaths lets requests name directories by path.
	MountPaths bool

	Totals        Totals
	MaxExecs      int           // execs running in one sandbox
	LogBytes      int64         // of output kept for each sandbox
	EvidenceEvery time.Duration // between two proofs of a running sandbox
	Retention     retention.Caps
	DiskReserve   int64 // of the state directory's file system, in bytes
	Shares        []share.Grant
	Launches      int // launches at one time; more wait
	Log           *slog.Logger
}

// Totals bound what every user has, whatever its ceiling; zero is no bound.
// Those of sandboxes are Callers'.
type Totals struct {
	// VolumesPerUser and VolumeBytesPerUser bound each caller's volumes.
	VolumesPerUser     int
	VolumeBytesPerUser api.Size
}

// Launcher owns all sandboxes of one daemon.
type Launcher struct {
	Options
	log      *slog.Logger
	ctx      context.Context // ends with Close; for work that outlives a request
	cancel   context.CancelCauseFunc
	work     workers
	launches chan struct{} // a place for each launch that may run
	mounts   *mount.Stager
	layers   *rootfs.Maker
	volumes  *volume.Keeper
	procs    *proctree.Reader
	spares   chan string // ready-made private copies of creel-init
	watching atomic.Bool // Watch was called: everything is reconciled
	broken   atomic.Bool // a launch failed in the runtime: there may be mounts to prune
	turns    turns
	keys     spentKeys

	claimMu sync.Mutex // directories are claimed by one launch at a time; before mu
	placeMu sync.Mutex // placeholders are made, shared and removed by one at a time; before mu
	// secretMu is held for reading from a policy's being read, secrets and all,
	// until a creel-egress has it, and for writing while one that runs is changed.
	secretMu sync.RWMutex

	// imageMu is held for reading from an image's being found until a record
	// says that it is used, and for writing while an unused one is removed.
	imageMu sync.RWMutex
	excess  retainer
	diffs   chan struct{} // a place for each comparison that may run
	reserve *reserve.Reserve

	tally admission.Tally // what the sandboxes may use together

	mu        sync.Mutex
	memory    *os.File // where output is that is not kept; nil before the first
	memoryAt  string
	sandboxes map[string]*sandbox
}

// errClosing is the cause of work that ends because the daemon does.
var errClosing = errors.New("creeld is stopping")

// New makes a Launcher. Call Reconcile before anything else.
func New(o Options) (*Launcher, error) {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{filepath.Join(o.RunDir, "sandboxes"), 0o711},
		{filepath.Join(o.RunDir, "spare"), 0o700},
		{filepath.Join(o.StateDir, "logs"), 0o700},
	} {
		if err := errors.Join(os.MkdirAll(d.path, d.mode), os.Chmod(d.path, d.mode)); err != nil {
			return nil, fmt.Errorf("launcher: %w", err)
		}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if st, err := os.Stat(o.InitPath); err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o100 == 0 {
		return nil, errors.Join(fmt.Errorf("creel-init: want a program at %s; install creel again", o.InitPath), err)
	}
	layers, err := rootfs.New(filepath.Join(o.StateDir, "rootfs"), "")
	if err != nil {
		return nil, err
	}
	files, err := rootfs.NewVolumes(filepath.Join(o.StateDir, "volumes"), "")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &Launcher{
		Options: o, log: o.Log, ctx: ctx, cancel: cancel,
		launches:  make(chan struct{}, max(o.Launches, 1)),
		spares:    make(chan string, spareInits),
		diffs:     make(chan struct{}, maxDiffs),
		mounts:    mount.New(append(mount.HostDoors(), o.RunDir, o.StateDir)),
		layers:    layers,
		reserve:   reserve.New(o.StateDir, o.DiskReserve),
		procs:     proctree.New(),
		sandboxes: map[string]*sandbox{},
	}
	l.volumes = volume.New(volume.Options{
		Store: o.Store, Files: files, Bus: o.Bus, Log: o.Log,
		Owner: spec.AgentUID, NewID: newID, Operator: l.Callers.Operator, Users: l.usersOf,
		PerUser: o.Totals.VolumesPerUser, BytesPerUser: o.Totals.VolumeBytesPerUser,
	})
	return l, nil
}

// Close stops watching. Sandboxes go on running; the next daemon takes them
// over.
func (l *Launcher) Close() {
	l.cancel(errClosing)
	l.work.close()
	l.mu.Lock()
	all := make([]*sandbox, 0, len(l.sandboxes))
	for _, sb := range l.sandboxes {
		all = append(all, sb)
	}
	l.mu.Unlock()
	var wg sync.WaitGroup
	for _, sb := range all {
		wg.Go(sb.release) // what comes through its own socket may take a moment to end
	}
	wg.Wait()
	l.work.wait()
}

// background runs fn until it returns; Close waits for it. Once the daemon is
// stopping nothing new begins: it is the next daemon's to do.
func (l *Launcher) background(fn func(ctx context.Context)) {
	l.work.start(func() { fn(l.ctx) })
}

// workers are goroutines that can be waited for while some would begin more,
// which a sync.WaitGroup alone does not allow.
type workers struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

func (w *workers) start(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.wg.Go(fn)
	}
}

// close lets nothing more begin.
func (w *workers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

func (w *workers) wait() { w.wg.Wait() }

// newID is 20 characters of [a-z2-7]: 100 random bits.
func newID() string { return randomText(20) }

// newExecID is 12 characters of [a-z2-7]; unique within a sandbox.
func newExecID() string { return randomText(execIDLen) }

const execIDLen = 12

func randomText(n int) string {
	raw := make([]byte, (n*5+7)/8)
	_, _ = rand.Read(raw) // never fails, see its documentation
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))[:n]
}

// publish sends an event about a sandbox; fields are pairs of key and value.
func (l *Launcher) publish(kind string, r *store.Record, fields ...string) {
	e := api.Event{Time: time.Now(), Type: kind, Sandbox: r.Sandbox.ID, Name: r.Sandbox.Name}
	e.Fields = map[string]string{events.CallerField: fmt.Sprint(r.Sandbox.Caller.UID), "agent": r.Sandbox.Agent}
	for i := 0; i+1 < len(fields); i += 2 {
		e.Fields[fields[i]] = fields[i+1]
	}
	l.Bus.Publish(e)
}

// mayUse says whether a caller may know of a sandbox. Through a sandbox's own
// socket that is only those below it.
func (l *Launcher) mayUse(c peer.Cred, sb *sandbox) bool {
	if c.Via != "" {
		return slices.Contains(idsOf(sb.parent.line()), c.Via)
	}
	return c.UID == sb.fixed.Sandbox.Caller.UID || l.Callers.Operator(c)
}

// find is the sandbox that ref names for a caller: an id, a name of the
// caller's, or a unique prefix of an id. What the caller may not use answers
// as if it did not exist, and after the same work.
func (l *Launcher) find(c peer.Cred, ref string) (*sandbox, error) {
	missing := api.Errorf(api.CodeNotFound, "no sandbox %q", ref).WithHint("creel ps -a lists yours")
	l.mu.Lock()
	defer l.mu.Unlock()
	if sb, ok := l.sandboxes[ref]; ok && l.mayUse(c, sb) {
		return sb, nil
	}
	var named, prefixed []*sandbox
	for id, sb := range l.sandboxes {
		r := sb.identity()
		if !l.mayUse(c, sb) {
			continue
		}
		if r.Sandbox.Name == ref && sb.state() != api.StateRemoving { // its name is free
			named = append(named, sb)
		}
		if len(ref) >= 3 && strings.HasPrefix(id, ref) {
			prefixed = append(prefixed, sb)
		}
	}
	// A name of the caller's own wins over the same name of somebody else,
	// which only an operator sees.
	for _, sb := range named {
		if sb.identity().Sandbox.Caller.UID == c.UID {
			return sb, nil
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return nil, api.Errorf(api.CodeConflict, "%d callers have a sandbox %q", len(named), ref).WithHint("use the id")
	case len(prefixed) == 1:
		return prefixed[0], nil
	case len(prefixed) > 1:
		return nil, api.Errorf(api.CodeConflict, "%d sandboxes have ids that begin with %q", len(prefixed), ref).WithHint("give more of the id")
	}
	return nil, missing
}

// findLaunched is find for what needs a sandbox that has come up.
func (l *Launcher) findLaunched(c peer.Cred, ref string) (*sandbox, error) {
	sb, err := l.find(c, ref)
	if err != nil {
		return nil, err
	}
	return sb, sb.launched()
}

// take counts a sandbox that is about to be made below those of line, if it
// fits into the totals.
func (l *Launcher) take(id string, c peer.Cred, line []*sandbox, want admission.Sum) error {
	p := admission.Part{UID: c.UID, Sum: want, Above: idsOf(line)}
	return l.tally.Take(id, p, func(own, all admission.Sum, families []admission.Sum) error {
		rules, err := l.Callers.Room(c, own, all, want)
		if err != nil {
			return err
		}
		return admission.Refusal(slices.Concat(rules, familyRules(line, families, want), keptRules(c, line, families)))
	})
}

// roomNow says of all totals whether what there is now leaves room for want.
func (l *Launcher) roomNow(c peer.Cred, line []*sandbox, want admission.Sum) ([]api.Rule, error) {
	own, all := l.tally.Sums(c.UID)
	rules, err := l.Callers.Room(c, own, all, want)
	return append(rules, familyRules(line, l.tally.Families(idsOf(line)), want)...), err
}

// countLocked makes a sandbox count as what its state says.
func (sb *sandbox) countLocked() {
	r := &sb.rec.Sandbox
	var sum admission.Sum
	switch {
	case r.State == api.StateRemoving:
	case ended(r.State):
		sum.Kept = 1
	default:
		sum = admission.SumOf(r.Rootfs == "ephemeral", r.Limits)
	}
	sb.l.tally.Set(sb.id, admission.Part{UID: r.Caller.UID, Sum: sum, Above: idsOf(sb.parent.line())})
}

// useAgentLocked is the agent of a sandbox that is about to be made, which counts
// already, and the one that is forgotten for it, if one is.
func (l *Launcher) useAgentLocked(c peer.Cred, r api.SpawnRequest) (api.Agent, *api.Agent, error) {
	own, _ := l.tally.Sums(c.UID)
	used := api.Grant{
		Profiles: []string{r.Profile}, Runtimes: []string{r.Runtime}, Images: []string{r.Image}, Socket: r.Socket, Egress: r.Egress, Secrets: r.Secrets,
		Sandboxes: own.Sandboxes, Memory: api.Size(own.Memory), CPUs: float64(own.CPUs) / 1e6, Pids: own.Pids, Disk: api.Size(own.Disk),
	}
	for _, m := range r.Mounts {
		if m.Volume == "" {
			used.Mounts = append(used.Mounts, admission.Root{Path: m.Source, ReadOnly: m.ReadOnly}.String())
		}
	}
	var taken map[string]bool // names of the caller's agents that have sandboxes
	busy := func(uid uint32, name string) bool {
		if taken == nil {
			taken = map[string]bool{}
			for _, sb := range l.sandboxes {
				if sb.fixed.Sandbox.Caller.UID == uid {
					taken[sb.fixed.Sandbox.Agent] = true
				}
			}
		}
		return taken[name]
	}
	return l.Agents.Use(randomText(16), api.Caller{UID: c.UID, GID: c.GID}, r.Agent, time.Now().UTC(), l.Callers.Given(c), l.Callers.AgentTTL(c), used, busy)
}

// mayRun is nil if the sandbox's agent may run, and its parent still does.
func (sb *sandbox) mayRun() error {
	if sb.orphan() {
		return api.Errorf(api.CodeConflict, "sandbox %s is a child of %s, which has ended", sb.id, sb.fixed.Sandbox.Parent)
	}
	return sb.l.Agents.Check(sb.fixed.Sandbox.Caller.UID, sb.fixed.Sandbox.Agent, time.Now())
}
