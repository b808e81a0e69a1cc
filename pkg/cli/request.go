package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/creel-sandbox/creel/pkg/api"
	"github.com/creel-sandbox/creel/pkg/client"
)

// parseMount reads SRC:DST[:OPTION,...], of which the options are ro, rw, own
// and protect. DST starts with a slash, so a source may
// hold colons. As for docker, a source without a slash is a volume's name,
// unless it begins with a dot.
func parseMount(s string) (api.Mount, error) {
	m := api.Mount{}
	spec := s
	if i := strings.LastIndex(spec, ":"); i > 0 && !strings.Contains(spec[i:], "/") {
		for o := range strings.SplitSeq(spec[i+1:], ",") {
			switch o {
			case "ro":
				m.ReadOnly = true
			case "rw":
			case "own":
				m.Own = true
			case "protect":
				m.Protect = true
			default:
				return m, fmt.Errorf("%q: %q is not ro, rw, own or protect", s, o)
			}
		}
		spec = spec[:i]
	}
	i := strings.LastIndex(spec, ":/")
	if i <= 0 {
		return m, fmt.Errorf("%q is not SRC:DST[:ro] with an absolute DST", s)
	}
	if src := spec[:i]; !strings.Contains(src, "/") && !strings.HasPrefix(src, ".") {
		m.Volume, m.Target = src, spec[i+1:]
		return m, nil
	}
	src, err := filepath.Abs(spec[:i])
	if err != nil {
		return m, fmt.Errorf("mount source %q: %w", spec[:i], err)
	}
	m.Source, m.Target = src, spec[i+1:]
	return m, nil
}

// addEnv reads K=V, or K alone, which is passed on from this environment when
// it is set here.
func addEnv(env map[string]string, s string) error {
	k, v, hasValue := strings.Cut(s, "=")
	if k == "" {
		return fmt.Errorf("%q is not NAME=VALUE or NAME", s)
	}
	if !hasValue {
		var ok bool
		if v, ok = os.LookupEnv(k); !ok {
			return nil
		}
	}
	env[k] = v
	return nil
}

// addEnvFile reads one variable a line; empty lines and those that begin with
// # do not count.
func addEnvFile(env map[string]string, name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSuffix(sc.Text(), "\r")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := addEnv(env, line); err != nil {
			return fmt.Errorf("%s, line %d: %w", name, n, err)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// environment joins the files' and the flags' variables; the flags win.
// parseLabels reads NAME=VALUE.
func parseLabels(list []string) (map[string]string, error) {
	var labels map[string]string
	var errs []error
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			errs = append(errs, fmt.Errorf("label %q is not NAME=VALUE", l))
			continue
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = v
	}
	return labels, errors.Join(errs...)
}

// parseFilters reads KEY=VALUE as ps and exec ls take it; a verb has some of
// the keys. Values of one key are alternatives, but all labels must be there.
func parseFilters(list []string, keys ...string) (client.ListOptions, error) {
	var o client.ListOptions
	var labels []string
	for _, f := range list {
		k, v, ok := strings.Cut(f, "=")
		if !ok || v == "" || !slices.Contains(keys, k) {
			return o, misuse("filter %q is not one of %s=VALUE", f, strings.Join(keys, "=VALUE, "))
		}
		switch k {
		case "label":
			labels = append(labels, v)
		case "agent":
			o.Agents = append(o.Agents, v)
		case "status":
			o.States = append(o.States, api.State(v))
		case "image":
			o.Images = append(o.Images, v)
		}
	}
	var err error
	if o.Labels, err = parseLabels(labels); err != nil {
		return o, misuse("filter: %w", err)
	}
	return o, nil
}

func environment(vars, files []string) (map[string]string, error) {
	if len(vars)+len(files) == 0 {
		return nil, nil
	}
	env := map[string]string{}
	var errs []error
	for _, f := range files {
		errs = append(errs, addEnvFile(env, f))
	}
	for _, v := range vars {
		errs = append(errs, addEnv(env, v))
	}
	return env, errors.Join(errs...)
}

// maxRequest is what the daemon takes.
const maxRequest = 1 << 20

// readRequest reads a spawn request; "-" is standard input. Fields that do
// not exist are errors here too, since encoding the request again would drop
// them silently.
func readRequest(name string, stdin io.Reader) (api.SpawnRequest, error) {
	var req api.SpawnRequest
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return req, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxRequest+1))
	if err != nil {
		return req, fmt.Errorf("%s: %w", name, err)
	}
	if len(b) > maxRequest {
		return req, fmt.Errorf("%s: larger than %d bytes", name, maxRequest)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return req, fmt.Errorf("%s: %w", name, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return req, fmt.Errorf("%s: there is more after the request", name)
	}
	for i, m := range req.Mounts {
		if m.FD != nil {
			return req, fmt.Errorf("%s: mounts[%d].fd: leave it out; creel opens the source itself", name, i)
		}
	}
	return req, nil
}

// text is a flag of any type that reads its own text form.
type text[T any, P interface {
	*T
	UnmarshalText([]byte) error
}] struct {
	v    P
	kind string
	raw  string
}

func (t *text[T, P]) Set(s string) error {
	t.raw = s
	return t.v.UnmarshalText([]byte(s))
}
func (t *text[T, P]) String() string { return t.raw }
func (t *text[T, P]) Type() string   { return t.kind }

func sizeVar(f *pflag.FlagSet, v *api.Size, name, usage string) {
	f.Var(&text[api.Size, *api.Size]{v: v, kind: "size"}, name, usage)
}

func durationVar(f *pflag.FlagSet, v *api.Duration, name, usage string) {
	f.Var(&text[api.Duration, *api.Duration]{v: v, kind: "duration"}, name, usage)
}

func marshalLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return safeJSON(b), err
}
