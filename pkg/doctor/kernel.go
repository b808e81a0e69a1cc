package doctor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/thread"
)

// minKernel is what creel refuses to start below.
const minKernel = "6.1"

// feature is something of the kernel that creel uses.
type feature struct {
	name   string
	since  string // the mainline version that brought it
	probe  func(context.Context, Inputs) error
	status string // of its absence
	cost   string
	fix    string
}

// errUnknown means that a probe cannot be made here.
var errUnknown = errors.New("not checked")

// askRoot is how to learn what needs root: from the daemon, or without it.
const askRoot = "ask root: creeld doctor, or creel doctor while creeld runs"

const newKernel = "install a newer kernel (Debian: the one of backports)"

var features = []feature{
	{"openat2", "5.6", simple(probeOpenat2), Missing, "no path can be followed safely", newKernel},
	{"pidfd_getfd", "5.6", simple(probePidfdGetfd), Missing, "the daemon cannot take its channel out of a sandbox's PID 1", newKernel},
	{"close_range", "5.9", simple(probeCloseRange), Missing, "descriptors cannot be kept out of a new process safely", newKernel},
	{"socket lookup programs", "5.9", simple(probeSkLookup), Weaker, "network policies cannot be enforced; sandboxes with network \"none\" can", newKernel},
	{"mount_setattr", "5.12", simple(probeMountSetattr), Missing, "no id-mapped mounts, so neither images nor workspaces", newKernel},
	{
		"id-mapped overlay layers", "5.19", probeOverlay, Missing, "images would have to be copied and chowned for each sandbox, which creel does not do",
		newKernel + ", or put the state directory on ext4, xfs or btrfs",
	},
	{"id-mapped tmpfs", "6.3", probeTmpfs, Weaker, "a directory on a tmpfs (often /tmp) cannot be mounted in a sandbox", newKernel},
	{
		"peer pidfd", "6.5", simple(probePeerPidfd), Weaker,
		"a caller is known by its credentials and pid; a pid that is used again within a request cannot be told apart", newKernel,
	},
	{
		"seccomp actions", "4.14", simple(probeSeccompActions), Missing, "agents cannot be held to a system call filter",
		"use a kernel with CONFIG_SECCOMP_FILTER",
	},
}

func kernel(ctx context.Context, in Inputs) []api.Check {
	var out []api.Check
	have := release()
	if compareVersions(have, minKernel) < 0 {
		out = append(out, bad(Missing, "kernel", have+", at least "+minKernel+" is needed", "creeld does not start", newKernel))
	} else {
		out = append(out, ok("kernel", "Linux %s (at least %s)", have, minKernel))
	}
	for _, f := range features {
		out = append(out, f.check(ctx, in))
	}
	return append(out, landlock(), userNamespaces(ctx, in))
}

func (f feature) check(ctx context.Context, in Inputs) api.Check {
	name := "kernel." + f.name
	err := f.probe(ctx, in)
	switch {
	case err == nil:
		return ok(name, "works (mainline since %s)", f.since)
	case errors.Is(err, errUnknown):
		return bad(Weaker, name, err.Error(), "it is not known whether "+f.name+" works", askRoot)
	}
	return bad(f.status, name, fmt.Sprintf("%v (mainline since %s)", err, f.since), f.cost, f.fix)
}

func simple(fn func() error) func(context.Context, Inputs) error {
	return func(context.Context, Inputs) error { return fn() }
}

// there tells from the error of a call with impossible arguments whether the
// call exists.
func there(err error) error {
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		return err // a filter, as containers have: root gets no other EPERM for these
	}
	return nil
}

func probeOpenat2() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func probePidfdGetfd() error {
	_, err := unix.PidfdGetfd(-1, 0, 0)
	return there(err)
}

func probeCloseRange() error { return unix.CloseRange(math.MaxUint32, math.MaxUint32, 0) }

func probeMountSetattr() error {
	return there(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}))
}

