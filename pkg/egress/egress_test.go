package egress_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/creel-sandbox/creel/pkg/egress"
)

func parse(tb testing.TB, by string, rules ...egress.Rule) *egress.Policy {
	tb.Helper()
	p, problems := egress.Parse(by, "egress", rules)
	if len(problems) > 0 {
		tb.Fatalf("%+v: %v", rules, problems)
	}
	return p
}

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		rule egress.Rule
		want string // "" is right; or the field and a part of what is said
	}{
		{egress.Rule{Host: "api.example.com"}, ""},
		{egress.Rule{Host: "*.example.com", Protocol: "http", Methods: []string{"GET"}, Paths: []string{"/a/*/b*c/**"}}, ""},
		{egress.Rule{CIDR: "192.168.1.0/24", Ports: []uint16{8080}}, ""},
		{egress.Rule{Host: "host.creel.internal", Protocol: "http", Ports: []uint16{11434}}, ""},
		{egress.Rule{}, "host: a host or a cidr"},
		{egress.Rule{Host: "a.example", CIDR: "10.0.0.0/8", Ports: []uint16{1}}, "cidr: left out"},
		{egress.Rule{Host: "127.0.0.1"}, "host: "},
		{egress.Rule{Host: "*.com"}, "host: "},
		{egress.Rule{Host: "**"}, "host: "},
		{egress.Rule{Host: "*."}, "host: "},
		{egress.Rule{Host: "*.*"}, "host: "},
		{egress.Rule{Host: "a*.example.com"}, "host: "},
		{egress.Rule{Host: "*.*.example.com"}, "host: "},
		{egress.Rule{Host: "*.creel.internal"}, "host: "},
		{egress.Rule{Host: "*.host.creel.internal"}, "host: "},
		{egress.Rule{Host: "*.agent.creel.internal", Ports: []uint16{80}}, "host: "},
		{egress.Rule{Host: "agent.creel.internal", Ports: []uint16{80}}, "host: "},
		{egress.Rule{Host: "a.b.agent.creel.internal", Ports: []uint16{80}}, "host: "},
		{egress.Rule{Host: "db.agent.creel.internal", Protocol: "tcp", Ports: []uint16{80}}, ""},
		{egress.Rule{Host: "db.agent.creel.internal"}, "ports: needed for db.agent.creel.internal"},
		{egress.Rule{Host: "host.creel.internal"}, "ports: needed for host.creel.internal"},
		{egress.Rule{CIDR: "192.168.1.1/24", Ports: []uint16{1}}, "cidr: "},
		{egress.Rule{CIDR: "192.168.1.1", Ports: []uint16{1}}, "cidr: "},
		{egress.Rule{CIDR: "::ffff:10.0.0.0/104", Ports: []uint16{1}}, "cidr: "},
		{egress.Rule{CIDR: "fe80::%1/64", Ports: []uint16{1}}, "cidr: "},
		{egress.Rule{CIDR: "10.0.0.0/8", Protocol: "https"}, "protocol: "},
		{egress.Rule{CIDR: "10.0.0.0/8"}, "ports: needed for tcp"},
		{egress.Rule{Host: "a.example", Protocol: "tcp"}, "ports: needed for tcp"},
		{egress.Rule{Host: "a.example", Protocol: "udp"}, "protocol: "},
		{egress.Rule{Host: "a.example", Ports: []uint16{0}}, "ports: 1 to 65535"},
		{egress.Rule{Host: "a.example", Ports: make([]uint16, 33)}, "ports: 32 at most"},
		{egress.Rule{Host: "a.example", Methods: []string{"get"}}, "methods[0]: "},
		{egress.Rule{Host: "a.example", Methods: []string{"CONNECT"}}, "methods[0]: "},
		{egress.Rule{Host: "a.example", Methods: []string{"GET\r\nX: y"}}, "methods[0]: "},
		{egress.Rule{Host: "a.example", Methods: make([]string, 17)}, "methods: "},
		{egress.Rule{Host: "a.example", Protocol: "tls", Methods: []string{"GET"}}, "methods: left out"},
		{egress.Rule{Host: "a.example", Protocol: "tcp", Ports: []uint16{1}, Paths: []string{"/"}}, "paths: left out"},
		{egress.Rule{Host: "a.example", Paths: []string{"/", "a"}}, "paths[1]: "},
		{egress.Rule{Host: "a.example", Paths: []string{"/a/**/b"}}, "paths[0]: "},
		{egress.Rule{Host: "a.example", Paths: []string{"/a/../b"}}, "paths[0]: "},
		{egress.Rule{Host: "a.example", Paths: []string{"/********* "}}, "paths[0]: "},
		{egress.Rule{Host: "a.example", Paths: []string{"/*a*a*a*a*a*a*a*a*a"}}, `paths[0]: a path`},
	} {
		_, problems := egress.Parse("test", "egress", []egress.Rule{{Host: "a.example"}, tt.rule})
		said := ""
		for _, p := range problems {
			said += p.Field + ": " + p.Want + "\n"
		}
		if (said == "") != (tt.want == "") || !strings.Contains(said, tt.want) || said != "" && !strings.HasPrefix(said, "egress[1].") {
			t.Errorf("%+v: %q, want %q", tt.rule, said, tt.want)
		}
	}
	if _, problems := egress.Parse("test", "egress", make([]egress.Rule, egress.MaxRules+1)); len(problems) != 1 {
		t.Errorf("too many rules: %d problems", len(problems))
	}
}

