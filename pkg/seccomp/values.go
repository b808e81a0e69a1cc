package seccomp

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// names are the constants a profile may use. Only those whose number is the
// same on every architecture belong here.
var names = map[string]uint64{
	"AF_UNIX":     unix.AF_UNIX,
	"AF_INET":     unix.AF_INET,
	"AF_INET6":    unix.AF_INET6,
	"AF_NETLINK":  unix.AF_NETLINK,
	"PF_UNIX":     unix.AF_UNIX,
	"IPPROTO_TCP": unix.IPPROTO_TCP,
	"IPPROTO_UDP": unix.IPPROTO_UDP,

	"NETLINK_ROUTE":  unix.NETLINK_ROUTE,
	"SOCK_STREAM":    unix.SOCK_STREAM,
	"SOCK_DGRAM":     unix.SOCK_DGRAM,
	"SOCK_RAW":       unix.SOCK_RAW,
	"SOCK_SEQPACKET": unix.SOCK_SEQPACKET,
	"SOCK_NONBLOCK":  unix.SOCK_NONBLOCK,
	"SOCK_CLOEXEC":   unix.SOCK_CLOEXEC,

	"SOL_SOCKET":               unix.SOL_SOCKET,
	"SOL_TCP":                  unix.SOL_TCP,
	"SOL_UDP":                  unix.SOL_UDP,
	"TCP_ULP":                  unix.TCP_ULP,
	"UDP_ENCAP":                unix.UDP_ENCAP,
	"SO_ATTACH_FILTER":         unix.SO_ATTACH_FILTER,
	"SO_ATTACH_BPF":            unix.SO_ATTACH_BPF,
	"SO_ATTACH_REUSEPORT_CBPF": unix.SO_ATTACH_REUSEPORT_CBPF,
	"SO_ATTACH_REUSEPORT_EBPF": unix.SO_ATTACH_REUSEPORT_EBPF,

	"O_CREAT":         unix.O_CREAT,
	"__O_TMPFILE":     0o20000000, // O_TMPFILE without O_DIRECTORY, which differs
	"S_ISUID":         unix.S_ISUID,
	"S_ISGID":         unix.S_ISGID,
	"S_IFMT":          unix.S_IFMT,
	"S_IFREG":         unix.S_IFREG,
	"S_IFIFO":         unix.S_IFIFO,
	"S_IFSOCK":        unix.S_IFSOCK,
	"RENAME_WHITEOUT": unix.RENAME_WHITEOUT,
	"MFD_NOEXEC_SEAL": unix.MFD_NOEXEC_SEAL,

	"TIOCSTI":   unix.TIOCSTI,
	"TIOCLINUX": unix.TIOCLINUX,
	"TIOCSETD":  unix.TIOCSETD,
	"TIOCCONS":  unix.TIOCCONS,

	"CLONE_NEWNS":     unix.CLONE_NEWNS,
	"CLONE_NEWCGROUP": unix.CLONE_NEWCGROUP,
	"CLONE_NEWUTS":    unix.CLONE_NEWUTS,
	"CLONE_NEWIPC":    unix.CLONE_NEWIPC,
	"CLONE_NEWUSER":   unix.CLONE_NEWUSER,
	"CLONE_NEWPID":    unix.CLONE_NEWPID,
	"CLONE_NEWNET":    unix.CLONE_NEWNET,
	"CLONE_FS":        unix.CLONE_FS,
	"CLONE_FILES":     unix.CLONE_FILES,
	"CLONE_SYSVSEM":   unix.CLONE_SYSVSEM,

	"ADDR_NO_RANDOMIZE": 0x40000, // linux/personality.h

	"SECCOMP_SET_MODE_STRICT":         unix.SECCOMP_SET_MODE_STRICT,
	"SECCOMP_SET_MODE_FILTER":         unix.SECCOMP_SET_MODE_FILTER,
	"SECCOMP_GET_ACTION_AVAIL":        unix.SECCOMP_GET_ACTION_AVAIL,
	"SECCOMP_FILTER_FLAG_TSYNC":       unix.SECCOMP_FILTER_FLAG_TSYNC,
	"SECCOMP_FILTER_FLAG_LOG":         unix.SECCOMP_FILTER_FLAG_LOG,
	"SECCOMP_FILTER_FLAG_SPEC_ALLOW":  unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	"SECCOMP_FILTER_FLAG_TSYNC_ESRCH": unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH,
	"PR_SET_NAME":                     unix.PR_SET_NAME,
	"PR_GET_NAME":                     unix.PR_GET_NAME,
	"PR_SET_VMA":                      unix.PR_SET_VMA,
	"PR_SET_PDEATHSIG":                unix.PR_SET_PDEATHSIG,
	"PR_GET_PDEATHSIG":                unix.PR_GET_PDEATHSIG,
	"PR_SET_DUMPABLE":                 unix.PR_SET_DUMPABLE,
	"PR_GET_DUMPABLE":                 unix.PR_GET_DUMPABLE,
	"PR_SET_NO_NEW_PRIVS":             unix.PR_SET_NO_NEW_PRIVS,
	"PR_GET_NO_NEW_PRIVS":             unix.PR_GET_NO_NEW_PRIVS,
	"PR_SET_SECCOMP":                  unix.PR_SET_SECCOMP,
	"PR_GET_SECCOMP":                  unix.PR_GET_SECCOMP,
	"PR_SET_CHILD_SUBREAPER":          unix.PR_SET_CHILD_SUBREAPER,
	"PR_GET_CHILD_SUBREAPER":          unix.PR_GET_CHILD_SUBREAPER,
	"PR_SET_KEEPCAPS":                 unix.PR_SET_KEEPCAPS,
	"PR_GET_KEEPCAPS":                 unix.PR_GET_KEEPCAPS,
	"PR_CAPBSET_READ":                 unix.PR_CAPBSET_READ,
	"PR_CAP_AMBIENT":                  unix.PR_CAP_AMBIENT,
	"PR_GET_SECUREBITS":               unix.PR_GET_SECUREBITS,
	"PR_SET_TIMERSLACK":               unix.PR_SET_TIMERSLACK,
	"PR_GET_TIMERSLACK":               unix.PR_GET_TIMERSLACK,
	"PR_GET_TID_ADDRESS":              unix.PR_GET_TID_ADDRESS,
	"PR_SET_THP_DISABLE":              unix.PR_SET_THP_DISABLE,
	"PR_GET_THP_DISABLE":              unix.PR_GET_THP_DISABLE,
	"PR_GET_TSC":                      unix.PR_GET_TSC,
	"PR_GET_TIMING":                   unix.PR_GET_TIMING,
	"PR_SET_PTRACER":                  unix.PR_SET_PTRACER,
	"PR_GET_SPECULATION_CTRL":         unix.PR_GET_SPECULATION_CTRL,
	"PR_SET_SPECULATION_CTRL":         unix.PR_SET_SPECULATION_CTRL,
	"PR_SET_MDWE":                     unix.PR_SET_MDWE,
	"PR_GET_MDWE":                     unix.PR_GET_MDWE,
	"PR_GET_AUXV":                     unix.PR_GET_AUXV,
	"PR_SVE_SET_VL":                   unix.PR_SVE_SET_VL,
	"PR_SVE_GET_VL":                   unix.PR_SVE_GET_VL,
	"PR_SME_SET_VL":                   unix.PR_SME_SET_VL,
	"PR_SME_GET_VL":                   unix.PR_SME_GET_VL,
	"PR_PAC_RESET_KEYS":               unix.PR_PAC_RESET_KEYS,
	"PR_PAC_SET_ENABLED_KEYS":         unix.PR_PAC_SET_ENABLED_KEYS,
	"PR_PAC_GET_ENABLED_KEYS":         unix.PR_PAC_GET_ENABLED_KEYS,
	"PR_SET_TAGGED_ADDR_CTRL":         unix.PR_SET_TAGGED_ADDR_CTRL,
	"PR_GET_TAGGED_ADDR_CTRL":         unix.PR_GET_TAGGED_ADDR_CTRL,
	"PR_GET_SHADOW_STACK_STATUS":      unix.PR_GET_SHADOW_STACK_STATUS,
	"PR_SET_SHADOW_STACK_STATUS":      unix.PR_SET_SHADOW_STACK_STATUS,
	"PR_LOCK_SHADOW_STACK_STATUS":     unix.PR_LOCK_SHADOW_STACK_STATUS,

	// asm/prctl.h of x86, which x/sys does not have.
	"ARCH_SET_GS":         0x1001,
	"ARCH_SET_FS":         0x1002,
	"ARCH_GET_FS":         0x1003,
	"ARCH_GET_GS":         0x1004,
	"ARCH_GET_CPUID":      0x1011,
	"ARCH_GET_XCOMP_SUPP": 0x1021,
	"ARCH_GET_XCOMP_PERM": 0x1022,
	"ARCH_REQ_XCOMP_PERM": 0x1023,
	"ARCH_CET_STATUS":     0x3001,
	"ARCH_SHSTK_ENABLE":   0x5001,
	"ARCH_SHSTK_DISABLE":  0x5002,
	"ARCH_SHSTK_LOCK":     0x5003,
	"ARCH_SHSTK_STATUS":   0x5005,
}

// parseValue reads a number, a name, several joined with "|", or the
// complement "~(...)" of that within bits.
func parseValue(s string, bits int) (uint64, error) {
	all := ^uint64(0) >> (64 - bits)
	if inner, ok := strings.CutPrefix(s, "~("); ok {
		inner, ok = strings.CutSuffix(inner, ")")
		if !ok {
			return 0, fmt.Errorf("%q has no closing parenthesis", s)
		}
		v, err := parseValue(inner, bits)
		return ^v & all, err
	}
	var v uint64
	for t := range strings.SplitSeq(s, "|") {
		n, ok := names[t]
		if !ok {
			var err error
			if n, err = strconv.ParseUint(t, 0, 64); err != nil {
				return 0, fmt.Errorf("%q is neither a number nor a known name", t)
			}
		}
		v |= n
	}
	if v&^all != 0 {
		return 0, fmt.Errorf("%q does not fit in %d bits", s, bits)
	}
	return v, nil
}
