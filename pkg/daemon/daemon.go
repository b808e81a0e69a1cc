// Package daemon puts creeld together: configuration in, a served socket out.
// It decides nothing; what it refuses to start without is listed in prepare.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/auditlog"
	"github.com/creel-sandbox/creel/pkg/boxkey"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/idmap"
	"github.com/creel-sandbox/creel/pkg/launcher"
	"github.com/creel-sandbox/creel/pkg/mountns"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/pkg/retention"
	"github.com/creel-sandbox/creel/pkg/runtime"
	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/pkg/secrets"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/svid"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
	"github.com/creel-sandbox/creel/pkg/verify"
	"github.com/creel-sandbox/creel/profiles"
)

// keyFile is the box's key, in the state directory.
const keyFile = "box.key"

// shutdown is how long requests may take to end when the daemon stops.
const shutdown = 5 * time.Second

// daemon is what has been started, to be closed last first.
type daemon struct {
	cfg     *config.Config
	log     *slog.Logger
	closers []func() error

	socket     *server.Socket
	rt         *runtime.Client
	blind      bool // rt does not see the daemon's mounts
	versions   runtime.Versions
	store      *store.Store
	key        *boxkey.Key
	secrets    *secrets.Store
	identities *svid.Authority
	records    *auditlog.Recorder
	ids        *idmap.Pool
	cgroups    *cgroup.Host
	bus        *events.Bus
	policy     admission.Policy
	protect    protect.List
	filters    map[string]seccomp.Filter
	seccomp    map[string]*seccomp.Profile
	hostNS     map[string]uint64
	callers    *policy.Rules
	reloads    reloads
	peers      *unixpeers.Guard
	egress     *egressproc.Keeper // nil where this host cannot
	noEgress   error
	reaching   atomic.Pointer[launcher.Launcher] // launcher, for creel-egress
	noPeers    error                             // why peers is nil
	launcher   *launcher.Launcher
}

