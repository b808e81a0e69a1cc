package hostilecaller

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// byDescriptor are directories that the attacker opens as far as it can.
func byDescriptor() []attempt {
	const dir = unix.O_DIRECTORY
	of := func(name, tries, fails string, path func(*attacker) string, flags int, readOnly bool, script string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			return a.mountOf(path(a), flags, readOnly, script)
		}}
	}
	is := func(p string) func(*attacker) string { return func(*attacker) string { return p } }
	rootOnly := func(a *attacker) string { return a.RootOnly }
	roots := func(a *attacker) string { return a.RootsOpen }
	victims := func(a *attacker) string { return a.Victims }
	idle := func(a *attacker) string { return a.VictimsIdle }
	list := []attempt{
		of("mount-unreadable", "show an agent a directory that only root may open", "EACCES", rootOnly, dir, true, "cat /mnt/x/secret"),
		of("mount-unreadable-by-path-descriptor", "open it with O_PATH, which needs no right to read", "Permission denied", rootOnly, dir|unix.O_PATH, true, "cat /mnt/x/secret"),
		of("mount-roots-writable", "write in root's directory as the agent", "permission_denied", roots, dir, false, "echo x >/mnt/x/new"),
		of("mount-roots-read-secret", "read root's 0600 file in a directory that is open to all", "Permission denied", roots, dir, true, "cat /mnt/x/secret"),
		of("mount-victims-read-secret", "read another user's 0600 file", "Permission denied", victims, dir, true, "cat /mnt/x/secret"),
		of("mount-victims-write", "write in another user's directory, which an agent of that user has", "conflict", victims, dir, false, "echo x >/mnt/x/new"),
		of("mount-anothers-write", "write in another user's directory, which no agent has", "Permission denied", idle, dir, false, "echo x >/mnt/x/new"),
		of("mount-anothers-chmod", "open another user's directory to all", "exit 1: chmod: /mnt/x: ", idle, dir, false, "chmod 777 /mnt/x"),
		of("mount-etc-shadow", "read the host's passwords", "Permission denied", is("/etc"), dir, true, "cat /mnt/x/shadow"),
		of("mount-etc-writable", "write the host's configuration", "permission_denied", is("/etc"), dir, false, "echo x >/mnt/x/passwd"),
		of("mount-slash", "show all of the host", "permission_denied", is("/"), dir, true, "ls /mnt/x"),
		of("mount-proc", "show the host's processes", "unsupported_host", is("/proc"), dir, true, "ls /mnt/x"),
		of("mount-proc-self", "show a process of the host", "unsupported_host", is("/proc/self"), dir, true, "ls /mnt/x"),
		of("mount-proc-daemon-root", "show the daemon's root through /proc", "EACCES", func(a *attacker) string { return fmt.Sprintf("/proc/%d/root", a.PID) }, dir, true, "ls /mnt/x"),
		of("mount-proc-daemon-cwd", "show the daemon's working directory", "EACCES", func(a *attacker) string { return fmt.Sprintf("/proc/%d/cwd", a.PID) }, dir, true, "ls /mnt/x"),
		of("mount-sys", "show the host's devices", "unsupported_host", is("/sys"), dir, true, "ls /mnt/x"),
		of("mount-cgroups", "change limits through cgroup files", "permission_denied", is("/sys/fs/cgroup"), dir, true, "ls /mnt/x"),
		of("mount-dev", "show the host's disks", "unsupported_host", is("/dev"), dir, true, "ls /mnt/x"),
		of("mount-dev-shm", "show the host's shared memory", "permission_denied", is("/dev/shm"), dir, false, "ls /mnt/x"),
		of("mount-daemons-directory", "show what holds the daemon's socket", "permission_denied", func(a *attacker) string { return a.Lab }, dir, true, "ls /mnt/x"),
		of("mount-daemons-run", "show the daemon's sockets", "permission_denied", func(a *attacker) string { return filepath.Join(a.Lab, "run") }, dir, true, "ls /mnt/x"),
		of("mount-daemons-run-path", "the same with O_PATH", "permission_denied", func(a *attacker) string { return filepath.Join(a.Lab, "run") }, dir|unix.O_PATH, true, "ls /mnt/x"),
		of("mount-daemons-state", "show the daemon's records", "EACCES", func(a *attacker) string { return filepath.Join(a.Lab, "state", "logs") }, dir, true, "ls /mnt/x"),
		of("mount-above-the-daemon", "show a directory that has the daemon's in it", "permission_denied", is("/tmp"), dir, true, "ls /mnt/x"),
		of("mount-run", "show the host's sockets", "permission_denied", is("/run"), dir, true, "ls /mnt/x"),
	}
	for _, f := range []struct {
		name, tries string
		open        func(*attacker) (*os.File, error)
	}{
		{"mount-a-file", "pass a file for a directory", func(*attacker) (*os.File, error) { return os.Open("/etc/passwd") }},
		{"mount-a-device", "pass a device", func(*attacker) (*os.File, error) { return os.Open("/dev/null") }},
		{"mount-a-pipe", "pass a pipe that never answers", func(*attacker) (*os.File, error) {
			r, _, err := os.Pipe()
			return r, err
		}},
		{"mount-a-memfd", "pass memory", func(*attacker) (*os.File, error) {
			fd, err := unix.MemfdCreate("x", 0)
			return os.NewFile(uintptr(fd), "memfd"), err
		}},
		{"mount-a-socket", "pass a socket", func(*attacker) (*os.File, error) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			return os.NewFile(uintptr(fd), "socket"), err
		}},
		{"mount-an-epoll", "pass an event queue", func(*attacker) (*os.File, error) {
			fd, err := unix.EpollCreate1(0)
			return os.NewFile(uintptr(fd), "epoll"), err
		}},
		{"mount-a-tmpfile", "pass a file whose flags look like a directory's", func(a *attacker) (*os.File, error) {
			fd, err := unix.Open(a.Own, unix.O_TMPFILE|unix.O_RDWR, 0o600)
			return os.NewFile(uintptr(fd), "tmpfile"), err
		}},
		{"mount-a-link", "pass a link to root's directory, opened as a link", func(a *attacker) (*os.File, error) {
			link := filepath.Join(a.Own, "link")
			_ = os.Symlink(a.RootOnly, link)
			fd, err := unix.Open(link, unix.O_PATH|unix.O_NOFOLLOW, 0)
			return os.NewFile(uintptr(fd), "link"), err
		}},
	} {
		list = append(list, attempt{name: f.name, tries: f.tries, fails: "invalid_argument", do: func(a *attacker) string {
			file, err := f.open(a)
			if err != nil {
				return "could not be tried: " + err.Error()
			}
			defer file.Close()
			way, _ := a.spawn(mount("/mnt/x", true), "ls -la /mnt/x", file)
			return way
		}})
	}
	return append(list,
		attempt{name: "mount-no-descriptor", tries: "name a path, with no descriptor of it", fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"mounts": []obj{{"source": a.RootOnly, "target": "/mnt/x", "readonly": true}}}, "cat /mnt/x/secret")
			return way
		}},
		attempt{name: "mount-other-name", tries: "name root's directory and pass an own one", fails: "exit 1: cat: can't open '/mnt/x/secret'", do: func(a *attacker) string {
			f, err := open(a.Own, dir)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			way, _ := a.spawn(obj{"mounts": []obj{{"source": a.RootOnly, "fd": 0, "target": "/mnt/x", "readonly": true}}}, "cat /mnt/x/secret", f)
			return way
		}},
		attempt{name: "mount-seventeen", tries: "send more descriptors than are taken", fails: "invalid_argument", do: func(a *attacker) string {
			f, err := open(a.Own, dir)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			files := make([]*os.File, 17)
			for i := range files {
				files[i] = f
			}
			return a.ask("POST", "/v1/sandboxes", js(mount("/mnt/x", true)), files...).way()
		}},
		attempt{name: "mount-another-requests", tries: "use a descriptor that was sent with an earlier request", fails: "invalid_argument", do: func(a *attacker) string {
			f, err := open(a.Own, dir)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			a.ask("GET", "/v1/version", "", f)
			way, _ := a.spawn(mount("/mnt/x", true), "")
			return way
		}},
		attempt{name: "mount-deleted", tries: "pass a directory that is gone", fails: "invalid_argument", do: func(a *attacker) string {
			p := filepath.Join(a.Own, "gone")
			if err := os.Mkdir(p, 0o700); err != nil {
				return err.Error()
			}
			f, err := open(p, dir)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			_ = os.Remove(p)
			way, _ := a.spawn(mount("/mnt/x", false), "touch /mnt/x/y", f)
			return way
		}},
		attempt{name: "mount-two-agents", tries: "have two agents write one directory", fails: "conflict", do: func(a *attacker) string {
			f, err := open(a.Own, dir) // "own" has it as its workspace
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			req := mount("/mnt/x", false)
			req["agent"] = "second"
			way, _ := a.spawn(req, "true", f)
			return way
		}},
	)
}

