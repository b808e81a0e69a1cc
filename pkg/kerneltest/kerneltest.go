// Package kerneltest lets a test say what it needs from the machine.
//
// A test that cannot run is skipped and names the need. A need that CI
// promises (CREEL_TEST_REQUIRE, a comma-separated list of names) fails the
// test instead: a skip must never look like a pass.
package kerneltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Need is a feature of the machine that a test depends on.
type Need struct {
	Name  string
	Probe func() error // nil means the machine has it
}

// The needs known to this project.
var (
	Root = Need{"root", func() error {
		if os.Geteuid() != 0 {
			return errors.New("not running as root")
		}
		return nil
	}}
	// CgroupV1 and CgroupV2 are where the memory controller is.
	CgroupV1 = Need{"cgroup-v1", func() error { return exists("/sys/fs/cgroup/memory/cgroup.procs") }}
	CgroupV2 = Need{"cgroup-v2", func() error { return exists("/sys/fs/cgroup/cgroup.controllers") }}
	// Systemd is systemd as PID 1.
	Systemd = Need{"systemd", func() error { return exists("/run/systemd/system") }}
	// IDMap is id-mapped mounts (mount_setattr, Linux 5.12).
	IDMap = Need{"idmap", func() error {
		if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) {
			return errors.New("no mount_setattr(2)")
		}
		return nil
	}}
	// Landlock is an active Landlock of ABI 2 (Linux 5.19).
	Landlock = Need{"landlock", func() error {
		abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
		if errno != 0 {
			return errno
		}
		if abi < 2 {
			return fmt.Errorf("ABI %d", abi)
		}
		return nil
	}}
	// BPFLSM is a kernel that takes LSM programs (CONFIG_BPF_LSM and BTF) and
	// has bpf among its active LSMs.
	BPFLSM = Need{"bpf-lsm", bpfLSM}
	// NoBPFLSM is a kernel that does not.
	NoBPFLSM = Need{"no-bpf-lsm", func() error {
		if bpfLSM() == nil {
			return errors.New("this kernel takes LSM programs")
		}
		return nil
	}}
	// PeerPIDFD is SO_PEERPIDFD (Linux 6.5): a pidfd of who has connected.
	PeerPIDFD = Need{"peer-pidfd", peerPIDFD}
	// AMD64 is that machine.
	AMD64 = Need{"amd64", func() error {
		if runtime.GOARCH != "amd64" {
			return errors.New("this is " + runtime.GOARCH)
		}
		return nil
	}}
	// Terminal is /dev/ptmx, TerminalDevice that it is the device itself and no
	// link into a devpts.
	Terminal       = Need{"terminal", func() error { return exists("/dev/ptmx") }}
	TerminalDevice = Need{"terminal-device", func() error {
		fi, err := os.Lstat("/dev/ptmx")
		if err == nil && fi.Mode()&os.ModeDevice == 0 {
			err = errors.New("/dev/ptmx is no device")
		}
		return err
	}}
	// Users is a user database with a name for uid 0, and nobody.
	Users = Need{"users", func() error {
		_, rootErr := user.LookupId("0")
		_, err := user.Lookup("nobody")
		return errors.Join(rootErr, err)
	}}
	// TargetVM is the virtual machine of "make test-vm".
	TargetVM = Need{"target-vm", func() error { return set("CREEL_TEST_VM") }}
	// Soak is "make soak": what takes long, or much of the network.
	Soak = Need{"soak", func() error { return set("CREEL_SOAK") }}
	// Bin is the directory of pinned binaries that "make tools" builds.
	Bin = Need{"bin", func() error {
		for _, b := range []string{"containerd", "containerd-shim-runc-v2", "crun", "runc"} {
			if err := exists(filepath.Join(BinDir(), b)); err != nil {
				return fmt.Errorf("%w; run \"make tools\"", err)
			}
		}
		return nil
	}}
	// Busybox is a static busybox, for images of one file.
	Busybox = Need{"busybox", func() error {
		if err := exists(BusyboxPath()); err != nil {
			return fmt.Errorf("%w; install Debian's busybox-static", err)
		}
		return nil
	}}
	// Curl, Go, Node and Python are what the example clients are run with.
	Curl   = Program("curl")
	Go     = Program("go")
	Node   = Program("node")
	Python = Program("python3")
	// Java has keytool, which reads what its programs verify servers by.
	Java = Program("keytool")
	// Mmdebstrap is what images are built with.
	Mmdebstrap = Program("mmdebstrap")
	// NodeTS is a Node that runs TypeScript without being told to (22.18).
	NodeTS = Need{"node-ts", func() error {
		node, err := exec.LookPath("node")
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(context.Background(), node, "--print", "process.features.typescript").Output()
		if s := strings.TrimSpace(string(out)); err == nil && s != "strip" && s != "transform" {
			return fmt.Errorf("process.features.typescript is %q", s)
		}
		return err
	}}
	// TSC is a TypeScript compiler with Node's types (typescript, @types/node).
	TSC = Need{"tsc", func() error {
		types, err := NodeTypes()
		if err != nil {
			return err
		}
		return exists(filepath.Join(types, "node"))
	}}
	// BaseImage is the agent image that "make image" builds.
	BaseImage = Need{"base-image", func() error {
		if err := exists(BaseImagePath()); err != nil {
			return fmt.Errorf("%w; run \"make image\"", err)
		}
		return nil
	}}
	// PackagesImage is an image with package managers, that "make
	// image-packages" builds.
	PackagesImage = Need{"packages-image", func() error {
		if err := exists(PackagesImagePath()); err != nil {
			return fmt.Errorf("%w; run \"make image-packages\"", err)
		}
		return nil
	}}
)

