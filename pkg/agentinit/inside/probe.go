package inside

import (
	"syscall"
	"unsafe"

	"github.com/creel-sandbox/creel/pkg/agentinit/internal/wire"
)

// attempt is a call that must fail, with one of the errnos in want. Where the
// filter refuses the call its arguments are ones that the kernel would refuse
// otherwise (a bad descriptor or address), with another errno: so the row
// shows the filter, not the kernel's own checks, and a call that gets through
// does nothing.
type attempt struct {
	name string
	want []syscall.Errno
	try  func() syscall.Errno
}

const (
	badAddr = ^uintptr(0) - 4095 // in no process: EFAULT
	badFD   = ^uintptr(0)
	none    = ^uintptr(0)
)

var (
	filtered  = []syscall.Errno{syscall.EPERM, syscall.ENOSYS}
	noFamily  = []syscall.Errno{syscall.EAFNOSUPPORT, syscall.EPERM, syscall.EACCES, syscall.ENOSYS}
	noProto   = []syscall.Errno{syscall.EPROTONOSUPPORT, syscall.EAFNOSUPPORT, syscall.EPERM, syscall.EACCES, syscall.ESOCKTNOSUPPORT}
	noFile    = []syscall.Errno{syscall.EACCES, syscall.EROFS, syscall.ENOENT, syscall.EPERM}
	notThere  = []syscall.Errno{syscall.ENOENT}
	permitted = []syscall.Errno{syscall.EPERM}
)

// call makes a row of a system call with fixed arguments.
func call(name string, want []syscall.Errno, nr uintptr, args ...uintptr) attempt {
	var a [6]uintptr
	copy(a[:], args)
	return attempt{name, want, func() syscall.Errno {
		r, _, e := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if e == 0 && int(r) > ctlFD && isOpener(nr) {
			closeFD(int(r))
		}
		return e
	}}
}

// isOpener is whether a call's result is a descriptor.
func isOpener(nr uintptr) bool {
	switch nr {
	case syscall.SYS_SOCKET, sysIOUringSetup, sysUserfaultfd, sysFsopen, sysFanotifyInit, sysPerfEventOpen, sysBPF:
		return true
	}
	return false
}

