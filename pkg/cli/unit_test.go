package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/api"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain é 漢":         "plain é 漢",
		"\x1b[31mred":       `\x1b[31mred`,
		"a\nb\tc":           `a\nb\tc`,
		"back\\slash":       `back\\slash`,
		"bad \xff byte":     `bad \xff byte`,
		"\u202eevil":        `\u202eevil`,
		"\u009b31m":         `\u009b31m`,
		"real \ufffd":       `real ` + "\ufffd",
		"\U000e0041 hidden": `\U000e0041 hidden`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "a", "\x1b]0;x\x07", "\xff\xfe", "é\u0301", "\\x1b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range printable(s) {
			if !unicode.IsPrint(r) {
				t.Fatalf("printable(%q) holds %q", s, r)
			}
		}
		for _, r := range printableLines(s) {
			if !unicode.IsPrint(r) && r != '\n' && r != '\t' {
				t.Fatalf("printableLines(%q) holds %q", s, r)
			}
		}
	})
}

func FuzzSafeJSON(f *testing.F) {
	for _, s := range []string{"", "a", "\x7f\u0085\u202e", "\U000e0041", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		safe := safeJSON(b)
		for _, r := range string(safe) {
			if unsafeInJSON(r) {
				t.Fatalf("safeJSON of %q holds %q", s, r)
			}
		}
		var got string
		if err := json.Unmarshal(safe, &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s) {
			t.Fatalf("safeJSON of %q reads as %q, %v", s, got, err)
		}
	})
}

