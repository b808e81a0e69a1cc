package unixpeers

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// place is a hook of the kernel's (include/linux/lsm_hook_defs.h).
type place struct {
	hook string
	// socket says that the hook's two arguments are struct socket, not sock.
	socket bool
}

var places = []place{
	{hook: "unix_stream_connect"},
	{hook: "unix_may_send", socket: true},
}

// programs are written with the offsets of the running kernel's own BTF, so
// that there is nothing to relocate and nothing to compile.
func programs(list *ebpf.Map) ([]*ebpf.ProgramSpec, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("the kernel's BTF: %w", err)
	}
	sk, err1 := offset(kernel, "socket", "sk")
	net, err2 := offset(kernel, "sock", "__sk_common", "skc_net", "net")
	cookie, err3 := offset(kernel, "net", "net_cookie")
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	var out []*ebpf.ProgramSpec
	for _, p := range places {
		ins := asm.Instructions{asm.Mov.Reg(asm.R9, asm.R1)}
		for i, r := range []asm.Register{asm.R6, asm.R7} {
			known := fmt.Sprintf("known%d", i)
			ins = append(ins, asm.LoadMem(r, asm.R9, int16(8*i), asm.DWord))
			if p.socket {
				// A socket that is being closed has none: then r is zero,
				// which is no sandbox's cookie.
				ins = append(ins, asm.LoadMem(r, r, sk, asm.DWord), asm.JEq.Imm(r, 0, known))
			}
			ins = append(ins, asm.LoadMem(r, r, net, asm.DWord), asm.LoadMem(r, r, cookie, asm.DWord))
			ins = append(ins, asm.Mov.Reg(r, r).WithSymbol(known))
		}
		out = append(out, &ebpf.ProgramSpec{
			Name: "creel_" + p.hook[:min(len(p.hook), 9)], Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac,
			AttachTo: p.hook, License: "GPL",
			Instructions: append(ins, refuse(list.FD())...),
		})
	}
	return out, nil
}

// refuse ends a program with EACCES where the cookies in R6 and R7 differ and
// one is on the list, and with 0 otherwise.
func refuse(list int) asm.Instructions {
	ins := asm.Instructions{asm.JEq.Reg(asm.R6, asm.R7, "allow")}
	for i, cookie := range []asm.Register{asm.R6, asm.R7} {
		slot := int16(-8 * (i + 1))
		ins = append(ins,
			asm.StoreMem(asm.R10, slot, cookie, asm.DWord),
			asm.LoadMapPtr(asm.R1, list),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, int32(slot)),
			asm.FnMapLookupElem.Call(),
			asm.JNE.Imm(asm.R0, 0, "refuse"))
	}
	return append(ins,
		asm.Mov.Imm(asm.R0, 0).WithSymbol("allow"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, -int32(unix.EACCES)).WithSymbol("refuse"),
		asm.Return())
}

// offset is where a member is in a struct of the kernel's, in bytes. Members
// of members follow by name.
func offset(kernel *btf.Spec, name string, members ...string) (int16, error) {
	var in *btf.Struct
	if err := kernel.TypeByName(name, &in); err != nil {
		return 0, fmt.Errorf("struct %s: %w", name, err)
	}
	var t btf.Type = in
	var bytes uint32
	for _, m := range members {
		off, next, err := member(t, m)
		if err != nil {
			return 0, fmt.Errorf("struct %s: %w", name, err)
		}
		bytes += off
		t = next
	}
	const most = 1 << 15
	if bytes >= most {
		return 0, fmt.Errorf("struct %s: %s is %d bytes in", name, members[len(members)-1], bytes)
	}
	return int16(bytes), nil
}

// member finds a member of a struct or union, also in those without a name.
func member(t btf.Type, name string) (off uint32, _ btf.Type, err error) {
	var members []btf.Member
	switch s := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = s.Members
	case *btf.Union:
		members = s.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m.Offset.Bytes(), m.Type, nil
		}
		if m.Name != "" {
			continue
		}
		if off, t, err := member(m.Type, name); err == nil {
			return m.Offset.Bytes() + off, t, nil
		}
	}
	return 0, nil, fmt.Errorf("no member %s", name)
}