// calls are the rows that are only numbers.
func calls() []attempt {
	const (
		newUser, newNS, newNet = 0x10000000, 0x20000, 0x40000000
		tiocsti, tioclinux     = 0x5412, 0x541C
		afAlg, afVsock, afPkt  = 38, 40, 17
		afNetlink, afKey, afX  = 16, 15, 44
		raw, stream, dgram     = 3, 1, 2
		mptcp, udplite, xfrm   = 262, 136, 6
		netfilter, icmp        = 12, 1
		rlimitNofile           = 7
		childFlags             = uintptr(syscall.SIGCHLD)
	)
	return []attempt{
		call("mount", filtered, syscall.SYS_MOUNT, badAddr, badAddr, badAddr, 0, badAddr),
		call("umount2", filtered, syscall.SYS_UMOUNT2, badAddr, 0),
		call("pivot_root", filtered, syscall.SYS_PIVOT_ROOT, badAddr, badAddr),
		call("chroot", filtered, syscall.SYS_CHROOT, badAddr),
		call("open_tree", filtered, sysOpenTree, badFD, badAddr, 0),
		call("fsopen", filtered, sysFsopen, badAddr, 0),
		call("move_mount", filtered, sysMoveMount, badFD, badAddr, badFD, badAddr, 0),
		call("unshare user", filtered, syscall.SYS_UNSHARE, newUser),
		call("unshare mount", filtered, syscall.SYS_UNSHARE, newNS),
		call("unshare net", filtered, syscall.SYS_UNSHARE, newNet),
		call("clone user", filtered, syscall.SYS_CLONE, newUser|childFlags|newNS|0x200, 0), // CLONE_NEWNS|CLONE_FS: EINVAL
		call("clone3", []syscall.Errno{syscall.ENOSYS}, sysClone3, badAddr, 88),
		call("setns", filtered, sysSetns, badFD, 0),
		call("ptrace", filtered, syscall.SYS_PTRACE, 16, none, 0, 0),
		call("process_vm_readv", filtered, sysProcessVMReadv, none, badAddr, 1, badAddr, 1, 0),
		call("process_vm_writev", filtered, sysProcessVMWritev, none, badAddr, 1, badAddr, 1, 0),
		call("pidfd_getfd", filtered, sysPidfdGetfd, badFD, 0, 0),
		call("kcmp", filtered, sysKcmp, none, none, 0, 0, 0),
		call("prlimit64 pid 1", filtered, syscall.SYS_PRLIMIT64, 1, rlimitNofile, 0, badAddr),
		call("keyctl", filtered, sysKeyctl, none, 0, 0, 0, 0),
		call("add_key", filtered, sysAddKey, badAddr, badAddr, badAddr, 0, 0),
		call("bpf", filtered, sysBPF, none, badAddr, 8),
		call("io_uring_setup", filtered, sysIOUringSetup, 0, badAddr),
		call("userfaultfd", filtered, sysUserfaultfd, none),
		call("perf_event_open", filtered, sysPerfEventOpen, badAddr, 0, 0, none, 0),
		call("fanotify_init", filtered, sysFanotifyInit, none, 0),
		call("open_by_handle_at", filtered, sysOpenByHandleAt, badFD, badAddr, 0),
		call("finit_module", filtered, sysFinitModule, badFD, badAddr, 0),
		call("kexec_file_load", filtered, sysKexecFileLoad, badFD, badFD, 0, badAddr, 0),
		call("reboot", filtered, syscall.SYS_REBOOT, 0, 0, 0, 0), // wrong magic: EINVAL
		call("swapon", filtered, syscall.SYS_SWAPON, badAddr, 0),
		call("syslog", filtered, syscall.SYS_SYSLOG, none, badAddr, 0),
		call("settimeofday", filtered, syscall.SYS_SETTIMEOFDAY, badAddr, 0),
		call("sethostname", filtered, syscall.SYS_SETHOSTNAME, badAddr, 1),
		call("mknodat device", permitted, syscall.SYS_MKNODAT, badFD, badAddr, syscall.S_IFCHR|0o600, 0x103),
		call("ioctl TIOCSTI", filtered, syscall.SYS_IOCTL, badFD, tiocsti, badAddr),
		call("ioctl TIOCLINUX", filtered, syscall.SYS_IOCTL, badFD, tioclinux, badAddr),
		call("socket AF_ALG", noFamily, syscall.SYS_SOCKET, afAlg, 5, 0),
		call("socket AF_VSOCK", noFamily, syscall.SYS_SOCKET, afVsock, stream, 0),
		call("socket AF_PACKET", noFamily, syscall.SYS_SOCKET, afPkt, raw, 0),
		call("socket AF_KEY", noFamily, syscall.SYS_SOCKET, afKey, raw, 2),
		call("socket AF_XDP", noFamily, syscall.SYS_SOCKET, afX, raw, 0),
		call("socket netlink xfrm", noProto, syscall.SYS_SOCKET, afNetlink, raw, xfrm),
		call("socket netlink netfilter", noProto, syscall.SYS_SOCKET, afNetlink, raw, netfilter),
		call("socket mptcp", noProto, syscall.SYS_SOCKET, syscall.AF_INET, stream, mptcp),
		call("socket udplite", noProto, syscall.SYS_SOCKET, syscall.AF_INET, dgram, udplite),
		call("socket raw icmp", noProto, syscall.SYS_SOCKET, syscall.AF_INET, raw, icmp),
	}
}

// agents are the rows of a sandbox whose processes are the agent: they cannot
// become root, and no call makes a set-user-ID or set-group-ID file.
func agents() []attempt {
	return []attempt{
		call("fchmod set-user-id", permitted, syscall.SYS_FCHMOD, badFD, 0o4755),
		call("fchmodat set-group-id", permitted, syscall.SYS_FCHMODAT, badFD, badAddr, 0o2755),
		call("fchmodat2 set-user-id", filtered, sysFchmodat2, badFD, badAddr, 0o4755, 0),
		call("openat set-user-id", permitted, syscall.SYS_OPENAT, badFD, badAddr, syscall.O_CREAT|syscall.O_WRONLY, 0o4755),
		call("mkdirat set-group-id", permitted, syscall.SYS_MKDIRAT, badFD, badAddr, 0o2755),
		{"setuid 0", permitted, identity(syscall.SYS_SETUID, 1)},
		{"setgid 0", permitted, identity(syscall.SYS_SETGID, 1)},
		{"setresuid 0", permitted, identity(syscall.SYS_SETRESUID, 3)},
		{"setgroups", permitted, func() syscall.Errno {
			var gid uint32
			_, e := sys3(syscall.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&gid)), 0)
			return e
		}},
	}
}

// roots are the rows of one whose processes are root of its user namespace:
// they are not beyond its ids, and PID 1's program stays out of reach although
// permissions are no hindrance to them.
func roots() []attempt {
	const outside = 65536 // the first id that is not the sandbox's
	return []attempt{
		call("setuid outside", []syscall.Errno{syscall.EINVAL}, syscall.SYS_SETUID, outside),
		call("setgid outside", []syscall.Errno{syscall.EINVAL}, syscall.SYS_SETGID, outside),
		{"read /proc/1/exe", []syscall.Errno{syscall.EACCES}, opens("/proc/1/exe", syscall.O_RDONLY)},
		{"write /proc/1/exe", noFile, opens("/proc/1/exe", syscall.O_WRONLY)},
	}
}

