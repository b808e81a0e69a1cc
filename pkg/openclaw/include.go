package openclaw

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

const (
	includeKey      = "$include"
	maxIncludeDepth = 10
	maxInclude      = 2 << 20
	maxIncludes     = 200
)

// includer resolves $include as OpenClaw does: a file takes the place of the
// object, a list of them is merged in its order, and keys beside $include win.
type includer struct {
	root  string // files must be in it
	files []string
}

// resolve is v with what it includes; from are the files on the way to it.
func (in *includer) resolve(v any, from []string) (any, error) {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			var err error
			if out[i], err = in.resolve(v[i], from); err != nil {
				return nil, err
			}
		}
		return out, nil
	case map[string]any:
		own := make(map[string]any, len(v))
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if key == includeKey {
				continue
			}
			var err error
			if own[key], err = in.resolve(v[key], from); err != nil {
				return nil, err
			}
		}
		names, has := v[includeKey]
		if !has {
			return own, nil
		}
		base, err := in.load(names, from)
		if err != nil || len(own) == 0 {
			return base, err
		}
		if _, is := base.(map[string]any); !is {
			return nil, fmt.Errorf("%s %v: not an object, and there are keys beside it", includeKey, names)
		}
		return merge(base, own), nil
	}
	return v, nil
}

func (in *includer) load(names any, from []string) (any, error) {
	switch names := names.(type) {
	case string:
		return in.file(names, from)
	case []any:
		var all any = map[string]any{}
		for _, n := range names {
			s, is := n.(string)
			if !is {
				return nil, fmt.Errorf("%s: %v is not a file name", includeKey, n)
			}
			v, err := in.file(s, from)
			if err != nil {
				return nil, err
			}
			all = merge(all, v)
		}
		return all, nil
	}
	return nil, fmt.Errorf("%s: %v is not a file name", includeKey, names)
}

func (in *includer) file(name string, from []string) (any, error) {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(from[len(from)-1]), path)
	}
	path = filepath.Clean(path)
	switch {
	case slices.Contains(from, path):
		return nil, fmt.Errorf("%s %s: it includes itself", includeKey, name)
	case len(from) > maxIncludeDepth, len(in.files) >= maxIncludes:
		return nil, fmt.Errorf("%s %s: too many files", includeKey, name)
	}
	if err := in.inside(path); err != nil {
		return nil, fmt.Errorf("%s %s: %w", includeKey, name, err)
	}
	text, _, err := readRegular(path, maxInclude)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", includeKey, err)
	}
	n, err := parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", includeKey, path, err)
	}
	in.files = append(in.files, path)
	return in.resolve(n.decode(), append(slices.Clip(from), path))
}

// inside keeps to the configuration's directory. OPENCLAW_INCLUDE_ROOTS can
// allow the gateway more; which, only its own environment says.
func (in *includer) inside(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	root, err := filepath.EvalSymlinks(in.root)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(target, strings.TrimSuffix(root, "/")+"/") {
		return fmt.Errorf("not in %s", in.root)
	}
	return nil
}

// merge puts b over a: objects key by key, lists one behind the other.
func merge(a, b any) any {
	switch b := b.(type) {
	case map[string]any:
		if am, is := a.(map[string]any); is {
			out := maps.Clone(am)
			for key, v := range b {
				if old, has := out[key]; has {
					v = merge(old, v)
				}
				out[key] = v
			}
			return out
		}
	case []any:
		if al, is := a.([]any); is {
			return slices.Concat(al, b)
		}
	}
	return b
}
