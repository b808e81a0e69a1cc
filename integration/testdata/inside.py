"""Attacks on the sandbox from inside, one line of JSON for each.

Run as the agent. must() names a call that has to fail, and with which errnos;
must_be() names a fact. The Go test fails for every line whose got is not in
its want, and if the last line is missing.
"""
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
DENIED = (errno.EPERM, errno.ENOSYS, errno.EACCES)


def report(name, got, want):
    print(json.dumps({"name": name, "got": got, "want": want}), flush=True)


def errname(n):
    return errno.errorcode.get(n, str(n))


def must(name, fn, *want):
    """fn must fail with one of the errnos; DENIED if none is given."""
    try:
        got = "success: %r" % (fn(),)
    except OSError as e:
        got = errname(e.errno)
    report(name, got, [errname(w) for w in (want or DENIED)])


def must_be(name, got, *want):
    report(name, got, list(want))


def sys_(nr, *args):
    """A system call by number; raises OSError."""
    r = libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if r == -1:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return r


# Numbers of x86_64 and aarch64; from 424 on they are the same.
NR = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "prlimit64": (302, 261), "setns": (308, 268), "unshare": (272, 97),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "swapon": (167, 224), "acct": (163, 89), "reboot": (169, 142), "syslog": (103, 116),
    "sethostname": (170, 161), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "fanotify_init": (300, 262), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "quotactl": (179, 60), "nfsservctl": (180, 42), "lookup_dcookie": (212, 18), "vhangup": (153, 58),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "clone": (56, 220), "clone3": (435, 435),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442), "quotactl_fd": (443, 443), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "memfd_secret": (447, 447), "fchmodat2": (452, 452), "openat2": (437, 437),
    "mknodat": (259, 33), "seccomp": (317, 277), "personality": (135, 92), "kexec_file_load": (320, 294),
    "statmount": (457, 457), "listmount": (458, 458), "lsm_set_self_attr": (460, 460),
    "setxattrat": (463, 463), "open_tree_attr": (467, 467), "ioperm": (173, None), "iopl": (172, None),
    "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "chmod": (90, None), "creat": (85, None), "mkdir": (83, None), "mknod": (133, None), "open": (2, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "openat": (257, 56), "mkdirat": (258, 34),
    "mq_open": (240, 180), "setfsuid": (122, 151), "sched_setaffinity": (203, 122),
}


def nr(name):
    return NR[name][0 if X86 else 1]


def call(name, *args):
    return lambda: sys_(nr(name), *args)


ME = os.getpid()
BUF = ctypes.create_string_buffer(4096)


