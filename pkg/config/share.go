package config

import (
	"fmt"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/creel-sandbox/creel/pkg/share"
)

// grants decodes the [[share]] tables; each mistake is reported where it is.
func (l *loader) grants(field reflect.Value, v value) {
	list, ok := v.v.([]any)
	if !ok {
		l.bad(v.file, v.pos, "share: write each grant as a table, [[share]], with path and agents")
		return
	}
	var out []share.Grant
	for i, e := range list {
		table := fmt.Sprintf("share[%d]", i)
		bad := func(key, format string, args ...any) {
			pos, name := v.places[table+"."+key], table
			if key != "" {
				name += "." + key
			}
			if pos == (position{}) {
				pos = v.places[table]
			}
			if pos == (position{}) {
				pos = v.pos // written as an array in one line
			}
			l.bad(v.file, pos, "%s: %s", name, fmt.Sprintf(format, args...))
		}
		t, ok := e.(map[string]any)
		if !ok {
			bad("", "%v is not a table with path and agents", e)
			continue
		}
		out = append(out, grant(t, bad))
	}
	field.Set(reflect.ValueOf(out))
}

func grant(t map[string]any, bad func(key, format string, args ...any)) share.Grant {
	var g share.Grant
	for _, e := range flatten("", t, nil) {
		if e.name != "path" && e.name != "agents" {
			bad(e.name, "unknown key; a grant has path and agents")
		}
	}
	g.Path, _ = t["path"].(string)
	if !filepath.IsAbs(g.Path) || filepath.Clean(g.Path) != g.Path || g.Path == "/" || strings.ContainsRune(g.Path, 0) {
		bad("path", "%q is not an absolute path without \"..\" or a slash at its end", g.Path)
	}
	list, ok := t["agents"].([]any)
	if !ok {
		bad("agents", "there is no array such as [\"uid:1000/coder\", \"uid:1001/tester\"]")
		return g
	}
	whole := true
	for _, e := range list {
		a, err := share.ParseAgent(fmt.Sprint(e))
		if err != nil {
			bad("agents", "%v", err)
			whole = false
		}
		g.Agents = append(g.Agents, a)
	}
	if why := g.Check(); whole && why != "" {
		bad("agents", "%s", why)
	}
	return g
}
