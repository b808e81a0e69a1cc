package mcp_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/client/clienttest"
	"github.com/creel-sandbox/creel/pkg/mcp"
)

// session is a server with a client of the protocol's library.
type session struct {
	*sdk.ClientSession
	t      *testing.T
	daemon *clienttest.Daemon
	client *client.Client
	served chan error
}

func start(t *testing.T, change func(*mcp.Options)) *session {
	t.Helper()
	d := clienttest.New(t)
	c := client.New(d.Socket)
	t.Cleanup(func() { _ = c.Close() })
	o := mcp.Options{Client: c, Timeout: time.Minute, Sandboxes: 3}
	if change != nil {
		change(&o)
	}
	s := &session{t: t, daemon: d, client: c, served: make(chan error, 1)}
	toServer, fromClient := io.Pipe()
	toClient, fromServer := io.Pipe()
	go func() {
		s.served <- mcp.Serve(context.WithoutCancel(t.Context()), o, toServer, fromServer)
		_ = fromServer.Close()
	}()
	var err error
	s.ClientSession, err = sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).
		Connect(t.Context(), &sdk.IOTransport{Reader: toClient, Writer: fromClient}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.end() })
	return s
}

// end closes the client's side and gives what Serve returned.
func (s *session) end() error {
	_ = s.Close()
	err := <-s.served
	s.served <- err
	return err
}

// call makes a call, decodes its answer into out, and gives the error's text.
func (s *session) call(tool string, args, out any) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	res, err := s.CallTool(ctx, &sdk.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		s.t.Fatalf("%s: %v", tool, err)
	}
	text := res.Content[0].(*sdk.TextContent).Text
	if res.IsError {
		return text
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			s.t.Fatalf("%s: %v in %s", tool, err, text)
		}
	}
	return ""
}

// until waits for a condition.
func until(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 30s")
		}
	}
}

type args = map[string]any

// ran is what run and exec answer.
type ran struct {
	Sandbox, State string
	Result         outcome
}

type outcome struct {
	ExitCode       int `json:"exit_code"`
	Reason         string
	Stdout, Stderr string
	Truncated      bool
}

