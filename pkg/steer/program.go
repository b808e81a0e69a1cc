package steer

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Keys of the map. Those of IPv6 follow on those of IPv4.
const (
	keyTCP  = 0
	keyUDP  = 2
	sockets = 4
)

func mapSpec(id string) *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: object(id), Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: sockets}
}

// object is what the kernel's objects of a sandbox are called: it takes 15
// bytes.
func object(id string) string {
	const most = 15
	name := "creel_" + id
	return name[:min(len(name), most)]
}

// Offsets in struct bpf_sk_lookup (include/uapi/linux/bpf.h).
const (
	offFamily    = 8
	offProtocol  = 12
	offLocalIP4  = 40
	offLocalIP6  = 44
	offLocalPort = 60
)

// ProxyPort is the port of 127.0.0.1 at which the TCP socket is a proxy, whoever
// listens there: programs that want one are given http://127.0.0.1:3128.
const ProxyPort = 3128

// WorkloadPort is the port of 127.0.0.1 at which the TCP socket serves the
// sandbox's identity, whoever listens there: programs are told of it by
// SPIFFE_ENDPOINT_SOCKET.
const WorkloadPort = 3129

// What the program returns (enum sk_action).
const (
	skDrop = 0
	skPass = 1
)

// program chooses the socket, see the package's comment. Passing without one
// has the kernel look as it does without a program.
func program(id string, m *ebpf.Map) *ebpf.ProgramSpec {
	const (
		ctx, key   = asm.R6, asm.R7
		sock       = asm.R8
		slot       = -4
		loopback   = 127
		dnsPort    = 53
		lastOfIPv6 = 1 // ::1
	)
	ins := asm.Instructions{
		asm.Mov.Reg(ctx, asm.R1),
		asm.LoadMem(asm.R2, ctx, offFamily, asm.Word),
		asm.JEq.Imm(asm.R2, unix.AF_INET, "ipv4"),
		asm.JEq.Imm(asm.R2, unix.AF_INET6, "ipv6"),
		asm.Ja.Label("drop"),

		asm.LoadMem(asm.R2, ctx, offLocalIP4, asm.Word).WithSymbol("ipv4"),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.RSh.Imm(asm.R3, 24),
		asm.JNE.Imm(asm.R3, loopback, "not loopback 4"),
		asm.JNE.Imm(asm.R2, loopback<<24|1, "pass"),
		asm.LoadMem(asm.R2, ctx, offProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R2, ctx, offLocalPort, asm.Word),
		asm.JEq.Imm(asm.R2, WorkloadPort, "ours"),
		asm.JNE.Imm(asm.R2, ProxyPort, "pass"),
		asm.Mov.Imm(key, 0).WithSymbol("ours"),
		asm.Ja.Label("choose"),
		asm.Mov.Imm(key, 0).WithSymbol("not loopback 4"),
		asm.Ja.Label("protocol"),

		asm.LoadMem(asm.R2, ctx, offLocalIP6, asm.Word).WithSymbol("ipv6"),
	}
	for i := int16(1); i < 3; i++ {
		ins = append(ins, asm.LoadMem(asm.R3, ctx, offLocalIP6+4*i, asm.Word), asm.Or.Reg(asm.R2, asm.R3))
	}
	ins = append(ins,
		asm.JNE.Imm(asm.R2, 0, "not loopback"),
		asm.LoadMem(asm.R2, ctx, offLocalIP6+12, asm.Word),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.JEq.Imm(asm.R2, lastOfIPv6, "pass"),
		asm.Mov.Imm(key, 1).WithSymbol("not loopback"),

		asm.LoadMem(asm.R2, ctx, offProtocol, asm.Word).WithSymbol("protocol"),
		asm.JEq.Imm(asm.R2, unix.IPPROTO_TCP, "choose"),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_UDP, "drop"),
		asm.LoadMem(asm.R2, ctx, offLocalPort, asm.Word),
		asm.JNE.Imm(asm.R2, dnsPort, "drop"),
		asm.Add.Imm(key, keyUDP),

		asm.StoreMem(asm.R10, slot, key, asm.Word).WithSymbol("choose"),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, slot),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"), // nobody serves it
		asm.Mov.Reg(sock, asm.R0),
		asm.Mov.Reg(asm.R1, ctx),
		asm.Mov.Reg(asm.R2, sock),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(key, asm.R0),
		asm.Mov.Reg(asm.R1, sock),
		asm.FnSkRelease.Call(),
		asm.JNE.Imm(key, 0, "drop"), // it was not taken: not for another to have

		asm.Mov.Imm(asm.R0, skPass).WithSymbol("pass"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, skDrop).WithSymbol("drop"),
		asm.Return())
	return &ebpf.ProgramSpec{
		Name: object(id), Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Apache-2.0", Instructions: ins,
	}
}