def pid1():
    for f in ("mem", "environ", "maps", "smaps", "auxv", "stack", "syscall", "pagemap", "personality", "io"):
        must("proc1.%s.read" % f, lambda: os.read(os.open("/proc/1/" + f, os.O_RDONLY), 64), errno.EACCES, errno.EPERM, errno.ENOENT)
    for f in ("mem", "oom_score_adj", "oom_adj", "comm", "clear_refs", "coredump_filter", "timerslack_ns",
              "setgroups", "uid_map", "gid_map", "projid_map", "loginuid", "sched", "autogroup", "attr/current", "attr/exec"):
        def write():
            fd = os.open("/proc/1/" + f, os.O_WRONLY)
            return os.write(fd, b"0\n")
        must("proc1.%s.write" % f, write, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EINVAL, errno.EROFS)
    for f in ("fd", "fdinfo", "map_files", "task/1/fd"):
        must("proc1.%s.list" % f, lambda: os.listdir("/proc/1/" + f), errno.EACCES, errno.EPERM, errno.ENOENT)
    for f in ("root", "cwd", "exe", "fd/0", "fd/3", "fd/100", "fd/101", "ns/net", "ns/user", "ns/pid"):
        must("proc1.%s.open" % f, lambda: os.open("/proc/1/" + f, os.O_PATH), errno.EACCES, errno.EPERM, errno.ENOENT)
        must("proc1.%s.readlink" % f, lambda: os.readlink("/proc/1/" + f), errno.EACCES, errno.EPERM, errno.ENOENT)
    must("proc1.root.path", lambda: os.listdir("/proc/1/root/etc"), errno.EACCES, errno.EPERM)
    lim = struct.pack("QQ", 1, 1)
    for res in range(16):
        must("prlimit.pid1.%d" % res, call("prlimit64", 1, res, ctypes.c_char_p(lim), None))
        must("prlimit.pid1.get.%d" % res, call("prlimit64", 1, res, None, BUF))
    must("ptrace.attach", call("ptrace", 16, 1, 0, 0))
    must("ptrace.seize", call("ptrace", 0x4206, 1, 0, 0))
    must("ptrace.traceme", call("ptrace", 0, 0, 0, 0))
    iov = (ctypes.c_uint64 * 2)(ctypes.addressof(BUF), 64)
    must("process_vm_readv", call("process_vm_readv", 1, iov, 1, iov, 1, 0))
    must("process_vm_writev", call("process_vm_writev", 1, iov, 1, iov, 1, 0))
    must("kcmp", call("kcmp", 1, ME, 0, 0, 0))
    try:
        pidfd = os.pidfd_open(1)
    except OSError as e:
        pidfd = -1
        report("pidfd_open.pid1", errname(e.errno), ["EPERM", "ENOSYS"])
    for n in (0, 3, 100, 101, 102):
        must("pidfd_getfd.%d" % n, call("pidfd_getfd", pidfd, n, 0))
    must("process_madvise", call("process_madvise", pidfd, iov, 1, 4, 0))
    must("process_mrelease", call("process_mrelease", pidfd, 0))
    must("setns.pid1", call("setns", pidfd, 0x40000000))
    must("move_pages", call("move_pages", 1, 0, None, None, None, 0))
    must("migrate_pages", call("migrate_pages", 1, 8, BUF, BUF))
    must("init.open", lambda: os.open("/dev/creel-init", os.O_RDONLY), errno.EACCES)
    must("init.write", lambda: os.open("/dev/creel-init", os.O_WRONLY), errno.EACCES, errno.EROFS, errno.ETXTBSY)
    must("init.unlink", lambda: os.unlink("/dev/creel-init"), errno.EACCES, errno.EBUSY, errno.EROFS, errno.EPERM)
    must("init.chmod", lambda: os.chmod("/dev/creel-init", 0o777), errno.EPERM, errno.EROFS)
    must("init.rename", lambda: os.rename("/dev/creel-init", "/dev/shm/x"), errno.EACCES, errno.EBUSY, errno.EROFS, errno.EPERM, errno.EXDEV)


def signals():
    # Everything an agent can send to PID 1 that is not the request to end its
    # own main command; it must still serve when the test asks it afterwards.
    for s in range(1, 65):
        if s in (signal.SIGKILL, signal.SIGSTOP):
            continue
        for _ in range(50):
            try:
                os.kill(1, s)
            except OSError:
                break
    os.kill(1, signal.SIGSTOP)
    os.kill(1, signal.SIGKILL)
    for pidfd_sig in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV):
        try:
            signal.pidfd_send_signal(os.pidfd_open(1), pidfd_sig)
        except OSError:
            pass
    must_be("pid1.alive", os.path.exists("/proc/1/status"), True)
    state = [l for l in open("/proc/1/status") if l.startswith("State:")][0].split()[1]
    must_be("pid1.state", state in ("S", "R", "D"), True)


