package launcher

import (
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/config"
	"github.com/creel-sandbox/creel/pkg/events"
	"github.com/creel-sandbox/creel/pkg/peer"
	"github.com/creel-sandbox/creel/pkg/policy"
	"github.com/creel-sandbox/creel/pkg/store"
)

// TestEventsAfterReload: who is no operator any more hears nothing of others
// from then on, also on a stream that was open.
func TestEventsAfterReload(t *testing.T) {
	compiled := func(operators ...string) *policy.Policy {
		t.Helper()
		p, err := policy.Compile(&config.Config{Operators: operators})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	st, err := store.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	rules := policy.NewRules(compiled("uid:50"))
	l := &Launcher{Options: Options{Bus: events.New(st, slog.New(slog.DiscardHandler)), Callers: rules}}
	publish := func(name, uid string) {
		l.Bus.Publish(api.Event{Time: time.Now(), Type: "sandbox.started", Name: name, Fields: map[string]string{events.CallerField: uid}})
	}
	publish("before", "9")
	publish("after", "9")
	publish("own", "50")
	l.Bus.Close() // all is committed, and the stream ends with it
	var got []string
	err = l.Events(t.Context(), peer.Cred{UID: 50}, 0, func(e api.Event) error {
		got = append(got, e.Name)
		rules.Replace(compiled()) // while the first is on its way
		return nil
	})
	if !errors.Is(err, events.ErrClosed) || len(got) != 2 || got[0] != "before" || got[1] != "own" {
		t.Errorf("heard of %v, %v", got, err)
	}
}
