package preset

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Clients are the package managers that Of knows.
func Clients() []string { return []string{"apt", "cargo", "go", "npm", "pip"} }

// Box is where the configuration of a box's package managers is.
type Box struct {
	Root string // "/" but in tests
	Home string
	// Run asks a client, and gives what it prints.
	Run func(ctx context.Context, name string, args ...string) (string, error)
}

// Here is this box, as its user's clients see it.
func Here() Box {
	home, _ := os.UserHomeDir() // without one there is nothing in it
	return Box{Root: "/", Home: home, Run: run}
}

// run starts a client of the user's.
func run(ctx context.Context, name string, args ...string) (string, error) {
	const most = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/" // not in a directory that an agent wrote: clients read, and Python runs, what is there
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// Of is the preset of a package manager: the hosts that its client on this box is
// configured for. A registry may send clients to others for files; what is refused
// then says which.
func (b Box) Of(ctx context.Context, client string) (*Preset, error) {
	var found []string
	var from string
	var err error
	switch client {
	case "apt":
		found, from, err = b.apt()
	case "npm":
		from = "npm config get registry"
		found, err = b.ask(ctx, "npm", "config", "get", "registry")
	case "go":
		from = "go env GOPROXY GOSUMDB"
		found, err = b.goproxy(ctx)
	case "pip":
		found, from, err = b.pip(ctx)
	case "cargo":
		found, from, err = b.cargo()
	default:
		return nil, fmt.Errorf("no package manager %.100q; there are %s", client, strings.Join(Clients(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("preset %s: %w", client, err)
	}
	p := &Preset{Name: client, Description: "what " + client + " on this box is configured for", Source: from}
	for _, u := range found {
		r, err := ruleFor(u)
		if err != nil {
			return nil, fmt.Errorf("preset %s: %w", client, err)
		}
		if !slices.Contains(p.Rules, r) {
			p.Rules = append(p.Rules, r)
		}
	}
	if len(p.Rules) == 0 {
		return nil, fmt.Errorf("preset %s: its client on this box is configured for no registry; name the host yourself, with --allow", client)
	}
	return p, p.check()
}

// ruleFor lets a client read what is below a URL.
func ruleFor(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return "", fmt.Errorf("%.200q is no address of a registry", text)
	}
	r := u.Hostname()
	if u.Scheme == "http" {
		r = "http " + r
	}
	if u.Port() != "" {
		r += ":" + u.Port()
	}
	if u.Scheme == "http" {
		r += " GET,HEAD"
	}
	return r, nil
}

func (b Box) ask(ctx context.Context, name string, args ...string) ([]string, error) {
	out, err := b.Run(ctx, name, args...)
	if err != nil {
		return nil, fmt.Errorf("%s on this box says nothing: %w", name, err)
	}
	if out == "" || out == "undefined" {
		return nil, nil
	}
	return strings.Fields(out), nil
}

// apt reads its lists of sources (sources.list(5)), in both forms.
func (b Box) apt() (found []string, from string, err error) {
	dir := filepath.Join(b.Root, "etc/apt")
	files := []string{filepath.Join(dir, "sources.list")}
	for _, pattern := range []string{"sources.list.d/*.list", "sources.list.d/*.sources"} {
		more, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, "", err
		}
		files = append(files, more...)
	}
	for _, name := range files {
		err := lines(name, func(line string) {
			words := strings.Fields(line)
			if len(words) == 0 || words[0] != "deb" && words[0] != "deb-src" && !strings.EqualFold(words[0], "URIs:") {
				return
			}
			for _, w := range words[1:] {
				if strings.HasPrefix(w, "http://") || strings.HasPrefix(w, "https://") {
					found = append(found, w)
				}
			}
		})
		if err != nil {
			return nil, "", err
		}
	}
	return found, dir, nil
}

// goproxy are the proxies and the checksum database (go.dev/ref/mod).
func (b Box) goproxy(ctx context.Context) (found []string, err error) {
	out, err := b.ask(ctx, "go", "env", "GOPROXY", "GOSUMDB")
	if err != nil {
		return nil, err
	}
	if len(out) > 0 {
		for p := range strings.FieldsFuncSeq(out[0], func(r rune) bool { return r == ',' || r == '|' }) {
			if p != "direct" && p != "off" {
				found = append(found, p)
			}
		}
	}
	if len(out) > 1 && out[1] != "off" {
		found = append(found, "https://"+strings.TrimPrefix(out[len(out)-1], "https://"))
	}
	return found, nil
}

// pip asks for the index that is configured, or else for its own.
func (b Box) pip(ctx context.Context) (found []string, from string, err error) {
	for _, key := range []string{"index-url", "extra-index-url"} {
		for _, section := range []string{"global", "install"} {
			out, err := b.Run(ctx, "python3", "-m", "pip", "config", "get", section+"."+key)
			if err == nil {
				found = append(found, strings.Fields(out)...)
			}
		}
	}
	if len(found) > 0 {
		return found, "pip config", nil
	}
	found, err = b.ask(ctx, "python3", "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)")
	return found, "pip's own index", err
}

// cargo reads where its registry is (doc.rust-lang.org/cargo/reference/config.html):
// cargo's own is in no file.
func (b Box) cargo() (found []string, from string, err error) {
	var c struct {
		Source map[string]struct {
			Registry string `toml:"registry"`
		} `toml:"source"`
		Registries map[string]struct {
			Index string `toml:"index"`
		} `toml:"registries"`
	}
	for _, name := range []string{"config.toml", "config"} {
		file := filepath.Join(b.Home, ".cargo", name)
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		if err := toml.Unmarshal(text, &c); err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		for _, s := range c.Source {
			found = append(found, s.Registry)
		}
		for _, r := range c.Registries {
			found = append(found, r.Index)
		}
		found = slices.DeleteFunc(found, func(s string) bool { return s == "" })
		for i := range found {
			found[i] = strings.TrimPrefix(found[i], "sparse+")
		}
		slices.Sort(found)
		return found, file, nil
	}
	return nil, "", nil
}

// lines reads a file that may not be there.
func lines(name string, fn func(string)) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for sc.Scan() {
		fn(strings.TrimSpace(sc.Text()))
	}
	return sc.Err()
}
