package openclaw

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// defaultImage is OpenClaw's. A backend is told it also where none was
// configured, so it stands for the image that creel takes itself.
const defaultImage = "openclaw-sandbox:bookworm-slim"

var defaultTmpfs = []any{"/tmp", "/var/tmp", "/run"}

// verdict is what creel does with a key.
type verdict struct{ level, does, fix string }

func honoured(how string) verdict { return verdict{level: OK, does: "honoured: " + how} }

func idle(why string) verdict { return verdict{level: Note, does: "no meaning: " + why} }

// refused keeps the sandbox from being made, so that nobody takes a key to be
// in force that is not.
func refused(why string) verdict {
	return verdict{level: Missing, does: "refused: " + why, fix: "take it out"}
}

// layer is where a key of docker.* is set: an agent's or the defaults, which
// the other keys are looked up in.
type layer struct{ own, below map[string]any }

func (l layer) get(key string) any {
	if v := l.own[key]; v != nil {
		return v
	}
	return l.below[key]
}

// table has a row for each key of sandbox.docker that is set, and for those
// beside it that only Docker gives a meaning.
func (c *Config) table() (out []Finding) {
	below := asMap(at(c.defaults().own, "sandbox", "docker"))
	for _, a := range append([]agent{c.defaults()}, c.agents()...) {
		own := asMap(at(a.own, "sandbox", "docker"))
		l := layer{own: own}
		if a.id != "" {
			l.below = below
		}
		for _, key := range slices.Sorted(maps.Keys(own)) {
			full := a.path + ".sandbox.docker." + key
			if a.id != "" && c.scope(a) == "shared" {
				out = append(out, row(Note, a.about(), full, says(own[key]), `no meaning: with scope "shared" the defaults hold for all`, "take it out"))
				continue
			}
			out = append(out, rows(a.about(), full, key, own[key], l)...)
		}
		if at(a.own, "sandbox", "browser", "enabled") == true {
			v := refused("there is no browser in the sandbox; OpenClaw would not start a session")
			out = append(out, row(v.level, a.about(), a.path+".sandbox.browser.enabled", "true", v.does, v.fix))
		}
		if ssh := at(a.own, "sandbox", "ssh"); ssh != nil {
			v := idle("it is the SSH backend's")
			out = append(out, row(v.level, a.about(), a.path+".sandbox.ssh", "{...}", v.does, v.fix))
		}
	}
	return out
}

// rows are those of one key: for lists of things, one for each.
func rows(about, full, key string, v any, l layer) []Finding {
	one := func(key string, v any, vd verdict) Finding {
		return row(vd.level, about, key, says(v), vd.does, vd.fix)
	}
	switch key {
	case "binds":
		var out []Finding
		for i, b := range asList(v) {
			out = append(out, one(fmt.Sprintf("%s[%d]", full, i), b, bind(asString(b))))
		}
		return out
	case "ulimits":
		var out []Finding
		for _, name := range slices.Sorted(maps.Keys(asMap(v))) {
			vd := refused("only nofile can be set; processes are pidsLimit, memory is memory")
			if name == "nofile" {
				vd = honoured("open files of each process")
			}
			out = append(out, one(full+"."+name, asMap(v)[name], vd))
		}
		return out
	case "env":
		vd := environment(asMap(v))
		// The values may be secrets, and are nobody's business here.
		return []Finding{row(vd.level, about, full, strings.Join(slices.Sorted(maps.Keys(asMap(v))), ", "), vd.does, vd.fix)}
	}
	return []Finding{one(full, v, judge(key, v, l))}
}

