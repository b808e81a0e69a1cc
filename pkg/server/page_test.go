package server_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/server"

	"github.com/google/go-cmp/cmp"
)

// TestPages walks lists that change meanwhile.
func TestPages(t *testing.T) {
	d := start(t, server.Options{})
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	sandbox := func(n int, id string) api.Sandbox { return api.Sandbox{ID: id, Created: day.Add(time.Duration(n))} }
	list := func(l ...api.Sandbox) { d.svc.set(func() { d.svc.list = l }) }
	list(sandbox(1, "a"), sandbox(5, "e"), sandbox(3, "d"), sandbox(3, "c"), sandbox(2, "b"))
	d.svc.set(func() {
		d.svc.imgs = []api.Image{{Ref: "b", Digest: "1"}, {Ref: "a", Digest: "2"}, {Ref: "a", Digest: "1"}, {Ref: "a", Digest: "2"}, {Ref: "a", Digest: "2"}}
	})
	page := func(target string) (names, next string) {
		t.Helper()
		status, header, body := d.do(t, "GET", target, "")
		var items []struct{ ID, Ref, Digest string }
		if err := json.Unmarshal([]byte(body), &items); err != nil || status != 200 {
			t.Fatalf("GET %s: %d %s", target, status, body)
		}
		for _, i := range items {
			names += i.ID + i.Ref + i.Digest + " "
		}
		return names, header.Get("Creel-Next")
	}
	if all, next := page("/v1/sandboxes"); all != "e c d b a " || next != "" {
		t.Errorf("all: %q, next %q", all, next)
	}
	if all, next := page("/v1/sandboxes?limit=5"); all != "e c d b a " || next != "" {
		t.Errorf("just all: %q, next %q", all, next)
	}
	first, next := page("/v1/sandboxes?limit=2")
	list(sandbox(9, "new"), sandbox(1, "a"), sandbox(3, "d"), sandbox(2, "b")) // c, the cursor's, and e are gone
	second, last := page("/v1/sandboxes?limit=2&after=" + url.QueryEscape(next))
	third, none := page("/v1/sandboxes?limit=2&after=" + url.QueryEscape(last))
	if diff := cmp.Diff([]string{"e c ", "d b ", "a ", ""}, []string{first, second, third, none}); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}
	list()
	if got, next := page("/v1/sandboxes?limit=1&after=" + url.QueryEscape(last)); got != "" || next != "" {
		t.Errorf("of nothing: %q, %q", got, next)
	}
	var images string
	for after, i := "", 0; i < 10; i++ {
		got, next := page("/v1/images?limit=1&after=" + url.QueryEscape(after))
		images += got
		if after = next; next == "" {
			break
		}
	}
	if images != "a1 a2 a2 a2 b1 " { // root sees the same image of several users
		t.Errorf("images one by one: %q", images)
	}
	for _, q := range []string{"limit=0", "limit=1001", "limit=-1", "limit=x", "after=" + strings.Repeat("a", 2000)} {
		if status, _, body := d.do(t, "GET", "/v1/sandboxes?"+q, ""); status != 400 {
			t.Errorf("%.20s: %d %s", q, status, body)
		}
	}
}
