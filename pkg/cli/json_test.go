package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/creel-sandbox/creel/pkg/client"
	"github.com/creel-sandbox/creel/pkg/client/clienttest"
)

// TestJSONEverywhere walks the tree of commands: with --json each writes JSON
// and nothing else, or is one of the few of which that cannot be said.
func TestJSONEverywhere(t *testing.T) {
	other := map[string]string{
		"creel attach": "the command's own output", "creel exec": "the command's own output", "creel run": "the command's own output; -d is below",
		"creel kill": "no result", "creel pause": "no result", "creel resume": "no result", "creel rm": "no result", "creel image rm": "no result", "creel volume rm": "no result", "creel secret rm": "no result",
		"creel egress explain": "exit code 1; TestEgressExplain", "creel openclaw setup": "needs a configuration; testdata/openclaw.txtar", "creel egress log": "nothing where there is nothing; TestEgressLog", "creel forward": "does not end by itself; integration TestForward", "creel events": "does not end by itself; below", "creel mcp": "a protocol", "creel image build": "makes an image", "creel image save": "the archive",
		"creel image pull": "another program's; TestImagePull", "creel audit export": "the records", "creel audit verify": "needs a log",
		"creel help": "text", "creel completion bash": "a script", "creel completion fish": "a script", "creel completion powershell": "a script", "creel completion zsh": "a script",
	}
	d := clienttest.New(t)
	dir := t.TempDir()
	archive, profile := filepath.Join(dir, "archive"), filepath.Join(dir, "p.toml")
	for _, f := range []string{archive, profile} {
		if err := os.WriteFile(f, []byte("version = 1\nname = \"p\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	creel := func(args ...string) (string, string, int) {
		var out, errOut bytes.Buffer
		code := Main(t.Context(), append([]string{"--socket", d.Socket}, args...), Stdio{In: strings.NewReader(""), Out: &out, Err: &errOut})
		return out.String(), errOut.String(), code
	}
	if _, errOut, code := creel("run", "-d", "--name", "box"); code != 0 {
		t.Fatal(errOut)
	}
	verbs := map[string][]string{ // in this order
		"creel agent ls": nil, "creel agent show": {"coder"}, "creel agent revoke": {"coder"}, "creel agent restore": {"coder"}, "creel agent expire": {"--never", "coder"}, "creel agent report": nil,
		"creel audit anchor": nil, "creel audit key": nil, "creel audit log": nil, "creel commit": {"box", "x:1"}, "creel explain": nil,
		"creel cp": {archive, "box:/workspace"}, "creel diff": {"box"}, "creel evidence": {"box"}, "creel exec ls": {"box"}, "creel inspect": {"box"},
		"creel logs": {"box"}, "creel ls": {"box:/"}, "creel ps": nil, "creel stats": {"--no-stream"}, "creel top": {"box"}, "creel doctor": nil, "creel version": nil,
		"creel image import": {"--ref", "mine", archive}, "creel image inspect": {"base"}, "creel image ls": nil, "creel image tag": {"base", "other:1"},
		"creel openclaw check": {"--config", profile}, "creel profile check": {profile}, "creel profile ls": nil, "creel profile show": {"default"}, "creel system df": nil, "creel system prune": nil,
		"creel volume create": {"--size", "1M", "v"}, "creel volume inspect": {"v"}, "creel volume ls": nil, "creel secret set": {"--host", "example.com", "k"}, "creel secret ls": nil, "creel identity bundle": nil, "creel egress preset ls": nil, "creel egress learn": {"box"}, "creel egress pending": nil, "creel egress approve": {"abc.1"}, "creel egress deny": {"abc.1"}, "creel egress forget": {"coder"}, "creel egress allow": {"box", "a.example"}, "creel egress preset show": {"github"}, "creel stop": {"box"}, "creel wait": {"box"},
	}
	late := []string{"creel stop", "creel wait"} // the sandbox runs until then
	for _, path := range append(slices.DeleteFunc(slices.Sorted(maps.Keys(verbs)), func(p string) bool { return slices.Contains(late, p) }), late...) {
		args := append(strings.Fields(path)[1:], append([]string{"--json"}, verbs[path]...)...)
		out, errOut, _ := creel(args...)
		n, err := values(out)
		if err != nil || n == 0 && path != "creel logs" {
			t.Errorf("%s --json: %v in %q, %q", path, err, out, errOut)
		}
	}
	out, errOut, code := creel("run", "--json", "-d", "--name", "second")
	if n, err := values(out); err != nil || n != 1 || code != 0 {
		t.Errorf("run -d --json: %v in %q, %q", err, out, errOut)
	}
	if out, _, _ := creel("ps", "-q", "--json"); !strings.HasPrefix(out, "[\n  \"") {
		t.Errorf("ps -q --json: %q", out)
	}
	var known, found []string
	known = append(slices.Collect(maps.Keys(verbs)), slices.Collect(maps.Keys(other))...)
	root := newRoot(&app{Stdio: Stdio{Out: io.Discard, Err: io.Discard}})
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if path := sub.CommandPath(); !sub.HasSubCommands() || path == "creel exec" {
				found = append(found, path)
			}
			walk(sub)
		}
	}
	walk(root)
	slices.Sort(known)
	slices.Sort(found)
	if diff := cmp.Diff(known, found); diff != "" {
		t.Errorf("commands (-looked at +there are):\n%s", diff)
	}
}

// values counts the JSON values in text.
func values(text string) (n int, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	for {
		var v any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
	}
}

func TestPages(t *testing.T) {
	all := []int{1, 2, 3, 4, 5, 6, 7}
	for _, tt := range []struct {
		limit, asked int // asked is how many pages
		want         []int
		more         bool
	}{
		{0, 3, all, false},
		{7, 3, all, false},
		{9, 3, all, false},
		{6, 2, all[:6], true},
		{4, 2, all[:4], true},
		{1, 1, all[:1], true},
	} {
		var errOut bytes.Buffer
		asked := 0
		got, err := pages(&app{Stdio: Stdio{Err: &errOut}}, tt.limit, 3, func(p client.Page) ([]int, string, error) {
			asked++
			from := 0
			_, _ = fmt.Sscan(p.After, &from)
			to := min(from+p.Limit, len(all))
			next := ""
			if to < len(all) {
				next = fmt.Sprint(to)
			}
			return all[from:to], next, nil
		})
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" || asked != tt.asked || (errOut.Len() > 0) != tt.more {
			t.Errorf("limit %d: %v, %d pages, %q (-want +got):\n%s", tt.limit, err, asked, errOut.String(), diff)
		}
	}
	if got, err := pages(&app{}, 0, 3, func(client.Page) ([]int, string, error) { return nil, "", nil }); got == nil || len(got) != 0 || err != nil {
		t.Errorf("an empty list is %v, %v", got, err)
	}
	if _, err := pages(&app{}, 0, 3, func(client.Page) ([]int, string, error) { return []int{1}, "same", nil }); err == nil {
		t.Error("a page that comes again and again is followed")
	}
}
