package egress_test

import (
	"sync/atomic"
	"testing"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// TestOnce: what is refused otherwise is let one time, whoever asks in between.
func TestOnce(t *testing.T) {
	lines := func(rules ...string) *egress.Policy {
		t.Helper()
		p, problems := egress.ParseLines("a party", "", rules)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return p
	}
	var used atomic.Bool
	told := 0
	normal := lines("a.example.com", "https read.example.com GET /**")
	s := egress.NewSnapshot(normal).WithOnce(egress.NewOnce(&used, func() { told++ }, lines("a.example.com", "b.example.com", "https read.example.com POST /x")))
	for range 3 {
		if g, err := s.Connect("a.example.com", 443); err != nil || !g.Take() || !g.Take() {
			t.Errorf("what is allowed anyhow: %v", err)
		}
	}
	if g, err := s.Request(egress.HTTPS, "read.example.com", 443, "GET", "/"); err != nil || !g.Take() {
		t.Errorf("a request that is allowed anyhow: %v", err)
	}
	if _, err := s.Connect("c.example.com", 443); err == nil {
		t.Error("another is allowed")
	}
	if _, err := s.Resolves("b.example.com"); err != nil {
		t.Error(err)
	}
	var grants []egress.Grant
	for range 3 {
		g, err := s.Connect("b.example.com", 443)
		if err != nil || g.Kinds&egress.TLS == 0 {
			t.Fatal(g, err)
		}
		grants = append(grants, g)
	}
	req, err := s.Request(egress.HTTPS, "read.example.com", 443, "POST", "/x")
	if err != nil {
		t.Fatal(err)
	}
	if !grants[1].Take() || grants[0].Take() || grants[1].Take() || req.Take() || told != 1 || !used.Load() {
		t.Errorf("taken %d times", told)
	}
	if _, err := s.Connect("b.example.com", 443); err == nil {
		t.Error("allowed after it was used")
	}
	if _, err := s.Resolves("b.example.com"); err == nil {
		t.Error("resolved after it was used")
	}
}