// TestParseTellsAll: every mistake is told at once.
func TestParseTellsAll(t *testing.T) {
	_, problems := egress.Parse("test", "egress", []egress.Rule{{Host: "a", Protocol: "tcp", Methods: []string{"x"}}, {}})
	var fields []string
	for _, p := range problems {
		fields = append(fields, p.Field)
	}
	want := []string{"egress[0].host", "egress[0].ports", "egress[0].methods", "egress[0].methods[0]", "egress[1].host"}
	if !slices.Equal(fields, want) {
		t.Errorf("%q, want %q", fields, want)
	}
}

func TestConnect(t *testing.T) {
	profile := parse(t, "the profile",
		egress.Rule{Host: "pass.example.com"},
		egress.Rule{Host: "*.wild.example.com"},
		egress.Rule{Host: "read.example.com", Methods: []string{"GET"}},
		egress.Rule{Host: "raw.example.com", Protocol: "tcp", Ports: []uint16{22, 443}},
		egress.Rule{Host: "plain.example.com", Protocol: "http"},
		egress.Rule{Host: "tls.example.com", Protocol: "tls", Ports: []uint16{993}},
	)
	request := parse(t, "the request",
		egress.Rule{Host: "pass.example.com", Paths: []string{"/v1/**"}},
		egress.Rule{Host: "*.wild.example.com"},
		egress.Rule{Host: "raw.example.com", Protocol: "http", Ports: []uint16{443}},
		egress.Rule{Host: "plain.example.com", Ports: []uint16{80}},
	)
	for _, tt := range []struct {
		host   egress.Name
		port   uint16
		alone  egress.Kinds // under the profile; 0 is refused
		inside egress.Kinds // under both
	}{
		{"pass.example.com", 443, egress.TLS | egress.HTTPS, egress.HTTPS},
		{"pass.example.com", 80, 0, 0},
		{"a.wild.example.com", 443, egress.TLS | egress.HTTPS, egress.TLS | egress.HTTPS},
		{"a.b.wild.example.com", 443, 0, 0},
		{"wild.example.com", 443, 0, 0},
		{"xwild.example.com", 443, 0, 0},
		{"read.example.com", 443, egress.HTTPS, 0},
		{"raw.example.com", 22, egress.Raw | egress.TLS | egress.HTTP | egress.HTTPS, 0},
		{"raw.example.com", 443, egress.Raw | egress.TLS | egress.HTTP | egress.HTTPS, egress.HTTP},
		{"plain.example.com", 80, egress.HTTP, 0}, // one says HTTP, the other TLS
		{"tls.example.com", 993, egress.TLS | egress.HTTPS, 0},
		{"tls.example.com", 443, 0, 0},
		{"other.example.com", 443, 0, 0},
		{"", 443, 0, 0},
	} {
		for _, in := range []struct {
			s    egress.Snapshot
			want egress.Kinds
		}{{egress.NewSnapshot(profile), tt.alone}, {egress.NewSnapshot(profile, request), tt.inside}, {egress.NewSnapshot(profile, nil), 0}, {egress.Snapshot{}, 0}} {
			g, err := in.s.Connect(tt.host, tt.port)
			var refused *egress.RefusedError
			if g.Kinds != in.want || (in.want == 0) != errors.As(err, &refused) || in.want != 0 && err != nil {
				t.Errorf("%s:%d: %+v, %v; want %b", tt.host, tt.port, g, err, in.want)
			}
		}
	}
	_, err := egress.NewSnapshot(profile, request).Connect("read.example.com", 443)
	if err == nil || err.Error() != "a connection to read.example.com:443 is not allowed by the request" {
		t.Error(err)
	}
	_, err = egress.NewSnapshot(profile).Connect("tls.example.com", 443)
	if refused, ok := errors.AsType[*egress.RefusedError](err); !ok || !slices.Equal(refused.Near, []string{"tls tls.example.com:993"}) {
		t.Errorf("%#v", err)
	}
}

