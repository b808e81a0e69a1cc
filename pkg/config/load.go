package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// maxFile is the most bytes a file may have.
const maxFile = 1 << 20

// dropins is the directory beside the file whose files are read after it.
const dropins = "config.d"

// Error is one problem of a configuration.
type Error struct {
	File         string
	Line, Column int // 0 when the problem has no place
	Message      string
}

// Error is "file:line:column: message".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// Check reads the configuration as Load does, for its errors only.
func Check(path string) error {
	_, err := Load(path)
	return err
}

// Load reads the configuration at path and its config.d. An empty path gives
// the defaults. The error joins every problem, each an *Error.
//
// For root, every file must belong to root and be writable by nobody else:
// whoever can write it is root.
func Load(path string) (*Config, error) {
	cfg := Defaults()
	if path == "" {
		return &cfg, nil
	}
	l := loader{values: map[string]value{}, places: map[string]map[string]position{}}
	l.file(path, true)
	for _, p := range l.dropins(filepath.Join(filepath.Dir(path), dropins)) {
		l.file(p, false)
	}
	l.apply(&cfg)
	l.check(&cfg, path)
	if len(l.problems) > 0 {
		return nil, errors.Join(l.problems...)
	}
	return &cfg, nil
}

// value is what a file says of one key.
type value struct {
	v    any
	file string
	pos  position
	// places are those of the file's keys, for what is within a value.
	places map[string]position
}

type loader struct {
	values   map[string]value
	places   map[string]map[string]position // of each file's keys
	problems []error
}

func (l *loader) bad(file string, pos position, format string, args ...any) {
	l.problems = append(l.problems, &Error{File: file, Line: pos.line, Column: pos.column, Message: fmt.Sprintf(format, args...)})
}

func (l *loader) dropins(dir string) []string {
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.bad(dir, position{}, "%v", err)
		}
		return nil
	}
	var paths []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths
}

// file reads one file over what came before. The first must tell the version.
func (l *loader) file(path string, first bool) {
	text, err := read(path)
	if err != nil {
		l.bad(path, position{}, "%v", err)
		return
	}
	var doc map[string]any
	if err := toml.Unmarshal(text, &doc); err != nil {
		var de *toml.DecodeError
		if !errors.As(err, &de) {
			l.bad(path, position{}, "%v", err)
			return
		}
		row, col := de.Position()
		l.bad(path, position{row, col}, "%s", strings.TrimPrefix(de.Error(), "toml: "))
		return
	}
	if _, ok := doc["version"]; first && !ok {
		l.bad(path, position{1, 1}, "version is missing; write version = 1")
	}
	places := locate(text)
	l.places[path] = places
	known := fields(reflect.ValueOf(new(Config)).Elem())
	for _, key := range flatten("", doc, known) {
		pos := places[key.name]
		if _, ok := known[key.name]; !ok {
			l.bad(path, pos, "unknown key %q%s", key.name, suggest(key.name, known))
			continue
		}
		l.values[key.name] = value{key.v, path, pos, places}
	}
}

// read reads a whole file after checking who can write it.
func read(path string) ([]byte, error) {
	// Non-blocking, so that a FIFO cannot hold the daemon's start.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, plain(err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	if os.Geteuid() == 0 && (st.Uid != 0 || st.Mode&0o022 != 0) {
		return nil, fmt.Errorf("uid %d owns it and its mode is %04o; whoever can write it is root, so chown it to root and chmod it to 0644", st.Uid, st.Mode&0o7777)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("longer than %d bytes", maxFile)
	}
	return text, err
}

// plain leaves out the path, which the caller names.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

type entry struct {
	name string
	v    any
}

// flatten turns nested tables into dotted keys, sorted. A table where a value
// is known stays a value, so that its type is what is wrong.
func flatten(prefix string, doc map[string]any, known map[string]reflect.Value) []entry {
	var out []entry
	for k, v := range doc {
		name := k
		if prefix != "" {
			name = prefix + "." + k
		}
		_, isValue := known[name]
		if t, ok := v.(map[string]any); ok && !isValue && (len(t) > 0 || hasPrefix(known, name+".")) {
			out = append(out, flatten(name, t, known)...)
			continue
		}
		out = append(out, entry{name, v})
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return out
}

func hasPrefix(known map[string]reflect.Value, prefix string) bool {
	for k := range known {
		if strings.HasPrefix(k, prefix) {
			return true
		}
	}
	return false
}

// fields are the leaves of a Config by dotted key.
func fields(v reflect.Value) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	for f, fv := range v.Fields() {
		name := f.Tag.Get("toml")
		if f.Type.Kind() != reflect.Struct {
			out[name] = fv
			continue
		}
		for k, leaf := range fields(fv) {
			out[name+"."+k] = leaf
		}
	}
	return out
}

// Changed are the keys, sorted, that two configurations have other values of.
func Changed(a, b *Config) []string {
	was, is := fields(reflect.ValueOf(a).Elem()), fields(reflect.ValueOf(b).Elem())
	var out []string
	for _, key := range slices.Sorted(maps.Keys(was)) {
		if !reflect.DeepEqual(was[key].Interface(), is[key].Interface()) {
			out = append(out, key)
		}
	}
	return out
}

func suggest(key string, known map[string]reflect.Value) string {
	last := key[strings.LastIndexByte(key, '.')+1:]
	var same []string
	for k := range known {
		if k[strings.LastIndexByte(k, '.')+1:] == last {
			same = append(same, k)
		}
	}
	if len(same) == 0 {
		return ""
	}
	slices.Sort(same)
	return "; there is " + strings.Join(same, ", ")
}

// apply puts the values into cfg, each with its own type error.
func (l *loader) apply(cfg *Config) {
	known := fields(reflect.ValueOf(cfg).Elem())
	for _, key := range slices.Sorted(mapKeys(l.values)) {
		v, field := l.values[key], known[key]
		if key == "share" {
			l.grants(field, v)
			continue
		}
		if key == "caller" {
			cfg.Callers = l.callers(v)
			continue
		}
		if err := assign(field, v.v); err != nil {
			l.bad(v.file, v.pos, "%s: %v", key, err)
		}
	}
}

func mapKeys(m map[string]value) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
