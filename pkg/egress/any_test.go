package egress_test

import (
	"testing"

	"github.com/creel-sandbox/creel/pkg/egress"
)

// TestAny: a rule for every name has every name but the box's own, and is told.
func TestAny(t *testing.T) {
	every, problems := egress.ParseLines("one that observes", "", []string{"*", "tcp *:22"})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := egress.NewSnapshot(every)
	for _, tt := range []struct {
		host    egress.Name
		port    uint16
		allowed bool
	}{
		{"a.example", 443, true},
		{"a.b.c.example", 443, true},
		{"a.example", 22, true},
		{"a.example", 80, false},
		{egress.BoxName, 443, false},
		{egress.BoxName, 22, false},
		{"x.creel.internal", 443, false},
		{"db.agent.creel.internal", 443, false},
	} {
		if _, err := s.Connect(tt.host, tt.port); (err == nil) != tt.allowed {
			t.Errorf("%s:%d: %v", tt.host, tt.port, err)
		}
	}
	for rule, beyond := range map[string]bool{
		"a.example": false, "*.b.example": false, "*": false, "http a.example": true, "tcp host.creel.internal:22": true, "10.0.0.0/8:22": true,
	} {
		p, problems := egress.ParseLines("", "", []string{rule})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		if got := len(p.Beyond(every)) > 0; got != beyond {
			t.Errorf("%s is beyond it: %v", rule, got)
		}
		if (p.Any() != "") != (rule == "*") {
			t.Errorf("%s: any is %q", rule, p.Any())
		}
	}
	narrow, _ := egress.ParseLines("a ceiling", "", []string{"*.example.com"})
	if got := every.Beyond(narrow); len(got) != 2 {
		t.Errorf("beyond one that is narrow: %v", got)
	}
	if _, err := egress.NewSnapshot(every, narrow).Connect("a.example.org", 443); err == nil {
		t.Error("it widens another")
	}
}
