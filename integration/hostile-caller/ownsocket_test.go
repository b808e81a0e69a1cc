package hostilecaller

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// askVar tells a copy of this program that it is in a sandbox, to send its
// value to the sandbox's own socket and to write what comes back.
const askVar = "CREEL_HOSTILE_ASK"

const ownSocket = "/run/creel/creel.sock"

// askInside is that copy's work.
func askInside(text string) {
	c, err := net.Dial("unix", ownSocket)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = io.WriteString(c, text); err == nil {
			_, err = io.Copy(os.Stdout, io.LimitReader(c, maxHeard))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// flooded is what floodInside sends instead of a request.
const flooded = "flood"

// floodInside opens connections that say nothing more, until the kernel takes
// none.
func floodInside() {
	var held []int
	for range 2000 {
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			break
		}
		if syscall.Connect(fd, &syscall.SockaddrUnix{Name: ownSocket}) == nil {
			_, _ = syscall.Write(fd, []byte("POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Le"))
		}
		held = append(held, fd)
	}
	fmt.Println("held", len(held))
	time.Sleep(3 * time.Second)
}

// granted does something from within a sandbox that was granted a socket of
// its own. What ask returns is what the socket said there.
func (a *attacker) granted(do func(id string, ask func(method, path, body string, headers ...string) answer) string) string {
	program := filepath.Join(a.Own, "ask")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err.Error()
	}
	if err := os.WriteFile(program, self, 0o755); err != nil {
		return err.Error()
	}
	defer os.Remove(program)
	dir, err := open(a.Own, syscall.O_DIRECTORY)
	if err != nil {
		return errnoName(err)
	}
	defer dir.Close()
	req := mount("/workspace", true)
	req["agent"], req["socket"], req["name"] = "own", true, "granted"
	r := a.ask("POST", "/v1/sandboxes", js(req), dir)
	var got struct{ Sandbox struct{ ID string } }
	if json.Unmarshal([]byte(r.body), &got) != nil || got.Sandbox.ID == "" {
		return r.way() + " " + r.body
	}
	id := got.Sandbox.ID
	defer a.ask("DELETE", "/v1/sandboxes/"+id+"?force=true", "")
	return do(id, func(method, path, body string, headers ...string) answer {
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: creel\r\nConnection: close\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s",
			method, path, strings.Join(append(headers, ""), "\r\n"), len(body), body)
		if method == flooded {
			text = flooded
		}
		r := a.ask("POST", "/v1/sandboxes/"+id+"/exec", js(obj{"command": []string{"/workspace/ask"}, "env": obj{askVar: text}, "timeout": "30s"}))
		var out struct {
			ExitCode       int `json:"exit_code"`
			Stdout, Stderr string
		}
		if err := json.Unmarshal([]byte(r.body), &out); err != nil || r.status != http.StatusOK || out.ExitCode != 0 {
			return answer{code: fmt.Sprintf("exec: %s %s", r.way(), r.body)}
		}
		if method == flooded {
			return answer{body: out.Stdout}
		}
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(out.Stdout)), &http.Request{Method: method})
		if err != nil {
			return answer{code: fmt.Sprintf("%v in %q", err, out.Stdout)}
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		said := answer{status: resp.StatusCode, body: string(b)}
		var e struct{ Code string }
		if said.status >= 400 && json.Unmarshal(b, &e) == nil {
			said.code = e.Code
		}
		return said
	})
}

