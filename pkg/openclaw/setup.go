package openclaw

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// Modes are the values of agents.defaults.sandbox.mode that Plan sets.
var Modes = []string{"all", "non-main"}

// ErrInclude is why a configuration of several files is not written.
var ErrInclude = errors.New("it has $include: which file a key belongs to is not for creel to say; set the keys by hand")

// Plan is text with what creel's plugin needs: the backend, mode as it is
// given, a scope where there is none, and the plugin switched on. Everything
// else stays as it is, byte for byte. It changes nothing itself.
func Plan(text []byte, mode string) ([]byte, error) {
	if !slices.Contains(Modes, mode) {
		return nil, fmt.Errorf("mode %q is not one of %s", mode, strings.Join(Modes, ", "))
	}
	e, err := newEdit(string(text))
	if err != nil {
		return nil, err
	}
	if hasInclude(e.root.decode()) {
		return nil, ErrInclude
	}
	want, _ := e.root.decode().(map[string]any)
	sandbox := []string{"agents", "defaults", "sandbox"}
	set := func(v any, path ...string) {
		if err == nil {
			if err = e.set(v, path...); err == nil {
				put(want, v, path...)
			}
		}
	}
	set(mode, append(sandbox, "mode")...)
	set(Plugin, append(sandbox, "backend")...)
	// perSession is what scope was called once.
	if at(want, append(sandbox, "scope")...) == nil && at(want, append(sandbox, "perSession")...) == nil {
		set("session", append(sandbox, "scope")...)
	}
	set(true, "plugins", "entries", Plugin, "enabled")
	if list, is := at(want, "plugins", "allow").([]any); err == nil && is && !slices.Contains(list, any(Plugin)) {
		err = e.push(e.root.find("plugins").find("allow"), Plugin)
		put(want, append(slices.Clone(list), Plugin), "plugins", "allow")
	}
	if err != nil {
		return nil, err
	}
	// Whatever the text looked like: it must say now what was wanted, and else
	// what it said before.
	if got := e.root.decode(); !reflect.DeepEqual(got, any(want)) {
		return nil, errors.New("it is written in a way that creel cannot change safely; set the keys by hand")
	}
	return []byte(e.text), nil
}

// Diff shows what Plan would change; it is empty when nothing would.
func Diff(path string, before, after []byte) string {
	return string(diff.Diff(path, before, path+" (new)", after))
}

// Keys are those that Plan sets, for who has to do it by hand.
func Keys(mode string) string {
	return fmt.Sprintf(`agents.defaults.sandbox: mode %q, backend %q, scope "session"; plugins.entries.%s.enabled true; %q in plugins.allow if there is such a list`,
		mode, Plugin, Plugin, Plugin)
}

// at is the value at a path of objects, nil if there is none.
func at(v any, path ...string) any {
	for _, key := range path {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return v
}

// put sets the value at a path. Objects are changed in place.
func put(m map[string]any, v any, path ...string) {
	for _, key := range path[:len(path)-1] {
		next, is := m[key].(map[string]any)
		if !is {
			next = map[string]any{}
			m[key] = next
		}
		m = next
	}
	m[path[len(path)-1]] = v
}

func hasInclude(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		if _, has := v[includeKey]; has {
			return true
		}
		return slices.ContainsFunc(slices.Collect(maps.Values(v)), hasInclude)
	case []any:
		return slices.ContainsFunc(v, hasInclude)
	}
	return false
}
