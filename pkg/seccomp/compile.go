package seccomp

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// maxInstructions is the kernel's limit on one filter (BPF_MAXINSNS).
const maxInstructions = 4096

// Offsets in struct seccomp_data; both architectures are little-endian.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// Compile makes the filter for an architecture ("amd64" or "arm64").
//
// The program finds the call's number by bisection over runs of numbers with
// one outcome, about seven comparisons, and only then looks at arguments.
// Verdicts that need no argument load nothing but arch and nr, so that the
// kernel (since 5.11) answers them from a bitmap without running the filter.
func (p *Profile) Compile(arch string) (Filter, error) {
	m, ok := machines[arch]
	if !ok {
		return nil, fmt.Errorf("compile seccomp profile %q: architecture %q is not one of %v", p.Name, arch, Architectures)
	}
	prog := []unix.SockFilter{
		ld(offArch),
		jump(unix.BPF_JEQ, m.audit, 1, 0),
		ret(KillProcess),
		ld(offNr),
	}
	if m.x32 {
		prog = append(prog,
			jump(unix.BPF_JGE, x32Bit, 0, 3),
			jump(unix.BPF_JEQ, noCall, 0, 1),
			ret(p.Default),
			ret(KillProcess),
		)
	}
	prog = append(prog, search(p.segments(arch))...)
	if len(prog) > maxInstructions {
		return nil, fmt.Errorf("compile seccomp profile %q: %d instructions, the kernel takes %d", p.Name, len(prog), maxInstructions)
	}
	return prog, nil
}

// segment is a run of numbers, from start to the next segment, whose calls
// all have the same outcome.
type segment struct {
	start   uint32
	clauses []clause // the last is unconditional
}

func (p *Profile) segments(arch string) []segment {
	byNr := p.clauses(arch)
	nrs := make([]uint32, 0, len(byNr))
	for nr := range byNr {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	otherwise := clause{action: p.Default}
	segs := []segment{{0, []clause{otherwise}}}
	add := func(start uint32, cs []clause) {
		last := &segs[len(segs)-1]
		switch {
		case equal(last.clauses, cs):
		case last.start == start:
			last.clauses = cs
		default:
			segs = append(segs, segment{start, cs})
		}
	}
	next := uint32(0)
	for _, nr := range nrs {
		if nr > next {
			add(next, []clause{otherwise})
		}
		cs := byNr[nr]
		if len(cs[len(cs)-1].when) != 0 {
			cs = append(slices.Clip(cs), otherwise)
		}
		add(nr, cs)
		next = nr + 1
	}
	add(next, []clause{otherwise})
	return segs
}

func equal(a, b []clause) bool {
	return slices.EqualFunc(a, b, func(x, y clause) bool {
		return x.action == y.action && slices.EqualFunc(x.when, y.when, func(c, d Cond) bool {
			return c.Arg == d.Arg && c.Bits == d.Bits && c.Mask == d.Mask && c.Not == d.Not && slices.Equal(c.Values, d.Values)
		})
	})
}

// search is a balanced tree over the segments. The accumulator holds the
// number. Every path ends in a return, so code after it is never fallen into.
func search(segs []segment) []unix.SockFilter {
	if len(segs) == 1 {
		var prog []unix.SockFilter
		for _, c := range segs[0].clauses {
			prog = append(prog, c.compile()...)
		}
		return prog
	}
	mid := len(segs) / 2
	low, high := search(segs[:mid]), search(segs[mid:])
	start := segs[mid].start
	var prog []unix.SockFilter
	if len(low) <= maxJump {
		prog = append(prog, jump(unix.BPF_JGE, start, len(low), 0))
	} else {
		// A conditional jump reaches 255 instructions, an unconditional one all.
		prog = append(prog, jump(unix.BPF_JGE, start, 0, 1), always(len(low)))
	}
	return append(append(prog, low...), high...)
}

const maxJump = 255

// compile is code that returns the clause's action if its conditions hold,
// and goes on behind itself if not.
func (c clause) compile() []unix.SockFilter {
	prog := []unix.SockFilter{ret(c.action)}
	for _, w := range slices.Backward(c.when) {
		prog = append(w.compile(len(prog)), prog...)
	}
	return prog
}

// compile is code that skips the next body instructions unless the condition
// holds. Its shape is
//
//	compare with each value: equal jumps to MATCH
//	(none is equal)          in: ja past body      not_in: ja body
//	MATCH                    in: body              not_in: ja past body
func (c Cond) compile(body int) []unix.SockFilter {
	tail := []unix.SockFilter{always(body)} // in: falls to here when none is equal
	match := 1                              // how far MATCH is behind the comparison
	if c.Not {
		tail = []unix.SockFilter{always(1), always(body)}
	}
	prog := tail
	for _, v := range slices.Backward(c.Values) {
		code := c.compare(v, match)
		prog = append(code, prog...)
		match += len(code)
	}
	return append(c.preload(), prog...)
}

// preload is done once: a 32-bit value stays in the accumulator while it is
// compared; a 64-bit one needs both words each time.
func (c Cond) preload() []unix.SockFilter {
	if c.Bits == 64 {
		return nil
	}
	return word(c.Arg, 0, uint32(c.Mask))
}

// compare jumps to match, counted from its own end, if the argument is v.
func (c Cond) compare(v uint64, match int) []unix.SockFilter {
	if c.Bits == 32 {
		return []unix.SockFilter{jump(unix.BPF_JEQ, uint32(v), match, 0)}
	}
	low := append(word(c.Arg, 0, uint32(c.Mask)), jump(unix.BPF_JEQ, uint32(v), match, 0))
	high := append(word(c.Arg, 4, uint32(c.Mask>>32)), jump(unix.BPF_JEQ, uint32(v>>32), 0, len(low)))
	return append(high, low...)
}

// word loads half of an argument and masks it.
func word(arg, half int, mask uint32) []unix.SockFilter {
	prog := []unix.SockFilter{ld(uint32(offArgs + 8*arg + half))}
	if mask != ^uint32(0) {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	}
	return prog
}

func ld(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

// jump panics when a distance does not fit: that is a mistake of this
// package's, found by compiling the shipped profiles in any test.
func jump(op uint16, k uint32, yes, no int) unix.SockFilter {
	if yes > maxJump || no > maxJump {
		panic("seccomp: conditional jump too far")
	}
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
}

func always(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

func ret(a Action) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(a)}
}
