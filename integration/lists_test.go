package integration_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"

	"github.com/google/go-cmp/cmp"
)

// TestPages: a list, page by page, while sandboxes come and go and the daemon
// is killed.
func TestPages(t *testing.T) {
	l := lab.New(t, lab.Options{})
	ctx := deadline(t)
	for _, name := range []string{"one", "two", "three", "four"} {
		l.Spawn(api.SpawnRequest{Name: name})
	}
	first, next, err := l.ListPage(ctx, client.ListOptions{}, client.Page{Limit: 2})
	if err != nil || next == "" {
		t.Fatalf("first page: next %q, %v", next, err)
	}
	l.Kill()
	l.Start()
	if err := l.Remove(ctx, "three", true); err != nil {
		t.Fatal(err)
	}
	l.Spawn(api.SpawnRequest{Name: "five"})
	second, end, err := l.ListPage(ctx, client.ListOptions{}, client.Page{Limit: 2, After: next})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, sb := range append(first, second...) {
		names = append(names, sb.Name)
	}
	if diff := cmp.Diff([]string{"four", "three", "two", "one"}, names); diff != "" || end != "" {
		t.Errorf("next %q; names (-want +got):\n%s", end, diff)
	}
	out, errOut, code := l.Creel("ps", "-q", "--limit", "2")
	if strings.Count(out, "\n") != 2 || !strings.Contains(errOut, "more than these 2") || code != 0 {
		t.Errorf("creel ps --limit 2: %d, %q, %q", code, out, errOut)
	}
	if out, errOut, code := l.Creel("ps", "-q"); strings.Count(out, "\n") != 4 || errOut != "" || code != 0 {
		t.Errorf("creel ps: %d, %q, %q", code, out, errOut)
	}
	images, next, err := l.ImagesPage(ctx, client.Page{Limit: 1})
	if err != nil || len(images) != 1 || next != "" {
		t.Errorf("images %+v, next %q, %v", images, next, err)
	}
}

// TestLastEventID: a client that connects again gets what it missed, also from
// the next daemon.
func TestLastEventID(t *testing.T) {
	l := lab.New(t, lab.Options{})
	sb := l.Spawn(api.SpawnRequest{Name: "one"})
	ids := func(header string, n int) (out []string) {
		t.Helper()
		r := dialRaw(t, l).send("GET /v1/events HTTP/1.1\r\nHost: c\r\n" + header + "\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(r.conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		defer r.conn.Close() // first: the body has no end
		sc := bufio.NewScanner(resp.Body)
		for len(out) < n && sc.Scan() {
			if id, ok := strings.CutPrefix(sc.Text(), "id: "); ok {
				out = append(out, id)
			}
		}
		return out
	}
	if _, res := l.Sh(sb.ID, "true"); res.ExitCode != 0 {
		t.Fatalf("%+v", res)
	}
	event(t, l, sb.ID, "exec.ended", nil)
	all := ids("", 3) // started, exec.started, exec.ended
	l.Kill()
	l.Start()
	if got := ids(fmt.Sprintf("Last-Event-ID: %s\r\n", all[0]), 2); !cmp.Equal(got, all[1:]) {
		t.Errorf("after %s: %v, want %v", all[0], got, all[1:])
	}
	r := dialRaw(t, l).send("GET /v1/events HTTP/1.1\r\nHost: c\r\nLast-Event-ID: none\r\n\r\n")
	b, _ := io.ReadAll(io.LimitReader(r.conn, 15))
	if !strings.HasPrefix(string(b), "HTTP/1.1 400") {
		t.Errorf("of no event: %s", b)
	}
}

// TestRetryAfter: what refuses for want of room says when to try again.
func TestRetryAfter(t *testing.T) {
	l := lab.New(t, lab.Options{Config: "[limits.max]\nsandboxes_per_user = 1\n[exec]\nmax_per_sandbox = 1\n"})
	sb := l.Spawn(api.SpawnRequest{})
	p, err := l.StartExec(deadline(t), sb.ID, api.ExecRequest{Command: []string{"/bin/sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const js = "application/json"
	for _, request := range []string{
		post("/v1/sandboxes", js, `{}`),
		strings.Replace(post("/v1/sandboxes/other", js, `{}`), "POST", "PUT", 1),
		post("/v1/sandboxes/"+sb.ID+"/exec", js, `{"command":["/bin/true"]}`),
		execRequest(sb.ID, `{"command":["/bin/true"]}`),
	} {
		r := dialRaw(t, l).send(request)
		resp, err := http.ReadResponse(bufio.NewReader(r.conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" || !strings.Contains(string(body), `"resource_exhausted"`) {
			t.Errorf("%.40q: %s, Retry-After %q, %s", request, resp.Status, resp.Header.Get("Retry-After"), body)
		}
	}
}
