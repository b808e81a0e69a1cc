package hostilecaller

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// names are texts that something might trust.
func names() []attempt {
	var list []attempt
	for _, t := range []struct {
		name, tries string
		req         obj
	}{
		{"name-path", "name a sandbox like a directory of the daemon's", obj{"name": "../../state"}},
		{"name-slash", "name it with a slash", obj{"name": "a/b"}},
		{"name-escape", "name it with a terminal's escape code", obj{"name": "\x1b[2J"}},
		{"name-newline", "forge a line of the daemon's log", obj{"name": "a\nlevel=ERROR"}},
		{"agent-path", "name an agent like a directory", obj{"agent": "../default"}},
		{"agent-others", "name another caller's agent", obj{"agent": "0/default"}},
		{"label-huge", "fill the records by labels", obj{"labels": obj{"a": strings.Repeat("x", 1<<20-100)}}},
		{"label-many", "fill them by many labels", obj{"labels": manyKeys(10_000)}},
		{"label-creels", "pass a label that creel or containerd would read", obj{"labels": obj{"containerd.io/restart.status": "running\n"}}},
		{"env-equals", "set a variable whose name has an equals sign", obj{"env": obj{"A=B": "c"}}},
		{"env-nul", "cut the environment with a NUL", obj{"env": obj{"A": "b\x00LD_PRELOAD=/workspace/x.so"}}},
		{"env-huge", "make the environment larger than the kernel takes", obj{"env": obj{"A": strings.Repeat("x", 1<<20-100)}}},
		{"workdir-relative", "start in a relative directory", obj{"workdir": "../..", "command": []string{"/bin/pwd"}}},
		{"workdir-nul", "cut the directory's name with a NUL", obj{"workdir": "/tmp\x00/../.."}},
		{"command-nul", "cut the command with a NUL", obj{"command": []string{"/bin/true\x00x"}}},
		{"command-empty", "have an empty command", obj{"command": []string{""}}},
	} {
		list = append(list, attempt{name: t.name, tries: t.tries, fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(t.req, "")
			return way
		}})
	}
	exec := func(name, tries, fails string, req obj) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			r := a.ask("POST", "/v1/sandboxes/"+a.sandbox+"/exec", js(req))
			if r.status == http.StatusOK {
				_, code, _ := strings.Cut(r.body, `"exit_code":`)
				return "exit " + strings.SplitN(code, ",", 2)[0] + " " + r.body
			}
			return r.way()
		}}
	}
	return append(list,
		exec("workdir-descriptor", "start in a directory that a leaked descriptor has open", "exit 12", obj{"command": []string{"/bin/pwd"}, "workdir": "/proc/self/fd/7"}),
		exec("workdir-pid-1", "start in PID 1's root", "exit 12", obj{"command": []string{"/bin/pwd"}, "workdir": "/proc/1/root"}),
		exec("env-preload", "have the loader's variables reach a program with more rights", "uid=1000", obj{"command": []string{"/bin/id"}, "env": obj{"LD_PRELOAD": "/workspace/x.so", "LD_AUDIT": "/workspace/x.so"}}),
		exec("exec-user", "run a command as another user", "invalid_argument", obj{"command": []string{"/bin/id"}, "user": "0"}),
		exec("exec-privileged", "run it with privileges", "invalid_argument", obj{"command": []string{"/bin/id"}, "privileged": true}),
	)
}

func manyKeys(n int) obj {
	out := obj{}
	for i := range n {
		out[fmt.Sprintf("k%d", i)] = ""
	}
	return out
}