func judge(key string, v any, l layer) verdict {
	switch key {
	case "image":
		if asString(v) == defaultImage {
			return verdict{level: OK, does: "OpenClaw's default: creel takes its own image"}
		}
		return honoured("has to be one of creel's images (creel image ls)")
	case "workdir":
		if p := asString(v); !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return refused("not an absolute path")
		}
		return honoured("where the workspace is mounted")
	case "readOnlyRoot":
		if v == false {
			return honoured("a writable layer that ends with the sandbox, with a size")
		}
		return honoured("the root file system is read-only")
	case "tmpfs":
		other := func(t any) bool { return !slices.Contains(defaultTmpfs, t) }
		if !slices.ContainsFunc(asList(v), other) {
			return verdict{level: OK, does: "of OpenClaw's default: creel's are the profile's, with sizes"}
		}
		return refused("temporary directories are the profile's")
	case "network":
		if asString(v) == "none" {
			return verdict{level: OK, does: "OpenClaw's default: no network but what the plugin's egress rules name"}
		}
		v := refused("there is no bridge and no host network")
		v.fix = "name what may be reached in plugins.entries." + Plugin + ".config.egress, and take it out"
		return v
	case "user":
		return refused("it is always the agent's uid, in a user namespace of the sandbox's own")
	case "capDrop":
		if slices.ContainsFunc(asList(v), func(c any) bool { return strings.EqualFold(asString(c), "ALL") }) {
			return honoured("all are dropped, always")
		}
		return refused("all are dropped, always; a profile gives some back")
	case "seccompProfile", "apparmorProfile":
		return refused("it is the profile's to say")
	case "pidsLimit":
		return honoured("processes and threads")
	case "cpus":
		return honoured("processors")
	case "memory", "memorySwap":
		return memory(key, l)
	case "gpus":
		return refused("there are no devices")
	case "dns", "extraHosts":
		return refused("names are looked up for the sandbox, as its egress rules allow")
	case "setupCommand":
		v := refused("nothing is run to set a sandbox up")
		v.fix = "do it in the image: creel image build, or creel commit"
		return v
	case "containerPrefix":
		if p := asString(v); p != "openclaw-sbx-" && !prefixRE.MatchString(p) {
			return refused("names begin with 1 to 12 of a-z, 0-9 and -")
		}
		return honoured("names of sandboxes begin with it")
	}
	if strings.HasPrefix(key, "dangerously") {
		if v == true {
			return refused("there is no such way round")
		}
		return idle("there is no such way round")
	}
	return refused("creel does not know the key")
}

// memory judges a limit with that of swap, which has to be the same: there is
// no swap. They may come from different places; it is said once.
func memory(key string, l layer) verdict {
	most, err := dockerSize(l.get("memory"))
	if key == "memory" && err != nil {
		return refused(err.Error())
	}
	// Docker counts memory and swap together.
	if swap := l.get("memorySwap"); swap != nil && (key == "memorySwap" || l.own["memorySwap"] == nil) {
		both, err := dockerSize(swap)
		if err != nil {
			return refused(err.Error())
		}
		if l.get("memory") == nil || both != most {
			v := refused("there is no swap: memorySwap, which counts both, has to equal memory")
			v.fix = "make them equal, or take memorySwap out"
			return v
		}
	}
	if key == "memorySwap" {
		return honoured("there is no swap")
	}
	return honoured("without swap")
}

var prefixRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,11}$`)

var sizeRE = regexp.MustCompile(`(?i)^([0-9]+(?:\.[0-9]+)?)([bkmgt]?)b?$`)

// dockerSize is a number of bytes as docker run takes it.
func dockerSize(v any) (int64, error) {
	switch v := v.(type) {
	case float64:
		if v >= 1 && v < 1<<60 {
			return int64(v), nil
		}
	case string:
		m := sizeRE.FindStringSubmatch(strings.TrimSpace(v))
		if m == nil {
			break
		}
		f, err := strconv.ParseFloat(m[1], 64)
		shift := 10 * strings.Index(" kmgt", strings.ToLower(m[2]))
		if m[2] == "" || strings.EqualFold(m[2], "b") {
			shift = 0
		}
		if f *= float64(int64(1) << shift); err == nil && f >= 1 && f < 1<<60 {
			return int64(f), nil
		}
	}
	return 0, fmt.Errorf("%s is not a size", says(v))
}

// bind reads HOST:TARGET[:MODE].
func bind(spec string) verdict {
	host, rest, ok := strings.Cut(spec, ":")
	target, mode, _ := strings.Cut(rest, ":")
	switch {
	case !ok || !path.IsAbs(host) || !path.IsAbs(target):
		return refused("not HOST:TARGET[:ro] with absolute paths")
	case mode == "ro":
		return honoured("a directory that the gateway's user can open, read-only")
	case mode == "" || mode == "rw":
		return honoured("a directory that the gateway's user can open; writable if it is that user's")
	}
	return refused("ro and rw are all that can be asked for")
}

var secretRE = regexp.MustCompile(`(?i)(key|token|secret|passw|credential)`)

func environment(env map[string]any) verdict {
	for name := range env {
		if secretRE.MatchString(name) {
			v := honoured("in every command's environment, where the agent reads it")
			v.level, v.fix = Note, "creel secret set: the agent uses it and never sees it"
			return v
		}
	}
	return honoured("in every command's environment")
}

// says is a value as it would be written, cut where it gets long.
func says(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // infinite numbers
		return fmt.Sprint(v)
	}
	const most = 60
	if r := []rune(string(b)); len(r) > most {
		return string(r[:most]) + "..."
	}
	return string(b)
}

// Images are those that agents' sandboxes are to have and that creel has to
// have, too.
func (c *Config) Images() (out []string) {
	for _, a := range append([]agent{c.defaults()}, c.agents()...) {
		name := asString(at(a.own, "sandbox", "docker", "image"))
		if name != "" && name != defaultImage && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}
