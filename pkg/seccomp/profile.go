package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
)

// ErrInvalid means the profile's text is wrong.
var ErrInvalid = errors.New("invalid seccomp profile")

// Profile is a checked allow-list. It is safe for concurrent use.
type Profile struct {
	// Name is the file's name without its ending.
	Name string
	// Description is one line about what the profile is for.
	Description string
	// Groups are in order of precedence.
	Groups []Group
	// Default is what happens to a call that no rule matches.
	Default Action
}

// Group is a set of rules with one reason.
type Group struct {
	Name   string
	Reason string
	Rules  []Rule
}

// Rule decides calls of the named system calls when all conditions hold.
type Rule struct {
	Syscalls []string
	Arch     []string // empty: every architecture
	When     []Cond
	Action   Action
}

// Cond is a test of one argument.
type Cond struct {
	Arg    int
	Bits   int    // 32 or 64
	Mask   uint64 // within Bits
	Not    bool   // not_in
	Values []uint64
}

// Architectures are those a profile is compiled for.
var Architectures = []string{"amd64", "arm64"}

// The wire form of a profile.
type (
	fileProfile struct {
		Description string      `json:"description"`
		Extends     string      `json:"extends"`
		Without     []fileDrop  `json:"without"`
		Default     *fileAction `json:"default"`
		Groups      []fileGroup `json:"groups"`
	}
	fileDrop struct {
		Group  string `json:"group"`
		Reason string `json:"reason"`
	}
	fileAction struct {
		Action string `json:"action"`
		Errno  string `json:"errno"`
	}
	fileGroup struct {
		Name   string     `json:"name"`
		Reason string     `json:"reason"`
		Rules  []fileRule `json:"rules"`
	}
	fileRule struct {
		Syscalls []string   `json:"syscalls"`
		Arch     []string   `json:"arch"`
		When     []fileCond `json:"when"`
		fileAction
	}
	fileCond struct {
		Arg    int      `json:"arg"`
		Bits   int      `json:"bits"`
		Mask   string   `json:"mask"`
		Op     string   `json:"op"`
		Values []string `json:"values"`
	}
)

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)

// maxFile bounds what is read of a profile, in bytes.
const maxFile = 1 << 20

// Load reads seccomp/NAME.json from fsys, and the profile it extends. Every
// mistake in the text is reported; the error then wraps ErrInvalid.
func Load(fsys fs.FS, name string) (*Profile, error) {
	return load(fsys, name, true)
}

func load(fsys fs.FS, name string, mayExtend bool) (*Profile, error) {
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("seccomp profile name %q: want [a-z0-9_-]: %w", name, ErrInvalid)
	}
	f, err := fsys.Open("seccomp/" + name + ".json")
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %q: %w", name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %q: %w", name, err)
	}
	base := func(string) (*Profile, error) {
		return nil, fmt.Errorf("it is extended itself, so it cannot extend: %w", ErrInvalid)
	}
	if mayExtend {
		base = func(n string) (*Profile, error) { return load(fsys, n, false) }
	}
	p, err := parse(text, base)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %q: %w", name, err)
	}
	p.Name = name
	return p, nil
}

// parse checks text; base gives the profile it extends.
func parse(text []byte, base func(name string) (*Profile, error)) (*Profile, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes: %w", maxFile, ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var w fileProfile
	if err := dec.Decode(&w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("text after the profile: %w", ErrInvalid)
	}
	var errs problems
	p := &Profile{Description: w.Description}
	for _, g := range w.Groups {
		p.Groups = append(p.Groups, convertGroup(g, &errs))
	}
	checkReach(p.Groups, &errs)
	switch {
	case w.Extends == "" && w.Default == nil:
		errs.add("default: required")
	case w.Extends == "":
		p.Default = convertAction(*w.Default, "default", &errs)
		if p.Default == Allow {
			errs.add("default: a profile is an allow-list, its default cannot be allow")
		}
		if len(w.Without) != 0 {
			errs.add("without: only with extends")
		}
	case w.Default != nil:
		errs.add("default: comes from %q, which this profile extends", w.Extends)
	default:
		b, err := base(w.Extends)
		if err != nil {
			return nil, fmt.Errorf("extends %q: %w", w.Extends, err)
		}
		p.Default = b.Default
		p.Groups = append(p.Groups, remaining(b.Groups, w.Without, &errs)...)
	}
	checkNames(p.Groups, &errs)
	if len(errs.list) != 0 {
		return nil, errors.Join(errs.list...)
	}
	return p, nil
}

type problems struct{ list []error }

func (p *problems) add(format string, args ...any) {
	p.list = append(p.list, fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...)))
}

func convertGroup(w fileGroup, errs *problems) Group {
	g := Group{Name: w.Name, Reason: w.Reason}
	if !nameForm.MatchString(w.Name) {
		errs.add("group name %q: want [a-z0-9_-]", w.Name)
	}
	if w.Reason == "" {
		errs.add("group %q: a reason is required", w.Name)
	}
	for i, r := range w.Rules {
		g.Rules = append(g.Rules, convertRule(r, fmt.Sprintf("group %q rule %d", w.Name, i), errs))
	}
	return g
}

