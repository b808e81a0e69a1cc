package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/approval"
	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/egress/link"
	"github.com/creel-sandbox/creel/pkg/egress/synthetic"
	"github.com/creel-sandbox/creel/pkg/egressproc"
	"github.com/creel-sandbox/creel/pkg/failpoint"
	"github.com/creel-sandbox/creel/pkg/netns"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/secrets"
	"github.com/creel-sandbox/creel/pkg/server"
	"github.com/creel-sandbox/creel/pkg/spec"
	"github.com/creel-sandbox/creel/pkg/steer"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/pkg/truststore"
)

// Bounds of what one sandbox does by its network.
const (
	egressConnections = 256
	egressNames       = 256
)

// reaches says whether a sandbox has a network by policy.
func reaches(s *api.Sandbox) bool { return s.Network == admission.PolicyNetwork }

// opened says whether a party has TLS opened up for a sandbox.
func opened(s *api.Sandbox) bool {
	return reaches(s) && (len(s.Secrets) > 0 || slices.ContainsFunc(s.Egress, func(party api.EgressParty) bool {
		p, _ := egress.ParseLines(party.By, "egress", party.Rules)
		return p != nil && p.Reads()
	}))
}

// trustDir is the host's directory of the certificates that a sandbox trusts.
func (l *Launcher) trustDir(s *api.Sandbox) string {
	if l.Egress == nil {
		return ""
	}
	return l.Egress.TrustDir(s.Caller.UID)
}

// env is the whole environment of a process of the sandbox's, with what was asked
// for it.
func (sb *sandbox) env(add map[string]string, tty bool) map[string]string {
	env := map[string]string{}
	if opened(&sb.fixed.Sandbox) {
		env = truststore.Env(spec.TrustDir)
	}
	if reaches(&sb.fixed.Sandbox) {
		env["SPIFFE_ENDPOINT_SOCKET"] = fmt.Sprintf("tcp://127.0.0.1:%d", steer.WorkloadPort)
	}
	for _, ref := range sb.fixed.Secrets {
		if name, placeholder := sb.l.Secrets.Env(ref, sb.id); name != "" {
			env[name] = placeholder
		}
	}
	maps.Copy(env, sb.fixed.Request.Env)
	maps.Copy(env, add)
	return admission.Env(sb.fixed.Sandbox.User, env, tty)
}

// egressOf are all who have a say in what a sandbox reaches: its profile and
// request, the ceiling of its caller, and those of its parent; with what was let
// for its agent, and who may let more.
func (l *Launcher) egressOf(c peer.Cred, a *admission.Admitted, parent *sandbox) (_ []api.EgressParty, st approval.State, err error) {
	if a.Request.Network != admission.PolicyNetwork {
		return nil, st, nil
	}
	parties := slices.Clone(a.Egress)
	st.Request = 1 + slices.IndexFunc(parties, func(p api.EgressParty) bool { return p.By == requestParty })
	if ceiling := l.Callers.Ceiling(c); ceiling != nil {
		parties = append(parties, ceiling.Party())
		st.Ceiling, st.Ask, st.By = len(parties), ceiling.Ask, ceiling.Approve
	} else if !l.Callers.Operator(c) {
		return nil, st, api.Errorf(api.CodeDenied, "uid %d has no ceiling any more", c.UID)
	}
	if agent, err := l.Agents.Find(c.UID, false, a.Request.Agent); err == nil {
		parties = st.Agent(parties, agent.Egress)
	}
	if parent != nil {
		parties = append(parties, parent.fixed.Sandbox.Egress...)
	}
	if len(parties) == 0 {
		return nil, st, api.Errorf(api.CodeInvalid, "network policy without rules: nothing could be reached").
			WithHint("name what may be reached, as with --allow api.example.com")
	}
	return parties, st, nil
}

// egressPolicy is what a sandbox is served by.
func (l *Launcher) egressPolicy(r *store.Record) link.Policy {
	range6, _ := netip.ParsePrefix(r.Range6) // one that is none is refused
	pol := link.Policy{
		Parties: r.Sandbox.Egress, Range6: range6, Once: r.Approvals.Once(r.Sandbox.Egress),
		Limits: link.Limits{Connections: egressConnections, Names: egressNames, Budget: budgetOf(r), Spent: l.spent(r.Sandbox.ID)},
	}
	for _, ref := range r.Secrets {
		if s, ok := l.Secrets.Use(ref, r.Sandbox.ID, r.Sandbox.Agent); ok {
			pol.Secrets = append(pol.Secrets, s)
		}
	}
	return pol
}

