package inside

import (
	"syscall"
	"unsafe"
)

// All commands of a sandbox have one uid, which is all that /proc asks for
// where ptrace(2) would be allowed: one command could read another's memory
// and environment, and open its descriptors. A Landlock domain for each
// command ends that. The kernel lets a process trace only those in its own
// domain and in ones below it (security/landlock/task.c), and PID 1, which is
// in none, is above all of them.
//
// The domain takes nothing else away. A ruleset must handle something, and
// every ruleset that handles files refuses links and renames from one
// directory into another but where a rule allows them (LANDLOCK_ACCESS_FS_REFER,
// ABI 2, Linux 5.19). So that right is all that is handled, and it is allowed
// everywhere.

const (
	accessRefer     = 1 << 13
	rulePathBeneath = 1
	oPath           = 0x200000

	// From 424 on, the numbers are the same for every architecture.
	sysLandlockCreateRuleset = 444
	sysLandlockAddRule       = 445
	sysLandlockRestrictSelf  = 446
)

// isolate is whether rulesetFD is there: each command gets a domain.
var isolate bool

// makeRuleset makes the one ruleset of which each command's domain is made.
func makeRuleset() syscall.Errno {
	handled := uint64(accessRefer)
	fd, e := sys3(sysLandlockCreateRuleset, uintptr(unsafe.Pointer(&handled)), unsafe.Sizeof(handled), 0)
	if e != 0 {
		return e
	}
	defer func() { closeFD(fd) }()
	root, e := open("/", oPath|syscall.O_DIRECTORY)
	if e != 0 {
		return e
	}
	defer closeFD(root)
	rule := struct { // landlock_path_beneath_attr, which ends after the descriptor
		access uint64
		parent int32
	}{accessRefer, int32(root)}
	if _, _, e := syscall.RawSyscall6(sysLandlockAddRule, uintptr(fd), rulePathBeneath, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return e
	}
	if e := dup3(fd, rulesetFD, syscall.O_CLOEXEC); e != 0 {
		return e
	}
	isolate = true
	return 0
}

// look is one attempt to see into another process. Only O_PATH and reading:
// more is asked for /proc/PID/mem where Yama is active.
type look struct {
	path  *byte
	flags uintptr
}

// pair is the two commands of the probe: all that its children need, made
// before the fork as a plan is.
var pair struct {
	isolate bool
	ready   int // written to by the first when it can be looked at
	end     int // read by the first until its other end is closed
	b       [1]byte
	looks   [5]look
}

// What the second of the pair says when it could not try.
const (
	errNoComparison = syscall.EPROTO // not refused by Landlock alone
	errNotReady     = syscall.ESRCH
)

// isolation starts two processes as two commands are, and has the second look
// into the first: EACCES if that is refused and was possible before the
// second had its domain. 0 is that it could.
func isolation() syscall.Errno {
	r, w, e := pipe()
	if e != 0 {
		return e
	}
	defer func() { closeFD(r) }()
	hold, held, e := pipe()
	if e != 0 {
		closeFD(w)
		return e
	}
	defer func() { closeFD(held) }()
	pair.isolate, pair.ready, pair.end = isolate, w, hold
	first, e := forkAs(roleFirst, nil)
	closeFD(w)
	closeFD(hold)
	if e != 0 {
		return e
	}
	defer func() {
		_ = kernel{}.kill(first, syscall.SIGKILL)
		wait(first)
	}()
	var b [1]byte
	if n, e := read(r, b[:]); e != 0 || n != 1 {
		return errNotReady
	}
	arena.used = 0
	dir := append([]byte("/proc/"), itoa(first)...)
	for i, l := range [...]struct {
		name  string
		flags uintptr
	}{{"/fd/0", oPath}, {"/environ", 0}, {"/cwd", oPath}, {"/root", oPath}, {"/exe", oPath}} {
		pair.looks[i] = look{cstr(dir, []byte(l.name)), l.flags | syscall.O_CLOEXEC}
	}
	second, e := forkAs(roleSecond, nil)
	if e != 0 {
		return e
	}
	status := wait(second)
	if !status.Exited() {
		return errNotReady
	}
	return syscall.Errno(status.ExitStatus())
}

// firstOfPair is dumpable, as commands are once they are executed, and waits.
//
//go:nosplit
//go:norace
func firstOfPair() {
	if pair.isolate {
		if _, _, e := syscall.RawSyscall(sysLandlockRestrictSelf, rulesetFD, 0, 0); e != 0 {
			childExit(1) // nothing is written: not ready
		}
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 1, 0)
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, uintptr(pair.ready), uintptr(unsafe.Pointer(&pair.b)), 1)
	_, _, _ = syscall.RawSyscall(syscall.SYS_READ, uintptr(pair.end), uintptr(unsafe.Pointer(&pair.b)), 1)
	childExit(0)
}

// secondOfPair looks without a domain and with one. It exits with the errno.
//
//go:nosplit
//go:norace
func secondOfPair() {
	for i := range pair.looks {
		if tryLook(&pair.looks[i]) != 0 {
			childExit(uintptr(errNoComparison))
		}
	}
	if pair.isolate {
		if _, _, e := syscall.RawSyscall(sysLandlockRestrictSelf, rulesetFD, 0, 0); e != 0 {
			childExit(uintptr(e))
		}
	}
	var last syscall.Errno
	for i := range pair.looks {
		if last = tryLook(&pair.looks[i]); last != syscall.EACCES {
			break
		}
	}
	childExit(uintptr(last))
}

//go:nosplit
//go:norace
func tryLook(l *look) syscall.Errno {
	fd, _, e := syscall.RawSyscall6(syscall.SYS_OPENAT, atFDCWD, uintptr(unsafe.Pointer(l.path)), l.flags, 0, 0, 0)
	if e == 0 {
		_, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
	}
	return e
}

// wait waits for the end of a child.
func wait(pid int) (status syscall.WaitStatus) {
	for {
		var st int32
		_, _, e := syscall.Syscall6(syscall.SYS_WAIT4, uintptr(pid), uintptr(unsafe.Pointer(&st)), 0, 0, 0, 0)
		if e != syscall.EINTR {
			return syscall.WaitStatus(st)
		}
	}
}
