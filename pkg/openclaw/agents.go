package openclaw

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// agent is one of the configuration's, or what holds for all without a word
// of their own.
type agent struct {
	id   string // "" for the defaults
	path string // "agents.entries.main"
	own  map[string]any
}

func (a agent) about() string {
	if a.id == "" {
		return "agents.defaults"
	}
	return "agent " + a.id
}

const defaultsPath = "agents.defaults"

func (c *Config) defaults() agent {
	return agent{path: defaultsPath, own: asMap(c.get("agents", "defaults"))}
}

// agents are those that the configuration names: entries, else the list of
// older versions.
func (c *Config) agents() (out []agent) {
	if entries := c.get("agents", "entries"); entries != nil {
		for _, id := range slices.Sorted(maps.Keys(asMap(entries))) {
			if own, is := asMap(entries)[id].(map[string]any); is {
				out = append(out, agent{id: id, path: "agents.entries." + id, own: own})
			}
		}
		return out
	}
	for i, v := range asList(c.get("agents", "list")) {
		if own, is := v.(map[string]any); is {
			id := asString(own["id"])
			if id == "" {
				id = "main"
			}
			out = append(out, agent{id: id, path: fmt.Sprintf("agents.list[%d]", i), own: own})
		}
	}
	return out
}

// setting is a value and the key that it is set by.
type setting struct{ value, key string }

// sandbox is a text setting of the agent's sandbox: its own, that of the
// defaults, or what OpenClaw takes otherwise.
func (c *Config) sandbox(a agent, key, otherwise string) setting {
	for _, from := range []agent{a, c.defaults()} {
		if v := asString(at(from.own, "sandbox", key)); v != "" {
			return setting{v, from.path + ".sandbox." + key}
		}
	}
	return setting{otherwise, defaultsPath + ".sandbox." + key}
}

func (c *Config) mode(a agent) setting { return c.sandbox(a, "mode", "off") }

func (c *Config) backend(a agent) setting {
	s := c.sandbox(a, "backend", "docker")
	s.value = strings.ToLower(s.value)
	return s
}

func (c *Config) scope(a agent) string { return c.sandbox(a, "scope", "agent").value }

// Check explains the configuration: the plugin, each agent, the table of keys
// and what runs on the host. It looks at nothing else.
func (c *Config) Check() []Finding {
	var out []Finding
	out = append(out, c.checkFile()...)
	out = append(out, c.checkPlugin()...)
	out = append(out, c.Agents()...)
	out = append(out, c.onHost()...)
	return append(out, c.table()...)
}

func (c *Config) checkFile() []Finding {
	const about = "config"
	out := []Finding{finding(OK, about, "", "%s", c.Config)}
	if c.Symlink {
		out = append(out, finding(Note, about, "name the file itself in OPENCLAW_CONFIG_PATH",
			"%s is a symbolic link: OpenClaw puts a file in its place, and setup does not write it", c.Config))
	}
	if len(c.Includes) > 0 {
		out = append(out, finding(Note, about, "", "it includes %s, which are read here as well; setup does not write such a configuration",
			strings.Join(c.Includes, ", ")))
	}
	if c.IncludeErr != nil {
		out = append(out, finding(Missing, about, "put what it includes into the file",
			"not all of it is known, and nothing of what it includes is looked at: %v", c.IncludeErr))
	}
	return out
}

func (c *Config) checkPlugin() []Finding {
	const about = "plugin"
	entry := "plugins.entries." + Plugin + ".enabled"
	var out []Finding
	miss := func(fix, format string, args ...any) {
		out = append(out, finding(Missing, about, fix, format, args...))
	}
	names := func(key string) bool { return slices.Contains(asList(c.get("plugins", key)), any(Plugin)) }
	if off(c.get("plugins", "enabled")) {
		miss("take plugins.enabled out", "plugins.enabled is false: no plugin is loaded, so there is no backend %q", Plugin)
	}
	if c.get("plugins", "entries", Plugin, "enabled") != true {
		miss("creel openclaw setup", "%s is not true", entry)
	}
	if _, is := c.get("plugins", "allow").([]any); is && !names("allow") {
		miss("creel openclaw setup", "plugins.allow is a list without %q: the plugin is not loaded", Plugin)
	}
	if names("deny") {
		miss("take it out of plugins.deny", "plugins.deny has %q, and wins over plugins.allow", Plugin)
	}
	if out == nil {
		out = append(out, finding(OK, about, "", "%s is true; whether it is loaded: openclaw plugins inspect %s --runtime", entry, Plugin))
	}
	return out
}

