package preset_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/egress"
	"github.com/creel-sandbox/creel/pkg/preset"
	"github.com/creel-sandbox/creel/profiles"
)

// TestShipped: each shipped preset is one, says what it is for, and names no host
// by a pattern of a whole domain that it does not give a reason for.
func TestShipped(t *testing.T) {
	dir, err := fs.Sub(profiles.FS, "egress")
	if err != nil {
		t.Fatal(err)
	}
	all, err := preset.Load(preset.Dir{FS: dir, Name: "embedded"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"github", "gitlab", "huggingface", "anthropic", "openai", "gemini", "ollama"} {
		if all[want] == nil {
			t.Errorf("no preset %s", want)
		}
	}
	for name, p := range all {
		if p.Description == "" || p.Source != "embedded" || p.Name != name {
			t.Errorf("%+v", p)
		}
		if _, problems := egress.ParseLines(name, "rules", p.Rules); len(problems) > 0 {
			t.Errorf("%s: %+v", name, problems)
		}
	}
}

func TestLoad(t *testing.T) {
	one := fstest.MapFS{"a.toml": {Data: []byte("description = \"a\"\nrules = [\"a.example\"]\n")}, "README": {Data: []byte("x")}}
	two := fstest.MapFS{"a.toml": {Data: []byte("rules = [\"b.example\"]\n")}}
	all, err := preset.Load(preset.Dir{FS: one, Name: "embedded"}, preset.Dir{FS: os.DirFS(filepath.Join(t.TempDir(), "none")), Name: "/none"}, preset.Dir{FS: two, Name: "/etc/x"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]*preset.Preset{"a": {Name: "a", Rules: []string{"https b.example:443"}, Source: "/etc/x/a.toml"}}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	for name, text := range map[string]string{
		"A.toml": "rules = [\"a.example\"]", "a.toml": "rules = []", "b.toml": "rules = [\"-\"]", "c.toml": "rule = [\"a.example\"]", "d.toml": "rules = [", "e.toml": strings.Repeat("#", 70<<10),
	} {
		if _, err := preset.Load(preset.Dir{FS: fstest.MapFS{name: {Data: []byte(text)}}, Name: "x"}); err == nil {
			t.Errorf("%s with %.40q is taken", name, text)
		}
	}
}

// TestClients: the hosts are those that the box's clients have, and none that
// creel knows.
func TestClients(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"etc/apt/sources.list":                "# deb https://no.example/x\ndeb [signed-by=/x] https://mirror.example:8443/debian stable main\ndeb-src http://plain.example/debian stable main\ndeb cdrom:[x]/ stable main\n",
		"etc/apt/sources.list.d/more.sources": "Types: deb\nURIs: https://more.example/a https://mirror.example:8443/b\nSuites: stable\n",
		"home/.cargo/config.toml":             "[source.mine]\nregistry = \"sparse+https://crates.example/index/\"\n[registries.other]\nindex = \"https://other.example/git/index\"\n",
	} {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	says := map[string]string{
		"npm config get registry":                      "https://npm.example/registry/",
		"go env GOPROXY GOSUMDB":                       "https://go.example/proxy,direct\nsum.example",
		"python3 -m pip config get global.index-url":   "https://pip.example/simple",
		"python3 -m pip config get install.index-url":  "",
		"python3 -m pip config get global.extra-index": "",
	}
	b := preset.Box{Root: root, Home: filepath.Join(root, "home"), Run: func(_ context.Context, name string, args ...string) (string, error) {
		if out, ok := says[strings.Join(append([]string{name}, args...), " ")]; ok {
			return out, nil
		}
		return "", errors.New("no such key")
	}}
	for client, want := range map[string][]string{
		"apt":   {"https mirror.example:8443", "http plain.example:80 GET,HEAD", "https more.example:443"},
		"npm":   {"https npm.example:443"},
		"go":    {"https go.example:443", "https sum.example:443"},
		"pip":   {"https pip.example:443"},
		"cargo": {"https crates.example:443", "https other.example:443"},
	} {
		p, err := b.Of(t.Context(), client)
		if err != nil {
			t.Errorf("%s: %v", client, err)
			continue
		}
		if diff := cmp.Diff(want, p.Rules); diff != "" {
			t.Errorf("%s: %s", client, diff)
		}
	}
	none := preset.Box{Root: t.TempDir(), Home: t.TempDir(), Run: func(context.Context, string, ...string) (string, error) { return "", errors.New("not there") }}
	odd := preset.Box{Root: none.Root, Home: none.Home, Run: func(context.Context, string, ...string) (string, error) { return "file:///srv/x", nil }}
	for _, client := range append(preset.Clients(), "brew") {
		if p, err := none.Of(t.Context(), client); err == nil {
			t.Errorf("%s without a client: %+v", client, p)
		}
	}
	for _, client := range []string{"npm", "pip", "go"} {
		if p, err := odd.Of(t.Context(), client); err == nil {
			t.Errorf("%s of a file: %+v", client, p)
		}
	}
}

// TestNotHere: a client is not started where an agent may have written what it
// reads.
func TestNotHere(t *testing.T) {
	t.Chdir(t.TempDir())
	out, err := preset.Here().Run(t.Context(), "pwd")
	if err != nil || out != "/" {
		t.Errorf("%q, %v", out, err)
	}
}
