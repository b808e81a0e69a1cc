// Package learn makes the smallest policy out of what a sandbox reached: what it
// reached was allowed, so the policy is within all who had a say. It is pure.
package learn

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/creel-sandbox/creel/pkg/approval"
	"github.com/creel-sandbox/creel/pkg/egress/link"
)

// Seen is one thing that a sandbox did, as the audit log has it.
type Seen struct {
	Allowed bool
	To      string // HOST:PORT, or a name that was looked up
	What    string // name, connection or request
	By      string // who refused it
	Scheme  string // of a request: http or https
	Method  string
	Path    string
}

// Learned is what came of it.
type Learned struct {
	// Rules allow what was reached: names and ports, and where requests were read
	// methods and paths.
	Rules []string `json:"rules"`
	// Addresses were reached without a name: a range in a rule is to be thought
	// about.
	Addresses []string `json:"addresses"`
	// Refused are what was tried beside that, and who refused it.
	Refused []Refused `json:"refused"`
}

// Refused is one of them.
type Refused struct {
	To string `json:"to"`
	By string `json:"by"`
}

// maxPaths is how many paths of one host and method a policy names before it has
// all of the directory that they are in.
const maxPaths = 8

// plain are paths that read in a rule as what they are.
var plain = regexp.MustCompile(`^/[A-Za-z0-9/_.~-]{0,200}$`)

// token are methods that a rule can name.
var token = regexp.MustCompile(`^[A-Z]{1,32}$`)

// Policy makes one.
func Policy(seen []Seen) Learned {
	out := Learned{Rules: []string{}, Addresses: []string{}, Refused: []Refused{}}
	type site struct{ scheme, to string }
	requests := map[site]map[string][]string{} // method -> paths
	read := map[string]bool{}
	for _, s := range seen {
		if at := (site{s.Scheme, s.To}); s.Allowed && s.What == link.KindRequest && (s.Scheme == "http" || s.Scheme == "https") {
			if requests[at] == nil {
				requests[at] = map[string][]string{}
			}
			requests[at][s.Method] = append(requests[at][s.Method], s.Path)
			read[s.To] = true
		}
	}
	add := func(list *[]string, v string) {
		if !slices.Contains(*list, v) {
			*list = append(*list, v)
		}
	}
	for at, methods := range requests {
		for method, paths := range methods {
			rule := at.scheme + " " + strings.TrimSuffix(at.to, map[string]string{"http": ":80", "https": ":443"}[at.scheme])
			if token.MatchString(method) {
				rule += fmt.Sprintf(" %s %s", method, strings.Join(patterns(paths), ","))
			}
			add(&out.Rules, rule)
		}
	}
	for _, s := range seen {
		switch {
		case !s.Allowed:
			if r := (Refused{s.To, s.By}); !slices.Contains(out.Refused, r) {
				out.Refused = append(out.Refused, r)
			}
		case read[s.To]: // by its requests
		default:
			if rule := approval.Rule(link.Record{Kind: link.KindConnection, To: s.To}); rule != "" {
				add(&out.Rules, rule)
			} else {
				add(&out.Addresses, s.To)
			}
		}
	}
	slices.Sort(out.Rules)
	slices.Sort(out.Addresses)
	return out
}

// patterns are path patterns that match all paths.
func patterns(paths []string) []string {
	slices.Sort(paths)
	paths = slices.Compact(paths)
	odd := slices.ContainsFunc(paths, func(p string) bool { return !plain.MatchString(p) })
	if len(paths) <= maxPaths && !odd {
		return paths
	}
	dir := paths[0]
	for _, p := range paths {
		for !strings.HasPrefix(p, dir) {
			dir = dir[:len(dir)-1]
		}
	}
	dir = dir[:strings.LastIndexByte(dir, '/')+1]
	if dir == "" || !plain.MatchString(dir) {
		dir = "/"
	}
	return []string{dir + "**"}
}