func budgetOf(r *store.Record) link.Spent {
	lim := &r.Sandbox.Limits
	return link.Spent{Bytes: int64(lim.EgressBytes), Connections: lim.EgressConnections, Requests: lim.EgressRequests}
}

// spentFile is where it is kept, over a restart of the daemon, what a sandbox with
// a budget has used of it.
func (l *Launcher) spentFile(id string) string { return filepath.Join(l.dir(id), "egress-spent") }

// spent is what is kept. Without the file nothing was used yet; one that cannot be
// read has everything be used up.
func (l *Launcher) spent(id string) (s link.Spent) {
	b, err := os.ReadFile(l.spentFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		const all = 1 << 60
		return link.Spent{Bytes: all, Connections: all, Requests: all}
	}
	return s
}

// used is told what a sandbox with a budget has used, and that one is used up.
func (l *Launcher) used(sb *sandbox, r link.Record) {
	switch {
	case r.Kind == link.KindSpent && r.Spent != nil:
		b, err := json.Marshal(r.Spent)
		if err == nil {
			tmp := l.spentFile(sb.id) + ".new"
			err = errors.Join(os.WriteFile(tmp, b, 0o600), os.Rename(tmp, l.spentFile(sb.id)))
		}
		if err != nil && !ended(sb.state()) {
			l.log.Error("what a sandbox has used of its network is not kept", slog.String("sandbox", sb.id), slog.Any("error", err))
		}
	case r.Kind == link.KindOver:
		if r.To != "bytes" && r.To != "connections" && r.To != "requests" {
			return
		}
		sb.mu.Lock()
		sb.hits["egress_"+r.To] = 1
		sb.mu.Unlock()
		sb.end(api.ReasonEgress, nil)
	}
}

// makeNetwork makes the sandbox's network namespace and, where it has one by
// policy, has its connections go to its caller's creel-egress.
func (s *launch) makeNetwork(ctx context.Context) (err error) {
	if !reaches(&s.sb.fixed.Sandbox) {
		s.ns, err = netns.Create()
		return err
	}
	if s.ns, err = netns.CreateLocal(); err != nil {
		return err
	}
	sockets, err := steer.Listen(s.ns)
	if err != nil {
		return err
	}
	s.did("steer")
	if err := errors.Join(steer.Steer(ctx, s.ns, s.l.steerDir(), s.id, sockets), failpoint.Hit("launch.steer")); err != nil {
		return errors.Join(err, sockets.Close())
	}
	who, err := s.l.identityOf(&s.sb.fixed.Sandbox)
	if err != nil {
		return errors.Join(err, sockets.Close())
	}
	s.sb.amend(func(r *store.Record) { r.Range6, r.Sandbox.Identity = synthetic.NewRange6().String(), who })
	if err := os.WriteFile(s.l.resolvConf(s.id), resolvConf(), 0o444); err != nil {
		return errors.Join(err, sockets.Close())
	}
	s.did("egress")
	s.l.secretMu.RLock()
	defer s.l.secretMu.RUnlock()
	return errors.Join(s.l.Egress.Add(ctx, egressproc.Sandbox{
		Caller: s.caller.UID, ID: s.id, Sockets: sockets, Policy: s.l.egressPolicy(s.sb.record()),
	}), failpoint.Hit("launch.egress"))
}

// record is a copy of the sandbox's.
func (sb *sandbox) record() *store.Record {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	r := sb.rec
	return &r
}

// egressAgain has a sandbox that runs be served, after a restart of the daemon:
// by the process that does, or, where that is not there any more, by new sockets.
func (sb *sandbox) egressAgain(ctx context.Context, ns *netns.NS) error {
	if !reaches(&sb.fixed.Sandbox) {
		return nil
	}
	if sb.l.Egress == nil {
		return fmt.Errorf("its network: %w", sb.l.NoEgress)
	}
	sb.l.secretMu.RLock()
	defer sb.l.secretMu.RUnlock()
	pol := sb.l.egressPolicy(sb.record())
	if sb.l.Egress.Resume(ctx, sb.id, pol) == nil && sb.steered(ns) {
		return nil
	}
	if err := sb.l.Egress.Remove(ctx, sb.id); err != nil {
		return err
	}
	sockets, err := steer.Listen(ns)
	if err != nil {
		return err
	}
	if err := steer.Renew(sb.l.steerDir(), sb.id, sockets); err != nil {
		return errors.Join(err, sockets.Close())
	}
	return sb.l.Egress.Add(ctx, egressproc.Sandbox{Caller: sb.fixed.Sandbox.Caller.UID, ID: sb.id, Sockets: sockets, Policy: pol})
}