// Run is creeld: it returns when ctx ends, with every sandbox still running
// for the next daemon, or with the reason why it cannot start. The process
// must already be in its mount namespace (mountns.Enter, or Stay).
func Run(ctx context.Context, cfg *config.Config, log *slog.Logger, again Reload) (err error) {
	d := &daemon{cfg: cfg, log: log}
	defer func() { err = errors.Join(err, d.close()) }()
	// The daemon's heap is small and its work short: collecting a little
	// more often keeps a hundred sandboxes below the memory it is allowed.
	debug.SetGCPercent(50)
	for _, step := range []struct {
		name string
		fn   func(context.Context) error
	}{
		// First: a socket from systemd must be close-on-exec before anything
		// is started, or containerd and every shim would hold it. Callers
		// that connect early wait until there is an answer.
		{"socket", d.listen},
		{"callers", d.whom},
		{"host", d.host},
		{"profiles", d.profiles},
		{"containerd", d.containerd},
		{"unix peers", d.unixPeers},
		{"state", d.state},
		{"sandboxes", d.sandboxes},
	} {
		err := step.fn(ctx)
		if ctx.Err() != nil {
			log.InfoContext(ctx, "creeld was stopped while it started", slog.String("at", step.name))
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return d.serve(ctx, again)
}

func (d *daemon) onClose(fn func() error) { d.closers = append(d.closers, fn) }

func (d *daemon) close() error {
	var errs []error
	for len(d.closers) > 0 {
		last := d.closers[len(d.closers)-1]
		d.closers = d.closers[:len(d.closers)-1]
		errs = append(errs, last())
	}
	return errors.Join(errs...)
}

func (d *daemon) listen(ctx context.Context) (err error) {
	if d.socket, err = server.Listen(ctx, d.cfg.Socket, d.cfg.SocketGroup); err != nil {
		return err
	}
	d.onClose(d.socket.Close)
	return nil
}

// whom looks up everybody that the configuration names.
func (d *daemon) whom(context.Context) error {
	p, err := policy.Compile(d.cfg)
	if err != nil {
		return err
	}
	d.callers = policy.NewRules(p)
	d.reloads.generation, d.reloads.at = 1, time.Now()
	return nil
}

// host refuses a kernel, a runtime or a range of ids that cannot hold what
// creel promises.
func (d *daemon) host(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("creeld must run as root: it makes namespaces and mounts for others")
	}
	own := d.cfg.Containerd.Address == ""
	if d.versions, err = runtime.ReadVersions(ctx, d.cfg.BinDir, own); err != nil {
		return err
	}
	err = runtime.CheckVersions(d.versions)
	if own {
		err = errors.Join(err, runtime.CheckContainerd(d.versions.Containerd))
	}
	if err != nil {
		return err
	}
	if err := idmap.CheckHost(os.DirFS("/etc"), d.cfg.IDs.First, d.cfg.IDs.Last); err != nil {
		return err
	}
	if d.hostNS, err = verify.Namespaces(os.Getpid()); err != nil {
		return err
	}
	if d.hostNS["mnt"], err = mountns.HostInode(); err != nil {
		return err
	}
	if d.cgroups, err = cgroup.Detect(cgroup.Options{Root: d.cfg.Cgroup.Root}); err != nil {
		return err
	}
	d.onClose(d.cgroups.Close)
	for _, w := range d.cgroups.Weaker() {
		d.log.WarnContext(ctx, "this host is weaker", slog.String("what", w))
	}
	return nil
}

// profiles compiles every filter once; a spawn only looks it up.
func (d *daemon) profiles(ctx context.Context) error {
	var own []fs.FS
	if _, err := os.Stat(d.cfg.ProfilesDir); err == nil {
		own = append(own, os.DirFS(d.cfg.ProfilesDir))
	}
	set, err := profile.Load(profiles.FS, own...)
	if err != nil {
		return err
	}
	if d.protect, err = protect.Load(append([]fs.FS{profiles.FS}, own...)...); err != nil {
		return err
	}
	d.filters, d.seccomp = map[string]seccomp.Filter{}, map[string]*seccomp.Profile{}
	for _, name := range set.Names() {
		p := set[name]
		if _, done := d.filters[p.Seccomp]; done {
			continue
		}
		sp, err := loadSeccomp(p.Seccomp, own)
		if err != nil {
			return err
		}
		notes, err := seccomp.CheckHost(sp)
		if err != nil {
			return fmt.Errorf("seccomp profile %s: %w", p.Seccomp, err)
		}
		for _, n := range notes {
			d.log.DebugContext(ctx, "seccomp", slog.String("profile", p.Seccomp), slog.String("note", n))
		}
		if d.filters[p.Seccomp], err = sp.Compile(goruntime.GOARCH); err != nil {
			return fmt.Errorf("seccomp profile %s: %w", p.Seccomp, err)
		}
		d.seccomp[p.Seccomp] = sp
	}
	d.policy = admission.Policy{
		Profiles: set, DefaultProfile: d.cfg.DefaultProfile, DefaultImage: d.cfg.DefaultImage,
		DefaultRuntime: d.cfg.Runtime.Default, Runtimes: d.cfg.Runtime.Allowed,
	}
	p, err := set.Get(d.cfg.DefaultProfile)
	if err == nil && p.Root() {
		err = fmt.Errorf("default_profile: profile %s is root in its sandbox, and only for who asks for it by name", p.Name)
	}
	if err == nil && p.Observe {
		err = fmt.Errorf("default_profile: profile %s observes, and lets more than it would; only for who asks for it by name", p.Name)
	}
	return err
}

// loadSeccomp looks in the operator's directory first.
func loadSeccomp(name string, own []fs.FS) (*seccomp.Profile, error) {
	for _, fsys := range own {
		p, err := seccomp.Load(fsys, name)
		if !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
	}
	return seccomp.Load(profiles.FS, name)
}

func (d *daemon) containerd(ctx context.Context) error {
	if addr := d.cfg.Containerd.Address; addr != "" {
		state := filepath.Join(d.cfg.RunDir, "runtime")
		// The OCI runtimes walk it as a sandbox's root.
		if err := os.MkdirAll(state, 0o711); err != nil {
			return err
		}
		rt, err := runtime.Connect(runtime.Options{Address: addr, Bin: d.cfg.BinDir, State: state})
		if err != nil {
			return err
		}
		d.rt = rt
		d.onClose(rt.Close)
		if d.blind, err = d.blindContainerd(ctx, addr); err != nil {
			return err
		}
	} else {
		s, err := runtime.Start(ctx, runtime.Config{
			Bin: d.cfg.BinDir, Root: filepath.Join(d.cfg.StateDir, "containerd"),
			State: filepath.Join(d.cfg.RunDir, "containerd"), Logger: d.log,
		})
		if err != nil {
			return err
		}
		d.rt = s.Client()
		d.onClose(s.Close)
	}
	have, err := d.rt.Version(ctx)
	if err != nil {
		return err
	}
	d.versions.Containerd = have
	if err := runtime.CheckContainerd(have); err != nil {
		return err
	}
	return d.rt.CheckIDMap(ctx)
}

// blindContainerd says whether an existing containerd is in another mount
// namespace, so that its shims do not see what the daemon mounts.
func (d *daemon) blindContainerd(ctx context.Context, addr string) (bool, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", addr)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	cred, err := peer.Read(conn)
	if err != nil {
		return false, err
	}
	if cred.PIDFD != nil {
		defer cred.PIDFD.Close()
	}
	same, err := mountns.Same(int(cred.PID))
	if err != nil {
		return false, err
	}
	if !same {
		d.log.WarnContext(ctx, "this containerd is in another mount namespace and does not see what creeld mounts: host directories and writable roots are refused", slog.String("address", addr))
	}
	return !same, nil
}

// unixPeers goes on without, where the kernel cannot: then profiles decide.
func (d *daemon) unixPeers(ctx context.Context) error {
	g, err := unixpeers.Open(filepath.Join(d.cfg.RunDir, "bpf"))
	if errors.Is(err, unixpeers.ErrUnavailable) {
		d.noPeers = err
		d.log.WarnContext(ctx, "this host is weaker", slog.String("what", unixpeers.Control+": "+err.Error()))
		return nil
	}
	if err != nil {
		return err
	}
	d.peers = g
	d.onClose(g.Close)
	return nil
}

func (d *daemon) state(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.cfg.StateDir, 0o711); err != nil {
		return err
	}
	if d.store, err = store.Open(filepath.Join(d.cfg.StateDir, "state.db")); err != nil {
		return err
	}
	d.onClose(d.store.Close)
	var made bool
	if err := errors.Join(d.openSecrets(), d.openIdentities()); err != nil {
		return err
	}
	if d.key, made, err = boxkey.Load(filepath.Join(d.cfg.StateDir, keyFile)); err != nil {
		return err
	}
	if made {
		d.log.InfoContext(ctx, "made the key that this box signs with; creel audit key prints its public half, to be kept elsewhere", slog.String("key", d.key.ID()))
	}
	if err := d.audit(ctx); err != nil {
		return err
	}
	d.bus = events.New(d.store, d.log)
	if err := d.follow(ctx); err != nil {
		return err
	}
	d.onClose(func() error { d.bus.Close(); return nil })
	used, err := launcher.InUse(d.store)
	if err != nil {
		return err
	}
	egress, err := egressproc.InUse(d.egressDir())
	if err != nil {
		return err
	}
	used = append(used, egress...)
	d.ids, err = idmap.New(d.cfg.IDs.First, d.cfg.IDs.Last, used)
	return err
}

