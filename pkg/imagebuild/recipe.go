package imagebuild

import (
	"maps"
	"slices"
)

// recipe is what an image has besides Debian's essential packages.
type recipe struct {
	packages []string
	files    []ownFile // of the image's own, after the packages'
}

// ownFile is a file that no package has.
type ownFile struct{ name, text string }

// basePackages are what agents need everywhere.
var basePackages = []string{
	"bash", "bzip2", "ca-certificates", "coreutils", "curl", "diffutils", "file",
	"findutils", "gawk", "git", "grep", "gzip", "jq", "less", "make",
	"openssh-client", "patch", "procps", "python3", "python3-pip", "python3-venv",
	"ripgrep", "sed", "tar", "tzdata", "unzip", "xz-utils",
}

// devPackages are what building software and looking at web pages needs beyond
// that. The fonts have every width a page asks for, and emoji.
var devPackages = []string{
	"build-essential", "chromium", "fontconfig", "fonts-dejavu-core", "fonts-liberation",
	"fonts-noto-color-emoji", "nodejs", "npm", "pkg-config", "python3-dev",
}

// chromiumFlags are read by Debian's wrapper of chromium. Its own sandbox
// needs namespaces or a set-user-ID helper, and an agent gets neither: it is
// in a sandbox already. Its shared memory goes to /tmp, whose size is known.
const chromiumFlags = "export CHROMIUM_FLAGS=\"$CHROMIUM_FLAGS --no-sandbox --disable-dev-shm-usage\"\n"

// recipes are the images that can be built, by name.
var recipes = map[string]recipe{
	"base": {packages: basePackages},
	"dev": {
		packages: slices.Concat(basePackages, devPackages),
		files:    []ownFile{{"etc/chromium.d/creel", chromiumFlags}},
	},
}

// Recipes are the names that Options.Recipe may have, sorted.
func Recipes() []string { return slices.Sorted(maps.Keys(recipes)) }
