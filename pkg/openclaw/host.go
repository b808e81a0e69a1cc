package openclaw

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// onHost is what runs outside of every sandbox, whichever backend there is.
func (c *Config) onHost() []Finding {
	out := slices.Concat(c.execHost(), c.elevated(), c.acp(), c.runtimes(), c.browser(), c.servers(), c.plugins())
	if out == nil {
		return []Finding{finding(OK, "host", "", "no key lets agents run anything outside of their sandboxes")}
	}
	return out
}

const host = "host"

// execHost finds where the exec tool was sent past the sandbox.
func (c *Config) execHost() (out []Finding) {
	look := func(key string, v any) {
		if h := asString(v); h == "gateway" || h == "node" {
			out = append(out, finding(Danger, host, "take "+key+" out",
				"%s is %q: exec runs there, and not in the sandbox, also for sessions that have one", key, h))
		}
	}
	look("tools.exec.host", c.get("tools", "exec", "host"))
	for _, a := range c.agents() {
		look(a.path+".tools.exec.host", at(a.own, "tools", "exec", "host"))
	}
	return out
}

// elevated is tools.elevated: for whom exec leaves the sandbox. Nobody is
// allowed by default, though it is not off either.
func (c *Config) elevated() []Finding {
	global := asMap(c.get("tools", "elevated"))
	if off(global["enabled"]) {
		return nil
	}
	const fix = "set tools.elevated.enabled to false"
	senders := allowed(global["allowFrom"])
	if len(senders) == 0 {
		return []Finding{finding(Note, host, fix+", to be sure", "tools.elevated is not off, but allowFrom names nobody")}
	}
	agents := c.agents()
	if len(agents) == 0 {
		agents = []agent{c.defaults()}
	}
	var who []string
	for _, a := range agents {
		own := asMap(at(a.own, "tools", "elevated"))
		_, narrower := own["allowFrom"]
		if c.mode(a).value == "off" || off(own["enabled"]) || narrower && len(allowed(own["allowFrom"])) == 0 {
			continue
		}
		who = append(who, a.about())
	}
	if who == nil {
		return nil
	}
	return []Finding{finding(Danger, host, fix, "tools.elevated: whom its allowFrom names (%s) can have exec run on the host, past the sandbox of %s",
		strings.Join(senders, ", "), strings.Join(who, ", "))}
}

// allowed are the channels from which somebody is let.
func allowed(v any) (out []string) {
	for _, channel := range slices.Sorted(maps.Keys(asMap(v))) {
		if len(asList(asMap(v)[channel])) > 0 {
			out = append(out, channel)
		}
	}
	return out
}

// acp are agents of other programs (Agent Client Protocol), which OpenClaw
// starts on the host.
func (c *Config) acp() (out []Finding) {
	if off(c.get("acp", "enabled")) {
		return nil
	}
	const why = "its sessions are a program on the host that no sandbox holds"
	for _, a := range c.agents() {
		if key := a.path + ".runtime.type"; asString(at(a.own, "runtime", "type")) == "acp" {
			out = append(out, finding(Danger, host, "take it out, or set acp.enabled to false", `%s is "acp": %s`, key, why))
		}
	}
	for i, b := range asList(c.get("bindings")) {
		if asString(at(b, "type")) == "acp" {
			out = append(out, finding(Danger, host, "take it out, or set acp.enabled to false",
				`bindings[%d] is of type "acp" (agent %s): %s`, i, asString(at(b, "agentId")), why))
		}
	}
	var on []string
	for _, key := range []string{"acp.enabled", "acp.dispatch.enabled", "plugins.entries.acpx.enabled"} {
		if c.get(strings.Split(key, ".")...) == true {
			on = append(on, key+" is true")
		}
	}
	if b := asString(c.get("acp", "backend")); b != "" {
		on = append(on, fmt.Sprintf("acp.backend is %q", b))
	}
	if len(on) > 0 {
		out = append(out, finding(Note, host, "set acp.enabled to false if nobody uses it",
			"%s: /acp spawn starts agents of other programs on the host. Sandboxed sessions cannot", strings.Join(on, ", ")))
	}
	return out
}

