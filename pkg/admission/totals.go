package admission

import (
	"fmt"
	"math"
	"sync"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Totals bound sums over sandboxes that have not ended; zero is no bound.
type Totals struct {
	Sandboxes int
	Memory    api.Size
	CPUs      float64
	Pids      int64
	Disk      api.Size // of writable layers; a sparse one counts whole
}

// Sum is what some sandboxes may use together, or one.
type Sum struct {
	Sandboxes int // that have not ended
	Kept      int // that have ended, and are not being removed
	Memory    int64
	CPUs      int64 // millionths: they are added and taken away for ever
	Pids      int64
	Disk      int64
}

// SumOf is what one sandbox counts for while it has not ended.
func SumOf(ephemeral bool, l api.Limits) Sum {
	s := Sum{Sandboxes: 1, Memory: int64(l.Memory), CPUs: millionths(l.CPUs), Pids: l.Pids}
	if ephemeral {
		s.Disk = int64(l.Disk)
	}
	return s
}

func millionths(cpus float64) int64 { return int64(math.Round(cpus * 1e6)) }

func (s Sum) plus(o Sum, sign int64) Sum {
	s.Sandboxes += int(sign) * o.Sandboxes
	s.Kept += int(sign) * o.Kept
	s.Memory += sign * o.Memory
	s.CPUs += sign * o.CPUs
	s.Pids += sign * o.Pids
	s.Disk += sign * o.Disk
	return s
}

// Judge holds totals against what is there and what is wanted besides. prefix
// is where the bounds are set, whose is whose sandboxes are summed.
func (t Totals) Judge(prefix, whose string, have, want Sum) []api.Rule {
	with := have.plus(want, 1)
	size := func(n int64) string { return api.Size(n).String() }
	count := func(n int64) string { return fmt.Sprint(n) }
	cpus := func(n int64) string { return fmt.Sprint(float64(n) / 1e6) }
	var rs []api.Rule
	for _, b := range []struct {
		key        string
		most       int64
		want, with int64
		text       func(int64) string
	}{
		{"sandboxes", int64(t.Sandboxes), int64(want.Sandboxes), int64(with.Sandboxes), count},
		{"memory", int64(t.Memory), want.Memory, with.Memory, size},
		{"cpus", millionths(t.CPUs), want.CPUs, with.CPUs, cpus},
		{"pids", t.Pids, want.Pids, with.Pids, count},
		{"disk", int64(t.Disk), want.Disk, with.Disk, size},
	} {
		if b.most <= 0 {
			continue
		}
		r := api.Rule{
			Rule: prefix + b.key, Field: "limits." + b.key, Total: true, OK: b.with <= b.most || b.want == 0,
			Asked: fmt.Sprintf("%s, with this one %s", b.text(b.with-b.want), b.text(b.with)), Allowed: b.text(b.most),
		}
		if b.key == "sandboxes" {
			r.Field = ""
		}
		if !r.OK {
			r.Whose = whose
			r.Fix = "stop a sandbox, ask for less, or have the operator raise it"
			switch left := b.most - (b.with - b.want); {
			case b.key == "sandboxes":
				r.Fix = "stop a sandbox, or have the operator raise " + r.Rule
			case left > 0:
				r.Fix = fmt.Sprintf("ask for %s of at most %s, stop a sandbox, or have the operator raise %s", b.key, b.text(left), r.Rule)
			}
		}
		rs = append(rs, r)
	}
	return rs
}

// Tally is what all sandboxes, those of each user, and the descendants of each
// sandbox sum up to. It costs the same however many there are. The zero value
// is empty.
type Tally struct {
	mu       sync.Mutex
	all      Sum
	users    map[uint32]Sum
	families map[string]Sum // by the sandbox whose descendants are summed
	parts    map[string]Part
}

// Part is one sandbox of a tally.
type Part struct {
	UID uint32
	Sum Sum
	// Above are the ids of its ancestors, its parent first.
	Above []string
}

// Set makes a sandbox count as p, whatever it counted as before.
func (t *Tally) Set(id string, p Part) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setLocked(id, p)
}

// Drop makes it count as nothing.
func (t *Tally) Drop(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setLocked(id, Part{})
}

func (t *Tally) setLocked(id string, p Part) {
	if t.users == nil {
		t.users, t.families, t.parts = map[uint32]Sum{}, map[string]Sum{}, map[string]Part{}
	}
	if old, ok := t.parts[id]; ok {
		t.addLocked(old, -1)
		delete(t.parts, id)
	}
	if p.Sum != (Sum{}) {
		t.parts[id] = p
		t.addLocked(p, 1)
	}
}

func (t *Tally) addLocked(p Part, sign int64) {
	t.all = t.all.plus(p.Sum, sign)
	add(t.users, p.UID, p.Sum, sign)
	for _, id := range p.Above {
		add(t.families, id, p.Sum, sign)
	}
}

func add[K comparable](sums map[K]Sum, k K, s Sum, sign int64) {
	if s = sums[k].plus(s, sign); s == (Sum{}) {
		delete(sums, k)
	} else {
		sums[k] = s
	}
}

// Sums returns what the sandboxes of one user add up to, and those of all users.
func (t *Tally) Sums(uid uint32) (own, all Sum) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.users[uid], t.all
}

// Families are what the descendants of each of some sandboxes count for now.
func (t *Tally) Families(of []string) []Sum {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.familiesLocked(of)
}

func (t *Tally) familiesLocked(of []string) []Sum {
	var out []Sum
	for _, id := range of {
		out = append(out, t.families[id])
	}
	return out
}

// Take is Set for a new sandbox, if fits, which is given the sums without it
// of its user, of all, and of the descendants of each of its ancestors,
// returns nil. Of two that fit only one at a time, one is let in.
func (t *Tally) Take(id string, p Part, fits func(own, all Sum, families []Sum) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := fits(t.users[p.UID], t.all, t.familiesLocked(p.Above)); err != nil {
		return err
	}
	t.setLocked(id, p)
	return nil
}
