package auditlog_test

import (
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/auditlog"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/store"
)

// TestFacts: what the daemon does by itself is recorded, its opposite as well:
// who reads that a sandbox was paused, or is not what was proven, reads when
// that was over; and what is removed when it has been kept for long enough, and
// a home that is made for a launch, are changes that no request names.
func TestFacts(t *testing.T) {
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	bus := events.New(st, slog.New(slog.DiscardHandler))
	log := &fakeLog{}
	want := []string{"sandbox.paused", "sandbox.resumed", "evidence.drift", "evidence.restored", "sandbox.stopped", "sandbox.removed", "volume.created"}
	for _, kind := range append(slices.Clone(want), "exec.started") { // that one an action has recorded
		bus.Publish(api.Event{Time: time.Now(), Type: kind, Name: "n", Fields: map[string]string{events.CallerField: "5", "agent": "coder"}})
	}
	bus.Close() // Follow then reads all, and ends
	auditlog.New(log, auditlog.Full, ceiling, slog.New(slog.DiscardHandler)).Follow(t.Context(), bus, 0)
	var got []string
	for _, e := range log.entries {
		got = append(got, e.Action)
		if e.Agent != "coder" || e.Object != "n" || e.Detail["caller_uid"] != "5" {
			t.Errorf("%+v", e)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("recorded %v, want %v", got, want)
	}
}

// TestReport: a report of agents is recorded finding by finding, each so that
// who has the agent finds it; it is bounded, and no caller can fill it.
func TestReport(t *testing.T) {
	var found []api.Finding
	for uid := range uint32(11) {
		found = append(found, slices.Repeat([]api.Finding{{Agent: "coder", ID: "i", UID: uid, Kind: "wide", What: "w", Fix: "f"}}, 101)...)
	}
	log := &fakeLog{}
	auditlog.New(log, auditlog.Full, ceiling, slog.New(slog.DiscardHandler)).Report(7, found)
	if n := len(log.entries); n != 1001 {
		t.Fatalf("%d records, want 1000 and the sum", n)
	}
	want := map[string]string{"caller_uid": "9", "kind": "wide", "what": "w", "fix": "f"}
	if e := log.entries[999]; e.Action != "agent.finding" || e.Agent != "coder" || e.Object != "i" || !maps.Equal(e.Detail, want) {
		t.Errorf("%+v", e)
	}
	want = map[string]string{"agents": "7", "findings": "1111", "left_out": "111"}
	if e := log.entries[1000]; e.Action != "agent.report" || !maps.Equal(e.Detail, want) {
		t.Errorf("%+v", e)
	}
}
