package imagepull

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/creel-sandbox/creel/pkg/api"
)

// maxAuthFile bounds a file with credentials.
const maxAuthFile = 1 << 20

// Cred is what to present to a registry. The zero value is nothing.
type Cred struct {
	Username, Password string
	// IdentityToken is exchanged for an access token, RegistryToken is one.
	IdentityToken, RegistryToken string
	// Source is the file that it is from, or that named the program.
	Source string
}

func (c Cred) empty() bool {
	return (c.Username == "" || c.Password == "") && c.IdentityToken == "" && c.RegistryToken == ""
}

// String does not tell secrets, whatever prints it.
func (c Cred) String() string { return "credentials from " + c.Source }

// GoString is String, for %#v.
func (c Cred) GoString() string { return c.String() }

func (c Cred) auth() authn.Authenticator {
	if c.empty() {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	})
}

// Credentials finds what to present for a repository ("library/debian" of
// "docker.io"). explicit, or else $REGISTRY_AUTH_FILE, is the one file to look
// in; without either the first of these that has an entry counts, as for
// podman(1) and docker(1):
//
//	$XDG_RUNTIME_DIR/containers/auth.json, or /run/containers/UID/auth.json
//	$XDG_CONFIG_HOME/containers/auth.json, or ~/.config/containers/auth.json
//	$DOCKER_CONFIG/config.json, or ~/.docker/config.json
//
// An entry's key is a registry, or, more specific and so first, a registry and
// the beginning of a repository's path (containers-auth.json(5)). Where a file
// names a credential helper, the program docker-credential-NAME is run as the
// caller; see helper. No entry anywhere is no error: most images are public.
// A file or helper that fails is one, for then it is not known whether there
// is an entry.
func Credentials(ctx context.Context, registry, path, explicit string) (Cred, error) {
	files := []string{explicit}
	if explicit == "" {
		files = []string{os.Getenv("REGISTRY_AUTH_FILE")}
	}
	must := files[0] != ""
	if !must {
		files = usualFiles()
	}
	for _, file := range files {
		f, err := readAuthFile(file)
		if errors.Is(err, fs.ErrNotExist) && !must {
			continue
		}
		if err != nil {
			return Cred{}, err
		}
		c, err := f.find(ctx, registry, path)
		if err != nil {
			return Cred{}, fmt.Errorf("%s: %w", file, err)
		}
		if !c.empty() {
			c.Source = file
			return c, nil
		}
	}
	return Cred{}, nil
}

func usualFiles() []string {
	run, config, docker := os.Getenv("XDG_RUNTIME_DIR"), os.Getenv("XDG_CONFIG_HOME"), os.Getenv("DOCKER_CONFIG")
	if run == "" {
		run = "/run/containers/" + strconv.Itoa(os.Geteuid())
	} else {
		run += "/containers"
	}
	if home, err := os.UserHomeDir(); err == nil {
		if config == "" {
			config = filepath.Join(home, ".config")
		}
		if docker == "" {
			docker = filepath.Join(home, ".docker")
		}
	}
	files := []string{filepath.Join(run, "auth.json")}
	if config != "" {
		files = append(files, filepath.Join(config, "containers", "auth.json"))
	}
	if docker != "" {
		files = append(files, filepath.Join(docker, "config.json"))
	}
	return files
}

// authFile is the part of containers-auth.json(5), and of Docker's
// config.json, that is used.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func readAuthFile(name string) (*authFile, error) {
	in, err := os.Open(name) //nolint:gosec // the caller's own environment names it
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }()
	b, err := io.ReadAll(io.LimitReader(in, maxAuthFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxAuthFile {
		return nil, api.Errorf(api.CodeTooLarge, "%s: larger than %d bytes", name, maxAuthFile)
	}
	return parseAuthFile(name, b)
}

// parseAuthFile reads a file. What encoding/json says of a mistake may quote
// the file, so it is told by its place alone.
func parseAuthFile(name string, b []byte) (*authFile, error) {
	var f authFile
	err := json.Unmarshal(b, &f)
	if err == nil {
		return &f, nil
	}
	where := ""
	if se, ok := errors.AsType[*json.SyntaxError](err); ok {
		where = fmt.Sprintf(", byte %d", se.Offset)
	}
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		where = fmt.Sprintf(", byte %d", te.Offset)
	}
	return nil, api.Errorf(api.CodeInvalid, "%s%s: not in the form of containers-auth.json(5) or Docker's config.json", name, where)
}

// find gives a file's entry for a repository. A helper that is named for the
// registry goes before entries, and one for all registries after them.
func (f *authFile) find(ctx context.Context, registry, path string) (Cred, error) {
	registry = dockerHub(registry)
	if prog, _, ok := match(f.CredHelpers, registry, ""); ok && prog != "" {
		if c, err := helper(ctx, prog, registry); err != nil || !c.empty() {
			return c, err
		}
	}
	if e, key, ok := match(f.Auths, registry, path); ok && e != (authEntry{}) {
		c, err := e.cred()
		if err != nil {
			return c, fmt.Errorf("auths[%q]: %w", key, err)
		}
		if !c.empty() {
			return c, nil
		}
	}
	if f.CredsStore == "" {
		return Cred{}, nil
	}
	return helper(ctx, f.CredsStore, registry)
}

// match finds the most specific key for a repository.
func match[V any](m map[string]V, registry, path string) (v V, key string, ok bool) {
	keys := slices.Sorted(maps.Keys(m)) // of keys that mean the same, always the same one
	want := strings.TrimSuffix(registry+"/"+path, "/")
	for len(want) >= len(registry) {
		if v, ok := m[want]; ok {
			return v, want, true
		}
		for _, k := range keys {
			if keyOf(k) == want {
				return m[k], k, true
			}
		}
		i := strings.LastIndexByte(want, '/')
		if i < 0 {
			break
		}
		want = want[:i]
	}
	return v, "", false
}

// keyOf is what a key means. Docker's have a scheme, and Docker Hub's a path
// that names no repository ("https://index.docker.io/v1/").
func keyOf(k string) string {
	host, schemed := strings.CutPrefix(k, "https://")
	if !schemed {
		host, schemed = strings.CutPrefix(k, "http://")
	}
	host, path, _ := strings.Cut(host, "/")
	path = strings.TrimSuffix(path, "/")
	if schemed || path == "v1" || path == "v2" {
		path = ""
	}
	return strings.TrimSuffix(dockerHub(host)+"/"+path, "/")
}

// dockerHub gives Docker Hub one name.
func dockerHub(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// cred decodes an entry. No error tells what is in it.
func (e authEntry) cred() (Cred, error) {
	c := Cred{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth == "" {
		return c, nil
	}
	b, err := base64.StdEncoding.DecodeString(e.Auth)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(e.Auth)
	}
	user, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return Cred{}, errors.New("its auth is not base64 of NAME:PASSWORD")
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	return c, nil
}
