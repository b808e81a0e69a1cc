package integration_test

import (
	"testing"
	"time"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestProofIsNotRepeatedAtOnce: the interval of the timer counts from the
// spawn's proof, which is also the one that people are shown.
func TestProofIsNotRepeatedAtOnce(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{})
	time.Sleep(2500 * time.Millisecond) // two ticks of the launcher's watch
	ev, err := l.Evidence(t.Context(), sb.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(ev) != 1 || ev[0].Why != "spawn" {
		for _, e := range ev {
			t.Errorf("evidence of %s, taken %s", e.Why, e.Taken)
		}
	}
}
