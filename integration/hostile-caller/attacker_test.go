package hostilecaller

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// world is what the attacker is told: names, ids and paths. It is never told
// a secret.
type world struct {
	Socket string
	Lab    string // the daemon's directories
	PID    int    // the daemon's
	Own    string // a directory of the attacker's

	RootSandbox, RootName     string
	RootSocket                string // the one that root's sandbox was granted
	VictimSandbox, VictimName string
	VictimExec                string
	VictimDigest              string // of the image that the victim brought
	VictimHostUID             uint32
	ShimPID                   int

	RootOnly  string // root's, 0700, with a secret
	RootsOpen string // root's, 0755, the secret in it is 0600
	Victims   string // the victim's, 0755, the secret in it is 0600
	// VictimsIdle is such another one, which no agent has.
	VictimsIdle string
	Images      map[string]string
}

// attacker is a process of an ordinary user, with no group but its own, that
// may connect to the socket.
type attacker struct {
	world

	sandbox string // its own, with Own as /workspace
	heard   bytes.Buffer
}

// answer is what came back over the socket.
type answer struct {
	status int // 0: the connection ended without one
	code   string
	body   string
}

// way names how an attempt ended: the error's code, "closed", or the status.
func (r answer) way() string {
	switch {
	case r.status == 0:
		return "closed"
	case r.code != "":
		return r.code
	}
	return fmt.Sprint(r.status)
}

const patience = 60 * time.Second

func (a *attacker) dial() *net.UnixConn {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: a.Socket, Net: "unix"})
	if err != nil {
		panic(fmt.Sprintf("the socket is the attacker's to use, and yet: %v", err))
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

// raw sends bytes as they are and reads one answer.
func (a *attacker) raw(text string) answer {
	c := a.dial()
	defer c.Close()
	_, _ = io.WriteString(c, text)
	return a.read(c, "GET")
}

// maxHeard is what is read of one answer: events and logs do not end.
const maxHeard = 1 << 20

func (a *attacker) read(c net.Conn, method string) answer {
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		return answer{}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxHeard))
	a.heard.Write(body)
	r := answer{status: resp.StatusCode, body: string(body)}
	var e struct{ Code string }
	if resp.StatusCode >= 400 && json.Unmarshal(body, &e) == nil {
		r.code = e.Code
	}
	return r
}

// ask makes one request; files go with it as descriptors.
func (a *attacker) ask(method, path, body string, files ...*os.File) answer {
	return a.askWith(method, path, "Content-Type: application/json\r\n", body, files...)
}

func (a *attacker) askWith(method, path, headers, body string, files ...*os.File) answer {
	c := a.dial()
	defer c.Close()
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: creel\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n", method, path, headers, len(body))
	var oob []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix([]byte(head), oob, nil); err != nil {
		return answer{}
	}
	_, _ = io.WriteString(c, body)
	return a.read(c, method)
}

// js makes a request's body.
func js(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

type obj = map[string]any

// spawn asks for a sandbox with a directory, and runs a script in it if there
// is one: how it ended, and what it wrote.
func (a *attacker) spawn(req obj, script string, files ...*os.File) (way, out string) {
	r := a.ask("POST", "/v1/sandboxes", js(req), files...)
	if r.status != http.StatusCreated {
		return r.way(), r.body
	}
	var got struct{ Sandbox struct{ ID string } }
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		return "no JSON", r.body
	}
	defer a.ask("DELETE", "/v1/sandboxes/"+got.Sandbox.ID+"?force=true", "")
	if script == "" {
		return "spawned", r.body
	}
	return a.sh(got.Sandbox.ID, script)
}

// sh runs a script in a sandbox of the attacker's. The way is "exit N: " and
// its last line.
func (a *attacker) sh(id, script string) (way, out string) {
	r := a.ask("POST", "/v1/sandboxes/"+id+"/exec", js(obj{"command": []string{"/bin/sh", "-c", script}, "timeout": "30s"}))
	if r.status != http.StatusOK {
		return r.way(), r.body
	}
	var got struct {
		ExitCode       int `json:"exit_code"`
		Stdout, Stderr string
	}
	if err := json.Unmarshal([]byte(r.body), &got); err != nil {
		return "no JSON", r.body
	}
	out = strings.TrimSpace(got.Stdout + got.Stderr)
	return fmt.Sprintf("exit %d: %s", got.ExitCode, out[strings.LastIndexByte(out, '\n')+1:]), out
}

// mount is a request for one directory by descriptor.
func mount(target string, readOnly bool) obj {
	return obj{"workdir": "/tmp", "mounts": []obj{{"source": "/x", "fd": 0, "target": target, "readonly": readOnly}}}
}

// open is open(2) of a directory, with more flags.
func open(path string, flags int) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// mountOf opens a directory with flags and asks for a sandbox that shows it.
// What the user itself cannot open ends there, with the errno.
func (a *attacker) mountOf(path string, flags int, readOnly bool, script string) string {
	f, err := open(path, flags)
	if err != nil {
		return errnoName(err)
	}
	defer f.Close()
	way, _ := a.spawn(mount("/mnt/x", readOnly), script, f)
	return way
}

// errnoName is the errno's name: an attempt that the kernel ended.
func errnoName(err error) string {
	if err == nil {
		return "succeeded"
	}
	if e, ok := errors.AsType[syscall.Errno](err); ok {
		return unix.ErrnoName(e)
	}
	return err.Error()
}
