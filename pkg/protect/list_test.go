package protect_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/creel-sandbox/creel/pkg/protect"
	"github.com/creel-sandbox/creel/profiles"
)

func TestEmbeddedList(t *testing.T) {
	l, err := protect.Load(profiles.FS)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range l {
		names = append(names, n.String())
	}
	for _, want := range []string{".git/hooks", ".git/config", ".git/commondir", ".envrc", ".vscode", ".github/workflows", ".gitlab-ci.yml", ".claude"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in the list", want)
		}
	}
}

func TestLoadOverride(t *testing.T) {
	own := fstest.MapFS{"protect.toml": {Data: []byte("version = 1\nnames = [\"mine\"]\n")}}
	l, err := protect.Load(profiles.FS, own)
	if err != nil || len(l) != 1 || l[0].String() != "mine" {
		t.Errorf("Load = %v, %v", l, err)
	}
	if l, err := protect.Load(profiles.FS, fstest.MapFS{}); err != nil || len(l) < 2 {
		t.Errorf("Load without one of one's own = %v, %v", l, err)
	}
	own["protect.toml"].Data = []byte("version = 2\n")
	if _, err := protect.Load(profiles.FS, own); err == nil {
		t.Error("a wrong one is loaded, or the embedded one instead")
	}
}

func TestParse(t *testing.T) {
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf("%q", fmt.Sprint("n", i))
	}
	head := "version = 1\n"
	for text, why := range map[string]string{
		head + `names = ["a", "b/c", ".d/", "e f"]`:                 "a space",
		head + `names = ["a/b/", "c"]`:                              "",
		head + "names = [\"a/b\", \"c\"]\n[texts]\n\"a/b\" = \"x\"": "",
		`names = ["a"]`:                                       "reads version 1",
		"version = 2\nnames = [\"a\"]":                        "reads version 1",
		head + `names = []`:                                   "must be 1 to 64",
		head + "names = [" + strings.Join(many, ",") + "]":    "must be 1 to 64",
		head + `other = 1`:                                    "missing",
		head + `names = "a"`:                                  "string",
		head + `names = ["/a"]`:                               "clean path",
		head + `names = [""]`:                                 "clean path",
		head + `names = ["a//b"]`:                             "clean path",
		head + `names = ["a/../b"]`:                           "clean path",
		head + `names = ["./a"]`:                              "clean path",
		head + `names = ["a*"]`:                               "wildcard",
		head + `names = ["a/b/c/d/e"]`:                        "4 parts",
		head + `names = ["` + strings.Repeat("x", 129) + `"]`: "128 bytes",
		head + `names = ["a", "a"]`:                           "is in",
		head + `names = ["a/", "a/b"]`:                        "is in",
		head + `names = ["a/b", "a"]`:                         "is in",
		head + "names = [\"a\"]\n[texts]\n\"b\" = \"\"":       "in names",
		head + "names = [\"a/\"]\n[texts]\n\"a/\" = \"\"":     "a file",
		head + "names = [\"a\"]\n[texts]\na = \"" + strings.Repeat("x", 65) + `"`: "64 bytes",
		strings.Repeat("#", 70<<10): "longer",
	} {
		_, err := protect.Parse([]byte(text))
		if (why == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), why) {
			t.Errorf("Parse(%.80q) = %v; want %q", text, err, why)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("version = 1\nnames = [\"a/b\"]\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := protect.Parse([]byte(text))
		if err != nil {
			return
		}
		for _, n := range l {
			if s := n.String(); s == "" || strings.HasPrefix(s, "/") || slices.Contains(strings.Split(s, "/"), "..") {
				t.Errorf("the name %q", s)
			}
		}
	})
}