func (s *session) run(a args) ran {
	s.t.Helper()
	var out ran
	if text := s.call("run", a, &out); text != "" {
		s.t.Fatalf("run %v: %s", a, text)
	}
	return out
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func TestTools(t *testing.T) {
	s := start(t, func(o *mcp.Options) { o.Spawn.Limits.Memory = 1 << 30 })
	res, err := s.ListTools(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range res.Tools {
		names = append(names, tool.Name)
		schema, ok := tool.InputSchema.(map[string]any)
		if !ok || schema["additionalProperties"] != false {
			t.Errorf("%s takes more than it names: %v", tool.Name, tool.InputSchema)
		}
		if tool.OutputSchema == nil || tool.Description == "" {
			t.Errorf("%s is not described", tool.Name)
		}
	}
	if diff := cmp.Diff([]string{"exec", "list", "logs", "read", "remove", "run", "stop", "write"}, slices.Sorted(slices.Values(names))); diff != "" {
		t.Errorf("tools (-want +got):\n%s", diff)
	}

	got := s.run(args{"command": sh("cat; echo $A; echo err >&2; exit 3"), "stdin": "in\n", "env": args{"A": "b"}})
	want := outcome{ExitCode: 3, Reason: "exited", Stdout: "in\n", Stderr: "err\n"}
	want.Stdout += "\n" // the daemon of the test gives an exec its own environment only
	if diff := cmp.Diff(want, got.Result); diff != "" || got.State != "removed" {
		t.Errorf("run in state %q (-want +got):\n%s", got.State, diff)
	}
	reqs, _ := s.daemon.Requests()
	if r := reqs[0]; r.Command != nil || !r.Remove || r.Env["A"] != "b" || r.Labels[mcp.Label] == "" || r.Limits.Memory != 1<<30 {
		t.Errorf("the sandbox of a command: %+v", r)
	}

	box := s.run(args{})
	var done outcome
	if text := s.call("exec", args{"sandbox": box.Sandbox, "command": sh("echo $A"), "env": args{"A": "c"}}, &done); text != "" || done.Stdout != "c\n" {
		t.Errorf("exec: %s, %+v", text, done)
	}
	if text := s.call("write", args{"sandbox": box.Sandbox, "path": "/f", "content": "AP8=", "encoding": "base64", "mode": "600"}, nil); text != "" {
		t.Errorf("write: %s", text)
	}
	var file struct {
		Content, Encoding string
		Bytes             int
		Truncated         bool
	}
	if text := s.call("read", args{"sandbox": box.Sandbox, "path": "/f"}, &file); text != "" || file.Content != "AP8=" || file.Encoding != "base64" || file.Bytes != 2 {
		t.Errorf("read: %s, %+v", text, file)
	}
	if text := s.call("write", args{"sandbox": box.Sandbox, "path": "/g", "content": strings.Repeat("ü", 10)}, nil); text != "" {
		t.Errorf("write: %s", text)
	}
	if text := s.call("read", args{"sandbox": box.Sandbox, "path": "/g", "max_bytes": 5}, &file); text != "" || file.Content != "üü" || file.Encoding != "text" || !file.Truncated {
		t.Errorf("read of a part: %s, %+v", text, file)
	}

	service := s.run(args{"command": sh("echo up; sleep 100"), "background": true})
	var logs struct{ Stdout string }
	until(t, func() bool {
		if text := s.call("logs", args{"sandbox": service.Sandbox}, &logs); text != "" {
			t.Fatalf("logs: %s", text)
		}
		return logs.Stdout == "up\n"
	})
	var list struct {
		Sandboxes []struct{ ID, State, Command string }
	}
	if text := s.call("list", nil, &list); text != "" || len(list.Sandboxes) != 2 || !slices.ContainsFunc(list.Sandboxes, func(sb struct{ ID, State, Command string }) bool {
		return sb.Command == "/bin/sh -c echo up; sleep 100"
	}) {
		t.Errorf("list: %s, %+v", text, list)
	}
	if text := s.call("stop", args{"sandbox": service.Sandbox, "grace_seconds": 0}, nil); text != "" {
		t.Errorf("stop: %s", text)
	}
	if text := s.call("remove", args{"sandbox": service.Sandbox}, nil); text != "" {
		t.Errorf("remove: %s", text)
	}
	if text := s.call("logs", args{"sandbox": service.Sandbox}, nil); !strings.HasPrefix(text, `not_found: no sandbox "`) {
		t.Errorf("logs of a removed one: %s", text)
	}
}

// TestArguments are those that no tool takes.
func TestArguments(t *testing.T) {
	s := start(t, nil)
	box := s.run(args{}).Sandbox
	long := strings.Repeat("x", 2<<20)
	tests := []struct {
		name, tool string
		args       any
		want       string
	}{
		{"a mount", "run", args{"mounts": []args{{"source": "/", "target": "/host"}}}, "additional"},
		{"a mount as of the command line", "run", args{"volume": "/:/host"}, "additional"},
		{"a profile", "run", args{"profile": "default"}, "additional"},
		{"an image", "run", args{"image": "base"}, "additional"},
		{"limits", "run", args{"limits": args{"memory": "1T"}}, "additional"},
		{"labels", "run", args{"labels": args{mcp.Label: "x"}}, "additional"},
		{"another case", "run", args{"Command": sh("true")}, "additional"},
		{"no shell", "run", args{"command": "true"}, "type"},
		{"empty command", "run", args{"command": []string{}}, "minItems"},
		{"null", "run", args{"command": nil}, "type"},
		{"an array", "run", []string{"command"}, "arguments"},
		{"input that nobody reads", "run", args{"stdin": "x"}, "stdin: only with a command that is waited for"},
		{"time for nothing", "run", args{"timeout_seconds": 1}, "command"},
		{"too long a time", "run", args{"command": sh("true"), "timeout_seconds": 61}, "at most 1m0s"},
		{"far too long a time", "run", args{"command": sh("true"), "timeout_seconds": 1e12}, "maximum"},
		{"half a second", "run", args{"command": sh("true"), "timeout_seconds": 0.5}, "type"},
		{"long argument", "exec", args{"sandbox": box, "command": []string{long}}, "maxLength"},
		{"many arguments", "exec", args{"sandbox": box, "command": slices.Repeat([]string{"x"}, 5000)}, "maxItems"},
		{"no sandbox", "exec", args{"command": sh("true")}, "required"},
		{"a path for a sandbox", "exec", args{"sandbox": "../images", "command": sh("true")}, "pattern"},
		{"relative path", "read", args{"sandbox": box, "path": "etc/passwd"}, "pattern"},
		{"all of a file", "read", args{"sandbox": box, "path": "/f", "max_bytes": 1 << 30}, "maximum"},
		{"set-user-ID", "write", args{"sandbox": box, "path": "/f", "content": "", "mode": "4755"}, "pattern"},
		{"large file", "write", args{"sandbox": box, "path": "/f", "content": long}, "maxLength"},
		{"large in bytes", "write", args{"sandbox": box, "path": "/f", "content": strings.Repeat("ü", 600_000)}, "too_large"},
		{"bad base64", "write", args{"sandbox": box, "path": "/f", "content": "?", "encoding": "base64"}, "base64"},
		{"grace for ever", "stop", args{"sandbox": box, "grace_seconds": 3600}, "maximum"},
		{"negative tail", "logs", args{"sandbox": box, "tail": -1}, "minimum"},
		{"a filter", "list", args{"all": true}, "additional"},
	}
	before, _ := s.daemon.Requests()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := s.call(tt.tool, tt.args, nil)
			if !strings.Contains(text, tt.want) || len(text) > 4<<10 {
				t.Errorf("%d bytes: %.300q, want %q in it", len(text), text, tt.want)
			}
		})
	}
	if after, _ := s.daemon.Requests(); len(after) != len(before) {
		t.Errorf("%d sandboxes were launched", len(after)-len(before))
	}
}