// byRequest are requests for what no request can have.
func byRequest() []attempt {
	var list []attempt
	for _, t := range []struct{ name, target string }{
		{"target-slash", "/"},
		{"target-proc", "/proc/sys"},
		{"target-sys", "/sys/kernel"},
		{"target-dev", "/dev/pts"},
		{"target-init", "/dev/creel-init"},
		{"target-relative", "mnt/x"},
		{"target-dots", "/mnt/../proc"},
		{"target-nul", "/mnt/\x00x"},
		{"target-newline", "/mnt/a\nb"},
		{"target-cgroup", "/sys/fs/cgroup"},
	} {
		list = append(list, attempt{name: t.name, tries: fmt.Sprintf("mount over %q", t.target), fails: "invalid_argument", do: func(a *attacker) string {
			f, err := open(a.Own, unix.O_DIRECTORY)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			way, _ := a.spawn(mount(t.target, true), "", f)
			return way
		}})
	}
	for _, t := range []struct {
		name  string
		field string
		value any
	}{
		{"field-privileged", "privileged", true},
		{"field-capabilities", "capabilities", []string{"CAP_SYS_ADMIN"}},
		{"field-user", "user", "0:0"},
		{"field-hooks", "hooks", obj{"prestart": []obj{{"path": "/bin/sh"}}}},
		{"field-devices", "devices", []string{"/dev/sda"}},
		{"field-annotations", "annotations", obj{"run.oci.handler": "x"}},
		{"field-namespaces", "namespaces", obj{"pid": "host"}},
		{"field-seccomp", "seccomp", "unconfined"},
		{"field-apparmor", "apparmor", "unconfined"},
		{"field-cgroup-parent", "cgroup_parent", "/"},
		{"field-sysctls", "sysctls", obj{"kernel.core_pattern": "|/bin/sh"}},
		{"field-host-uid", "host_uid", 0},
		{"field-id", "id", "aaaaaaaaaaaaaaaaaaaa"},
		{"field-caller", "caller", obj{"uid": 0}},
		{"network-host", "network", "host"},
		{"network-container", "network", "container:roots"},
		{"rootfs-host", "rootfs", "/"},
		{"runtime-shell", "runtime", "/bin/sh"},
		{"profile-path", "profile", "../../etc/passwd"},
	} {
		list = append(list, attempt{name: t.name, tries: fmt.Sprintf("ask for %s: %s", t.field, strings.ReplaceAll(js(t.value), "|", "pipe ")), fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{t.field: t.value}, "id")
			return way
		}})
	}
	return append(list,
		attempt{name: "limits-beyond", tries: "have limits above the profile's", fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"limits": obj{"memory": "1000G", "pids": 1 << 30}}, "id")
			return way
		}},
		attempt{name: "limits-none", tries: "have no limits by a negative one", fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"limits": obj{"pids": -1}}, "id")
			return way
		}},
	)
}

