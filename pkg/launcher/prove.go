package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/agentinit"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/cgroup"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/ownsocket"
	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/unixpeers"
	"github.com/creel-sandbox/creel/pkg/verify"
	"github.com/creel-sandbox/creel/pkg/volume"
)

// channel has PID 1 install the system call filter and try what must fail.
func (s *launch) channel(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, channelTimeout)
	defer cancel()
	hello, err := s.sb.host.Hello(ctx)
	if err != nil {
		return err
	}
	lacking := landlock()
	s.sb.amend(func(r *store.Record) { r.Isolated = lacking == nil && !failpoint.On("layer.fd") })
	s.said, err = s.ask(ctx, s.l.Filters[s.Profile.Seccomp], lacking)
	s.said = append(s.said, keyring(s.id, hello.Keyring))
	return err
}

// prove reads everything back from outside. It happens between start and go:
// no instruction of the agent's has run. One control that is not ok ends it.
func (s *launch) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, channelTimeout)
	defer cancel()
	filter := s.l.Filters[s.Profile.Seccomp]
	e, err := s.sb.expect(ctx, "spawn", filter)
	if err != nil {
		return err
	}
	e.Alone = true
	pending, err := s.sb.cg.Pending()
	if err != nil {
		return err
	}
	e.Procs = append(pending, s.sb.pid)
	e.OwnNS = map[string]uint64{"net": s.ns.Inode()}
	e.Extra = append(e.Extra, s.said...)
	e.Extra = append(e.Extra, netns.Check(s.ns)...)
	e.Extra = append(e.Extra, s.sb.egressControls(s.ns)...)
	e.Extra = append(e.Extra, s.sb.peersControl(s.ns.Cookie())...)
	// What every later proof is held against. Nothing runs but PID 1, which
	// has no way to change either.
	spaces, nserr := verify.Namespaces(s.sb.pid)
	label, lerr := verify.Label(s.sb.pid)
	if err := errors.Join(nserr, lerr); err != nil {
		return err
	}
	ev := verify.Read(ctx, e)
	s.sb.amend(func(r *store.Record) {
		r.FilterDigest, r.Namespaces, r.Label = filter.Digest(), spaces, label
	})
	if !ev.OK {
		return notProven(ev)
	}
	s.sb.mu.Lock()
	s.sb.proven = time.Now() // the timer counts from here
	s.sb.mu.Unlock()
	if s.proof, err = s.sb.sign(ev); err != nil {
		return err
	}
	return s.l.Store.AddEvidence(s.proof)
}

// sign makes evidence one that can be shown to others, with what it is of.
func (sb *sandbox) sign(ev api.Evidence) (api.Evidence, error) {
	sb.mu.Lock()
	spec, v := sb.rec.SpecDigest, sb.fixed.Sandbox
	sb.mu.Unlock()
	signed, err := sb.l.Sign(api.EvidenceStatement{
		Evidence: ev, SpecDigest: spec, Image: v.Image, ImageDigest: v.ImageDigest,
		Agent: v.Agent, Profile: v.Profile, Caller: v.Caller, Runtime: v.Runtime,
	})
	if err != nil {
		return ev, fmt.Errorf("sign the evidence: %w", err)
	}
	ev.Signed = signed
	return ev, nil
}

// ask has PID 1 install the filter and try what must fail. A kernel that
// refuses the filter, as it does without no_new_privs (seccomp(2)), is itself
// a control that is not ok; the rest of the proof says why. lacking is why
// the kernel has no Landlock.
func (s *launch) ask(ctx context.Context, filter seccomp.Filter, lacking error) ([]api.Control, error) {
	err := s.sb.host.Setup(ctx, agentinit.Setup{
		Filter: installed(filter), Isolate: lacking == nil && !failpoint.On("layer.execs"),
	})
	if refused, ok := errors.AsType[unix.Errno](err); ok {
		return []api.Control{{Name: "seccomp.install", Expected: "taken by the kernel", Observed: refused.Error()}}, nil
	}
	if err != nil {
		return nil, err
	}
	probes, err := s.sb.host.Probe(ctx, agentinit.ProbeOptions{
		ReadonlyRoot: s.spec.ReadonlyRoot, NoRoute: !reaches(&s.sb.fixed.Sandbox), Isolate: lacking == nil,
		Root: s.Profile.Root(),
	})
	if err != nil {
		return nil, err
	}
	said, isolation := isolated(probes, lacking)
	if lacking != nil && s.Profile.ExecIsolation == "preferred" {
		return said, nil // the evidence has it as weaker
	}
	return append(said, isolation), nil
}

