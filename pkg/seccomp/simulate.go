package seccomp

import "golang.org/x/sys/unix"

// Simulate runs the program on one call, as the kernel would. A program that
// the kernel would not take (an unknown instruction, a load outside the data,
// a jump or a fall past the end) gives KillProcess: what cannot be understood
// is not allowed. It ends always, because jumps only go forward.
func Simulate(f Filter, d Data) Action {
	a, _ := run(f, d)
	return a
}

// run also counts the instructions executed.
func run(f Filter, d Data) (Action, int) {
	var acc uint32
	n := 0
	for pc := uint64(0); pc < uint64(len(f)); pc++ {
		n++
		i := f[pc]
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			v, ok := d.word(i.K)
			if !ok {
				return KillProcess, n
			}
			acc = v
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += uint64(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			pc += branch(acc == i.K, i)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			pc += branch(acc >= i.K, i)
		case unix.BPF_RET | unix.BPF_K:
			return Action(i.K), n
		default:
			return KillProcess, n
		}
	}
	return KillProcess, n
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