def identity():
    st = dict(l.rstrip("\n").split(":\t", 1) for l in open("/proc/self/status") if ":\t" in l)
    for cap in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        must_be("caps." + cap, int(st[cap], 16), 0xcb if ROOT and cap in ("CapPrm", "CapEff", "CapBnd") else 0)
    must_be("no_new_privs", st["NoNewPrivs"], "1")
    must_be("seccomp", st["Seccomp"], "2")
    must_be("uid", os.getresuid() == (UID, UID, UID), True)
    must_be("gid", os.getresgid() == (UID, UID, UID), True)
    must_be("groups", os.getgroups(), [], [UID])
    must_be("fds", sorted(int(f) for f in os.listdir("/proc/self/fd") if int(f) < 200)[:3], [0, 1, 2])
    extra = []
    for f in os.listdir("/proc/self/fd"):
        try:
            if int(f) > 2 and "/proc/" not in os.readlink("/proc/self/fd/" + f) and "/fd" not in os.readlink("/proc/self/fd/" + f):
                extra.append(os.readlink("/proc/self/fd/" + f))
        except OSError:
            pass
    must_be("fds.extra", extra, [])
    if ROOT:
        return
    must("setuid.0", lambda: os.setuid(0), errno.EPERM)
    must("setgid.0", lambda: os.setgid(0), errno.EPERM)
    must("setgroups", lambda: os.setgroups([0]), errno.EPERM, errno.ENOSYS)
    must("setresuid", lambda: os.setresuid(0, 0, 0), errno.EPERM)


def namespaces():
    for name, flag in (("user", 0x10000000), ("mnt", 0x20000), ("net", 0x40000000), ("pid", 0x20000000), ("ipc", 0x8000000),
                       ("uts", 0x4000000), ("cgroup", 0x2000000), ("time", 0x80)):
        must("unshare." + name, call("unshare", flag))
        if flag != 0x80:
            must("clone." + name, call("clone", flag | signal.SIGCHLD, 0, 0, 0, 0))
    must("unshare.user+all", call("unshare", 0x7e020000))
    args = struct.pack("11Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    must("clone3.user", call("clone3", ctypes.c_char_p(args), len(args)), errno.ENOSYS, errno.EPERM)
    for ns in ("user", "net", "mnt", "pid"):
        fd = os.open("/proc/self/ns/" + ns, os.O_RDONLY)
        must("setns." + ns, call("setns", fd, 0))
        # What the kernel gives is the sandbox's own namespace, or nothing.
        try:
            up = os.fstat(fcntl.ioctl(fd, 0xb701)).st_ino
        except OSError as e:
            up = errname(e.errno)
        must_be("ns_get_userns." + ns, up, os.stat("/proc/self/ns/user").st_ino, "EPERM", "EACCES")
        must("ns_get_parent." + ns, lambda: fcntl.ioctl(fd, 0xb702), errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTTY)
        os.close(fd)
    must("mount.tmpfs", call("mount", ctypes.c_char_p(b"x"), ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"tmpfs"), 0, None))
    must("mount.bind", call("mount", ctypes.c_char_p(b"/"), ctypes.c_char_p(b"/tmp"), None, 4096, None))
    must("mount.remount", call("mount", None, ctypes.c_char_p(b"/"), None, 32, None))
    must("umount.proc", call("umount2", ctypes.c_char_p(b"/proc"), 2))
    must("umount.init", call("umount2", ctypes.c_char_p(b"/dev/creel-init"), 2))
    for name in ("pivot_root", "chroot"):
        must(name, call(name, ctypes.c_char_p(b"/tmp"), ctypes.c_char_p(b"/tmp")))


def refused():
    for name in ("swapon", "acct", "reboot", "syslog", "sethostname", "settimeofday", "clock_settime", "init_module",
                 "finit_module", "delete_module", "kexec_load", "kexec_file_load", "add_key", "request_key", "keyctl", "bpf",
                 "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "fanotify_init",
                 "open_by_handle_at", "quotactl", "nfsservctl", "lookup_dcookie", "vhangup", "open_tree", "move_mount", "fsopen",
                 "fsconfig", "fsmount", "fspick", "mount_setattr", "quotactl_fd", "statmount", "listmount", "lsm_set_self_attr",
                 "open_tree_attr", "ioperm", "iopl", "modify_ldt", "uselib", "ustat", "sysfs"):
        if nr(name) is not None:
            must("syscall." + name, call(name, 0, 0, 0, 0, 0, 0))
    for n in (500, 600, 1000, 4095):
        must("syscall.unknown.%d" % n, lambda: sys_(n), errno.ENOSYS, errno.EPERM)
    must("keyctl.join", call("keyctl", 1, 0, 0, 0, 0))
    must("personality.uname26", call("personality", 0x0020000))
    must("personality.no_randomize+read_implies_exec", call("personality", 0x0400000), errno.EPERM, errno.ENOSYS)