// What linkStaysIn lets through must stay in the tree however the links of the
// tree refer to each other.
func FuzzLinkStaysIn(f *testing.F) {
	for _, s := range [][2]string{{".", "d/d/../y"}, {"a", "../x"}, {"../..", "."}, {"d/../../x", "sub"}, {"./", "a//b"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, one, two string) {
		outside := t.TempDir()
		tree := filepath.Join(outside, "tree")
		if err := os.MkdirAll(filepath.Join(tree, "sub", "deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, to := range map[string]string{"d": one, "sub/d": one, "sub/deep/d": two, "e": two, "sub/e": two} {
			if !linkStaysIn(depth(path.Dir(name)), to) {
				continue
			}
			if err := os.Symlink(to, filepath.Join(tree, name)); err != nil {
				return // a target that the file system refuses harms nobody
			}
		}
		err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Type()&fs.ModeSymlink == 0 {
				return err
			}
			for _, to := range []string{p, filepath.Join(p, "x"), p + "/d", p + "/e"} {
				end, err := filepath.EvalSymlinks(to)
				if err == nil && end != tree && !strings.HasPrefix(end, tree+"/") {
					t.Errorf("with d -> %q and e -> %q, %s leads to %s", one, two, to, end)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestLinkStaysIn(t *testing.T) {
	tests := []struct {
		depth int
		to    string
		want  bool
	}{
		{0, "a", true},
		{0, "a/b", true},
		{0, ".", true},
		{0, "./a//b/", true},
		{0, "..", false},
		{1, "..", true},
		{1, "../a", true},
		{1, "../../a", false},
		{2, ".././../a", true},
		{0, "", false},
		{5, "/etc", false},
		{5, "a/../b", false},
		{5, "../a/..", false},
		{0, "a\x00", false},
	}
	for _, tt := range tests {
		if got := linkStaysIn(tt.depth, tt.to); got != tt.want {
			t.Errorf("linkStaysIn(%d, %q) = %v, want %v", tt.depth, tt.to, got, tt.want)
		}
	}
}

func TestParseMount(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		in   string
		want api.Mount
		bad  bool
	}{
		{in: "/a:/b", want: api.Mount{Source: "/a", Target: "/b"}},
		{in: "/a:/b:own,protect", want: api.Mount{Source: "/a", Target: "/b", Own: true, Protect: true}},
		{in: "/a:/b:protect", want: api.Mount{Source: "/a", Target: "/b", Protect: true}},
		{in: "/a:/b:ro", want: api.Mount{Source: "/a", Target: "/b", ReadOnly: true}},
		{in: "/a:/b:rw", want: api.Mount{Source: "/a", Target: "/b"}},
		{in: "/with:colon:/b", want: api.Mount{Source: "/with:colon", Target: "/b"}},
		{in: ".:/w", want: api.Mount{Source: wd, Target: "/w"}},
		{in: "./work:/w", want: api.Mount{Source: wd + "/work", Target: "/w"}},
		{in: "..:/w:ro", want: api.Mount{Source: filepath.Dir(wd), Target: "/w", ReadOnly: true}},
		{in: "work:/w", want: api.Mount{Volume: "work", Target: "/w"}},
		{in: "work:/w:ro", want: api.Mount{Volume: "work", Target: "/w", ReadOnly: true}},
		{in: "sub/dir:/w", want: api.Mount{Source: wd + "/sub/dir", Target: "/w"}},
		{in: ".git:/w", want: api.Mount{Source: wd + "/.git", Target: "/w"}},
		{in: "/a", bad: true},
		{in: ":/b", bad: true},
		{in: "/a:b", bad: true},
		{in: "", bad: true},
	}
	for _, tt := range tests {
		got, err := parseMount(tt.in)
		if (err != nil) != tt.bad {
			t.Errorf("parseMount(%q) error = %v", tt.in, err)
		}
		if !tt.bad {
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("parseMount(%q) (-want +got):\n%s", tt.in, diff)
			}
		}
	}
}

func TestLooksLikeImage(t *testing.T) {
	for arg, want := range map[string]bool{
		"debian:12": true, "example.org/a": true, "a@sha256:00": true,
		"ls": false, "/bin/ls": false, "./a:b": false, "bin/ls": false, "python3.11": false,
	} {
		if got := looksLikeImage(arg); got != want {
			t.Errorf("looksLikeImage(%q) = %v, want %v", arg, got, want)
		}
	}
}

func TestSplitRef(t *testing.T) {
	for in, want := range map[string]struct {
		ref, file string
		ok        bool
	}{
		"box:/a:b": {"box", "/a:b", true}, "box:": {"box", "", true}, "box:rel": {"box", "rel", true},
		"/a:b": {"", "/a:b", false}, "./a:b": {"", "./a:b", false}, "a": {"", "a", false}, ":a": {"", ":a", false},
	} {
		ref, file, ok := splitRef(in)
		if ref != want.ref || file != want.file || ok != want.ok {
			t.Errorf("splitRef(%q) = %q, %q, %v", in, ref, file, ok)
		}
	}
}

func TestInterrupts(t *testing.T) {
	var i interrupts
	at := time.Unix(100, 0)
	for n, step := range []struct {
		after time.Duration
		want  int
	}{{0, 1}, {time.Second, 2}, {time.Second, 3}, {10 * time.Second, 1}} {
		at = at.Add(step.after)
		if got := i.count(at); got != step.want {
			t.Errorf("press %d counts as %d, want %d", n, got, step.want)
		}
	}
}

func TestTable(t *testing.T) {
	var tb table
	tb.header("A", "B")
	tb.row("x\ty", cell{"é", green})
	tb.row("longer", 3)
	var out bytes.Buffer
	if err := tb.write(&out, false); err != nil {
		t.Fatal(err)
	}
	if want := "A       B\nx\\ty    é\nlonger  3\n"; out.String() != want {
		t.Errorf("table = %q, want %q", out.String(), want)
	}
	out.Reset()
	if err := tb.write(&out, true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "\x1b[32mé\x1b[0m\n") {
		t.Errorf("table in color = %q", out.String())
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1 << 20: "1M", 1536 << 20: "1.5G", 250075648: "238M", 1000: "0.977K", 5 << 40: "5T"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestAgo(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for d, want := range map[time.Duration]string{
		time.Second: "now", time.Minute: "60 seconds ago", time.Hour: "60 minutes ago", 5 * time.Hour: "5 hours ago", 100 * time.Hour: "4 days ago",
	} {
		if got := ago(now.Add(-d), now); got != want {
			t.Errorf("ago(%v) = %q, want %q", d, got, want)
		}
	}
	if got := ago(time.Time{}, now); got != "-" {
		t.Errorf("ago(zero) = %q", got)
	}
}

// A request from a pipe has no size to look at first.
func TestReadRequestIsBounded(t *testing.T) {
	_, err := readRequest("-", strings.NewReader(`{"name":"`+strings.Repeat("a", maxRequest)+`"}`))
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("readRequest error = %v, want one about its size", err)
	}
}

func TestErrorKeepsItsPrefix(t *testing.T) {
	var out bytes.Buffer
	a := &app{Stdio: Stdio{Err: &out}}
	inner := api.Errorf(api.CodeNotFound, "no such file").WithHint("look")
	a.printError(errors.Join(nil, inner))
	a.printError(&exitError{1, wrap{"/a", inner}})
	if want := "creel: no such file\n  hint: look\ncreel: /a: no such file\n  hint: look\n"; out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

type wrap struct {
	what string
	err  error
}

func (w wrap) Error() string { return w.what + ": " + w.err.Error() }
func (w wrap) Unwrap() error { return w.err }

// Ctrl-P Ctrl-Q leaves, however it comes in pieces; every other key is passed
// on, a Ctrl-P that leads to nothing too.
func TestDetachKeys(t *testing.T) {
	const p, q = "\x10", "\x11"
	for _, tt := range []struct {
		keys, want string
		left       bool
	}{
		{"", "", false},
		{"hello" + q, "hello" + q, false},
		{"a" + p + q + "b", "a", true},
		{p + q, "", true},
		{p + "x" + q, p + "x" + q, false},
		{p + p + q + "b", p, true},
		{p + p + p, p + p + p, false},
		{"a" + p, "a" + p, false},
		{q + p, q + p, false},
	} {
		for _, in := range []io.Reader{strings.NewReader(tt.keys), iotest.OneByteReader(strings.NewReader(tt.keys)), iotest.DataErrReader(strings.NewReader(tt.keys))} {
			left := 0
			d := &detachKeys{in: in, leave: func() { left++ }}
			got, err := io.ReadAll(iotest.OneByteReader(d))
			if tt.left && !errors.Is(err, fs.ErrClosed) || !tt.left && err != nil {
				t.Errorf("%q: %v", tt.keys, err)
			}
			if string(got) != tt.want || d.pressed.Load() != tt.left || (left == 1) != tt.left {
				t.Errorf("%q: %q, left %v %d times; want %q, %v", tt.keys, got, d.pressed.Load(), left, tt.want, tt.left)
			}
		}
	}
}

func TestTree(t *testing.T) {
	p := func(pid, ppid int) api.Process { return api.Process{PID: pid, PPID: ppid} }
	deep := make([]api.Process, 1000)
	for i := range deep {
		deep[i] = p(i+1, i)
	}
	for name, tt := range map[string]struct {
		list []api.Process
		want [][2]int // pid, depth
	}{
		"empty":            {nil, nil},
		"children follow":  {[]api.Process{p(1, 0), p(5, 1), p(9, 1), p(2, 5)}, [][2]int{{1, 0}, {5, 1}, {2, 2}, {9, 1}}},
		"unknown parent":   {[]api.Process{p(1, 0), p(5, 77)}, [][2]int{{1, 0}, {5, 0}}},
		"its own parent":   {[]api.Process{p(1, 0), p(5, 5)}, [][2]int{{1, 0}, {5, 0}}},
		"a ring":           {[]api.Process{p(5, 6), p(6, 5)}, [][2]int{{5, 0}, {6, 1}}},
		"a pid used again": {[]api.Process{p(1, 0), p(5, 1), p(5, 1)}, [][2]int{{1, 0}, {5, 1}, {5, 1}}},
	} {
		var got [][2]int
		for _, b := range tree(tt.list) {
			got = append(got, [2]int{b.PID, b.depth})
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if got := tree(deep); len(got) != len(deep) || got[999].depth != 999 {
		t.Errorf("%d of a chain of 1000", len(got))
	}
}