// isolated are the controls of the probes, and the one of PID 1's attempt to
// see from one command into another apart: it is a promise of its own, which
// nothing outside can read back.
func isolated(probes []agentinit.ProbeResult, lacking error) (said []api.Control, c api.Control) {
	c = api.Control{Name: agentinit.Isolation, Expected: "EACCES for another command's /proc/PID/{fd/0,environ,cwd,root,exe}", Observed: "not tried"}
	if lacking != nil {
		c.Observed = "Landlock: " + lacking.Error()
	}
	rest := slices.DeleteFunc(slices.Clone(probes), func(r agentinit.ProbeResult) bool { return r.Name == agentinit.Isolation })
	for _, r := range probes {
		if r.Name != agentinit.Isolation {
			continue
		}
		c.Observed, c.OK = "it can be opened", r.OK() && r.Want == unix.EACCES
		if r.Got != 0 {
			c.Observed = unix.ErrnoName(r.Got)
		}
	}
	return verify.FromProbe(probesOf(rest)), c
}

// landlock is why commands cannot have a domain each on this host.
func landlock() error {
	if failpoint.On("host.landlock") {
		return unix.EOPNOTSUPP
	}
	const least = 2 // renames from one directory into another
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case errno != 0:
		return errno
	case abi < least:
		return fmt.Errorf("its ABI is %d, and %d is needed", abi, least)
	}
	return nil
}

// notProven is the refusal, naming the controls.
func notProven(ev api.Evidence) error {
	var names []string
	for _, c := range verify.Failed(ev.Controls) {
		names = append(names, fmt.Sprintf("%s (want %s, is %s)", c.Name, c.Expected, c.Observed))
	}
	e := api.Errorf(api.CodeNotProven, "isolation not proven: %s", strings.Join(names, "; ")).
		WithHint("creel doctor says what this host lacks")
	e.Evidence = &ev
	return e
}

// proveAgain reads everything back from a running sandbox. What PID 1 would
// say is worth nothing after go, so there is no probe. A control that is not
// ok any more is drift: an event when it begins, changes and ends, and a problem
// that "creel ps" shows. So is a proof that cannot be taken, which is also the
// error.
func (sb *sandbox) proveAgain(ctx context.Context, why string) error {
	ev, err := sb.readAgain(ctx, why)
	if sb.l.ctx.Err() != nil {
		// The descriptors that it was read by are closed: nothing is known.
		return api.Errorf(api.CodeUnavailable, "creeld is stopping")
	}
	if sb.over() {
		return api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	if err != nil {
		sb.drifted(ctx, "the proof cannot be taken: "+err.Error())
		return err
	}
	what := ""
	if !ev.OK {
		what = notProven(ev).Error()
	}
	sb.drifted(ctx, what)
	if ev, err = sb.sign(ev); err != nil {
		return err
	}
	return sb.l.Store.AddEvidence(ev)
}

// over says whether the sandbox is ending or has ended, by itself too: what is
// read of it then means nothing.
func (sb *sandbox) over() bool {
	sb.mu.Lock()
	ending := sb.ending || ended(sb.rec.Sandbox.State)
	sb.mu.Unlock()
	if ending {
		return true
	}
	gone := true
	err := control(sb.pidfd, func(fd int) error {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		gone = n > 0
		return err
	})
	return err != nil || gone
}

// drifted tells everybody who looks that a sandbox is not what was proven, or,
// when what is empty, that it is so again. What lasts is told once, by this
// daemon or the one before it.
func (sb *sandbox) drifted(ctx context.Context, what string) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.rec.Sandbox.Problem == what {
		return // of a sandbox that runs it is only ever this
	}
	if what != "" {
		sb.l.log.ErrorContext(ctx, "drift", slog.String("sandbox", sb.id), slog.String("controls", what))
		sb.l.publish("evidence.drift", sb.identity(), "controls", what)
	} else {
		sb.l.log.InfoContext(ctx, "drift has ended", slog.String("sandbox", sb.id))
		sb.l.publish("evidence.restored", sb.identity(), "controls", sb.rec.Sandbox.Problem)
	}
	next := sb.rec
	next.Sandbox.Problem = what
	if err := sb.putLocked(next); err != nil {
		sb.rec.Sandbox.Problem = what // as long as this daemon runs
		sb.l.log.ErrorContext(ctx, "state not recorded", slog.String("sandbox", sb.id), slog.Any("error", err))
	}
}