// commandLines are the backends that are programs with tools of their own;
// a model's name may begin with one.
var commandLines = []string{"claude-cli", "google-gemini-cli", "codex-cli"}

// runtimes are programs on the host that answer for a model, with tools of
// their own: those that agentRuntime names, and command lines by a model's name.
func (c *Config) runtimes() (out []Finding) {
	known := slices.Concat(commandLines, slices.Sorted(maps.Keys(asMap(c.get("agents", "defaults", "cliBackends")))))
	look := func(key string, v any) {
		if id := asString(at(v, "agentRuntime", "id")); id != "" {
			out = append(out, runtime(key+".agentRuntime.id", id)...)
		}
		if provider, model, is := strings.Cut(asString(v), "/"); is && model != "" && slices.Contains(known, provider) {
			out = append(out, runtime(key, provider)...)
		}
	}
	for _, key := range []string{"agents", "models"} {
		visit(key, c.get(key), look)
	}
	return out
}

func runtime(key, id string) []Finding {
	switch id {
	case "auto", "openclaw", "pi": // OpenClaw's own, whose tools are sandboxed
		return nil
	case "codex":
		return []Finding{finding(Note, host, "",
			"%s is %q: the Codex app-server runs on the host. In a sandboxed session OpenClaw turns its own shell and MCP servers off", key, id)}
	}
	return []Finding{finding(Danger, host, `take a model with the runtime "openclaw"`,
		"%s is %q: that program runs on the host, and its own tools with it, whatever the sandbox says", key, id)}
}

// visit calls fn for v and all that is in it, each with its key.
func visit(key string, v any, fn func(key string, v any)) {
	fn(key, v)
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if plainKey(k) {
				visit(key+"."+k, v[k], fn)
			} else {
				visit(fmt.Sprintf("%s[%q]", key, k), v[k], fn)
			}
		}
	case []any:
		for i := range v {
			visit(fmt.Sprintf("%s[%d]", key, i), v[i], fn)
		}
	}
}

func (c *Config) browser() (out []Finding) {
	for _, a := range append([]agent{c.defaults()}, c.agents()...) {
		if key := a.path + ".sandbox.browser.allowHostControl"; at(a.own, "sandbox", "browser", "allowHostControl") == true {
			out = append(out, finding(Danger, host, "take "+key+" out",
				"%s: sandboxed sessions may drive the host's browser, with its log-ins", key))
		}
	}
	if !off(c.get("browser", "enabled")) {
		out = append(out, finding(Note, host, "set browser.enabled to false if no agent needs it",
			"browser.enabled is not false: the browser tool's browser runs on the host"))
	}
	return out
}

// servers are MCP servers, which OpenClaw starts beside itself.
func (c *Config) servers() []Finding {
	var local, remote []string
	servers := asMap(c.get("mcp", "servers"))
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		s := servers[name]
		switch {
		case off(at(s, "enabled")):
		case asString(at(s, "command")) != "":
			local = append(local, fmt.Sprintf("%s (%s)", name, asString(at(s, "command"))))
		default:
			remote = append(remote, name)
		}
	}
	var out []Finding
	if local != nil {
		out = append(out, finding(Note, host, "keep what a sandboxed agent should not do out of tools.sandbox.tools",
			"mcp.servers are programs on the host, with the gateway's rights: %s", strings.Join(local, ", ")))
	}
	if remote != nil {
		out = append(out, finding(Note, host, "", "mcp.servers that the gateway calls, past the sandbox's network: %s", strings.Join(remote, ", ")))
	}
	return out
}

// plugins are code in the gateway's own process.
func (c *Config) plugins() []Finding {
	var names []string
	entries := asMap(c.get("plugins", "entries"))
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if name != Plugin && !off(at(entries[name], "enabled")) {
			names = append(names, name)
		}
	}
	if names == nil || off(c.get("plugins", "enabled")) {
		return nil
	}
	return []Finding{finding(Note, host, "", "plugins are code in the gateway's process, and their tools run there: %s", strings.Join(names, ", "))}
}
