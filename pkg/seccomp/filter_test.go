package seccomp_test

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/seccomp"
)

// verdict is what the profile's filter says; it also compares the filter
// with the rules read directly.
func verdict(tb testing.TB, p *seccomp.Profile, f seccomp.Filter, arch string, d seccomp.Data) string {
	tb.Helper()
	got := seccomp.Simulate(f, d)
	if want := p.Evaluate(arch, d); got != want {
		tb.Fatalf("filter says %v, rules say %v for %+v", got, want, d)
	}
	return got.String()
}

// TestCalls lists, call by call, what agents may and may not do. Each line
// that is refused fails if its rule is taken out of the profile.
func TestCalls(t *testing.T) {
	const dirty = 0xdeadbeef << 32 // what a program may leave in the upper half
	tests := []struct {
		call string
		args []uint64
		want string // both profiles
	}{
		{"chmod", []uint64{0, 0o755}, "allow"},
		{"chmod", []uint64{0, 0o1777}, "allow"},
		{"chmod", []uint64{0, 0o4755}, "EPERM"},
		{"chmod", []uint64{0, 0o2755}, "EPERM"},
		{"chmod", []uint64{0, dirty | 0o4755}, "EPERM"},
		{"fchmod", []uint64{3, 0o6755}, "EPERM"},
		{"fchmod", []uint64{3, 0o644}, "allow"},
		{"fchmodat", []uint64{3, 0, 0o4755}, "EPERM"},
		{"fchmodat", []uint64{3, 0, 0o644}, "allow"},
		{"fchmodat2", []uint64{3, 0, 0o2755}, "EPERM"},
		{"fchmodat2", []uint64{3, 0, 0o755}, "allow"},
		{"open", []uint64{0, unix.O_RDONLY, 0o4755}, "allow"}, // garbage: nothing is made
		{"open", []uint64{0, unix.O_CREAT, 0o4755}, "EPERM"},
		{"openat", []uint64{0, 0, unix.O_RDWR, 0o6777}, "allow"},
		{"openat", []uint64{0, 0, unix.O_RDWR | unix.O_DIRECTORY, 0o6777}, "allow"},
		{"openat", []uint64{0, 0, unix.O_CREAT | unix.O_WRONLY, 0o644}, "allow"},
		{"openat", []uint64{0, 0, unix.O_CREAT | unix.O_WRONLY, 0o4755}, "EPERM"},
		{"openat", []uint64{0, 0, unix.O_CREAT | unix.O_WRONLY, 0o2755}, "EPERM"},
		{"openat", []uint64{0, 0, dirty | unix.O_CREAT, dirty | 0o4000}, "EPERM"},
		{"openat", []uint64{0, 0, 0o20000000 | unix.O_WRONLY, 0o4755}, "EPERM"}, // O_TMPFILE
		{"openat2", nil, "ENOSYS"},
		{"creat", []uint64{0, 0o4755}, "EPERM"},
		{"creat", []uint64{0, 0o755}, "allow"},
		{"mkdir", []uint64{0, 0o2755}, "EPERM"},
		{"mkdir", []uint64{0, 0o1777}, "allow"},
		{"mkdirat", []uint64{0, 0, 0o2755}, "EPERM"},
		{"mkdirat", []uint64{0, 0, 0o755}, "allow"},
		{"mknod", []uint64{0, unix.S_IFREG | 0o4755}, "EPERM"},
		{"mknod", []uint64{0, unix.S_IFREG | 0o644}, "allow"},
		{"mknod", []uint64{0, unix.S_IFCHR | 0o644}, "EPERM"},
		{"mknodat", []uint64{0, 0, unix.S_IFIFO | 0o600}, "allow"},
		{"mknodat", []uint64{0, 0, unix.S_IFSOCK | 0o600}, "allow"},
		{"mknodat", []uint64{0, 0, unix.S_IFREG | 0o2644}, "EPERM"},
		{"mknodat", []uint64{0, 0, unix.S_IFCHR | 0o600}, "EPERM"},
		{"mknodat", []uint64{0, 0, unix.S_IFBLK | 0o600}, "EPERM"},
		{"renameat2", []uint64{0, 0, 0, 0, unix.RENAME_WHITEOUT}, "EPERM"},
		{"renameat2", []uint64{0, 0, 0, 0, unix.RENAME_EXCHANGE}, "allow"},

		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, "allow"},
		{"clone", []uint64{unix.CLONE_NEWUSER}, "EPERM"},
		{"clone", []uint64{unix.CLONE_NEWNS | uint64(unix.SIGCHLD)}, "EPERM"},
		{"clone", []uint64{dirty | unix.CLONE_NEWNET}, "EPERM"},
		{"clone3", nil, "ENOSYS"},
		{"unshare", []uint64{unix.CLONE_FILES | unix.CLONE_FS}, "allow"},
		{"unshare", []uint64{unix.CLONE_NEWUSER}, "EPERM"},
		{"unshare", []uint64{unix.CLONE_NEWTIME}, "EPERM"},
		{"unshare", []uint64{1 << 40}, "EPERM"},
		{"setns", nil, "EPERM"},

		{"prlimit64", []uint64{0, unix.RLIMIT_NOFILE}, "allow"},
		{"prlimit64", []uint64{1, unix.RLIMIT_NOFILE}, "EPERM"},
		{"prlimit64", []uint64{dirty, unix.RLIMIT_NOFILE}, "allow"}, // pid_t 0
		{"prlimit64", []uint64{dirty | 1, unix.RLIMIT_NOFILE}, "EPERM"},

		{"ioctl", []uint64{0, unix.TCGETS}, "allow"},
		{"ioctl", []uint64{0, unix.TIOCSTI}, "EPERM"},
		{"ioctl", []uint64{0, dirty | unix.TIOCSTI}, "EPERM"},
		{"ioctl", []uint64{0, 1<<32 | unix.TIOCLINUX}, "EPERM"},
		{"ioctl", []uint64{0, unix.TIOCSETD}, "EPERM"},
		{"ioctl", []uint64{0, unix.TIOCCONS}, "EPERM"},

		{"setsockopt", []uint64{3, unix.SOL_TCP, unix.TCP_NODELAY}, "allow"},
		{"setsockopt", []uint64{3, unix.SOL_TCP, unix.TCP_ULP}, "ENOPROTOOPT"},
		{"setsockopt", []uint64{3, unix.SOL_UDP, unix.UDP_ENCAP}, "ENOPROTOOPT"},
		{"setsockopt", []uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_BPF}, "ENOPROTOOPT"},
		{"setsockopt", []uint64{3, unix.SOL_SOCKET, unix.SO_REUSEADDR}, "allow"},

		{"prctl", []uint64{unix.PR_SET_NAME}, "allow"},
		{"prctl", []uint64{unix.PR_SET_MM}, "EINVAL"},
		{"prctl", []uint64{unix.PR_SCHED_CORE}, "EINVAL"},
		{"prctl", []uint64{unix.PR_SET_SYSCALL_USER_DISPATCH}, "EINVAL"},
		{"personality", []uint64{0xffffffff}, "allow"},
		{"personality", []uint64{0x0400000}, "EPERM"}, // READ_IMPLIES_EXEC
		{"seccomp", []uint64{unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER}, "EINVAL"},
		{"arch_prctl", []uint64{0x1002}, "allow"},
		{"arch_prctl", []uint64{0x1012}, "EINVAL"}, // ARCH_SET_CPUID
	}
	for _, name := range shipped {
		p := load(t, name)
		for _, arch := range seccomp.Architectures {
			f := compile(t, name, arch)
			for _, tt := range tests {
				nr, ok := seccomp.Number(arch, tt.call)
				if !ok {
					continue // arm64 lacks the old calls
				}
				d := seccomp.Data{Nr: nr, Arch: audit[arch]}
				copy(d.Args[:], tt.args)
				if got := verdict(t, p, f, arch, d); got != tt.want {
					t.Errorf("%s %s: %s(%#x) = %s, want %s", name, arch, tt.call, tt.args, got, tt.want)
				}
			}
		}
	}
}