// TestOnlyItsOwn: what the server did not launch does not exist, by whatever
// name, unless the operator says so.
func TestOnlyItsOwn(t *testing.T) {
	for _, all := range []bool{false, true} {
		s := start(t, func(o *mcp.Options) { o.All = all })
		res, err := s.client.Spawn(t.Context(), api.SpawnRequest{Name: "other", Labels: map[string]string{mcp.Label: "another server's"}})
		if err != nil {
			t.Fatal(err)
		}
		own := s.run(args{})
		for tool, more := range map[string]args{
			"exec": {"command": sh("true")}, "read": {"path": "/f"}, "write": {"path": "/f", "content": "x"}, "logs": {}, "stop": {}, "remove": {},
		} {
			if all && (tool == "stop" || tool == "remove" || tool == "read") {
				continue
			}
			for _, ref := range []string{res.Sandbox.ID, "other", res.Sandbox.ID[:4]} {
				a := args{"sandbox": ref}
				maps.Copy(a, more)
				text := s.call(tool, a, nil)
				a["sandbox"] = "nothing"
				none := s.call(tool, a, nil)
				if all && text != "" || !all && text != strings.ReplaceAll(none, "nothing", ref) {
					t.Errorf("all=%v %s of %s: %q; of none: %q", all, tool, ref, text, none)
				}
			}
		}
		var list struct{ Sandboxes []struct{ ID string } }
		s.call("list", nil, &list)
		if want := map[bool]int{false: 1, true: 2}[all]; len(list.Sandboxes) != want || !all && list.Sandboxes[0].ID != own.Sandbox {
			t.Errorf("all=%v lists %v", all, list)
		}
		if err := s.end(); err != nil {
			t.Fatal(err)
		}
		left, err := s.client.List(t.Context(), client.ListOptions{All: true})
		if err != nil || len(left) != 1 || left[0].ID != res.Sandbox.ID {
			t.Errorf("all=%v: left %v, %v, want the other one alone", all, left, err)
		}
	}
}

