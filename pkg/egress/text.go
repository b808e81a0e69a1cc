package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
)

// ParseText reads a rule as people write it, and as it is shown:
//
//	[PROTOCOL] HOST[:PORT,...] [METHOD,...] [PATH,...]
//
//	api.example.com                            https, port 443
//	http deb.example.com                       port 80
//	tcp git.example.com:22
//	https api.example.com GET,HEAD /v1/**      requests are read
//	192.168.1.0/24:5432                        tcp; [fd12::/64]:5432
//	tcp host.creel.internal:11434              a service on the box's loopback
//
// What a Rule must have besides is for Parse to say.
func ParseText(s string) (Rule, error) {
	var r Rule
	words := strings.Fields(s)
	if len(words) > 0 && slices.Contains([]string{"https", "http", "tls", "tcp"}, words[0]) {
		r.Protocol, words = words[0], words[1:]
	}
	if len(words) == 0 {
		return r, errors.New("no host")
	}
	to, ports, err := splitPorts(words[0])
	if err != nil {
		return r, err
	}
	if strings.Contains(to, "/") || strings.Contains(to, ":") {
		r.CIDR = to
		if a, err := netip.ParseAddr(to); err == nil {
			r.CIDR = netip.PrefixFrom(a, a.BitLen()).String()
		}
	} else if a, err := netip.ParseAddr(to); err == nil {
		r.CIDR = netip.PrefixFrom(a, a.BitLen()).String()
	} else {
		r.Host = to
	}
	r.Ports = ports
	words = words[1:]
	if len(words) > 0 && !strings.HasPrefix(words[0], "/") {
		r.Methods, words = strings.Split(words[0], ","), words[1:]
	}
	if len(words) > 0 && strings.HasPrefix(words[0], "/") {
		r.Paths, words = strings.Split(words[0], ","), words[1:]
	}
	if len(words) > 0 {
		return r, fmt.Errorf("%q is too much", words[0])
	}
	return r, nil
}

// splitPorts takes "HOST[:PORT,...]" apart. An IPv6 range with ports is in
// brackets.
func splitPorts(s string) (host string, ports []uint16, err error) {
	var text string
	switch {
	case strings.HasPrefix(s, "["):
		var found bool
		if host, text, found = strings.Cut(s[1:], "]"); !found {
			return "", nil, errors.New("a bracket is open")
		}
		if text != "" && !strings.HasPrefix(text, ":") {
			return "", nil, fmt.Errorf("%q after the bracket", text)
		}
		if text = strings.TrimPrefix(text, ":"); text == "" {
			return host, nil, nil
		}
	case strings.Count(s, ":") > 1: // an IPv6 range
		return s, nil, nil
	default:
		var found bool
		if host, text, found = strings.Cut(s, ":"); !found {
			return host, nil, nil
		}
	}
	for p := range strings.SplitSeq(text, ",") {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 || p[0] == '0' || p[0] == '+' {
			return "", nil, fmt.Errorf("%q is no port", p)
		}
		ports = append(ports, uint16(n))
	}
	return host, ports, nil
}

// ParseLines is Parse of rules as text.
func ParseLines(by, at string, lines []string) (*Policy, []api.Problem) {
	rules := make([]Rule, 0, min(len(lines), MaxRules+1))
	var problems []api.Problem
	for i, s := range lines {
		if len(rules) > MaxRules {
			break // Parse says so
		}
		r, err := ParseText(s)
		if err != nil {
			problems = append(problems, api.Problem{Field: fmt.Sprintf("%s[%d]", at, i), Value: clip(s), Want: wantRule + ": it has " + err.Error()})
		}
		rules = append(rules, r)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	p, problems := Parse(by, at, rules)
	return p, problems
}

const wantRule = `[PROTOCOL] HOST[:PORT,...] [METHOD,...] [PATH,...]`

func clip(s string) string { return s[:min(len(s), 200)] }

// Texts are the rules, each in one line that ParseText reads.
func (p *Policy) Texts() []string {
	out := make([]string, 0, len(p.rules))
	for _, r := range p.rules {
		out = append(out, r.text)
	}
	return out
}

// Reads says whether a rule has TLS opened up.
func (p *Policy) Reads() bool {
	return slices.ContainsFunc(p.rules, func(r rule) bool { return r.protocol == "https" && r.reads() })
}