func (sb *sandbox) readAgain(ctx context.Context, why string) (api.Evidence, error) {
	filter, err := sb.l.filterOf(&sb.fixed, sb.filterDigest())
	if err != nil {
		return api.Evidence{}, err
	}
	e, err := sb.expect(ctx, why, filter)
	if err != nil {
		return api.Evidence{}, err
	}
	sb.mu.Lock()
	e.OwnNS, e.Label = sb.rec.Namespaces, sb.rec.Label
	if e.OwnNS == nil {
		e.OwnNS = map[string]uint64{"net": sb.rec.NetNS}
		e.Weaker = append(e.Weaker, oldRecord)
	}
	e.StartTime = sb.rec.InitStart
	e.PID = sb.rec.InitPID
	inode := sb.rec.NetNS
	sb.proven = time.Now()
	sb.mu.Unlock()
	e.Extra = append(e.Extra, sb.wire(e.PID, inode)...)
	return readSettled(ctx, e), nil
}

// wire is what the sandbox's network namespace holds, and that Unix sockets do
// not lead out of it. By the pid, which the pidfd holds, and the inode it is
// that namespace.
func (sb *sandbox) wire(pid int, inode uint64) []api.Control {
	ns, err := netns.Open(pid, inode, reaches(&sb.fixed.Sandbox))
	if err != nil {
		return []api.Control{{Name: "netns", Expected: "can be read", Observed: err.Error()}}
	}
	defer func() { _ = ns.Close() }()
	return slices.Concat(netns.Check(ns), sb.egressControls(ns), sb.peersControl(ns.Cookie()))
}

// oldRecord is said of a sandbox that an older creeld started.
const oldRecord = "record: this sandbox was started by a creeld that did not record its namespaces and label, so they are only compared with the host's; start it anew"

// readSettled reads the evidence of a sandbox in use. For the moment in which
// PID 1 starts a command it has that command's descriptors as well, so when
// nothing else is wrong, its descriptors are looked at again.
func readSettled(ctx context.Context, e verify.Expect) api.Evidence {
	const tries, pause = 5, 20 * time.Millisecond
	for i := 1; ; i++ {
		ev := verify.Read(ctx, e)
		failed := verify.Failed(ev.Controls)
		if i == tries || len(failed) != 1 || failed[0].Name != "descriptors" {
			return ev
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ev
		}
	}
}

func (sb *sandbox) filterDigest() string {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	return sb.rec.FilterDigest
}