func TestSandboxesAreCounted(t *testing.T) {
	s := start(t, func(o *mcp.Options) { o.Sandboxes = 2 })
	type answer struct{ text string }
	answers := make(chan answer, 8)
	for range cap(answers) {
		go func() { answers <- answer{s.call("run", args{}, nil)} }()
	}
	refused := 0
	for range cap(answers) {
		if a := <-answers; strings.HasPrefix(a.text, "resource_exhausted: ") {
			refused++
		}
	}
	have, err := s.client.List(t.Context(), client.ListOptions{})
	if err != nil || len(have) > 2 || len(have) == 0 || refused != cap(answers)-len(have) {
		t.Errorf("%d sandboxes, %d refused, %v", len(have), refused, err)
	}
}

// TestCallsAreCounted: the seventeenth call at once is refused, and a call
// that is given up ends its command.
func TestCallsAreCounted(t *testing.T) {
	s := start(t, nil)
	box := s.run(args{}).Sandbox
	ctx, giveUp := context.WithCancel(t.Context())
	ended := make(chan error, 20)
	marks := t.TempDir()
	for i := range 16 {
		go func() {
			_, err := s.CallTool(ctx, &sdk.CallToolParams{Name: "exec", Arguments: args{
				"sandbox": box, "command": sh("echo $$ >" + filepath.Join(marks, string(rune('a'+i))) + "; exec sleep 1000"),
			}})
			ended <- err
		}()
	}
	until(t, func() bool {
		names, _ := os.ReadDir(marks)
		return len(names) == 16
	})
	if text := s.call("list", nil, nil); !strings.HasPrefix(text, "resource_exhausted: 16 calls") {
		t.Errorf("the seventeenth call: %q", text)
	}
	giveUp()
	for range 16 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a call given up: %v", err)
		}
	}
	until(t, func() bool { return s.call("list", nil, nil) == "" })
}

func TestErrors(t *testing.T) {
	s := start(t, nil)
	s.daemon.Set(func(d *clienttest.Daemon) {
		d.Fail = &api.Error{
			Code: api.CodeExhausted, Message: "the box is full", Hint: "wait",
			Problems: []api.Problem{{Field: "limits.memory", Want: "less"}},
		}
	})
	if got, want := s.call("run", args{}, nil), "resource_exhausted: the box is full: limits.memory: less; wait"; got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	if _, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "spawn"}); err == nil {
		t.Error("a tool that is not there answered")
	}
}

// TestOutputIsBounded: the middle of a long stream is left out.
func TestOutputIsBounded(t *testing.T) {
	s := start(t, nil)
	got := s.run(args{"command": sh(`echo first; head -c 3000000 /dev/zero | tr '\0' x; printf '\nl\377st\n'`)}).Result
	if !got.Truncated || len(got.Stdout) > 65<<10 || !strings.HasPrefix(got.Stdout, "first\nxxx") ||
		!strings.HasSuffix(got.Stdout, "xxx\nl\uFFFDst\n") || !strings.Contains(got.Stdout, "\n[2934476 bytes left out]\n") {
		t.Errorf("%d bytes, truncated %v: %.20q ... %q", len(got.Stdout), got.Truncated, got.Stdout, got.Stdout[max(len(got.Stdout)-20, 0):])
	}
}

