package egress

import (
	"errors"
	"fmt"
	"strings"
)

// Name is a host's name in its one form: lower case, ASCII, without a dot at
// its end.
type Name string

// BoxName is the box itself, its loopback: a name that exists in sandboxes
// only.
const BoxName Name = "host.creel.internal"

// agents is where the names of agents are: AGENT.agent.creel.internal is the
// sandbox of that agent of the same caller's.
const agents = "agent." + internal

// Agent is the agent that a name is of, if it is one's.
func (n Name) Agent() (string, bool) {
	agent, rest, _ := strings.Cut(string(n), ".")
	return agent, rest == agents && agent != ""
}

// internal is what creel gives names in. Nothing in it is resolved outside.
const internal = "creel.internal"

// ParseName takes a host name of at least two labels (RFC 1123, section 2.1).
// It refuses what a resolver or a library could take for something else: an
// address in any base, a label that is not letters, digits and hyphens, a name
// that is this host's or of one label, which a search list completes.
// International names are taken in their ASCII form (RFC 5891) and never
// decoded, so that no two names look alike here.
func ParseName(s string) (Name, error) {
	if len(s) > 253 {
		return "", errors.New("longer than 253 bytes")
	}
	n := Name(toLower(s))
	labels := strings.Split(string(n), ".")
	for _, l := range labels {
		switch {
		case l == "" && s == "":
			return "", errors.New("empty")
		case l == "":
			return "", errors.New("a label of nothing, or a dot at an end")
		case len(l) > 63:
			return "", errors.New("a label of more than 63 bytes")
		case strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
			return "", fmt.Errorf("%q is not of letters, digits and hyphens (other letters are written as xn--...)", l)
		case l[0] == '-' || l[len(l)-1] == '-':
			return "", fmt.Errorf("%q begins or ends with a hyphen", l)
		}
	}
	last := labels[len(labels)-1]
	switch {
	case len(labels) < 2:
		return "", errors.New("one label: write the whole name")
	case last[0] >= '0' && last[0] <= '9':
		// As WHATWG's URL standard has it: what ends in a number is an address,
		// or none. No top-level domain begins with a digit (RFC 3696, section 2).
		return "", errors.New("ends in a number: addresses are given as cidr")
	case last == "localhost":
		return "", errors.New("is this host (RFC 6761)")
	case ours(n) && n != BoxName:
		if _, ok := n.Agent(); !ok {
			return "", fmt.Errorf("of %s there are only %s and AGENT.%s", internal, BoxName, agents)
		}
	}
	return n, nil
}

// toLower is strings.ToLower for ASCII alone: no other letter becomes one of
// ASCII's (U+212A, the Kelvin sign, would).
func toLower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// ours says whether n is one of the names that creel gives.
func ours(n Name) bool { return n == internal || strings.HasSuffix(string(n), "."+internal) }

// hostPattern is a name, or all names with one label more; or, without a base, all
// names but the box's own.
type hostPattern struct {
	base     Name
	wildcard bool
}

// parseHost takes a name or "*." and a name. creel knows no list of public
// suffixes: who writes "*.co.uk" has a whole country's names. "*" is every name, see
// Policy.Any.
func parseHost(s string) (hostPattern, error) {
	if s == "*" {
		return hostPattern{wildcard: true}, nil
	}
	base, wildcard := strings.CutPrefix(s, "*.")
	n, err := ParseName(base)
	switch {
	case wildcard && (err == nil && ours(n) || ours(Name(toLower(base)))):
		return hostPattern{}, fmt.Errorf("of %s each name is written out", internal)
	case !wildcard && strings.Contains(s, "*"):
		return hostPattern{}, errors.New(`a "*" is the whole first label, or none`)
	case err != nil:
		return hostPattern{}, err
	}
	return hostPattern{n, wildcard}, nil
}

func (p hostPattern) String() string {
	if p.any() {
		return "*"
	}
	if p.wildcard {
		return "*." + string(p.base)
	}
	return string(p.base)
}

func (p hostPattern) any() bool { return p.wildcard && p.base == "" }

func (p hostPattern) matches(n Name) bool {
	if p.any() {
		return !ours(n)
	}
	if !p.wildcard {
		return n == p.base
	}
	label, rest, _ := strings.Cut(string(n), ".")
	return label != "" && Name(rest) == p.base
}

// covers says whether p matches all that q matches.
func (p hostPattern) covers(q hostPattern) bool {
	if p.any() {
		return q.any() || !ours(q.base)
	}
	if q.wildcard {
		return p == q
	}
	return p.matches(q.base)
}
