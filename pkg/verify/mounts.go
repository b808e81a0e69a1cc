package verify

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// mountInfo is one line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
type mountInfo struct {
	id      uint64
	root    string // the part of the file system that is shown
	target  string
	options []string // of the mount: ro, nosuid, ...
	shared  []string // propagation: shared:N, master:N
	fstype  string
	source  string
	super   []string // of the file system
}

// parseMountInfo reads the whole table. A line that is not understood is an
// error: what it says might be a mount nobody expects.
func parseMountInfo(text string) ([]mountInfo, error) {
	var out []mountInfo
	for line := range strings.Lines(text) {
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %q: %w", clean(line), err)
		}
		out = append(out, m)
	}
	return out, nil
}

func parseMount(line string) (mountInfo, error) {
	f := strings.Split(line, " ")
	sep := slices.Index(f, "-")
	if sep < 6 || len(f) != sep+4 {
		return mountInfo{}, errors.New("wrong number of fields")
	}
	for _, i := range []int{3, 4, sep + 1, sep + 2} {
		var err error
		if f[i], err = unescape(f[i]); err != nil {
			return mountInfo{}, err
		}
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return mountInfo{}, errors.New("the id is not a number")
	}
	return mountInfo{
		id:      id,
		root:    f[3],
		target:  f[4],
		options: strings.Split(f[5], ","),
		shared:  f[6:sep],
		fstype:  f[sep+1],
		source:  f[sep+2],
		super:   strings.Split(f[sep+3], ","),
	}, nil
}

// unescape undoes the kernel's \ooo for space, tab, newline, backslash and #.
func unescape(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+4 > len(s) {
			return "", fmt.Errorf("escape at the end of %q", s)
		}
		c, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			return "", fmt.Errorf("escape in %q: %w", s, err)
		}
		b.WriteByte(byte(c))
		i += 3
	}
	return b.String(), nil
}

func readMounts(r *report, p *proc, e Expect) {
	text, err := p.read("mountinfo")
	var table []mountInfo
	if err == nil {
		table, err = parseMountInfo(text)
	}
	r.within(err, func() {
		rest := slices.Clone(table)
		for _, want := range e.Mounts {
			// The last of several on one point is the one that is seen; the
			// others stay in rest and are unexpected.
			i := lastMount(rest, want.Target)
			observed, ok := "not mounted", false
			if i >= 0 {
				observed, ok = rest[i].describe(want), rest[i].satisfies(want)
				if want.named() {
					what, same := p.mounted(rest[i].id, want)
					observed, ok = observed+" "+what, ok && same
				}
				rest = slices.Delete(rest, i, i+1)
			}
			r.add("mount."+want.Target, want.String(), observed, ok)
		}
		if e.ClosedMounts {
			r.check("mounts.closed", "no other mount", others(rest))
		}
		r.check("mounts.private", "no mount shares events with another namespace", propagating(table))
	})
}

func lastMount(table []mountInfo, target string) int {
	for i, m := range slices.Backward(table) {
		if m.target == target {
			return i
		}
	}
	return -1
}

func (m mountInfo) satisfies(want Mount) bool {
	switch {
	case want.FSType != "" && m.fstype != want.FSType,
		want.Source != "" && m.source != want.Source,
		want.Root != "" && m.root != want.Root,
		want.Writable && slices.Contains(m.options, "ro"),
		want.Size != 0 && m.size("size") != want.Size,
		want.Inodes != 0 && m.size("nr_inodes") != want.Inodes:
		return false
	}
	for _, flag := range want.Flags {
		if !slices.Contains(m.options, flag) {
			return false
		}
	}
	return true
}

// size is a number of the file system's options, 0 when there is none.
func (m mountInfo) size(option string) uint64 {
	for _, o := range m.super {
		s, ok := strings.CutPrefix(o, option+"=")
		if !ok {
			continue
		}
		shift := 0
		for unit, n := range map[string]int{"k": 10, "m": 20, "g": 30} {
			if t, ok := strings.CutSuffix(s, unit); ok {
				s, shift = t, n
			}
		}
		v, err := strconv.ParseUint(s, 10, 64-shift)
		if err != nil {
			return 0
		}
		return v << shift
	}
	return 0
}

// String is what is expected, in the form of describe.
func (w Mount) String() string {
	var out []string
	for _, s := range []string{w.FSType, w.Source, w.Root} {
		if s != "" {
			out = append(out, s)
		}
	}
	flags := w.Flags
	if w.Writable {
		flags = append([]string{"rw"}, flags...)
	}
	if len(flags) != 0 {
		out = append(out, strings.Join(flags, ","))
	}
	if w.Size != 0 {
		out = append(out, fmt.Sprintf("size %d", w.Size))
	}
	if w.Inodes != 0 {
		out = append(out, fmt.Sprintf("inodes %d", w.Inodes))
	}
	if w.named() {
		out = append(out, w.object())
	}
	return strings.Join(out, " ")
}

// describe says of the mount what the expectation is about.
func (m mountInfo) describe(want Mount) string {
	out := []string{m.fstype}
	if want.Source != "" {
		out = append(out, m.source)
	}
	if want.Root != "" {
		out = append(out, m.root)
	}
	out = append(out, strings.Join(m.options, ","))
	if want.Size != 0 {
		out = append(out, fmt.Sprintf("size %d", m.size("size")))
	}
	if want.Inodes != 0 {
		out = append(out, fmt.Sprintf("inodes %d", m.size("nr_inodes")))
	}
	return strings.Join(out, " ")
}

func others(rest []mountInfo) string {
	if len(rest) == 0 {
		return "no other mount"
	}
	var out []string
	for _, m := range rest {
		out = append(out, fmt.Sprintf("%s on %s", m.fstype, m.target))
	}
	return strings.Join(out, "; ")
}

func propagating(table []mountInfo) string {
	var out []string
	for _, m := range table {
		for _, s := range m.shared {
			if strings.HasPrefix(s, "shared:") || strings.HasPrefix(s, "master:") {
				out = append(out, m.target+" "+s)
			}
		}
	}
	if len(out) == 0 {
		return "no mount shares events with another namespace"
	}
	return strings.Join(out, "; ")
}
