package imagebuild

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
)

// source is one APT source, for one URI and one suite.
type source struct {
	uri, suite, signedBy string
}

func (s source) line() string {
	if s.signedBy != "" {
		return fmt.Sprintf("deb [signed-by=%s] %s %s main", s.signedBy, s.uri, s.suite)
	}
	return fmt.Sprintf("deb %s %s main", s.uri, s.suite)
}

// sourceLines are the lines mmdebstrap gets: the caller's mirrors, else this
// host's own sources, so that no mirror is built in.
func sourceLines(opts Options) ([]string, error) {
	if len(opts.Mirrors) > 0 {
		return mirrorLines(opts.Mirrors, opts.Suite)
	}
	all, err := hostSources(os.DirFS("/etc/apt"))
	if err != nil {
		return nil, err
	}
	lines := forSuite(all, opts.Suite, codename(os.DirFS("/etc")))
	if len(lines) == 0 {
		return nil, fmt.Errorf("no source for Debian %s in /etc/apt; name one with --mirror URL", opts.Suite)
	}
	return lines, nil
}

func mirrorLines(mirrors []string, suite string) ([]string, error) {
	var lines []string
	for _, m := range mirrors {
		if strings.ContainsAny(m, "\n\r\x00") {
			return nil, fmt.Errorf("mirror %q holds a line break", m)
		}
		if strings.HasPrefix(m, "deb ") {
			lines = append(lines, m)
			continue
		}
		if u, err := url.Parse(m); err != nil || !u.IsAbs() || strings.ContainsAny(m, " \t[]") {
			return nil, fmt.Errorf("mirror %q is neither a URL nor a line that begins with \"deb \"", m)
		}
		lines = append(lines, source{uri: m, suite: suite}.line())
	}
	return lines, nil
}

// forSuite picks the sources of a release with its updates and security. A
// host that runs another release serves this one from the same archives, so
// its own release's sources are taken with the name changed.
func forSuite(all []source, suite, host string) []string {
	pick := func(from string) (lines []string) {
		for _, s := range all {
			rest, ok := strings.CutPrefix(s.suite, from)
			if !ok || !slices.Contains([]string{"", "-updates", "-security"}, rest) {
				continue
			}
			s.suite = suite + rest
			if l := s.line(); !slices.Contains(lines, l) {
				lines = append(lines, l)
			}
		}
		return lines
	}
	if lines := pick(suite); len(lines) > 0 || host == "" {
		return lines
	}
	return pick(host)
}

// codename is VERSION_CODENAME of a Debian host, else "".
func codename(etc fs.FS) string {
	b, err := fs.ReadFile(etc, "os-release")
	if err != nil {
		return ""
	}
	vars := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		vars[k] = strings.Trim(v, `"'`)
	}
	if vars["ID"] != "debian" {
		return ""
	}
	return vars["VERSION_CODENAME"]
}

// hostSources reads both forms of APT's source files (sources.list(5)).
func hostSources(apt fs.FS) ([]source, error) {
	names, err := fs.Glob(apt, "sources.list.d/*")
	if err != nil {
		return nil, err
	}
	var all []source
	for _, name := range append([]string{"sources.list"}, names...) {
		b, err := fs.ReadFile(apt, name)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
			continue // none, or one with credentials that are not this user's
		case err != nil:
			return nil, fmt.Errorf("APT sources: %w", err)
		case path.Ext(name) == ".list":
			all = append(all, parseList(b)...)
		case path.Ext(name) == ".sources":
			all = append(all, parseDeb822(b)...)
		}
	}
	return all, nil
}

// parseList reads one-line sources: deb [options] uri suite component...
func parseList(b []byte) []source {
	var all []source
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		var s source
		if opts, after, ok := strings.Cut(strings.TrimSpace(rest), "]"); ok && strings.HasPrefix(opts, "[") {
			rest = after
			for o := range strings.FieldsSeq(opts[1:]) {
				if v, ok := strings.CutPrefix(strings.ToLower(o), "signed-by="); ok {
					s.signedBy = o[len(o)-len(v):]
				}
			}
		}
		f := strings.Fields(rest)
		if len(f) < 3 || !slices.Contains(f[2:], "main") || !usable(f[0]) {
			continue
		}
		s.uri, s.suite = f[0], f[1]
		all = append(all, s)
	}
	return all
}

// parseDeb822 reads stanzas of "Field: value" lines.
func parseDeb822(b []byte) []source {
	var all []source
	stanza := map[string]string{}
	last := ""
	flush := func() {
		all = append(all, stanzaSources(stanza)...)
		stanza, last = map[string]string{}, ""
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := sc.Text()
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			stanza[last] += "\n" + strings.TrimSpace(line)
		default:
			k, v, _ := strings.Cut(line, ":")
			last = strings.ToLower(k)
			stanza[last] = strings.TrimSpace(v)
		}
	}
	flush()
	return all
}

func stanzaSources(st map[string]string) []source {
	if !slices.Contains(strings.Fields(st["types"]), "deb") ||
		!slices.Contains(strings.Fields(st["components"]), "main") ||
		strings.EqualFold(st["enabled"], "no") {
		return nil
	}
	signedBy := st["signed-by"]
	if !strings.HasPrefix(signedBy, "/") || strings.ContainsAny(signedBy, " ,\n") {
		signedBy = "" // a key in place, or several: left to the host's trusted keys
	}
	var all []source
	for uri := range strings.FieldsSeq(st["uris"]) {
		for suite := range strings.FieldsSeq(st["suites"]) {
			if usable(uri) {
				all = append(all, source{uri: uri, suite: suite, signedBy: signedBy})
			}
		}
	}
	return all
}

// usable leaves out media that need a person or a file of the host's.
func usable(uri string) bool {
	return strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://") || strings.HasPrefix(uri, "file:")
}
