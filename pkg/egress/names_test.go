package egress_test

import (
	"net/netip"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/creel-sandbox/creel/pkg/egress"
)

func TestParseName(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com": "api.example.com", "API.Example.COM": "api.example.com", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"r1---sn-x.googlevideo.example": "r1---sn-x.googlevideo.example", "1.example": "1.example", "0x7f.example": "0x7f.example", "a.b": "a.b",
		"host.creel.internal": "host.creel.internal", strings.Repeat("a", 63) + ".example": strings.Repeat("a", 63) + ".example",
	} {
		if got, err := egress.ParseName(in); err != nil || string(got) != want {
			t.Errorf("%q is %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", ".", "a.", ".a", "a..b", "a.b.", "com", "localhost", "a.localhost", "LOCALHOST", "x.creel.internal", "creel.internal", "a.host.creel.internal",
		"127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "1.2.3.0x4", "1.2.3.08", "[::1]", "::1", "a.1", "a.1b", "a.0x", "1.1.1.1.nip.0",
		"a_b.example", "-a.example", "a-.example", "a.example-", "a b.example", "a.example ", " a.example", "a\x00.example", "a.example\x00.evil.example", "a.example\n", "a.example\r\nx: y",
		"a%2eexample", "a%00.example", "a@b.example", "user:a.example", "a.example:443", "a.example/", "a.example#", "a.example?", `a.example\`, "*.example.com", "a.*.com",
		"bücher.example", "\u0430pple.example", "a\u3002example", "a\uff0eexample", "faß.example", "\u212aelvin.example", "a\u00ad.example", "a\u200b.example",
		strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 126) + "aa",
	} {
		if got, err := egress.ParseName(in); err == nil {
			t.Errorf("%q is %q", in, got)
		}
	}
}

// FuzzParseName: a name stays as it is, is no address to anybody, and is of
// nothing but what names are made of.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{"api.example.com", "127.1", "0x7f.0.0.1", "a.example.", "xn--a.example", "\u212a.example", "a\x00.b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := egress.ParseName(s)
		if err != nil {
			return
		}
		again, err := egress.ParseName(string(n))
		if err != nil || again != n || !strings.EqualFold(s, string(n)) || len(s) != len(n) {
			t.Fatalf("%q is %q, and that is %q, %v", s, n, again, err)
		}
		if _, err := netip.ParseAddr(s); err == nil || strings.Trim(string(n), "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
			t.Fatalf("%q is a name", s)
		}
		u, err := url.Parse("https://" + s + "/")
		if err != nil || u.Hostname() != s || u.Port() != "" || u.User != nil {
			t.Fatalf("in a URL %q is %v, %v", s, u, err)
		}
	})
}

func TestParsePath(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/a": "/a", "/a/": "/a/", "/%61/%7e": "/a/~", "/a%20b": "/a b", "/%C3%bc": "/ü", "/@scope/x": "/@scope/x", "/%40scope": "/@scope",
		"/a:b!$&'()*+,=": "/a:b!$&'()*+,=", "/...": "/...", "/.git": "/.git", "/a..b/..c": "/a..b/..c",
	} {
		if got, err := egress.ParsePath(in); err != nil || string(got) != want {
			t.Errorf("%q is %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "a", "*", "http://a/", "//", "//a", "/a//b", "/a//", "/.", "/..", "/a/.", "/a/..", "/a/../b", "/a/./b", "/%2e%2e/a", "/.%2E", "/a/%2e", "/a%2fb", "/a%2Fb", "/a%5cb", `/a\b`,
		"/a;b", "/a/..;/b", "/a%3bb", "/a%00", "/a\x00", "/a%0a", "/a\n", "/a%7f", "/a%25", "/a%252e", "/a%", "/a%4", "/a%zz", "/a%3Fb", "/a?b", "/a#b", "/a%23b", "/a b", "/ü", "/%c0%af", "/%ff", "/%ed%a0%80",
		"/a\"b", "/<", "/`", "/{a}", "/a|b", "/a^b", "/[a]", "/" + strings.Repeat("a", 8<<10),
	} {
		if got, err := egress.ParsePath(in); err == nil {
			t.Errorf("%q is %q", in, got)
		}
	}
}

// FuzzParsePath: nothing that anybody normalises is left to be normalised, and
// it is what the standard library takes the path for.
func FuzzParsePath(f *testing.F) {
	for _, s := range []string{"/a/b", "/a/%2e%2e/b", "/a;b", "/%61%2fb", "/a//b", "/%C3%BC/", "/a%252e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := egress.ParsePath(s)
		if err != nil {
			return
		}
		if got, err := url.PathUnescape(s); err != nil || got != string(p) {
			t.Fatalf("%q is %q, and to net/url %q, %v", s, p, got, err)
		}
		if clean := path.Clean(string(p)); clean != string(p) && clean+"/" != string(p) {
			t.Fatalf("%q is %q, cleaned %q", s, p, clean)
		}
		if strings.ContainsAny(string(p), "\\;%?#\x00\r\n") || !utf8.ValidString(string(p)) {
			t.Fatalf("%q is %q", s, p)
		}
	})
}
