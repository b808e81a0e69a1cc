package e2e_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// obj is what the arguments of a tool are.
type obj = map[string]any

// call is one use of a tool, a step what the model does in one answer. It may
// depend on what came of the calls before it, and is asked for again with each
// question after it.
type (
	call struct {
		tool string
		args obj
	}
	step func(results []string) []call
)

// do is a step of one call.
func do(tool string, args obj) step { return func([]string) []call { return []call{{tool, args}} } }

// script is what the model does in one turn, and what it was told meanwhile.
type script struct {
	steps []step
	done  chan struct{} // closed when it has said its last word

	// Guarded by the model's mu.
	results []string // of its calls, as the model sees them
	told    []string // messages that came after the one with the script, of its own children for instance
	tools   []string // that it is offered
	ended   bool
	begun   bool
}

// model is a server of OpenAI's chat completions that does what it is told. A
// user's message names a script ("script:ID"); which step is next is how many
// results of tools follow it.
type model struct {
	URL string

	mu      sync.Mutex
	scripts map[string]*script
}

// marker is how a message names a script.
var marker = regexp.MustCompile(`script:([A-Z2-7]{26})`)

func newModel(tb testing.TB) *model {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	m := &model{URL: "http://" + l.Addr().String() + "/v1", scripts: map[string]*script{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", m.complete)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	tb.Cleanup(func() { _ = s.Close(); <-ended })
	return m
}

// add gives the model a script. The text is what to say to have it run.
func (m *model) add(steps ...step) (text string) {
	id := rand.Text()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scripts[id] = &script{steps: steps, done: make(chan struct{})}
	return "script:" + id
}

func (m *model) script(text string) *script {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.scripts[marker.FindStringSubmatch(text)[1]]
}

// wait is until a script has come to its end, and what came of it.
func (m *model) wait(t *testing.T, text string) *script {
	t.Helper()
	s := m.script(text)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	select {
	case <-s.done:
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		t.Fatalf("the model's script does not end within a minute: results %q, told %q", s.results, s.told)
	}
	return m.seen(s)
}

// seen is a copy of a script as it is now.
func (m *model) seen(s *script) *script {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &script{results: slices.Clone(s.results), told: slices.Clone(s.told), tools: slices.Clone(s.tools), begun: s.begun, ended: s.ended}
}

// content is a message's: a text, or parts of one.
type content string

func (c *content) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		*c = content(text)
		return nil
	}
	var parts []struct{ Text string }
	err := json.Unmarshal(b, &parts)
	for _, p := range parts {
		*c += content(p.Text)
	}
	return err
}

type question struct {
	Messages []struct {
		Role    string
		Content content
	}
	Tools []struct{ Function struct{ Name string } }
}

// others says whether a message is none that a turn begins with. OpenClaw adds
// messages of its own, and those that tell of a child quote its task, script
// and all.
func others(text string) bool {
	for _, s := range []string{"BEGIN_OPENCLAW_INTERNAL_CONTEXT", "has now settled", "Turn yielded"} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// next is what the model does now; nothing is its last word.
func (m *model) next(q question) (string, []call) {
	id, s, results := m.heard(q)
	if s == nil {
		return "", nil // a question of OpenClaw's own, as for a title
	}
	n := 0
	for _, st := range s.steps {
		calls := st(results[:n]) // it may wait for the test
		if n += len(calls); n > len(results) {
			return id, calls
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.done)
	}
	return id, nil
}

// heard finds the script that a question is about, and keeps what it tells.
func (m *model) heard(q question) (string, *script, []string) {
	at, id := -1, ""
	for i, msg := range q.Messages {
		if found := marker.FindStringSubmatch(string(msg.Content)); msg.Role == "user" && found != nil && !others(string(msg.Content)) {
			at, id = i, found[1]
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.scripts[id]
	if s == nil {
		return "", nil, nil
	}
	s.begun = true
	s.results, s.told, s.tools = nil, nil, nil
	for _, msg := range q.Messages[at+1:] {
		switch msg.Role {
		case "tool":
			s.results = append(s.results, string(msg.Content))
		case "user":
			s.told = append(s.told, string(msg.Content))
		}
	}
	for _, t := range q.Tools {
		s.tools = append(s.tools, t.Function.Name)
	}
	return id, s, s.results
}

// complete answers as a stream of events.
func (m *model) complete(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var q question
	if err = errors.Join(err, json.Unmarshal(body, &q)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, calls := m.next(q)
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(v any) {
		text, _ := json.Marshal(v)
		fmt.Fprintf(w, "data: %s\n\n", text)
	}
	chunk := func(delta obj, reason any) obj {
		return obj{
			"id": "chatcmpl-" + rand.Text(), "object": "chat.completion.chunk", "created": time.Now().Unix(), "model": "mock-1",
			"choices": []obj{{"index": 0, "delta": delta, "finish_reason": reason}},
		}
	}
	reason := "stop"
	if len(calls) == 0 {
		send(chunk(obj{"role": "assistant", "content": "done " + id}, nil))
	}
	for i, c := range calls {
		reason = "tool_calls"
		args, _ := json.Marshal(c.args)
		send(chunk(obj{"role": "assistant", "content": nil, "tool_calls": []obj{{
			"index": i, "id": "call_" + rand.Text(), "type": "function", "function": obj{"name": c.tool, "arguments": string(args)},
		}}}, nil))
	}
	send(chunk(obj{}, reason))
	usage := chunk(obj{}, nil)
	usage["choices"], usage["usage"] = []obj{}, obj{"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
	send(usage)
	fmt.Fprint(w, "data: [DONE]\n\n")
}