// steered says whether the kernel has the sockets that the process gave back.
func (sb *sandbox) steered(ns *netns.NS) bool {
	return !slices.ContainsFunc(sb.egressControls(ns), func(c api.Control) bool { return !c.OK })
}

// egressControls read back where the connections of a sandbox go.
func (sb *sandbox) egressControls(ns *netns.NS) (cs []api.Control) {
	if !reaches(&sb.fixed.Sandbox) {
		return nil
	}
	served := sb.l.Egress != nil && sb.l.Egress.With(sb.id, func(s *steer.Sockets, process api.Control) {
		cs = append(steer.Check(ns, sb.l.steerDir(), sb.id, s), process)
	})
	if !served {
		return []api.Control{{Name: "network.steered", Expected: "served by creel-egress", Observed: "not served; nothing gets out"}}
	}
	return cs
}

// resolvConf is a sandbox's /etc/resolv.conf: any address would do.
func resolvConf() []byte {
	return fmt.Appendf(nil, "# creel answers for what this sandbox may reach.\nnameserver %s\nnameserver %s\noptions timeout:5 attempts:2\n", steer.ListenAddr4, steer.ListenAddr6)
}

// mostDestinations is how many destinations of one sandbox are told of.
const mostDestinations = 256

// Decided is told what the creel-egress of a caller decided. Each destination of a sandbox is an
// event once as one that was allowed and once as one that was refused, however
// often it is tried.
func (l *Launcher) Decided(caller uint32, r link.Record) {
	l.mu.Lock()
	sb := l.sandboxes[r.ID]
	l.mu.Unlock()
	if sb == nil || sb.fixed.Sandbox.Caller.UID != caller {
		return // what is said of another caller's comes from a process that was taken over
	}
	switch r.Kind {
	case link.KindSpent, link.KindOver:
		l.used(sb, r)
		return
	case link.KindOnce:
		l.usedOnce(sb, r.To)
		return
	}
	if r.To == "" {
		return
	}
	l.usedSecrets(sb, r)
	if r.Allowed && r.Kind == link.KindName {
		return // it was looked up; whether it was reached is told by itself
	}
	if !r.Allowed && r.By != "" {
		sb.ask(r)
	}
	kind, to := "egress.denied", line(r.To)
	if r.Allowed {
		kind = "egress.allowed"
	}
	what, fields := kind+" "+to, []string{"to", to, "what", line(r.Kind), "by", line(r.By), "why", line(r.Error)}
	if sb.fixed.Sandbox.Observe && r.Kind == link.KindRequest { // each is a destination, to be learned
		scheme, method, path := line(r.Scheme), line(r.Method), line(r.Path)
		what += " " + scheme + " " + method + " " + path
		fields = append(fields, "scheme", scheme, "method", method, "path", path)
	}
	if !sb.firstTime(what) {
		return
	}
	l.publish(kind, sb.identity(), fields...)
}

// firstTime says whether something is told of the sandbox for the first time,
// and there is not too much of it.
func (sb *sandbox) firstTime(what string) bool {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.destinations[what] || len(sb.destinations) >= mostDestinations {
		return false
	}
	if sb.destinations == nil {
		sb.destinations = map[string]bool{}
	}
	sb.destinations[what] = true
	return true
}

// line is what a process said, as one short line.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s[:min(len(s), 300)])
}

func (l *Launcher) resolvConf(id string) string { return filepath.Join(l.dir(id), "resolv.conf") }

// steerDir is a bpffs; see steer.Mount.
func (l *Launcher) steerDir() string { return filepath.Join(l.RunDir, "steer") }

func (l *Launcher) removeEgress(ctx context.Context, id string) error {
	if l.Egress == nil {
		return nil
	}
	return l.Egress.Remove(ctx, id)
}

// egressIDs are those that anything of the network carries.
func (l *Launcher) egressIDs() ([]string, error) {
	if l.Egress == nil {
		return nil, nil
	}
	ids, err := steer.List(l.steerDir())
	for id := range l.Egress.Held() {
		ids = append(ids, id)
	}
	return ids, err
}

