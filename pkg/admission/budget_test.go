package admission_test

import (
	"testing"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestBudgets: a ceiling's budgets are what a request has that names none, and the
// most that it may name.
func TestBudgets(t *testing.T) {
	pol := policy(t)
	c := &admission.Ceiling{
		Name: "default", Profiles: []string{"*"}, Runtimes: []string{"*"}, Images: []string{"box"}, Egress: []string{"a.example"},
		Budgets: api.Limits{EgressBytes: 1 << 20, EgressRequests: 10},
	}
	for _, tt := range []struct {
		name      string
		asked     api.Limits
		allowed   bool
		bytes     api.Size
		conns, rs int64
	}{
		{"nothing", api.Limits{}, true, 1 << 20, 0, 10},
		{"less", api.Limits{EgressBytes: 1 << 10, EgressRequests: 5, EgressConnections: 7}, true, 1 << 10, 7, 5},
		{"as much", api.Limits{EgressBytes: 1 << 20, EgressRequests: 10}, true, 1 << 20, 0, 10},
		{"more bytes", api.Limits{EgressBytes: 1<<20 + 1}, false, 1<<20 + 1, 0, 10},
		{"more requests", api.Limits{EgressRequests: 11}, false, 1 << 20, 0, 11},
	} {
		req := c.Narrow(api.SpawnRequest{Image: "base", Network: "policy", Egress: []string{"a.example"}, Limits: tt.asked}, pol)
		a, err := admission.Resolve(req, pol)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if l := a.Limits; l.EgressBytes != tt.bytes || l.EgressConnections != tt.conns || l.EgressRequests != tt.rs {
			t.Errorf("%s: has %v, %v, %v", tt.name, l.EgressBytes, l.EgressConnections, l.EgressRequests)
		}
		if err := admission.Refusal(c.Judge(a, admission.Facts{})); (err == nil) != tt.allowed {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// Who has no bound from elsewhere does not get past it.
	a, err := admission.Resolve(api.SpawnRequest{Image: "base", Network: "policy", Egress: []string{"a.example"}}, pol)
	if err != nil {
		t.Fatal(err)
	}
	if err := admission.Refusal(c.Judge(a, admission.Facts{})); err == nil {
		t.Error("without a bound it is let in")
	}
}
