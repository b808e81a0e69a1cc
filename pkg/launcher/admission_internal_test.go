package launcher

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
	"github.com/creel-sandbox/creel/pkg/profile"
	"github.com/creel-sandbox/creel/pkg/retention"
	"github.com/creel-sandbox/creel/pkg/sametime"
	"github.com/creel-sandbox/creel/pkg/store"
	"github.com/creel-sandbox/creel/profiles"
)

// crowded is a launcher with sandboxes that have ended and sandboxes that run,
// each of an agent of its own, of callers 1000 to 1009.
func crowded(tb testing.TB, past, running int) *Launcher {
	tb.Helper()
	set, err := profile.Load(profiles.FS)
	if err != nil {
		tb.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.Limits.Max.SandboxesPerUser, cfg.Limits.Max.KeptPerUser, cfg.Limits.Max.Sandboxes = 0, 0, running+10
	cfg.Limits.Max.Memory, cfg.Limits.Max.CPUs, cfg.Limits.Max.Pids, cfg.Limits.Max.Disk = 1<<50, 1<<20, 1<<22, 1<<50
	caller := config.DefaultCaller()
	caller.Match, caller.Sandboxes, caller.SpawnRate = "default", running, 0
	caller.Memory, caller.CPUs, caller.Pids, caller.Disk = 1<<50, 1<<20, 1<<22, 1<<50
	cfg.Callers = []config.Caller{caller}
	p, err := policy.Compile(&cfg)
	if err != nil {
		tb.Fatal(err)
	}
	l := &Launcher{
		Options: Options{
			Callers: policy.NewRules(p),
			Agents:  agents.New(nil),
			Policy:  admission.Policy{Profiles: set, DefaultProfile: "default", DefaultImage: "base", DefaultRuntime: "crun", Runtimes: []string{"crun"}},
		},
		sandboxes: map[string]*sandbox{},
	}
	for i := range past + running {
		state := api.StateStopped
		if i >= past {
			state = api.StateRunning
		}
		sb := l.newSandbox(store.Record{Sandbox: api.Sandbox{
			ID: newID(), Name: fmt.Sprintf("n-%d", i), Agent: fmt.Sprintf("a%d", i), State: state,
			Limits: api.Limits{Memory: 1 << 20, CPUs: 0.1, Pids: 8}, Caller: api.Caller{UID: 1000 + uint32(i%10)},
		}}, nil)
		sb.hold(sb.countLocked)
		l.sandboxes[sb.id] = sb
	}
	return l
}

// BenchmarkAdmission is what a spawn's decision takes, all but the commit of
// its record, with 1,000 agents and 10,000 past sandboxes.
func BenchmarkAdmission(b *testing.B) {
	l := crowded(b, 10_000, 1000)
	c := peer.Cred{UID: 1003, GID: 1003}
	req := api.SpawnRequest{Agent: "a3", Command: []string{"/bin/true"}}
	for b.Loop() {
		a, err := l.admit(b.Context(), c, req, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.take("new", c, nil, admission.SumOf(false, a.Limits)); err != nil {
			b.Fatal(err)
		}
		l.tally.Drop("new")
	}
}

// BenchmarkFindAnothers and BenchmarkFindNone are to take the same time.
func BenchmarkFindAnothers(b *testing.B) {
	l := crowded(b, 10_000, 1000)
	var anothers string
	for id, sb := range l.sandboxes {
		if sb.fixed.Sandbox.Caller.UID != 1003 {
			anothers = id
		}
	}
	benchmarkFind(b, l, anothers)
}

func BenchmarkFindNone(b *testing.B) {
	benchmarkFind(b, crowded(b, 10_000, 1000), newID())
}

func benchmarkFind(b *testing.B, l *Launcher, id string) {
	b.Helper()
	for b.Loop() {
		if _, err := l.find(peer.Cred{UID: 1003}, id); api.CodeOf(err) != api.CodeNotFound {
			b.Fatal(err)
		}
	}
}

// TestTallyFollowsStates: whatever way sandboxes go through their states, also
// when the disk does not take it, the sums are those of their records.
func TestTallyFollowsStates(t *testing.T) {
	l := keeper(t, retention.Caps{})
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		for _, sb := range l.all() {
			if err := l.drop(sb); err != nil {
				t.Fatal(err)
			}
		}
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			all := l.all()
			if len(all) == 0 || rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				n++
				sb := l.newSandbox(store.Record{Sandbox: api.Sandbox{
					ID: fmt.Sprintf("id%d", n), Name: fmt.Sprintf("name%d", n), State: api.StateCreating, Rootfs: "ephemeral",
					Limits: api.Limits{Memory: api.Size(n) << 20, CPUs: 0.3, Pids: int64(n), Disk: 1 << 20},
					Caller: api.Caller{UID: rapid.Uint32Range(1, 3).Draw(t, "uid")},
				}}, nil)
				sb.hold(sb.countLocked)
				l.sandboxes[sb.id] = sb
				continue
			}
			sb := all[rapid.IntRange(0, len(all)-1).Draw(t, "sandbox")]
			to := rapid.SampledFrom([]api.State{
				api.StateRunning, api.StatePaused, api.StateStopping, api.StateStopped, api.StateRemoving, api.StateUnknown,
			}).Draw(t, "to")
			switch {
			case checkMove(sb.state(), to) != nil:
			case to == api.StateUnknown:
				l.unknown(sb, api.Errorf(api.CodeInternal, "stuck"))
			case rapid.Bool().Draw(t, "moveOn"):
				_ = sb.moveOn(to, func(*store.Record) {})
			default:
				_ = sb.move(to, nil)
			}
			if sb.state() == api.StateRemoving && rapid.Bool().Draw(t, "drop") {
				if err := l.drop(sb); err != nil {
					t.Fatal(err)
				}
			}
		}
		var want admission.Tally
		for _, sb := range l.all() {
			r := sb.rec.Sandbox
			switch {
			case r.State == api.StateRemoving:
			case ended(r.State):
				want.Set(r.ID, admission.Part{UID: r.Caller.UID, Sum: admission.Sum{Kept: 1}})
			default:
				want.Set(r.ID, admission.Part{UID: r.Caller.UID, Sum: admission.SumOf(true, r.Limits)})
			}
		}
		for uid := range uint32(4) {
			own, all := l.tally.Sums(uid)
			wantOwn, wantAll := want.Sums(uid)
			if own != wantOwn || all != wantAll {
				t.Fatalf("uid %d: %+v of %+v, want %+v of %+v", uid, own, all, wantOwn, wantAll)
			}
		}
	})
}