// operators are what only root may ask for.
func operators() []attempt {
	ask := func(name, tries, fails, method, path, body string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			return a.ask(method, strings.ReplaceAll(path, "ROOTONLY", a.RootOnly), body).way()
		}}
	}
	return []attempt{
		ask("operator-doctor", "have the doctor look as root", "permission_denied", "GET", "/v1/doctor?user=root", ""),
		{name: "operator-doctor-directory", tries: "learn by the doctor whether a hidden file exists", fails: "the same", do: func(a *attacker) string {
			there, none := filepath.Join(a.RootOnly, "secret"), filepath.Join(a.RootOnly, "no-such")
			one, two := a.ask("GET", "/v1/doctor?dir="+there, ""), a.ask("GET", "/v1/doctor?dir="+none, "")
			_, w1, _ := strings.Cut(strings.ReplaceAll(one.body, there, "DIR"), `"workspace`)
			_, w2, _ := strings.Cut(strings.ReplaceAll(two.body, none, "DIR"), `"workspace`)
			if w1 != w2 {
				return fmt.Sprintf("%q and %q", w1, w2)
			}
			return "the same"
		}},
		{name: "operator-prune", tries: "prune others' ended sandboxes and the box's images", fails: "nothing of others", do: func(a *attacker) string {
			r := a.ask("POST", "/v1/system/prune", js(obj{"images": true}))
			if r.status != http.StatusOK || strings.Contains(r.body, `"uid":0`) || strings.Contains(r.body, "tool:1") {
				return r.way() + " " + r.body
			}
			return "nothing of others"
		}},
		{name: "operator-df", tries: "see what others have on the disk", fails: "only its own", do: func(a *attacker) string {
			r := a.ask("GET", "/v1/system/df", "")
			if r.status != http.StatusOK || strings.Contains(r.body, fmt.Sprintf(`"uid":%d`, victimUID)) {
				return r.way() + " " + r.body
			}
			return "only its own"
		}},
		ask("operator-profile", "bring an own profile", "invalid_argument", "PUT", "/v1/profiles/own", "version = 1"),
		ask("operator-profile-path", "read a file as a profile", "not_found", "GET", "/v1/profiles/..%2f..%2fetc%2fpasswd", ""),
		ask("operator-reload", "have the daemon read its configuration again", "not_found", "POST", "/v1/reload", "{}"),
		ask("operator-debug", "look into the daemon by its debugging pages", "not_found", "GET", "/debug/pprof/heap", ""),
	}
}

