package seccomp

import "golang.org/x/sys/unix"

// Simulate runs the program on one call, as the kernel would. A program that
// the kernel would not take (an unknown instruction, a load outside the data,
// a jump or a fall past the end) gives KillProcess: what cannot be understood
// is not allowed. It ends always, because jumps only go forward.
func Simulate(f Filter, d Data) Action {
	a, _, _ := run(f, d)
	return a
}

// Steps is how many instructions the kernel executes to decide the call.
func (f Filter) Steps(d Data) int {
	_, n, _ := run(f, d)
	return n
}

// Constant says whether the verdict on a number is found without looking at
// an argument. The kernel then keeps an allow in a bitmap and does not run
// the filter (seccomp_cache_prepare, Linux 5.11).
func (f Filter) Constant(arch, nr uint32) bool {
	_, _, looked := run(f, Data{Arch: arch, Nr: nr})
	return !looked
}

// run also counts the instructions executed, and says whether one of them
// loaded anything but arch and nr.
func run(f Filter, d Data) (a Action, n int, looked bool) {
	var acc uint32
	for pc := uint64(0); pc < uint64(len(f)); pc++ {
		n++
		i := f[pc]
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			v, ok := d.word(i.K)
			if !ok {
				return KillProcess, n, looked
			}
			acc = v
			looked = looked || i.K != offNr && i.K != offArch
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += uint64(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			pc += branch(acc == i.K, i)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			pc += branch(acc >= i.K, i)
		case unix.BPF_RET | unix.BPF_K:
			return Action(i.K), n, looked
		default:
			return KillProcess, n, looked
		}
	}
	return KillProcess, n, looked
}

func branch(yes bool, i unix.SockFilter) uint64 {
	if yes {
		return uint64(i.Jt)
	}
	return uint64(i.Jf)
}

// word is the 32 bits at an offset of struct seccomp_data.
func (d Data) word(off uint32) (uint32, bool) {
	switch {
	case off%4 != 0 || off >= offArgs+48:
		return 0, false
	case off == offNr:
		return d.Nr, true
	case off == offArch:
		return d.Arch, true
	}
	v := d.IP
	if off >= offArgs {
		v = d.Args[(off-offArgs)/8]
	}
	if off%8 == 4 {
		v >>= 32
	}
	return uint32(v), true
}
