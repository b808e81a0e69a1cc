package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/store"
)

func TestQuantile(t *testing.T) {
	for _, tt := range []struct {
		samples  []float64
		p50, p95 float64
	}{
		{nil, 0, 0},
		{[]float64{3}, 3, 3},
		{[]float64{4, 1}, 2.5, 4},
		{[]float64{9, 1, 5}, 5, 9},
		{[]float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, 10.5, 20},
	} {
		if p50, p95 := quantile(tt.samples, 0.5), quantile(tt.samples, 0.95); p50 != tt.p50 || p95 != tt.p95 {
			t.Errorf("%v: p50 %v, p95 %v, want %v, %v", tt.samples, p50, p95, tt.p50, tt.p95)
		}
	}
}

func TestTargets(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		name string
		base []float64
		t    target
		met  *bool
	}{
		{"no target", nil, target{}, nil},
		{"below", nil, target{most: 5}, &yes},
		{"above", nil, target{most: 3.9}, &no},
		{"95 % below", nil, target{p95: 4}, &yes},
		{"95 % above", nil, target{most: 5, p95: 3.9}, &no},
		{"ratio kept", []float64{40}, target{most: 5, ratio: 0.125}, &yes},
		{"ratio missed", []float64{31}, target{most: 5, ratio: 0.125}, &no},
		{"only ratio kept", []float64{40}, target{most: 3, ratio: 0.125}, &no},
	} {
		var r report
		r.add("m", "ms", []float64{4}, "", tt.base, tt.t)
		if diff := cmp.Diff(tt.met, r.list[0].Met); diff != "" {
			t.Errorf("%s: met (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestReport(t *testing.T) {
	var r report
	r.add("spawn_cold", "ms", []float64{60, 62}, "bare containerd", []float64{50}, target{ratio: 1.3})
	r.add("daemon_rss", "MB", []float64{30}, "", nil, target{most: 60})
	path := filepath.Join(t.TempDir(), "bench.json")
	for range 2 { // a second run replaces the first
		if err := r.write(path); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{
		{"name": "spawn_cold", "unit": "ms", "n": 2.0, "p50": 61.0, "p95": 62.0, "baseline": "bare containerd", "baseline_p50": 50.0, "ratio": 1.22, "target": "ratio <= 1.3", "met": true},
		{"name": "daemon_rss", "unit": "MB", "n": 1.0, "p50": 30.0, "p95": 30.0, "baseline": "", "baseline_p50": nil, "ratio": nil, "target": "<= 60 MB", "met": true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bench.json (-want +got):\n%s", diff)
	}
	var b strings.Builder
	if err := r.table(&b); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "1.220") || strings.Count(b.String(), "\n") != 3 {
		t.Errorf("table:\n%s", b.String())
	}
}

// TestDecision: a step that is called otherwise some day is an error, not 0 ms.
func TestDecision(t *testing.T) {
	trace := []api.Step{{Name: "admission", Took: 0.25}, {Name: "queue", Took: 0.5}, {Name: "image", Took: 8}, {Name: "totals", Took: 1}, {Name: "intent", Took: 4}}
	if ms, err := decision(trace); ms != 1.75 || err != nil {
		t.Errorf("%v ms, %v; want 1.75", ms, err)
	}
	if ms, err := decision(trace[:3]); err == nil {
		t.Errorf("%v ms without the step totals", ms)
	}
}

// TestFillStore: the past that admission is measured with is as large as it is
// said to be.
func TestFillStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := fillStore(path); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n, users := 0, map[uint32]bool{}
	err = s.Sandboxes(func(r store.Record) error {
		if r.Sandbox.State == api.StateStopped && r.Clean {
			n++
		}
		users[r.Sandbox.Caller.UID] = true
		return nil
	})
	agents, aerr := s.Agents()
	if err != nil || aerr != nil || n != 10_000 || len(agents) != 1000 || len(users) != 10 {
		t.Errorf("%d past sandboxes, %d agents, %d users, %v, %v", n, len(agents), len(users), err, aerr)
	}
}
