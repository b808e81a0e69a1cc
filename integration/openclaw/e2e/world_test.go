// Package e2e_test has the real openclaw use the real creeld: a gateway of an
// ordinary user's with the plugin as its users install it, and a model that
// does what a test tells it to.
package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/creel-sandbox/creel/integration/lab"
	"github.com/creel-sandbox/creel/pkg/kerneltest"
)

const (
	// gatewayUID is the gateways' user, whom no user database knows.
	gatewayUID = 4300
	// socketGroup is the socket's group, one that every Debian has.
	socketGroup, socketGID = "users", 100
)

// openclaw is what "make deps-openclaw plugin" leaves.
var openclaw = kerneltest.Need{Name: "openclaw", Probe: func() error {
	for _, f := range []string{"node/node_modules/node/bin/node", "inst/node_modules/openclaw/openclaw.mjs", "creel-openclaw.tgz"} {
		if _, err := os.Stat(filepath.Join(cache(), f)); err != nil {
			return fmt.Errorf("%w; run \"make deps-openclaw plugin\"", err)
		}
	}
	return nil
}}

// cache is .cache/openclaw of this checkout, or CREEL_TEST_OPENCLAW.
func cache() string {
	if p := os.Getenv("CREEL_TEST_OPENCLAW"); p != "" {
		return p
	}
	return filepath.Join(filepath.Dir(kerneltest.BinDir()), ".cache", "openclaw")
}

// world is a creeld, a model, and where the gateways are.
type world struct {
	*lab.Lab
	Dir   string // of the gateways
	model *model
	site  *lab.Site // what a policy lets one of the agents reach
	inst  string
}

// newWorld starts a creeld as an installed one is, for members of its group.
func newWorld(t *testing.T, patience time.Duration) *world {
	t.Helper()
	kerneltest.Require(t, kerneltest.Root, kerneltest.BaseImage, kerneltest.Users, openclaw)
	dir, err := os.MkdirTemp("/tmp", "creel-oc-") //nolint:usetesting // t.TempDir lets only root pass
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Dir: dir, inst: filepath.Join(dir, "openclaw")}
	// A checkout can be in a directory that is root's alone. (Not in a mount
	// namespace of the test's own: in one, this kernel lets creeld pin another
	// only sometimes.)
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(w.inst, unix.MNT_DETACH), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(fmt.Sprintf("/tmp/openclaw-state-locks-%d", gatewayUID))
	})
	compiled := filepath.Join(dir, "compiled")
	err = errors.Join(
		os.Chmod(dir, 0o755), os.Mkdir(w.inst, 0o755), os.Mkdir(compiled, 0o700), os.Chown(compiled, gatewayUID, gatewayUID),
		unix.Mount(cache(), w.inst, "", unix.MS_BIND, ""), unix.Mount("", w.inst, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""),
	)
	if err != nil {
		t.Fatal(err)
	}
	w.model, w.site = newModel(t), lab.NewSite(t)
	w.Lab = lab.New(t, lab.Options{
		Image: kerneltest.BaseImagePath(), Group: socketGroup, Patience: patience,
		Config: fmt.Sprintf("[egress]\nroots = %q\n", w.site.Roots) +
			"[mounts]\npaths = true\n[[caller]]\nmatch = \"socket_group\"\nprofiles = [\"default\", \"strict\"]\nmounts = [\"own\"]\nsandboxes = 60\n" +
			fmt.Sprintf("egress = [%q]\n", "https "+w.host()),
	})
	return w
}

// host is the site's, as rules have it.
func (w *world) host() string { return fmt.Sprintf("host.creel.internal:%d", w.site.Port) }

// config is an OpenClaw's, with agents for what the tests try.
func (w *world) config(dir string) obj {
	workspace := func(name string) string { return filepath.Join(dir, "ws-"+name) }
	all := obj{"allowAgents": []string{"*"}}
	return obj{
		"models": obj{"mode": "replace", "providers": obj{"mock": obj{
			"baseUrl": w.model.URL, "apiKey": "mock-key", "api": "openai-completions",
			"models": []obj{{"id": "mock-1", "name": "Mock", "reasoning": false, "input": []string{"text"}, "contextWindow": 128000, "maxTokens": 4096}},
		}}},
		"tools": obj{"toolSearch": false, "sessions_spawn": obj{"attachments": obj{"enabled": true}}},
		"agents": obj{
			"ownership": "explicit",
			"defaults": obj{
				"workspace": workspace("main"), "skipBootstrap": true, "model": obj{"primary": "mock/mock-1"},
				"sandbox":   obj{"mode": "all", "scope": "session", "backend": "creel", "workspaceAccess": "none"},
				"subagents": obj{"maxSpawnDepth": 3, "maxConcurrent": 8},
			},
			"entries": obj{
				"main":  obj{"subagents": all},
				"open":  obj{"workspace": workspace("open"), "sandbox": obj{"mode": "off"}, "subagents": all},
				"boxed": obj{"workspace": workspace("boxed"), "subagents": all},
				"ro":    obj{"workspace": workspace("ro"), "sandbox": obj{"workspaceAccess": "ro"}},
				"rw":    obj{"workspace": workspace("rw"), "sandbox": obj{"workspaceAccess": "rw"}, "subagents": all},
				// What they ask for is not to be had, each in its way.
				"nobackend": obj{"workspace": workspace("nobackend"), "sandbox": obj{"backend": "nope"}},
				"noimage":   obj{"workspace": workspace("noimage")},
				"noprofile": obj{"workspace": workspace("noprofile")},
				"revoked":   obj{"workspace": workspace("revoked")},
				"secret":    obj{"workspace": workspace("secret")},
			},
		},
	}
}

// plugin is its configuration.
func (w *world) plugin() obj {
	return obj{
		"socket": w.Socket, "creel": filepath.Join(w.Lab.Dir, "creel"), "image": "base",
		"agents": obj{
			"noimage": obj{"image": "nosuch"}, "noprofile": obj{"profile": "nosuch"},
			"secret": obj{"egress": []string{"https " + w.host()}, "secrets": []string{"api"}},
		},
	}
}