// files are the rows about paths.
func files() []attempt {
	rows := []attempt{
		{"write /proc/self/uid_map", noFile, opens("/proc/self/uid_map", syscall.O_WRONLY)},
		{"sysfs", notThere, opens("/sys/kernel", syscall.O_RDONLY)},
		{"/dev/mem", notThere, opens("/dev/mem", syscall.O_RDONLY)},
		{"/dev/kmsg", notThere, opens("/dev/kmsg", syscall.O_RDONLY)},
		{"/dev/fuse", notThere, opens("/dev/fuse", syscall.O_RDWR)},
		{"/dev/kvm", notThere, opens("/dev/kvm", syscall.O_RDWR)},
	}
	for _, path := range [...]string{
		"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
		"/proc/sys/vm/drop_caches", "/proc/sys/fs/binfmt_misc/register", "/proc/1/mem",
	} {
		rows = append(rows, attempt{"write " + path, noFile, opens(path, syscall.O_WRONLY)})
	}
	return append(rows, attempt{"read /proc/kcore", append([]syscall.Errno{syscall.EIO}, noFile...), readable("/proc/kcore")})
}

// identity tries to become root. The raw call would change one thread only.
func identity(nr uintptr, args int) func() syscall.Errno {
	return func() syscall.Errno {
		var a [3]uintptr
		for i := range a[:args] {
			a[i] = 0
		}
		_, e := sys3(nr, a[0], a[1], a[2])
		return e
	}
}

func opens(path string, flags int) func() syscall.Errno {
	return func() syscall.Errno {
		fd, e := open(path, flags|syscall.O_NONBLOCK|syscall.O_NOCTTY)
		if e == 0 {
			closeFD(fd)
		}
		return e
	}
}

// readable is for files that a runtime masks with /dev/null: they open, and
// have nothing (given as EIO).
func readable(path string) func() syscall.Errno {
	return func() syscall.Errno {
		fd, e := open(path, syscall.O_RDONLY|syscall.O_NONBLOCK)
		if e != 0 {
			return e
		}
		defer closeFD(fd)
		var b [16]byte
		n, e := read(fd, b[:])
		if e == 0 && n == 0 {
			return syscall.EIO
		}
		return e
	}
}

// writeRoot tries to make a file in the root directory.
func writeRoot() syscall.Errno {
	path := append([]byte("/"+tempName()), 0)
	fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, atFDCWD, uintptr(unsafe.Pointer(&path[0])), syscall.O_CREAT|syscall.O_EXCL|syscall.O_WRONLY|syscall.O_CLOEXEC, 0o600, 0, 0)
	if e == 0 {
		closeFD(int(fd))
		_ = unlinkAt(-1, string(path[:len(path)-1]), 0)
	}
	return e
}

// route asks for the way to an address outside. Connecting a datagram socket
// sends nothing.
func route() syscall.Errno {
	fd, e := sys3(syscall.SYS_SOCKET, syscall.AF_INET, syscall.SOCK_DGRAM|sockCloexec, 0)
	if e != 0 {
		return e
	}
	defer closeFD(fd)
	to := syscall.RawSockaddrInet4{Family: syscall.AF_INET, Port: 80 << 8, Addr: [4]byte{1, 1, 1, 1}}
	_, e = sys3(syscall.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to)), unsafe.Sizeof(to))
	return e
}

func (kernel) probe(p wire.Probing) []wire.Probe {
	rows := append(calls(), files()...)
	if p.Root {
		rows = append(rows, roots()...)
	} else {
		rows = append(rows, agents()...)
	}
	if p.ReadonlyRoot {
		rows = append(rows, attempt{"write /", []syscall.Errno{syscall.EROFS}, writeRoot})
	}
	if p.NoRoute {
		rows = append(rows, attempt{"route to 1.1.1.1", []syscall.Errno{syscall.ENETUNREACH}, route})
	}
	if p.Isolate {
		rows = append(rows, attempt{wire.Isolation, []syscall.Errno{syscall.EACCES}, isolation})
	}
	out := make([]wire.Probe, len(rows))
	for i, a := range rows {
		got := a.try()
		want := a.want[0]
		for _, w := range a.want {
			if got == w {
				want = w
			}
		}
		out[i] = wire.Probe{Name: a.name, Want: uint32(want), Got: uint32(got)}
	}
	return out
}
