package agents

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/egress"
)

// UnusedFor is for how long an agent is not seen before a report says so, where
// nobody says otherwise.
const UnusedFor = 30 * 24 * time.Hour

// soon is how long before its time an agent is told to expire.
const soon = 7 * 24 * time.Hour

// wide is how many times what was used a total may be before it is told.
const wide = 4

// Report lists what of agents nobody seems to need: those not used for long,
// those that are revoked, have expired or soon will, and grants and totals that were never used. It only
// looks at what it is given.
func Report(list []api.Agent, now time.Time, unusedFor time.Duration) []api.Finding {
	out := []api.Finding{}
	for _, a := range list {
		add := func(kind, what, fix string) {
			out = append(out, api.Finding{Agent: a.Name, ID: a.ID, UID: a.Caller.UID, Kind: kind, What: what, Fix: fix})
		}
		switch e := a.Expires; {
		case State(a, now) == Expired:
			add("expired", "expired "+e.Time.UTC().Format(time.RFC3339), "creel agent expire "+a.ID+" --in TIME, if it is to run again")
			continue
		case a.State == Active && e != nil && !e.Time.IsZero() && e.Time.Sub(now) <= soon:
			add("expiring", "expires "+e.Time.UTC().Format(time.RFC3339), "creel agent expire "+a.ID+" --in TIME, if it is to go on")
		}
		if a.State == Revoked {
			add("revoked", "revoked "+a.Revoked.Time.UTC().Format(time.RFC3339), "creel agent restore "+a.ID+", if it is to run again")
			continue
		}
		if idle := now.Sub(a.LastUsed); idle >= unusedFor && a.Sandboxes == 0 {
			add("unused", fmt.Sprintf("not seen for %d days", int(idle.Hours()/24)), "creel agent revoke "+a.ID)
			continue
		}
		if a.Given == nil {
			continue // an operator's: nothing was given
		}
		for _, g := range []struct {
			key         string
			given, used []string
		}{
			{"profiles", a.Given.Profiles, a.Used.Profiles},
			{"runtimes", a.Given.Runtimes, a.Used.Runtimes},
		} {
			unused := slices.DeleteFunc(slices.Clone(g.given), func(n string) bool { return n == "*" || slices.Contains(g.used, n) })
			if len(unused) > 0 {
				add("grant", g.key+" "+strings.Join(unused, ", ")+" never used", take(g.key, a.Given))
			}
			if slices.Contains(g.given, "*") {
				add("grant", g.key+" is *; used: "+strings.Join(g.used, ", "), take(g.key, a.Given))
			}
		}
		for _, g := range []struct {
			key   string
			given []string
			used  func(string) bool
		}{
			{"images", a.Given.Images, func(p string) bool { return imageUsed(p, a.Used.Images) }},
			// What a directory is called its caller said, so that it tells of no root.
			{"mounts", a.Given.Mounts, func(string) bool { return len(a.Used.Mounts) > 0 }},
			{"egress", a.Given.Egress, func(rule string) bool { return ruleUsed(rule, a.Used.Egress) }},
			{"secrets", a.Given.Secrets, func(p string) bool { return secretUsed(p, a.Used.Secrets) }},
		} {
			if unused := slices.DeleteFunc(slices.Clone(g.given), g.used); len(unused) > 0 {
				add("grant", g.key+" "+strings.Join(unused, ", ")+" never used", take(g.key, a.Given))
			}
		}
		if a.Given.Socket && !a.Used.Socket {
			add("grant", "socket never used", "set socket = false in [[caller]] "+a.Given.Ceiling)
		}
		for _, t := range []struct {
			key         string
			given, used float64
			text        string
		}{
			{"sandboxes", float64(a.Given.Sandboxes), float64(a.Used.Sandboxes), fmt.Sprintf("%d, of which %d", a.Given.Sandboxes, a.Used.Sandboxes)},
			{"memory", float64(a.Given.Memory), float64(a.Used.Memory), fmt.Sprintf("%s, of which %s", a.Given.Memory, a.Used.Memory)},
			{"cpus", a.Given.CPUs, a.Used.CPUs, fmt.Sprintf("%g, of which %g", a.Given.CPUs, a.Used.CPUs)},
			{"pids", float64(a.Given.Pids), float64(a.Used.Pids), fmt.Sprintf("%d, of which %d", a.Given.Pids, a.Used.Pids)},
			{"disk", float64(a.Given.Disk), float64(a.Used.Disk), fmt.Sprintf("%s, of which %s", a.Given.Disk, a.Used.Disk)},
		} {
			switch {
			case t.given == 0:
				add("wide", t.key+" has no bound", "set "+t.key+" in [[caller]] "+a.Given.Ceiling)
			case t.given > wide*t.used:
				add("wide", t.key+" is "+t.text+" was the most that was used together", "lower "+t.key+" in [[caller]] "+a.Given.Ceiling)
			}
		}
	}
	return out
}

// imageUsed says whether one of the images that were asked for can be by this
// entry of a ceiling. Of "box" and "own", and of a digest, a name does not tell.
func imageUsed(pattern string, used []string) bool {
	return slices.ContainsFunc(used, func(ref string) bool {
		if pattern == "box" || pattern == "own" || strings.Contains(ref, "sha256:") {
			return true
		}
		with, _ := path.Match(pattern, ref)
		without, _ := path.Match(pattern, strings.TrimSuffix(ref, ":latest"))
		return with || without
	})
}

// ruleUsed says whether a rule that was asked for is within this one of a ceiling.
func ruleUsed(rule string, used []string) bool {
	outer, problems := egress.ParseLines("", "", []string{rule})
	if len(problems) > 0 {
		return true // it cannot be told
	}
	return slices.ContainsFunc(used, func(text string) bool {
		asked, problems := egress.ParseLines("", "", []string{text})
		return len(problems) == 0 && len(asked.Beyond(outer)) == 0
	})
}

// secretUsed says whether one of the secrets that were asked for can be by this
// entry. What a caller set itself nobody gave it.
func secretUsed(pattern string, used []string) bool {
	return pattern == "own" || slices.ContainsFunc(used, func(name string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
}

func take(key string, g *api.Grant) string {
	return "take it out of " + key + " in [[caller]] " + g.Ceiling
}