def sockets():
    fam = {"AF_ALG": 38, "AF_VSOCK": 40, "AF_PACKET": 17, "AF_KEY": 15, "AF_RXRPC": 33, "AF_BLUETOOTH": 31, "AF_CAN": 29,
           "AF_TIPC": 30, "AF_XDP": 44, "AF_QIPCRTR": 42, "AF_KCM": 41, "AF_NFC": 39, "AF_IB": 27, "AF_RDS": 21, "AF_PPPOX": 24,
           "AF_LLC": 26, "AF_X25": 9, "AF_AX25": 3, "AF_SMC": 43, "AF_MCTP": 45, "AF_PHONET": 35, "AF_CAIF": 37, "AF_IPX": 4}
    sock = (41, 198)[0 if X86 else 1]
    pair = (53, 199)[0 if X86 else 1]
    bad = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENOSYS, errno.ESOCKTNOSUPPORT)
    for name, f in fam.items():
        for t in (1, 2, 3, 5):
            must("socket.%s.%d" % (name, t), lambda: sys_(sock, f, t, 0), *bad)
    for name, (f, t, p) in {
        "raw4": (2, 3, 1), "raw6": (10, 3, 58), "raw.ip": (2, 3, 255), "mptcp4": (2, 1, 262), "mptcp6": (10, 1, 262),
        "sctp": (2, 1, 132), "sctp.seq": (2, 5, 132), "dccp": (2, 6, 33), "udplite4": (2, 2, 136), "udplite6": (10, 2, 136),
        "l2tp": (2, 2, 115), "icmp": (2, 2, 1), "icmp6": (10, 2, 58), "smc": (2, 1, 256), "ulp": (2, 1, 1),
        "nl.xfrm": (16, 3, 6), "nl.netfilter": (16, 3, 12), "nl.audit": (16, 3, 9), "nl.generic": (16, 3, 16), "nl.crypto": (16, 3, 21),
        "nl.uevent": (16, 3, 15), "nl.diag": (16, 3, 4), "nl.rdma": (16, 3, 20), "nl.selinux": (16, 3, 7), "nl.iscsi": (16, 3, 8),
        "nl.connector": (16, 3, 11), "nl.scsi": (16, 3, 18), "nl.dgram.xfrm": (16, 2, 6), "unix.raw": (1, 3, 0), "packet.all": (17, 3, 0x300),
    }.items():
        must("socket." + name, lambda: sys_(sock, f, t, p), *bad)
        must("socket.cloexec." + name, lambda: sys_(sock, f, t | 0o2004000, p), *bad)
    must("socketpair.alg", lambda: sys_(pair, 38, 5, 0, BUF), *bad)
    # The upper half of a register must not carry a family past the filter.
    must("socket.high_bits", lambda: sys_(sock, (1 << 32) | 38, 5, 0), *bad)
    must("socket.high_bits.packet", lambda: sys_(sock, (0xdead << 32) | 17, 3, 0), *bad)
    for name, args in {"tcp4": (2, 1, 0), "udp4": (2, 2, 0), "tcp6": (10, 1, 6), "unix": (1, 1, 0), "route": (16, 3, 0)}.items():
        if PROFILE != "strict":
            s = socket.socket(*args)
            must_be("socket.allowed." + name, s.fileno() > 2, True)
            s.close()
    if PROFILE == "strict":
        return  # it allows fewer sockets than what follows needs
    # The only interface is lo, and nothing routes out.
    must_be("net.interfaces", [n for _, n in socket.if_nameindex()], ["lo"])
    for a in (("93.184.216.34", 443), ("169.254.169.254", 80), ("10.0.0.1", 22), ("172.17.0.1", 2375)):
        s = socket.socket()
        s.settimeout(2)
        must("net.connect." + a[0], lambda: s.connect(a), errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)
        s.close()
    # The host's abstract sockets are in another network namespace.
    s = socket.socket(socket.AF_UNIX)
    must("unix.abstract.host", lambda: s.connect("\0" + HOST_ABSTRACT), errno.ECONNREFUSED)
    must_be("unix.table", [l for l in open("/proc/net/unix") if HOST_ABSTRACT in l], [])


