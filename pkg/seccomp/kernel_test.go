package seccomp_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/pkg/kerneltest"
	"github.com/creel-sandbox/creel/pkg/seccomp"
	"github.com/creel-sandbox/creel/profiles"
)

// The test binary runs itself with this variable set to a profile's name: it
// then loads that filter into itself and runs its arguments, or the table of
// calls when there are none.
const childEnv = "CREEL_TEST_SECCOMP_CHILD"

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := child(name, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child needs no privilege: no_new_privs is enough to load a filter.
func child(name string, argv []string) error {
	p, err := seccomp.Load(profiles.FS, name)
	if err != nil {
		return err
	}
	f, err := p.Compile(runtime.GOARCH)
	if err != nil {
		return err
	}
	if err := install(f); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if len(argv) == 0 {
		return tryCalls(name)
	}
	return syscall.Exec(argv[0], argv, append(os.Environ(), childEnv+"=")) // returns only on error
}

func install(f seccomp.Filter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	if r != 0 {
		return fmt.Errorf("thread %d could not take the filter", r)
	}
	return nil
}

// tryCalls makes each call for real and compares the kernel's errno.
func tryCalls(profile string) error {
	dir, err := os.MkdirTemp("", "seccomp")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	netlink := unix.Errno(0)
	if profile == "strict" {
		netlink = unix.EAFNOSUPPORT
	}
	socket := func(f, t, p int) func() error {
		return func() error {
			fd, err := unix.Socket(f, t, p)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}
	}
	call := func(nr uintptr, a ...uintptr) func() error {
		var x [6]uintptr
		copy(x[:], a)
		return func() error {
			if _, _, errno := unix.Syscall6(nr, x[0], x[1], x[2], x[3], x[4], x[5]); errno != 0 {
				return errno
			}
			return nil
		}
	}
	const cloexec = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	tests := []struct {
		name string
		do   func() error
		want unix.Errno
	}{
		{"tcp", socket(unix.AF_INET, unix.SOCK_STREAM|cloexec, 0), 0},
		{"tcp by number", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP), 0},
		{"udp", socket(unix.AF_INET, unix.SOCK_DGRAM, 0), 0},
		{"udp by number", socket(unix.AF_INET, unix.SOCK_DGRAM|cloexec, unix.IPPROTO_UDP), 0},
		{"mptcp", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), unix.EPROTONOSUPPORT},
		{"udplite", socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE), unix.EPROTONOSUPPORT},
		{"ping", socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP), unix.EPROTONOSUPPORT},
		{"raw", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP), unix.EPROTONOSUPPORT},
		{"sctp", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP), unix.EPROTONOSUPPORT},
		{"unix stream", socket(unix.AF_UNIX, unix.SOCK_STREAM|cloexec, 0), 0},
		{"unix dgram", socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0), 0},
		{"unix seqpacket", socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0), 0},
		{"unix raw", socket(unix.AF_UNIX, unix.SOCK_RAW, 0), unix.EPROTONOSUPPORT},
		{"netlink route", socket(unix.AF_NETLINK, unix.SOCK_RAW|cloexec, unix.NETLINK_ROUTE), netlink},
		{"netlink xfrm", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM), unix.EAFNOSUPPORT},
		{"netlink netfilter", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER), unix.EAFNOSUPPORT},
		{"alg", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0), unix.EAFNOSUPPORT},
		{"vsock", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0), unix.EAFNOSUPPORT},
		{"packet", socket(unix.AF_PACKET, unix.SOCK_RAW, 0), unix.EAFNOSUPPORT},
		{"key", socket(unix.AF_KEY, unix.SOCK_RAW, 2), unix.EAFNOSUPPORT},
		{"rxrpc", socket(unix.AF_RXRPC, unix.SOCK_DGRAM, 0), unix.EAFNOSUPPORT},

		{"chmod 0755", func() error { return unix.Chmod(file, 0o755) }, 0},
		{"chmod 04755", func() error { return unix.Fchmodat(unix.AT_FDCWD, file, 0o4755, 0) }, unix.EPERM},
		{"fchmodat2 02755", call(unix.SYS_FCHMODAT2, ^uintptr(0), 0, 0o2755), unix.EPERM},
		{"open, make 04755", func() error { _, err := unix.Open(file+"x", unix.O_CREAT|unix.O_WRONLY, 0o4755); return err }, unix.EPERM},
		{"tmpfile 04755", func() error { _, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY, 0o4755); return err }, unix.EPERM},
		{"open with garbage mode", func() error {
			fd, err := unix.Open(file, unix.O_RDONLY, 0o6777)
			unix.Close(fd)
			return err
		}, 0},
		{"openat2", func() error { _, err := unix.Openat2(unix.AT_FDCWD, file, &unix.OpenHow{}); return err }, unix.ENOSYS},
		{"mkdir 02755", func() error { return unix.Mkdirat(unix.AT_FDCWD, file+"d", 0o2755) }, unix.EPERM},
		{"mkdir 01777", func() error { return unix.Mkdirat(unix.AT_FDCWD, file+"t", 0o1777) }, 0},
		{"mknod whiteout", func() error { return unix.Mknodat(unix.AT_FDCWD, file+"w", unix.S_IFCHR|0o600, 0) }, unix.EPERM},
		{"mknod fifo", func() error { return unix.Mknodat(unix.AT_FDCWD, file+"p", unix.S_IFIFO|0o600, 0) }, 0},

		{"io_uring", call(unix.SYS_IO_URING_SETUP, 1, 0), unix.ENOSYS},
		{"bpf", call(unix.SYS_BPF), unix.ENOSYS},
		{"keyctl", call(unix.SYS_KEYCTL, 0, 0), unix.ENOSYS},
		{"userfaultfd", call(unix.SYS_USERFAULTFD), unix.ENOSYS},
		{"perf_event_open", call(unix.SYS_PERF_EVENT_OPEN), unix.ENOSYS},
		{"clone3", call(unix.SYS_CLONE3, 0, 0), unix.ENOSYS},
		{"unshare user", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }, unix.EPERM},
		{"clone user", call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)), unix.EPERM},
		{"setns", func() error { return unix.Setns(0, 0) }, unix.EPERM},
		{"mount", func() error { return unix.Mount("", dir, "tmpfs", 0, "") }, unix.EPERM},
		{"fsopen", func() error { _, err := unix.Fsopen("tmpfs", 0); return err }, unix.EPERM},
		{"ptrace", call(unix.SYS_PTRACE), unix.EPERM},
		{"TIOCSTI", call(unix.SYS_IOCTL, 0, unix.TIOCSTI), unix.EPERM},
		{"TIOCSTI, upper half set", call(unix.SYS_IOCTL, 0, 1<<32|unix.TIOCSTI), unix.EPERM},
		{"TIOCLINUX", call(unix.SYS_IOCTL, 0, unix.TIOCLINUX), unix.EPERM},
		{"prlimit self", func() error { return unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) }, 0},
		{"prlimit other", func() error { return unix.Prlimit(1, unix.RLIMIT_NOFILE, nil, &unix.Rlimit{}) }, unix.EPERM},
		{"pidfd_getfd", call(unix.SYS_PIDFD_GETFD), unix.EPERM},
		{"PR_SET_MM", func() error { return unix.Prctl(unix.PR_SET_MM, 0, 0, 0, 0) }, unix.EINVAL},
		{"unknown number", call(4000), unix.ENOSYS},
		{"number -1", call(^uintptr(0)), unix.ENOSYS},
		{"memfd, not executable", func() error {
			fd, err := unix.MemfdCreate("m", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
			unix.Close(fd)
			return err
		}, 0},
	}
	var errs []error
	for _, tt := range tests {
		err := tt.do()
		var got unix.Errno
		if err != nil && !errors.As(err, &got) || got != tt.want {
			errs = append(errs, fmt.Errorf("%s: %v, want errno %d (%s)", tt.name, err, tt.want, unix.ErrnoName(tt.want))) //nolint:errorlint // it may be nil
		}
	}
	fmt.Printf("%d calls tried\n", len(tests))
	return errors.Join(errs...)
}