// ownSockets are attempts to have more by the socket that a sandbox was
// granted than its caller has, or than the sandbox has.
func ownSockets() []attempt {
	const little = `"limits":{"memory":"64M","pids":16,"cpus":0.1,"disk":"64M"}`
	one := func(name, tries, fails, method, path, body string, headers ...string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			return a.granted(func(id string, ask func(string, string, string, ...string) answer) string {
				in := strings.NewReplacer("ITSELF", id, "OWN", a.sandbox, "VICTIM", a.VictimSandbox, "ROOTS", a.RootSandbox, "DIR", a.RootOnly)
				for i := range headers {
					headers[i] = in.Replace(headers[i])
				}
				return ask(method, in.Replace(path), in.Replace(body), headers...).way()
			})
		}}
	}
	list := []attempt{
		{name: "own-socket-child", tries: "have a socket in a child whose parent has none", fails: "permission_denied", do: func(a *attacker) string {
			way, _ := a.spawn(obj{"parent": "own", "socket": true, "limits": obj{"memory": "64M", "pids": 16, "cpus": 0.1}}, "")
			return way
		}},
		{name: "own-socket-of-roots", tries: "connect from the host to the socket that root's sandbox has", fails: "EACCES", do: func(a *attacker) string {
			return a.connect(a.RootSocket)
		}},
		{name: "own-socket-shown", tries: "show the directory with that socket in an own sandbox", fails: "EACCES", do: func(a *attacker) string {
			return a.mountOf(filepath.Dir(a.RootSocket), 0, true, "")
		}},
		{name: "own-socket-from-outside", tries: "connect from the host to an own sandbox's socket, by its path and through its processes", fails: "EACCES EACCES", do: func(a *attacker) string {
			return a.granted(func(id string, _ func(string, string, string, ...string) answer) string {
				var sb struct{ PID int }
				r := a.ask("GET", "/v1/sandboxes/"+id, "")
				if err := json.Unmarshal([]byte(r.body), &sb); err != nil || sb.PID == 0 {
					return r.body
				}
				return a.connect(strings.Replace(a.RootSocket, a.RootSandbox, id, 1)) + " " + a.connect(fmt.Sprintf("/proc/%d/root%s", sb.PID, ownSocket))
			})
		}},
		one("own-socket-itself", "end itself and not by its caller", "not_found", "DELETE", "/v1/sandboxes/ITSELF?force=true", ""),
		one("own-socket-exec-own", "run a command in its caller's other sandbox", "not_found", "POST", "/v1/sandboxes/OWN/exec", `{"command":["/bin/true"]}`),
		one("own-socket-exec-victims", "run a command in another user's", "not_found", "POST", "/v1/sandboxes/VICTIM/exec", `{"command":["/bin/true"]}`),
		one("own-socket-exec-roots", "run a command in root's", "not_found", "POST", "/v1/sandboxes/ROOTS/exec", `{"command":["/bin/true"]}`),
		one("own-socket-as-root", "be somebody else by what a header says", "not_found", "POST", "/v1/sandboxes/ROOTS/exec", `{"command":["/bin/true"]}`, "Creel-Caller: 0", "X-Forwarded-For: 127.0.0.1", "Via: ROOTS"),
		one("own-socket-parent", "make a child of its caller's other sandbox", "not_found", "POST", "/v1/sandboxes", `{"parent":"OWN",`+little+`}`),
		one("own-socket-memory", "have more memory than its sandbox", "resource_exhausted", "POST", "/v1/sandboxes", `{"limits":{"memory":"8G"}}`),
		one("own-socket-profile", "have another profile", "permission_denied", "POST", "/v1/sandboxes", `{`+little+`,"profile":"build"}`),
		one("own-socket-agent", "be another agent", "permission_denied", "POST", "/v1/sandboxes", `{`+little+`,"agent":"default"}`),
		one("own-socket-home", "keep a home", "permission_denied", "POST", "/v1/sandboxes", `{`+little+`,"home":"persistent"}`),
		one("own-socket-mount", "show a directory of the host's by its path", "invalid_argument", "POST", "/v1/sandboxes", `{`+little+`,"mounts":[{"source":"DIR","target":"/mnt/x"}]}`),
		one("own-socket-descriptor", "show one by a descriptor", "invalid_argument", "POST", "/v1/sandboxes", `{`+little+`,"mounts":[{"source":"/x","fd":0,"target":"/mnt/x"}]}`),
		one("own-socket-image", "run another image", "invalid_argument", "POST", "/v1/sandboxes", `{`+little+`,"image":"tool:1"}`),
		one("own-socket-name", "take a name among its caller's", "invalid_argument", "POST", "/v1/sandboxes", `{`+little+`,"name":"own"}`),
		one("own-socket-label", "give a label that its caller gives", "invalid_argument", "POST", "/v1/sandboxes", `{`+little+`,"labels":{"session":"1"}}`),
		one("own-socket-key", "get the answer to its caller's request by its key", "invalid_argument", "POST", "/v1/sandboxes", `{`+little+`}`, "Idempotency-Key: k"),
	}
	for _, r := range []struct{ name, tries, method, path, body string }{
		{"agents", "see the caller's agents", "GET", "/v1/agents", ""},
		{"restore", "restore its own agent", "POST", "/v1/agents/own/restore", "{}"},
		{"audit", "read the audit log", "GET", "/v1/audit", ""},
		{"images", "bring an image", "POST", "/v1/images?ref=x:1", "x"},
		{"volumes", "make a volume", "POST", "/v1/volumes", `{"name":"v","size":"16M"}`},
		{"events", "hear the caller's events", "GET", "/v1/events", ""},
		{"explain", "learn by explain what the caller has", "POST", "/v1/explain", "{}"},
		{"prune", "prune", "POST", "/v1/system/prune", "{}"},
	} {
		list = append(list, one("own-socket-"+r.name, r.tries, "not_found", r.method, r.path, r.body))
	}
	return append(list,
		attempt{name: "own-socket-list", tries: "find other sandboxes in the list", fails: "200 []", do: func(a *attacker) string {
			return a.granted(func(_ string, ask func(string, string, string, ...string) answer) string {
				r := ask("GET", "/v1/sandboxes?all=true", "")
				return fmt.Sprint(r.way(), " ", strings.TrimSpace(r.body))
			})
		}},
		attempt{name: "own-socket-flood", tries: "keep the caller from the daemon by 2,000 open connections from inside", fails: "serves on", do: func(a *attacker) string {
			return a.granted(func(_ string, ask func(string, string, string, ...string) answer) string {
				said := make(chan answer, 1)
				go func() { said <- ask(flooded, "", "") }()
				for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					if way, out := a.sh(a.sandbox, "echo served"); way != "exit 0: served" {
						return way + out
					}
				}
				if r := <-said; !strings.HasPrefix(r.body, "held ") {
					return r.code + r.body
				}
				return "serves on"
			})
		}},
	)
}

// connect connects to a socket of the host's.
func (*attacker) connect(path string) string {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return errnoName(err)
	}
	defer syscall.Close(fd)
	return errnoName(syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}))
}