def setid():
    os.chdir("/tmp")
    p = ctypes.c_char_p
    for bits in () if ROOT else (0o4755, 0o2755, 0o6777, 0o4000, 0o2000):
        open("f", "w").close()
        d = os.open("/tmp", os.O_RDONLY)
        f = os.open("f", os.O_RDWR)
        o = "%o." % bits
        E = (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EINVAL)
        must("setid.%sfchmod" % o, call("fchmod", f, bits), *E)
        must("setid.%sfchmodat" % o, call("fchmodat", d, p(b"f"), bits), *E)
        must("setid.%sfchmodat2" % o, call("fchmodat2", d, p(b"f"), bits, 0), *E)
        must("setid.%sopenat" % o, call("openat", d, p(b"n1"), os.O_CREAT | os.O_RDWR, bits), *E)
        must("setid.%sopenat.tmpfile" % o, call("openat", -100, p(b"/tmp"), os.O_TMPFILE | os.O_RDWR, bits), *E)
        must("setid.%smkdirat" % o, call("mkdirat", d, p(b"n2"), bits), *E)
        must("setid.%smknodat" % o, call("mknodat", d, p(b"n3"), stat.S_IFREG | bits, 0), *E)
        how = struct.pack("QQQ", os.O_CREAT | os.O_RDWR, bits, 0)
        must("setid.%sopenat2" % o, call("openat2", d, p(b"n4"), p(how), len(how)), *E)
        # High bits of the mode's register are the kernel's to drop.
        must("setid.%sfchmod.high" % o, call("fchmod", f, (1 << 32) | bits), *E)
        if X86:
            must("setid.%schmod" % o, call("chmod", p(b"f"), bits), *E)
            must("setid.%sopen" % o, call("open", p(b"n5"), os.O_CREAT | os.O_RDWR, bits), *E)
            must("setid.%screat" % o, call("creat", p(b"n6"), bits), *E)
            must("setid.%smkdir" % o, call("mkdir", p(b"n7"), bits), *E)
            must("setid.%smknod" % o, call("mknod", p(b"n8"), stat.S_IFREG | bits, 0), *E)
        must("setid.%smq_open" % o, call("mq_open", p(b"creel"), os.O_CREAT | os.O_RDWR, bits, None), *E)
        os.close(d)
        os.close(f)
    left = [n for n in os.listdir("/tmp") if os.lstat("/tmp/" + n).st_mode & 0o6000]
    must_be("setid.none", left, [])
    how = struct.pack("QQQ", os.O_CREAT | os.O_RDWR, 0o4755, 0)
    must("setid.openat2", call("openat2", -100, p(b"n9"), p(how), len(how)))
    open("/tmp/f", "w").close()
    for kind, name in ((stat.S_IFCHR, "chr"), (stat.S_IFBLK, "blk")):
        must("mknod." + name, lambda: os.mknod("/tmp/dev-" + name, kind | 0o666, os.makedev(1, 1)))
    for ns, v in (("security.capability", b"\1\0\0\2" + b"\xff" * 16), ("trusted.x", b"1"), ("security.ima", b"x")):
        must("xattr." + ns, lambda: os.setxattr("/tmp/f", ns, v), errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS)


