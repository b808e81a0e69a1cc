package integration_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// mcpLab is a lab with creel-mcp where an installed creel finds it.
func mcpLab(t *testing.T) *lab.Lab {
	t.Helper()
	l := forUsers(t)
	l.Copy("creel-mcp", filepath.Join(l.Dir, "creel-mcp"))
	return l
}

// mcpCall makes one call by the protocol's own client.
func mcpCall(t *testing.T, s *sdk.ClientSession, tool string, args map[string]any, out any) string {
	t.Helper()
	res, err := s.CallTool(deadline(t), &sdk.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		t.Fatalf("%s: %v", tool, err)
	}
	text := res.Content[0].(*sdk.TextContent).Text
	if res.IsError {
		return text
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			t.Fatalf("%s: %v in %s", tool, err, text)
		}
	}
	return ""
}

type mcpResult struct {
	ExitCode       int `json:"exit_code"`
	Reason         string
	Stdout, Stderr string
}

type mcpRun struct {
	Sandbox, State string
	Result         *mcpResult
}

// TestMCP drives "creel mcp", as an ordinary user has it, with the protocol's
// client library: each tool, what it refuses, and what is left.
func TestMCP(t *testing.T) {
	l := mcpLab(t)
	other := l.Spawn(api.SpawnRequest{Name: "other"})
	_, errOut, code := l.CreelAs(caller, "", "run", "-d", "--name", "users-own")
	if code != 0 {
		t.Fatal(errOut)
	}
	dir := workspace(t)
	data := filepath.Join(dir, "data")
	if err := errors.Join(os.Mkdir(data, 0o755), os.WriteFile(filepath.Join(data, "f"), []byte("data\n"), 0o644), os.Chown(data, callerUID, callerUID)); err != nil {
		t.Fatal(err)
	}
	cmd := l.Command(caller, "mcp", "-v", dir+":/workspace", "-v", data+":/data:ro", "--memory", "256M", "-e", "GIVEN=by the operator", "--timeout", "20s")
	s, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).
		Connect(deadline(t), &sdk.CommandTransport{Command: cmd, TerminateDuration: time.Minute}, nil)
	if err != nil {
		t.Fatal(err)
	}
	call := func(tool string, args map[string]any, out any) string {
		t.Helper()
		return mcpCall(t, s, tool, args, out)
	}
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }

	// run, and an agent that puts a link to the host's /etc where the next
	// sandbox's mount comes from.
	var ran mcpRun
	text := call("run", map[string]any{"command": sh("echo $GIVEN $MORE; pwd; cat /data/f; mv data old && ln -s /etc data; exit 3"), "env": map[string]any{"MORE": "more"}}, &ran)
	if text != "" || ran.State != "removed" {
		t.Fatalf("run: %s, %+v", text, ran)
	}
	if diff := cmp.Diff(&mcpResult{ExitCode: 3, Reason: "exited", Stdout: "by the operator more\n/workspace\ndata\n"}, ran.Result); diff != "" {
		t.Errorf("run (-want +got):\n%s", diff)
	}
	if text := call("run", map[string]any{"command": sh("ls /data")}, &ran); text != "" || ran.Result.Stdout != "f\n" {
		t.Errorf("the second sandbox's /data: %s, %+v", text, ran.Result)
	}

	var box mcpRun
	if text := call("run", nil, &box); text != "" || box.State != "running" {
		t.Fatalf("run without a command: %s, %+v", text, box)
	}
	sb, err := l.Inspect(t.Context(), box.Sandbox)
	if err != nil || sb.Limits.Memory != 256<<20 || sb.Caller.UID != callerUID || len(sb.Mounts) != 2 {
		t.Errorf("the sandbox: %+v, %v", sb, err)
	}
	if text := call("write", map[string]any{"sandbox": box.Sandbox, "path": "/workspace/made", "content": "héllo\n", "mode": "640"}, nil); text != "" {
		t.Errorf("write: %s", text)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(b) != "héllo\n" {
		t.Errorf("written: %q, %v", b, err)
	}
	var res mcpResult
	if text := call("exec", map[string]any{"sandbox": box.Sandbox, "command": sh("stat -c %a made; cat; id -u"), "stdin": "in\n"}, &res); text != "" || res.Stdout != "640\nin\n1000\n" {
		t.Errorf("exec: %s, %+v", text, res)
	}
	if text := call("exec", map[string]any{"sandbox": box.Sandbox, "command": []string{"/bin/sleep", "100"}, "timeout_seconds": 1}, &res); text != "" || res.ExitCode != 124 || res.Reason != "timeout" {
		t.Errorf("exec that is too slow: %s, %+v", text, res)
	}
	var file struct{ Content string }
	if text := call("read", map[string]any{"sandbox": sb.Name, "path": "/workspace/made"}, &file); text != "" || file.Content != "héllo\n" {
		t.Errorf("read: %s, %+v", text, file)
	}

	var service mcpRun
	if text := call("run", map[string]any{"command": sh("echo up; exec sleep 1000"), "background": true}, &service); text != "" {
		t.Fatalf("run in the background: %s", text)
	}
	l.Eventually("the log has the output", 20*time.Second, func() error {
		var logs mcpResult
		if text := call("logs", map[string]any{"sandbox": service.Sandbox}, &logs); text != "" || logs.Stdout != "up\n" {
			return fmt.Errorf("%s %+v", text, logs)
		}
		return nil
	})
	var list struct{ Sandboxes []struct{ ID, State string } }
	if text := call("list", nil, &list); text != "" || len(list.Sandboxes) != 2 {
		t.Errorf("list: %s, %+v", text, list)
	}
	var stopped struct{ State, Reason string }
	if text := call("stop", map[string]any{"sandbox": service.Sandbox, "grace_seconds": 0}, &stopped); text != "" || stopped.State != "stopped" || stopped.Reason != "stopped" {
		t.Errorf("stop: %s, %+v", text, stopped)
	}
	if text := call("remove", map[string]any{"sandbox": service.Sandbox}, nil); text != "" {
		t.Errorf("remove: %s", text)
	}

	for _, tt := range []struct {
		name, tool string
		args       map[string]any
		want       string
	}{
		{"another caller's", "exec", map[string]any{"sandbox": other.ID, "command": sh("true")}, `not_found: no sandbox "` + other.ID + `"`},
		{"the user's own from elsewhere", "remove", map[string]any{"sandbox": "users-own"}, `not_found: no sandbox "users-own"`},
		{"a mount", "run", map[string]any{"mounts": []any{map[string]any{"source": "/etc", "target": "/host"}}}, "additional"},
		{"what the daemon refuses", "exec", map[string]any{"sandbox": box.Sandbox, "command": sh("true"), "env": map[string]any{"A B": "x"}}, "invalid_argument: the request has 1 problem(s): env = \"A B\": a name of"},
		{"a file that is not there", "read", map[string]any{"sandbox": box.Sandbox, "path": "/no"}, "not_found: "},
		{"a device", "read", map[string]any{"sandbox": box.Sandbox, "path": "/dev/zero"}, ": "},
	} {
		if text := call(tt.tool, tt.args, nil); !strings.Contains(text, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.name, text, tt.want)
		}
	}

	if err := s.Close(); err != nil || cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("the server's end: %v, %v", err, cmd.ProcessState)
	}
	left, err := l.List(t.Context(), client.ListOptions{All: true})
	if err != nil || len(left) != 2 {
		t.Errorf("left: %+v, %v, want the two others", left, err)
	}
}

