package verify_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The test binary runs itself as PID 1 of a small sandbox: stage "outer" has
// root inside and builds it, then executes stage "inner", which waits.
const (
	stageEnv = "CREEL_TEST_VERIFY_STAGE"
	planEnv  = "CREEL_TEST_VERIFY_PLAN"
)

// plan is how to build the sandbox; the zero value but Root and Filter is a
// good one, every other field breaks one layer.
type plan struct {
	Root   string // where to mount the root
	Init   string // the file to run
	Filter []byte

	NoNNP       bool
	KeepCap     bool
	NoFilter    bool
	SecondOne   bool
	WritableTmp bool
	WritableAll bool
	ExtraMount  bool
	Shared      bool
	Dumpable    bool
	ExtraFD     bool
	ExtraGroup  bool
	OtherUID    bool
	OpenFiles   uint64
	Null        string // bound on /null; the host's when empty
}

const readyFD = 3

func TestMain(m *testing.M) {
	// The first thread is what /proc/PID shows; no test may run on it, and so
	// change its namespaces.
	runtime.LockOSThread()
	stage := os.Getenv(stageEnv)
	if stage == "" {
		os.Exit(m.Run())
	}
	var p plan
	err := json.Unmarshal([]byte(os.Getenv(planEnv)), &p)
	switch {
	case err != nil:
	case stage == "outer":
		err = outer(p)
	default:
		err = inner(p)
	}
	if err != nil {
		ready := os.NewFile(readyFD, "ready")
		fmt.Fprintf(ready, "%s: %v", stage, err)
		os.Exit(1)
	}
}

// outer runs on one thread; the program it executes has that thread's
// credentials on all of its threads.
func outer(p plan) error {
	if err := buildRoot(p); err != nil {
		return err
	}
	limit := uint64(1024)
	if p.OpenFiles != 0 {
		limit = p.OpenFiles
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return fmt.Errorf("nofile: %w", err)
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if p.KeepCap && c == unix.CAP_NET_RAW {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if p.NoNNP { // only a privileged process may load a filter so
		if err := load(p.Filter); err != nil {
			return err
		}
	} else if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	var groups []int
	if p.ExtraGroup {
		groups = []int{1234}
	}
	uid := 1000
	if p.OtherUID {
		uid = 1001
	}
	if err := setIDs(uid, 1000, groups); err != nil {
		return err
	}
	// What the test itself was started with is not part of the sandbox.
	if err := unix.CloseRange(readyFD+1, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	env := []string{stageEnv + "=inner", planEnv + "=" + os.Getenv(planEnv)}
	return fmt.Errorf("exec: %w", unix.Exec("/init", []string{"/init"}, env))
}

// setIDs is for this thread alone.
func setIDs(uid, gid int, groups []int) error {
	ids := make([]uint32, len(groups)+1)
	for i, g := range groups {
		ids[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&ids[0])), 0); e != 0 {
		return fmt.Errorf("setgroups: %w", e)
	}
	g, u := uintptr(gid), uintptr(uid)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, g, g, g); e != 0 {
		return fmt.Errorf("setresgid: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, u, u, u); e != 0 {
		return fmt.Errorf("setresuid: %w", e)
	}
	return nil
}

func buildRoot(p plan) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private: %w", err)
	}
	if err := unix.Mount("root", p.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m,nr_inodes=64"); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	for _, d := range []string{"tmp", "old", "more"} {
		if err := os.Mkdir(filepath.Join(p.Root, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(p.Root, "init"), nil, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(p.Root, "null"), nil, 0o666); err != nil {
		return err
	}
	null := "/dev/null"
	if p.Null != "" {
		null = p.Null
	}
	if err := unix.Mount(null, filepath.Join(p.Root, "null"), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", null, err)
	}
	bind := filepath.Join(p.Root, "init")
	if err := unix.Mount(p.Init, bind, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := setattr(bind, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV); err != nil {
		return err
	}
	noexec := uintptr(unix.MS_NOEXEC)
	if p.WritableTmp {
		noexec = 0
	}
	if err := unix.Mount("tmp", filepath.Join(p.Root, "tmp"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|noexec, "size=65536"); err != nil {
		return fmt.Errorf("tmp: %w", err)
	}
	if p.ExtraMount {
		if err := unix.Mount("more", filepath.Join(p.Root, "more"), "tmpfs", unix.MS_NOSUID, ""); err != nil {
			return fmt.Errorf("more: %w", err)
		}
	}
	if err := unix.PivotRoot(p.Root, filepath.Join(p.Root, "old")); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/old", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("old root: %w", err)
	}
	if p.Shared {
		if err := unix.Mount("", "/tmp", "", unix.MS_SHARED, ""); err != nil {
			return err
		}
	}
	if p.WritableAll {
		return nil
	}
	return setattr("/", unix.MOUNT_ATTR_RDONLY)
}

func setattr(path string, attr uint64) error {
	if err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: attr}); err != nil {
		return fmt.Errorf("flags of %s: %w", path, err)
	}
	return nil
}

func inner(p plan) error {
	dumpable := uintptr(0)
	if p.Dumpable {
		dumpable = 1
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, dumpable, 0, 0, 0); err != nil {
		return err
	}
	if !p.NoFilter && !p.NoNNP {
		if err := load(p.Filter); err != nil {
			return err
		}
	}
	if p.SecondOne {
		allow := []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f} // ret allow
		if err := load(allow); err != nil {
			return err
		}
	}
	if p.ExtraFD {
		if _, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
	}
	unix.Close(readyFD) // the parent sees the end of the pipe
	for {
		time.Sleep(time.Hour)
	}
}

func load(filter []byte) error {
	prog := unix.SockFprog{Len: uint16(len(filter) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return fmt.Errorf("seccomp: %w", e)
	}
	return nil
}

// start runs the plan as a child with the given namespaces and id map, in the
// network namespace of the calling thread, which must be locked.
func start(t *testing.T, p plan, flags uintptr, hostUID, ids int) (pid, pidfd int) {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostUID, Size: ids}}
	proc, err := os.StartProcess(p.Init, []string{"init"}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{stageEnv + "=outer", planEnv + "=" + string(text)},
		Files: []*os.File{null, null, null, w},
		Sys: &syscall.SysProcAttr{
			Cloneflags: flags, UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{Uid: 0, Gid: 0}, Pdeathsig: 0, PidFD: &pidfd, Setsid: true,
		},
	})
	w.Close()
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() {
		proc.Kill()
		proc.Wait()
		unix.Close(pidfd)
	})
	said := make([]byte, 4096)
	if n, _ := r.Read(said); n != 0 {
		t.Fatalf("child: %s", said[:n])
	}
	return proc.Pid, pidfd
}