func TestResolves(t *testing.T) {
	s := egress.NewSnapshot(parse(t, "a", egress.Rule{Host: "*.example.com"}, egress.Rule{Host: "www.example.com", Protocol: "http"}, egress.Rule{CIDR: "10.0.0.0/8", Ports: []uint16{1}}))
	for name, want := range map[egress.Name]string{"www.example.com": "own", "x.example.com": "wildcard", "example.com": "no", "a.x.example.com": "no", "": "no"} {
		g, err := s.Resolves(name)
		got := "no"
		if err == nil {
			got = map[bool]string{true: "wildcard", false: "own"}[g.Wildcard]
		}
		if got != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestRequest(t *testing.T) {
	s := egress.NewSnapshot(
		parse(t, "the ceiling", egress.Rule{Host: "*.example.com"}, egress.Rule{Host: "*.example.com", Protocol: "http"}),
		parse(t, "the profile",
			egress.Rule{Host: "api.example.com", Methods: []string{"GET", "HEAD"}, Paths: []string{"/v1/**", "/users/*/keys", "/f*.js*n"}},
			egress.Rule{Host: "api.example.com", Methods: []string{"POST"}, Paths: []string{"/v1/chat"}},
			egress.Rule{Host: "all.example.com", Protocol: "http"}),
	)
	for _, tt := range []struct {
		kind   egress.Kinds
		host   egress.Name
		port   uint16
		method string
		path   egress.Path
		want   bool
	}{
		{egress.HTTPS, "api.example.com", 443, "GET", "/v1/models", true},
		{egress.HTTPS, "api.example.com", 443, "HEAD", "/v1/a/b", true},
		{egress.HTTPS, "api.example.com", 443, "GET", "/v1/", true},
		{egress.HTTPS, "api.example.com", 443, "GET", "/v1", false},
		{egress.HTTPS, "api.example.com", 443, "GET", "/v10/x", false},
		{egress.HTTPS, "api.example.com", 443, "POST", "/v1/models", false},
		{egress.HTTPS, "api.example.com", 443, "POST", "/v1/chat", true},
		{egress.HTTPS, "api.example.com", 443, "POST", "/v1/chat/x", false},
		{egress.HTTPS, "api.example.com", 443, "get", "/v1/models", false},
		{egress.HTTPS, "api.example.com", 443, "DELETE", "/v1/chat", false},
		{egress.HTTPS, "api.example.com", 443, "GET", "/users/me/keys", true},
		{egress.HTTPS, "api.example.com", 443, "GET", "/users/me/x/keys", false},
		{egress.HTTPS, "api.example.com", 443, "GET", "/users/me/keys/", false},
		{egress.HTTPS, "api.example.com", 443, "GET", "/foo.json", true},
		{egress.HTTPS, "api.example.com", 443, "GET", "/f.jsn", true},
		{egress.HTTPS, "api.example.com", 443, "GET", "/f.js", false},
		{egress.HTTP, "api.example.com", 443, "GET", "/v1/models", false},
		{egress.HTTPS, "api.example.com", 80, "GET", "/v1/models", false},
		{egress.HTTPS, "x.example.com", 443, "GET", "/v1/models", false},
		{egress.HTTP, "all.example.com", 80, "PROPFIND", "/any", true},
		{egress.HTTPS, "all.example.com", 80, "GET", "/any", false},
		{egress.HTTP, "all.example.com", 80, "CONNECT", "/any", false},
		{egress.Raw, "all.example.com", 80, "GET", "/any", false},
		{egress.HTTP | egress.HTTPS, "all.example.com", 80, "GET", "/any", false},
	} {
		if g, err := s.Request(tt.kind, tt.host, tt.port, tt.method, tt.path); (err == nil) != tt.want || tt.want && len(g.Rules) != 2 {
			t.Errorf("%+v: %+v, %v", tt, g, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	lan := parse(t, "the ceiling", egress.Rule{CIDR: "192.168.0.0/16", Ports: []uint16{80, 8080}}, egress.Rule{Host: "nas.example.com", Protocol: "tcp", Ports: []uint16{8080}}, egress.Rule{CIDR: "0.0.0.0/0", Ports: []uint16{22}})
	s := egress.NewSnapshot(lan, parse(t, "the profile", egress.Rule{CIDR: "192.168.1.0/24", Ports: []uint16{8080}}, egress.Rule{CIDR: "1.1.1.1/32", Ports: []uint16{22}}))
	for _, tt := range []struct {
		addr          string
		port          uint16
		connect, dial bool
	}{
		{"192.168.1.7", 8080, true, true},
		{"192.168.1.7", 80, false, false},
		{"192.168.2.7", 8080, false, false},
		{"1.1.1.1", 22, true, true},
		{"8.8.8.8", 22, false, true}, // a name may point there
		{"169.254.169.254", 22, false, false},
		{"::ffff:192.168.1.7", 8080, false, false},
		{"127.0.0.1", 22, false, false},
	} {
		a := netip.MustParseAddr(tt.addr)
		g, err := s.ConnectAddr(a, tt.port)
		if (err == nil) != tt.connect || tt.connect && g.Kinds != egress.Raw {
			t.Errorf("connect %s:%d: %+v, %v", a, tt.port, g, err)
		}
		if err := s.Dial(a, tt.port, nil); (err == nil) != tt.dial {
			t.Errorf("dial %s:%d: %v", a, tt.port, err)
		}
		for _, none := range []egress.Snapshot{{}, egress.NewSnapshot(lan, nil)} {
			if none.Dial(a, tt.port, nil) == nil {
				t.Errorf("dial %s without a policy", a)
			}
		}
	}
}

// What random rules and random requests are made of.
var (
	hosts   = []string{"a.example", "b.a.example", "*.a.example", "*.b.a.example", "c.b.a.example"}
	methods = []string{"GET", "POST", "PUT"}
	paths   = []string{"/", "/**", "/a", "/a/**", "/a/*", "/*/b", "/a/b", "/a/b/**", "/a*", "/*a", "/*"}
	ports   = []uint16{80, 443, 22}
	cidrs   = []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "fd00::/8"}
)

func anyRule(t *rapid.T) egress.Rule {
	some := func(of []string) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 0, 2, rapid.ID).Draw(t, "some")
	}
	r := egress.Rule{Ports: rapid.SliceOfNDistinct(rapid.SampledFrom(ports), 1, 2, rapid.ID).Draw(t, "ports")}
	if rapid.IntRange(0, 4).Draw(t, "cidr") == 0 {
		r.CIDR = rapid.SampledFrom(cidrs).Draw(t, "range")
		return r
	}
	r.Host = rapid.SampledFrom(hosts).Draw(t, "host")
	r.Protocol = rapid.SampledFrom([]string{"https", "http", "tls", "tcp", "https"}).Draw(t, "protocol")
	if r.Protocol == "http" || r.Protocol == "https" {
		r.Methods, r.Paths = some(methods), some(paths)
	}
	return r
}

func anyPolicy(t *rapid.T, by string) *egress.Policy {
	return parse(&testing.T{}, by, rapid.SliceOfN(rapid.Custom(anyRule), 1, 4).Draw(t, by)...)
}

// decisions are those about all that the random rules are about.
func decisions(s egress.Snapshot) map[string]egress.Kinds {
	out := map[string]egress.Kinds{}
	for _, port := range ports {
		for _, host := range []egress.Name{"a.example", "b.a.example", "x.a.example", "c.b.a.example", "y.b.a.example", "z.example"} {
			if g, err := s.Connect(host, port); err == nil {
				out[fmt.Sprint(host, port)] = g.Kinds
			}
			if _, err := s.Resolves(host); err == nil {
				out[string(host)] = 1
			}
			for _, kind := range []egress.Kinds{egress.HTTP, egress.HTTPS} {
				for _, m := range methods {
					for _, p := range []egress.Path{"/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/b", "/x/b", "/xa", "/ax", "/a/x"} {
						if _, err := s.Request(kind, host, port, m, p); err == nil {
							out[fmt.Sprint(kind, host, port, m, p)] = 1
						}
					}
				}
			}
		}
		for _, addr := range []string{"10.0.0.1", "10.1.0.1", "10.1.2.3", "8.8.8.8", "fd00::1"} {
			a := netip.MustParseAddr(addr)
			if _, err := s.ConnectAddr(a, port); err == nil {
				out[fmt.Sprint(addr, port)] = 1
			}
			if s.Dial(a, port, nil) == nil {
				out[fmt.Sprint("dial", addr, port)] = 1
			}
		}
	}
	return out
}

// beyond says what some decisions allow beyond others.
func beyond(inner, outer map[string]egress.Kinds) string {
	for what, kinds := range inner {
		if kinds&^outer[what] != 0 {
			return fmt.Sprintf("%s: %b, and there %b", what, kinds, outer[what])
		}
	}
	return ""
}

// TestNobodyWidens: with one more who has a say nothing more is allowed, and
// what all of them allow alone is allowed by all.
func TestNobodyWidens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p, q := anyPolicy(t, "p"), anyPolicy(t, "q")
		both := decisions(egress.NewSnapshot(p, q))
		alone := []map[string]egress.Kinds{decisions(egress.NewSnapshot(p)), decisions(egress.NewSnapshot(q))}
		for i, one := range alone {
			if more := beyond(both, one); more != "" {
				t.Fatalf("beyond %d: %s", i, more)
			}
		}
		for what, kinds := range alone[0] {
			if both[what] != kinds&alone[1][what] {
				t.Fatalf("%s: %b and %b are %b", what, kinds, alone[1][what], both[what])
			}
		}
	})
}