func convertRule(w fileRule, where string, errs *problems) Rule {
	r := Rule{Syscalls: w.Syscalls, Arch: w.Arch}
	if w.Action == "" && w.Errno == "" {
		w.Action = "allow"
	}
	r.Action = convertAction(w.fileAction, where, errs)
	if len(w.Syscalls) == 0 {
		errs.add("%s: names no system call", where)
	}
	archs := w.Arch
	for _, a := range archs {
		if !slices.Contains(Architectures, a) {
			errs.add("%s: unknown architecture %q", where, a)
			return r
		}
	}
	if len(archs) == 0 {
		archs = Architectures
	}
	for _, name := range w.Syscalls {
		for _, a := range archs {
			if _, ok := Number(a, name); !ok {
				errs.add("%s: %s has no system call %q; name the architectures that have it in \"arch\"", where, a, name)
			}
		}
	}
	for i, c := range w.When {
		r.When = append(r.When, convertCond(c, fmt.Sprintf("%s condition %d", where, i), errs))
	}
	return r
}

func convertCond(w fileCond, where string, errs *problems) Cond {
	c := Cond{Arg: w.Arg, Bits: w.Bits, Not: w.Op == "not_in"}
	if w.Arg < 0 || w.Arg > 5 {
		errs.add("%s: arg %d: want 0 to 5", where, w.Arg)
	}
	if w.Bits != 32 && w.Bits != 64 {
		errs.add("%s: bits %d: want 32 or 64", where, w.Bits)
		return c
	}
	if w.Op != "in" && w.Op != "not_in" {
		errs.add("%s: op %q: want in or not_in", where, w.Op)
	}
	all := ^uint64(0) >> (64 - w.Bits)
	c.Mask = all
	if w.Mask != "" {
		m, err := parseValue(w.Mask, w.Bits)
		if err != nil || m == 0 {
			errs.add("%s: mask %q: want bits to look at (%v)", where, w.Mask, err)
		}
		c.Mask = m
	}
	if len(w.Values) == 0 || len(w.Values) > maxValues {
		errs.add("%s: want 1 to %d values", where, maxValues)
	}
	for _, s := range w.Values {
		v, err := parseValue(s, w.Bits)
		switch {
		case err != nil:
			errs.add("%s: value %q: %v", where, s, err)
		case v&^c.Mask != 0:
			errs.add("%s: value %q has bits outside the mask and would never match", where, s)
		case slices.Contains(c.Values, v):
			errs.add("%s: value %q is there twice", where, s)
		}
		c.Values = append(c.Values, v)
	}
	return c
}

// maxValues keeps a condition within the reach of one conditional jump: a
// comparison is at most 6 instructions.
const maxValues = 40

func convertAction(w fileAction, where string, errs *problems) Action {
	if w.Action != "errno" && w.Errno != "" {
		errs.add("%s: errno is only for action errno", where)
	}
	switch w.Action {
	case "allow":
		return Allow
	case "kill_process":
		return KillProcess
	case "errno":
		if a, ok := errnoNamed(w.Errno); ok {
			return a
		}
		errs.add("%s: errno %q is not known", where, w.Errno)
	default:
		errs.add("%s: action %q: want allow, errno or kill_process", where, w.Action)
	}
	return KillProcess
}

// checkReach refuses a rule behind one that decides every call.
func checkReach(groups []Group, errs *problems) {
	closed := map[string]string{} // arch/syscall -> group that decided it
	for _, g := range groups {
		for _, r := range g.Rules {
			archs := r.Arch
			if len(archs) == 0 {
				archs = Architectures
			}
			for _, name := range r.Syscalls {
				for _, a := range archs {
					key := a + "/" + name
					if by, ok := closed[key]; ok {
						errs.add("group %q: %s is never reached, group %q decides it", g.Name, key, by)
					} else if len(r.When) == 0 {
						closed[key] = g.Name
					}
				}
			}
		}
	}
}

func checkNames(groups []Group, errs *problems) {
	seen := map[string]bool{}
	for _, g := range groups {
		if seen[g.Name] {
			errs.add("group %q is there twice", g.Name)
		}
		seen[g.Name] = true
	}
}

// remaining is groups without the dropped ones.
func remaining(groups []Group, drop []fileDrop, errs *problems) []Group {
	gone := map[string]bool{}
	for _, d := range drop {
		if !slices.ContainsFunc(groups, func(g Group) bool { return g.Name == d.Group }) {
			errs.add("without: there is no group %q", d.Group)
		}
		if d.Reason == "" {
			errs.add("without %q: a reason is required", d.Group)
		}
		gone[d.Group] = true
	}
	var out []Group
	for _, g := range groups {
		if !gone[g.Name] {
			out = append(out, g)
		}
	}
	return out
}