// socket are requests that mean one thing to one reader, and another to
// another.
func socket() []attempt {
	raw := func(name, tries, fails, text string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			return a.raw(strings.ReplaceAll(text, "VICTIM", a.VictimSandbox)).way()
		}}
	}
	post := func(headers, body string) string {
		return fmt.Sprintf("POST /v1/sandboxes HTTP/1.1\r\nHost: creel\r\n%sContent-Length: %d\r\n\r\n%s", headers, len(body), body)
	}
	const jsonType = "Content-Type: application/json\r\n"
	list := []attempt{
		raw("smuggle-two-lengths", "hide a request behind a second length", "400", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nContent-Length: 2\r\nContent-Length: 80\r\n\r\n{}DELETE /v1/sandboxes/VICTIM HTTP/1.1\r\nHost: c\r\n\r\n"),
		raw("smuggle-length-and-chunks", "hide one behind chunks and a length", "invalid_argument", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\n"+jsonType+"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{]\r\n0\r\n\r\n"),
		raw("smuggle-bad-chunk", "end a body where nobody expects it", "invalid_argument", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\n"+jsonType+"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
		raw("smuggle-header", "split a header's line", "400", "GET /v1/version HTTP/1.1\r\nHost: c\r\nX: a\x00b\r\n\r\n"),
		raw("smuggle-folded", "fold a header over two lines", "400", "GET /v1/version HTTP/1.1\r\nHost: c\r\nX: a\r\n  Content-Length: 5\r\nbad\r\n\r\n"),
		raw("smuggle-http2", "speak HTTP/2", "not_found", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		raw("smuggle-no-host", "leave the host out", "400", "GET /v1/version HTTP/1.1\r\n\r\n"),
		raw("smuggle-traversal", "climb in the path", "not_found", "GET /v1/sandboxes/../../etc/passwd HTTP/1.1\r\nHost: c\r\n\r\n"),
		raw("smuggle-encoded", "climb with encoded dots", "not_found", "GET /v1/sandboxes/%2e%2e%2f%2e%2e%2fetc HTTP/1.1\r\nHost: c\r\n\r\n"),
		raw("browser-origin", "ask as a page of some web site", "permission_denied", "GET /v1/version HTTP/1.1\r\nHost: c\r\nOrigin: http://localhost\r\n\r\n"),
		raw("browser-fetch", "ask as a browser's cross-site fetch", "permission_denied", "POST /v1/sandboxes HTTP/1.1\r\nHost: c\r\nSec-Fetch-Site: cross-site\r\n"+jsonType+"Content-Length: 2\r\n\r\n{}"),
		raw("browser-form", "send a form, which needs no preflight", "invalid_argument", post("Content-Type: application/x-www-form-urlencoded\r\n", "a=b")),
		raw("browser-text", "send JSON as text, which needs none either", "invalid_argument", post("Content-Type: text/plain\r\n", "{}")),
		raw("json-twice", "give a field twice, for two readers", "invalid_argument", post(jsonType, `{"network":"none","network":"host"}`)),
		raw("json-case", "give it in another case", "invalid_argument", post(jsonType, `{"Network":"host"}`)),
		raw("json-trailing", "send a second document behind the first", "invalid_argument", post(jsonType, `{}{"network":"host"}`)),
		raw("json-deep", "exhaust the reader by depth", "invalid_argument", post(jsonType, strings.Repeat("[", 200_000))),
		raw("json-huge", "exhaust it by size", "too_large", post(jsonType, `{"name":"`+strings.Repeat("a", 2<<20)+`"}`)),
		raw("json-utf8", "send bytes that are no text", "invalid_argument", post(jsonType, "{\"name\":\"\xff\"}")),
		raw("json-number", "overflow a number", "invalid_argument", post(jsonType, `{"limits":{"pids":1e400}}`)),
		raw("header-flood", "send headers without end", "431", "GET /v1/version HTTP/1.1\r\nHost: c\r\n"+strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 100)+"\r\n"),
		raw("credentials-said", "say who one is", "not_found", "GET /v1/sandboxes/VICTIM HTTP/1.1\r\nHost: c\r\nX-Remote-User: root\r\nAuthorization: Basic cm9vdDo=\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n"),
	}
	return append(list,
		attempt{name: "credentials-passed", tries: "pass root's credentials in a control message", fails: "EPERM", do: func(a *attacker) string {
			c := a.dial()
			defer c.Close()
			_, _, err := c.WriteMsgUnix([]byte("GET /v1/sandboxes/x HTTP/1.1\r\n"), unix.UnixCredentials(&unix.Ucred{Pid: 1}), nil)
			return errnoName(err)
		}},
		attempt{name: "stream-garbage", tries: "send noise where frames are expected", fails: "serves on", do: func(a *attacker) string {
			for range 20 {
				c := a.dial()
				body := `{"command":["/bin/cat"],"stdin":true}`
				fmt.Fprintf(c, "POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\n%sContent-Length: %d\r\n\r\n%s%s",
					a.sandbox, jsonType, len(body), body, strings.Repeat("\xff\x00\xfe\x01", 10_000))
				_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<16))
				_ = c.Close()
			}
			return a.serves()
		}},
		attempt{name: "connections-10000", tries: "use up the daemon's connections", fails: "refused at its bound, serves on", do: manyConnections},
		attempt{name: "slow-headers", tries: "hold connections by headers that never end", fails: "cut off", do: func(a *attacker) string {
			c := a.dial()
			defer c.Close()
			fmt.Fprint(c, "GET /v1/version HTTP/1.1\r\nHost: c\r\nX: ")
			if r := a.read(c, "GET"); r.status == 0 || r.status == http.StatusRequestTimeout || r.status == http.StatusBadRequest {
				return "cut off, " + a.serves()
			}
			return "was answered"
		}},
		attempt{name: "descriptor-exhaustion", tries: "use up the daemon's descriptors by sending many", fails: "serves on", do: func(a *attacker) string {
			f, err := os.Open("/dev/null")
			if err != nil {
				return err.Error()
			}
			defer f.Close()
			fds := make([]int, 250)
			for i := range fds {
				fds[i] = int(f.Fd())
			}
			for range 100 {
				c := a.dial()
				for range 4 {
					_, _, _ = c.WriteMsgUnix([]byte("G"), unix.UnixRights(fds...), nil)
				}
				_ = c.Close()
			}
			return a.serves()
		}},
	)
}

// serves says that the daemon goes on working.
func (a *attacker) serves() string {
	if way, out := a.sh(a.sandbox, "echo ok"); out != "ok" {
		return "does not serve: " + way
	}
	return "serves on"
}

