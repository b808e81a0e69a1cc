package seccomp

import "slices"

// Data is one system call as a filter sees it (struct seccomp_data).
type Data struct {
	Nr   uint32
	Arch uint32 // AUDIT_ARCH_*
	IP   uint64
	Args [6]uint64
}

// Evaluate decides a call by reading the rules one after the other. It is
// what a compiled filter must agree with; tests compare the two.
func (p *Profile) Evaluate(arch string, d Data) Action {
	m, ok := machines[arch]
	if !ok || d.Arch != m.audit || m.x32 && d.Nr >= x32Bit && d.Nr != noCall {
		return KillProcess
	}
	for _, c := range p.clauses(arch)[d.Nr] {
		if c.holds(d) {
			return c.action
		}
	}
	return p.Default
}

// clause is a rule as it applies to one system call.
type clause struct {
	when   []Cond
	action Action
}

func (c clause) holds(d Data) bool {
	for _, w := range c.when {
		if !w.Holds(d.Args[w.Arg]) {
			return false
		}
	}
	return true
}

// Holds says whether the condition is true of the argument's value.
func (c Cond) Holds(arg uint64) bool {
	return slices.Contains(c.Values, arg&c.Mask) != c.Not
}

// clauses is every call that has rules, with those that can be reached.
func (p *Profile) clauses(arch string) map[uint32][]clause {
	out := map[uint32][]clause{}
	closed := map[uint32]bool{}
	for _, g := range p.Groups {
		for _, r := range g.Rules {
			if !r.on(arch) {
				continue
			}
			for _, name := range r.Syscalls {
				nr, ok := Number(arch, name)
				if !ok || closed[nr] {
					continue // Load refuses names that do not exist
				}
				out[nr] = append(out[nr], clause{r.When, r.Action})
				closed[nr] = len(r.When) == 0
			}
		}
	}
	return out
}

func (r Rule) on(arch string) bool {
	return len(r.Arch) == 0 || slices.Contains(r.Arch, arch)
}