// TestMountsAreOpenedOnce: a directory that an agent has put a link in the
// place of is not followed for the next sandbox.
func TestMountsAreOpenedOnce(t *testing.T) {
	work := t.TempDir()
	data := filepath.Join(work, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	s := start(t, func(o *mcp.Options) {
		o.Spawn.Mounts = []api.Mount{{Source: work, Target: "/work"}, {Source: data, Target: "/data", ReadOnly: true}}
	})
	s.run(args{})
	if err := errors.Join(os.Rename(data, data+".old"), os.Symlink("/etc", data)); err != nil {
		t.Fatal(err)
	}
	s.run(args{})
	_, dirs := s.daemon.Requests()
	if diff := cmp.Diff([][]string{{work, data}, {work, data + ".old"}}, dirs); diff != "" {
		t.Errorf("directories received (-want +got):\n%s", diff)
	}
	res := s.InitializeResult()
	if !strings.Contains(res.Instructions, "/work (read and write)") || strings.Contains(res.Instructions, work) {
		t.Errorf("instructions: %s", res.Instructions)
	}
}

func TestServeRefusesMissingMount(t *testing.T) {
	err := mcp.Serve(t.Context(), mcp.Options{
		Client: client.New("/nonexistent"), Spawn: api.SpawnRequest{Mounts: []api.Mount{{Source: "/nonexistent", Target: "/x"}}},
	}, strings.NewReader(""), io.Discard)
	if api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("Serve = %v", err)
	}
}

// TestServeWithoutDaemon: a server that has launched nothing leaves at once.
func TestServeWithoutDaemon(t *testing.T) {
	err := mcp.Serve(t.Context(), mcp.Options{Client: client.New("/nonexistent")}, strings.NewReader(""), io.Discard)
	if err != nil {
		t.Errorf("Serve = %v", err)
	}
}

// TestEnds: however a session ends, its sandboxes are removed, or kept.
func TestEnds(t *testing.T) {
	call := `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"run","arguments":{"command":["/bin/sleep","1000"]}}}` + "\n"
	tests := []struct {
		name string
		keep bool
		last string // what the client sends last, then it goes away
		left int
		fail string
	}{
		{name: "end of input"},
		{name: "in the middle of a call", last: call},
		{name: "in the middle of a message", last: call[:40]},
		{name: "no JSON", last: "hello\n", fail: "invalid character"},
		{name: "endless message", last: `{"jsonrpc":"2.0","method":"` + strings.Repeat("x", 9<<20), fail: "exceeded the configured maximum"},
		{name: "deep message", last: `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list","arguments":` + strings.Repeat("[", 1<<20) + "\n", fail: "depth"},
		{name: "kept", keep: true, left: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := clienttest.New(t)
			c := client.New(d.Socket)
			in, client1 := io.Pipe()
			client2, out := io.Pipe()
			served := make(chan error, 1)
			go func() {
				served <- mcp.Serve(context.WithoutCancel(t.Context()), mcp.Options{Client: c, Timeout: time.Minute, Sandboxes: 2, Keep: tt.keep}, in, out)
				_ = in.CloseWithError(io.ErrClosedPipe)
			}()
			dec := json.NewDecoder(client2)
			for _, m := range []string{
				`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`,
				`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"run","arguments":{}}}`,
			} {
				if _, err := io.WriteString(client1, m+"\n"); err != nil {
					t.Fatal(err)
				}
				var answer struct{ Result map[string]any }
				if err := dec.Decode(&answer); err != nil || answer.Result == nil {
					t.Fatalf("answer to %s: %v, %v", m, answer, err)
				}
			}
			go func() { _, _ = io.Copy(io.Discard, client2) }()
			_, _ = io.WriteString(client1, tt.last)
			if tt.last == call {
				until(t, func() bool {
					reqs, _ := d.Requests()
					return len(reqs) == 2
				})
			}
			_ = client1.Close()
			err := <-served
			if (err == nil) != (tt.fail == "") || err != nil && !strings.Contains(err.Error(), tt.fail) {
				t.Errorf("Serve = %v, want %q", err, tt.fail)
			}
			left, err := c.List(t.Context(), client.ListOptions{All: true})
			if err != nil || len(left) != tt.left {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