// manyConnections opens 10,000 connections and keeps them. What is beyond its
// bound is refused, and given back when they are closed; root's half of the
// test sees others served all the time.
func manyConnections(a *attacker) string {
	var open []net.Conn
	refused := 0
	for range 10_000 {
		c, err := net.DialTimeout("unix", a.Socket, 5*time.Second)
		if err != nil { // the backlog is full, or the attacker has no descriptor left
			refused++
			continue
		}
		open = append(open, c)
		if len(open)%500 == 0 && !a.answers() {
			refused++
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	if refused == 0 {
		return fmt.Sprintf("none of %d was refused", len(open))
	}
	for range 600 {
		if a.answers() {
			return "refused at its bound, " + a.serves()
		}
		time.Sleep(100 * time.Millisecond)
	}
	return "the bound is not given back"
}

func (a *attacker) answers() bool { return a.ask("GET", "/v1/version", "").status == http.StatusOK }

// beside are ways past the socket.
func beside() []attempt {
	var list []attempt
	file := func(name, tries, path string) {
		list = append(list, attempt{name: name, tries: tries, fails: "EACCES", do: func(a *attacker) string {
			p := strings.NewReplacer("LAB", a.Lab, "ID", a.RootSandbox, "PID", fmt.Sprint(a.PID)).Replace(path)
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				b := make([]byte, 4096)
				n, _ := unix.Read(fd, b)
				a.heard.Write(b[:max(n, 0)])
				_ = unix.Close(fd)
				if n < 0 {
					return "EACCES" // such files are asked when they are read
				}
			}
			return errnoName(err)
		}})
	}
	file("beside-state", "read the daemon's records", "LAB/state/state.db")
	file("beside-logs", "read what a sandbox has written", "LAB/state/logs/ID")
	file("beside-volumes", "read a volume's image", "LAB/state/volumes")
	file("beside-layers", "read a writable layer", "LAB/state/rootfs")
	file("beside-images", "read others' images", "LAB/state/containerd")
	file("beside-config", "read the daemon's configuration", "LAB/creeld.toml")
	file("beside-environ", "read the daemon's environment", "/proc/PID/environ")
	file("beside-memory", "read the daemon's memory", "/proc/PID/mem")
	file("beside-root", "look through the daemon's mount namespace", "/proc/PID/root/etc/shadow")
	file("beside-descriptors", "open the daemon's descriptors", "/proc/PID/fd")
	for _, s := range []struct{ name, tries, path string }{
		{"beside-containerd", "speak to containerd", "LAB/run/containerd/containerd.sock"},
		{"beside-shims", "speak to a shim", "LAB/run/containerd/s"},
		{"beside-namespace", "enter the daemon's mount namespace", "LAB/run/mnt/ns"},
	} {
		list = append(list, attempt{name: s.name, tries: s.tries, fails: "EACCES", do: func(a *attacker) string {
			c, err := net.Dial("unix", strings.ReplaceAll(s.path, "LAB", a.Lab))
			if err == nil {
				_ = c.Close()
			}
			return errnoName(err)
		}})
	}
	signal := func(name, tries string, pid func(*attacker) int) attempt {
		return attempt{name: name, tries: tries, fails: "EPERM", do: func(a *attacker) string {
			return errnoName(syscall.Kill(pid(a), syscall.SIGKILL))
		}}
	}
	return append(list,
		signal("kill-daemon", "end the daemon", func(a *attacker) int { return a.PID }),
		signal("kill-shim", "end the shim of root's sandbox", func(a *attacker) int { return a.ShimPID }),
		attempt{name: "trace-daemon", tries: "trace the daemon", fails: "EPERM", do: func(a *attacker) string {
			return errnoName(syscall.PtraceAttach(a.PID))
		}},
		attempt{name: "steal-descriptor", tries: "take a descriptor out of the daemon", fails: "EPERM", do: func(a *attacker) string {
			pidfd, err := unix.PidfdOpen(a.PID, 0)
			if err != nil {
				return errnoName(err)
			}
			defer unix.Close(pidfd)
			_, err = unix.PidfdGetfd(pidfd, 3, 0)
			return errnoName(err)
		}},
		attempt{name: "become-range", tries: "become a uid of another sandbox's range", fails: "EPERM", do: func(a *attacker) string {
			return errnoName(syscall.Setreuid(int(a.VictimHostUID)+1000, int(a.VictimHostUID)+1000))
		}},
	)
}

// ceiling is what the attacker's table does not have: profiles, runtimes and
// bytes of images.
func ceiling() []attempt {
	spawn := func(name, tries, fails string, req obj) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			way, _ := a.spawn(req, "id")
			return way
		}}
	}
	return []attempt{
		spawn("ceiling-profile", "be root inside by a profile that it was not given", "permission_denied", obj{"profile": "build"}),
		spawn("ceiling-runtime", "have a runtime that it was not given", "permission_denied", obj{"runtime": "runc"}),
		spawn("ceiling-memory", "have more memory than the table's sum", "invalid_argument", obj{"limits": obj{"memory": "65G"}}),
		{name: "ceiling-ensure", tries: "have that profile by ensuring instead of spawning", fails: "permission_denied", do: func(a *attacker) string {
			return a.ask("PUT", "/v1/sandboxes/rooted", js(obj{"profile": "build"})).way()
		}},
		{name: "ceiling-replay", tries: "have it by a key that was let in with another request", fails: "conflict", do: func(a *attacker) string {
			defer a.removeOthers()
			with := func(req obj) answer {
				return a.askWith("POST", "/v1/sandboxes", "Content-Type: application/json\r\nIdempotency-Key: again\r\n", js(req))
			}
			if r := with(obj{}); r.status != http.StatusCreated {
				return r.way()
			}
			if way := with(obj{"profile": "build"}).way(); way != "conflict" && way != "permission_denied" {
				return way
			}
			return "conflict"
		}},
		{name: "ceiling-image-bytes", tries: "bring more bytes of images than the table has", fails: "ceiling.image_bytes leaves", do: func(a *attacker) string {
			for i := range 3 {
				b, err := os.ReadFile(a.Images[fmt.Sprint("large-", i)])
				if err != nil {
					return err.Error()
				}
				r := a.askWith("POST", fmt.Sprintf("/v1/images?ref=large:%d", i), "Content-Type: application/x-tar\r\n", string(b))
				if r.status >= http.StatusBadRequest || r.status == 0 {
					return r.body
				}
			}
			return "brought three of 24 MiB"
		}},
		{name: "ceiling-explain", tries: "spawn by asking for an explanation", fails: "nothing was made", do: func(a *attacker) string {
			before := a.ask("GET", "/v1/sandboxes?all=true", "").body
			a.ask("POST", "/v1/explain", js(obj{"name": "explained"}))
			if after := a.ask("GET", "/v1/sandboxes?all=true", "").body; strings.Contains(after, "explained") || len(after) > len(before)+2000 {
				return "made " + after
			}
			return "nothing was made"
		}},
		{name: "ceiling-reload", tries: "have the daemon read the configuration again by a signal", fails: "EPERM", do: func(a *attacker) string {
			return errnoName(syscall.Kill(a.PID, syscall.SIGHUP))
		}},
	}
}