def kernel():
    E = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENODEV, errno.EIO)
    for f in ("kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/sysrq", "vm/overcommit_memory", "kernel/randomize_va_space",
              "fs/binfmt_misc/register", "net/ipv4/ip_forward", "kernel/ns_last_pid", "fs/mqueue/queues_max", "user/max_user_namespaces",
              "kernel/shmmax", "kernel/msgmax", "net/core/somaxconn"):
        must("proc.sys." + f, lambda: os.open("/proc/sys/" + f, os.O_WRONLY), *E)
    for f in ("sysrq-trigger", "kcore", "kmsg", "kallsyms", "keys", "timer_list", "sched_debug", "latency_stats", "kpagecount", "vmallocinfo",
              "irq/default_smp_affinity", "bus/pci", "fs/ext4", "scsi/scsi", "acpi", "asound", "mtrr"):
        def use():
            fd = os.open("/proc/" + f, os.O_WRONLY)
            if os.fstat(fd).st_rdev == os.makedev(1, 3):
                raise OSError(errno.EACCES, "masked by /dev/null")
            return os.write(fd, b"h")
        must("proc.%s.write" % f, use, *(E + (errno.EISDIR,)))
    for f in ("kcore", "keys", "timer_list"):
        def read():
            b = os.read(os.open("/proc/" + f, os.O_RDONLY), 4096)
            if b == b"":
                raise OSError(errno.EACCES, "empty")
            return b[:32]
        must("proc.%s.read" % f, read, *E)
    for d in ("/sys/kernel", "/sys/class", "/sys/firmware", "/sys/fs/bpf", "/sys/devices", "/sys/module"):
        must("sys" + d, lambda: os.listdir(d), errno.ENOENT, errno.EACCES)
    for dirpath, dirs, files in os.walk("/sys"):  # cgroup v2's tree, nothing with v1
        for f in files:
            must("cgroup.write " + dirpath + "/" + f, lambda: os.open(os.path.join(dirpath, f), os.O_WRONLY), errno.EROFS, errno.EACCES, errno.EPERM)
        must("cgroup.mkdir " + dirpath, lambda: os.mkdir(dirpath + "/x"), errno.EROFS, errno.EACCES, errno.EPERM)
        if dirpath.count("/") > 5:
            dirs.clear()
    for d in ("mem", "kmem", "port", "sda", "vda", "nvme0n1", "loop0", "loop-control", "fuse", "net/tun", "kvm", "kmsg", "mapper/control",
              "vhost-net", "vsock", "uinput", "snapshot", "userfaultfd", "tty0", "console", "ppp", "vfio/vfio", "dri/card0", "cuse"):
        must("dev." + d, lambda: os.open("/dev/" + d, os.O_RDWR | os.O_NONBLOCK), errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV)
    if not ROOT:  # who has a /dev of its own
        must("dev.mkdir", lambda: os.mkdir("/dev/x"), errno.EACCES, errno.EROFS, errno.EPERM)
    bad = []
    for line in open("/proc/self/mountinfo"):
        w = line.split()
        opts = w[5].split(",")
        tail = w[w.index("-") + 1]
        if "nosuid" not in opts and not w[4].startswith("/dev/") and not w[4].startswith("/proc/"):
            bad.append(w[4] + ":" + w[5])
        if tail == "sysfs":
            bad.append("sysfs at " + w[4])
    must_be("mounts.nosuid", bad, [])
    for p in () if ROOT else ("/etc/passwd", "/bin/sh", "/usr/bin/env", "/", "/usr"):
        must("root.write " + p, lambda: os.open(p, os.O_WRONLY), errno.EROFS, errno.EACCES, errno.EISDIR, errno.ETXTBSY)


