package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var wanted = []entry{{pkg: "./a", name: "a", timeout: time.Minute, regex: "."}}

const good = `CREEL-VM-BOOT kernel 6.12
CREEL-VM-BEGIN service
CREEL-VM-END service 0
CREEL-VM-BEGIN a
=== RUN   TestOne
    one_test.go:3: need bin: no such file
--- SKIP: TestOne (0.00s)
=== RUN   TestTwo
=== RUN   TestTwo/sub
    two_test.go:9: said by another test
--- PASS: TestTwo (1.20s)
    --- PASS: TestTwo/sub (1.10s)
PASS
CREEL-VM-END a 0
CREEL-VM-DONE failures=0
`

func read(text string) *report {
	var r report
	for line := range strings.Lines(text) {
		r.line(strings.TrimSuffix(line, "\n"))
	}
	return &r
}

// TestVerdict changes a good run in one place each time: no change may pass.
func TestVerdict(t *testing.T) {
	if err := read(good).verdict(wanted); err != nil {
		t.Fatalf("a good run: %v", err)
	}
	for _, tt := range []struct{ name, old, replacement, want string }{
		{"no done line", "CREEL-VM-DONE failures=0\n", "", "never said"},
		{"done without a number", "failures=0", "failures=", "never said"},
		{"failures counted", "failures=0", "failures=1", "counted 1"},
		{"binary crashed", "CREEL-VM-END a 0", "CREEL-VM-END a 2", "a ended with 2"},
		{"service did not start", "CREEL-VM-END service 0", "CREEL-VM-END service 1", "service ended with 1"},
		{"no end", "CREEL-VM-END a 0\n", "", "a did not end"},
		{"failed but 0", "--- PASS: TestTwo (", "--- FAIL: TestTwo (", "ended with 0"},
		{"nothing passed", "PASS: TestTwo", "SKIP: TestTwo", "passed"},
		{"nothing matched", "PASS\n", "testing: warning: no tests to run\nPASS\n", "passed"},
		{"did not run", "CREEL-VM-BEGIN a", "CREEL-VM-BEGIN b", "a did not run"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(good, tt.old, tt.replacement, 1)
			if tt.name == "nothing passed" {
				text = strings.ReplaceAll(good, tt.old, tt.replacement)
			}
			err := read(text).verdict(wanted)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("verdict = %v, want one that says %q", err, tt.want)
			}
		})
	}
}

// TestTruncated cuts a good run at every byte: only the whole may pass.
func TestTruncated(t *testing.T) {
	end := len(strings.TrimSuffix(good, "\n"))
	for i := range end {
		if err := read(good[:i]).verdict(wanted); err == nil {
			t.Errorf("a run cut after %d bytes passes: %q", i, good[:i])
		}
	}
}

func TestPrint(t *testing.T) {
	var b strings.Builder
	read(good).print(&b)
	want := `
TESTS IN THE VIRTUAL MACHINE  PASSED  FAILED  SKIPPED  EXIT
service                       0       0       0        0
a                             2       0       1        0
2 passed, 0 failed, 1 skipped
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

func TestSkipSaysWhy(t *testing.T) {
	r := read(strings.Replace(good, "--- SKIP: TestOne (0.00s)\n=== RUN   TestTwo\n", "=== RUN   TestTwo\n    two_test.go:1: x\n--- SKIP: TestOne (0.00s)\n", 1))
	if got := r.suites[1].tests[0].reason; !strings.Contains(got, "need bin") {
		t.Errorf("reason of the skipped test = %q, want its last words", got)
	}
}

func TestParseTests(t *testing.T) {
	got, err := parseTests(strings.NewReader("# why\n\n./a/b 2m ^TestX$\n./a/b 90s .\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []entry{
		{"./a/b", "a-b", 2 * time.Minute, "^TestX$"},
		{"./a/b", "a-b.2", 90 * time.Second, "."},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("parseTests (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "# only words\n", "./a 2m\n", "a 2m .\n", "./a soon .\n", "./a 1ms .\n", "./a 1m x y\n"} {
		if got, err := parseTests(strings.NewReader(bad)); err == nil {
			t.Errorf("parseTests(%q) = %v, want an error", bad, got)
		}
	}
}

func TestNarrow(t *testing.T) {
	listed := []entry{{pkg: "./a", regex: "A"}, {pkg: "./b", regex: "B"}, {pkg: "./a", regex: "C"}}
	for _, tt := range []struct {
		pkg, regex string
		want       []string // of the lines that are left; nil is an error
	}{
		{"", "", []string{"A", "B", "C"}},
		{"./a", "", []string{"A", "C"}},
		{"./a", "X", []string{"X"}},
		{"./c", "", nil},
		{"", "X", nil},
	} {
		got, err := narrow(slices.Clone(listed), tt.pkg, tt.regex)
		var left []string
		for _, e := range got {
			left = append(left, e.regex)
		}
		if !slices.Equal(left, tt.want) || (err != nil) != (tt.want == nil) {
			t.Errorf("narrow(%q, %q) leaves %q, %v; want %q", tt.pkg, tt.regex, left, err, tt.want)
		}
	}
}
