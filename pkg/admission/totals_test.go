package admission_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/admission"
	"github.com/creel-sandbox/creel/pkg/api"
)

// TestTally: whatever is counted, changed and dropped, in any order, the sums
// are those of what is there.
func TestTally(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tally admission.Tally
		there := map[string]admission.Part{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			id := fmt.Sprint(rapid.IntRange(0, 8).Draw(t, "id"))
			p := admission.Part{UID: uint32(rapid.IntRange(0, 2).Draw(t, "uid")), Above: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID).Draw(t, "above")}
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				tally.Drop(id)
				delete(there, id)
				continue
			case 1:
				p.Sum = admission.Sum{Kept: 1}
			default:
				p.Sum = admission.SumOf(rapid.Bool().Draw(t, "ephemeral"), api.Limits{
					Memory: api.Size(rapid.Int64Range(0, 1<<40).Draw(t, "memory")), CPUs: rapid.Float64Range(0, 512).Draw(t, "cpus"),
					Pids: rapid.Int64Range(0, 1<<22).Draw(t, "pids"), Disk: api.Size(rapid.Int64Range(0, 1<<40).Draw(t, "disk")),
				})
			}
			tally.Set(id, p)
			there[id] = p
		}
		want, families := map[uint32]admission.Sum{}, map[string]admission.Sum{}
		var all admission.Sum
		for _, p := range there {
			add(&all, p.Sum)
			own := want[p.UID]
			add(&own, p.Sum)
			want[p.UID] = own
			for _, id := range p.Above {
				family := families[id]
				add(&family, p.Sum)
				families[id] = family
			}
		}
		for uid := range uint32(3) {
			own, sum := tally.Sums(uid)
			if own != want[uid] || sum != all {
				t.Fatalf("uid %d: %+v of %+v, want %+v of %+v", uid, own, sum, want[uid], all)
			}
		}
		for i, id := range []string{"a", "b", "c"} {
			if got := tally.Families([]string{"a", "b", "c"})[i]; got != families[id] {
				t.Fatalf("below %s: %+v, want %+v", id, got, families[id])
			}
		}
	})
}

func add(s *admission.Sum, o admission.Sum) {
	s.Sandboxes += o.Sandboxes
	s.Kept += o.Kept
	s.Memory += o.Memory
	s.CPUs += o.CPUs
	s.Pids += o.Pids
	s.Disk += o.Disk
}

// TestTakeIsAtomic: however many spawn at one time, no total is exceeded at
// any moment, and what ends makes room again.
func TestTakeIsAtomic(t *testing.T) {
	var tally admission.Tally
	totals := admission.Totals{Sandboxes: 7, Memory: 100 << 20, CPUs: 3, Pids: 64, Disk: 50 << 20}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 500 {
				id, n := fmt.Sprintf("%d-%d", g, i), 1+(g*7+i)%30
				want := admission.SumOf(i%2 == 0, api.Limits{Memory: api.Size(n) << 20, CPUs: float64(n) / 10, Pids: int64(n), Disk: api.Size(n) << 20})
				err := tally.Take(id, admission.Part{UID: uint32(g % 2), Sum: want}, func(own, _ admission.Sum, _ []admission.Sum) error {
					return admission.Refusal(totals.Judge("ceiling.", "your", own, want))
				})
				own, _ := tally.Sums(uint32(g % 2))
				if own.Sandboxes > 7 || own.Memory > 100<<20 || own.CPUs > 3e6 || own.Pids > 64 || own.Disk > 50<<20 {
					t.Errorf("%+v is more than %+v", own, totals)
				}
				if err == nil {
					tally.Drop(id)
				} else if api.CodeOf(err) != api.CodeExhausted {
					t.Errorf("refused with %v", err)
				}
			}
		})
	}
	wg.Wait()
	if own, all := tally.Sums(0); own != (admission.Sum{}) || all != own {
		t.Errorf("left: %+v, %+v", own, all)
	}
}

// TestTotalsJudge refuses each total by name, and says how much would fit.
func TestTotalsJudge(t *testing.T) {
	have := admission.SumOf(true, api.Limits{Memory: 6 << 20, CPUs: 0.7, Pids: 6, Disk: 6 << 20})
	want := admission.SumOf(true, api.Limits{Memory: 5 << 20, CPUs: 0.4, Pids: 5, Disk: 5 << 20})
	full := admission.Totals{Sandboxes: 1, Memory: 10 << 20, CPUs: 1, Pids: 10, Disk: 10 << 20}
	rules := full.Judge("ceiling.", "your", have, want)
	if len(rules) != 5 {
		t.Fatalf("%d rules", len(rules))
	}
	for i, fix := range []string{
		"stop a sandbox, or have the operator raise ceiling.sandboxes",
		"ask for memory of at most 4M, stop a sandbox, or have the operator raise ceiling.memory",
		"ask for cpus of at most 0.3, stop a sandbox, or have the operator raise ceiling.cpus",
		"ask for pids of at most 4, stop a sandbox, or have the operator raise ceiling.pids",
		"ask for disk of at most 4M, stop a sandbox, or have the operator raise ceiling.disk",
	} {
		if r := rules[i]; r.OK || r.Fix != fix {
			t.Errorf("%+v, want the fix %q", r, fix)
		}
	}
	var e *api.Error
	if err := admission.Refusal(rules); !errors.As(err, &e) || e.Code != api.CodeExhausted || len(e.Problems) != 5 {
		t.Errorf("refusal: %v", err)
	}
	if err := admission.Refusal((admission.Totals{}).Judge("", "", have, want)); err != nil {
		t.Errorf("no bounds: %v", err)
	}
	fits := admission.Totals{Sandboxes: 2, Memory: 11 << 20, CPUs: 1.1, Pids: 11, Disk: 11 << 20}
	if err := admission.Refusal(fits.Judge("", "", have, want)); err != nil {
		t.Errorf("what just fits: %v", err)
	}
}
