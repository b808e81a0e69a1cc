// Package share has the operator's grants of directories that sandboxes of
// several agents may write at the same time.
//
// Without a grant, a directory that one agent can write is refused to all
// others: through it they would reach each other. A grant lifts that and
// nothing else: each caller needs its right to the directory as ever.
package share

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Agent is an agent of one caller's. As text it is "uid:1000/coder".
type Agent struct {
	UID  uint32
	Name string
}

var agentRE = regexp.MustCompile(`^uid:(0|[1-9][0-9]{0,9})/([a-z0-9][a-z0-9-]{0,62})$`)

// ParseAgent reads an agent's text.
func ParseAgent(s string) (Agent, error) {
	if m := agentRE.FindStringSubmatch(s); m != nil {
		// 2^32-1 is no uid, see setuid(2).
		if uid, err := strconv.ParseUint(m[1], 10, 32); err == nil && uid < 1<<32-1 {
			return Agent{uint32(uid), m[2]}, nil
		}
	}
	return Agent{}, fmt.Errorf("%q is not a caller's uid and an agent, such as \"uid:1000/coder\"", s)
}

// String is the agent's text.
func (a Agent) String() string { return fmt.Sprintf("uid:%d/%s", a.UID, a.Name) }

// Grant lets sandboxes of its agents write one directory, and those in it, at
// the same time.
type Grant struct {
	// Path is absolute. It is looked up whenever the grant is used, and the
	// directory found is what counts, by device and inode.
	Path string
	// Agents are two at least.
	Agents []Agent
}

// Names says whether an agent is one of the grant's.
func (g Grant) Names(a Agent) bool { return slices.Contains(g.Agents, a) }

// Others are the grant's agents but one, as text.
func (g Grant) Others(a Agent) []string {
	var out []string
	for _, o := range g.Agents {
		if o != a {
			out = append(out, o.String())
		}
	}
	return out
}

// Check says what is wrong with a grant's agents, or nothing.
func (g Grant) Check() string {
	seen := map[Agent]bool{}
	for _, a := range g.Agents {
		if seen[a] {
			return a.String() + " is there twice"
		}
		seen[a] = true
	}
	if len(g.Agents) < 2 {
		return "two agents or more share a directory: [" + strings.Join(g.Others(Agent{}), ", ") + "] are not"
	}
	return ""
}
