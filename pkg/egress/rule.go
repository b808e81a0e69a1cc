// Package egress is what an agent may reach: rules of hosts, ports and what is
// said there, and what they decide. It does no I/O, and resolves nothing.
//
// Parse a list of Rules to a Policy, one for each of those who have a say: a
// profile, the ceiling of a caller, a request, a parent. A Snapshot holds all
// of them, and what one does not allow none does: so nobody has to be trusted
// to have narrowed another's rules right.
//
// Names, paths and methods are compared in one form (ParseName, ParsePath);
// what has none is refused.
package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/api"
)

// Rule allows connections to one host or range. The zero Rule is invalid.
type Rule struct {
	// Host is a name, or "*." and a name, for all names with one label more.
	// BoxName is a service on the box's loopback. Either Host or CIDR is
	// required.
	Host string `json:"host,omitempty" toml:"host,omitempty"`
	// CIDR is a range of addresses that may be connected to as such, and that
	// names may point at where they are not public. Only with protocol "tcp".
	CIDR string `json:"cidr,omitempty" toml:"cidr,omitempty"`
	// Protocol is "https" (the default), "http", "tls" or "tcp". With "tls" it
	// is never looked into what is said after the handshake, and with "tcp" not
	// even whether there is one.
	Protocol string `json:"protocol,omitempty" toml:"protocol,omitempty"`
	// Ports default to 443 for https and tls, and to 80 for http. Required for
	// tcp and for BoxName. 32 at most.
	Ports []uint16 `json:"ports,omitempty" toml:"ports,omitempty"`
	// Methods are those that may be used (RFC 9110, section 9), as they are
	// sent; empty means all. With https they have the TLS opened up for it. 16
	// at most.
	Methods []string `json:"methods,omitempty" toml:"methods,omitempty"`
	// Paths are those that may be asked for; empty means all. In a segment "*"
	// is any bytes; a last segment of "**" is any rest. They too have TLS opened
	// up. 64 at most.
	Paths []string `json:"paths,omitempty" toml:"paths,omitempty"`
}

// The bounds of one policy.
const (
	MaxRules   = 256
	maxPorts   = 32
	maxMethods = 16
	maxPaths   = 64
)

// Kinds are ways to treat a connection, as a set.
type Kinds uint8

// The kinds, from the one that looks at least.
const (
	// Raw passes all bytes on.
	Raw Kinds = 1 << iota
	// TLS passes a TLS connection on whose client asks for the name.
	TLS
	// HTTP reads requests that come without TLS.
	HTTP
	// HTTPS opens the TLS up, and reads the requests in it.
	HTTPS
)

// rule is a Rule that was parsed.
type rule struct {
	host     hostPattern  // where cidr is invalid
	cidr     netip.Prefix // invalid for a host's
	protocol string
	ports    []uint16
	methods  []string
	paths    []pathPattern
	text     string // as a person reads it
}

// methodBytes are those of a token (RFC 9110, section 5.6.2) that methods have.
const methodBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZ-"

func parseRule(in Rule, at string) (rule, []api.Problem) {
	var problems []api.Problem
	bad := func(field, value, want string) {
		problems = append(problems, api.Problem{Field: at + "." + field, Value: value, Want: want})
	}
	r := rule{protocol: in.Protocol, ports: slices.Clone(in.Ports), methods: slices.Clone(in.Methods)}
	if r.protocol == "" {
		r.protocol = "https"
		if in.CIDR != "" {
			r.protocol = "tcp"
		}
	}
	switch {
	case in.Host == "" && in.CIDR == "":
		bad("host", "", "a host or a cidr")
	case in.Host != "" && in.CIDR != "":
		bad("cidr", in.CIDR, "left out where there is a host")
	case in.Host != "":
		var err error
		if r.host, err = parseHost(in.Host); err != nil {
			bad("host", in.Host, "a host's name: it is "+err.Error())
		}
	default:
		var err error
		if r.cidr, err = netip.ParsePrefix(in.CIDR); err != nil || r.cidr.Masked() != r.cidr || r.cidr.Addr().Is4In6() {
			bad("cidr", in.CIDR, "a range like 192.168.1.0/24 or fd12:3456::/64, with no bits beyond its length")
		}
		if r.protocol != "tcp" {
			bad("protocol", in.Protocol, `"tcp": an address has no name to hold what is said against`)
		}
	}
	problems = append(problems, r.parsePorts(at)...)
	problems = append(problems, r.parseHTTP(in, at)...)
	r.text = r.describe(in)
	return r, problems
}