// fromInside are ways out of a sandbox that the attacker has itself ordered.
func fromInside() []attempt {
	in := func(name, tries, fails, script string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			way, _ := a.sh(a.sandbox, strings.NewReplacer("ROOTONLY", a.RootOnly, "SOCKET", a.Socket).Replace(script))
			return way
		}}
	}
	file := func(name, tries, fails, method, query, body string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			q := strings.NewReplacer("ROOTONLY", a.RootOnly).Replace(query)
			return a.askWith(method, "/v1/sandboxes/"+a.sandbox+"/files"+q, "", body).way()
		}}
	}
	return []attempt{
		in("inside-set-id", "leave a set-user-ID file in the workspace", "not permitted", "cp /bin/busybox /workspace/sh && chmod 4755 /workspace/sh"),
		in("inside-set-gid", "leave a set-group-ID file in the workspace", "not permitted", "cp /bin/busybox /workspace/sg && chmod 2755 /workspace/sg"),
		in("inside-device", "make a device in the workspace", "not permitted", "mknod /workspace/sda b 8 0"),
		in("inside-chown", "give a file of the workspace to root", "chown: /workspace/f: ", "touch /workspace/f && busybox chown 0:0 /workspace/f"),
		in("inside-link", "follow a link in the workspace to root's file", "No such file", "ln -sf ROOTONLY/secret /workspace/l; cat /workspace/l"),
		in("inside-proc-root", "reach the host through PID 1", "Permission denied", "ls /proc/1/root/"),
		in("inside-mount", "mount something", "permission denied", "mount -t tmpfs none /mnt 2>&1 || mount -t proc none /mnt"),
		in("inside-userns", "make namespaces", "not permitted", "unshare -Ur id"),
		in("inside-socket", "connect to creel's socket by its path", "exit 1", "nc local:SOCKET </dev/null"),
		in("inside-network", "reach the host's loopback", "exit 1", "nc -w 2 127.0.0.1 22 </dev/null"),
		in("inside-kill", "end a process of the host", "No such process", "kill -9 100000"),
		file("files-proc", "read PID 1's environment by the file calls", "permission_denied", "GET", "?path=/proc/1/environ", ""),
		file("files-root", "read the host's file by the file calls", "not_found", "GET", "?path=ROOTONLY/secret", ""),
		file("files-set-id", "write a file with the set-user-ID bit", "invalid_argument", "PUT", "?path=/workspace/x&mode=4755", "x"),
		file("files-climb", "write above the root", "permission_denied", "PUT", "?path=/workspace/../../../etc/passwd&mode=644", "x"),
		file("files-init", "replace creel's program in the sandbox", "permission_denied", "PUT", "?path=/dev/creel-init&mode=755", "x"),
		file("files-relative", "name a path that begins nowhere", "invalid_argument", "GET", "?path=etc/passwd", ""),
	}
}
