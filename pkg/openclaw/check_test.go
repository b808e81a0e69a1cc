package openclaw_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/creel-sandbox/creel/pkg/openclaw"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

var place = openclaw.Place{Config: "/home/u/.openclaw/openclaw.json", State: "/home/u/.openclaw", Home: "/home/u"}

func configOf(t *testing.T, text string) *openclaw.Config {
	t.Helper()
	v, err := openclaw.Decode(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return openclaw.Of(v.(m), place)
}

// TestCheck says what check has to say of testdata/*.json5.
func TestCheck(t *testing.T) {
	names, err := filepath.Glob("testdata/*.json5")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".json5"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found := configOf(t, string(text)).Check()
			var b strings.Builder
			for _, f := range found {
				fmt.Fprintf(&b, "%-8s %s: %s\n", f.Level, f.About, f.What)
				if f.Fix != "" {
					fmt.Fprintf(&b, "         fix: %s\n", f.Fix)
				}
			}
			fmt.Fprintf(&b, "missing or dangerous: %d\n", openclaw.Bad(found))
			golden := strings.TrimSuffix(name, ".json5") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if diff := cmp.Diff(string(want), b.String()); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestKeys is each key of sandbox.docker.
func TestKeys(t *testing.T) {
	for _, tt := range []struct{ docker, level, does string }{
		{`image: 'openclaw-sandbox:bookworm-slim'`, openclaw.OK, "OpenClaw's default"},
		{`image: 'team/tools:1'`, openclaw.OK, "honoured"},
		{`workdir: '/workspace'`, openclaw.OK, "honoured"},
		{`workdir: 'work'`, openclaw.Missing, "not an absolute path"},
		{`workdir: '/a/../b'`, openclaw.Missing, "not an absolute path"},
		{`readOnlyRoot: true`, openclaw.OK, "the root file system is read-only"},
		{`readOnlyRoot: false`, openclaw.OK, "a writable layer"},
		{`tmpfs: ['/tmp', '/var/tmp', '/run']`, openclaw.OK, "OpenClaw's default"},
		{`tmpfs: ['/tmp']`, openclaw.OK, "the profile's"},
		{`tmpfs: ['/tmp', '/var/tmp', '/run:size=1g']`, openclaw.Missing, "the profile's"},
		{`network: 'none'`, openclaw.OK, "OpenClaw's default"},
		{`network: 'bridge'`, openclaw.Missing, "no bridge"},
		{`network: 'container:x'`, openclaw.Missing, "no bridge"},
		{`user: '1000:1000'`, openclaw.Missing, "user namespace"},
		{`capDrop: ['all']`, openclaw.OK, "all are dropped"},
		{`capDrop: ['NET_RAW']`, openclaw.Missing, "all are dropped"},
		{`capDrop: []`, openclaw.Missing, "all are dropped"},
		{`seccompProfile: '/s.json'`, openclaw.Missing, "the profile's"},
		{`apparmorProfile: 'x'`, openclaw.Missing, "the profile's"},
		{`pidsLimit: 256`, openclaw.OK, "honoured"},
		{`cpus: 1.5`, openclaw.OK, "honoured"},
		{`memory: '1g'`, openclaw.OK, "honoured"},
		{`memory: 1073741824`, openclaw.OK, "honoured"},
		{`memory: '1.5GB'`, openclaw.OK, "honoured"},
		{`memory: 'lots'`, openclaw.Missing, `"lots" is not a size`},
		{`memory: -1`, openclaw.Missing, "-1 is not a size"},
		{`gpus: 'all'`, openclaw.Missing, "no devices"},
		{`dns: ['1.1.1.1']`, openclaw.Missing, "egress rules"},
		{`extraHosts: ['a:10.0.0.1']`, openclaw.Missing, "egress rules"},
		{`setupCommand: 'apt-get update'`, openclaw.Missing, "nothing is run"},
		{`containerPrefix: 'x-'`, openclaw.OK, "begin with it"},
		{`containerPrefix: 'X_'`, openclaw.Missing, "names begin with"},
		{`dangerouslyAllowExternalBindSources: true`, openclaw.Missing, "no such way round"},
		{`dangerouslyAllowExternalBindSources: false`, openclaw.Note, "no such way round"},
		{`binds: ['/a:/b']`, openclaw.OK, "writable"},
		{`binds: ['/a:/b:rw']`, openclaw.OK, "writable"},
		{`binds: ['/a:/b:ro']`, openclaw.OK, "read-only"},
		{`binds: ['/a:/b:ro,z']`, openclaw.Missing, "ro and rw"},
		{`binds: ['a:/b']`, openclaw.Missing, "absolute paths"},
		{`binds: ['/a']`, openclaw.Missing, "absolute paths"},
		{`binds: [1]`, openclaw.Missing, "absolute paths"},
		{`ulimits: {nofile: '1024:2048'}`, openclaw.OK, "open files"},
		{`ulimits: {nproc: 5}`, openclaw.Missing, "only nofile"},
		{`env: {LANG: 'C.UTF-8'}`, openclaw.OK, "honoured"},
		{`env: {GITHUB_TOKEN: 'ghp_x'}`, openclaw.Note, "the agent reads it"},
		{`privileged: true`, openclaw.Missing, "does not know"},
	} {
		got := configOf(t, `{agents: {defaults: {sandbox: {docker: {`+tt.docker+`}}}}}`).Table()
		if len(got) != 1 || got[0].Level != tt.level || !strings.Contains(got[0].Does, tt.does) || (got[0].Fix == "") != (tt.level == openclaw.OK) && tt.level != openclaw.Note {
			t.Errorf("%s: %+v, want %s with %q", tt.docker, got, tt.level, tt.does)
			continue
		}
		if f := got[0]; strings.Contains(f.What, "ghp_x") || !strings.HasPrefix(f.Key, "agents.defaults.sandbox.docker.") || f.Says == "" {
			t.Errorf("%+v", f)
		}
	}
}

// What counts is what OpenClaw joins of the defaults and the agent.
func TestMemorySwap(t *testing.T) {
	for _, tt := range []struct {
		defaults, agent string
		want            []string // levels, by key
	}{
		{`memory: '1g', memorySwap: '1024m'`, ``, []string{openclaw.OK, openclaw.OK}},
		{`memory: '1g', memorySwap: '2g'`, ``, []string{openclaw.OK, openclaw.Missing}},
		{`memorySwap: '1g'`, ``, []string{openclaw.Missing}},
		{`memory: '1g', memorySwap: -1`, ``, []string{openclaw.OK, openclaw.Missing}},
		{`memory: '1g', memorySwap: '1g'`, `memory: '2g'`, []string{openclaw.OK, openclaw.OK, openclaw.Missing}},
		{`memory: '1g', memorySwap: '1g'`, `memory: '2g', memorySwap: '2g'`, []string{openclaw.OK, openclaw.OK, openclaw.OK, openclaw.OK}},
		{`memory: '1g'`, `memorySwap: '1g'`, []string{openclaw.OK, openclaw.OK}},
	} {
		var got []string
		for _, f := range configOf(t, `{agents: {defaults: {sandbox: {docker: {`+tt.defaults+`}}}, entries: {a: {sandbox: {docker: {`+tt.agent+`}}}}}}`).Table() {
			got = append(got, f.Level)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s; %s (-want +got):\n%s", tt.defaults, tt.agent, diff)
		}
	}
}

// TestHost is each key that lets something run on the host; no level is nothing
// to say.
func TestHost(t *testing.T) {
	for _, tt := range []struct{ text, level, what string }{
		{`{browser: {enabled: false}, tools: {elevated: {enabled: false}}}`, openclaw.OK, "no key"},
		{`{tools: {exec: {host: 'auto'}}}`, "", "no key"},
		{`{tools: {exec: {host: 'gateway'}}}`, openclaw.Danger, `tools.exec.host is "gateway"`},
		{`{agents: {entries: {a: {tools: {exec: {host: 'node'}}}}}}`, openclaw.Danger, "agents.entries.a.tools.exec.host"},
		{`{tools: {elevated: {}}, agents: {defaults: {sandbox: {mode: 'all'}}}}`, openclaw.Note, "names nobody"},
		{`{tools: {elevated: {enabled: false, allowFrom: {x: ['*']}}}}`, "", "no key"},
		{`{tools: {elevated: {allowFrom: {x: ['*'], y: []}}}, agents: {defaults: {sandbox: {mode: 'all'}}}}`, openclaw.Danger, "(x) can have exec run on the host, past the sandbox of agents.defaults"},
		{`{tools: {elevated: {allowFrom: {x: ['*']}}}, agents: {defaults: {sandbox: {mode: 'all'}}, entries: {a: {}, b: {tools: {elevated: {enabled: false}}}, c: {tools: {elevated: {allowFrom: {}}}}, d: {sandbox: {mode: 'off'}}}}}`, openclaw.Danger, "of agent a"},
		{`{tools: {elevated: {allowFrom: {x: ['*']}}}, agents: {entries: {a: {sandbox: {mode: 'off'}}}}}`, "", "no key"},
		{`{acp: {enabled: true}}`, openclaw.Note, "acp.enabled is true"},
		{`{acp: {backend: 'acpx'}}`, openclaw.Note, `acp.backend is "acpx"`},
		{`{acp: {enabled: false, backend: 'acpx'}, bindings: [{type: 'acp'}]}`, "", "no key"},
		{`{bindings: [{agentId: 'x'}, {type: 'acp', agentId: 'y'}]}`, openclaw.Danger, "bindings[1] is of type \"acp\" (agent y)"},
		{`{agents: {list: [{id: 'x', runtime: {type: 'acp'}}]}}`, openclaw.Danger, "agents.list[0].runtime.type"},
		{`{agents: {defaults: {model: 'anthropic/claude-opus-5'}}}`, "", "no key"},
		{`{agents: {defaults: {model: 'claude-cli/claude-sonnet-5'}}}`, openclaw.Danger, `agents.defaults.model is "claude-cli"`},
		{`{agents: {entries: {a: {model: {primary: 'x/y', fallbacks: ['google-gemini-cli/z']}}}}}`, openclaw.Danger, "agents.entries.a.model.fallbacks[0]"},
		{`{agents: {defaults: {cliBackends: {mine: {}}, model: 'mine/x'}}}`, openclaw.Danger, `"mine"`},
		{`{agents: {defaults: {models: {'anthropic/x': {agentRuntime: {id: 'claude-cli'}}}}}}`, openclaw.Danger, `agents.defaults.models["anthropic/x"].agentRuntime.id`},
		{`{models: {providers: {openai: {agentRuntime: {id: 'codex'}}}}}`, openclaw.Note, "Codex app-server"},
		{`{models: {providers: {openai: {models: [{agentRuntime: {id: 'copilot'}}]}}}}`, openclaw.Danger, "models.providers.openai.models[0].agentRuntime.id"},
		{`{models: {providers: {openai: {agentRuntime: {id: 'openclaw'}}}}}`, "", "no key"},
		{`{agents: {defaults: {sandbox: {browser: {allowHostControl: true}}}}}`, openclaw.Danger, "allowHostControl"},
		{`{browser: {enabled: true}}`, openclaw.Note, "browser.enabled"},
		{`{mcp: {servers: {a: {command: 'npx'}, b: {command: 'x', enabled: false}}}}`, openclaw.Note, "rights: a (npx)"},
		{`{mcp: {servers: {a: {url: 'https://x'}}}}`, openclaw.Note, "calls, past the sandbox's network: a"},
		{`{plugins: {entries: {creel: {enabled: true}, x: {}, y: {enabled: false}}}}`, openclaw.Note, "run there: x"},
	} {
		// Two are there by default.
		got := slices.DeleteFunc(configOf(t, tt.text).Host(), func(f openclaw.Finding) bool {
			return !strings.Contains(f.What, tt.what) && (strings.HasPrefix(f.What, "browser.enabled") || strings.HasPrefix(f.What, "tools.elevated is not off"))
		})
		if tt.level == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].Level != tt.level || !strings.Contains(got[0].What, tt.what) {
			t.Errorf("%s: %+v, want %s with %q", tt.text, got, tt.level, tt.what)
		}
	}
}

func TestWorkspaces(t *testing.T) {
	for text, want := range map[string][]string{
		`{}`: {"/home/u/.openclaw/workspace", "/home/u/.openclaw/sandboxes"},
		`{agents: {defaults: {workspace: '~/ws', sandbox: {workspaceRoot: '/srv/boxes'}}, entries: {a: {}, b: {workspace: '~/b', sandbox: {workspaceRoot: '/srv/b'}}}}}`: {"/home/u/ws", "/home/u/ws/a", "/home/u/b", "/srv/boxes", "/srv/b"},
		`{agents: {list: [{id: 'x'}, {workspace: 'relative'}]}}`: {"/home/u/.openclaw/workspace", "/home/u/.openclaw/workspace-x", "/home/u/.openclaw/sandboxes"},
	} {
		if diff := cmp.Diff(want, configOf(t, text).Workspaces()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
	if got := configOf(t, `{agents: {defaults: {sandbox: {docker: {image: 'openclaw-sandbox:bookworm-slim'}}}, entries: {a: {sandbox: {docker: {image: 'x:1'}}}, b: {sandbox: {docker: {image: 'x:1'}}}}}}`).Images(); !cmp.Equal(got, []string{"x:1"}) {
		t.Errorf("images: %q", got)
	}
}

// A configuration may have anything anywhere.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{`{agents: 1, plugins: []}`, `{agents: {defaults: {sandbox: {docker: [], browser: 1}}, entries: {a: null}, list: [1]}}`, `{agents: {entries: [], defaults: {sandbox: {docker: {memory: {}, binds: {}, env: [], ulimits: 1, capDrop: 'x'}}}}, bindings: {}, mcp: {servers: {a: 1}}, tools: {elevated: {allowFrom: []}}, models: {providers: [1]}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := openclaw.Decode(text)
		root, is := v.(m)
		if err != nil || !is {
			return
		}
		c := openclaw.Of(root, place)
		for _, f := range c.Check() {
			if f.Level == "" || f.About == "" || f.What == "" {
				t.Errorf("%q: %+v", text, f)
			}
		}
		c.Workspaces()
		c.Images()
	})
}
