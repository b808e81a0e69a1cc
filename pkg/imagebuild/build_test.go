package imagebuild

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const deb822 = `Types: deb deb-src
# a comment
URIs: https://mirror.example/debian
Suites: trixie trixie-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: https://security.example/debian
Suites: trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .

Types: deb
URIs: https://other.example/x
Suites: trixie
Components: main
Enabled: no

Types: deb
URIs: https://vendor.example/x
Suites: stable
Components: main
`

func TestHostSources(t *testing.T) {
	apt := fstest.MapFS{
		"sources.list":                  {Data: []byte("# nothing\ndeb cdrom:[Debian]/ trixie main\ndeb-src https://a.example trixie main\n")},
		"sources.list.d/debian.sources": {Data: []byte(deb822)},
		"sources.list.d/old.list":       {Data: []byte("deb [arch=amd64 signed-by=/K.gpg] https://old.example/debian trixie main non-free # why\ndeb https://no-main.example trixie contrib\n")},
		"sources.list.d/x.bak":          {Data: []byte("deb https://bak.example trixie main\n")},
	}
	all, err := hostSources(apt)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"deb [signed-by=/usr/share/keyrings/debian.gpg] https://mirror.example/debian trixie main",
		"deb [signed-by=/usr/share/keyrings/debian.gpg] https://mirror.example/debian trixie-updates main",
		"deb https://security.example/debian trixie-security main",
		"deb [signed-by=/K.gpg] https://old.example/debian trixie main",
	}
	if diff := cmp.Diff(want, forSuite(all, "trixie", "")); diff != "" {
		t.Errorf("for the host's own release (-want +got):\n%s", diff)
	}
	for i := range want {
		want[i] = strings.Replace(want[i], " trixie", " bookworm", 1)
	}
	if diff := cmp.Diff(want, forSuite(all, "bookworm", "trixie")); diff != "" {
		t.Errorf("for another release (-want +got):\n%s", diff)
	}
	if got := forSuite(all, "bookworm", ""); got != nil {
		t.Errorf("on a host that is not Debian: %v", got)
	}
}

func TestCodename(t *testing.T) {
	for text, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=trixie\n": "trixie",
		"ID=\"debian\"\nVERSION_CODENAME='x'":  "x",
		"ID=ubuntu\nVERSION_CODENAME=noble\n":  "",
		"":                                     "",
	} {
		if got := codename(fstest.MapFS{"os-release": {Data: []byte(text)}}); got != want {
			t.Errorf("codename(%q) = %q, want %q", text, got, want)
		}
	}
	if got := codename(fstest.MapFS{}); got != "" {
		t.Errorf("codename without os-release = %q", got)
	}
}

func TestMirrorLines(t *testing.T) {
	got, err := mirrorLines([]string{"https://m.example/debian", "deb [trusted=no] https://s.example x-security main"}, "trixie")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"deb https://m.example/debian trixie main", "deb [trusted=no] https://s.example x-security main"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "m.example", "https://m.example/ x", "deb https://a x main\ndeb https://b y main", "--help"} {
		if _, err := mirrorLines([]string{bad}, "trixie"); err == nil {
			t.Errorf("mirror %q is accepted", bad)
		}
	}
}

