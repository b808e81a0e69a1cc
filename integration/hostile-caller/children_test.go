package hostilecaller

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// children are attempts to have by a child what its parent does not have. The
// attacker's own sandbox shows its own directory.
func children() []attempt {
	of := func(name, tries, fails string, more obj) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			req := obj{"parent": "own"}
			maps.Copy(req, more)
			way, _ := a.spawn(req, "")
			return way
		}}
	}
	dir := func(name, tries, fails, path string, flags int, own string) attempt {
		return attempt{name: name, tries: tries, fails: fails, do: func(a *attacker) string {
			if own != "" {
				defer os.Remove(filepath.Join(a.Own, own))
				if err := os.Symlink("/", filepath.Join(a.Own, own)); err != nil {
					return err.Error()
				}
			}
			f, err := open(filepath.Join(a.Own, path), unix.O_DIRECTORY|flags)
			if err != nil {
				return errnoName(err)
			}
			defer f.Close()
			req := mount("/mnt/x", true)
			req["parent"], req["agent"] = "own", "own"
			way, _ := a.spawn(req, "ls /mnt/x", f)
			return way
		}}
	}
	list := []attempt{
		of("child-memory", "have more memory by a child", "resource_exhausted", obj{"limits": obj{"memory": "8G"}}),
		of("child-cpus", "have more processors", "resource_exhausted", obj{"limits": obj{"cpus": 8}}),
		of("child-pids", "have more tasks", "resource_exhausted", obj{"limits": obj{"pids": 4096}}),
		of("child-tmp", "have more memory under the name of files", "permission_denied", obj{"limits": obj{"tmp": "900M", "memory": "2G"}}),
		of("child-files", "have more open files", "permission_denied", obj{"limits": obj{"files": 16384}}),
		of("child-ttl", "live longer", "permission_denied", obj{"limits": obj{"ttl": "100h"}}),
		of("child-weight", "have more of the disks", "permission_denied", obj{"limits": obj{"io_weight": 500}}),
		of("child-root", "become root inside", "permission_denied", obj{"profile": "build"}),
		of("child-writable", "have a writable root", "permission_denied", obj{"rootfs": "ephemeral"}),
		of("child-home", "keep a home", "permission_denied", obj{"home": "persistent"}),
		of("child-agent", "be another agent", "permission_denied", obj{"agent": "default"}),
		of("child-itself", "be the child of itself", "not_found", obj{"name": "self", "parent": "self"}),
		of("child-of-two", "have two parents", "invalid_argument", obj{"parent": []string{"own", "own"}}),
		dir("child-above", "show what is above the parent's directory", "permission_denied", "..", 0, ""),
		dir("child-slash", "show all of the host by a link in it", "permission_denied", "way-out", 0, "way-out"),
		dir("child-path-descriptor", "the same with a descriptor that needs no right to read", "permission_denied", "way-out", unix.O_PATH, "way-out"),
	}
	for _, verb := range []struct{ name, method, path string }{
		{"child-of-another", "POST", "/v1/sandboxes"},
		{"child-of-another-explained", "POST", "/v1/explain"},
		{"child-of-another-ensured", "PUT", "/v1/sandboxes/mine"},
	} {
		list = append(list, attempt{name: verb.name, tries: "make a child of another user's and of root's sandbox, by id, name and prefix, with " + verb.method + " " + verb.path, fails: "as if it did not exist", do: func(a *attacker) string {
			plain := func(ref string) string {
				r := a.ask(verb.method, verb.path, js(obj{"parent": ref}))
				body, id, _ := strings.Cut(r.body, `"request_id":"`)
				_, rest, _ := strings.Cut(id, `"`)
				return strings.ReplaceAll(fmt.Sprint(r.way(), " ", body, rest), ref, "REF")
			}
			none := plain(strings.Repeat("a", 20))
			for _, ref := range []string{a.VictimSandbox, a.VictimName, a.VictimSandbox[:6], a.RootSandbox, a.RootName, a.RootSandbox[:6]} {
				if got := plain(ref); got != none {
					return fmt.Sprintf("told %s from what does not exist: %s, %s", ref, got, none)
				}
			}
			if strings.HasPrefix(none, "201") || strings.Contains(none, `"allowed":true`) {
				return none
			}
			return "as if it did not exist"
		}})
	}
	return append(list,
		attempt{name: "child-outlives", tries: "go on in a child when the parent has ended", fails: "conflict", do: func(a *attacker) string {
			small := obj{"memory": "64M", "pids": 32, "cpus": 0.1}
			defer a.removeOthers()
			if r := a.ask("POST", "/v1/sandboxes", js(obj{"name": "top", "parent": "own", "limits": small})); r.status != http.StatusCreated {
				return r.way()
			}
			if r := a.ask("POST", "/v1/sandboxes", js(obj{"name": "low", "parent": "top", "limits": small})); r.status != http.StatusCreated {
				return r.way()
			}
			if r := a.ask("DELETE", "/v1/sandboxes/top?force=true", ""); r.status != http.StatusNoContent {
				return r.way()
			}
			way, _ := a.sh("low", "echo alive")
			return way
		}},
		attempt{name: "child-of-the-ended", tries: "make a child of a sandbox that has ended", fails: "conflict", do: func(a *attacker) string {
			defer a.removeOthers()
			if r := a.ask("POST", "/v1/sandboxes", js(obj{"name": "ended", "command": []string{"/bin/true"}})); r.status != http.StatusCreated {
				return r.way()
			}
			a.ask("GET", "/v1/sandboxes/ended/wait", "")
			way, _ := a.spawn(obj{"parent": "ended"}, "")
			return way
		}},
		attempt{name: "child-depth", tries: "go deeper than there may be generations", fails: "permission_denied", do: func(a *attacker) string {
			defer a.removeOthers()
			parent := "own"
			for i := range 4 {
				name := fmt.Sprint("deep", i)
				r := a.ask("POST", "/v1/sandboxes", js(obj{"name": name, "parent": parent, "limits": obj{"memory": fmt.Sprint(512>>i, "M"), "pids": 128 >> i, "cpus": 1 / float64(int(2)<<i)}}))
				if r.status != http.StatusCreated {
					if i < 3 {
						return fmt.Sprintf("at %d: %s %s", i, r.way(), r.body)
					}
					return r.way()
				}
				parent = name
			}
			return "spawned"
		}},
	)
}