// share is more than what one user may have.
func share() []attempt {
	fill := func(name, tries, fails string, most int, one func(a *attacker, i int) answer, undo func(*attacker)) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			defer undo(a)
			for i := range most {
				if r := one(a, i); r.status >= http.StatusBadRequest || r.status == 0 {
					return r.way()
				}
			}
			return fmt.Sprintf("had %d", most)
		}}
	}
	sandboxes := func(a *attacker) { a.removeOthers() }
	volumes := func(a *attacker) {
		for i := range 8 {
			a.ask("DELETE", fmt.Sprintf("/v1/volumes/v%d", i), "")
		}
	}
	return []attempt{
		fill("share-sandboxes", "have more sandboxes than one user may", "resource_exhausted", 20, func(a *attacker, _ int) answer {
			return a.ask("POST", "/v1/sandboxes", "{}")
		}, sandboxes),
		{name: "share-sandboxes-at-once", tries: "have more by asking for all at once", fails: "12 at most", do: func(a *attacker) string {
			defer sandboxes(a)
			var had atomic.Int64
			var wg sync.WaitGroup
			for range 24 {
				wg.Go(func() {
					b := &attacker{world: a.world} // what it hears is its own
					if b.ask("POST", "/v1/sandboxes", "{}").status == http.StatusCreated {
						had.Add(1)
					}
				})
			}
			wg.Wait()
			if n := had.Load(); n != 11 { // and its own
				return fmt.Sprintf("has %d and its own", n)
			}
			return "12 at most"
		}},
		fill("share-volumes", "have more volumes", "resource_exhausted", 8, func(a *attacker, i int) answer {
			return a.ask("POST", "/v1/volumes", js(obj{"name": fmt.Sprintf("v%d", i), "agent": "own", "size": "16M"}))
		}, volumes),
		fill("share-volume-bytes", "have larger ones", "resource_exhausted", 2, func(a *attacker, i int) answer {
			return a.ask("POST", "/v1/volumes", js(obj{"name": fmt.Sprintf("v%d", i), "agent": "own", "size": "3G"}))
		}, volumes),
		{name: "share-execs", tries: "run more commands at once than a sandbox may", fails: "resource_exhausted", do: func(a *attacker) string {
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					_ = c.Close()
				}
			}()
			for range 100 {
				c := a.dial()
				conns = append(conns, c)
				body := `{"command":["/bin/sleep","100"]}`
				fmt.Fprintf(c, "POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", a.sandbox, len(body), body)
				var head [12]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					return "closed"
				}
				if string(head[9:]) == "429" {
					return "resource_exhausted"
				}
			}
			return "ran 100"
		}},
		{name: "share-memory", tries: "have a sandbox that the box cannot carry", fails: "invalid_argument", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"limits": obj{"memory": "900G"}}, "")
			return way
		}},
	}
}