// sandboxes takes over what the last daemon left, before anybody may ask.
func (d *daemon) sandboxes(ctx context.Context) (err error) {
	m, keep := d.cfg.Limits.Max, d.cfg.Retention
	known, err := d.store.Agents()
	if err != nil {
		return err
	}
	if err := d.startEgress(ctx); err != nil {
		return err
	}
	o := launcher.Options{
		RunDir: d.cfg.RunDir, StateDir: d.cfg.StateDir, InitPath: filepath.Join(d.cfg.BinDir, "creel-init"),
		Runtime: containers{d.rt}, Store: d.store, IDs: d.ids, Cgroups: d.cgroups, Bus: d.bus,
		Policy: d.policy, Callers: d.callers, Agents: agents.New(known), Filters: d.filters, Seccomp: d.seccomp, HostNS: d.hostNS, HostMounts: mountns.Host(),
		Totals: launcher.Totals{
			VolumesPerUser: m.VolumesPerUser, VolumeBytesPerUser: m.VolumeBytesPerUser,
		},
		Retention: retention.Caps{
			Age: keep.Age.D(), PerUser: keep.PerUser, All: keep.All, LogBytes: int64(keep.LogBytes), Evidence: keep.Evidence,
		},
		Serve: func(l *net.UnixListener, in server.Inside) (func(), error) {
			return server.ServeInside(d.actions(), l, in, d.options())
		},
		Shares:       d.cfg.Share,
		Protect:      d.protect,
		DiskReserve:  int64(d.cfg.Disk.Reserve),
		MountPaths:   d.cfg.Mounts.Paths,
		BlindRuntime: d.blind, Spawning: d.records.Spawning, Sign: d.sign,
		Peers: d.peers, NoPeers: d.noPeers,
		MaxExecs: d.cfg.Exec.MaxPerSandbox, LogBytes: int64(d.cfg.Logs.MaxBytes),
		EvidenceEvery: d.cfg.Evidence.Interval.D(),
		// More at one time than processors only makes each of them slower.
		Launches: 2*goruntime.NumCPU() + 2,
		Log:      d.log,
		NoEgress: d.noEgress, Secrets: d.secrets, Identities: d.identities, AskTTL: d.cfg.Egress.AskTTL.D(),
	}
	if d.egress != nil {
		o.Egress = d.egress
	}
	if d.launcher, err = launcher.New(o); err != nil {
		return err
	}
	d.reaching.Store(d.launcher)
	d.onClose(func() error { d.launcher.Close(); return nil })
	if err := d.launcher.KeepFilters(); err != nil {
		return err
	}
	if err := d.launcher.Reconcile(ctx); err != nil {
		return err
	}
	// What is left of it costs disk until its lease ends, and nothing else.
	if err := d.rt.PruneImports(ctx); err != nil {
		d.log.WarnContext(ctx, "imports that the last daemon did not end are not cleaned up", slog.Any("error", err))
	}
	return nil
}