// TestBeyond: what is told to be within another policy is.
func TestBeyond(t *testing.T) {
	told := 0
	rapid.Check(t, func(t *rapid.T) {
		rules := rapid.SliceOfN(rapid.Custom(anyRule), 1, 4).Draw(t, "rules")
		outer := parse(&testing.T{}, "outer", append(rules, rapid.SliceOfN(rapid.Custom(anyRule), 0, 3).Draw(t, "more")...)...)
		inner := make([]egress.Rule, len(rules))
		for i, r := range rules { // often narrower, now and then another one
			switch rapid.IntRange(0, 5).Draw(t, "change") {
			case 0:
				r.Ports = r.Ports[:1]
			case 1:
				if len(r.Methods) > 0 {
					r.Methods = r.Methods[:1]
				}
			case 2:
				if r.Protocol == "https" {
					r.Paths = []string{rapid.SampledFrom(paths).Draw(t, "path")}
				}
			case 3:
				if r.CIDR == "" {
					r.Host = rapid.SampledFrom(hosts).Draw(t, "host")
				} else {
					r.CIDR = rapid.SampledFrom(cidrs).Draw(t, "range")
				}
			case 4:
				r = anyRule(t)
			}
			inner[i] = r
		}
		p := parse(&testing.T{}, "inner", inner...)
		if len(p.Beyond(outer)) > 0 {
			return
		}
		told++
		if more := beyond(decisions(egress.NewSnapshot(p)), decisions(egress.NewSnapshot(outer))); more != "" {
			t.Fatal(more)
		}
	})
	if told < 10 {
		t.Errorf("only %d policies were within another", told)
	}
}

