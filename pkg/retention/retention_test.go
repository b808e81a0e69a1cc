package retention_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/retention"

	"github.com/google/go-cmp/cmp"
)

var now = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

func ago(id string, uid uint32, d time.Duration) retention.Ended {
	return retention.Ended{ID: id, UID: uid, At: now.Add(-d), LogBytes: 10, Evidence: 2}
}

func TestExcess(t *testing.T) {
	all := []retention.Ended{
		ago("b2", 2, 2*time.Hour), ago("a1", 1, 1*time.Hour), ago("a5", 1, 5*time.Hour),
		ago("a3", 1, 3*time.Hour), ago("a4", 1, 4*time.Hour), ago("b9", 2, 9*time.Hour),
	}
	tests := []struct {
		name string
		caps retention.Caps
		want []string
	}{
		{"no bounds", retention.Caps{}, nil},
		{"all hold", retention.Caps{Age: 9 * time.Hour, PerUser: 4, All: 6, LogBytes: 60, Evidence: 12}, nil},
		{"age", retention.Caps{Age: 4 * time.Hour}, []string{"b9", "a5"}},
		{"per user", retention.Caps{PerUser: 3}, []string{"a5"}},
		{"per user, one", retention.Caps{PerUser: 1}, []string{"b9", "a5", "a4", "a3"}},
		{"all: from who has the most, not the oldest", retention.Caps{All: 4}, []string{"a5", "a4"}},
		{"all: then in turn", retention.Caps{All: 2}, []string{"b9", "a5", "a4", "a3"}},
		{"log bytes", retention.Caps{LogBytes: 45}, []string{"a5", "a4"}},
		{"evidence", retention.Caps{Evidence: 3}, []string{"b9", "a5", "a4", "a3", "a1"}},
		{"together", retention.Caps{Age: 8 * time.Hour, PerUser: 3, All: 3}, []string{"b9", "a5", "a4"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, retention.Excess(now, tt.caps, all)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestLogsWithoutBytes: one that has no log does not go for the logs' bytes.
func TestLogsWithoutBytes(t *testing.T) {
	all := []retention.Ended{
		{ID: "old", UID: 1, At: now.Add(-time.Hour)},
		{ID: "big", UID: 1, At: now.Add(-time.Minute), LogBytes: 100},
	}
	if diff := cmp.Diff([]string{"big"}, retention.Excess(now, retention.Caps{LogBytes: 50}, all)); diff != "" {
		t.Error(diff)
	}
}

// TestFair: whoever stays within an even share of a bound on all keeps
// everything, whatever others do.
func TestFair(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		caps := retention.Caps{All: 30, LogBytes: 3000, Evidence: 60}
		var all []retention.Ended
		for i := range 10 {
			all = append(all, retention.Ended{ID: fmt.Sprint("modest", i), UID: 1, At: now.Add(-1000 * time.Hour), LogBytes: 100, Evidence: 2})
		}
		for i := range r.IntN(500) {
			all = append(all, retention.Ended{
				ID: fmt.Sprint("greedy", i), UID: 2 + r.Uint32N(2), At: now.Add(-time.Duration(r.IntN(1000)) * time.Minute),
				LogBytes: r.Int64N(400), Evidence: r.IntN(17),
			})
		}
		gone := retention.Excess(now, caps, all)
		var n, evidence int
		var bytes int64
		for _, e := range all {
			if slices.Contains(gone, e.ID) {
				if e.UID == 1 {
					t.Fatalf("seed %d: %s goes", seed, e.ID)
				}
				continue
			}
			n, evidence, bytes = n+1, evidence+e.Evidence, bytes+e.LogBytes
		}
		if n > caps.All || bytes > caps.LogBytes || evidence > caps.Evidence {
			t.Fatalf("seed %d: %d sandboxes, %d bytes, %d pieces of evidence are left", seed, n, bytes, evidence)
		}
	}
}