// TestRefusedByName is the list of kernel surface that has broken launchers.
// Its calls are refused whatever their arguments are.
func TestRefusedByName(t *testing.T) {
	refused := []string{
		"io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "keyctl", "add_key", "request_key",
		"userfaultfd", "mount", "umount2", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree",
		"open_tree_attr", "mount_setattr", "pivot_root", "chroot", "setns", "perf_event_open", "ptrace",
		"process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "fanotify_init", "fanotify_mark",
		"open_by_handle_at", "name_to_handle_at", "quotactl", "quotactl_fd", "swapon", "swapoff", "acct",
		"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "lookup_dcookie",
		"reboot", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname",
		"setdomainname", "vhangup", "nfsservctl", "iopl", "ioperm", "modify_ldt", "uselib", "clone3", "openat2",
		"vmsplice", "process_madvise", "memfd_secret", "move_pages", "migrate_pages", "set_mempolicy",
		"mq_open", "io_setup", "io_submit", "statmount", "listmount", "listns", "file_setattr", "setxattrat",
		"remap_file_pages", "process_mrelease", "cachestat", "lsm_set_self_attr",
	}
	for _, name := range shipped {
		for _, arch := range seccomp.Architectures {
			f := compile(t, name, arch)
			for _, call := range refused {
				nr, ok := seccomp.Number(arch, call)
				if !ok {
					continue
				}
				got := seccomp.Simulate(f, seccomp.Data{Nr: nr, Arch: audit[arch]})
				if !f.Constant(audit[arch], nr) || got.Errno() == 0 {
					t.Errorf("%s %s: %s = %v, want it refused whatever the arguments", name, arch, call, got)
				}
			}
		}
	}
}