// TestBeyondRules: single rules, where random ones seldom come.
func TestBeyondRules(t *testing.T) {
	path := func(p ...string) egress.Rule { return egress.Rule{Host: "a.example", Paths: p} }
	cidr := func(c string) egress.Rule { return egress.Rule{CIDR: c, Ports: []uint16{1}} }
	for _, tt := range []struct {
		inner, outer egress.Rule
		within       bool
	}{
		{path("/a"), path(), true},
		{path(), path("/**"), false},
		{path("/a"), path("/**"), true},
		{path("/a/b", "/c"), path("/a/**", "/c"), true},
		{path("/a/b", "/d"), path("/a/**", "/c"), false},
		{path("/a"), path("/a/**"), false},
		{path("/a/**"), path("/a/**"), true},
		{path("/a/**"), path("/a/*"), false},
		{path("/a/b/**"), path("/a/b"), false},
		{egress.Rule{Host: "a.example", Protocol: "http"}, egress.Rule{Host: "a.example", Protocol: "http", Methods: []string{"GET"}}, false},
		{path("/a/b/**"), path("/a/**"), true},
		{path("/a/**"), path("/a/b/**"), false},
		{path("/a/*/c"), path("/a/*/*"), true},
		{path("/a/*"), path("/a/b"), false},
		{path("/ab*cd"), path("/a*d"), true},
		{path("/a*d"), path("/ab*cd"), false},
		{path("/*a"), path("/a*"), false},
		{egress.Rule{Host: "a.example", Methods: []string{"GET"}}, egress.Rule{Host: "a.example"}, true},
		{egress.Rule{Host: "a.example"}, egress.Rule{Host: "a.example", Methods: []string{"GET"}}, false},
		{egress.Rule{Host: "a.example", Methods: []string{"GET", "PUT"}}, egress.Rule{Host: "a.example", Methods: []string{"GET"}}, false},
		{egress.Rule{Host: "x.a.example"}, egress.Rule{Host: "*.a.example"}, true},
		{egress.Rule{Host: "*.x.a.example"}, egress.Rule{Host: "*.a.example"}, false},
		{egress.Rule{Host: "*.a.example"}, egress.Rule{Host: "*.a.example"}, true},
		{egress.Rule{Host: "a.example"}, egress.Rule{Host: "*.a.example"}, false},
		{egress.Rule{Host: "a.example", Protocol: "tls"}, egress.Rule{Host: "a.example"}, true},
		{egress.Rule{Host: "a.example"}, egress.Rule{Host: "a.example", Protocol: "tcp", Ports: []uint16{443}}, true},
		{egress.Rule{Host: "a.example", Protocol: "tcp", Ports: []uint16{443}}, egress.Rule{Host: "a.example"}, false},
		{egress.Rule{Host: "a.example", Protocol: "http", Ports: []uint16{443}}, egress.Rule{Host: "a.example"}, false},
		{egress.Rule{Host: "a.example", Ports: []uint16{443, 8443}}, egress.Rule{Host: "a.example"}, false},
		{cidr("10.1.0.0/16"), cidr("10.0.0.0/8"), true},
		{cidr("10.0.0.0/8"), cidr("10.0.0.0/16"), false},
		{cidr("fd00::/64"), cidr("0.0.0.0/0"), false},
		{cidr("10.0.0.0/8"), egress.Rule{Host: "a.example", Protocol: "tcp", Ports: []uint16{1}}, false},
		{egress.Rule{Host: "a.example", Protocol: "tcp", Ports: []uint16{1}}, cidr("0.0.0.0/0"), false},
	} {
		beyond := parse(t, "inner", tt.inner).Beyond(parse(t, "outer", tt.outer))
		if (len(beyond) == 0) != tt.within {
			t.Errorf("%+v in %+v: %v", tt.inner, tt.outer, beyond)
		}
	}
}
