package openclaw

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxConfig is the largest file that is read.
const maxConfig = 8 << 20

// Place is where an OpenClaw keeps its things.
type Place struct {
	Config string // the configuration file
	State  string // the state directory
	Home   string // what ~ stands for in the configuration
	// Workspace is OPENCLAW_WORKSPACE_DIR, usually empty.
	Workspace string
	// ReadOnly says that the environment forbids changes of the configuration:
	// somebody else, Nix for instance, writes it.
	ReadOnly bool
}

// Locate finds them as OpenClaw does. file is what the user named, if
// anything; home the user's home.
func Locate(file, home string, env func(string) string) (Place, error) {
	get := func(name string) string { return strings.TrimSpace(env(name)) }
	p := Place{Home: home, ReadOnly: get("OPENCLAW_CONFIG_READONLY") == "1" || get("OPENCLAW_NIX_MODE") == "1"}
	if h := get("OPENCLAW_HOME"); h != "" {
		p.Home = expand(h, home)
	}
	p.State = filepath.Join(p.Home, ".openclaw")
	if s := get("OPENCLAW_STATE_DIR"); s != "" {
		p.State = expand(s, p.Home)
	}
	p.Config = filepath.Join(p.State, "openclaw.json")
	if c := get("OPENCLAW_CONFIG_PATH"); c != "" {
		p.Config = expand(c, p.Home)
	}
	if file != "" { // the shell has dealt with ~
		p.Config = file
	}
	if w := get("OPENCLAW_WORKSPACE_DIR"); w != "" {
		p.Workspace = w
	}
	var err error
	for _, s := range []*string{&p.Config, &p.State, &p.Workspace} {
		if *s != "" && err == nil {
			*s, err = filepath.Abs(*s)
		}
	}
	return p, err
}

// expand is a path of OpenClaw's, where ~ is the home.
func expand(path, home string) string {
	path = strings.TrimSpace(path)
	if path == "~" {
		return home
	}
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(home, rest)
	}
	return path
}

// Config is a configuration as OpenClaw would read it.
type Config struct {
	Place
	// Text is the file as it is, without what it includes.
	Text []byte
	// UID is its owner, Symlink whether the path is a symbolic link.
	UID     uint32
	Symlink bool
	// Includes are the files that it includes, and IncludeErr is why not all
	// of them are known: what Check says is not all then.
	Includes   []string
	IncludeErr error

	root map[string]any
}

// Read reads the file and what it includes. A file that is not there is
// fs.ErrNotExist.
func Read(p Place) (*Config, error) {
	st, err := os.Lstat(p.Config)
	if err != nil {
		return nil, err
	}
	c := &Config{Place: p, Symlink: st.Mode()&fs.ModeSymlink != 0}
	var own syscall.Stat_t
	if c.Text, own, err = readRegular(p.Config, maxConfig); err != nil {
		return nil, err
	}
	c.UID = own.Uid
	n, err := parse(string(c.Text))
	if err != nil {
		return c, fmt.Errorf("%s: %w", p.Config, err)
	}
	in := &includer{root: filepath.Dir(p.Config)}
	v, err := in.resolve(n.decode(), []string{p.Config})
	c.Includes, c.IncludeErr = in.files, err
	if err != nil {
		v = n.decode()
	}
	var is bool
	if c.root, is = v.(map[string]any); !is {
		return c, fmt.Errorf("%s: not an object at the top", p.Config)
	}
	return c, nil
}

// readRegular reads a file that is one. Links are followed: OpenClaw does.
func readRegular(path string, most int64) (text []byte, st syscall.Stat_t, err error) {
	// A FIFO would keep an open without O_NONBLOCK waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, st, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, st, err
	}
	if !info.Mode().IsRegular() {
		return nil, st, fmt.Errorf("%s: not a file", path)
	}
	text, err = io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: larger than %d bytes", path, most)
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, st, errors.New("a file without an owner")
	}
	return text, *sys, err
}

// get is the value at a path of the configuration.
func (c *Config) get(path ...string) any { return at(c.root, path...) }

// Of values that may be anything: what is of another type is not there.

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func asList(v any) []any {
	l, _ := v.([]any)
	return l
}

func asString(v any) string {
	s, _ := v.(string)
	return strings.TrimSpace(s)
}

// off tells what is switched off; what is not said is on.
func off(v any) bool { return v == false }