def root():
    """What a root of the sandbox's user namespace could have more."""
    if not ROOT:
        return
    p = ctypes.c_char_p
    must("root.setuid.outside", lambda: os.setuid(65536), errno.EINVAL)
    must("root.setgroups.outside", lambda: os.setgroups([65536]), errno.EINVAL)
    must("root.setresuid.outside", lambda: os.setresuid(-1, 1 << 31, -1), errno.EINVAL)
    # Capabilities: the header of version 3, then effective, permitted, inheritable twice.
    head = struct.pack("Ii", 0x20080522, 0)
    for cap in range(41):
        if (0xcb >> cap) & 1:
            continue
        low, high = (1 << cap) & 0xffffffff, (1 << cap) >> 32
        data = struct.pack("6I", low, low, 0, high, high, 0)
        must("root.capset.%d" % cap, lambda: sys_(126 if X86 else 91, p(head), p(data)), errno.EPERM)
        must("root.ambient.%d" % cap, lambda: sys_(157 if X86 else 167, 47, 2, cap, 0, 0), errno.EPERM)
    # The program of PID 1, which every command is forked from.
    i = "/dev/creel-init"
    must("root.init.chown", lambda: os.chown(i, 0, 0), errno.EPERM, errno.EROFS)
    must("root.init.utime", lambda: os.utime(i), errno.EPERM, errno.EROFS, errno.EACCES)
    must("root.init.truncate", lambda: os.truncate(i, 0), errno.EACCES, errno.EROFS, errno.ETXTBSY)
    must("root.init.link", lambda: os.link(i, "/dev/i2"), errno.EPERM, errno.EXDEV)
    must("root.init.replace", lambda: os.rename("/dev/null", i), errno.EBUSY, errno.EXDEV)
    must("root.init.xattr", lambda: os.setxattr(i, "user.x", b"x"), errno.EPERM, errno.EROFS, errno.EACCES)
    must("root.init.copy", lambda: open(i, "rb").read(), errno.EACCES)
    # No mount point goes away from under what is mounted.
    for d in ("/dev", "/proc", "/sys", "/dev/pts", "/tmp", "/run"):
        must("root.rmdir " + d, lambda: os.rmdir(d), errno.EBUSY)
        must("root.rename " + d, lambda: os.rename(d, "/x"), errno.EBUSY, errno.EXDEV)
    for f in ("/dev/null", "/proc/keys"):
        must("root.unlink " + f, lambda: os.unlink(f), errno.EBUSY, errno.EPERM, errno.ENOENT, errno.EACCES)
    # Its own maps are written once, and by the runtime.
    for f in ("uid_map", "gid_map", "setgroups"):
        def write():
            fd = os.open("/proc/self/" + f, os.O_WRONLY)
            return os.write(fd, b"deny" if f == "setgroups" else b"0 0 1\n")
        must("root." + f, write, errno.EPERM, errno.EACCES, errno.EINVAL)
    # Devices and whiteouts, which the layer's overlay would take for its own.
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        must("root.mknod.%o" % kind, lambda: os.mknod("/root/w", kind | 0o666, 0))
    open("/root/a", "w").close()
    must("root.whiteout", lambda: sys_(316 if X86 else 276, -100, p(b"/root/a"), -100, p(b"/root/b"), 4))
    for a in ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "security.capability"):
        must("root.xattr." + a, lambda: os.setxattr("/root/a", a, b"y"), errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL)
    # A set-user-ID program gains nothing: its mount is nosuid, and no_new_privs.
    import shutil
    import subprocess
    shutil.copy("/usr/bin/id", "/usr/local/bin/id5")
    os.chown("/usr/local/bin/id5", 5, 5)
    os.chmod("/usr/local/bin/id5", 0o6755)
    must_be("root.setid.inert", subprocess.check_output(["/usr/local/bin/id5"], text=True).split()[:2], ["uid=0(root)", "gid=0(root)"])
    # Who stops being root stays so, and has nothing left.
    r, w = os.pipe()
    if os.fork() == 0:
        try:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            st = [l.split()[1] for l in open("/proc/self/status") if l.startswith(("CapPrm", "CapEff", "CapInh", "CapAmb"))]
            got = "caps " + " ".join("0" if int(c, 16) == 0 else c for c in st)
            os.setuid(0)
            got += " root again"
        except OSError as e:
            got += " " + errname(e.errno)
        os.write(w, got.encode())
        os._exit(0)
    os.wait()
    must_be("root.dropped", os.read(r, 200).decode(), "caps 0 0 0 0 EPERM")
    # Its /dev holds few files.
    n = 0
    try:
        while n < 5000:
            open("/dev/shm/../f%d" % n, "w").close()
            n += 1
    except OSError as e:
        report("root.dev.full", errname(e.errno), ["ENOSPC"])
    must_be("root.dev.few", n < 256, True)
    for i in range(n):
        os.unlink("/dev/f%d" % i)