// filtered is a command that runs argv under the named profile.
func filtered(t *testing.T, name string, argv ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, argv...)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	cmd.Dir = t.TempDir()
	return cmd
}

// TestKernel loads the filters into a real kernel and makes real calls.
func TestKernel(t *testing.T) {
	for _, name := range shipped {
		t.Run(name, func(t *testing.T) {
			out, err := filtered(t, name).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "calls tried") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

const program = `package main

import "fmt"

func main() { fmt.Println("built") }
`

// TestPrograms runs what agents run, as far as this machine has it.
func TestPrograms(t *testing.T) {
	tests := []struct {
		name string
		argv []string
		want string
	}{
		{"bash", []string{"bash", "-c", "for i in 1 2 3; do echo $i | cat; done; mkdir -p a/b; cp -a a c; ls c"}, "3\nb"},
		{"coreutils", []string{"sh", "-c", "seq 1 100000 > s; sort -rn s | head -1; tar cf t.tar s; tar xf t.tar -O | wc -l; chmod 755 s; touch -d yesterday s; df . > /dev/null; nice -n 5 true; timeout 5 true; stat -c %a s"}, "100000\n100000\n755"},
		{"python", []string{"python3", "-c", "import subprocess,threading,socket,tempfile,multiprocessing,os,shutil,sqlite3,asyncio\nassert subprocess.run(['echo','x'],capture_output=True).stdout==b'x\\n'\nt=threading.Thread(target=print,args=('thread',));t.start();t.join()\nprint(multiprocessing.get_context('fork').Pool(2).map(abs,[-1,-2]))\ns=socket.create_server(('127.0.0.1',0));c=socket.create_connection(s.getsockname());open('f','w').write('x');shutil.copytree('.','/tmp/'+os.path.basename(os.getcwd())+'.copy');shutil.rmtree('/tmp/'+os.path.basename(os.getcwd())+'.copy')\nsqlite3.connect('d').execute('create table t(a)')\nasyncio.run(asyncio.sleep(0));print('done')"}, "done"},
		{"node", []string{"node", "-e", "const cp=require('child_process'),fs=require('fs'),w=require('worker_threads');fs.mkdirSync('x',{recursive:true});fs.promises.writeFile('x/y','1').then(()=>{console.log(cp.execSync('echo node').toString().trim());new w.Worker('console.log(\"worker\")',{eval:true}).on('exit',()=>require('http').createServer().listen(0,'127.0.0.1',function(){this.close();console.log('done')}))})"}, "done"},
		{"git", []string{"sh", "-c", "git init -q r && cd r && git config user.email a@b && git config user.name n && echo x > f && git add f && git commit -q -m m && git gc -q && git clone -q . ../r2 && git -C ../r2 log --oneline | wc -l"}, "1"},
		{"gcc", []string{"sh", "-c", "printf '#include <stdio.h>\\nint main(){puts(\"built\");}' > a.c && gcc -O1 -o a a.c && ./a"}, "built"},
		{"go", []string{"sh", "-c", "export HOME=$PWD XDG_CONFIG_HOME=$PWD/.config; mkdir -p .config/go/telemetry && echo off > .config/go/telemetry/mode; GOCACHE=$PWD/cache GOTOOLCHAIN=local GOFLAGS= go version && printf '%s' \"$PROGRAM\" > m.go && gofmt -l m.go && echo done"}, "done"},
		{"rustc", []string{"sh", "-c", "printf 'fn main(){println!(\"built\");}' > m.rs && rustc m.rs && ./m"}, "built"},
		{"perl", []string{"perl", "-e", "print `echo built`"}, "built"},
	}
	for _, name := range shipped {
		for _, tt := range tests {
			t.Run(name+"/"+tt.name, func(t *testing.T) {
				tool := tt.name
				switch tool {
				case "coreutils":
					tool = "sort"
				case "python":
					tool = "python3"
				}
				kerneltest.Require(t, kerneltest.Program(tool))
				path, err := exec.LookPath(tt.argv[0])
				if err != nil {
					t.Fatal(err)
				}
				cmd := filtered(t, name, append([]string{path}, tt.argv[1:]...)...)
				cmd.Env = append(cmd.Env, "PROGRAM="+program)
				out, err := cmd.CombinedOutput()
				if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), tt.want) {
					t.Errorf("%v, want output to end in %q\n%s", err, tt.want, out)
				}
			})
		}
	}
}

// TestForeignABIKills: a number of the x32 ABI ends the process.
func TestForeignABIKills(t *testing.T) {
	kerneltest.Require(t, kerneltest.AMD64, kerneltest.Python) // other machines have no second ABI in 64-bit mode
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range shipped {
		cmd := filtered(t, name, path, "-c", "import ctypes; ctypes.CDLL(None).syscall(0x40000000 | 39)")
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS {
			t.Errorf("%s: x32 getpid: %v, want SIGSYS", name, err)
		}
	}
}
