package verify

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// limitNames are the rows of /proc/PID/limits.
var limitNames = map[string]string{
	"Max cpu time":          "cpu",
	"Max file size":         "fsize",
	"Max data size":         "data",
	"Max stack size":        "stack",
	"Max core file size":    "core",
	"Max resident set":      "rss",
	"Max processes":         "nproc",
	"Max open files":        "nofile",
	"Max locked memory":     "memlock",
	"Max address space":     "as",
	"Max file locks":        "locks",
	"Max pending signals":   "sigpending",
	"Max msgqueue size":     "msgqueue",
	"Max nice priority":     "nice",
	"Max realtime priority": "rtprio",
	"Max realtime timeout":  "rttime",
}

func readLimits(r *report, p *proc, e Expect) {
	text, err := p.read("limits")
	var got map[string]Rlimit
	if err == nil {
		got, err = parseLimits(text)
	}
	r.within(err, func() {
		for _, name := range slices.Sorted(maps.Keys(e.Rlimits)) {
			observed := "no such limit"
			if l, ok := got[name]; ok {
				observed = l.String()
			}
			r.check("rlimit."+name, e.Rlimits[name].String(), observed)
		}
	})
	text, err = p.read("oom_score_adj")
	r.within(err, func() {
		r.check("oom_score_adj", strconv.Itoa(e.OOMScoreAdj), strings.TrimSpace(text))
	})
}

// String is "soft/hard".
func (l Rlimit) String() string { return limitText(l.Soft) + "/" + limitText(l.Hard) }

func limitText(v uint64) string {
	if v == Infinity {
		return "unlimited"
	}
	return strconv.FormatUint(v, 10)
}

// limitName is the width of the first column; its text has spaces.
const limitName = 25

func parseLimits(text string) (map[string]Rlimit, error) {
	out := map[string]Rlimit{}
	first := true
	for line := range strings.Lines(text) {
		if first { // the heading
			first = false
			continue
		}
		if len(line) < limitName {
			return nil, fmt.Errorf("limit %q is too short", clean(line))
		}
		name, known := limitNames[strings.TrimSpace(line[:limitName])]
		f := strings.Fields(line[limitName:])
		if !known {
			continue // a limit of a later kernel
		}
		if len(f) < 2 {
			return nil, fmt.Errorf("limit %q has no two values", clean(line))
		}
		soft, err := parseLimit(f[0])
		hard, herr := parseLimit(f[1])
		if err = errors.Join(err, herr); err != nil {
			return nil, fmt.Errorf("limit %s: %w", name, err)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("limit %s is there twice", name)
		}
		out[name] = Rlimit{soft, hard}
	}
	return out, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" {
		return Infinity, nil
	}
	return strconv.ParseUint(s, 10, 64)
}
