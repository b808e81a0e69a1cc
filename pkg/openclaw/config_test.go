package openclaw_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/openclaw"
)

func TestLocate(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, file string
		env        map[string]string
		want       openclaw.Place
	}{
		{"nothing said", "", nil, openclaw.Place{Config: "/home/u/.openclaw/openclaw.json", State: "/home/u/.openclaw", Home: "/home/u"}},
		{
			"a state directory", "",
			map[string]string{"OPENCLAW_STATE_DIR": " ~/claw ", "OPENCLAW_WORKSPACE_DIR": "/srv/ws"},
			openclaw.Place{Config: "/home/u/claw/openclaw.json", State: "/home/u/claw", Home: "/home/u", Workspace: "/srv/ws"},
		},
		{
			"a file", "",
			map[string]string{"OPENCLAW_STATE_DIR": "/s", "OPENCLAW_CONFIG_PATH": "/etc/claw.json"},
			openclaw.Place{Config: "/etc/claw.json", State: "/s", Home: "/home/u"},
		},
		{
			"a home", "",
			map[string]string{"OPENCLAW_HOME": "/srv/claw", "OPENCLAW_NIX_MODE": "1"},
			openclaw.Place{Config: "/srv/claw/.openclaw/openclaw.json", State: "/srv/claw/.openclaw", Home: "/srv/claw", ReadOnly: true},
		},
		{
			"named here", "x.json",
			map[string]string{"OPENCLAW_CONFIG_PATH": "/etc/claw.json", "OPENCLAW_CONFIG_READONLY": "1"},
			openclaw.Place{Config: filepath.Join(wd, "x.json"), State: "/home/u/.openclaw", Home: "/home/u", ReadOnly: true},
		},
	} {
		got, err := openclaw.Locate(tt.file, "/home/u", func(name string) string { return tt.env[name] })
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
	}
}

// write makes files below a new directory and gives its name.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestReadIncludes(t *testing.T) {
	dir := write(t, map[string]string{
		"c/openclaw.json": `{agents: {$include: './agents.json5', defaults: {sandbox: {mode: 'all'}}}, plugins: {$include: ['a.json', 'b/b.json']}}`,
		"c/agents.json5":  `{defaults: {workspace: '/ws', sandbox: {mode: 'off', backend: 'creel'}}, entries: {main: {}}}`,
		"c/a.json":        `{"allow": ["x"], "entries": {"x": {"enabled": true}}}`,
		"c/b/b.json":      `{"allow": ["creel"], "entries": {"$include": "../c.json"}}`,
		"c/c.json":        `{"creel": {"enabled": true}}`,
	})
	c, err := openclaw.Read(openclaw.Place{Config: filepath.Join(dir, "c/openclaw.json")})
	if err != nil || c.IncludeErr != nil || len(c.Includes) != 4 {
		t.Fatalf("%v, %+v", err, c)
	}
	for _, f := range c.Check() {
		if f.Level == openclaw.Missing || f.Level == openclaw.Danger {
			t.Errorf("%+v", f)
		}
	}
	if c.UID != uint32(os.Geteuid()) || c.Symlink {
		t.Errorf("uid %d, link %v", c.UID, c.Symlink)
	}
}

func TestReadIncludesRefused(t *testing.T) {
	for name, tt := range map[string]struct{ include, want string }{
		"not there":   {`'none.json'`, "no such file"},
		"itself":      {`'openclaw.json'`, "includes itself"},
		"in a circle": {`'round.json'`, "includes itself"},
		"outside":     {`'../outside.json'`, "not in"},
		"by a link":   {`'link.json'`, "not in"},
		"no JSON":     {`'bad.json'`, "unexpected 'x'"},
		"no name":     {`1`, "1 is not a file name"},
		"no names":    {`['a.json', 2]`, "2 is not a file name"},
		"no object":   {`'list.json'`, "there are keys beside it"},
		"a FIFO":      {`'fifo'`, "not a file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, map[string]string{
				"c/openclaw.json": `{agents: {$include: ` + tt.include + `, x: 1}}`, "outside.json": `{}`,
				"c/round.json": `{$include: 'openclaw.json'}`, "c/bad.json": "x", "c/list.json": "[]", "c/a.json": "{}",
			})
			if err := errors.Join(os.Symlink("../outside.json", filepath.Join(dir, "c/link.json")), syscall.Mkfifo(filepath.Join(dir, "c/fifo"), 0o600)); err != nil {
				t.Fatal(err)
			}
			c, err := openclaw.Read(openclaw.Place{Config: filepath.Join(dir, "c/openclaw.json")})
			if err != nil || c.IncludeErr == nil || !strings.Contains(c.IncludeErr.Error(), tt.want) {
				t.Fatalf("%v, %v; want %q", err, c.IncludeErr, tt.want)
			}
			if !slices.ContainsFunc(c.Check(), func(f openclaw.Finding) bool {
				return f.Level == openclaw.Missing && strings.Contains(f.What, "not all of it is known")
			}) {
				t.Errorf("%+v", c.Check())
			}
		})
	}
}

func TestReadRefused(t *testing.T) {
	dir := write(t, map[string]string{"list": "[]", "bad": "{\n a: }", "large": strings.Repeat(" ", 8<<20+1)})
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"list": "not an object", "bad": "line 2, column 5: unexpected '}'", "large": "larger than", "fifo": "not a file", ".": "not a file",
	} {
		if _, err := openclaw.Read(openclaw.Place{Config: filepath.Join(dir, name)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := openclaw.Read(openclaw.Place{Config: filepath.Join(dir, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "ok"), []byte("{}"), 0o600), os.Symlink("ok", link)); err != nil {
		t.Fatal(err)
	}
	if c, err := openclaw.Read(openclaw.Place{Config: link}); err != nil || !c.Symlink {
		t.Errorf("a link: %+v, %v", c, err)
	}
}
