package learn_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/learn"
)

func TestPolicy(t *testing.T) {
	got := learn.Policy([]learn.Seen{
		{Allowed: true, To: "api.example.com:443", What: "connection"},
		{Allowed: true, To: "api.example.com:443", What: "connection"},
		{Allowed: true, To: "git.example.com:22", What: "connection"},
		{Allowed: true, To: "10.1.2.3:5432", What: "connection"},
		{Allowed: true, To: "deb.example.com:80", What: "connection"},
		{Allowed: true, To: "deb.example.com:80", What: "request", Scheme: "http", Method: "GET", Path: "/a"},
		{Allowed: true, To: "deb.example.com:80", What: "request", Scheme: "http", Method: "GET", Path: "/b"},
		{Allowed: true, To: "odd.example.com:80", What: "request", Scheme: "http", Method: "g\"t", Path: "/b"},
		{Allowed: true, To: "opened.example.com:443", What: "request", Scheme: "https", Method: "POST", Path: "/v1/x"},
		{Allowed: true, To: "web.example.com:8080", What: "request", Scheme: "http", Method: "GET", Path: "/"},
		{To: "evil.example", What: "name", By: "the ceiling default"},
		{To: "evil.example", What: "name", By: "the ceiling default"},
	})
	want := learn.Learned{
		Rules:     []string{"api.example.com", "http deb.example.com GET /a,/b", "http odd.example.com", "http web.example.com:8080 GET /", "https opened.example.com POST /v1/x", "tcp git.example.com:22"},
		Addresses: []string{"10.1.2.3:5432"},
		Refused:   []learn.Refused{{To: "evil.example", By: "the ceiling default"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestAllows: all that was reached is allowed, on that host alone, and a policy is
// one that can be read.
func TestAllows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segment := rapid.StringMatching(`[a-z]{1,3}`)
		var seen []learn.Seen
		for range rapid.IntRange(1, 30).Draw(t, "n") {
			s := learn.Seen{Allowed: true, To: segment.Draw(t, "host") + ".example", What: "connection"}
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				s.To += ":443"
			case 1:
				s.To += fmt.Sprintf(":%d", rapid.IntRange(1, 65535).Draw(t, "port"))
			default:
				s.To += ":80"
				s.What, s.Scheme, s.Method = "request", "http", rapid.SampledFrom([]string{"GET", "POST"}).Draw(t, "method")
				s.Path = "/" + strings.Join(rapid.SliceOfN(rapid.OneOf(segment, rapid.Just("%41")), 0, 4).Draw(t, "path"), "/")
			}
			seen = append(seen, s)
		}
		got := learn.Policy(seen)
		pol, problems := egress.ParseLines("learned", "rules", got.Rules)
		if len(problems) > 0 {
			t.Fatalf("%v: %v", got.Rules, problems)
		}
		all := egress.NewSnapshot(pol)
		for _, s := range seen {
			host, port, _ := strings.Cut(s.To, ":")
			var n uint16
			_, _ = fmt.Sscan(port, &n)
			_, err := all.Connect(egress.Name(host), n)
			if s.What == "request" {
				path, bad := egress.ParsePath(s.Path)
				if bad != nil {
					continue
				}
				_, err = all.Request(egress.HTTP, egress.Name(host), n, s.Method, path)
			}
			if err != nil {
				t.Fatalf("%+v by %v: %v", s, got.Rules, err)
			}
		}
		for _, rule := range got.Rules {
			if !slices.ContainsFunc(seen, func(s learn.Seen) bool {
				host, _, _ := strings.Cut(s.To, ":")
				return slices.Contains(strings.FieldsFunc(rule, func(r rune) bool { return r == ' ' || r == ':' }), host)
			}) {
				t.Fatalf("%q is about nothing that was reached", rule)
			}
		}
	})
}