def tty():
    try:
        m, s = os.openpty()
    except OSError as e:
        report("tty.openpty", errname(e.errno), ["success"])
        return
    for name, req in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C)):
        for end, fd in (("slave", s), ("master", m), ("stdin", 0)):
            must("%s.%s" % (name, end), lambda: fcntl.ioctl(fd, req, b"\x01"))
            # The kernel looks at 32 bits of the request only, and so must the filter.
            must("%s.%s.high" % (name, end), lambda: sys_(16 if X86 else 29, fd, (1 << 32) | req, BUF))
    for name, req in (("KDSETMODE", 0x4B3A), ("KDGKBENT", 0x4B46), ("VT_ACTIVATE", 0x5606)):
        must("tty." + name, lambda: fcntl.ioctl(s, req, 0), errno.ENOTTY, errno.EPERM, errno.EINVAL)


def abis():
    """Another ABI's system calls end the process; a child tries each."""
    if not X86:
        return
    code = {
        # int 0x80: getpid of i386
        "i386.getpid": b"\xb8\x14\x00\x00\x00\xcd\x80\xc3",
        # int 0x80: socketcall(SOCKET, ...) of i386
        "i386.socketcall": b"\xb8\x66\x00\x00\x00\xbb\x01\x00\x00\x00\xb9\x00\x00\x00\x00\xcd\x80\xc3",
        # int 0x80: keyctl of i386
        "i386.keyctl": b"\xb8\x20\x01\x00\x00\xcd\x80\xc3",
        # syscall: x32 getpid
        "x32.getpid": b"\xb8\x27\x00\x00\x40\x0f\x05\xc3",
        # syscall: x32 ptrace (its own number, 521)
        "x32.ptrace": b"\xb8\x09\x02\x00\x40\x0f\x05\xc3",
        # syscall: x32 keyctl
        "x32.keyctl": b"\xb8\xfa\x00\x00\x40\x0f\x05\xc3",
    }
    for name, c in code.items():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            try:
                m = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            except OSError:
                os._exit(99)
            m.write(c)
            addr = ctypes.addressof(ctypes.c_char.from_buffer(m))
            r = ctypes.CFUNCTYPE(ctypes.c_int)(addr)()
            os._exit(0 if r >= 0 else (-r if -r < 99 else 98))
        _, status = os.waitpid(pid, 0)
        got = "signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "exit %d" % os.WEXITSTATUS(status)
        must_be("abi." + name, got, "signal %d" % signal.SIGSYS, "signal %d" % signal.SIGSEGV, "exit %d" % errno.ENOSYS, "exit %d" % errno.EPERM)


def limits():
    for name in ("NOFILE", "CORE", "MEMLOCK", "MSGQUEUE"):
        soft, hard = resource.getrlimit(getattr(resource, "RLIMIT_" + name, 12))
        must("rlimit.raise." + name, lambda: raise_limit(getattr(resource, "RLIMIT_" + name, 12), hard), errno.EPERM, errno.EINVAL)
    must("nice.raise", lambda: os.setpriority(os.PRIO_PROCESS, 0, -20), errno.EACCES, errno.EPERM)
    must("sched.fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99)), errno.EPERM, errno.ENOSYS)
    must("oom.lower", lambda: lower_oom(), errno.EACCES, errno.EPERM)


def raise_limit(r, hard):
    try:
        resource.setrlimit(r, (hard + 1, hard + 1))
    except ValueError as e:
        raise OSError(errno.EPERM, str(e))


def lower_oom():
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    return os.write(fd, b"-1000\n")


HOST_ABSTRACT, PROFILE = sys.argv[1:3]
ROOT = PROFILE == "build"
UID = 0 if ROOT else 1000
for group in (identity, pid1, namespaces, refused, sockets, setid, kernel, root, tty, abis, limits, signals):
    try:
        group()
    except Exception as e:  # a mistake here must not pass for safety
        report("group." + group.__name__, "%s: %s" % (type(e).__name__, e), ["no exception"])
report("end", "end", ["end"])