// rawMCP is a server that a test talks JSON to.
type rawMCP struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
	r   *bufio.Reader
	err *strings.Builder
}

func startRawMCP(t *testing.T, cmd *exec.Cmd) *rawMCP {
	t.Helper()
	s := &rawMCP{t: t, cmd: cmd, err: &strings.Builder{}}
	cmd.Stderr = s.err
	var err1, err2 error
	s.in, err1 = cmd.StdinPipe()
	s.out, err2 = cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	s.r = bufio.NewReader(s.out)
	s.ask(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
	s.say(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return s
}

func (s *rawMCP) say(line string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *rawMCP) ask(line string) string {
	s.t.Helper()
	s.say(line)
	answer, err := s.r.ReadString('\n')
	if err != nil {
		_ = s.cmd.Wait()
		s.t.Fatalf("no answer to %s: %v\n%s", line, err, s.err)
	}
	return strings.TrimSuffix(answer, "\n")
}

// spawn has the server launch a sandbox, and gives its id.
func (s *rawMCP) spawn() string {
	s.t.Helper()
	answer := s.ask(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"run","arguments":{}}}`)
	var got struct {
		Result struct{ StructuredContent mcpRun }
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || got.Result.StructuredContent.Sandbox == "" {
		s.t.Fatalf("run: %v in %s", err, answer)
	}
	return got.Result.StructuredContent.Sandbox
}

// TestMCPTranscript is the protocol line by line, from a creel and a creel-mcp
// that are where "make install" puts them.
func TestMCPTranscript(t *testing.T) {
	l := forUsers(t)
	bin, lib := filepath.Join(l.Dir, "usr", "bin"), filepath.Join(l.Dir, "usr", "lib", "creel", "bin")
	if err := errors.Join(os.MkdirAll(bin, 0o755), os.MkdirAll(lib, 0o755)); err != nil {
		t.Fatal(err)
	}
	l.Copy("creel", filepath.Join(bin, "creel"))
	cmd := l.Command(caller, "mcp", "--sandboxes", "1")
	cmd.Path = filepath.Join(bin, "creel")
	if out, err := exec.CommandContext(t.Context(), cmd.Path, "mcp").CombinedOutput(); err == nil || !strings.Contains(string(out), "install creel again") {
		t.Errorf("without creel-mcp: %v, %s", err, out)
	}
	l.Copy("creel-mcp", filepath.Join(lib, "creel-mcp"))
	s := startRawMCP(t, cmd)
	id := s.spawn()
	for _, step := range []struct{ line, want string }{
		{
			`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"exec","arguments":{"sandbox":"` + id + `","command":["/bin/echo","hi"]}}}`,
			`"structuredContent":{"exit_code":0,"reason":"exited","stderr":"","stdout":"hi\n",`,
		},
		{
			`{"jsonrpc":"2.0","id":"three","method":"tools/call","params":{"name":"run","arguments":{}}}`,
			`{"jsonrpc":"2.0","id":"three","result":{"content":[{"type":"text","text":"resource_exhausted: this server may have 1 sandboxes at once`,
		},
		{`{"jsonrpc":"2.0","id":4,"method":"tools/call","params":{"name":"mount","arguments":{}}}`, `{"jsonrpc":"2.0","id":4,"error":{"code":-32602`},
		{`{"jsonrpc":"2.0","id":5,"method":"resources/read","params":{"uri":"file:///etc/passwd"}}`, `{"jsonrpc":"2.0","id":5,"error":{"code":-3`},
		{`{"jsonrpc":"2.0","id":6,"method":"logging/setLevel","params":{"level":"debug"}}`, `"id":6`},
		{`{"jsonrpc":"2.0","id":7,"method":"ping"}`, `{"jsonrpc":"2.0","id":7,"result":{`},
		{`{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"remove","arguments":{"sandbox":"` + id + `"}}}`, `"state":"removed"`},
	} {
		if got := s.ask(step.line); !strings.Contains(got, step.want) {
			t.Errorf("%s\n got %.500s\nwant %s in it", step.line, got, step.want)
		}
	}
	_ = s.in.Close()
	if err := s.cmd.Wait(); err != nil || s.err.Len() > 0 {
		t.Errorf("the end: %v, %s", err, s.err)
	}
}

// TestMCPEnds: however the server or its client ends, nothing is left; only a
// server that is killed itself leaves sandboxes to their own limits, but no
// command that it waited for.
func TestMCPEnds(t *testing.T) {
	l := mcpLab(t)
	hang := func(s *rawMCP, id string) {
		s.say(`{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"exec","arguments":{"sandbox":"` + id + `","command":["/bin/sh","-c","while :; do echo x; done >/dev/null"]}}}`)
		l.Eventually("the command runs", 20*time.Second, func() error { return execs(l, id, 1) })
	}
	for _, tt := range []struct {
		name string
		args []string
		end  func(s *rawMCP, id string)
		code int // -1: any
		left int
	}{
		{name: "end of input", end: func(s *rawMCP, _ string) { _ = s.in.Close() }},
		{name: "end of input in a call", end: func(s *rawMCP, id string) { hang(s, id); _ = s.in.Close() }},
		{name: "SIGTERM in a call", end: func(s *rawMCP, id string) { hang(s, id); _ = s.cmd.Process.Signal(unix.SIGTERM) }},
		{name: "SIGHUP", end: func(s *rawMCP, _ string) { _ = s.cmd.Process.Signal(unix.SIGHUP) }},
		{name: "a client that reads no more", code: -1, end: func(s *rawMCP, _ string) {
			// More than the pipe holds, then the end.
			for range 400 {
				s.say(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
			}
			_ = s.in.Close()
		}},
		{name: "a client that is gone for reading", code: 1, end: func(s *rawMCP, _ string) {
			_ = s.out.Close()
			s.say(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		}},
		{name: "creeld killed meanwhile", end: func(s *rawMCP, _ string) {
			l.Kill()
			_ = s.in.Close()
			l.Start()
			if err := os.Chmod(l.Socket, 0o666); err != nil {
				t.Error(err)
			}
		}},
		{name: "kept", args: []string{"--keep"}, left: 1, end: func(s *rawMCP, _ string) { _ = s.in.Close() }},
		{name: "SIGKILL", code: -1, left: 1, end: func(s *rawMCP, id string) {
			hang(s, id)
			_ = s.cmd.Process.Kill()
			l.Eventually("the command is ended", 20*time.Second, func() error { return execs(l, id, 0) })
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startRawMCP(t, l.Command(caller, append([]string{"mcp"}, tt.args...)...))
			id := s.spawn()
			tt.end(s, id)
			_ = s.cmd.Wait()
			if code := s.cmd.ProcessState.ExitCode(); code != tt.code && tt.code >= 0 {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, s.err)
			}
			left, err := l.List(deadline(t), client.ListOptions{All: true})
			if err != nil || len(left) != tt.left {
				t.Fatalf("left: %+v, %v, want %d", left, err, tt.left)
			}
			for _, sb := range left {
				if err := l.Remove(deadline(t), sb.ID, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// execs wants a number of commands under way.
func execs(l *lab.Lab, id string, want int) error {
	sb, err := l.Inspect(context.Background(), id)
	if err == nil && sb.Execs != want {
		err = fmt.Errorf("%d commands, not %d", sb.Execs, want)
	}
	return err
}