// TestFindDoesTheSame: another caller's id, name and prefix answer as what
// nobody has, whatever is asked for.
func TestFindDoesTheSame(t *testing.T) {
	l := crowded(t, 50, 50)
	for id, sb := range l.sandboxes {
		r := sb.identity().Sandbox
		for _, ref := range []string{id, id[:6], r.Name, newID()} {
			c := peer.Cred{UID: 1000 + (r.Caller.UID-1000+1+rand.Uint32N(8))%10}
			_, err := l.find(c, ref)
			want := fmt.Sprintf("no sandbox %q; creel ps -a lists yours", ref)
			if api.CodeOf(err) != api.CodeNotFound || err.Error() != want {
				t.Errorf("uid %d asks for %s of uid %d: %v", c.UID, ref, r.Caller.UID, err)
			}
		}
	}
}

// TestFindTakesTheSame: how long it takes to be told that there is no such
// sandbox or agent does not tell whether it is another caller's. A quarter of
// what one read of the store takes is too much of a difference.
func TestFindTakesTheSame(t *testing.T) {
	const n = 400
	l := crowded(t, n/2, n/2)
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	l.Store = st
	var ids, names, agents, noIDs, noNames, noAgents []string
	err = st.Update(func(tx *store.Tx) error {
		for id, sb := range l.sandboxes {
			r := sb.fixed.Sandbox
			l.Agents.Put(api.Agent{ID: newExecID(), Name: r.Agent, Caller: r.Caller, State: "active"})
			ids, names, agents = append(ids, id), append(names, r.Name), append(agents, r.Agent)
			noIDs = append(noIDs, newID())
			noNames, noAgents = append(noNames, "m"+r.Name[1:]), append(noAgents, "b"+r.Agent[1:])
			if err := tx.PutSandbox(sb.fixed); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c := peer.Cred{UID: 999, GID: 999}
	ask := func(refs []string, find func(ref string) error) func() {
		i := 0
		return func() {
			if err := find(refs[i%len(refs)]); api.CodeOf(err) != api.CodeNotFound {
				t.Fatalf("%s: %v", refs[i%len(refs)], err)
			}
			i++
		}
	}
	sandbox := func(ref string) error { _, err := l.find(c, ref); return err }
	agent := func(ref string) error { _, err := l.FindAgent(c, ref); return err }
	read := sametime.Median(2000, func() {
		if _, err := st.Sandbox(ids[0]); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("a read of the store takes %v", read)
	sametime.Check(t, 3000, read/4,
		sametime.Question{Name: "another's id", Ask: ask(ids, sandbox)},
		sametime.Question{Name: "an id of none", Ask: ask(noIDs, sandbox)},
		sametime.Question{Name: "another's name", Ask: ask(names, sandbox)},
		sametime.Question{Name: "a name of none", Ask: ask(noNames, sandbox)})
	sametime.Check(t, 3000, read/4,
		sametime.Question{Name: "another's agent", Ask: ask(agents, agent)},
		sametime.Question{Name: "an agent of none", Ask: ask(noAgents, agent)})
}

// TestFindFromInside: by a sandbox's own socket its descendants are found, and
// nothing else: not itself, nor what is above, beside or an operator's to see.
func TestFindFromInside(t *testing.T) {
	l := crowded(t, 1, 1)
	put := func(name string, uid uint32, parent *sandbox) *sandbox {
		sb := l.newSandbox(store.Record{Sandbox: api.Sandbox{ID: newID(), Name: name, State: api.StateRunning, Caller: api.Caller{UID: uid}}}, parent)
		l.sandboxes[sb.id] = sb
		return sb
	}
	for _, uid := range []uint32{1000, 0} {
		top := put("top", uid, nil)
		box := put("box", uid, top)
		child := put("child", uid, box)
		grandchild := put("grandchild", uid, child)
		sister := put("sister", uid, top)
		lost := put("lost", uid, nil) // its parent was forgotten
		c := peer.Cred{UID: uid, Via: box.id}
		for _, sb := range []*sandbox{child, grandchild} {
			for _, ref := range []string{sb.id, sb.id[:10], sb.fixed.Sandbox.Name} {
				if got, err := l.find(c, ref); err != nil || got != sb {
					t.Errorf("%s: %v, %v", ref, got, err)
				}
			}
		}
		for _, sb := range []*sandbox{top, box, sister, lost} {
			for _, ref := range []string{sb.id, sb.id[:10], sb.fixed.Sandbox.Name} {
				if _, err := l.find(c, ref); api.CodeOf(err) != api.CodeNotFound {
					t.Errorf("%s is found: %v", ref, err)
				}
			}
			if _, err := l.findParent(c, sb.id); (err == nil) != (sb == box) {
				t.Errorf("%s as a parent: %v", sb.fixed.Sandbox.Name, err)
			}
		}
		for _, sb := range []*sandbox{top, box, child, grandchild, sister, lost} {
			delete(l.sandboxes, sb.id)
		}
	}
}