func TestOptions(t *testing.T) {
	bad := Options{Suite: "--hook=x", Packages: []string{"ok", "-x", "a,b", "?essential", ""}, Arch: "riscv64"}
	err := bad.fill()
	if err == nil {
		t.Fatal("they are accepted")
	}
	for _, want := range []string{`"--hook=x"`, `"-x"`, `"a,b"`, `"?essential"`, `""`, `"riscv64"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), `"ok"`) {
		t.Errorf("error %q names a good package", err)
	}
	var base Options
	if err := base.fill(); err != nil || base.Ref != "base" || base.Suite != DefaultSuite {
		t.Errorf("the zero value: %+v, %v", base, err)
	}
	args := bootstrapArgs(base, false, []string{"deb https://m.example x main"})
	if !slices.Contains(args, "--mode=unshare") || slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, "hook") }) {
		t.Errorf("arguments = %q", args)
	}
	if env := bootstrapEnv(Options{Epoch: time.Unix(5, 0)}); !slices.Contains(env, "SOURCE_DATE_EPOCH=5") {
		t.Errorf("environment = %q", env)
	}
}

// TestExtra: packages that are asked for come on top of the recipe's.
func TestExtra(t *testing.T) {
	o := Options{Extra: []string{"apt", "npm"}}
	if err := o.fill(); err != nil || len(o.Packages) != len(basePackages)+2 || !slices.Contains(o.Packages, "apt") || slices.Contains(basePackages, "apt") {
		t.Errorf("packages %q, %v", o.Packages, err)
	}
	o = Options{Extra: []string{"--hook=x"}}
	if err := o.fill(); err == nil || !strings.Contains(err.Error(), "not a Debian package name") {
		t.Errorf("an option as a package: %v", err)
	}
}

func TestRecipes(t *testing.T) {
	if diff := cmp.Diff([]string{"base", "dev"}, Recipes()); diff != "" {
		t.Fatalf("recipes (-want +got):\n%s", diff)
	}
	promised := map[string][]string{
		"base": {"bash", "coreutils", "git", "curl", "jq", "ripgrep", "python3", "python3-venv", "python3-pip", "openssh-client", "ca-certificates", "tzdata"},
		"dev":  {"nodejs", "npm", "build-essential", "chromium", "fonts-liberation"},
	}
	promised["dev"] = append(promised["dev"], promised["base"]...) // all of base
	for name, want := range promised {
		o := Options{Recipe: name}
		if err := o.fill(); err != nil || o.Ref != name {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
		for _, p := range want {
			if !slices.Contains(o.Packages, p) {
				t.Errorf("%s lacks %s", name, p)
			}
		}
		if all := slices.Sorted(slices.Values(o.Packages)); len(slices.Compact(all)) != len(o.Packages) {
			t.Errorf("%s has a package twice: %q", name, all)
		}
	}
	bad := Options{Recipe: "../dev"}
	if err := bad.fill(); err == nil || !strings.Contains(err.Error(), "base, dev") {
		t.Errorf("an unknown recipe: %v", err)
	}
}

// TestRecipeFiles: what a recipe adds is root's, and only where a package has
// made room for it.
func TestRecipeFiles(t *testing.T) {
	files := recipes["dev"].files
	rest := []file{dir("etc"), {name: "etc/passwd"}}
	var out bytes.Buffer
	if _, _, err := rewrite(t.Context(), bytes.NewReader(makeTar(t, append(rest, dir("etc/chromium.d"))...)), &out, testEpoch, files); err != nil {
		t.Fatal(err)
	}
	headers, bodies, _ := readTar(t, out.Bytes())
	if h := headers["etc/chromium.d/creel"]; h == nil || h.Uid != 0 || h.Mode != 0o644 || !strings.Contains(bodies["etc/chromium.d/creel"], "--no-sandbox") {
		t.Errorf("the file is %+v: %q", h, bodies["etc/chromium.d/creel"])
	}
	if _, _, err := rewrite(t.Context(), bytes.NewReader(makeTar(t, rest...)), &out, testEpoch, files); err == nil {
		t.Error("without its directory it is written")
	}
}

func TestUnnamedTempLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := unnamedTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 0 {
		t.Errorf("files in the directory: %v, %v", names, err)
	}
	if _, err := unnamedTemp(filepath.Join(dir, "none")); err == nil {
		t.Error("a directory that is not there is accepted")
	}
}

func TestArchive(t *testing.T) {
	started := time.Now()
	packaged := time.Unix(1_650_000_000, 0)
	raw, err := os.CreateTemp(t.TempDir(), "raw")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	system := makeTar(t, dir("etc"), file{name: "etc/passwd"}, dir("var"), dir("var/lib"), dir("var/lib/dpkg"),
		file{name: "var/lib/dpkg/status", body: "Package: jq\nStatus: install ok installed\nVersion: 1.7-1\n"}, file{name: "packaged", when: packaged}, file{name: "generated", when: started.Add(time.Second)})
	if _, err := raw.Write(system); err != nil {
		t.Fatal(err)
	}
	opts := Options{Ref: "example.org/base:1"}
	if err := opts.fill(); err != nil {
		t.Fatal(err)
	}
	b := builder{opts: opts, raw: raw, started: started}
	var out, again bytes.Buffer
	res, err := b.archive(t.Context(), &out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.archive(t.Context(), &again); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Errorf("the second archive differs: %v", err)
	}
	_, bodies, _ := readTar(t, out.Bytes())
	var index v1.Index
	var manifest v1.Manifest
	var config v1.Image
	for name, body := range bodies {
		if sum, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if got := sha256.Sum256([]byte(body)); hex.EncodeToString(got[:]) != sum {
				t.Errorf("%s holds something else", name)
			}
		}
	}
	read := func(name string, v any) {
		t.Helper()
		if err := json.Unmarshal([]byte(bodies[name]), v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	read("index.json", &index)
	d := index.Manifests[0]
	if d.Digest.String() != res.Digest || d.Annotations[v1.AnnotationRefName] != opts.Ref || d.Annotations[fullNameAnnotation] != opts.Ref {
		t.Errorf("index = %+v", d)
	}
	read("blobs/sha256/"+d.Digest.Encoded(), &manifest)
	read("blobs/sha256/"+manifest.Config.Digest.Encoded(), &config)
	if config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest || !config.Created.Equal(packaged) {
		t.Errorf("configuration = %+v", config)
	}
	if c := config.Config; c.User != "" || len(c.Env)+len(c.Entrypoint)+len(c.Cmd)+len(c.Labels) != 0 {
		t.Errorf("the configuration asks for something: %+v", c)
	}
	if got := manifest.Annotations["io.creel.packages"]; got != "jq 1.7-1" {
		t.Errorf("packages = %q", got)
	}
	layer := bodies["blobs/sha256/"+manifest.Layers[0].Digest.Encoded()]
	if int64(len(layer)) != res.Size || res.Size != manifest.Layers[0].Size {
		t.Errorf("layer of %d bytes, result %d, manifest %d", len(layer), res.Size, manifest.Layers[0].Size)
	}
	headers, _, _ := readTar(t, []byte(layer))
	if got := headers["generated"].ModTime; !got.Equal(packaged) {
		t.Errorf("a generated file has time %v, want the newest packaged one's", got)
	}
}

func TestRelayKeepsTheLastLines(t *testing.T) {
	var steps []string
	last := relay(strings.NewReader("I: one\nW: careful\n\nI: two\nE: no\n"+strings.Repeat("x\n", 3)), func(s string) { steps = append(steps, s) })
	if diff := cmp.Diff([]string{"one", "two"}, steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"I: two", "E: no", "x", "x", "x"}, last); diff != "" {
		t.Errorf("last lines (-want +got):\n%s", diff)
	}
}
