package launcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/agents"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
	"github.com/creel-sandbox/creel/pkg/retention"
	"github.com/creel-sandbox/creel/pkg/store"
)

// keeper is a launcher that has nothing but records and logs.
func keeper(t *testing.T, caps retention.Caps) *Launcher {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	bus := events.New(s, log)
	t.Cleanup(func() { bus.Close(); _ = s.Close() })
	everybody, err := policy.Compile(&config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return &Launcher{
		Options: Options{Callers: policy.NewRules(everybody), Agents: agents.New(nil), StateDir: dir, Store: s, Bus: bus, Log: log, Retention: caps}, log: log,
		sandboxes: map[string]*sandbox{},
	}
}

// put gives it a sandbox with a log of some bytes and some evidence.
func (l *Launcher) put(t *testing.T, r store.Record, logBytes, evidence int) {
	t.Helper()
	id := r.Sandbox.ID
	dir := filepath.Join(l.logDir(id), "gen-00000001")
	err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "stdout.log"), make([]byte, logBytes), 0o600),
		l.Store.Update(func(tx *store.Tx) error {
			err := tx.PutSandbox(r)
			for range evidence {
				err = errors.Join(err, tx.AddEvidence(api.Evidence{Sandbox: id}))
			}
			return err
		}))
	if err != nil {
		t.Fatal(err)
	}
	sb := l.newSandbox(r, nil)
	if r.Clean {
		sb.markDone()
		sb.markGone()
	}
	l.sandboxes[id] = sb
}

// TestRetentionMonth lives a month in which two users end sandboxes all day:
// what is kept is within every bound at every moment, the newest are there,
// and nothing goes that has not ended.
func TestRetentionMonth(t *testing.T) {
	caps := retention.Caps{Age: 7 * 24 * time.Hour, PerUser: 20, All: 30, LogBytes: 800 << 10, Evidence: 70}
	l := keeper(t, caps)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	alive := map[string]bool{}
	for _, state := range states {
		for _, clean := range []bool{false, true} {
			if state == api.StateStopped && clean || state == api.StateRemoving {
				continue
			}
			// As old as can be, and larger than all bounds.
			r := store.Record{Sandbox: api.Sandbox{ID: fmt.Sprintf("%s%t", state, clean), State: state, Caller: api.Caller{UID: 1}}}
			l.put(t, r, 1<<20, 16)
			alive[r.Sandbox.ID] = true
		}
	}
	n := 0
	for day := range 30 {
		for range 8 {
			now = now.Add(3 * time.Hour)
			for uid := range uint32(2) {
				if uid == 1 && day >= 10 && day < 20 {
					continue // on holiday: what it keeps only grows old
				}
				n++
				l.put(t, store.Record{Clean: true, Sandbox: api.Sandbox{
					ID: fmt.Sprintf("s%05d", n), State: api.StateStopped, Ended: now, Caller: api.Caller{UID: 1000 + uid},
				}}, n%7*10<<10, 1+n%4)
			}
			last := fmt.Sprintf("s%05d", n)
			if err := l.removeExcess(t.Context(), now); err != nil {
				t.Fatal(err)
			}
			l.holds(t, caps, now)
			if l.sandboxes[last] == nil {
				t.Fatalf("day %d: the newest is gone", day)
			}
		}
		for id := range alive {
			if l.sandboxes[id] == nil {
				t.Fatalf("day %d: %s is gone", day, id)
			}
		}
	}
	if n < 400 {
		t.Fatalf("only %d sandboxes ended", n)
	}
	// The disk says the same as the memory.
	var ids []string
	if err := l.Store.Sandboxes(func(r store.Record) error { ids = append(ids, r.Sandbox.ID); return nil }); err != nil {
		t.Fatal(err)
	}
	dirs, err := os.ReadDir(filepath.Join(l.StateDir, "logs"))
	if err != nil || len(dirs) != len(l.sandboxes) || len(ids) != len(l.sandboxes) {
		t.Errorf("%d records, %d logs, %v; %d sandboxes", len(ids), len(dirs), err, len(l.sandboxes))
	}
	// And when nobody uses it any more, age alone empties it.
	if err := l.removeExcess(t.Context(), now.Add(8*24*time.Hour)); err != nil || len(l.sandboxes) != len(alive) {
		t.Errorf("a week later: %d sandboxes, %v; want the %d that have not ended", len(l.sandboxes), err, len(alive))
	}
}

// holds fails the test if what is kept of ended sandboxes is beyond a bound.
func (l *Launcher) holds(t *testing.T, caps retention.Caps, now time.Time) {
	t.Helper()
	all, err := l.keptOf(peer.Cred{})
	if err != nil {
		t.Fatal(err)
	}
	users, count, evidence, logBytes := map[uint32]int{}, 0, 0, int64(0)
	for _, k := range all {
		if !k.ended {
			continue
		}
		es, err := l.Store.Evidence(k.rec.ID)
		if err != nil {
			t.Fatal(err)
		}
		count, evidence, logBytes = count+1, evidence+len(es), logBytes+k.logs
		users[k.rec.Caller.UID]++
		if now.Sub(k.rec.Ended) > caps.Age {
			t.Fatalf("%s is %v old", k.rec.ID, now.Sub(k.rec.Ended))
		}
		if users[k.rec.Caller.UID] > caps.PerUser {
			t.Fatalf("uid %d keeps %d", k.rec.Caller.UID, users[k.rec.Caller.UID])
		}
	}
	if count > caps.All || evidence > caps.Evidence || logBytes > caps.LogBytes {
		t.Fatalf("kept: %d sandboxes, %d pieces of evidence, %d bytes of logs", count, evidence, logBytes)
	}
}

// TestRetainIsDue: one pass a minute, or soon after a sandbox has ended.
func TestRetainIsDue(t *testing.T) {
	l := keeper(t, retention.Caps{Age: time.Hour})
	l.ctx = context.Background() //nolint:usetesting // as the daemon's, it ends with Close
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	pass := func() (ran bool) {
		was := l.excess.last
		l.retain(now)
		l.work.wait()
		return l.excess.last != was
	}
	for _, tt := range []struct {
		after time.Duration
		ended bool
		want  bool
	}{{0, false, true}, {time.Second, false, false}, {time.Second, true, true}, {time.Second, false, false}, {58 * time.Second, false, false}, {time.Second, false, true}} {
		now = now.Add(tt.after)
		if tt.ended {
			l.excess.more.Store(true)
		}
		if got := pass(); got != tt.want {
			t.Errorf("at %v: %t", now, got)
		}
	}
}
