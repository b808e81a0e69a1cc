package egress_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/egress"
)

func TestParseText(t *testing.T) {
	for text, want := range map[string]egress.Rule{
		"api.example.com":                   {Host: "api.example.com"},
		"api.example.com:8443":              {Host: "api.example.com", Ports: []uint16{8443}},
		"  tcp   git.example.com:22,2222  ": {Protocol: "tcp", Host: "git.example.com", Ports: []uint16{22, 2222}},
		"*.example.com":                     {Host: "*.example.com"},
		"http deb.example.com":              {Protocol: "http", Host: "deb.example.com"},
		"https a.example GET,HEAD /v1/**":   {Protocol: "https", Host: "a.example", Methods: []string{"GET", "HEAD"}, Paths: []string{"/v1/**"}},
		"a.example /x,/y":                   {Host: "a.example", Paths: []string{"/x", "/y"}},
		"a.example POST":                    {Host: "a.example", Methods: []string{"POST"}},
		"192.168.1.0/24:5432":               {CIDR: "192.168.1.0/24", Ports: []uint16{5432}},
		"192.168.1.7:5432":                  {CIDR: "192.168.1.7/32", Ports: []uint16{5432}},
		"tcp [fd12::/64]:443":               {Protocol: "tcp", CIDR: "fd12::/64", Ports: []uint16{443}},
		"[fd12::1]:443":                     {CIDR: "fd12::1/128", Ports: []uint16{443}},
		"fd12::/64":                         {CIDR: "fd12::/64"},
	} {
		got, err := egress.ParseText(text)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", text, err, diff)
		}
	}
	for _, text := range []string{
		"", " ", "tcp", "a.example:", "a.example:0", "a.example:65536", "a.example:01", "a.example:+1", "a.example:1,", "a.example:x", "[fd12::1", "[fd12::1]443", "[fd12::1]:", "a.example GET /x more",
		"a.example GET POST", "ftp a.example:21 x",
	} {
		r, err := egress.ParseText(text)
		if text == "[fd12::1]:" && err == nil {
			continue // no ports, which Parse asks for
		}
		if err == nil {
			if _, wrong := egress.Parse("x", "egress", []egress.Rule{r}); len(wrong) == 0 {
				t.Errorf("%q is %+v", text, r)
			}
		}
	}
}

// TestTexts: a rule as it is shown is the rule.
func TestTexts(t *testing.T) {
	lines := []string{
		"api.example.com", "http *.example.com:80,8080 GET /a/**,/b", "tcp git.example.com:22", "tls x.example", "10.0.0.0/8:53", "[fd12::/64]:443", "tcp host.creel.internal:11434", "a.example POST",
	}
	p, wrong := egress.ParseLines("x", "egress", lines)
	if len(wrong) > 0 {
		t.Fatal(wrong)
	}
	again, wrong := egress.ParseLines("x", "egress", p.Texts())
	if len(wrong) > 0 || !slices.Equal(again.Texts(), p.Texts()) {
		t.Errorf("%q is read as %q: %v", p.Texts(), again.Texts(), wrong)
	}
	if beyond := append(again.Beyond(p), p.Beyond(again)...); len(beyond) > 0 {
		t.Errorf("they differ: %v", beyond)
	}
}

func TestParseLines(t *testing.T) {
	_, wrong := egress.ParseLines("x", "egress", []string{"a.example", "a.example:x", "tcp b.example", strings.Repeat("a", 500)})
	if len(wrong) != 1 || wrong[0].Field != "egress[1]" {
		t.Errorf("%+v", wrong)
	}
	if _, wrong = egress.ParseLines("x", "egress", []string{"a.example:" + strings.Repeat("a", 500)}); len(wrong) != 1 || len(wrong[0].Value) > 200 {
		t.Errorf("%+v", wrong)
	}
	if _, wrong = egress.ParseLines("x", "egress", []string{"a.example", "tcp b.example"}); len(wrong) != 1 || wrong[0].Field != "egress[1].ports" {
		t.Errorf("%+v", wrong)
	}
	if _, wrong := egress.ParseLines("x", "egress", slices.Repeat([]string{"a.example"}, egress.MaxRules+1)); len(wrong) != 1 {
		t.Errorf("too many rules: %v", wrong)
	}
}

func FuzzParseText(f *testing.F) {
	for _, s := range []string{"api.example.com:443 GET /a/**", "tcp [fd12::/64]:443", "*.x.example", "10.0.0.1:1,2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, wrong := egress.ParseLines("x", "egress", []string{s})
		if len(wrong) > 0 {
			return
		}
		again, wrong := egress.ParseLines("x", "egress", p.Texts())
		if len(wrong) > 0 || !slices.Equal(again.Texts(), p.Texts()) {
			t.Errorf("%q is %q and then %v", s, p.Texts(), wrong)
		}
	})
}
