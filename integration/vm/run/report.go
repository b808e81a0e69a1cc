package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
)

// report is what the machine said, line by line.
type report struct {
	booted   bool
	done     bool
	failures int // as the machine counted them: test binaries, not tests

	suites  []suite
	running string            // the test that the next lines are of
	said    map[string]string // test -> its last line
	journal bool              // inside the journal at the end
}

// suite is one test binary, or the step "service".
type suite struct {
	name  string
	ended bool
	code  int
	empty bool // no test matched
	tests []result
}

// result is one test, or one subtest.
type result struct {
	verdict string // PASS, FAIL, SKIP
	name    string
	seconds string
	reason  string // of a SKIP: what it said last
}

var runningLine = regexp.MustCompile(`^=== (?:RUN|NAME|CONT|PAUSE) +(\S+)$`)

var verdictLine = regexp.MustCompile(`^( *)--- (PASS|FAIL|SKIP): (\S+) \(([0-9.]+)s\)$`)

// line takes one line of the machine's and returns what to show of it at once.
func (r *report) line(s string) string {
	if marker, rest, ok := strings.Cut(s, " "); ok || strings.HasPrefix(s, "CREEL-VM-") {
		switch marker {
		case "CREEL-VM-BOOT":
			r.booted = true
			return "test-vm: " + rest
		case "CREEL-VM-BEGIN":
			r.suites = append(r.suites, suite{name: rest})
			return "test-vm: " + rest
		case "CREEL-VM-END":
			return r.end(rest)
		case "CREEL-VM-JOURNAL":
			r.journal = true
			return "test-vm: journal of creeld.service"
		case "CREEL-VM-DONE":
			_, n, ok := strings.Cut(rest, "failures=")
			failures, err := strconv.Atoi(n)
			r.done, r.failures, r.journal = ok && err == nil, failures, false
			return ""
		}
	}
	if r.journal {
		return s
	}
	if len(r.suites) == 0 {
		return ""
	}
	cur := &r.suites[len(r.suites)-1]
	if strings.HasPrefix(s, "testing: warning: no tests to run") {
		cur.empty = true
	}
	m := verdictLine.FindStringSubmatch(s)
	if m == nil {
		r.note(s)
		return ""
	}
	res := result{verdict: m[2], name: m[3], seconds: m[4]}
	if res.verdict == "SKIP" {
		res.reason = r.said[res.name]
	}
	cur.tests = append(cur.tests, res)
	if m[1] != "" && res.verdict == "PASS" {
		return ""
	}
	return strings.TrimRight(fmt.Sprintf("  %s %s (%ss) %s", res.verdict, res.name, res.seconds, res.reason), " ")
}

// note remembers what a test says, for the case that it skips.
func (r *report) note(s string) {
	if m := runningLine.FindStringSubmatch(s); m != nil {
		r.running = m[1]
		return
	}
	if t := strings.TrimSpace(s); t != "" {
		if r.said == nil {
			r.said = map[string]string{}
		}
		r.said[r.running] = t
	}
}

func (r *report) end(rest string) string {
	name, code, _ := strings.Cut(rest, " ")
	if len(r.suites) == 0 || r.suites[len(r.suites)-1].name != name {
		return "test-vm: the end of " + name + " without its begin"
	}
	cur := &r.suites[len(r.suites)-1]
	n, err := strconv.Atoi(code)
	cur.ended, cur.code = err == nil, n
	if n != 0 {
		return fmt.Sprintf("test-vm: %s ended with %d", name, n)
	}
	return ""
}

// print writes the table.
func (r *report) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nTESTS IN THE VIRTUAL MACHINE\tPASSED\tFAILED\tSKIPPED\tEXIT")
	var passed, failed, skipped int
	for _, s := range r.suites {
		p, f, k := s.count("PASS"), s.count("FAIL"), s.count("SKIP")
		exit := "none"
		if s.ended {
			exit = strconv.Itoa(s.code)
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\n", s.name, p, f, k, exit)
		passed, failed, skipped = passed+p, failed+f, skipped+k
	}
	_ = tw.Flush() // the writers under it are the terminal's
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
}

func (s *suite) count(verdict string) (n int) {
	for _, t := range s.tests {
		if t.verdict == verdict {
			n++
		}
	}
	return n
}

// verdict is nil only if every entry ran to its end, passed at least one test
// and failed none. Every doubt is an error.
func (r *report) verdict(entries []entry) error {
	var errs []error
	if !r.done {
		errs = append(errs, errors.New("the machine never said that it was done"))
	}
	if r.failures != 0 {
		errs = append(errs, fmt.Errorf("the machine counted %d failures", r.failures))
	}
	ran := map[string]*suite{}
	for i := range r.suites {
		s := &r.suites[i]
		ran[s.name] = s
		switch {
		case !s.ended:
			errs = append(errs, fmt.Errorf("%s did not end", s.name))
		case s.code != 0:
			errs = append(errs, fmt.Errorf("%s ended with %d", s.name, s.code))
		case s.count("FAIL") > 0:
			errs = append(errs, fmt.Errorf("%s has failed tests but ended with 0", s.name))
		}
	}
	for _, e := range entries {
		switch s := ran[e.name]; {
		case s == nil:
			errs = append(errs, fmt.Errorf("%s did not run", e.name))
		case s.empty || s.count("PASS") == 0:
			errs = append(errs, fmt.Errorf("%s: no test that matches %q passed", e.name, e.regex))
		}
	}
	return errors.Join(errs...)
}