// expect is what the kernel must say of the sandbox, from its record alone.
func (sb *sandbox) expect(_ context.Context, why string, filter seccomp.Filter) (verify.Expect, error) {
	exe, unreadable, err := initFile(filepath.Join(sb.l.dir(sb.id), "init"))
	if err != nil {
		return verify.Expect{}, err
	}
	files := map[string]verify.FileID{spec.InitPath: exe}
	for target, f := range map[string]struct {
		path string
		has  bool
	}{
		spec.SocketDir:  {sb.l.socketDir(sb.id), sb.fixed.Sandbox.Socket},
		spec.ResolvConf: {sb.l.resolvConf(sb.id), reaches(&sb.fixed.Sandbox)},
		spec.TrustDir:   {sb.l.trustDir(&sb.fixed.Sandbox), opened(&sb.fixed.Sandbox)},
	} {
		if !f.has {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(f.path, &st); err != nil {
			return verify.Expect{}, fmt.Errorf("what is mounted on %s: %w", target, err)
		}
		files[target] = verify.FileID{Dev: st.Dev, Ino: st.Ino}
	}
	var pidfd int
	if err := control(sb.pidfd, func(fd int) error { pidfd = fd; return nil }); err != nil {
		return verify.Expect{}, err
	}
	sb.mu.Lock()
	alone, guarded := sb.rec.Isolated, sb.rec.UnixPeers
	shares := sb.rec.Sandbox.Shares
	sb.mu.Unlock()
	lim := sb.fixed.Sandbox.Limits
	return verify.Expect{
		ID: sb.id, Why: why, PID: sb.pid, PIDFD: pidfd,
		HostNS:  sb.l.HostNS,
		HostUID: sb.fixed.Sandbox.HostUID, IDs: spec.RangeSize,
		AgentUID: spec.UID(sb.fixed.Sandbox.User), AgentGID: spec.UID(sb.fixed.Sandbox.User),
		Caps:   capMask(sb.fixed.Sandbox),
		Filter: filter.Bytes(),
		Rlimits: map[string]verify.Rlimit{
			"nofile":   {Soft: uint64(lim.Files), Hard: uint64(lim.Files)},
			"core":     {},
			"msgqueue": {},
			"memlock":  {Soft: 64 << 10, Hard: 64 << 10},
		},
		Mounts:       expectedMounts(sb, files),
		ClosedMounts: true,
		FDs:          initFDs(why == "spawn", alone),
		Exe:          exe,
		Extra:        append(controls(sb.cg.Controls()), unreadable),
		Weaker:       append(sb.l.Cgroups.Weaker(), sb.weaker(shares, alone, guarded)...),
	}, nil
}

// capMask is the bits of a sandbox's capabilities.
func capMask(s api.Sandbox) (mask uint64) {
	for _, c := range s.Capabilities {
		mask |= 1 << api.Capabilities[c]
	}
	return mask
}

func controls(cs []cgroup.Control) []api.Control {
	out := make([]api.Control, 0, len(cs))
	for _, c := range cs {
		out = append(out, api.Control{Name: c.Name, Expected: c.Expected, Observed: c.Observed, OK: c.OK})
	}
	return out
}

// weaker says what is not enforced for this sandbox: the host cannot, or the
// operator wants it so. Connecting to a socket is not a write to its file
// system, so a read-only mount does not help (path_resolution(7), kernel
// fs/namei.c sb_permission).
func (sb *sandbox) weaker(shares []api.Share, isolated, guarded bool) []string {
	var out []string
	if !isolated {
		out = append(out, agentinit.Isolation+": a command of this sandbox can read the memory, the environment and the open files of another; boot with landlock in lsm=")
	}
	for _, sh := range shares {
		out = append(out, fmt.Sprintf("share: %s can be written by %s at the same time, because the operator shares %s", sh.Target, strings.Join(sh.With, ", "), sh.Path))
	}
	if sb.fixed.Sandbox.Socket {
		out = append(out, fmt.Sprintf("socket: the agent in it can make children of this sandbox, and use them, by %s/%s, because its caller granted that", spec.SocketDir, ownsocket.Name))
	}
	if sb.fixed.Request.Logs == noLogs {
		out = append(out, "logs: nothing of this sandbox's output is kept, because its caller asked for that")
	}
	switch {
	case guarded || len(volume.Mounts(sb.fixed.Request)) == 0:
	case sb.l.Peers != nil:
		out = append(out, unixpeers.Control+": connections of Unix sockets that this sandbox made before this creeld guarded it go on; start it anew")
	default:
		out = append(out, fmt.Sprintf("%s: a Unix socket in a mounted directory can be connected to from inside, where the caller's own rights allow it, and one in a volume from every sandbox that has the volume (%v); mount no directory that holds one, or boot with bpf in lsm=", unixpeers.Control, sb.l.NoPeers))
	}
	return out
}

// initFDs are the descriptors that PID 1 may have: its own closed list and,
// once commands run, their control sockets and the ends that it keeps.
func initFDs(atStart, isolated bool) []verify.FD {
	var fds []verify.FD
	for n, target := range agentinit.Descriptors(isolated) {
		fds = append(fds, verify.FD{Num: n, Target: target})
	}
	slices.SortFunc(fds, func(a, b verify.FD) int { return a.Num - b.Num })
	if !atStart {
		fds = append(fds, verify.FD{Num: -1, Target: "socket:"}, verify.FD{Num: -1, Target: "pipe:"}, verify.FD{Num: -1, Target: "/dev/pts/ptmx"})
	}
	return fds
}

func probesOf(rs []agentinit.ProbeResult) []verify.Probe {
	out := make([]verify.Probe, 0, len(rs))
	for _, r := range rs {
		out = append(out, verify.Probe{Name: r.Name, Want: []unix.Errno{r.Want}, Got: r.Got})
	}
	return out
}

// keyring is the control of the session keyring. It cannot be seen from
// outside; PID 1 reads it before the filter refuses keyctl(2) to everybody.
func keyring(id, described string) api.Control {
	parts := strings.SplitN(described, ";", 5)
	name := parts[len(parts)-1]
	return api.Control{
		Name: "keyring.session", Expected: "a fresh one, named after the sandbox", Observed: strconv.Quote(name),
		OK: len(parts) == 5 && strings.Contains(name, id),
	}
}

// initFile says which file the sandbox's copy of creel-init is, and whether it
// is still one that makes every process that runs it non-dumpable.
func initFile(path string) (verify.FileID, api.Control, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return verify.FileID{}, api.Control{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	owned := func(uid, mode uint32) string { return fmt.Sprintf("mode %04o of uid %d", mode, uid) }
	c := api.Control{Name: "exe.unreadable", Expected: owned(0, initMode), Observed: owned(st.Uid, st.Mode&0o7777)}
	c.OK = c.Expected == c.Observed
	return verify.FileID{Dev: st.Dev, Ino: st.Ino}, c, nil
}

// KeepFilters writes each filter under its digest, so that a later daemon
// with another profile still knows what a running sandbox was given.
func (l *Launcher) KeepFilters() error {
	dir := filepath.Join(l.StateDir, "filters")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range l.Filters {
		path := filepath.Join(dir, f.Digest())
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := os.WriteFile(path+".new", f.Bytes(), 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}

// filterOf is the filter that a sandbox was given.
func (l *Launcher) filterOf(r *store.Record, digest string) (seccomp.Filter, error) {
	if p, err := l.Policy.Profiles.Get(r.Sandbox.Profile); err == nil {
		if f, ok := l.Filters[p.Seccomp]; ok && f.Digest() == digest {
			return f, nil
		}
	}
	b, err := os.ReadFile(filepath.Join(l.StateDir, "filters", filepath.Base(digest)))
	if err != nil {
		return nil, fmt.Errorf("filter of sandbox %s: %w", r.Sandbox.ID, err)
	}
	f, err := seccomp.ParseFilter(b)
	if err == nil && f.Digest() != digest {
		err = fmt.Errorf("filter file %s was changed", digest)
	}
	return f, err
}

// installed is what PID 1 is told to install: the filter, unless a test takes
// that layer away.
func installed(f seccomp.Filter) []byte {
	switch {
	case failpoint.On("layer.seccomp"):
		return nil
	case failpoint.On("layer.seccomp.content"):
		changed := append(seccomp.Filter(nil), f...)
		changed[len(changed)-1].K ^= 1
		return changed.Bytes()
	}
	return f.Bytes()
}