// TestSockets tries every family with every type and the protocols around
// those allowed, and compares with the list in words.
func TestSockets(t *testing.T) {
	type triple struct{ family, typ, proto uint64 }
	inet := []triple{{0, unix.SOCK_STREAM, 0}, {0, unix.SOCK_STREAM, unix.IPPROTO_TCP}, {0, unix.SOCK_DGRAM, 0}, {0, unix.SOCK_DGRAM, unix.IPPROTO_UDP}}
	var allowed []triple
	for _, s := range inet {
		allowed = append(allowed, triple{unix.AF_INET, s.typ, s.proto}, triple{unix.AF_INET6, s.typ, s.proto})
	}
	for _, typ := range []uint64{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		allowed = append(allowed, triple{unix.AF_UNIX, typ, 0}, triple{unix.AF_UNIX, typ, 1})
	}
	netlink := []triple{{unix.AF_NETLINK, unix.SOCK_RAW, 0}, {unix.AF_NETLINK, unix.SOCK_DGRAM, 0}}
	protos := []uint64{0, 1, 2, 6, 12, 16, 17, 33, 41, 58, 132, 136, 255, 262, 256, 1 << 16, 0xffffffff}
	flags := []uint64{0, unix.SOCK_CLOEXEC, unix.SOCK_NONBLOCK, unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, 0x10, 0x40000000}
	for _, name := range shipped {
		p := load(t, name)
		f := compile(t, name, "amd64")
		for _, call := range []string{"socket", "socketpair"} {
			nr, _ := seccomp.Number("amd64", call)
			d := seccomp.Data{Nr: nr, Arch: audit["amd64"]}
			ok := 0
			for family := range uint64(64) {
				for typ := range uint64(16) {
					for _, proto := range protos {
						for _, flag := range flags {
							s := triple{family, typ, proto}
							want := slices.Contains(allowed, s) || name == "default" && slices.Contains(netlink, s)
							want = want && flag&^(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) == 0
							if call == "socketpair" {
								want = want && family == unix.AF_UNIX
							}
							d.Args = [6]uint64{family | 7<<32, typ | flag | 7<<32, proto | 7<<32}
							got := seccomp.Simulate(f, d)
							if (got == seccomp.Allow) != want || got == seccomp.KillProcess {
								t.Errorf("%s: %s(%d, %#x, %d) = %v, want allowed %t", name, call, family, typ|flag, proto, got, want)
							}
							if want {
								ok++
								verdict(t, p, f, "amd64", d)
							}
						}
					}
				}
			}
			if ok == 0 {
				t.Errorf("%s: no %s is allowed at all", name, call)
			}
		}
	}
}

func TestForeignABIs(t *testing.T) {
	const i386, arm = 0x40000003, 0x40000028
	for _, name := range shipped {
		for _, arch := range seccomp.Architectures {
			p, f := load(t, name), compile(t, name, arch)
			for _, foreign := range []uint32{i386, arm, 0, audit["amd64"], audit["arm64"]} {
				if foreign == audit[arch] {
					continue
				}
				for nr := range uint32(600) {
					if got := verdict(t, p, f, arch, seccomp.Data{Nr: nr, Arch: foreign}); got != "kill_process" {
						t.Fatalf("%s %s: number %d of architecture %#x = %s", name, arch, nr, foreign, got)
					}
				}
			}
		}
		p, f := load(t, name), compile(t, name, "amd64")
		for nr := range uint32(600) {
			if got := verdict(t, p, f, "amd64", seccomp.Data{Nr: 0x40000000 | nr, Arch: audit["amd64"]}); got != "kill_process" {
				t.Fatalf("%s: x32 number %d = %s", name, nr, got)
			}
		}
		if got := verdict(t, p, f, "amd64", seccomp.Data{Nr: ^uint32(0), Arch: audit["amd64"]}); got != "ENOSYS" {
			t.Errorf("%s: syscall(-1) = %s, want ENOSYS", name, got)
		}
	}
}

// TestUnnamedCallsAreAbsent: what nobody listed, and what kernels to come
// will add, does not exist.
func TestUnnamedCallsAreAbsent(t *testing.T) {
	for _, name := range shipped {
		for _, arch := range seccomp.Architectures {
			f := compile(t, name, arch)
			for nr := uint32(472); nr < 5000; nr++ {
				if got := seccomp.Simulate(f, seccomp.Data{Nr: nr, Arch: audit[arch]}); got.Errno() != unix.ENOSYS {
					t.Fatalf("%s %s: number %d = %v", name, arch, nr, got)
				}
			}
		}
	}
}