// probeSkLookup loads "return 1" as a socket lookup program, see bpf(2).
func probeSkLookup() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: needs root", errUnknown)
	}
	insns := [...]uint64{0x01_0000_00b7, 0x95} // r0 = 1; exit
	licence := [...]byte{'G', 'P', 'L', 0}
	attr := struct {
		progType, count        uint32
		insns, licence         unsafe.Pointer
		logLevel, logSize      uint32
		log                    uint64
		kernVersion, progFlags uint32
		name                   [16]byte
		ifindex, attachType    uint32
	}{
		progType: unix.BPF_PROG_TYPE_SK_LOOKUP, count: uint32(len(insns)), attachType: unix.BPF_SK_LOOKUP,
		insns: unsafe.Pointer(&insns), licence: unsafe.Pointer(&licence),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&attr)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

func probePeerPidfd() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// probeSeccompActions asks for the actions that creel's filters use.
func probeSeccompActions() error {
	for name, action := range map[string]uint32{
		"kill the process": unix.SECCOMP_RET_KILL_PROCESS,
		"errno":            unix.SECCOMP_RET_ERRNO,
		"allow":            unix.SECCOMP_RET_ALLOW,
	} {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
		if errno != 0 {
			return fmt.Errorf("action %q: %w", name, errno)
		}
	}
	return nil
}

func landlock() api.Check {
	const name = "kernel.landlock"
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	const cost = "exec_isolation: commands of one sandbox can read each other's memory, environment and open files, and profiles that require otherwise, as strict, cannot be used"
	if errno != 0 {
		return bad(Weaker, name, errno.Error(), cost, "boot with landlock in lsm=")
	}
	if abi < 2 {
		return bad(Weaker, name, fmt.Sprintf("ABI %d", abi), cost, newKernel)
	}
	return ok(name, "ABI %d", abi)
}

// rootNeeded is errUnknown if the caller is not root or gave no namespace.
func rootNeeded(in Inputs) error {
	if os.Geteuid() != 0 || in.UserNS == nil {
		return fmt.Errorf("%w: needs root", errUnknown)
	}
	return nil
}

func userNamespaces(ctx context.Context, in Inputs) api.Check {
	const name = "kernel.user namespaces"
	if err := rootNeeded(in); err != nil {
		return bad(Weaker, name, err.Error(), "it is not known whether sandboxes can have one", askRoot)
	}
	ns, err := in.UserNS(ctx, 65534, 65534)
	if err != nil {
		return bad(Missing, name, err.Error(), "no sandbox can be started",
			"raise /proc/sys/user/max_user_namespaces; use a kernel with CONFIG_USER_NS")
	}
	defer ns.Close()
	return ok(name, "can be made")
}

// idMap puts an id map on a detached mount.
func idMap(tree int, ns *os.File) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr)
}

func probeTmpfs(ctx context.Context, in Inputs) error {
	if err := rootNeeded(in); err != nil {
		return err
	}
	ns, err := in.UserNS(ctx, 65534, 65534)
	if err != nil {
		return err
	}
	defer ns.Close()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return idMap(m, ns)
}

// probeOverlay mounts an overlay over an id-mapped directory of the state
// directory, in a mount namespace that ends with the probe.
func probeOverlay(ctx context.Context, in Inputs) (err error) {
	if err := rootNeeded(in); err != nil {
		return err
	}
	if in.StateDir == "" {
		return fmt.Errorf("%w: no state directory", errUnknown)
	}
	ns, err := in.UserNS(ctx, 65534, 65534)
	if err != nil {
		return err
	}
	defer ns.Close()
	dir, err := os.MkdirTemp(nearest(in.StateDir), "doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, d := range []string{"lower", "mapped", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	return thread.Do(func() error { return tryOverlay(dir, ns) })
}

func tryOverlay(dir string, ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(dir, "lower"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(tree)
	if err := idMap(tree, ns); err != nil {
		return fmt.Errorf("id-map the state directory's file system: %w", err)
	}
	mapped := filepath.Join(dir, "mapped")
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, mapped, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", mapped, filepath.Join(dir, "upper"), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", filepath.Join(dir, "merged"), "overlay", unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("overlay over an id-mapped layer: %w", err)
	}
	// The namespace ends with the thread, but a moment later: RemoveAll of the
	// caller must not meet the mounts.
	return errors.Join(unix.Unmount(filepath.Join(dir, "merged"), unix.MNT_DETACH), unix.Unmount(mapped, unix.MNT_DETACH))
}