// socketsAgain is guardPeers, listen and what makeNetwork does, for a running sandbox. A daemon may have
// started it that had no such guard; what it connected to before stays connected,
// so its record does not say that it was guarded.
func (sb *sandbox) socketsAgain(ctx context.Context) error {
	if sb.l.Peers == nil && !sb.fixed.Sandbox.Socket && !reaches(&sb.fixed.Sandbox) {
		return nil
	}
	ns, err := netns.Open(sb.rec.InitPID, sb.rec.NetNS, reaches(&sb.fixed.Sandbox))
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if sb.l.Peers != nil {
		if err := sb.l.Peers.Add(ns.Cookie(), sb.id); err != nil {
			return err
		}
	}
	return errors.Join(sb.listen(ns), sb.egressAgain(ctx, ns))
}

// Forward connects to a server on a sandbox's own loopback, by IPv4 or else IPv6.
// The sandbox is not idle while the connection is there.
func (l *Launcher) Forward(ctx context.Context, c peer.Cred, ref string, port uint16) (server.Tunnel, error) {
	sb, err := l.findLaunched(c, ref)
	if err != nil {
		return nil, err
	}
	if err := sb.active(ctx); err != nil {
		return nil, err
	}
	rec := sb.record()
	ns, err := netns.Open(rec.InitPID, rec.NetNS, reaches(&rec.Sandbox))
	if err != nil {
		return nil, api.Errorf(api.CodeConflict, "sandbox %s has ended", sb.id)
	}
	defer func() { _ = ns.Close() }()
	conn, err := ns.Dial(ctx, port)
	if err != nil {
		return nil, api.Errorf(api.CodeUnavailable, "port %d of sandbox %s: %w", port, sb.id, err).
			WithHint("have a server in it listen on 127.0.0.1, or on all addresses")
	}
	sb.client(1)
	return &tunnel{TCPConn: conn, sb: sb}, nil
}

// tunnel is a client of the sandbox until it is closed.
type tunnel struct {
	*net.TCPConn
	sb   *sandbox
	once sync.Once
}

// Close implements net.Conn.
func (t *tunnel) Close() error {
	t.once.Do(func() { t.sb.client(-1) })
	return t.TCPConn.Close()
}

// secretsOf are the secrets that a request names, each of which its agent may use
// and its network reaches. A child's are its parent's.
func (l *Launcher) secretsOf(c peer.Cred, a *admission.Admitted, parent *sandbox) ([]secrets.Ref, error) {
	if len(a.Request.Secrets) == 0 {
		return nil, nil
	}
	parties, _, err := l.egressOf(c, a, parent)
	if err != nil {
		return nil, err
	}
	var all []*egress.Policy
	for _, p := range parties {
		pol, _ := egress.ParseLines(p.By, "egress", p.Rules)
		all = append(all, pol)
	}
	reach := egress.NewSnapshot(all...)
	var refs []secrets.Ref
	for _, name := range a.Request.Secrets {
		ref, s, err := l.Secrets.Find(c.UID, name)
		if err != nil {
			return nil, err
		}
		if parent != nil && !slices.Contains(parent.fixed.Secrets, ref) {
			return nil, api.Errorf(api.CodeDenied, "the parent does not have the secret %s", name)
		}
		if !secrets.For(s, a.Request.Agent) {
			return nil, api.Errorf(api.CodeDenied, "the secret %s is not for the agent %s", name, a.Request.Agent).
				WithHint("have whoever set it do so again with --agent " + a.Request.Agent)
		}
		if err := secrets.Reached(reach, s); err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// usedSecrets counts a request that went out with secrets. Each destination of
// each is told once, as all destinations are.
func (l *Launcher) usedSecrets(sb *sandbox, r link.Record) {
	if !r.Allowed || r.Kind != link.KindRequest {
		return
	}
	for _, ref := range sb.fixed.Secrets {
		if !slices.Contains(r.Secrets, ref.Name) {
			continue
		}
		l.Secrets.Used(ref, time.Unix(0, r.Time))
		if sb.firstTime("secret.used " + ref.Name + " " + line(r.To)) {
			l.publish("secret.used", sb.identity(), "secret", ref.Name, "to", line(r.To))
		}
	}
}

// SecretChanged has the sandboxes that use a secret go on with what it is now, or
// without it.
func (l *Launcher) SecretChanged(ctx context.Context, ref secrets.Ref) error {
	l.secretMu.Lock() // nobody is being given what it was
	defer l.secretMu.Unlock()
	var errs []error
	for _, sb := range l.all() {
		if l.Egress == nil || ended(sb.state()) || !slices.Contains(sb.fixed.Secrets, ref) {
			continue
		}
		err := l.Egress.Resume(ctx, sb.id, l.egressPolicy(sb.record()))
		if e, ok := errors.AsType[*api.Error](err); ok && e.Code == api.CodeNotFound {
			continue // it has no network yet, and gets it as it is now, or none any more
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