// TestSteps keeps the common calls cheap on kernels without the bitmap.
func TestSteps(t *testing.T) {
	f := compile(t, "default", "amd64")
	for call, limit := range map[string]int{"read": 16, "write": 16, "futex": 16, "openat": 20, "mmap": 16, "epoll_wait": 16} {
		nr, _ := seccomp.Number("amd64", call)
		d := seccomp.Data{Nr: nr, Arch: audit["amd64"]}
		if n := f.Steps(d); n > limit {
			t.Errorf("%s takes %d instructions, want at most %d", call, n, limit)
		}
		if call != "openat" && !f.Constant(d.Arch, nr) {
			t.Errorf("%s looks at an argument, so the kernel's bitmap cannot answer it", call)
		}
	}
}

func drawData(t *rapid.T, arch string) seccomp.Data {
	d := seccomp.Data{Arch: audit[arch]}
	d.Nr = rapid.OneOf(rapid.Uint32Range(0, 500), rapid.Uint32()).Draw(t, "nr")
	arg := rapid.OneOf(
		rapid.Uint64(),
		rapid.Uint64Range(0, 64),
		rapid.SampledFrom([]uint64{1 << 32, ^uint64(0), 0xffffffff, 0x5412, 1<<32 | 0x5412, 0o100, 0o4755, 0x10000000, 0x80000, 0x53564d41}),
	)
	for i := range d.Args {
		d.Args[i] = arg.Draw(t, "arg")
	}
	return d
}

// TestShippedAgree: the compiled filters do what the profile's text says.
func TestShippedAgree(t *testing.T) {
	for _, name := range shipped {
		for _, arch := range seccomp.Architectures {
			p, f := load(t, name), compile(t, name, arch)
			t.Run(name+"-"+arch, rapid.MakeCheck(func(t *rapid.T) {
				d := drawData(t, arch)
				if got, want := seccomp.Simulate(f, d), p.Evaluate(arch, d); got != want {
					t.Fatalf("filter says %v, rules say %v", got, want)
				}
			}))
		}
	}
}

// TestCompilerAgrees does the same for profiles nobody wrote.
func TestCompilerAgrees(t *testing.T) {
	calls := seccomp.Names("arm64")
	calls = slices.DeleteFunc(calls, func(n string) bool { _, ok := seccomp.Number("amd64", n); return !ok })
	small := rapid.Uint64Range(0, 9)
	value := rapid.Custom(func(t *rapid.T) uint64 { return small.Draw(t, "low") | small.Draw(t, "high")<<32 })
	cond := rapid.Custom(func(t *rapid.T) seccomp.Cond {
		c := seccomp.Cond{Arg: rapid.IntRange(0, 5).Draw(t, "index"), Bits: rapid.SampledFrom([]int{32, 64}).Draw(t, "bits"), Not: rapid.Bool().Draw(t, "not")}
		c.Mask = rapid.SampledFrom([]uint64{^uint64(0), 0xf, 6, 0x7_0000_0000, 0x2_0000_0003}).Draw(t, "mask")
		if c.Bits == 32 {
			c.Mask = c.Mask&0xffffffff | 1
		}
		for range rapid.IntRange(1, 40).Draw(t, "n") {
			c.Values = append(c.Values, value.Draw(t, "value")&c.Mask)
		}
		return c
	})
	rule := rapid.Custom(func(t *rapid.T) seccomp.Rule {
		return seccomp.Rule{
			Syscalls: rapid.SliceOfN(rapid.SampledFrom(calls), 1, 30).Draw(t, "calls"),
			When:     rapid.SliceOfN(cond, 0, 4).Draw(t, "when"),
			Action:   rapid.SampledFrom([]seccomp.Action{seccomp.Allow, seccomp.Errno(unix.EPERM), seccomp.KillProcess}).Draw(t, "action"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		p := &seccomp.Profile{Name: "drawn", Default: seccomp.Errno(unix.ENOSYS)}
		p.Groups = []seccomp.Group{{Name: "g", Reason: "r", Rules: rapid.SliceOfN(rule, 0, 8).Draw(t, "rules")}}
		arch := rapid.SampledFrom(seccomp.Architectures).Draw(t, "arch")
		f, err := p.Compile(arch)
		if err != nil {
			t.Skip(err) // too long is a refusal, not a wrong filter
		}
		for range 20 {
			d := drawData(t, arch)
			for i := range d.Args {
				d.Args[i] = value.Draw(t, "argument")
			}
			if got, want := seccomp.Simulate(f, d), p.Evaluate(arch, d); got != want {
				t.Fatalf("filter says %v, rules say %v for %+v\n%s", got, want, d, f.Disassemble())
			}
		}
	})
}