func (r *rule) parsePorts(at string) []api.Problem {
	var problems []api.Problem
	bad := func(value, want string) {
		problems = append(problems, api.Problem{Field: at + ".ports", Value: value, Want: want})
	}
	switch {
	case r.protocol != "http" && r.protocol != "https" && r.protocol != "tls" && r.protocol != "tcp":
		return []api.Problem{{Field: at + ".protocol", Value: r.protocol, Want: `"https", "http", "tls" or "tcp"`}}
	case len(r.ports) > maxPorts:
		bad("", fmt.Sprintf("%d at most", maxPorts))
	case slices.Contains(r.ports, 0):
		bad("0", "1 to 65535")
	case len(r.ports) > 0:
	case ours(r.host.base):
		bad("", "needed for "+string(r.host.base))
	case r.protocol == "tcp":
		bad("", "needed for tcp")
	case r.protocol == "http":
		r.ports = []uint16{80}
	default:
		r.ports = []uint16{443}
	}
	return problems
}

func (r *rule) parseHTTP(in Rule, at string) []api.Problem {
	var problems []api.Problem
	bad := func(field, value, want string) {
		problems = append(problems, api.Problem{Field: at + "." + field, Value: value, Want: want})
	}
	looks := r.protocol == "http" || r.protocol == "https"
	if len(in.Methods) > maxMethods || len(in.Methods) > 0 && !looks {
		bad("methods", "", fmt.Sprintf("left out but for http and https, and %d at most", maxMethods))
	}
	for i, m := range in.Methods {
		if m == "" || len(m) > 32 || strings.Trim(m, methodBytes) != "" || m == "CONNECT" {
			bad(fmt.Sprintf("methods[%d]", i), m, "a method in capital letters that is not CONNECT")
		}
	}
	if len(in.Paths) > maxPaths || len(in.Paths) > 0 && !looks {
		bad("paths", "", fmt.Sprintf("left out but for http and https, and %d at most", maxPaths))
	}
	for i, p := range in.Paths {
		pattern, err := parsePathPattern(p)
		if err != nil {
			bad(fmt.Sprintf("paths[%d]", i), p, "a path, with * in a segment or ** for the last one: it has "+err.Error())
		}
		r.paths = append(r.paths, pattern)
	}
	return problems
}

// describe is the rule in one line.
func (r *rule) describe(in Rule) string {
	to := in.CIDR
	if in.Host != "" {
		to = r.host.String()
	}
	var b strings.Builder
	if strings.Contains(to, ":") {
		to = "[" + to + "]"
	}
	fmt.Fprintf(&b, "%s %s:", r.protocol, to)
	for i, p := range r.ports {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, p)
	}
	if len(in.Methods) > 0 {
		b.WriteString(" " + strings.Join(in.Methods, ","))
	}
	if len(in.Paths) > 0 {
		b.WriteString(" " + strings.Join(in.Paths, ","))
	}
	return b.String()
}

// reads says whether requests have to be seen to decide.
func (r *rule) reads() bool { return len(r.methods) > 0 || len(r.paths) > 0 }

// kinds are the ways in which a connection under this rule may be treated: the
// one it asks for, and those that look at more.
func (r *rule) kinds() Kinds {
	switch {
	case r.protocol == "tcp":
		return Raw | TLS | HTTP | HTTPS
	case r.protocol == "http":
		return HTTP
	case r.protocol == "tls", !r.reads():
		return TLS | HTTPS
	}
	return HTTPS
}

// connects says whether the rule is about a connection to a name.
func (r *rule) connects(host Name, port uint16) bool {
	return !r.cidr.IsValid() && r.host.matches(host) && slices.Contains(r.ports, port)
}

// reaches says whether it is about a connection to an address.
func (r *rule) reaches(a netip.Addr, port uint16) bool {
	return r.cidr.IsValid() && r.cidr.Contains(a) && slices.Contains(r.ports, port)
}

// requests says whether it allows a request on a connection that it allows. A
// path of "" is in no pattern.
func (r *rule) requests(method string, path Path) bool {
	if len(r.methods) > 0 && !slices.Contains(r.methods, method) {
		return false
	}
	return len(r.paths) == 0 || path != "" && slices.ContainsFunc(r.paths, func(p pathPattern) bool { return p.matches(path) })
}