// BinDir is bin/ of this checkout, or CREEL_BIN.
func BinDir() string {
	if d := os.Getenv("CREEL_BIN"); d != "" {
		return d
	}
	return filepath.Join(repo(), "bin")
}

// BaseImagePath is the OCI archive of the base agent image, or CREEL_BASE_IMAGE.
func BaseImagePath() string {
	if p := os.Getenv("CREEL_BASE_IMAGE"); p != "" {
		return p
	}
	return filepath.Join(repo(), ".cache", "images", "base.oci.tar")
}

// PackagesImagePath is the OCI archive of the image with package managers, or
// CREEL_PACKAGES_IMAGE.
func PackagesImagePath() string {
	if p := os.Getenv("CREEL_PACKAGES_IMAGE"); p != "" {
		return p
	}
	return filepath.Join(repo(), ".cache", "images", "packages.oci.tar")
}

// BusyboxPath is a static busybox: Debian's, or CREEL_TEST_BUSYBOX.
func BusyboxPath() string {
	if p := os.Getenv("CREEL_TEST_BUSYBOX"); p != "" {
		return p
	}
	return "/bin/busybox"
}

// NodeTypes is the directory of types that is installed beside tsc.
func NodeTypes() (string, error) {
	tsc, err := exec.LookPath("tsc")
	if err != nil {
		return "", err
	}
	if tsc, err = filepath.EvalSymlinks(tsc); err != nil { // .../typescript/bin/tsc
		return "", err
	}
	return filepath.Join(filepath.Dir(tsc), "..", "..", "@types"), nil
}

// Require skips the test if the machine lacks one of the needs, or fails it
// if CREEL_TEST_REQUIRE promises that need.
func Require(tb testing.TB, needs ...Need) {
	tb.Helper()
	promised := strings.Split(os.Getenv("CREEL_TEST_REQUIRE"), ",")
	for _, n := range needs {
		err := n.Probe()
		switch {
		case err == nil:
		case slices.Contains(promised, n.Name):
			tb.Fatalf("need %s is promised here: %v", n.Name, err)
		default:
			tb.Skipf("need %s: %v", n.Name, err)
		}
	}
}

func bpfLSM() error {
	if active, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil && !slices.Contains(strings.Split(strings.TrimSpace(string(active)), ","), "bpf") {
		return fmt.Errorf("active LSMs: %s", active)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.LSM, AttachType: ebpf.AttachLSMMac, AttachTo: "unix_may_send", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	return p.Close()
}

func peerPIDFD() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func set(variable string) error {
	if os.Getenv(variable) == "" {
		return errors.New(variable + " is not set")
	}
	return nil
}

// Program is one that is found in PATH; the need has its name.
func Program(name string) Need {
	return Need{name, func() error { _, err := exec.LookPath(name); return err }}
}

func exists(path string) error {
	_, err := os.Stat(path)
	return err
}

func repo() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}