// Agents says of each agent whether its sessions are in creel's sandboxes.
func (c *Config) Agents() []Finding {
	var out []Finding
	for _, a := range append([]agent{c.defaults()}, c.agents()...) {
		out = append(out, c.checkAgent(a)...)
	}
	return out
}

func (c *Config) checkAgent(a agent) (out []Finding) {
	mode, backend := c.mode(a), c.backend(a)
	switch mode.value {
	case "all":
	case "non-main":
		out = append(out, finding(Danger, a.about(), mend(mode.key, "all"),
			`%s is "non-main": what its main session (%s) runs, runs on the host with the gateway's rights`, mode.key, c.mainSession(a)))
	case "off":
		out = append(out, finding(Danger, a.about(), mend(mode.key, "all"),
			`%s is "off": all that it runs, runs on the host with the gateway's rights`, mode.key))
	default:
		out = append(out, finding(Danger, a.about(), mend(mode.key, "all"), "%s is %q, which OpenClaw does not know", mode.key, mode.value))
	}
	if backend.value != Plugin {
		out = append(out, finding(Missing, a.about(), mend(backend.key, Plugin), "%s is %q: its sandboxes are not creel's", backend.key, backend.value))
	}
	if out == nil {
		out = append(out, finding(OK, a.about(), "", "every session in a sandbox of creel's, one per %s", c.scope(a)))
	}
	if c.scope(a) == "shared" {
		key := c.sandbox(a, "scope", "").key
		out = append(out, finding(Note, a.about(), "make "+key+` "session"`, `%s is "shared": sessions and agents that have it are in one sandbox, with each other's files`, key))
	}
	return out
}

func (c *Config) mainSession(a agent) string {
	switch {
	case asString(c.get("session", "scope")) == "global":
		return "global"
	case a.id == "" && len(c.agents()) > 0:
		return "agent:ID:main"
	case a.id == "":
		return "agent:main:main"
	}
	return "agent:" + a.id + ":main"
}

// mend says how to make a key what it should be; setup does that only for the
// defaults.
func mend(key, value string) string {
	if strings.HasPrefix(key, defaultsPath+".") {
		return "creel openclaw setup"
	}
	return fmt.Sprintf("take %s out, or make it %q", key, value)
}

// Workspaces are the directories of the agents' files, whether they are there
// or not: those of their own, and those that their sandboxes have instead.
func (c *Config) Workspaces() []string {
	var out []string
	add := func(path string) {
		if path == "" {
			return
		}
		if !filepath.IsAbs(path) {
			return // from the gateway's working directory, which is not known
		}
		if path = filepath.Clean(path); !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	shared := asString(c.get("agents", "defaults", "workspace"))
	switch {
	case shared != "":
		add(expand(shared, c.Home))
	case c.Workspace != "":
		add(c.Workspace)
	default:
		add(filepath.Join(c.State, "workspace"))
	}
	for _, a := range c.agents() {
		switch own := asString(a.own["workspace"]); {
		case own != "":
			add(expand(own, c.Home))
		case shared != "":
			add(filepath.Join(expand(shared, c.Home), a.id))
		default:
			add(filepath.Join(c.State, "workspace-"+a.id))
		}
	}
	for _, a := range append([]agent{c.defaults()}, c.agents()...) {
		add(expand(c.sandbox(a, "workspaceRoot", filepath.Join(c.State, "sandboxes")).value, c.Home))
	}
	return out
}