// races change what was looked at before it is used.
func races() []attempt {
	return []attempt{
		{name: "race-swap", tries: "swap an own directory for a link to root's while it is opened and mounted, 300 times", fails: "never root's", do: func(a *attacker) string {
			dir, spare := filepath.Join(a.Own, "real"), filepath.Join(a.Own, "spare")
			if err := errors.Join(os.Mkdir(dir, 0o700), os.Symlink(a.RootsOpen, spare)); err != nil {
				return err.Error()
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, spare, unix.RENAME_EXCHANGE)
					}
				}
			})
			defer func() { close(stop); wg.Wait() }()
			for range 300 {
				f, err := open(dir, unix.O_DIRECTORY)
				if err != nil {
					continue
				}
				// Writable: root's directory is refused, the own one is shown.
				r := a.ask("POST", "/v1/sandboxes", js(obj{"mounts": []obj{{"source": dir, "fd": 0, "target": "/mnt/x"}}, "profile": "none-such"}), f)
				_ = f.Close()
				if r.status == http.StatusCreated {
					return "spawned"
				}
			}
			for range 5 {
				f, err := open(dir, unix.O_DIRECTORY)
				if err != nil {
					continue
				}
				way, out := a.spawn(mount("/mnt/x", true), "cat /mnt/x/secret", f)
				_ = f.Close()
				if strings.Contains(out, "SECRET") {
					return "read: " + way
				}
			}
			return "never root's"
		}},
		{name: "race-remove-and-exec", tries: "run a command in what takes a removed sandbox's place", fails: "only its own", do: func(a *attacker) string {
			bad := make(chan string, 1)
			for range 5 {
				r := a.ask("POST", "/v1/sandboxes", js(obj{"name": "race"}))
				if r.status != http.StatusCreated {
					return r.way()
				}
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						b := &attacker{world: a.world}
						for {
							way, out := b.sh("race", "id -u")
							if !strings.HasPrefix(way, "exit 0") {
								return
							}
							if out != "1000" {
								select {
								case bad <- "ran as " + out + b.heard.String():
								default:
								}
								return
							}
						}
					})
				}
				a.ask("DELETE", "/v1/sandboxes/race?force=true", "")
				wg.Wait()
			}
			select {
			case why := <-bad:
				return why
			default:
				return "only its own"
			}
		}},
		{name: "race-one-name", tries: "have two sandboxes of one name", fails: "one of 8", do: func(a *attacker) string {
			defer a.removeOthers()
			var made atomic.Int64
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					b := &attacker{world: a.world}
					if b.ask("POST", "/v1/sandboxes", js(obj{"name": "twin"})).status == http.StatusCreated {
						made.Add(1)
					}
				})
			}
			wg.Wait()
			if n := made.Load(); n != 1 {
				return fmt.Sprintf("%d of 8", n)
			}
			return "one of 8"
		}},
	}
}