// actions are all that the daemon does for callers, recorded.
func (d *daemon) actions() server.Service {
	return d.records.Wrap(&service{Launcher: d.launcher, rt: d.rt, d: d})
}

func (d *daemon) options() server.Options {
	return server.Options{
		Log: d.log, Callers: d.callers, MaxConns: d.cfg.Server.MaxConnections, MaxStreams: d.cfg.Server.MaxStreams,
		MaxTotalConns: d.cfg.Server.MaxTotalConnections, HeaderTime: d.cfg.Server.HeaderTimeout.D(),
		IdleTime: d.cfg.Server.IdleTimeout.D(), StallTime: d.cfg.Server.StallTimeout.D(),
	}
}

func (d *daemon) serve(ctx context.Context, again Reload) error {
	srv, err := server.New(d.actions(), d.options())
	if err != nil {
		return err
	}
	d.launcher.Watch()
	aside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { d.await(aside, again) })
	wg.Go(func() { d.report(aside) })
	defer func() { stop(); wg.Wait() }()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(d.socket.UnixListener) }()
	if _, err := sdnotify.SdNotify(false, sdnotify.SdNotifyReady); err != nil {
		d.log.WarnContext(ctx, "systemd was not told that creeld is ready", slog.Any("error", err))
	}
	d.log.InfoContext(ctx, "creeld is ready", slog.String("version", api.BuildVersion), slog.String("socket", d.cfg.Socket), slog.String("cgroup", d.cgroups.Version()))
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	d.records.Fact("daemon.stop", nil)
	d.log.InfoContext(ctx, "creeld is stopping; sandboxes go on running")
	_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyStopping)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
	defer cancel()
	return srv.Shutdown(end)
}

// containers is the launcher's view of containerd.
type containers struct{ *runtime.Client }

var _ launcher.Runtime = containers{}

// Create implements launcher.Runtime.
func (c containers) Create(ctx context.Context, o launcher.Container) (func(context.Context) (int, error), error) {
	sb, err := c.Client.Create(ctx, runtime.CreateOptions{
		ID: o.ID, Image: o.Image, Spec: o.Spec, Runtime: o.Runtime, HostUID: o.HostUID, Upper: o.Upper,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (int, error) { return c.NewTask(ctx, sb) }, nil
}

// DeleteTask implements launcher.Runtime: whatever became of containerd and
// the shim, no process of the sandbox's stays.
func (c containers) DeleteTask(ctx context.Context, id string) error { return c.EndTask(ctx, id) }

// IDs implements launcher.Runtime.
func (c containers) IDs(ctx context.Context) ([]string, error) {
	found, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(found))
	for _, f := range found {
		ids = append(ids, f.ID)
	}
	return ids, nil
}
