package seccomp

import "slices"

// Within says that a allows nothing that b does not: every call that a allows
// is one that b allows, too. It is not told of every pair of which that is
// true: it compares rules, and a condition only with the same one.
func Within(a, b *Profile) bool {
	if a.Default == Allow {
		return false
	}
	for _, arch := range Architectures {
		other := byCall(b, arch)
		for name, rules := range byCall(a, arch) {
			if !callWithin(rules, other[name]) {
				return false
			}
		}
	}
	return true
}

// byCall are a profile's rules for each system call, in order of precedence.
func byCall(p *Profile, arch string) map[string][]Rule {
	out := map[string][]Rule{}
	for _, g := range p.Groups {
		for _, r := range g.Rules {
			if len(r.Arch) > 0 && !slices.Contains(r.Arch, arch) {
				continue
			}
			for _, name := range r.Syscalls {
				out[name] = append(out[name], r)
			}
		}
	}
	return out
}

// callWithin is Within for the rules of one system call.
func callWithin(as, bs []Rule) bool {
	for i, a := range as {
		if a.Action == Allow && !covered(a, as[:i], bs) {
			return false
		}
	}
	return true
}

// covered says whether bs allow what a allows and the rules before it leave.
func covered(a Rule, before, bs []Rule) bool {
	for _, b := range bs {
		if b.Action == Allow {
			if implies(a.When, b.When) {
				return true
			}
			continue // it allows some of it, and takes nothing
		}
		// What b refuses must be refused by a's profile as well, before it
		// comes to a, or have nothing to do with a.
		refused := slices.ContainsFunc(before, func(r Rule) bool { return r.Action != Allow && implies(b.When, r.When) })
		if !refused {
			return false
		}
	}
	return false // the default refuses it
}

// implies says whether what meets all of a's conditions meets all of b's.
func implies(a, b []Cond) bool {
	for _, want := range b {
		if !slices.ContainsFunc(a, func(have Cond) bool { return narrower(have, want) }) {
			return false
		}
	}
	return true
}

// narrower says whether a value that meets a meets b: conditions on the same
// bits of the same argument.
func narrower(a, b Cond) bool {
	if a.Arg != b.Arg || a.Bits != b.Bits || a.Mask != b.Mask {
		return false
	}
	in := func(list []uint64) func(uint64) bool {
		return func(v uint64) bool { return slices.Contains(list, v) }
	}
	every := func(list []uint64, is func(uint64) bool) bool {
		return !slices.ContainsFunc(list, func(v uint64) bool { return !is(v) })
	}
	switch {
	case !a.Not && !b.Not:
		return every(a.Values, in(b.Values))
	case a.Not && b.Not:
		return every(b.Values, in(a.Values))
	case !a.Not && b.Not:
		return !slices.ContainsFunc(a.Values, in(b.Values))
	}
	return false
}
